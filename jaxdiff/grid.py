"""Grids of times for sampling: ``(n,)`` falling from near 1 to near 0.

n times are n - 1 steps and one last denoising, n network evaluations for a method of one evaluation a step. A grid ends
where sigma > 0: at ``t_min``, by default the process's `min_time`; it begins at ``t_max``, by default 1 or, where
sigma/alpha at 1 is beyond 200 (alpha(1) = 0 for `Flow`, `CosineVP`, zero terminal SNR), where it is 200 for the grids
in log-SNR and sigma.

Spacings, i = 0..n-1, u = i/(n-1): uniform in t; uniform in lambda = ln(alpha^2/sigma^2) (Lu et al. 2022); Karras'
rho-warp of sigma/alpha (Karras et al. 2022, equation 5); quadratic in t (Song et al. 2021 DDIM, appendix D.2);
trailing, t = 1 - i/n, that begins at the chain's end and leaves equal steps (Lin et al. 2024, section 3.3).
"""

from __future__ import annotations

import math

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.process import Process

RATIO_MAX = 200.0
"""Largest noise-to-signal ratio sigma/alpha at which grids in log-SNR or sigma begin by default."""


def _places(n: int) -> Array:
    if n < 1:
        raise ValueError(f"a grid needs at least one time, got n = {n}")
    return jnp.linspace(0.0, 1.0, n) if n > 1 else jnp.zeros(1)


def _ends(process: Process, t_max: ArrayLike | None, t_min: ArrayLike | None, limit: bool) -> tuple[Array, Array]:
    if t_max is None:
        t_max = process.time_of_log_snr(-2.0 * math.log(RATIO_MAX)) if limit else 1.0
    return jnp.asarray(t_max, jnp.result_type(float)), jnp.asarray(
        process.min_time() if t_min is None else t_min, jnp.result_type(float)
    )


def _on_chain(process: Process, ts: Array) -> Array:
    """The nearest times of a discrete chain, where it has at least as many."""
    steps = process.steps
    return ts if steps is None or len(ts) > steps else jnp.round(ts * steps) / steps


def _fix_ends(ts: Array, t_max: Array, t_min: Array) -> Array:
    return ts.at[-1].set(t_min).at[0].set(t_max)


def uniform_times(process: Process, n: int, *, t_max: ArrayLike | None = None, t_min: ArrayLike | None = None) -> Array:
    """Uniform in t from ``t_max`` (1) to ``t_min``. For a discrete chain of T >= n steps rounded to its own times.

    >>> from jaxdiff.discrete import DiscreteVP, linear_betas
    >>> [f"{t:.3f}" for t in uniform_times(DiscreteVP(linear_betas(1000)), 4)]
    ['1.000', '0.667', '0.334', '0.001']
    """
    first, last = _ends(process, t_max, t_min, limit=False)
    return _fix_ends(_on_chain(process, first + _places(n) * (last - first)), first, last)


def quadratic_times(
    process: Process, n: int, *, t_max: ArrayLike | None = None, t_min: ArrayLike | None = None
) -> Array:
    """Uniform in sqrt(t): short steps near the data."""
    first, last = _ends(process, t_max, t_min, limit=False)
    root = jnp.sqrt(first) + _places(n) * (jnp.sqrt(last) - jnp.sqrt(first))
    return _fix_ends(jnp.square(root), first, last)


def trailing_times(
    process: Process, n: int, *, t_max: ArrayLike | None = None, t_min: ArrayLike | None = None
) -> Array:
    """t_max (1 - i/n): equal steps, of which the last, from t_max/n to 0, is the last denoising. ``t_min`` bounds it
    below."""
    first, last = _ends(process, t_max, t_min, limit=False)
    if n < 1:
        raise ValueError(f"a grid needs at least one time, got n = {n}")
    return jnp.maximum(_on_chain(process, first * (1.0 - jnp.arange(n) / n)), last)


def log_snr_times(process: Process, n: int, *, t_max: ArrayLike | None = None, t_min: ArrayLike | None = None) -> Array:
    """Uniform in log-SNR."""
    first, last = _ends(process, t_max, t_min, limit=True)
    start, end = process.log_snr(first), process.log_snr(last)
    return _fix_ends(process.time_of_log_snr(start + _places(n) * (end - start)), first, last)


def karras_times(
    process: Process,
    n: int,
    *,
    rho: float = 7.0,
    t_max: ArrayLike | None = None,
    t_min: ArrayLike | None = None,
) -> Array:
    """(sigma/alpha)^(1/rho) linear in i."""
    first, last = _ends(process, t_max, t_min, limit=True)
    start, end = (jnp.exp(-0.5 * process.log_snr(t) / rho) for t in (first, last))
    root = start + _places(n) * (end - start)
    return _fix_ends(process.time_of_log_snr(-2.0 * rho * jnp.log(root)), first, last)
