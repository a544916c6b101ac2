"""Guidance in an interval of noise levels (Kynkaanniemi et al. 2024, https://arxiv.org/abs/2404.07724).

With rho = sigma/alpha, and whatever guidance stands before it,

    guided  if low < rho <= high,     plain  else.                                                   (1)

Outside, an evaluation costs the plain denoiser's alone.
"""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.broadcast import expand
from jaxdiff.denoiser import Cond, Denoiser, Memory, recall
from jaxdiff.guidance.base import Guidance, Guided, Nulls, guided_from
from jaxdiff.prediction import Prediction
from jaxdiff.process import Process
from jaxdiff.record import record


@record
class Interval(Guidance):
    """Guidance inside an interval of sigma/alpha alone; outside the plain prediction, at its cost.

    Args:
      low, high: the interval, equation (1); data.

    Raises:
      ValueError: an empty interval; (in a list) no guidance before it.

    >>> Interval(5.0, 0.2)
    Traceback (most recent call last):
    ...
    ValueError: guidance needs an interval of sigma/alpha with 0 <= low < high, got 5.0 and 0.2
    """

    low: ArrayLike = 0.0
    high: ArrayLike = jnp.inf
    follows_apart: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if any(isinstance(end, jax.core.Tracer) for end in (self.low, self.high)):
            return
        low, high = float(np.asarray(self.low)), float(np.asarray(self.high))
        if not 0 <= low < high:
            raise ValueError(f"guidance needs an interval of sigma/alpha with 0 <= low < high, got {low} and {high}")

    def __call__(self, denoise: Denoiser, plain: Denoiser, process: Process, nulls: Nulls) -> Denoiser:
        return Within(guided_from(denoise, plain, "interval"), process, self.low, self.high)


@record
class Within(Guided):
    """Equation (1).

    Args:
      guided: the guided denoiser.
      process: its process.
      low, high: the interval; data.
    """

    guided: Guided
    process: Process
    low: ArrayLike
    high: ArrayLike

    @property
    def plain(self) -> Denoiser:  # type: ignore[override]
        """The denoiser outside."""
        return self.guided.plain

    def __call__(self, x: Array, t: ArrayLike, cond: Cond | None = None) -> Prediction:
        return self.recall(x, t, cond, ())[0]

    def begin(self, x: Array, cond: Cond | None = None) -> Memory:
        """See the top of `jaxdiff.denoiser`."""
        return self.guided.begin_apart(x, cond)

    begin_apart = begin

    def recall(self, x: Array, t: ArrayLike, cond: Cond | None, memory: Memory) -> tuple[Prediction, Memory]:
        """See the top of `jaxdiff.denoiser`."""
        if jnp.ndim(t) == 0:  # inside the plain prediction is not needed
            return jax.lax.cond(
                self._inside(t),
                lambda: recall(self.guided, x, t, cond, memory),
                lambda: self.guided.alone(x, t, cond, memory),
            )
        guided, _, memory = self.both(x, t, cond, memory)
        return guided, memory

    def _inside(self, t: ArrayLike) -> Array:
        rho = jnp.exp(-0.5 * self.process.log_snr(t))
        return (rho > self.low) & (rho <= self.high)

    def both(self, x: Array, t: ArrayLike, cond: Cond | None, memory: Memory) -> tuple[Prediction, Prediction, Memory]:
        inside = self._inside(t)

        def within() -> tuple[Prediction, Prediction, Memory]:
            guided, plain, after = self.guided.both(x, t, cond, memory)
            return jax.tree.map(lambda a, b: jnp.where(expand(inside, a), a, b), guided, plain), plain, after

        def outside() -> tuple[Prediction, Prediction, Memory]:
            plain, after = self.guided.alone(x, t, cond, memory)
            return plain, plain, after

        return jax.lax.cond(inside.any(), within, outside)

    def alone(self, x: Array, t: ArrayLike, cond: Cond | None, memory: Memory) -> tuple[Prediction, Memory]:
        return self.guided.alone(x, t, cond, memory)
