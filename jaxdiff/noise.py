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

NoiseSource = Callable[[Array | None, Array], Noise]
"""From the samples' keys and the samples to their noise: `step_noise`, `brownian_noise`."""

PRIOR, STEP, PATH = 0x7072696F, 0x73746570, 0x70617468  # "prio", "step", "path"


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


def _one_a_sample(keys: Array | None, x: Array) -> Array:
    if keys is None:
        raise ValueError("this sampler draws noise: pass keys=sample_keys(key, 0, batch), got keys=None")
    if keys.shape[:1] != x.shape[:1]:
        raise ValueError(f"one key a sample is needed: {keys.shape[0]} keys came with samples of shape {x.shape}")
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
        keys_given = _one_a_sample(keys, x)
        salted = jax.vmap(lambda key: jax.random.fold_in(jax.random.fold_in(key, STEP), salt))(keys_given)
        return white_noise(_fold_time(_fold_time(salted, t), s), x.shape[1:], x.dtype)

    return noise


def brownian_noise(keys: Array | None, x: Array, depth: int = 24) -> Noise:
    """As `step_noise`, of one Brownian motion W on [0, 1] a sample: z(t, s) = (W(s) - W(t))/sqrt|s - t|.

    Steps of any length then see the same path, z of a long step being made of those of the short ones within, so that
    two step sizes can be compared path by path (strong convergence). Another salt is another motion.

    W is a virtual Brownian tree: from W(0) = 0 and W(1) ~ N(0, I), the interval that holds the time is halved
    ``depth`` times, each middle drawn from the Brownian bridge,

        W((a + b)/2) ~ N((W(a) + W(b))/2, (b - a)/4),                                                (1)

    by a key of its place in the tree; nothing is stored. Between the last two ends, 2^-depth apart, the bridge is drawn
    at t itself, so that increments much shorter than that are still of the right size. A call costs 2 (depth + 1) draws
    like x.

    Args:
      keys: ``(B,)`` keys of the samples.
      x: the samples ``(B, ...)``, for their shape and dtype.
      depth: halvings; static.

    Raises:
      ValueError: (when the noise is drawn) there are no keys, or not one a sample.

    >>> x, keys = jnp.zeros((2, 3)), sample_keys(jax.random.key(0), 0, 2)
    >>> noise = brownian_noise(keys, x)
    >>> whole = noise(0.75, 0.25)
    >>> halves = (noise(0.75, 0.5) + noise(0.5, 0.25)) / jnp.sqrt(2.0)
    >>> bool(jnp.allclose(whole, halves, atol=1e-5))
    True

    Source: the virtual Brownian tree of Li et al. 2020, "Scalable Gradients for Stochastic Differential Equations",
    section 4.
    """

    def path(keys: Array, t: Array) -> Array:
        """W(t), ``(B, ...)``."""
        float_type = t.dtype

        def halve(level: Array, ends: tuple[Array, ...]) -> tuple[Array, ...]:
            a, width, at_a, at_b, place = ends
            middle_noise = white_noise(jax.vmap(lambda key: fold(key, level, place))(keys), x.shape[1:], x.dtype)
            at_middle = 0.5 * (at_a + at_b) + (0.5 * jnp.sqrt(width)).astype(x.dtype) * middle_noise
            right = t >= a + 0.5 * width
            return (
                jnp.where(right, a + 0.5 * width, a),
                0.5 * width,
                jnp.where(right, at_middle, at_a),
                jnp.where(right, at_b, at_middle),
                2 * place + right.astype(jnp.uint32),
            )

        def fold(key: Array, level: ArrayLike, place: ArrayLike) -> Array:
            return jax.random.fold_in(jax.random.fold_in(key, level), place)

        first = jax.vmap(lambda key: fold(key, depth + 1, 0))(keys)
        begin = (
            jnp.zeros((), float_type),
            jnp.ones((), float_type),
            jnp.zeros_like(x),
            white_noise(first, x.shape[1:], x.dtype),
            jnp.zeros((), jnp.uint32),
        )
        a, width, at_a, at_b, place = jax.lax.fori_loop(0, depth, halve, begin)
        share = jnp.clip((t - a) / width, 0.0, 1.0)
        bridge = white_noise(
            _fold_time(jax.vmap(lambda key: fold(key, depth, place))(keys), t), x.shape[1:], x.dtype
        )
        spread = jnp.sqrt(width * share * (1.0 - share))
        return at_a + share.astype(x.dtype) * (at_b - at_a) + spread.astype(x.dtype) * bridge

    def noise(t: ArrayLike, s: ArrayLike, salt: ArrayLike = 0) -> Array:
        salted = jax.vmap(lambda key: jax.random.fold_in(jax.random.fold_in(key, PATH), salt))(_one_a_sample(keys, x))
        begin, end = (jnp.asarray(time, jnp.result_type(float)) for time in (t, s))
        return (path(salted, end) - path(salted, begin)) / jnp.sqrt(jnp.abs(end - begin)).astype(x.dtype)

    return noise
