"""A plan walked the other way: from data to the noise that its sampler makes them of.

    x = alpha x0 at the last time, then the sampler's steps from ts[-1] up to ts[0]

A sampler whose falling times undo its rising ones needs its state at the turn (`jaxdiff.inverse.Inverted`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import NamedSharding
from numpy.typing import NDArray

from jaxdiff.denoiser import begin
from jaxdiff.inverse import Inverted
from jaxdiff.networks.placement import samples_over
from jaxdiff.plan import Plan, gathered, rows_of, split_over
from jaxdiff.sampling import integrate
from jaxdiff.sampling.checks import refuse_noise_on_rising_times


@functools.partial(jax.jit, static_argnames=("sharding",))
def integrated(plan: Plan, ts: Array, *, sharding: NamedSharding | None = None) -> tuple[Array, Any]:
    """x at the last of some times from the plan's x at their first, by its sampler, and the sampler's state;
    ``sharding`` as in `draw`."""
    plan, _ = split_over(plan, None, sharding)
    with contextlib.nullcontext() if sharding is None else samples_over(sharding):
        found = integrate(plan.sampler, plan.denoise, None, jnp.asarray(plan.x), ts, plan.cond or None)
    return gathered(found, sharding)


def inverted(
    plan: Plan, x0: Array, size: int, *, sharding: NamedSharding | None = None
) -> NDArray[np.float32] | Inverted:
    """x at the plan's first time, from alpha x0 at its last, and the state of a sampler that needs it for the way back.

    Args:
      plan: of B samples, whose times are walked the other way.
      x0: ``(B, ...)``.
      size: of the batch, B or more.
      sharding: as in `draw`.

    Raises:
      ValueError: a sampler that draws noise, or an exact one with a denoiser that remembers earlier evaluations.
    """
    rising, n = plan.ts[::-1], len(x0)
    refuse_noise_on_rising_times(plan.sampler, rising)
    plan.sampler.check(rising)
    filled = rows_of(dataclasses.replace(plan, x=plan.plain.process.alpha(rising[0]) * x0), slice(0, n), size, n)
    exact = plan.sampler.exact_inverse
    if exact and jax.tree.leaves(jax.eval_shape(lambda x: begin(filled.denoise, x, filled.cond or None), filled.x)):
        raise ValueError(
            f"{type(plan.sampler).__name__} undoes its steps with the same evaluations alone, and a part of this "
            "guidance reuses earlier ones: leave that out, or use ddim"
        )
    x, state = integrated(filled, rising, sharding=sharding)
    if not exact:
        return np.asarray(x)[:n]
    return Inverted(x[:n], jax.tree.map(lambda leaf: leaf[:n] if leaf.ndim else leaf, state), plan.sampler, plan.ts)
