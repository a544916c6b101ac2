"""A whole Stable Diffusion in one file: which one it is, its configurations, its tensors, and what does not fit.

That the names are the authors' is for `tests/parity/test_single_file.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxdiff.pretrained import PretrainedError, load_pipeline, read_single_file, write_single_file
from jaxdiff.pretrained.fields import Fields
from jaxdiff.pretrained.files.safetensors import SafeTensors, write_safetensors
from jaxdiff.pretrained.files.writing import Published
from jaxdiff.pretrained.layouts.families import configured
from jaxdiff.pretrained.layouts.ldm_fields import RELEASES, clip_fields, release_of, unet_fields, vae_fields
from jaxdiff.pretrained.layouts.single_file import _naming
from tests.pretrained.ldm import PUBLISHED, TINY, parts_of, shapes_of
from tests.pretrained.test_pipeline import write_tokenizer

NAMES = {
    "1": "Stable Diffusion 1",
    "2": "Stable Diffusion 2",
    "XL": "Stable Diffusion XL",
    "refiner": "Stable Diffusion XL's refiner",
}
TEXT = "cond_stage_model.transformer.text_model."
OF_ONE: dict[str, Any] = {"prediction": "v_prediction"}  # of Stable Diffusion 2 it is said, else it warns


def _most_nightly(names: Iterable[str]) -> list[Any]:
    return [name if name == "1" else pytest.param(name, marks=pytest.mark.nightly) for name in names]


class Written(dict[str, Path]):
    """Files by name, each written when it is asked for."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    def __missing__(self, name: str) -> Path:
        write_single_file(self._folder / f"{name}.safetensors", parts_of(name))
        self[name] = self._folder / f"{name}.safetensors"
        return self[name]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return Written(tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("words") / "tokenizer"
    write_tokenizer(folder, "<|endoftext|>")
    return folder


@pytest.mark.parametrize("name", _most_nightly(TINY))
def test_what_is_written_is_read_bit_for_bit(name: str, files: dict[str, Path]) -> None:
    found = read_single_file(files[name], **(OF_ONE if name == "2" else {}))
    made = parts_of(name)
    assert {*found.parts} == {*made}
    for part, loaded in made.items():
        jax.tree.map(np.testing.assert_array_equal, found.parts[part].params, loaded.params)
        assert found.parts[part].net == loaded.net
    kind = name.split()[0]
    assert (
        found.index["_class_name"]
        == {
            "1": "StableDiffusionPipeline",
            "2": "StableDiffusionPipeline",
            "XL": "StableDiffusionXLPipeline",
            "refiner": "StableDiffusionXLImg2ImgPipeline",
            "1 inpainting": "StableDiffusionInpaintPipeline",
            "XL inpainting": "StableDiffusionXLInpaintPipeline",
        }[name]
    )
    expected = {"1": "PNDM", "2": "DDIM", "XL": "EulerDiscrete", "refiner": "EulerDiscrete"}[kind]
    assert found.scheduler["_class_name"] == f"{expected}Scheduler"
    assert found.scheduler["prediction_type"] == ("v_prediction" if name == "2" else "epsilon")


@pytest.mark.parametrize("name", _most_nightly(PUBLISHED))
def test_a_file_of_the_published_size_has_the_published_configuration(name: str) -> None:
    """Every tensor of the true sizes is known; the fields that the shapes give are those of the published folders."""
    release = next(each for each in RELEASES if each.name == NAMES[name])
    encoders = {each.part: each for each in release.encoders}
    tensors: dict[str, Any] = {}
    counts = {}
    for part, fields in PUBLISHED[name].items():
        named = Published(shapes_of(fields), _naming(part, configured(Fields(fields)), fields, encoders)).described()
        counts[part] = len(named), sum(math.prod(shape) for _, shape in named.values())
        tensors |= {key: jax.ShapeDtypeStruct(shape, dtype) for key, (dtype, shape) in named.items()}
    assert release_of(tensors, "a file") is release
    made = {
        "unet": unet_fields(release, tensors, PUBLISHED[name]["unet"]["sample_size"], "a file"),
        "vae": vae_fields(release, tensors, release.size),
        **{each.part: clip_fields(each, tensors, "a file") for each in release.encoders},
    }
    for part, fields in PUBLISHED[name].items():
        assert fields.items() <= made[part].items()
        assert configured(Fields(made[part])) == configured(Fields(fields))
    assert counts["vae"] == (248, 83_653_863)
    known = {"1": (686, 859_520_964), "2": (686, 865_910_724), "XL": (1680, 2_567_463_684)}
    assert counts["unet"] == known.get(name, counts["unet"])
    encoder = {"1": (196, 123_060_480), "2": (280, 340_387_840), "XL": (196, 123_060_480)}
    assert counts.get("text_encoder") == encoder.get(name)
    assert counts.get("text_encoder_2") in (None, (389, 694_659_840))


@pytest.mark.nightly
def test_one_tokenizer_serves_both_encoders(files: dict[str, Path], words: Path) -> None:
    """The second pads with "!", which then is the padding wherever it stands, as in diffusers."""
    model = load_pipeline(files["XL"], tokenizer=words)
    assert model.model.shape == (128, 128, 4) and model.model.defaults.guide == ("cfg:5",)
    first, second = (each.tokenizer for each in model.model.encoders["text"].branches)  # type: ignore[attr-defined]
    assert first.encode(["!"])[0, :4].tolist() == [512, 256, 513, 513]
    assert second.encode(["!"])[0, :4].tolist() == [512, 0, 513, 0]


@pytest.mark.nightly
def test_what_a_network_predicts_is_asked_said_or_published(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert read_single_file(files["2"], prediction="epsilon").scheduler["prediction_type"] == "epsilon"
    assert capsys.readouterr().err == ""
    found = read_single_file(files["2"])
    said = capsys.readouterr().err
    assert "was published with v, at 768 pixels, and with eps, at 512: v is taken" in said and said.count("\n") == 1
    assert found.parts["unet"].fields["sample_size"] == 96
    changed(files["XL"], tmp_path / "x", {"v_pred": np.zeros(0, np.float32), "ztsnr": np.zeros(0, np.float32)})
    scheduler = read_single_file(tmp_path / "x").scheduler
    assert scheduler["prediction_type"] == "v_prediction" and scheduler["rescale_betas_zero_snr"] is True
    assert capsys.readouterr().err == ""


def changed(file: Path, to: Path, more: dict[str, Any], without: str | None = None) -> Path:
    """A file with other tensors."""
    read = SafeTensors(file)
    tensors = {name: read.read(name) for name in read if without is None or not name.startswith(without)}
    write_safetensors(to, tensors | more)
    return to


@pytest.mark.nightly
def test_known_tensors_that_are_no_weights_are_left_out(files: dict[str, Path], tmp_path: Path) -> None:
    """The schedule, averages, position ids, and of Stable Diffusion 2 a last block and a projection."""
    zeros = np.zeros(3, np.float32)
    more = {"alphas_cumprod": zeros, "model_ema.diffusion_modelinput_blocks00weight": zeros, "model_ema.decay": zeros}
    ids = {"cond_stage_model.transformer.text_model.embeddings.position_ids": zeros}
    read_single_file(changed(files["1"], tmp_path / "x", more | ids))
    h = "cond_stage_model.model."
    open_clip = {f"{h}logit_scale": zeros, f"{h}text_projection": np.zeros((64, 64), np.float32)}
    read_single_file(changed(files["2"], tmp_path / "x", more | open_clip), **OF_ONE)
    whole, blocks = read_single_file(files["2"], **OF_ONE), {}
    one = SafeTensors(files["2"])
    inner = f"{h}transformer.resblocks.1."
    blocks = {
        name.replace(inner, f"{h}transformer.resblocks.{number}."): one.read(name)
        for name in one
        if name.startswith(inner)
        for number in range(2, 24)
    }
    longer = read_single_file(changed(files["2"], tmp_path / "x", blocks), **OF_ONE).parts["text_encoder"]
    assert longer.fields["num_hidden_layers"] == 23 and whole.parts["text_encoder"].fields["num_hidden_layers"] == 2


@pytest.mark.nightly
def test_older_files_have_no_text_model_in_their_names(files: dict[str, Path], tmp_path: Path) -> None:
    read = SafeTensors(files["1"])
    write_safetensors(tmp_path / "x", {name.replace("text_model.", ""): read.read(name) for name in read})
    assert not any("text_model" in name for name in SafeTensors(tmp_path / "x"))
    jax.tree.map(
        np.testing.assert_array_equal,
        read_single_file(tmp_path / "x").parts["text_encoder"].params,
        parts_of("1")["text_encoder"].params,
    )


def averages(file: Path) -> dict[str, Any]:
    """Averages of a U-Net's weights, twice the weights, with the names that the authors' `LitEma` makes."""
    read = SafeTensors(file)
    unet = [name for name in read if name.startswith("model.diffusion_model.")]
    counts = {"model_ema.decay": np.float32(0.9999), "model_ema.num_updates": np.int32(10)}
    return counts | {"model_ema." + "".join(name.split(".")[1:]): 2 * read.read(name) for name in unet}


def test_averaged_weights_are_taken_where_that_is_said(files: dict[str, Path], words: Path, tmp_path: Path) -> None:
    file = changed(files["1"], tmp_path / "x.safetensors", averages(files["1"]))
    whole = parts_of("1")
    jax.tree.map(np.testing.assert_array_equal, read_single_file(file).parts["unet"].params, whole["unet"].params)
    found = load_pipeline(file, tokenizer=words, variant="ema").parts
    jax.tree.map(
        lambda ours, last: np.testing.assert_array_equal(ours, 2 * last), found["unet"].params, whole["unet"].params
    )
    for part in ("vae", "text_encoder"):
        jax.tree.map(np.testing.assert_array_equal, found[part].params, whole[part].params)


def test_averaged_weights_that_are_not_there(files: dict[str, Path], tmp_path: Path) -> None:
    def read(file: Path) -> Any:
        return read_single_file(file, variant="ema")

    refused(lambda: read(files["1"]), "has no averaged weights (model_ema.): leave variant='ema' out")
    fewer = averages(files["1"])
    del fewer["model_ema.diffusion_modelout2bias"]
    file = changed(files["1"], tmp_path / "x", fewer)
    refused(lambda: read(file), "model_ema.diffusion_modelout2bias: missing of its averaged weights")
    alone = changed(files["1"], tmp_path / "y", averages(files["1"]), "model.diffusion_model.")
    refused(lambda: read_single_file(alone), "has the averages (model_ema.) of its U-Net's weights without the weights")


# --- what does not fit


def refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(PretrainedError) as error:
        make()
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "more", "without", "message"),
    [
        ("1", {"edm_mean": np.zeros(1)}, None, "edm_mean: tensors that Stable Diffusion 1 does not have"),
        ("1", {f"first_stage_model.x.{i}": np.zeros(1) for i in range(3)}, None, "3 are not known: first_stage_model."),
        (
            "1",
            {},
            "first_stage_model.encoder.mid.block_1.norm1",
            "tensors are missing: first_stage_model.encoder.mid.b",
        ),
        ("1", {}, "first_stage_model.", "lacks an autoencoder (first_stage_model.)"),
        ("1", {}, "cond_stage_model.", "lacks a text encoder (cond_stage_model. or conditioner.)"),
        (
            "1",
            {},
            "model.diffusion_model.out.2",
            "model.diffusion_model.out.2.weight is missing: the file is not whole",
        ),
        ("1", {}, "model.diffusion_model.input_blocks.3", "its U-Net's 3 input blocks are no levels of one length"),
        (
            "1",
            {"model.diffusion_model.input_blocks.0.0.weight": np.zeros((32, 8, 3, 3), np.float32)},
            None,
            "8 channels come into its U-Net; jaxdiff has 4, and 9 of inpainting",
        ),
        (
            "1",
            {"first_stage_model.decoder.conv_in.weight": np.zeros(9, np.float32)},
            None,
            "first_stage_model.decoder.conv_in.weight is of shape (9,), expected a matrix or a convolution",
        ),
        (
            "1",
            {f"{TEXT}embeddings.token_embedding.weight": np.float32(0)},
            None,
            f"{TEXT}embeddings.token_embedding.weight is of shape (), expected a matrix or a convolution",
        ),
        pytest.param(
            *(
                "2",
                {"cond_stage_model.x": np.zeros(1)},
                None,
                "cond_stage_model.x: tensors that Stable Diffusion 2 does",
            ),
            marks=pytest.mark.nightly,
        ),
        pytest.param(
            *("XL", {}, "conditioner.embedders.1", "has a text encoder that is not known; a single file is read of"),
            marks=pytest.mark.nightly,
        ),
    ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(
    name: str, more: dict[str, Any], without: str | None, message: str, files: dict[str, Path], tmp_path: Path
) -> None:
    changed(files[name], tmp_path / "x", more, without)
    refused(lambda: read_single_file(tmp_path / "x", **OF_ONE), message)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        ("model.diffusion_model.joint_blocks.0.x", "is Stable Diffusion 3 in its authors' layout"),
        ("double_blocks.0.x", "is FLUX in its authors' layout"),
        ("control_model.x", "is a ControlNet"),
        ("lora_unet_down.lora_up.weight", "is a LoRA, which changes another model"),
        ("down_blocks.0.x", "is one network of diffusers: give its folder"),
        ("encoder.down.0.x", "is an autoencoder alone"),
        ("x", "lacks a U-Net (model.diffusion_model.), an autoencoder (first_stage_model.), a text encoder"),
    ],
)
def test_another_file_is_named(tensor: str, message: str, tmp_path: Path) -> None:
    write_safetensors(tmp_path / "x", {tensor: np.zeros(1)})
    refused(lambda: read_single_file(tmp_path / "x"), message)


