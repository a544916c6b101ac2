"""Randomness that belongs to a sample, not to a batch.

Sample i owns the key ``fold_in(key, i)`` (`sample_keys`). Whatever it draws comes from that key alone, so the noise of
sample i is the same bit for bit at any batch size, device count or host count. Draws of different purpose are salted
apart (`salted_keys`): the prior, a sampler's steps, its correctors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.broadcast import expand, flatten

Noise = Callable[..., Array]
"""``noise(t, s, salt=0)``: standard normal, shaped like the samples, for the step from t to s; ``salt`` tells draws of
one step apart."""

NoiseSource = Callable[[Array | None, Array], Noise]
"""From the samples' keys and the samples to their noise: `step_noise`, `brownian_noise`."""

PRIOR, STEP, PATH = 0x7072696F, 0x73746570, 0x70617468  # "prio", "step", "path"


def as_key(key: Array | int | np.integer[Any]) -> Array:
    """A person's key, or the key of a seed.

    Raises:
      ValueError: several keys, a seed that is not from 0 to 2^32 - 1 (JAX would cut off its upper bits), or what is
        neither.

    >>> bool(as_key(3) == jax.random.key(3))
    True
    """
    if isinstance(key, int | np.integer) and not isinstance(key, bool):
        if not 0 <= key < 2**32:
            raise ValueError(f"a seed is from 0 to {2**32 - 1}, got {key}")
        return jax.random.key(key)
    if isinstance(key, Array | np.ndarray):
        raw = not jnp.issubdtype(key.dtype, jax.dtypes.prng_key)  # jax.random.PRNGKey: numbers in a last axis
        if (not raw and key.ndim == 0) or (raw and key.ndim == 1 and key.dtype == np.uint32):
            return jnp.asarray(key)
        raise ValueError(
            f"the key is one jax.random.key, or a seed, got {key.dtype} of shape {key.shape}: each sample's own key is "
            "made of it and of the sample's number"
        )
    raise ValueError(f"the key is a jax.random.key, or a seed (a whole number), got {key!r}")


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


def salted_keys(keys: Array, *salts: ArrayLike) -> Array:
    """The samples' keys for one purpose: each folded with ``salts`` in order, so that draws of different purposes have
    nothing in common.

    Args:
      keys: ``(B,)``, one a sample, from `sample_keys`.
      salts: integers, ``()`` or one a sample ``(B,)``: a constant of the purpose first, then what counts its draws.

    Returns:
      ``(B,)`` keys.

    Raises:
      ValueError: a single key, where one a sample is needed.

    >>> keys = sample_keys(jax.random.key(0), 0, 4)
    >>> white_noise(salted_keys(keys, PRIOR), (2,)).shape
    (4, 2)
    """
    _refuse_single(keys)
    for salt in salts:  # one for all, or one a key
        keys = jax.vmap(jax.random.fold_in)(keys, jnp.broadcast_to(jnp.asarray(salt), keys.shape[:1]))
    return keys


def _refuse_single(keys: Array) -> None:
    raw = not jnp.issubdtype(keys.dtype, jax.dtypes.prng_key)  # jax.random.PRNGKey: numbers in a last axis
    if keys.ndim - raw < 1:
        raise ValueError(
            "one key a sample is needed, (B,), and a single key came: pass sample_keys(key, 0, B), so that the noise "
            "of a sample does not depend on its batch"
        )


def white_noise(keys: Array, shape: tuple[int, ...], dtype: np.dtype | type | None = None) -> Array:
    """Standard normal noise, one draw a key: ``(B,)`` keys and the shape of one sample give ``(B, *shape)``.

    Raises:
      ValueError: a single key, where one a sample is needed.

    >>> white_noise(sample_keys(jax.random.key(0), 0, 2), (8, 8, 1)).shape
    (2, 8, 8, 1)
    """
    _refuse_single(keys)
    return jax.vmap(lambda key: jax.random.normal(key, shape, dtype))(keys)


def _fold_time(keys: Array, t: ArrayLike) -> Array:
    t = jnp.broadcast_to(jnp.asarray(t, jnp.result_type(float)), keys.shape[:1])
    words = flatten(jax.lax.bitcast_convert_type(t, jnp.uint32))  # (B, 1), or (B, 2) in float64
    for word in range(words.shape[1]):
        keys = salted_keys(keys, words[:, word])
    return keys


