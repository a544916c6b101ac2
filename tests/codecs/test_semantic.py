"""The codec of semantic maps: ids, void, mirrored with the picture, around any codec, as its network takes them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import Flow, Velocity
from jaxdiff.codecs import Images, LatentImages, SemanticMap, WithText
from jaxdiff.codecs.recipe import noted
from jaxdiff.config import Config, ConfigError, TrainConfig, from_json, resolve, to_json, with_conditions
from jaxdiff.config.stored import codec_reads, stored_conditions
from jaxdiff.data import DataError, from_arrays, take
from jaxdiff.networks import Controlled, ControlNet, UNet
from jaxdiff.networks.autoencoder import Autoencoder
from jaxdiff.spec import Spec, drop
from jaxdiff.train import Ema
from tests.tiny_autoencoder import network

UNET = UNet(8, 1, width=8, multipliers=(1,), blocks=1, attention_resolutions=())
RNG = np.random.default_rng(0)
X, IDS = RNG.integers(0, 256, (64, 8, 8, 1)).astype(np.uint8), RNG.integers(0, 4, (64, 8, 8)).astype(np.uint8)


def config(codec: Any, classes: int = 4) -> Config:
    control = ControlNet(UNET, "semantic", classes=classes, size=(8, 8), widths=(8,), halving=False)
    parts: dict[str, Any] = {"process": Flow(), "parameterization": Velocity()}
    train = TrainConfig(steps=1, batch_size=4)
    return Config(name="maps", network=Controlled(UNET, (control,)), codec=codec, ema=Ema(0.9), train=train, **parts)


@pytest.mark.parametrize("void", [None, 255, -1])
def test_ids_and_void(void: int | None) -> None:
    """A void pixel, and each of a map that is dropped, is in no channel of what the network makes of the ids."""
    ids = IDS.astype(np.int32)
    wanted = np.eye(5, 4)[ids] if void is None else np.where((ids == 3)[..., None], 0.0, np.eye(5, 4)[ids])
    stored = ids if void is None else np.where(ids == 3, void, ids)
    codec = SemanticMap(Images((8, 8, 1)), classes=4 if void is None else 3, void=void)
    batch = jax.jit(lambda codec, record: codec.encode(record))(codec, {"x": X, "map": stored, "label": ids[:, 0, 0]})
    assert sorted(batch) == ["control", "label", "x"] and batch["control"].dtype == jnp.int32
    np.testing.assert_array_equal(jax.nn.one_hot(batch["control"], codec.classes), wanted[..., : codec.classes])
    np.testing.assert_array_equal(codec.ids(stored), batch["control"])
    spec = codec.spec["control"]
    assert spec == Spec((None, None), "int32", 0, codec.classes - 1, null=codec.classes)
    dropped = drop({"control": spec}, batch, {"control": jnp.arange(64) < 5})["control"]
    assert (jax.nn.one_hot(dropped, codec.classes)[:5] == 0).all() and (dropped[5:] == batch["control"][5:]).all()
    assert sorted(codec.decode(batch["x"], batch)) == ["label", "x"]
    assert codec.encode({"x": X}).keys() == {"x"}


def test_what_mirrors_the_picture_mirrors_the_map() -> None:
    """Each map lies over its own picture still."""
    codec = SemanticMap(Images((8, 8, 1), flip=True), classes=4)
    batch = codec.encode({"x": IDS[..., None] * 50, "map": IDS}, jax.random.key(0))
    np.testing.assert_allclose((batch["x"][..., 0] + 1) * 127.5 / 50, batch["control"], atol=1e-4)
    mirrored = (batch["control"] == IDS[:, :, ::-1]).all(axis=(1, 2))
    assert 10 < mirrored.sum() < 54 and (batch["control"] == IDS).all(axis=(1, 2)).sum() == 64 - mirrored.sum()


def test_around_latents() -> None:
    """Mirrored with pixels in the step; latents of mirrored pictures cannot be kept, as with any condition that is an
    image."""
    net = Autoencoder(network())
    params = jax.jit(net.init)(jax.random.key(0))
    shape = (8, 8, 1)
    for flip in (False, True):
        inner = LatentImages(params, np.zeros(2), np.ones(2), Images(shape, flip=flip), net=net, shape=(4, 4, 2))
        codec, n = SemanticMap(inner, classes=4), 6
        x = RNG.integers(0, 256, (n, *shape)).astype(np.uint8)
        ids = RNG.integers(0, 4, (n, *shape[:2])).astype(np.uint8)
        key = jax.random.key(3)
        batch, plain = codec.encode({"x": x, "map": ids}, key), inner.encode({"x": x, "image": ids[..., None]}, key)
        np.testing.assert_array_equal(batch["x"], plain["x"])
        np.testing.assert_array_equal(batch["control"], plain["image"][..., 0])
        stored = {"x": Spec(shape, "uint8", 0, 255), "map": Spec(shape[:2], "uint8", 0, 255)}
        if flip:
            with pytest.raises(ValueError, match=r"data\.flip: map is an image too"):
                codec.cached_spec(stored)
        else:
            assert sorted(codec.cached_spec(stored)) == ["x"]
            kept = {"x": codec.precompute({"x": x})["x"], "map": ids}
            np.testing.assert_allclose(codec.encode(kept, key)["x"], batch["x"], atol=1e-4)
    assert Images((8, 8, 1)).encode({"x": X, "map": IDS})["map"].shape == (64, 8, 8)
    assert SemanticMap(Images((8, 8, 1)), classes=4).cached_spec(stored) == {}


def test_a_configuration_knows_what_it_reads_and_notes_the_size() -> None:
    source = from_arrays(X, map=IDS, label=IDS[:, 0, 0])
    given = config(SemanticMap(None, classes=4))
    assert stored_conditions(given) == ("map",)
    read = with_conditions(source, given)
    assert sorted(take(read, [0])) == ["map", "x"] and read.spec["map"].high == 3
    made = resolve(given, read)
    assert made.codec == SemanticMap(Images((8, 8, 1)), classes=4, size=(8, 8))
    assert from_json(to_json(made)).codec == made.codec
    assert noted(given.codec, made.codec).inner == Images((8, 8, 1)) and noted(given.codec, None) == given.codec
    around = WithText("encoders/clip", inner=given.codec)
    assert codec_reads(around) == given.codec.stored


def test_refusals() -> None:
    source = from_arrays(X, map=IDS)
    with pytest.raises(ValueError, match="classes must be a whole number of at least 1, got 0"):
        SemanticMap(None, classes=0)
    with pytest.raises(ValueError, match="void: 3 is one of the 4 classes"):
        SemanticMap(None, classes=4, void=3)
    with pytest.raises(ValueError, match="inner: a codec of text goes around that of the map"):
        SemanticMap(WithText("encoders/clip"), classes=4)
    with pytest.raises(DataError, match="the codec reads map, which is not in the data"):
        with_conditions(from_arrays(X), config(SemanticMap(None, classes=4)))
    for classes in (3, 5):
        given = config(SemanticMap(None, classes=4), classes)
        with pytest.raises(ConfigError, match=rf"what stands for no control is {classes} in it and 4 in the codec"):
            resolve(given, with_conditions(source, given))
    with pytest.raises(ConfigError, match="takes control of shape"):
        small = from_arrays(X[:, :4, :4], map=IDS[:, :4, :4])
        resolve(given, with_conditions(small, given))
