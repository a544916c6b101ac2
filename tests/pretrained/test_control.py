"""ControlNets in published pipelines: their own or added; pictures as arrays and files; and what does not fit.

That strict steps are diffusers' own is for `tests/parity/test_pipelines.py`.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jaxdiff.data.sources import DataError
from jaxdiff.launch.errors import ConfigError
from jaxdiff.pretrained import PretrainedError, load_pipeline, write_network
from jaxdiff.pretrained.control import pictures_of
from jaxdiff.pretrained.pipeline import Pretrained
from jaxdiff.pretrained.schedulers.strict import draw_strictly
from tests.pretrained.test_pipeline import SD, _scaled, write_pipeline
from tests.pretrained.tiny import tiny

OPTIONS: dict[str, Any] = {"steps": 2, "strict": True, "decode": False}
PICTURE = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
CAT = {"text": "a cat"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_pipeline(tmp_path_factory.mktemp("published"), {"_class_name": "EulerDiscreteScheduler", **SD})
    for number in range(2):
        made = tiny("ControlNetModel", number)
        write_network(folder / f"outlines{number}", made._replace(params=_scaled(made.params, 0.2)))
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> Pretrained:
    return load_pipeline(folder, control=folder / "outlines0")


def test_a_picture_is_told_by_its_scale(model: Pretrained, folder: Path) -> None:
    plain = load_pipeline(folder).sample(0, 2, CAT, **OPTIONS)
    np.testing.assert_array_equal(model.sample(0, 2, CAT, **OPTIONS), plain)
    none, half, told = (model.sample(0, 2, CAT, control=PICTURE, control_scale=w, **OPTIONS) for w in (0.0, 0.5, None))
    np.testing.assert_allclose(none, plain, atol=1e-4)
    assert np.abs(told - plain).max() > 0.1 and np.abs(half - told).max() > 1e-2
    each = model.sample(0, 2, CAT, control=np.stack([PICTURE] * 2), control_scale=[1.0, 0.5], **OPTIONS)
    np.testing.assert_allclose(each, np.stack([told[0], half[1]]), atol=1e-4)
    assert sorted(model.parts) == ["controlnet", "text_encoder", "unet", "vae"]


def test_guidance_tells_the_picture_on_both_sides(model: Pretrained) -> None:
    """So where there is no other text to lead from, any weight is the same."""
    options = {**OPTIONS, "control": PICTURE, "control_scale": 0.5, "negative": CAT}
    one, same = (model.sample(0, 2, CAT, **options, guide=f"cfg:{weight}") for weight in (1, 7))
    np.testing.assert_allclose(one, same, atol=1e-4 * np.abs(one).max())


def test_a_picture_counts_for_a_part_of_the_way(model: Pretrained) -> None:
    """A call in which it ends is two: one with the picture, and one without that goes on."""
    options: dict[str, Any] = {"steps": 4, "decode": False, "guide": (), "sampler": "ddim", "grid": "uniform"}
    found = model.sample(0, 1, CAT, control=PICTURE, control_end=0.5, **options)
    x = model.sample(0, 1, CAT, control=PICTURE, **options, denoising_end=0.5)
    by_hand = model.sample(0, 1, CAT, **options, x=x, denoising_start=0.5)
    np.testing.assert_allclose(found, by_hand, atol=1e-4 * np.abs(found).max())


def test_another_start_or_end_compiles_nothing(model: Pretrained) -> None:
    options: dict[str, Any] = {**OPTIONS, "control": PICTURE, "guide": "cfg:2"}
    program: Any = draw_strictly
    whole = model.sample(0, 1, CAT, **options)
    compiled = program._cache_size()
    first = model.sample(0, 1, CAT, **options, control_end=0.5)
    last = model.sample(0, 1, CAT, **options, control_start=0.5)
    assert program._cache_size() == compiled
    assert min(np.abs(one - other).max() for one, other in ((whole, first), (whole, last), (first, last))) > 1e-3


def test_in_guess_mode_guidance_leads_away_from_an_answer_without_the_picture(model: Pretrained) -> None:
    """With weight 0 it is that answer."""
    plain = model.sample(0, 1, CAT, **OPTIONS, guide="cfg:0")
    options: dict[str, Any] = {**OPTIONS, "guide": "cfg:0", "control": PICTURE}
    np.testing.assert_allclose(model.sample(0, 1, CAT, guess_mode=True, **options), plain, atol=1e-4)
    assert np.abs(model.sample(0, 1, CAT, **options) - plain).max() > 1e-2


def test_our_samplers_take_pictures_of_files_too(model: Pretrained, tmp_path: Path) -> None:
    Image.fromarray(PICTURE).save(tmp_path / "a.png")
    Image.fromarray(PICTURE[..., 0]).save(tmp_path / "grey.png")
    options: dict[str, Any] = {"steps": 2, "decode": False}
    found = model.sample(0, 2, CAT, control=tmp_path / "a.png", **options)
    np.testing.assert_array_equal(found, model.sample(0, 2, CAT, control=PICTURE, **options))
    grey = pictures_of("control", [tmp_path / "grey.png"] * 2, (16, 16, 3))
    np.testing.assert_array_equal(grey, np.stack([PICTURE[..., :1].repeat(3, -1) / np.float32(255)] * 2))


def test_several_by_name_some_of_them_left_out(model: Pretrained, folder: Path) -> None:
    both = load_pipeline(folder, control={"a": folder / "outlines0", "b": folder / "outlines1"})
    one = model.sample(0, 2, CAT, control=PICTURE, control_scale=0.5, **OPTIONS)
    alone = both.sample(0, 2, CAT, control={"a": PICTURE}, control_scale=0.5, **OPTIONS)
    np.testing.assert_allclose(alone, one, atol=1e-4 * np.abs(one).max())
    with pytest.raises(ConfigError, match="of several ControlNets a dict by name, of a, b"):
        both.sample(0, 2, CAT, control=PICTURE, **OPTIONS)
    with pytest.raises(ConfigError, match="control_scale: there is no ControlNet 'c'; they are a, b"):
        both.sample(0, 2, CAT, control={"a": PICTURE}, control_scale={"c": 1}, **OPTIONS)


def test_a_pipelines_own_controlnet(model: Pretrained, folder: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    shutil.copytree(folder, own)
    shutil.move(own / "outlines0", own / "controlnet")
    shutil.move(own / "outlines1", own / "controlnet_1")
    index = json.loads((own / "model_index.json").read_text()) | {"_class_name": "StableDiffusionControlNetPipeline"}
    for kind, names in (("ControlNetModel", ["controlnet"]), ("MultiControlNetModel", ["controlnet", "controlnet_1"])):
        (own / "model_index.json").write_text(json.dumps({**index, "controlnet": ["diffusers", kind]}))
        loaded = load_pipeline(own)
        assert [name for name in loaded.parts if "control" in name] == names
        if len(names) == 1:
            options = {**OPTIONS, "control": PICTURE}
            np.testing.assert_array_equal(loaded.sample(0, 2, CAT, **options), model.sample(0, 2, CAT, **options))
    with pytest.raises(PretrainedError, match="this pipeline has a MultiControlNetModel of its own: leave control out"):
        load_pipeline(own, control=own / "controlnet")
    shutil.rmtree(own / "controlnet")
    shutil.rmtree(own / "controlnet_1")
    with pytest.raises(PretrainedError, match="controlnet: there is no such folder"):
        load_pipeline(own)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"control": PICTURE[:8]}, "control is of the samples' size, 16 x 16 pixels, got 8 x 16"),
        ({"control": PICTURE / 255}, "control is pictures as uint8, from 0 to 255, or their paths, got float64"),
        ({"control": PICTURE[..., :2]}, "control has 2 channels, expected 3, or 1 for grey"),
        ({"control": PICTURE[0, 0]}, "16 x 16 pixels, got an array (3,)"),
        ({"control": np.stack([PICTURE] * 3)}, "control has 3 rows for 2 samples"),
        ({"control": "nowhere.png"}, "control: nowhere.png cannot be read (No such file or directory)"),
        ({"control": __file__}, "image is damaged or of an unknown kind"),
        ({"control": PICTURE, "control_scale": float("nan")}, "control_scale nan is out of range"),
        ({"control_scale": 0.5}, "control_scale is of the pictures in control, and there are none"),
        ({"control_start": 0.5}, "control_start is of the pictures in control, and there are none"),
        ({"guess_mode": True}, "guess_mode is of the pictures in control, and there are none"),
        ({"control": PICTURE, "guess_mode": 1}, "guess_mode is 1, expected True or False"),
        (
            {"control": PICTURE, "control_end": 1.5},
            "control_end is a share of the way from noise to data, from 0 to 1, got",
        ),
        (
            {"control": PICTURE, "control_start": "a"},
            "control_start is a share of the way from noise to data, from 0 to 1",
        ),
        (
            {"control": PICTURE, "control_start": 0.5, "control_end": 0.5},
            "control_start=0.5 is not below control_end=0.5",
        ),
        ({"control": PICTURE, "control_end": {"b": 1}}, "control_end: there is no ControlNet 'b'; they are controlnet"),
    ],
)
def test_pictures_that_do_not_fit_are_one_line(model: Pretrained, options: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, DataError)) as error:
        model.sample(0, 2, CAT, **OPTIONS, **options)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_networks_that_do_not_fit_are_one_line(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"control: this model has no ControlNet: jaxdiff.load\(MODEL, control="):
        load_pipeline(folder).sample(0, 1, CAT, control=PICTURE, **OPTIONS)
    with pytest.raises(PretrainedError, match="control controlnet is a AutoencoderKL, no ControlNetModel"):
        load_pipeline(folder, control=folder / "vae")
    write_network(tmp_path, tiny("ControlNetModel", layers_per_block=2))
    with pytest.raises(PretrainedError, match="control does not fit its U-Net: controlnet: its skip connections are"):
        load_pipeline(folder, control=tmp_path)
    for name, value in (
        ("global_pool_conditions", True),
        ("controlnet_conditioning_channel_order", "grb"),
        ("mid_block_type", "UNetMidBlock2D"),
        ("a_new_field", 3),
    ):
        fields = {**tiny("ControlNetModel").fields, name: value}
        (tmp_path / "config.json").write_text(json.dumps(fields))
        with pytest.raises(PretrainedError, match=rf"config.json: {name} is ") as error:
            load_pipeline(folder, control=tmp_path)
        assert "\n" not in str(error.value)
