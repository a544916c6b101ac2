"""The contract by real cases: a label and a vector at once, an image as condition, latents of floats."""

from __future__ import annotations

import dataclasses
import runpy
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff
import sample
import train
from jaxdiff.codecs.images import area_mean, to_model_range
from jaxdiff.config import Config, ConfigError
from jaxdiff.data import Source, from_arrays, open_digits, open_mnist
from jaxdiff.networks import Image, Vector
from jaxdiff.noise import sample_keys
from tests.codecs.test_strokes import bar
from tests.data.pictures import pictures, write_folder
from tests.tiny_autoencoder import network, write_autoencoder

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def small(name: str, folder: Path, steps: int, *, network: dict[str, Any], **changes: Any) -> Config:
    """A shipped configuration with a network that compiles in seconds."""
    config: Config = runpy.run_path(str(CONFIGS / f"{name}.py"))["config"]
    return dataclasses.replace(
        config,
        workdir=str(folder),
        network=dataclasses.replace(config.network, **network),
        optimizer=dataclasses.replace(config.optimizer, warmup=1, schedule="constant"),
        train=dataclasses.replace(config.train, steps=steps, batch_size=16, log_every=steps, sample_every=steps),
        checkpoint=dataclasses.replace(config.checkpoint, every=steps),
        sample=dataclasses.replace(config.sample, steps=4, num=10),
        **changes,
    )


# --- label and vector


@pytest.fixture(scope="module", params=["bars", "mnist"])
def styled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> jaxdiff.Run:
    """Three steps on bars of known width and slant, and on MNIST where it is."""
    if request.param == "mnist":
        source: Source = open_mnist(request.getfixturevalue("shared_data") / "mnist")
    else:
        styles = np.random.default_rng(0).uniform((1.5, -0.8), (4.0, 0.8), (64, 2))
        x = np.stack([bar(width, slant, fine=4) for width, slant in styles])
        source = from_arrays(np.rint(255 * x).astype(np.uint8), np.arange(64) % 10, num_classes=10)
    network = {"width": 8, "multipliers": (1, 1), "attention_resolutions": ()}
    folder = tmp_path_factory.mktemp("style") / "run"
    return jaxdiff.fit(small("mnist_style", folder, 3, network=network), source, cache=False)


def test_label_and_style_may_each_be_left_out(styled: jaxdiff.Run) -> None:
    both = {"label": 3, "style": [3.0, 0.5]}
    options: Any = {"guide": (), "decode": False}
    found = [styled.sample(0, 2, cond, **options) for cond in (both, {"label": 3}, {"style": [3.0, 0.5]}, None)]
    assert all(x.shape == (2, 28, 28, 1) and np.isfinite(x).all() for x in found)
    assert all(np.abs(a - b).max() > 1e-4 for i, a in enumerate(found) for b in found[:i])
    guided = styled.sample(0, 2, both)["x"]  # by the configuration's cfg:2
    assert guided.dtype == np.uint8 and guided.shape == (2, 28, 28, 1)
    apart = styled.sample(0, 2, {"label": [3, 4], "style": [[2.0, 0.0], [3.0, 0.5]]}, **options)
    np.testing.assert_allclose(
        apart[1], styled.sample(0, 2, {"label": 4, "style": [3.0, 0.5]}, **options)[1], atol=1e-4
    )
    with pytest.raises(ConfigError, match=r"style has shape \(2, 3\), expected \(2, 2\)"):
        styled.sample(0, 2, {"style": [1.0, 2.0, 3.0]})


def test_a_run_with_a_style_is_loaded_again(styled: jaxdiff.Run) -> None:
    assert styled.folder is not None and not (styled.folder / "examples.npz").exists()  # either can be left out
    again = jaxdiff.load(styled.folder)
    assert again.config.network.conditions == (Vector("style", 2, (2.41, 0.11), (0.60, 0.28)),)
    cond = {"label": 1, "style": [2.0, 0.1]}
    np.testing.assert_array_equal(again.sample(1, 2, cond)["x"], styled.sample(1, 2, cond)["x"])
    assert len(list((styled.folder / "samples").iterdir())) == 1


