"""Times against images.

A time is a scalar ``()`` shared by a batch, or one a sample ``(B,)``. What depends on time alone (alpha, sigma,
weights) has the shape of the time; before it meets an array of samples ``(B, ...)`` it gains trailing axes of length
one. This is the only place where that happens.
"""

from __future__ import annotations

import math

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike


def expand(t: ArrayLike, x: Array) -> Array:
    """Gives ``t`` trailing axes of length one, so that it multiplies ``x`` sample by sample.

    Args:
      t: ``()`` or ``(B,)``.
      x: ``(B, ...)``; for a scalar ``t`` any shape.

    Returns:
      ``t`` itself when scalar, else ``(B, 1, ..., 1)`` with the rank of ``x``.

    Raises:
      ValueError: ``t`` is neither a scalar nor one number a sample of ``x``.

    >>> expand(jnp.ones(3), jnp.zeros((3, 8, 8, 1))).shape
    (3, 1, 1, 1)
    """
    t = jnp.asarray(t)
    if t.ndim == 0:
        return t
    if x.ndim == 0 or t.shape != x.shape[:1]:
        raise ValueError(
            f"a time of shape {t.shape} does not fit samples of shape {x.shape}: "
            f"pass a scalar or one time a sample, {x.shape[:1]}"
        )
    return t.reshape(t.shape + (1,) * (x.ndim - 1))


def per_sample(t: ArrayLike, x: Array) -> Array:
    """One time a sample: ``(B,)`` from ``()`` or ``(B,)``.

    >>> per_sample(0.5, jnp.zeros((2, 3))).tolist()
    [0.5, 0.5]
    """
    t = jnp.asarray(t, jnp.result_type(float))
    return jnp.broadcast_to(t, x.shape[:1]) if t.ndim == 0 else t


def flatten(x: Array) -> Array:
    """All axes but the first as one: ``(B, ...) -> (B, D)``, for no samples too.

    >>> flatten(jnp.zeros((0, 8, 8, 1))).shape
    (0, 64)
    """
    return x.reshape(x.shape[0], math.prod(x.shape[1:]))


def sum_features(x: Array) -> Array:
    """Sum over all axes but the first: ``(B, ...) -> (B,)``."""
    return flatten(x).sum(axis=1)


def mean_features(x: Array) -> Array:
    """Mean over all axes but the first: ``(B, ...) -> (B,)``."""
    return flatten(x).mean(axis=1)
