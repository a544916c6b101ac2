"""Training in buckets of aspect ratios: one program a bucket, exact restarts, latents kept, and refusals."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

import jaxdiff
from jaxdiff import Flow, Velocity
from jaxdiff.codecs import AnySize, Images, Latents, Outlines
from jaxdiff.config import (
    CheckpointConfig,
    Config,
    ConfigError,
    DataConfig,
    LossConfig,
    OptimizerConfig,
    SampleConfig,
    TrainConfig,
)
from jaxdiff.config.batches import with_buckets
from jaxdiff.config.build import build_source, resolve
from jaxdiff.config.folder import finder
from jaxdiff.data import DataError
from jaxdiff.data.buckets import SIZES as TOLD
from jaxdiff.data.buckets import Bucketed
from jaxdiff.data.text import Tokenised
from jaxdiff.networks import DiT, UViT
from jaxdiff.pretrained.text_codec import PublishedText, PublishedTextAndData
from jaxdiff.runs.published import published_config
from jaxdiff.train import Ema, make_mesh
from jaxdiff.train.initial import read_cached, read_codec
from tests.tiny_autoencoder import write_autoencoder

DIT = DiT(in_channels=1, patch=4, width=8, depth=1, heads=1, frequencies=8)
SIZES = ((18, 30), (60, 38), (33, 20), (9, 16))  # two in each of two buckets


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Grey ramps, bright at the right."""
    folder = tmp_path_factory.mktemp("photos")
    for number, (height, width) in enumerate(SIZES):
        ramp = np.broadcast_to(np.linspace(0, 255, width, dtype=np.uint8), (height, width))
        Image.fromarray(np.ascontiguousarray(ramp)).save(folder / f"{number}.png")
    return folder


def config(photos: Path, folder: Path, network: Any = DIT, steps: int = 6, **changes: Any) -> Config:
    data: dict[str, Any] = {
        "name": "folder",
        "path": str(photos),
        "image_size": 16,
        "buckets": True,
        "bucket_multiple": 4,
    }
    data |= changes.pop("data", {})
    train = {"batch_size": 2, "log_every": 1, "sample_every": 0} | changes.pop("train", {})
    settings: dict[str, Any] = {
        "process": Flow(),
        "parameterization": Velocity(),
        "ema": Ema(0.5),
        "optimizer": OptimizerConfig(lr=1e-2),
        "train": TrainConfig(steps=steps, **train),
        "checkpoint": CheckpointConfig(every=3),
        "sample": SampleConfig(steps=2, num=2),
    }
    return Config(name="buckets", workdir=str(folder), network=network, data=DataConfig(**data), **settings | changes)


def leaves(run: Any) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(run.denoise.params)]


