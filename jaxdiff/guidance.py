"""Guidance: functions from denoiser to denoiser. None of them touches a network or a sampler.

Classifier-free guidance (Ho & Salimans 2022) extrapolates from the unconditional prediction to the conditional one,

    eps_w = eps(x, null) + w (eps(x, cond) - eps(x, null)),                                          (1)

and likewise x0, which is affine in eps. w = 1 is the plain conditional model (the paper's weight is w - 1), w = 0 the
unconditional one.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.broadcast import expand
from jaxdiff.denoiser import Cond, Denoiser
from jaxdiff.prediction import Prediction, from_x0
from jaxdiff.process import Process
from jaxdiff.record import record


@record
class ClassifierFree:
    """Equation (1), both branches in one call of twice the batch.

    Args:
      denoise: a denoiser trained with its condition dropped at random.
      weight: w, ``()`` or one a sample ``(B,)``; data, so changing it compiles nothing.
      null: for each key of ``cond`` that is guided, what stands for "no condition": a value, such as the null label's
        id.

    A learned variance is the conditional branch's. Keys of ``cond`` without a null are given to both branches.

    Raises:
      ValueError: (when called) without ``cond``, or without a key that ``null`` names.
    """

    denoise: Denoiser
    weight: ArrayLike
    null: Mapping[str, ArrayLike]

    def __call__(self, x: Array, t: ArrayLike, cond: Cond | None = None) -> Prediction:
        missing = [name for name in self.null if name not in (cond or {})]
        if cond is None or missing:
            raise ValueError(f"guidance needs cond with {sorted(self.null)}, got {sorted(cond) if cond else cond}")
        n = x.shape[0]
        both = {
            name: jnp.concatenate(
                [value, jnp.broadcast_to(jnp.asarray(self.null.get(name, value), value.dtype), value.shape)]
            )
            for name, value in cond.items()
        }
        t = jnp.asarray(t)
        given = self.denoise(jnp.concatenate([x, x]), t if t.ndim == 0 else jnp.concatenate([t, t]), both)
        extra = expand(jnp.asarray(self.weight, x.dtype) - 1.0, x)
        x0, eps = (part[:n] + extra * (part[:n] - part[n:]) for part in (given.x0, given.eps))
        return Prediction(x0, eps, None if given.variance is None else given.variance[:n])


@record
class Clipped:
    """Limits x0 to the data's range and lets eps follow (Ho et al. 2020 clip so at every step).

    Args:
      denoise: any denoiser.
      process: its process.
      low: least value of the data.
      high: largest value of the data.
    """

    denoise: Denoiser
    process: Process
    low: ArrayLike = -1.0
    high: ArrayLike = 1.0

    def __call__(self, x: Array, t: ArrayLike, cond: Cond | None = None) -> Prediction:
        given = self.denoise(x, t, cond)
        clipped = jnp.clip(given.x0, self.low, self.high)
        return from_x0(self.process, x, t, clipped)._replace(variance=given.variance)
