"""Thresholds on the predicted data (Saharia et al. 2022, "Imagen", https://arxiv.org/abs/2205.11487, section 2.3).

Guidance leads x0 out of the data's range [-L, L]. A static threshold cuts it off there,

    x0 = clip(x0, -L, L),                                                                            (1)

which saturates. A dynamic one divides by the p-quantile s of |x0| over a sample, where that is above L:

    x0 = clip(x0, -s, s) L/s,     s = max(quantile_p |x0|, L).                                       (2)

eps follows. A model whose data have a range limits its predictions by (1) at the end of the list as it is
(`Defaults.clip`).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.broadcast import expand, flatten
from jaxdiff.denoiser import Cond, Denoiser, Memory, begin, recall
from jaxdiff.guidance.base import Guidance, Nulls
from jaxdiff.guidance.clipped import Clipped
from jaxdiff.prediction import Prediction, from_x0
from jaxdiff.process import Process
from jaxdiff.record import record


@record
class Static(Guidance):
    """A static threshold, equation (1).

    Args:
      limit: L, above 0; data.

    Raises:
      ValueError: another limit.

    >>> Static(0.0)
    Traceback (most recent call last):
    ...
    ValueError: a threshold has a limit above 0, got 0.0
    """

    limit: ArrayLike = 1.0

    def __post_init__(self) -> None:
        _check_limit(self.limit)

    def __call__(self, denoise: Denoiser, plain: Denoiser, process: Process, nulls: Nulls) -> Denoiser:
        return Clipped(denoise, process, -jnp.asarray(self.limit), self.limit)


@record
class Dynamic(Guidance):
    """A dynamic threshold, equation (2).

    Args:
      quantile: p, above 0 and at most 1; data.
      limit: L, above 0; data.

    Raises:
      ValueError: numbers out of range.

    >>> Dynamic(99.5)
    Traceback (most recent call last):
    ...
    ValueError: a dynamic threshold has a quantile above 0 and at most 1, such as 0.995, got 99.5
    """

    quantile: ArrayLike = 0.995
    limit: ArrayLike = 1.0

    def __post_init__(self) -> None:
        _check_limit(self.limit)
        if not isinstance(self.quantile, jax.core.Tracer) and not 0 < float(np.asarray(self.quantile)) <= 1:
            raise ValueError(
                f"a dynamic threshold has a quantile above 0 and at most 1, such as 0.995, got {self.quantile}"
            )

    def __call__(self, denoise: Denoiser, plain: Denoiser, process: Process, nulls: Nulls) -> Denoiser:
        return Thresholded(denoise, process, self.quantile, self.limit)


def _check_limit(limit: ArrayLike) -> None:
    if not isinstance(limit, jax.core.Tracer) and not float(np.asarray(limit)) > 0:
        raise ValueError(f"a threshold has a limit above 0, got {limit}")


@record
class Thresholded:
    """Equation (2).

    Args:
      denoise: any denoiser.
      process: its process.
      quantile: p.
      limit: L.
    """

    denoise: Denoiser
    process: Process
    quantile: ArrayLike
    limit: ArrayLike

    def __call__(self, x: Array, t: ArrayLike, cond: Cond | None = None) -> Prediction:
        return self.recall(x, t, cond, ())[0]

    def begin(self, x: Array, cond: Cond | None = None) -> Memory:
        """See the top of `jaxdiff.denoiser`."""
        return begin(self.denoise, x, cond)

    def recall(self, x: Array, t: ArrayLike, cond: Cond | None, memory: Memory) -> tuple[Prediction, Memory]:
        """See the top of `jaxdiff.denoiser`."""
        given, memory = recall(self.denoise, x, t, cond, memory)
        limit = jnp.asarray(self.limit, x.dtype)
        most = jnp.quantile(jnp.abs(flatten(given.x0)), jnp.asarray(self.quantile, x.dtype), axis=1)  # (B,)
        s = expand(jnp.maximum(most, limit), x)
        x0 = jnp.clip(given.x0, -s, s) * (limit / s)
        return from_x0(self.process, x, t, x0)._replace(variance=given.variance), memory