@pytest.fixture(scope="module")
def whole(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Sixty steps in one piece, and what was said."""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        run = jaxdiff.fit(config(photos, tmp_path_factory.mktemp("whole"), steps=60))
    return run, said.getvalue()


def test_one_program_a_bucket_and_the_loss_falls(whole: Any) -> None:
    run, said = whole
    assert "2 buckets, height x width (records): 12x20 (2), 20x12 (2)\n" in said
    assert said.count("compiled the training step") == 2
    losses = [json.loads(line)["loss"] for line in Path(run.config.folder, "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 60 and np.mean(losses[-6:]) < 0.8 * np.mean(losses[:6])
    assert run.sample(0, 2)["x"].shape == (2, 16, 16, 1)  # samples are square


def test_a_restart_is_bit_for_bit_the_unbroken_run(
    photos: Path, tmp_path: Path, whole: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    for steps in (1, 60):
        run = jaxdiff.fit(config(photos, tmp_path, steps=steps))
    assert capsys.readouterr().out.count("compiled the training step") == 1 + 2
    assert all((a == b).all() for a, b in zip(leaves(run), leaves(whole[0]), strict=True))


def test_latents_are_kept_bucket_by_bucket(photos: Path, tmp_path: Path) -> None:
    """What is kept is what the step would encode, to float16; the picture is encoded at its bucket's size."""
    write_autoencoder(tmp_path / "ae")
    network = dataclasses.replace(DIT, in_channels=2, patch=2)
    options: dict[str, Any] = {"codec": Latents(str(tmp_path / "ae")), "data": {"cache_folder": str(tmp_path / "kept")}}
    given, mesh = config(photos, tmp_path / "run", network, **options), make_mesh()
    source = build_source(given)
    given, codec = read_codec(resolve(given, source, finder(given)), mesh)
    stored = with_buckets(given, source)
    kept = read_cached(given, stored, codec, mesh)
    assert len(list((tmp_path / "kept").glob("*/000000.npy"))) == 2
    assert isinstance(stored, Bucketed) and isinstance(kept, Bucketed) and kept.spec["x"].shape == (None, None, 4)
    encode, records = jax.jit(AnySize(codec).encode), np.arange(2)
    for pixels, moments in zip(stored.buckets, kept.buckets, strict=True):
        x, wanted = (encode(each.take(records), jax.random.key(1))["x"] for each in (moments, pixels))
        assert [2 * side for side in x.shape[1:3]] == [*pixels.spec["x"].shape[:2]] and x.shape[3] == 2
        np.testing.assert_allclose(x, wanted, atol=0.02)


@pytest.mark.nightly
@pytest.mark.parametrize("flip", [False, True])
def test_kept_latents_train_the_same_up_to_rounding(photos: Path, tmp_path: Path, flip: bool) -> None:
    write_autoencoder(tmp_path / "ae")
    network, codec = dataclasses.replace(DIT, in_channels=2, patch=2), Latents(str(tmp_path / "ae"))
    runs = []
    for kept in (True, False):
        data = {"cache_folder": str(tmp_path / "kept"), "cache_latents": kept, "flip": flip}
        options: dict[str, Any] = {"codec": codec, "data": data, "optimizer": OptimizerConfig(lr=1e-3)}
        runs.append(jaxdiff.fit(config(photos, tmp_path / str(kept), network, steps=4, **options)))
    assert runs[0].sample(0, 1)["x"].shape == (1, 16, 16, 1)
    moved = max(np.abs(a - b).max() for a, b in zip(*map(leaves, runs), strict=True))
    assert 0 < moved < 1e-3  # four steps of Adam, 1e-3 each


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"data": {"image_size": None}},
            "data.buckets: set data.image_size, the side of a square of the",
        ),
        ({"data": {"image_size": 18}}, "data.buckets: image_size 18 is no multiple of 4"),
        ({"data": {"bucket_multiple": 64}}, "data.buckets: image_size 16 is no multiple of 64"),
        ({"data": {"bucket_ratio": 0.5}}, "data.bucket_ratio: 0.5 is out of range, it must be at least 1"),
        ({"data": {"bucket_multiple": 0}}, "data.bucket_multiple: 0 is out of range"),
        (
            {"train": {"steps_per_call": 2, "log_every": 2}},
            "train.steps_per_call: steps of one call take batches of",
        ),
        ({"loss": LossConfig(prior="others")}, "loss.prior: the pictures of the class are square"),
        ({"data": {"name": "digits", "path": None}}, "data.buckets: digits has no pictures of many sizes; leave"),
        ({"data": {"name": "points:moons", "path": None}}, "data.buckets: points has no pictures of many sizes"),
        ({"network": dataclasses.replace(DIT, patch=8)}, "data.buckets: pictures of 12x20: "),
        (
            {"network": UViT(in_channels=1, patch=4, width=8, depth=3, heads=1, size=(16, 16))},
            "data.buckets: pictures of 12x20: UViT was built for images of size=(16, 16), got 12x20",
        ),
        ({"codec": Images((16, 16, 1), low_resolution=4)}, "low_resolution=4 is a square copy of square images"),
        ({"codec": Outlines((16, 16, 1))}, "data.buckets: Outlines (codec) is of one size"),
    ],
)
def test_what_does_not_go_with_buckets_is_one_line(photos: Path, tmp_path: Path, changes: Any, message: str) -> None:
    with pytest.raises((ConfigError, DataError)) as caught:
        jaxdiff.fit(config(photos, tmp_path, **changes), dry_run=True)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_arrays_of_a_program_have_one_size(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="arrays: buckets are of pictures of many sizes"):
        jaxdiff.fit(config(photos, tmp_path), np.zeros((4, 16, 16, 1), np.uint8))


