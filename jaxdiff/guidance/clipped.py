"""Predictions limited to the data's range (Ho et al. 2020 clip so at every step)."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.denoiser import Cond, Denoiser, Memory, begin, recall
from jaxdiff.prediction import Prediction, from_x0
from jaxdiff.process import Process
from jaxdiff.record import field, record


@record
class Clipped:
    """Limits x0 to the data's range and lets eps follow.

    Args:
      denoise: any denoiser.
      process: its process.
      low: least value of the data.
      high: largest value of the data.
      apart: leave eps as it is, where guidance keeps the two apart (`Guidance.apart`); static.
    """

    denoise: Denoiser
    process: Process
    low: ArrayLike = -1.0
    high: ArrayLike = 1.0
    apart: bool = field(default=False, pytree_node=False)

    def __call__(self, x: Array, t: ArrayLike, cond: Cond | None = None) -> Prediction:
        return self.recall(x, t, cond, ())[0]

    def begin(self, x: Array, cond: Cond | None = None) -> Memory:
        """See the top of `jaxdiff.denoiser`."""
        return begin(self.denoise, x, cond)

    def recall(self, x: Array, t: ArrayLike, cond: Cond | None, memory: Memory) -> tuple[Prediction, Memory]:
        """See the top of `jaxdiff.denoiser`."""
        given, memory = recall(self.denoise, x, t, cond, memory)
        clipped = jnp.clip(given.x0, self.low, self.high)
        if self.apart:
            return given._replace(x0=clipped), memory
        return from_x0(self.process, x, t, clipped)._replace(variance=given.variance), memory