# --- an image as condition


@pytest.fixture(scope="module")
def enlarged(tmp_path_factory: pytest.TempPathFactory) -> jaxdiff.Run:
    """From 8 to 16 pixels, on scikit-learn's digits resized."""
    network = {"width": 8, "multipliers": (1, 1)}
    config = small("mnist_superres", tmp_path_factory.mktemp("enlarged") / "run", 60, network=network)
    return jaxdiff.fit(config, open_digits(image_size=16, resize=True), cache=False)


def test_samples_follow_the_small_image(enlarged: jaxdiff.Run) -> None:
    """Nearer to their own condition than to another's, and than the samples of a run that was not trained."""
    low = np.asarray(area_mean(to_model_range(open_digits(split="test").take(np.arange(32))["x"]), 8))
    assert low.shape == (32, 8, 8, 1)

    def distance(run: jaxdiff.Run) -> tuple[float, float]:
        own = np.asarray(area_mean(jnp.asarray(run.sample(0, 32, {"low": low}, decode=False)), 8))
        return float(np.abs(own - low).mean()), float(np.abs(own - np.roll(low, 1, axis=0)).mean())

    near, far = distance(enlarged)
    fresh = jax.tree.map(jnp.zeros_like, enlarged.denoise.params)
    untrained = jaxdiff.Run.of(enlarged.config, fresh, 0, enlarged.mesh)
    assert near < 0.75 * far and near < 0.75 * distance(untrained)[0]


def test_examples_are_kept_and_used(enlarged: jaxdiff.Run, tmp_path: Path) -> None:
    folder = enlarged.folder
    assert folder is not None
    with np.load(folder / "examples.npz", allow_pickle=False) as kept:
        low = kept["low"]
    assert low.shape == (10, 8, 8, 1)
    assert [path.name for path in (folder / "samples").iterdir()] == ["step_00000060.png"]
    again = jaxdiff.load(folder)
    drawn = again.sample(3, 4, decode=False)  # none given: conditions of training records, each by its sample's key
    np.testing.assert_allclose(again.sample(3, 2, start=2, decode=False), drawn[2:], atol=1e-4)
    chosen = np.asarray(again.model.draw_cond(sample_keys(jax.random.key(3), 0, 4))["low"])
    assert all((low == each).all(axis=(1, 2, 3)).any() for each in chosen)
    np.testing.assert_allclose(again.sample(3, 4, {"low": chosen}, decode=False), drawn, atol=1e-5)
    sample.main([str(folder), "--num", "4", "--out", str(tmp_path / "new.npz")])
    with np.load(tmp_path / "new.npz", allow_pickle=False) as made:
        assert made["x"].shape == (4, 16, 16, 1) and made["x"].dtype == np.uint8
    (folder / "examples.npz").rename(tmp_path / "away.npz")
    try:
        with pytest.raises(ConfigError, match=r"needs low: pass cond=\{'low': ...\}"):
            jaxdiff.load(folder).sample(0, 1)
    finally:
        (tmp_path / "away.npz").rename(folder / "examples.npz")
    assert enlarged.config.network.conditions == (Image("low", (8, 8), 1),)


# --- latents


MEAN, STD = np.array([5.0, -3.0, 0.5, 20.0]), np.array([4.0, 0.18, 1.0, 7.0])


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng, file = np.random.default_rng(0), tmp_path_factory.mktemp("latents") / "latents.npz"
    x = (MEAN + STD * rng.standard_normal((512, 8, 8, 4))).astype(np.float32)
    np.savez(file, images=x, labels=np.arange(512) % 3)
    return file


