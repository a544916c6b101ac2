"""Decoding in tiles."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.codecs import Images, LatentImages
from jaxdiff.codecs.tiles import tiled


def convolutions(z: jax.Array) -> jax.Array:
    """A decoder of two 3x3 convolutions and a factor of 2 between: it sees 1.5 latents, 3 pixels to each side."""
    keys = jax.random.split(jax.random.key(3))
    for key, (cin, cout) in zip(keys, ((z.shape[-1], 4), (4, 1)), strict=True):
        kernel = jax.random.normal(key, (3, 3, cin, cout))
        z = jax.lax.conv_general_dilated(z, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        z = jnp.tanh(z + 0.3)
        z = z.repeat(2, axis=1).repeat(2, axis=2) if cout == 4 else z
    return z


@pytest.mark.parametrize(("size", "tile"), [((40, 16), 16), ((37, 21), 16), ((16, 40), 20), ((9, 9), 8)])
def test_tiles_are_the_whole_away_from_their_borders(size: tuple[int, int], tile: int) -> None:
    """A quarter of a tile, 4 latents of 16, is more than the receptive field of 3 and a bit."""
    z = jax.random.normal(jax.random.key(0), (2, *size, 3))
    whole, parts = jax.jit(convolutions)(z), jax.jit(lambda z: tiled(convolutions, z, tile, 2))(z)
    assert parts.shape == whole.shape
    step, reach = tile - tile // 4, 3
    near = [np.zeros(2 * n, bool) for n in size]
    for axis, n in enumerate(size):
        for start in range(0, max(n - tile // 4, 1), step):
            begin = max(min(start, n - tile), 0)
            for border in {2 * begin, 2 * min(begin + tile, n)} - {0, 2 * n}:
                near[axis][max(border - reach, 0) : border + reach] = True
    away = ~(near[0][:, None] | near[1][None, :])
    assert away.any() and not away.all()
    error = np.abs(np.asarray(parts - whole)).max(axis=(0, 3))
    assert error[away].max() < 1e-5
    assert error[~away].max() > 1e-3  # the borders of tiles are seen, and blended


class Convolutions:
    """An autoencoder's decoder alone."""

    factor = 2

    def decode(self, params: Any, z: jax.Array) -> jax.Array:
        return convolutions(z)


def test_a_picture_that_continues_itself_is_decoded_so() -> None:
    """Latents moved around are the picture moved around, where a decode sees the other side; else a border is seen."""
    z = np.random.default_rng(0).normal(size=(1, 12, 24, 2)).astype(np.float32)
    made: Any = {"net": Convolutions(), "shape": (12, 24, 2)}
    plain = LatentImages((), np.zeros(2), np.full(2, 0.2), Images((24, 48, 1)), **made)

    @jax.jit
    def decode(codec: LatentImages, z: Any) -> jax.Array:
        return codec.decode(z)["x"].astype(jnp.int32)

    def seam(codec: LatentImages) -> int:
        there = decode(codec, np.roll(z, (0, 12), (1, 2)))
        return int(np.abs(there - np.roll(decode(codec, z), (0, 24), (1, 2)))[:, 8:16].max())

    wrapped = dataclasses.replace(plain, wrap=(0, 8))
    assert decode(wrapped, z).shape == (1, 24, 48, 1)
    assert seam(plain) > 3 and seam(wrapped) <= 1
    np.testing.assert_array_equal(decode(wrapped, z)[:, :, 16:32], decode(plain, z)[:, :, 16:32])
