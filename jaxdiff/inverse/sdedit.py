"""SDEdit: a sample that begins as a picture with noise on it.

Meng et al. 2022, "SDEdit: Guided Image Synthesis and Editing with Stochastic Differential Equations",
https://arxiv.org/abs/2108.01073, algorithm 1. Of a grid t_1 > ... > t_n the last m = floor(strength n) times are
walked, from

    x = alpha(t) x0 + sigma(t) eps,     t = t_{n-m+1}                                                (1)

Strength 1 walks the whole grid, from noise in which nothing of the picture is left: a model then draws a fresh sample.
Less noise keeps more of the picture, and strength 0 walks no time: it is the picture as it is.
"""

from __future__ import annotations

import math

from jax import Array
from jax.typing import ArrayLike

from jaxdiff.noise import PRIOR, salted_keys, white_noise
from jaxdiff.process import Process


def remaining(ts: Array, strength: float) -> Array:
    """The times that are walked: the last floor(strength n) of n.

    Args:
      ts: ``(n,)`` falling.
      strength: from 0, where no time is left, to 1.

    Raises:
      ValueError: a strength out of range, or above 0 and so small that no time is left.

    >>> import jax.numpy as jnp
    >>> remaining(jnp.array([1.0, 0.75, 0.5, 0.25]), 0.5).tolist()
    [0.5, 0.25]
    """
    if isinstance(strength, bool) or not isinstance(strength, int | float) or not 0 <= strength <= 1:
        raise ValueError(f"strength is from 0 (the picture as it is) to 1 (nothing of it), got {strength!r}")
    kept = math.floor(strength * len(ts) + 1e-6)
    if strength > 0 and not kept:
        raise ValueError(f"strength {strength} of {len(ts)} steps leaves none: raise it, or the steps")
    return ts[len(ts) - kept :]


def noised(process: Process, x0: Array, t: ArrayLike, keys: Array) -> Array:
    """Equation (1), with the noise that `Process.prior_sample` draws of the same keys.

    Args:
      process: the process.
      x0: ``(B, ...)``.
      t: one time.
      keys: ``(B,)``, one a sample.
    """
    return process.alpha(t) * x0 + process.sigma(t) * white_noise(salted_keys(keys, PRIOR), x0.shape[1:])
