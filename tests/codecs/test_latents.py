"""Latents as a codec: the equations, the cache against the fly, tiles, and whole runs on a tiny random autoencoder."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxdiff
from jaxdiff import CosineVP, V
from jaxdiff.codecs import Images, LatentImages, Latents, grey_levels
from jaxdiff.codecs.images import mirrors
from jaxdiff.codecs.latents import POSTERIOR
from jaxdiff.config import (
    CheckpointConfig,
    Config,
    ConfigError,
    DataConfig,
    SampleConfig,
    TrainConfig,
    build_loss,
    build_network,
)
from jaxdiff.data import DataError, from_arrays, open_digits
from jaxdiff.evaluate.bits import bits
from jaxdiff.evaluate.metric import EvaluateOptions
from jaxdiff.networks import DiT, VQAutoencoder
from jaxdiff.networks.autoencoder import Autoencoder
from jaxdiff.noise import salted_keys, sample_keys
from jaxdiff.spec import Spec
from jaxdiff.train import CheckpointError, Ema, create_state
from jaxdiff.train.step import Given, train_step
from tests.test_readme import blocks, run_block
from tests.tiny_autoencoder import network, write_autoencoder, write_statistics

SHAPE, LATENT = (8, 8, 1), (4, 4, 2)
KEY = jax.random.key(7)


@pytest.fixture(scope="module")
def codec() -> LatentImages:
    net = Autoencoder(network())
    params = jax.jit(net.init)(jax.random.key(0))
    mean, std = np.array([0.5, -2.0], np.float32), np.array([0.25, 3.0], np.float32)
    return LatentImages(params, mean, std, Images(SHAPE), net=net, shape=LATENT)


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.asarray(open_digits().take(np.arange(6))["x"])


def moments(codec: LatentImages, pixels: np.ndarray) -> Any:
    found = jax.jit(codec.net.moments)(codec.params, jnp.asarray(pixels, jnp.float32) / 127.5 - 1)
    return [np.asarray(each) for each in found]


# --- the equations


def test_latents_are_drawn_from_the_moments_and_standardised(codec: LatentImages, pixels: np.ndarray) -> None:
    mu, log_variance = moments(codec, pixels)
    encode = jax.jit(lambda codec, record, key=None: codec.encode(record, key))
    plain = encode(codec, {"x": pixels, "label": np.arange(6)})
    np.testing.assert_allclose(plain["x"], (mu - codec.mean) / codec.std, atol=1e-5)
    assert plain["label"].tolist() == list(range(6))
    drawn = encode(codec, {"x": pixels}, KEY)["x"]
    eps = np.stack([jax.random.normal(key, LATENT) for key in salted_keys(sample_keys(KEY, 0, 6), POSTERIOR)])
    z = mu + np.exp(0.5 * log_variance) * eps
    np.testing.assert_allclose(drawn, (z - codec.mean) / codec.std, atol=1e-5)
    assert float(np.abs(drawn - plain["x"]).min(axis=(1, 2, 3)).max()) > 0
    np.testing.assert_allclose(encode(codec, {"x": pixels[:4]}, KEY)["x"], drawn[:4], atol=1e-6)  # by place alone


def test_decode_undoes_the_scale_and_gives_bytes(codec: LatentImages, pixels: np.ndarray) -> None:
    mu = moments(codec, pixels)[0]
    images = jax.jit(codec.net.decode)(codec.params, mu)
    record = codec.decode(jnp.asarray((mu - codec.mean) / codec.std), {"label": jnp.arange(6)})
    want = np.clip(np.rint((np.asarray(images) + 1) * 127.5), 0, 255)
    assert record["x"].dtype == np.uint8 and record["label"].shape == (6,)
    assert np.abs(np.asarray(record["x"], float) - want).max() <= 1  # a rounding at a half
    assert codec.picture(record).dtype == np.uint8 and codec.suffixes == (".png", ".npz")
    assert grey_levels(codec) is None and codec.spec["x"].clip is None  # type: ignore[union-attr]


@pytest.mark.parametrize("flip", [False, True])
def test_the_cache_gives_what_the_fly_gives_up_to_float16(codec: LatentImages, pixels: np.ndarray, flip: bool) -> None:
    codec = dataclasses.replace(codec, images=Images(SHAPE, flip=flip))
    spec = codec.cached_spec(open_digits().spec)["x"]
    kept = np.asarray(codec.precompute({"x": pixels})["x"])
    assert spec.dtype == "float16" and kept.shape[1:] == spec.shape == ((2,) * flip + (4, 4, 4))
    encode = jax.jit(lambda x, key: codec.encode({"x": x}, key)["x"])
    fly, whole, half = (np.asarray(encode(x, KEY)) for x in (pixels, kept, kept.astype(np.float16)))
    np.testing.assert_allclose(whole, fly, atol=2e-5)
    mirrored = mirrors(KEY, 6) if flip else np.zeros(6, bool)
    assert not flip or 0 < mirrored.sum() < 6
    seen = np.where(np.asarray(mirrored)[:, None, None, None], pixels[:, :, ::-1], pixels)
    mu, log_variance = moments(codec, seen)
    eps = np.abs(fly * codec.std + codec.mean - mu)  # s |eps|
    bound = (2.0**-11 * np.abs(mu) + 2.0**-12 * np.abs(log_variance) * eps) / codec.std
    assert (np.abs(half - fly) <= 1.05 * bound + 3e-5).all()
    assert float(np.abs(half - fly).max()) > 3e-5  # rounding there is
    still = jax.jit(lambda x: codec.encode({"x": x})["x"])  # without a key nothing is drawn
    np.testing.assert_allclose(still(kept), still(pixels), atol=2e-5)


def test_of_a_codebook_nothing_is_drawn(pixels: np.ndarray) -> None:
    options: dict[str, Any] = {"in_channels": 1, "width": 4, "multipliers": (1, 2), "blocks": 1, "groups": 2}
    net = Autoencoder(VQAutoencoder(**options, channels=2, middle_attention=False, entries=4))
    params = jax.jit(net.init)(jax.random.key(0))
    codec = LatentImages(params, np.zeros(2, np.float32), np.ones(2, np.float32), Images(SHAPE), net=net, shape=LATENT)
    assert codec.cached_spec(open_digits().spec) == {"x": Spec(LATENT, "float16")}
    kept = np.asarray(jax.jit(codec.precompute)({"x": pixels})["x"])
    drawn = jax.jit(lambda x: codec.encode({"x": x}, KEY)["x"])
    np.testing.assert_allclose(
        drawn(pixels), net.moments(params, jnp.asarray(pixels / 127.5 - 1, jnp.float32))[0], atol=1e-5
    )
    np.testing.assert_array_equal(drawn(kept), kept)


def test_ready_latents_are_standardised(codec: LatentImages) -> None:
    z = np.random.default_rng(0).normal(size=(3, *LATENT)).astype(np.float32)
    np.testing.assert_allclose(codec.encode({"x": z}, KEY)["x"], (z - codec.mean) / codec.std, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r"x is uint8 \(B, 8, 8, 1\) or latents, got \(3, 4, 4, 3\)"):
        codec.encode({"x": np.zeros((3, 4, 4, 3), np.float32)})


def test_flips_and_another_image_are_not_cached(codec: LatentImages) -> None:
    codec = dataclasses.replace(codec, images=Images(SHAPE, flip=True))
    source = from_arrays(np.zeros((4, 8, 8, 1), np.uint8), depth=np.zeros((4, 8, 8, 1), np.float32))
    with pytest.raises(ValueError, match=r"data.flip: depth is an image too.*set data.cache_latents off, or data.flip"):
        codec.cached_spec(source.spec)


# --- tiles


def test_a_codec_decodes_in_tiles(codec: LatentImages) -> None:
    wide = dataclasses.replace(codec, shape=(4, 12, 2), images=Images((8, 24, 1)))
    x0 = jax.random.normal(jax.random.key(0), (1, 4, 12, 2))
    whole, parts = (
        jax.jit(lambda codec: codec.decode(x0)["x"])(each) for each in (wide, dataclasses.replace(wide, tile=8))
    )
    assert parts.shape == whole.shape == (1, 8, 24, 1)
    assert (np.asarray(parts) != np.asarray(whole)).any()
    with pytest.raises(ValueError, match="tile: at least 4 latents, got 3"):
        Latents("runs/a", tile=3)


# --- runs


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs/autoencoder."""
    place = tmp_path_factory.mktemp("place")
    write_autoencoder(place / "runs" / "autoencoder")
    return place


