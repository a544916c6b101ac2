"""EDM2: published sizes, magnitudes that are preserved, weights whose length does not matter."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.networks import EDM2, edm2_img512, functional
from jaxdiff.networks.edm2 import (
    CLIP,
    Block,
    Fourier,
    Map,
    log_variance,
    mp_cat,
    mp_silu,
    mp_sum,
    normalised,
    unit_weights,
)
from jaxdiff.networks.layers import draw


def size(config: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(functional(config).init, jax.random.key(0))))


def test_published_size() -> None:
    """The others are in tests/pretrained/test_originals.py."""
    assert size(edm2_img512("xs")) == 124_713_253 + 2 * (128 + 128)  # and frequencies and phases, which are fixed


def test_another_size() -> None:
    with pytest.raises(ValueError, match="xxs, xs, s, m, l, xl, xxl, got 'huge'"):
        edm2_img512("huge")


# --- magnitudes: of independent numbers from N(0, 1) that of what is made of them is 1 too


def magnitude(a: Any) -> float:
    return float(jnp.sqrt(jnp.square(a).mean()))


def drawn(seed: int, *shape: int) -> Any:
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize(
    "made",
    [
        lambda a, b: mp_silu(a),
        lambda a, b: mp_sum(a, b, 0.3),
        lambda a, b: mp_sum(a, b, 0.5),
        lambda a, b: mp_cat(a, b[..., :10], 0.5),
        lambda a, b: mp_cat(a, b[..., :10], 0.2),
        lambda a, b: normalised(7 * a),
        lambda a, b: draw(Map(64, 300), jax.random.key(3))(a),
        lambda a, b: draw(Map(3, 3, 64, 60), jax.random.key(3))(a.reshape(8, 32, 32, 64))[:, 1:-1, 1:-1],
        lambda a, b: draw(Fourier(4000), jax.random.key(4))(a[:64, 0]),
    ],
    ids=["silu", "sum", "even sum", "cat", "uneven cat", "normalised", "map", "convolution", "fourier"],
)
def test_magnitudes_are_preserved(made: Any) -> None:
    assert abs(magnitude(made(drawn(0, 8192, 64), drawn(1, 8192, 64))) - 1) < 0.03


@pytest.mark.parametrize("way", ["down", "up"])
def test_a_block_preserves_magnitude(way: Any) -> None:
    """(7) to (9): with attention, whose values are averaged, a little less."""
    config = EDM2(image_size=8, width=64, multipliers=(1,), attention_resolutions=(8,), head_width=16)
    block = draw(Block(config, 96, 64, 0, way), jax.random.key(5))
    y = block(drawn(6, 4, 8, 8, 96), drawn(7, 4, 64), None)
    assert abs(magnitude(y[:, 2:-2, 2:-2]) - 1) < 0.1
    attended = draw(Block(config, 64, 64, 0, way, attention=True), jax.random.key(5))
    assert 0.7 < magnitude(attended(drawn(6, 4, 8, 8, 64), drawn(7, 4, 64), None)) < 1.1
    assert float(attended(1e6 * drawn(6, 4, 8, 8, 64), drawn(7, 4, 64), None).max()) <= CLIP


# --- the network

CONFIG = EDM2(
    image_size=4, width=8, multipliers=(1, 2), blocks=1, attention_resolutions=(2,), head_width=8, num_classes=3,
    dropout=0.4, level_features=6,
)  # fmt: skip
RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(4, 4, 4, 4)).astype(np.float32)
T = np.array([-1.5, 0.0, 0.4, 1.1], np.float32)
LABEL = {"label": np.array([0, 1, 2, 0])}


@functools.cache
def made() -> tuple[Any, Any, Any]:
    """A network, fresh parameters, and the same with gains that are not 0."""
    net = functional(CONFIG)
    fresh = jax.jit(net.init)(jax.random.key(0))
    params = jax.tree.map(lambda leaf: leaf + 0.5 if leaf.ndim == 0 else leaf, fresh)
    return net, fresh, params


@functools.cache
def apply() -> Any:
    return jax.jit(made()[0].apply)


def test_it_starts_at_zero() -> None:
    np.testing.assert_array_equal(apply()(made()[1], X, T, LABEL), 0)


@pytest.mark.nightly
def test_it_learns_from_zero() -> None:
    net, fresh, params = made()
    gradient = jax.jit(jax.grad(lambda params: (net.apply(params, X, T, LABEL) * X).sum()))
    assert float(abs(gradient(fresh)["gain_out"])) > 1e-3
    for path, leaf in jax.tree.leaves_with_path(gradient(params)):
        name = jax.tree_util.keystr(path)
        fixed = any(each in name for each in ("frequencies", "phases", "'level'"))
        assert bool(jnp.isfinite(leaf).all()) and bool(leaf.any()) != fixed, name


def test_the_length_of_weights_does_not_matter() -> None:
    _, _, params = made()
    base = apply()(params, X, T, LABEL)
    longer = jax.tree.map(lambda leaf: 3 * leaf if leaf.ndim > 1 else leaf, params)
    np.testing.assert_allclose(apply()(longer, X, T, LABEL), base, atol=2e-3)
    unit = unit_weights(longer)
    np.testing.assert_allclose(apply()(unit, X, T, LABEL), base, atol=2e-3)
    kernel = unit["down"]["0"]["blocks"]["0"]["conv1"]["kernel"]
    np.testing.assert_allclose(np.sqrt(np.square(kernel).mean((0, 1, 2))), 1, atol=1e-3)
    packed = unit["middle_in"]["qkv"]["kernel"]
    np.testing.assert_allclose(np.sqrt(np.square(packed).mean(0)), 1, atol=1e-3)


def test_conditions_and_samples() -> None:
    _, _, params = made()
    base = apply()(params, X, T, LABEL)
    assert bool((abs(apply()(params, X, T, {"label": (LABEL["label"] + 1) % 3}) - base).max((1, 2, 3)) > 1e-4).all())
    wrong = apply()(params, X, T, {"label": np.array([0, 4, -1, 3])})
    assert [bool(jnp.isnan(each).any()) for each in wrong] == [False, True, True, False]
    other = apply()(params, np.concatenate([-X[:1], X[1:]]), T, LABEL)
    np.testing.assert_allclose(other[1:], base[1:], atol=1e-5)


@pytest.mark.nightly
def test_bfloat16() -> None:
    _, _, params = made()
    half = functional(EDM2(**{**vars(CONFIG), "dtype": "bfloat16"}))
    expected, output = apply()(params, X, T, LABEL), jax.jit(half.apply)(params, X, T, LABEL)
    error = float(jnp.sqrt(jnp.square(output - expected).mean() / jnp.square(expected).mean()))
    assert output.dtype == jnp.float32 and 1e-5 < error < 0.05


@pytest.mark.nightly
def test_dropout() -> None:
    net, _, params = made()
    one = jax.jit(net.apply)(params, X, T, LABEL, key=jax.random.key(1))
    assert float(abs(one - apply()(params, X, T, LABEL)).max()) > 1e-3


def test_log_variance_is_its_equation() -> None:
    net, _, params = made()
    fourier, kernel = params["level_fourier"], np.asarray(params["level"]["kernel"])
    waves = np.sqrt(2) * np.cos(T[:, None] * np.asarray(fourier["frequencies"]) + np.asarray(fourier["phases"]))
    unit = kernel / np.sqrt(np.square(kernel).mean()) / np.sqrt(6)
    np.testing.assert_allclose(log_variance(net, params, jnp.asarray(T)), (waves @ unit)[:, 0], atol=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention_resolutions": (5,)}, r"attention_resolutions=\[5\]"),
        ({"image_size": 30}, "image_size=30"),
        ({"head_width": 100}, "576 channels: not divisible by head_width=100"),
        ({"dropout": -0.1}, r"in \[0, 1\)"),
    ],
)
def test_a_configuration_that_does_not_fit(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EDM2(**changes)
