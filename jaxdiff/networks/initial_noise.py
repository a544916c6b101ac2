"""Noise for initial weights: each element is a function of its place, so a device makes its own part alone.

Element i of weight w is made of the 32 bits

    b = y0 XOR y1,    (y0, y1) = Threefry-2x32(key, counter = (w, i))            (1)

with Threefry of 20 rounds (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3",
https://doi.org/10.1145/2063384.2063405, section 4), and of b's upper 23 bits m, 0 <= m < 2^23,

    u = (2 m + 1) / 2^23 - 1,  uniform in (-1, 1)                                (2)
    n = sqrt(2) erfinv(u),     normal                                            (3)

(1) is what `jax.random.bits` gives for w = 0, and (2) is exact in float32. Each weight does not call `jax.random` for
two reasons. Here the rounds stand one after the other, so XLA makes one loop without temporaries of each weight; on a
CPU `jax.random` loops over the rounds with whole arrays, which keeps copies of the weight and takes five times as long
to compile. And with a counter for each weight no key has to be derived for it.
"""

from __future__ import annotations

import functools
import math
from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

Kind = Literal["uniform", "normal"]

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA


def threefry(key: Array, high: Array, low: Array) -> tuple[Array, Array]:
    """Threefry-2x32 with 20 rounds: 64 bits of a counter -> 64 random bits.

    Args:
      key: ``(2,)`` uint32.
      high: of the counter, uint32 of any shape.
      low: of the counter, of the same shape.

    Returns:
      Two arrays of that shape, uint32.

    >>> zero = jnp.zeros((), jnp.uint32)
    >>> [hex(word) for word in threefry(jnp.zeros(2, jnp.uint32), zero, zero)]  # Random123's known answer
    ['0x6b200159', '0x99ba4efe']
    """
    keys = (key[0], key[1], key[0] ^ key[1] ^ jnp.uint32(_PARITY))
    x, y = high + keys[0], low + keys[1]
    for i in range(5):
        for rotation in _ROTATIONS[i % 2]:
            x = x + y
            y = x ^ (y << rotation | y >> 32 - rotation)
        x, y = x + keys[(i + 1) % 3], y + keys[(i + 2) % 3] + jnp.uint32(i + 1)
    return x, y


@functools.partial(jax.jit, static_argnames="kind")
def initial_noise(key: Array, weight: ArrayLike, scale: Array, kind: Kind) -> Array:
    """Equations (1) to (3) times ``scale``, the same bit for bit however the result is sharded.

    Args:
      key: a `jax.random.key`. Of one of more than 64 bits the first 64 count.
      weight: w, the number of the weight.
      scale: float32 of the weight's shape; at most 2^32 elements.
      kind: "uniform" in (-scale, scale), or "normal" of standard deviation ``scale``.

    Returns:
      float32 of that shape.

    Raises:
      ValueError: too many elements.

    >>> noise = initial_noise(jax.random.key(0), 3, jnp.full((1000, 100), 0.1), "normal")
    >>> abs(float(noise.mean())) < 0.001, abs(float(noise.std()) - 0.1) < 0.001
    (True, True)
    """
    if (size := math.prod(scale.shape)) > 2**32:
        raise ValueError(f"a weight of shape {scale.shape} has {size} elements: noise tells at most 2^32 apart")
    place, stride = jnp.zeros(scale.shape, jnp.uint32), 1
    for axis in reversed(range(scale.ndim)):
        place = place + jax.lax.broadcasted_iota(jnp.uint32, scale.shape, axis) * jnp.uint32(stride)
        stride *= scale.shape[axis]
    words = jax.random.key_data(key).ravel()[:2]
    first, second = threefry(words, jnp.full_like(place, weight), place)
    uniform = ((first ^ second) >> 9).astype(jnp.float32) * 2.0**-22 + (2.0**-23 - 1)
    if kind == "uniform":
        return scale * uniform
    return scale * math.sqrt(2) * jax.lax.erf_inv(uniform)  # sqrt(2) with the scale: one product, rounded alike