def at(folder: Path) -> Latents:
    return Latents(str(folder))


def config(place: Path, name: str, steps: int = 2, codec: Any = None, **data: Any) -> Config:
    return Config(
        name=name,
        workdir=str(place / "runs" / name),
        data=DataConfig(cache_folder=str(place / "cache"), **data),
        process=CosineVP(),
        parameterization=V(),
        network=DiT(in_channels=2, patch=4, width=8, depth=1, heads=1, frequencies=8, num_classes=10),
        codec=at(place / "runs" / "autoencoder") if codec is None else codec,
        ema=Ema(0.9),
        train=TrainConfig(steps=steps, batch_size=16, log_every=1, sample_every=0),
        checkpoint=CheckpointConfig(every=2),
        sample=SampleConfig(sampler="ddim", steps=2, num=10),
    )


@pytest.fixture(scope="module")
def whole(place: Path) -> jaxdiff.Run:
    """Four steps in one piece."""
    return jaxdiff.fit(config(place, "whole", 4))


def leaves(run: jaxdiff.Run) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(run.denoise.params)]


def test_a_run_goes_on_bit_for_bit_and_keeps_no_autoencoder(place: Path, whole: jaxdiff.Run) -> None:
    jaxdiff.fit(config(place, "parts", 2))
    parts = jaxdiff.fit(config(place, "parts", 4))
    assert whole.step == parts.step == 4
    assert all((a == b).all() for a, b in zip(leaves(whole), leaves(parts), strict=True))
    saved = json.loads((place / "runs" / "parts" / "config.json").read_text())["codec"]
    assert saved["step"] == 1 and len(saved["checksum"]) == 16 and saved["shape"] == [4, 4, 2]
    assert saved["mean"] == [0.5, 0.5] and saved["std"] == [0.25, 0.5]
    for name, there in (("autoencoder", True), ("parts", False)):
        files = [file for file in (place / "runs" / name / "checkpoints").rglob("*") if file.is_file()]
        assert any(b"decoder" in file.read_bytes() for file in files) is there


