"""Large images from their latents: decoded in tiles.

Tile k covers the latents [a_k, a_k + n) of each axis, and neighbours share n/4. With
D_k the decoded tile and w_k(i) = min(1, (i + 1/2 - a_k)/o, (a_k + n - i - 1/2)/o) a weight that rises linearly over the
overlap o and stays 1 at the picture's own border (in pixels; the product of both axes),

    u(i) = sum_k w_k(i) D_k(i) / sum_k w_k(i).                                                       (1)

A pixel that is further from the border of its tiles than the decoder's receptive field reaches is what the whole decode
gives; attention and group norms see a tile only, so of those (1) is an approximation.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

OVERLAP = 4  # tiles share one part in so many


def tiled(decode: Any, z: Array, tile: int, factor: int) -> Array:
    """A decoder's output by tiles one after the other, equation (1).

    Args:
      decode: ``(B, n, m, c) -> (B, n factor, m factor, C)``.
      z: ``(B, h, w, c)``.
      tile: n, at least `OVERLAP`; along an axis that is shorter, all of it.
      factor: pixels along one side of a latent.

    >>> z = jnp.arange(40.0).reshape(1, 10, 4, 1)
    >>> bool(jnp.allclose(tiled(lambda part: part, z, 8, 1), z))
    True
    """
    overlap, sizes = tile // OVERLAP, [min(tile, size) for size in z.shape[1:3]]
    starts = [_starts(size, n, overlap) for size, n in zip(z.shape[1:3], sizes, strict=True)]
    ramps = [
        [_ramp(start, n, size, overlap, factor) for start in along]
        for along, n, size in zip(starts, sizes, z.shape[1:3], strict=True)
    ]
    corners = [(down, across) for down in starts[0] for across in starts[1]]
    weights = np.stack([np.outer(down, across) for down in ramps[0] for across in ramps[1]])  # w_k of (1)

    def one(corner: Array) -> Array:
        part = jax.lax.dynamic_slice(z, (0, corner[0], corner[1], 0), (z.shape[0], *sizes, z.shape[3]))
        decoded: Array = decode(part)
        return decoded

    shape = jax.eval_shape(one, jnp.zeros(2, jnp.int32)).shape
    whole = jnp.zeros((shape[0], *(factor * size for size in z.shape[1:3]), shape[3]), jnp.float32)
    total = jnp.zeros((1, *whole.shape[1:3], 1), jnp.float32)

    def add(sums: tuple[Array, Array], this: tuple[Array, Array]) -> tuple[tuple[Array, Array], None]:
        corner, weight = this
        place = (0, factor * corner[0], factor * corner[1], 0)
        weight = weight[None, :, :, None]
        parts = (weight * one(corner), weight)
        sums = tuple(  # type: ignore[assignment]
            jax.lax.dynamic_update_slice(s, jax.lax.dynamic_slice(s, place, p.shape) + p, place)
            for s, p in zip(sums, parts, strict=True)
        )
        return sums, None

    places = jnp.asarray(corners, jnp.int32)
    (whole, total), _ = jax.lax.scan(add, (whole, total), (places, jnp.asarray(weights, jnp.float32)))
    return whole / total


def _starts(size: int, tile: int, overlap: int) -> list[int]:
    """Where tiles begin, the last one at the end."""
    return sorted({min(start, size - tile) for start in range(0, max(size - overlap, 1), tile - overlap)})


def _ramp(start: int, tile: int, size: int, overlap: int, factor: int) -> NDArray[np.float64]:
    """w_k of (1) along one axis, in pixels of the tile."""
    i, o = np.arange(factor * tile) + 0.5, factor * overlap
    rising = np.full(len(i), 1.0) if start == 0 else np.minimum(1.0, i / o)
    falling = np.full(len(i), 1.0) if start + tile == size else np.minimum(1.0, (factor * tile - i) / o)
    return np.minimum(rising, falling)
