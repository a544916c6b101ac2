"""Grids of times for sampling: ``(n,)`` falling from near 1 to near 0.

n times are n - 1 steps and one last denoising, n network evaluations for a method of one evaluation a step. A grid ends
where sigma > 0: at ``t_min``, by default the process's `min_time`. It begins at ``t_max``, by default the process's own
end t = 1; for the grids in log-SNR and sigma its `max_time`, which is below 1 where alpha(1) = 0 (`Flow`, `CosineVP`,
zero terminal SNR): there sigma/alpha = 200 sigma(1). Start from ``process.prior_sample(keys, shape, ts[0])``.

Spacings, i = 0..n-1, u = i/(n-1): uniform in t; uniform in lambda = ln(alpha^2/sigma^2) (Lu et al. 2022); Karras'
rho-warp of sigma/alpha (Karras et al. 2022, equation 5); quadratic in t (Song et al. 2021 DDIM, appendix D.2);
trailing, t = 1 - i/n, that begins at the chain's end and leaves equal steps (Lin et al. 2024, section 3.3); shifted, by
equation (1) of `jaxdiff.shifted` uniform (Esser et al. 2024, equation 23).
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.process import Process
from jaxdiff.shifted import warped


def _places(n: int) -> Array:
    if n < 1:
        raise ValueError(f"a grid needs at least one time, got n = {n}")
    return jnp.linspace(0.0, 1.0, n) if n > 1 else jnp.zeros(1)


def _limits(process: Process, t_max: ArrayLike | None, t_min: ArrayLike | None, limit: bool) -> tuple[Array, Array]:
    if t_max is None:
        t_max = process.max_time() if limit else 1.0
    return jnp.asarray(t_max, jnp.result_type(float)), jnp.asarray(
        process.min_time() if t_min is None else t_min, jnp.result_type(float)
    )


def _on_chain(process: Process, ts: Array) -> Array:
    """The nearest times of a discrete chain, but the first and the last as they are; all of them as they are where two
    would become one."""
    if process.steps is None:
        return ts
    nearest = _pinned(_nearest(process, ts), ts[0], ts[-1])
    return jnp.where((jnp.diff(nearest) < 0).all(), nearest, ts)


def _nearest(process: Process, t: Array) -> Array:
    return t if process.steps is None else jnp.floor(t * process.steps + 0.5) / process.steps


def _pinned(ts: Array, t_max: Array, t_min: Array) -> Array:
    return ts.at[-1].set(t_min).at[0].set(t_max)


def uniform_times(process: Process, n: int, *, t_max: ArrayLike | None = None, t_min: ArrayLike | None = None) -> Array:
    """Uniform in t from ``t_max`` (1) to ``t_min``. For a discrete chain that has so many, its own times between them.

    >>> from jaxdiff.discrete import DiscreteVP, linear_betas
    >>> [f"{t:.3f}" for t in uniform_times(DiscreteVP(linear_betas(1000)), 4)]
    ['1.000', '0.667', '0.334', '0.001']
    """
    first, last = _limits(process, t_max, t_min, limit=False)
    return _on_chain(process, _pinned(first + _places(n) * (last - first), first, last))


def quadratic_times(
    process: Process, n: int, *, t_max: ArrayLike | None = None, t_min: ArrayLike | None = None
) -> Array:
    """Uniform in sqrt(t): short steps near the data."""
    first, last = _limits(process, t_max, t_min, limit=False)
    root = jnp.sqrt(first) + _places(n) * (jnp.sqrt(last) - jnp.sqrt(first))
    return _pinned(jnp.square(root), first, last)


def trailing_times(
    process: Process, n: int, *, t_max: ArrayLike | None = None, t_min: ArrayLike | None = None
) -> Array:
    """t_max (1 - i/n): equal steps, of which the last, from t_max/n to 0, is the last denoising. Where t_max/n is below
    ``t_min``, equal steps from t_max to ``t_min``."""
    first, last = _limits(process, t_max, t_min, limit=False)
    places, least = _places(n), first / max(n, 1)
    ts = jnp.where(least < last, first + places * (last - first), first * (1.0 - jnp.arange(n) / n))
    return _on_chain(process, _pinned(ts, first, jnp.maximum(_nearest(process, least), last)))


def log_snr_times(process: Process, n: int, *, t_max: ArrayLike | None = None, t_min: ArrayLike | None = None) -> Array:
    """Uniform in log-SNR."""
    first, last = _limits(process, t_max, t_min, limit=True)
    start, end = process.log_snr(first), process.log_snr(last)
    return _pinned(process.time_of_log_snr(start + _places(n) * (end - start)), first, last)


def karras_times(
    process: Process,
    n: int,
    *,
    rho: float = 7.0,
    t_max: ArrayLike | None = None,
    t_min: ArrayLike | None = None,
) -> Array:
    """(sigma/alpha)^(1/rho) linear in i."""
    first, last = _limits(process, t_max, t_min, limit=True)
    start, end = (jnp.exp(-0.5 * process.log_snr(t) / rho) for t in (first, last))
    root = start + _places(n) * (end - start)
    return _pinned(process.time_of_log_snr(-2.0 * rho * jnp.log(root)), first, last)


def shifted_times(
    process: Process,
    n: int,
    *,
    shift: ArrayLike = 3.0,
    t_max: ArrayLike | None = None,
    t_min: ArrayLike | None = None,
) -> Array:
    """Uniform, then shifted: s u/(1 + (s - 1) u) with u even. s above 1 spends more of the times on noise.

    >>> from jaxdiff.schedule import Flow
    >>> [f"{t:.3f}" for t in shifted_times(Flow(), 3, shift=3.0)]
    ['1.000', '0.750', '0.002']
    """
    first, last = _limits(process, t_max, t_min, limit=False)
    begin, end = (warped(t, 1.0 / jnp.asarray(shift, t.dtype)) for t in (first, last))
    return _on_chain(process, _pinned(warped(begin + _places(n) * (end - begin), shift), first, last))