def options(file: Path, folder: Path, steps: int) -> list[str]:
    text = (
        f"--codec.path None --data.name npz --data.path {file} --data.no-flip --workdir {folder} "
        "--data.image_size 8 --data.no-resize --data.workers 0 --network.width 32 "
        "--network.depth 1 --network.heads 2 --network.frequencies 16 --network.num_classes 3 "
        f"--network.dtype float32 --network.remat none --train.steps {steps} --train.batch_size 64 "
        "--train.log_every 100 --train.sample_every 0 --checkpoint.every 100 --optimizer.lr 3e-3 "
        "--ema.rate 0.9 --sample.sampler ddim --sample.steps 20 --sample.grid log_snr --no-cache"
    )
    return [str(CONFIGS / "imagenet256_dit_xl2.py"), *text.split()]


def test_latents_train_and_come_back_on_their_scale(latents: Path, tmp_path: Path) -> None:
    train.main(options(latents, tmp_path / "run", 200))
    moved = latents.rename(latents.with_name("moved.npz"))  # a run needs no data to be loaded
    try:
        run = jaxdiff.load(tmp_path / "run")
        np.testing.assert_allclose((run.codec.mean - MEAN) / STD, 0, atol=0.02)
        np.testing.assert_allclose(run.codec.std, STD, rtol=0.02)
        x = run.sample(0, 64, {"label": np.arange(64) % 3}, guide=())["x"]
    finally:
        moved.rename(latents)
    assert x.dtype == np.float32 and x.shape == (64, 8, 8, 4)
    assert (np.abs(x.mean((0, 1, 2)) - MEAN) < 0.5 * STD).all()
    ratio = x.std((0, 1, 2)) / STD  # after seconds of training too wide, but alike in channels that are 40 times apart
    assert (np.abs(ratio / ratio.mean() - 1) < 0.2).all() and 0.6 < ratio.mean() < 1.7


def test_imagenet_of_images_trains_in_the_latents_of_an_autoencoder(tmp_path: Path) -> None:
    """The shipped configuration on a small stand-in: images in class folders, an autoencoder, a DiT of 4 channels."""
    images = pictures(12, (20, 16, 3))
    write_folder(tmp_path / "data" / "train", images, [f"class {number % 3}" for number in range(12)])
    write_autoencoder(tmp_path / "autoencoder", network(4, in_channels=3), shape=(16, 16, 3))
    text = (
        f"--codec.path {tmp_path / 'autoencoder'} --data.path {tmp_path / 'data'} --workdir {tmp_path / 'run'} "
        f"--data.cache_folder {tmp_path / 'cache'} --data.image_size 16 --data.workers 0 --network.width 16 "
        "--network.depth 1 --network.heads 2 --network.frequencies 8 --network.num_classes 3 --network.dtype float32 "
        "--network.remat none --train.steps 2 --train.batch_size 8 --train.sample_every 0 --sample.steps 3"
    )
    train.main([str(CONFIGS / "imagenet256_dit_xl2.py"), *text.split()])
    (kept,) = (tmp_path / "cache").glob("*/000000.npy")
    assert np.load(kept)["x"].shape == (12, 2, 8, 8, 8)  # records, mirrored too, 8x8 latents, mean and log-variance
    run = jaxdiff.load(tmp_path / "run")
    assert run.shape == (8, 8, 4) and run.config.data.classes == ("class 0", "class 1", "class 2")
    drawn = run.sample(0, 2, {"label": ["class 1", "class 2"]})
    assert drawn["x"].shape == (2, 16, 16, 3) and drawn["x"].dtype == np.uint8


@pytest.mark.nightly
def test_latents_go_on_bit_for_bit(latents: Path, tmp_path: Path) -> None:
    train.main(options(latents, tmp_path / "whole", 4))
    train.main(options(latents, tmp_path / "parts", 2))
    train.main(options(latents, tmp_path / "parts", 4))
    whole, parts = (jaxdiff.load(tmp_path / name, ema=False) for name in ("whole", "parts"))
    assert whole.step == parts.step == 4
    jax.tree.map(np.testing.assert_array_equal, whole.denoise.params, parts.denoise.params)
    np.testing.assert_array_equal(whole.codec.mean, parts.codec.mean)
