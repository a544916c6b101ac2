"""The noisy classifier: published sizes, pooling by hand, and that time and every parameter reach the logits."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.networks import Classifier, Image, UNet, adm_classifier, functional

SMALL = Classifier(
    UNet(
        8, in_channels=1, width=8, multipliers=(1, 2), blocks=1, attention_resolutions=(4,), heads=2, scale_shift=True
    ),
    3,
)


def size(config: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(functional(config).init, jax.random.key(0))))


def literal(side: int, depth: int, multipliers: tuple[float, ...], width: int = 128, classes: int = 1000) -> int:
    """Parameters of the published class, layer by layer as its constructor makes them: convolutions with a bias,
    normalisations with gain and bias."""

    def convolution(inputs: int, outputs: int, square: int = 1) -> int:
        return square * inputs * outputs + outputs

    def block(inputs: int, outputs: int) -> int:
        told = convolution(4 * width, 2 * outputs)  # scale and shift
        skip = 0 if inputs == outputs else convolution(inputs, outputs)
        return (
            2 * inputs + convolution(inputs, outputs, 9) + told + 2 * outputs + convolution(outputs, outputs, 9) + skip
        )

    def attention(channels: int) -> int:
        return 2 * channels + convolution(channels, 3 * channels) + convolution(channels, channels)

    channels = [int(factor * width) for factor in multipliers]
    total = convolution(width, 4 * width) + convolution(4 * width, 4 * width) + convolution(3, channels[0], 9)
    now = channels[0]
    for level, wide in enumerate(channels):
        for _ in range(depth):
            total += block(now, wide) + (attention(wide) if side in (32, 16, 8) else 0)
            now = wide
        if level < len(channels) - 1:
            total, side = total + block(now, now), side // 2
    total += 2 * block(now, now) + attention(now)
    return total + 2 * now + now * (side**2 + 1) + convolution(now, 3 * now) + convolution(now, classes)


@pytest.mark.parametrize(
    ("side", "depth", "multipliers", "parameters"),
    [
        (64, 4, (1, 2, 3, 4), 65_438_568),
        (128, 2, (1, 1, 2, 3, 4), 42_568_040),
        (256, 2, (1, 1, 2, 2, 4, 4), 54_096_360),
        (512, 2, (0.5, 1, 1, 2, 2, 4, 4), 54_448_360),
    ],
)
def test_published_sizes(side: Any, depth: int, multipliers: Any, parameters: int) -> None:
    assert size(adm_classifier(side)) == literal(side, depth, multipliers) == parameters


@functools.cache
def drawn() -> Any:
    """Parameters of `SMALL`, each drawn: some layers start at zero."""
    leaves, tree = jax.tree.flatten(jax.eval_shape(functional(SMALL).init, jax.random.key(0)))
    random = np.random.default_rng(0)
    return jax.tree.unflatten(tree, [0.3 * random.normal(size=leaf.shape).astype(np.float32) for leaf in leaves])


def test_pooling_by_hand() -> None:
    """Of the last features head by head, token by token, in float64."""
    net, params = functional(SMALL), drawn()
    h = np.random.default_rng(0).normal(size=(2, 4, 4, 16))
    found = jax.jit(lambda params, h: net.module(params).pool(h))(params, jnp.asarray(h, jnp.float32))
    pool = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params["pool"])
    for sample, features in enumerate(h):
        tokens = [features.reshape(16, 16).mean(0), *features.reshape(16, 16)]
        tokens = [token + position for token, position in zip(tokens, pool["positions"], strict=True)]
        mixed = []
        for head in (slice(0, 8), slice(8, 16)):
            query, keys, values = (
                [token @ pool["qkv"]["kernel"][:, part, head] + pool["qkv"]["bias"][part, head] for token in tokens]
                for part in range(3)
            )
            weights = np.exp([query[0] @ key / np.sqrt(8) for key in keys])
            mixed.append(sum(w * v for w, v in zip(weights, values, strict=True)) / weights.sum())
        logits = np.concatenate(mixed) @ pool["out"]["kernel"] + pool["out"]["bias"]
        np.testing.assert_allclose(found[sample], logits, rtol=2e-4, atol=2e-4)


def test_time_and_pixels_and_every_parameter_reach_the_logits() -> None:
    net, params = functional(SMALL), drawn()
    x = jax.random.normal(jax.random.key(2), (4, 8, 8, 1))
    apply = jax.jit(net.apply)
    logits = apply(params, x, 3.0)
    assert logits.shape == (4, 3) and logits.dtype == jnp.float32
    assert float(jnp.abs(apply(params, x, 600.0) - logits).max()) > 1e-3
    np.testing.assert_allclose(apply(params, x[1:2], jnp.array([3.0])), logits[1:2], rtol=1e-4, atol=1e-4)
    turned = apply(params, x[:, :, ::-1], 3.0)  # attention alone would not tell where a pixel stands
    assert float(jnp.abs(turned - logits).max()) > 1e-3
    slopes = jax.jit(jax.grad(lambda params: jnp.square(net.apply(params, x, 3.0)).sum()))(params)
    dead = [jax.tree_util.keystr(path) for path, leaf in jax.tree_util.tree_leaves_with_path(slopes) if not leaf.any()]
    # the bias of keys cancels in a softmax, up to rounding
    assert dead == []


def test_dropout_and_bfloat16() -> None:
    dropping = dataclasses.replace(SMALL, unet=dataclasses.replace(SMALL.unet, dropout=0.5))
    net, params = functional(dropping), drawn()
    x = jax.random.normal(jax.random.key(2), (4, 8, 8, 1))
    dropped = jax.jit(lambda key: net.apply(params, x, 3.0, key=key))
    draws = [jax.jit(net.apply)(params, x, 3.0), *map(dropped, jax.random.split(jax.random.key(0)))]
    assert all(float(jnp.abs(a - b).max()) > 1e-3 for a, b in itertools.combinations(draws, 2))
    half = jax.jit(functional(dropping.computing_in("bfloat16")).apply)(params, x, 3.0)
    assert half.dtype == jnp.float32 and 1e-6 < float(jnp.abs(half - draws[0]).max()) < 0.2 * float(draws[0].std())


def test_refusals() -> None:
    with pytest.raises(ValueError, match="classes=1 must be at least 2"):
        Classifier(SMALL.unet, 1)
    with pytest.raises(ValueError, match="its U-Net takes label: leave it out"):
        Classifier(dataclasses.replace(SMALL.unet, num_classes=3), 3)
    with pytest.raises(ValueError, match="its U-Net takes low"):
        Classifier(dataclasses.replace(SMALL.unet, conditions=(Image("low", (4, 4), 1),)), 3)
    net, params = functional(SMALL), drawn()
    with pytest.raises(ValueError, match=r"has positions for images of 8x8, got \(1, 16, 16, 1\): set image_size"):
        net.apply(params, jnp.zeros((1, 16, 16, 1)), 0.5)
    with pytest.raises(ValueError, match="is unconditional, got cond with"):
        net.apply(params, jnp.zeros((1, 8, 8, 1)), 0.5, {"label": jnp.zeros(1, int)})
