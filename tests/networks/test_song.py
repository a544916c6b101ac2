"""DDPM++ and NCSN++: published sizes, the embedding written out, and what every network here has."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.networks import SongUNet, ddpmpp, functional, ncsnpp
from jaxdiff.networks.song import Embedding


def size(config: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(functional(config).init, jax.random.key(0))))


def test_published_size() -> None:
    """The others are in tests/pretrained/test_originals.py."""
    assert size(ddpmpp(num_classes=10)) == 55_735_299


CONFIG = ncsnpp(
    image_size=4,
    in_channels=2,
    width=8,
    multipliers=(1, 2),
    blocks=1,
    attention_resolutions=(2,),
    num_classes=3,
    augment=2,
    dropout=0.4,
)
RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(4, 4, 4, 2)).astype(np.float32)
T = np.array([-1.5, 0.0, 0.4, 1.1], np.float32)
COND = {"label": np.array([0, 1, 2, 0]), "augment": RANDOM.normal(size=(4, 2)).astype(np.float32)}


@functools.cache
def made() -> tuple[Any, Any, Any]:
    net = functional(CONFIG)
    fresh = jax.jit(net.init)(jax.random.key(0))
    params = jax.tree.map(lambda leaf: leaf + 0.2 * RANDOM.normal(size=leaf.shape).astype(np.float32), fresh)
    return net, fresh, params


@functools.cache
def apply() -> Any:
    return jax.jit(made()[0].apply)


def test_it_starts_near_zero() -> None:
    """The last map of each branch and of the network starts at 1e-5 of its usual size."""
    output = apply()(made()[1], X, T, COND)
    assert output.shape == X.shape and 0 < float(abs(output).max()) < 1e-3


@pytest.mark.nightly
def test_the_gradient_reaches_every_parameter_but_the_frequencies() -> None:
    net, _, params = made()
    gradient = jax.jit(jax.grad(lambda params: jnp.square(net.apply(params, X, T, COND)).sum()))(params)
    for path, leaf in jax.tree.leaves_with_path(gradient):
        name = jax.tree_util.keystr(path)
        assert bool(jnp.isfinite(leaf).all()) and bool(leaf.any()) != ("frequencies" in name), name


def test_conditions() -> None:
    """Each tells; what is left out is no class, and no augmentation; a label that is none cannot pass unseen."""
    _, _, params = made()
    base = apply()(params, X, T, COND)
    for name, other in (("label", (COND["label"] + 1) % 3), ("augment", COND["augment"] + 1)):
        assert bool((abs(apply()(params, X, T, COND | {name: other}) - base).max((1, 2, 3)) > 1e-4).all())
    without = params | {"embed": params["embed"] | {"label": jnp.zeros((3, 16))}}
    null = apply()(params, X, T, COND | {"label": np.full(4, 3)})
    np.testing.assert_allclose(null, apply()(without, X, T, COND), atol=1e-5)
    assert {name: spec.null for name, spec in made()[0].cond.items()} == {"label": 3, "augment": 0.0}
    wrong = apply()(params, X, T, COND | {"label": np.array([0, 4, -1, 2])})
    assert [bool(jnp.isnan(each).any()) for each in wrong] == [False, True, True, False]


def test_the_embedding_is_its_equation() -> None:
    """(5), with the drawn frequencies and with geometric ones."""
    for config in (CONFIG, ddpmpp(**{**vars(CONFIG), "embedding": "positional", "waves": 1})):
        module = Embedding(config)
        told, width = COND["augment"], config.waves * 8
        table = RANDOM.normal(size=(3, width)).astype(np.float32)
        bias = RANDOM.normal(size=width).astype(np.float32)
        assert module.label is not None and module.label_bias is not None
        module.label[...], module.label_bias[...] = jnp.asarray(table), jnp.asarray(bias)
        if module.frequencies is None:
            angle = T[:, None] * 10_000.0 ** (-np.arange(4) / 3)
        else:
            module.frequencies[...] = jnp.asarray(RANDOM.normal(size=8), jnp.float32)
            angle = 2 * np.pi * T[:, None] * np.asarray(module.frequencies[...])
        h = np.concatenate([np.sin(angle), np.cos(angle)], 1) + np.sqrt(3) * table[COND["label"]] + bias
        assert module.augment is not None
        h = h + told @ np.asarray(module.augment.kernel[...])
        for layer in (module.hidden, module.out):
            assert layer.bias is not None
            h = h @ np.asarray(layer.kernel[...]) + np.asarray(layer.bias[...])
            h = h / (1 + np.exp(-h))
        np.testing.assert_allclose(module(T, 4, COND), h, atol=1e-4)


@pytest.mark.nightly
def test_dropout() -> None:
    net, _, params = made()
    one = jax.jit(net.apply)(params, X, T, COND, key=jax.random.key(1))
    assert float(abs(one - apply()(params, X, T, COND)).max()) > 1e-3


def test_samples_are_independent() -> None:
    _, _, params = made()
    base = apply()(params, X, T, COND)
    other = apply()(params, np.concatenate([-X[:1], X[1:]]), T, COND)
    np.testing.assert_allclose(other[1:], base[1:], atol=1e-5)


@pytest.mark.nightly
def test_bfloat16() -> None:
    _, _, params = made()
    half = functional(SongUNet(**{**vars(CONFIG), "dtype": "bfloat16"}))
    expected, output = apply()(params, X, T, COND), jax.jit(half.apply)(params, X, T, COND)
    error = float(jnp.sqrt(jnp.square(output - expected).mean() / jnp.square(expected).mean()))
    assert output.dtype == jnp.float32 and 1e-5 < error < 0.05


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention_resolutions": (5,)}, r"attention_resolutions=\[5\].*the levels have \[32, 16, 8\]"),
        ({"image_size": 30}, "image_size=30"),
        ({"multipliers": (1, 0)}, "at least 1"),
        ({"width": 7}, "width=7 must be even"),
        ({"augment": -1}, "augment=-1"),
        ({"embedding": "none"}, "'positional' or 'fourier'"),
        ({"taps": (1, 2, 1)}, "an even number"),
        ({"dropout": 1.0}, r"in \[0, 1\)"),
    ],
)
def test_a_configuration_that_does_not_fit(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SongUNet(**changes)
