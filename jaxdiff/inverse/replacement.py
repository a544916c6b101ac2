"""Replacement: a part of each sample is known, and the rest is drawn to go with it.

With k the known sample, m a mask that is 1 where it is to be drawn anew, and (x0, eps) a prediction at x,

    x0' = m x0 + (1 - m) k,        eps' = m eps + (1 - m) (x - alpha k)/sigma                        (1)

which is a prediction at x again, x = alpha x0' + sigma eps'. Where m is 0 the true x0 is given, so a deterministic
sampler keeps x = alpha k + sigma eps there with one eps, from its first step on: what the network sees of the known
part is always the known part at the noise of the time. That is the replacement of Song et al. 2021,
https://arxiv.org/abs/2011.13456, appendix I.2, written as a change of the denoiser: every sampler, guidance and
parameterization goes with it. It does not draw from the exact posterior (Trippe et al. 2023,
https://arxiv.org/abs/2206.04119).
"""

from __future__ import annotations

from typing import ClassVar

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.broadcast import expand
from jaxdiff.denoiser import Cond, Denoiser, Memory, begin, recall
from jaxdiff.guidance import Guidance
from jaxdiff.guidance.base import Nulls
from jaxdiff.prediction import Prediction
from jaxdiff.process import Process
from jaxdiff.record import record


@record
class Known(Guidance):
    """Equation (1), as an element of guidance; the last of a list.

    Args:
      x0: the known samples ``(B, ...)``.
      mask: ``(B, ...)``, one channel or all: 1 where samples are drawn anew, 0 where they are known.
    """

    x0: Array
    mask: Array
    follows_apart: ClassVar[bool] = True

    def __call__(self, denoise: Denoiser, plain: Denoiser, process: Process, nulls: Nulls) -> Denoiser:
        return KnownPart(denoise, process, self.x0, self.mask)


@record
class KnownPart:
    """The denoiser of equation (1).

    Args:
      denoise: the denoiser, guided or not.
      process: its process.
      x0: see `Known`.
      mask: likewise.

    >>> from jaxdiff import VP, GaussianDenoiser
    >>> part = KnownPart(GaussianDenoiser(VP(), 0.0, 1.0), VP(), jnp.ones((1, 2)), jnp.array([[0.0, 1.0]]))
    >>> part(jnp.zeros((1, 2)), 0.5).x0.tolist()
    [[1.0, 0.0]]
    """

    denoise: Denoiser
    process: Process
    x0: Array
    mask: Array

    def __call__(self, x: Array, t: ArrayLike, cond: Cond | None = None) -> Prediction:
        return self._replaced(x, t, self.denoise(x, t, cond))

    def begin(self, x: Array, cond: Cond | None = None) -> Memory:
        """See the top of `jaxdiff.denoiser`."""
        return begin(self.denoise, x, cond)

    def recall(self, x: Array, t: ArrayLike, cond: Cond | None, memory: Memory) -> tuple[Prediction, Memory]:
        """See the top of `jaxdiff.denoiser`."""
        found, after = recall(self.denoise, x, t, cond, memory)
        return self._replaced(x, t, found), after

    def _replaced(self, x: Array, t: ArrayLike, found: Prediction) -> Prediction:
        alpha, sigma = expand(self.process.alpha(t), x), expand(self.process.sigma(t), x)
        eps = (x - alpha * self.x0) / jnp.where(sigma > 0, sigma, 1)
        m = self.mask.astype(x.dtype)
        return found._replace(x0=m * found.x0 + (1 - m) * self.x0, eps=m * found.eps + (1 - m) * eps)
