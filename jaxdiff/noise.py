"""Randomness that belongs to a sample, not to a batch.

Sample i owns the key ``fold_in(key, i)`` (`sample_keys`). Whatever it draws comes from that key alone, so the noise of
sample i is the same bit for bit at any batch size, device count or host count. Draws of different purpose are salted
apart: the prior, a sampler's steps, its correctors.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

Noise = Callable[..., Array]
"""``noise(t, s, salt=0)``: standard normal, shaped like the samples, for the step from t to s; ``salt`` tells draws of
one step apart."""

PRIOR, STEP = 0x7072696F, 0x73746570  # "prio", "step"


def sample_keys(key: Array, start: ArrayLike, n: int) -> Array:
    """Keys of the samples ``start, ..., start + n - 1``: key i depends on ``key`` and i alone.

    Args:
      key: the run's key, `jax.random.key`.
      start: index of the first sample, an integer in [0, 2^32 - n).
      n: how many.

    Returns:
      ``(n,)`` keys.

    >>> whole = sample_keys(jax.random.key(0), 0, 8)
    >>> part = sample_keys(jax.random.key(0), 4, 4)
    >>> bool((jax.random.key_data(whole[4:]) == jax.random.key_data(part)).all())
    True
    """
    indices = jnp.asarray(start, jnp.uint32) + jnp.arange(n, dtype=jnp.uint32)
    return jax.vmap(jax.random.fold_in, (None, 0))(key, indices)


def white_noise(keys: Array, shape: tuple[int, ...], dtype: np.dtype | type | None = None) -> Array:
    """Standard normal noise, one draw a key: ``(B,)`` keys and the shape of one sample give ``(B, *shape)``.

    >>> white_noise(sample_keys(jax.random.key(0), 0, 2), (8, 8, 1)).shape
    (2, 8, 8, 1)
    """
    return jax.vmap(lambda key: jax.random.normal(key, shape, dtype))(keys)


def _fold_time(keys: Array, t: ArrayLike) -> Array:
    t = jnp.broadcast_to(jnp.asarray(t, jnp.result_type(float)), keys.shape[:1])
    words = jax.lax.bitcast_convert_type(t, jnp.uint32).reshape(t.shape[0], -1)  # (B, 1), or (B, 2) in float64
    for word in range(words.shape[1]):
        keys = jax.vmap(jax.random.fold_in)(keys, words[:, word])
    return keys


def step_noise(keys: Array | None, x: Array) -> Noise:
    """The ``noise(t, s, salt=0)`` that `jaxdiff.sampling.integrate` hands to a sampler.

    A draw is a function of the sample's key, the two times and the salt: steps need no counter, and a step repeated by
    hand draws the same noise. A method that visits the same (t, s) again must change the salt.

    Args:
      keys: ``(B,)`` keys of the samples; None for deterministic samplers.
      x: the samples ``(B, ...)``, for their shape and dtype.

    Raises:
      ValueError: (when the noise is drawn) there are no keys, or not one a sample.
    """

    def noise(t: ArrayLike, s: ArrayLike, salt: ArrayLike = 0) -> Array:
        if keys is None:
            raise ValueError("this sampler draws noise: pass keys=sample_keys(key, 0, batch), got keys=None")
        if keys.shape[:1] != x.shape[:1]:
            raise ValueError(f"one key a sample is needed: {keys.shape[0]} keys came with samples of shape {x.shape}")
        salted = jax.vmap(lambda key: jax.random.fold_in(jax.random.fold_in(key, STEP), salt))(keys)
        return white_noise(_fold_time(_fold_time(salted, t), s), x.shape[1:], x.dtype)

    return noise