def _one_a_sample(keys: Array | None, x: Array) -> Array:
    if keys is None:
        raise ValueError("this sampler draws noise: pass keys=sample_keys(key, 0, batch), got keys=None")
    _refuse_single(keys)
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
        salted = salted_keys(_one_a_sample(keys, x), STEP, salt)
        dtype = x.dtype if jnp.issubdtype(x.dtype, jnp.floating) else jnp.result_type(float)  # x may be tokens
        return white_noise(_fold_time(_fold_time(salted, t), s), x.shape[1:], dtype)

    return noise


def brownian_noise(keys: Array | None, x: Array, depth: int | None = None) -> Noise:
    """As `step_noise`, of one Brownian motion W on [0, 1] a sample: z(t, s) = (W(s) - W(t))/sqrt|s - t|.

    Steps of any length then see the same path, z of a long step being made of those of the short ones within, so that
    two step sizes can be compared path by path (strong convergence). Another salt is another motion. z(t, t) is 0.

    W is a virtual Brownian tree: from W(0) = 0 and W(1) ~ N(0, I), the interval that holds the time is halved
    ``depth`` times, each middle drawn from the Brownian bridge,

        W((a + b)/2) ~ N((W(a) + W(b))/2, (b - a)/4),                                                (1)

    by a key of its place in the tree, which is that of the interval above folded with the side taken; nothing is
    stored. Between the last two ends, 2^-depth apart, the bridge is drawn at t itself. So increments have exactly the
    law of Brownian motion where no two of the times visited share such an interval, as all steps longer than 2^-depth
    do not; shorter ones get too much noise. A call costs 2 (depth + 2) draws like x.

    Args:
      keys: ``(B,)`` keys of the samples.
      x: the samples ``(B, ...)``, for their shape and dtype.
      depth: halvings; static. None is the resolution of times below 1: 24 in float32, 53 in float64.

    Raises:
      ValueError: (when the noise is drawn) there are no keys, or not one a sample; at once, a depth below 1.

    >>> x, keys = jnp.zeros((2, 3)), sample_keys(jax.random.key(0), 0, 2)
    >>> noise = brownian_noise(keys, x)
    >>> whole = noise(0.75, 0.25)
    >>> halves = (noise(0.75, 0.5) + noise(0.5, 0.25)) / jnp.sqrt(2.0)
    >>> bool(jnp.allclose(whole, halves, atol=1e-5))
    True

    Source: the virtual Brownian tree of Li et al. 2020, "Scalable Gradients for Stochastic Differential Equations",
    section 4.
    """
    if depth is not None and depth < 1:
        raise ValueError(f"depth is to be at least 1, got {depth}")
    left, right, middle = 1, 2, 3  # what a node's key is folded with

    def draw(nodes: Array) -> Array:
        return white_noise(salted_keys(nodes, middle), x.shape[1:], x.dtype)

    def path(nodes: Array, t: Array) -> Array:
        """W(t), ``(B, ...)``, at the times ``(B,)``."""

        def halve(_: ArrayLike, interval: tuple[Array, ...]) -> tuple[Array, ...]:
            nodes, a, width, at_a, at_b = interval
            half = 0.5 * width
            at_middle = 0.5 * (at_a + at_b) + (0.5 * jnp.sqrt(width)).astype(x.dtype) * draw(nodes)
            later = t >= a + half
            return (
                salted_keys(nodes, jnp.where(later, right, left)),
                jnp.where(later, a + half, a),
                half,
                jnp.where(expand(later, x), at_middle, at_a),
                jnp.where(expand(later, x), at_b, at_middle),
            )

        begin = (salted_keys(nodes, left), jnp.zeros_like(t), jnp.ones((), t.dtype), jnp.zeros_like(x), draw(nodes))
        levels = jnp.finfo(t.dtype).nmant + 1 if depth is None else depth
        nodes, a, width, at_a, at_b = jax.lax.fori_loop(0, levels, halve, begin)
        share = jnp.clip((t - a) / width, 0.0, 1.0)
        bridge = draw(_fold_time(nodes, t))
        spread = jnp.sqrt(width * share * (1.0 - share))
        return at_a + expand(share.astype(x.dtype), x) * (at_b - at_a) + expand(spread.astype(x.dtype), x) * bridge

    def noise(t: ArrayLike, s: ArrayLike, salt: ArrayLike = 0) -> Array:
        nodes = salted_keys(_one_a_sample(keys, x), PATH, salt)
        begin, end = (jnp.broadcast_to(jnp.asarray(time, jnp.result_type(float)), x.shape[:1]) for time in (t, s))
        length = jnp.abs(end - begin)
        scale = jnp.where(length == 0, 0.0, jax.lax.rsqrt(jnp.where(length == 0, 1.0, length)))
        return (path(nodes, end) - path(nodes, begin)) * expand(scale.astype(x.dtype), x)

    return noise