def test_options_that_do_not_fit(files: dict[str, Path], words: Path, tmp_path: Path) -> None:
    refused(
        lambda: load_pipeline(files["1"]), "a single file has no tokenizer: say tokenizer=FOLDER, a folder with CLIP"
    )
    refused(lambda: load_pipeline(files["1"], tokenizer=tmp_path), "has no vocab.json, expected a folder with CLIP's")
    refused(lambda: load_pipeline(files["1"], tokenizer=words, variant="fp16"), "a single file has 'ema' alone")
    refused(lambda: load_pipeline(tmp_path, tokenizer=words), "is for a single file; a folder has its own")
    refused(lambda: load_pipeline(tmp_path, prediction="epsilon"), "prediction='epsilon' is for a single file")
    refused(lambda: read_single_file(3), "file: expected a path, as text or pathlib.Path, got 3")  # type: ignore[arg-type]
    refused(lambda: load_pipeline(files["1"], tokenizer=3), "tokenizer: expected a path, as text or pathlib.Path")  # type: ignore[arg-type]
    refused(lambda: read_single_file(files["1"], prediction="v"), "prediction is 'v', expected 'epsilon' or 'v_pred")
    write_tokenizer(tmp_path / "other", "!")
    refused(
        lambda: load_pipeline(files["1"], tokenizer=tmp_path / "other"),
        "pads with '!', expected '<|endoftext|>': give S",
    )
    refused(lambda: load_pipeline(tmp_path / "y.safetensors", tokenizer=words), "there is no such file")


def test_networks_that_a_file_cannot_hold_are_refused(tmp_path: Path) -> None:
    parts = parts_of("1")
    refused(lambda: write_single_file(tmp_path / "x", {"unet": parts["unet"]}), "unet are the networks of no Stable")
    odd = parts["unet"]._replace(fields={**parts["unet"].fields, "attention_head_dim": 4})
    refused(
        lambda: write_single_file(tmp_path / "x", {**parts, "unet": odd}),
        "unet has heads=4, and read from one file it would have 8: write it as a folder",
    )
    (tmp_path / "file").write_text("")
    refused(lambda: write_single_file(tmp_path / "file" / "x", parts), "cannot be written (")
