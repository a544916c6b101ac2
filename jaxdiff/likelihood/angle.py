"""The angle of a process, and the times between which likelihoods are taken."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.denoiser import Cond, Denoiser
from jaxdiff.process import Process, as_time


def angle(process: Process, t: ArrayLike) -> Array:
    """phi(t) = arctan(sigma/alpha), from 0 where there is no noise to pi/2 where there is no signal.

    >>> from jaxdiff.schedule import CosineVP, Flow
    >>> print(f"{angle(CosineVP(), 0.5):.4f} {angle(Flow(), 0.5):.4f} {angle(Flow(), 1.0):.4f}")
    0.7854 0.7854 1.5708
    """
    return jnp.arctan2(process.sigma(t), process.alpha(t))


def time_of_angle(process: Process, phi: Array) -> Array:
    """The inverse of `angle`, limited to [0, 1]."""
    # the cosine of pi/2 in floating point may be negative
    return process.time_of_log_snr(2.0 * (jnp.log(jnp.maximum(jnp.cos(phi), 0.0)) - jnp.log(jnp.sin(phi))))


def time_limits(process: Process, t_min: ArrayLike | None, t_max: ArrayLike | None) -> tuple[Array, Array]:
    """The least and the largest time of a likelihood.

    Args:
      process: the process.
      t_min: None for the process's `min_time`.
      t_max: None for the process's `max_time`.

    Raises:
      ValueError: times that are known and not 0 <= t_min < t_max <= 1, or sigma(t_min) = 0.
    """
    first = as_time(process.min_time() if t_min is None else t_min)
    last = as_time(process.max_time() if t_max is None else t_max)
    if not _traced(process, first, last):
        with jax.ensure_compile_time_eval():
            low, high, clean = float(first), float(last), bool(process.sigma(first) == 0)
        if not 0.0 <= low < high <= 1.0:
            raise ValueError(f"t_min and t_max are to be 0 <= t_min < t_max <= 1, got {low:g} and {high:g}")
        if clean:
            raise ValueError(
                f"t_min = {low:g}, where sigma = 0 for {type(process).__name__}: the data have no density there; "
                "leave t_min out, or give a positive time"
            )
    return first, last


def refuse_blind(denoise: Denoiser, process: Process, x: Array, t: ArrayLike, cond: Cond | None) -> None:
    """Lets a denoiser made of eps refuse a known time where alpha = 0: it says nothing of x0 there.

    Raises:
      ValueError: as `jaxdiff.prediction.from_eps`.
    """
    if _traced(process, t):
        return
    with jax.ensure_compile_time_eval():
        no_signal = bool(process.alpha(t) == 0)
    if no_signal:
        jax.eval_shape(lambda x: denoise(x, float(np.asarray(t)), cond), x)


def _traced(*values: object) -> bool:
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(values))