@pytest.mark.parametrize(
    ("sizes", "scored", "told"),
    [
        (("time_ids",), False, {"time_ids": [[60.0, 90.0, 1.0, 0.0, 24.0, 40.0], [31.0, 32.0, 0.0, 0.0, 32.0, 32.0]]}),
        (("time_ids",), True, {"time_ids": [[60.0, 90.0, 1.0, 0.0, 6.0], [31.0, 32.0, 0.0, 0.0, 6.0]]}),
        (
            ("resolution", "aspect_ratio"),
            False,
            {"resolution": [[60.0, 90.0], [31.0, 32.0]], "aspect_ratio": [[0.6], [1.0]]},
        ),
    ],
)
def test_a_published_network_is_told_the_original_the_cut_and_the_bucket(sizes: Any, scored: bool, told: Any) -> None:
    """In diffusers' order: the original's height and width, top and left of the cut, height and width."""
    recipe = PublishedText("m", "StableDiffusionXLPipeline", Images((8, 8, 3)), (), (), (), sizes=sizes, scored=scored)
    codec = AnySize(PublishedTextAndData(Images((8, 8, 3)), (), recipe))
    stored = {"x": np.zeros((2, 24, 40, 3), np.uint8), TOLD: [[60, 90, 1, 0, 24, 40], [31, 32, 0, 0, 32, 32]]}
    batch = codec.encode(stored)
    assert set(batch) == {"x", *told} and batch["x"].shape == (2, 24, 40, 3)
    for name, numbers in told.items():
        np.testing.assert_allclose(batch[name], numbers, rtol=1e-6)


@pytest.mark.nightly
def test_a_published_model_is_trained_further_in_buckets(photos: Path, tmp_path: Path) -> None:
    """The refiner of Stable Diffusion XL, tiny: latents kept, sizes told, samples square."""
    pytest.importorskip("tokenizers")
    from tests.pretrained.test_kinds import load
    from tests.pretrained.test_pipeline import SD

    for name in ("model", "data"):
        (tmp_path / name).mkdir()
    load("StableDiffusionXLImg2ImgPipeline", tmp_path / "model", _class_name="EulerDiscreteScheduler", **SD)
    for number, file in enumerate(sorted(photos.glob("*.png"))):
        with Image.open(file) as picture:
            picture.convert("RGB").save(tmp_path / "data" / file.name)
        (tmp_path / "data" / f"{number}.txt").write_text("a ramp")
    made = published_config(tmp_path / "model", workdir=str(tmp_path / "run"))
    data: dict[str, Any] = {"path": str(tmp_path / "data"), "cache_folder": str(tmp_path / "kept")}
    made = dataclasses.replace(
        made,
        data=dataclasses.replace(made.data, **data, buckets=True, bucket_multiple=4),
        train=TrainConfig(steps=4, batch_size=2, log_every=1, sample_every=2),
        checkpoint=CheckpointConfig(every=2),
    )
    run = jaxdiff.fit(made, init_from=tmp_path / "model")
    cond = {"text": "a ramp", "time_ids": [16.0, 16.0, 0.0, 0.0, 6.0]}
    assert run.step == 4 and run.sample(0, 1, cond, steps=2)["x"].shape == (1, 16, 16, 3)
    stored = with_buckets(run.config, build_source(run.config))
    assert isinstance(stored, Bucketed) and [bucket.spec["x"].shape for bucket in stored.buckets] == [
        (12, 20, 3),
        (20, 12, 3),
    ]
    record = Tokenised(stored.buckets[0], run.config.tokenizer).take(np.array([0]))
    batch = AnySize(run.codec).encode(record)
    assert batch["x"].shape == (1, 6, 10, 4) and batch["time_ids"].tolist() == [[18.0, 30.0, 0.0, 0.0, 6.0]]