@pytest.mark.nightly
def test_on_the_fly_trains_the_same_up_to_rounding(place: Path, whole: jaxdiff.Run) -> None:
    fly = jaxdiff.fit(config(place, "fly", 4, cache_latents=False))
    moved = max(np.abs(a - b).max() for a, b in zip(leaves(fly), leaves(whole), strict=True))
    assert 0 < moved < 1e-3  # four steps of Adam, 1e-3 each


def test_a_moved_run_finds_its_autoencoder_or_says_so(
    place: Path, whole: jaxdiff.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = whole.sample(0, 2, {"label": [1, 2]})
    assert sample["x"].shape == (2, 8, 8, 1) and sample["x"].dtype == np.uint8
    relative = place / "runs" / "relative"
    shutil.copytree(place / "runs" / "whole", relative)
    text = (relative / "config.json").read_text()
    (relative / "config.json").write_text(text.replace(str(place / "runs" / "autoencoder"), "runs/autoencoder"))
    elsewhere = tmp_path / "elsewhere" / "runs"
    for name in ("relative", "autoencoder"):
        shutil.copytree(place / "runs" / name, elsewhere / name)
    monkeypatch.chdir(tmp_path)
    write_autoencoder(tmp_path / "runs" / "autoencoder", seed=1)  # another one, in the working folder
    run = jaxdiff.load(elsewhere / "relative")
    np.testing.assert_array_equal(run.sample(0, 2, {"label": [1, 2]})["x"], sample["x"])
    shutil.rmtree(elsewhere / "autoencoder")
    with pytest.raises(CheckpointError, match=r"its weights are not those that this run began with \(codec\)"):
        jaxdiff.load(elsewhere / "relative")  # the one in the working folder
    shutil.rmtree(tmp_path / "runs")
    with pytest.raises(
        ConfigError, match=r"^codec: 'runs/autoencoder' is not the folder of a run or of frozen weights, from"
    ):
        jaxdiff.load(elsewhere / "relative")


def test_their_likelihood_is_not_given_for_the_images(whole: jaxdiff.Run) -> None:
    with pytest.raises(
        ConfigError, match=r"bpd \(the default\) is of data .* latents \(4, 4, 2\) .* of its autoencoder"
    ):
        next(bits(whole, open_digits(), EvaluateOptions()))


def test_weights_are_arguments_and_numbers_compile_nothing(whole: jaxdiff.Run) -> None:
    codec, traces = whole.codec, []

    @jax.jit
    def round_trip(codec: LatentImages, x: jax.Array, key: jax.Array) -> Any:
        traces.append(1)
        return codec.decode(codec.encode({"x": x}, key)["x"])

    x = np.zeros((2, *SHAPE), np.uint8)
    first = round_trip(codec, x, KEY)
    other = dataclasses.replace(
        codec, mean=codec.mean + 1, std=2 * codec.std, params=jax.tree.map(lambda leaf: leaf + 0.1, codec.params)
    )
    assert (np.asarray(round_trip(other, x, KEY)["x"]) != np.asarray(first["x"])).any() and len(traces) == 1
    consts = jax.make_jaxpr(round_trip)(codec, x, KEY).consts
    assert sum(np.size(const) for const in consts) < 100 < sum(leaf.size for leaf in jax.tree.leaves(codec.params))


def test_the_encoder_is_never_in_the_backward_pass(whole: jaxdiff.Run) -> None:
    """The whole step has the convolutions of one encoding and no more; the network, a DiT, has none."""
    net, loss, optimizer = build_network(whole.config), build_loss(whole.config), optax.sgd(0.1)
    state = create_state(net, optimizer, loss, KEY)
    batch = {"x": jnp.zeros((2, *SHAPE), jnp.uint8), "label": jnp.zeros(2, jnp.int32)}
    parts: Any = {"net": net, "loss": loss, "optimizer": optimizer, "ema": Ema(0.9)}
    given = Given(whole.codec)
    step = str(jax.make_jaxpr(lambda *inputs: train_step(*inputs, **parts))(state, batch, given))
    once = str(jax.make_jaxpr(lambda codec, batch: codec.encode(batch, KEY))(whole.codec, batch))
    assert step.count("conv_general_dilated[") == once.count("conv_general_dilated[") > 4


MESHES = """
import json, sys
import jax, numpy as np
import jaxdiff
from jaxdiff.config import MeshConfig
from jaxdiff.train import make_mesh
from tests.codecs.test_latents import *

place, x = Path(sys.argv[1]), open_digits().take(np.arange(16))["x"]
found = {}
for name, sizes in {"one": (1, 1), "data": (8, 1), "fsdp": (1, 8)}.items():
    run = jaxdiff.load(place / "runs" / "whole", mesh=make_mesh(*sizes))
    over = run.model.sharding
    encoded = jax.jit(lambda codec, x: codec.encode({"x": x}, KEY)["x"], in_shardings=(None, over))(run.codec, x)
    labels = {"label": np.arange(8)}
    x0 = run.sample(0, 8, labels, decode=False)
    new = config(place, name, 1, cache_latents=False)
    new, losses = dataclasses.replace(new, mesh=MeshConfig(data=sizes[0], fsdp=sizes[1])), []
    trained = jaxdiff.fit(new, log=lambda step, figures: losses.append(figures["loss"]))
    whole = all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(trained.codec.params))
    pixels = run.sample(0, 8, labels)["x"].tolist()
    found[name] = np.asarray(encoded).tolist(), x0.tolist(), pixels, losses[0], whole
print(json.dumps(found))
"""


@pytest.mark.nightly
def test_one_device_and_eight_agree(place: Path, whole: jaxdiff.Run, run_python: Any) -> None:
    done = run_python("-c", MESHES, str(place), devices=8)
    found = json.loads(done.stdout.splitlines()[-1])
    assert [found[name][4] for name in ("one", "data", "fsdp")] == [True, True, False]  # the weights are split
    for name in ("data", "fsdp"):
        for ours, one in zip(found[name][:2], found["one"][:2], strict=True):
            np.testing.assert_allclose(ours, one, rtol=1e-5, atol=1e-5)
        assert np.abs(np.subtract(found[name][2], found["one"][2])).max() <= 1  # bytes: a rounding at a half
        np.testing.assert_allclose(found[name][3], found["one"][3], rtol=1e-5)


# --- mistakes


def refused(place: Path, match: str, kind: type[Exception] = ConfigError, **options: Any) -> None:
    with pytest.raises(kind, match=match) as caught:
        jaxdiff.fit(config(place, "refused", **options), dry_run=kind is ConfigError)
    assert "\n" not in str(caught.value)


@pytest.fixture
def other(place: Path, tmp_path: Path) -> Path:
    """A folder with a copy of the autoencoder's run."""
    return shutil.copytree(place / "runs" / "autoencoder", tmp_path / "ae").parent


def test_an_autoencoder_that_does_not_fit_is_one_line(place: Path, other: Path, trained: Path) -> None:
    said = r"^codec: '.*/nowhere' is not the folder of a run or of frozen weights, from .* lies now by codec.path$"
    refused(place, said, codec=at(other / "nowhere"))
    refused(place, r"UNet, not of an autoencoder: name one of a KLAutoencoder or VQAutoencoder \(", codec=at(trained))
    refused(place, r"codec.path: None is for data that hold latents, and digits holds uint8", codec=Latents(None))
    refused(place, r"digits has 1: set data.channels to 3", codec=at(rgb(other)))
    write_autoencoder(other / "three", network(channels=3))
    said = r"^codec: it makes x of 4x4x3, and the network takes in_channels 2: set the network's in_channels"
    refused(place, said, codec=at(other / "three"))
    write_statistics(other / "ae", 2, std=[1.0, float("nan")])
    refused(place, r"latents.json: mean .* and std .*nan.* must be finite, and std above 0", codec=at(other / "ae"))
    write_statistics(other / "ae", 3)
    refused(place, r"latents.json is of 3 channels, and the autoencoder has 2", codec=at(other / "ae"))
    (other / "ae" / "latents.json").unlink()
    refused(place, r"has no latents.json, which training writes after its last step", codec=at(other / "ae"))


def test_mean_and_std_are_those_of_the_step(place: Path, other: Path) -> None:
    """An autoencoder that was trained further: a run goes on with what it began with; a new one does not mix them."""
    begun = dataclasses.replace(config(place, "begun", codec=at(other / "ae")), workdir=str(other / "begun"))
    jaxdiff.fit(begun)
    write_statistics(other / "ae", 2, step=2, mean=[9.0, 9.0])
    for steps, step in ((3, None), (4, 1)):
        codec, train = Latents(str(other / "ae"), step), dataclasses.replace(begun.train, steps=steps)
        longer = dataclasses.replace(begun, codec=codec, train=train)
        assert jaxdiff.fit(longer).step == steps
        saved = json.loads((other / "begun" / "config.json").read_text())["codec"]
        assert (saved["step"], saved["mean"]) == (1, [0.5, 0.5])
    said = r"codec.step 1: .*ae states mean and std of the latents of step 2 alone .*; leave codec.step out"
    refused(place, said, codec=Latents(str(other / "ae"), 1))


def rgb(folder: Path) -> Path:
    return write_autoencoder(folder / "rgb", network(in_channels=3), shape=(8, 8, 3))


def test_weights_that_give_nan_are_told_of_while_they_are_cached(place: Path, tmp_path: Path) -> None:
    spoilt = write_autoencoder(tmp_path / "spoilt", spoil=lambda leaf: leaf * jnp.nan)
    refused(place, r"digits row 0: the encoder gives x that is not finite in float16", DataError, codec=at(spoilt))


@pytest.mark.nightly
def test_a_changed_autoencoder_is_refused_by_a_run_and_encodes_anew_for_another(place: Path, other: Path) -> None:
    first = dataclasses.replace(config(place, "first", codec=at(other / "ae")), workdir=str(other / "first"))
    jaxdiff.fit(first)
    count = len(list((place / "cache").glob("digits-*/")))
    shutil.rmtree(other / "ae")
    write_autoencoder(other / "ae", seed=1)
    with pytest.raises(CheckpointError, match=r"ae step 1: its weights are not those that this run began with"):
        jaxdiff.fit(dataclasses.replace(first, train=dataclasses.replace(first.train, steps=4)))
    jaxdiff.fit(dataclasses.replace(first, workdir=str(other / "second")))
    assert len(list((place / "cache").glob("digits-*/"))) == count + 1
    moved = at(place / "runs" / "autoencoder")  # the same weights elsewhere: the run goes on
    again = dataclasses.replace(first, codec=moved, train=dataclasses.replace(first.train, steps=3))
    assert jaxdiff.fit(again).step == 3


@pytest.mark.nightly
def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    run_block(blocks(Path(__file__).resolve().parents[2] / "docs" / "latents.md", "python")[0], "latents")
    assert (tmp_path / "digits.png").stat().st_size > 500
    assert len(list((tmp_path / "cache" / "jaxdiff" / "latents").glob("digits-*/*.npy"))) == 1
