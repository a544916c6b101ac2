"""DDNM: the range of A is measured, its null space is drawn.

Wang et al. 2022, "Zero-Shot Image Restoration Using Denoising Diffusion Null-Space Model",
https://arxiv.org/abs/2212.00490. Of a prediction x0 the part that A sees is replaced by what was measured (their
equation 13), and eps follows so that x = alpha x0' + sigma eps' still holds,

    x0' = A+ y + (I - A+ A) x0 = x0 + A+ (y - A x0)                                                  (1)

so that A x0' = y for every y in the range of A: the last denoising gives a consistent sample whatever the sampler.
Their algorithm 1 takes DDPM's step with x0'; eps there is that of x0' too, as it is the posterior q(x_s | x_t, x0').
For a mask it is `Known`. An operator that is not linear but has A(A+ y) = y, such as rounding, takes
x0' = A+ y + x0 - A+ A(x0).
"""

from __future__ import annotations

from typing import ClassVar

from jax import Array
from jax.typing import ArrayLike

from jaxdiff.denoiser import Cond, Denoiser, Memory, begin, recall
from jaxdiff.guidance import Guidance
from jaxdiff.guidance.base import Nulls
from jaxdiff.inverse.method import Measured, Method, Needs
from jaxdiff.inverse.problem import Problem
from jaxdiff.prediction import Prediction, moved
from jaxdiff.process import Process
from jaxdiff.record import record
from jaxdiff.sampling import Sampler


@record
class Consistent(Measured):
    """Equation (1), as an element of guidance; the last of a list."""

    def __call__(self, denoise: Denoiser, plain: Denoiser, process: Process, nulls: Nulls) -> Denoiser:
        return ConsistentPart(denoise, process, self.problem)


@record
class ConsistentPart:
    """The denoiser of equation (1).

    Args:
      denoise: the denoiser, guided or not.
      process: its process.
      problem: what was measured.

    >>> import jax.numpy as jnp
    >>> from jaxdiff import VP, GaussianDenoiser
    >>> from jaxdiff.inverse.operators import Box
    >>> problem = Problem(Box((2, 2, 1), 2), jnp.full((1, 1, 1, 1), 3.0))
    >>> part = ConsistentPart(GaussianDenoiser(VP(), 0.0, 1.0), VP(), problem)
    >>> part(jnp.zeros((1, 2, 2, 1)), 0.5).x0.ravel().tolist()
    [3.0, 3.0, 3.0, 3.0]
    """

    denoise: Denoiser
    process: Process
    problem: Problem

    def __call__(self, x: Array, t: ArrayLike, cond: Cond | None = None) -> Prediction:
        return self.recall(x, t, cond, ())[0]

    def begin(self, x: Array, cond: Cond | None = None) -> Memory:
        """See the top of `jaxdiff.denoiser`."""
        return begin(self.denoise, x, cond)

    def recall(self, x: Array, t: ArrayLike, cond: Cond | None, memory: Memory) -> tuple[Prediction, Memory]:
        """See the top of `jaxdiff.denoiser`."""
        found, after = recall(self.denoise, x, t, cond, memory)
        operator, y = self.problem.operator, self.problem.y.astype(x.dtype)
        if operator.linear:
            return moved(self.process, t, found, operator.pinv(y - operator(found.x0))), after
        return moved(self.process, t, found, operator.pinv(y) - operator.pinv(operator(found.x0))), after


@record
class DDNM(Method):
    """The measured part of each prediction is replaced by the measurement, equation (1).

    One evaluation a step. Exact in A x0 = y; the null space is drawn as the sampler draws it, not from the posterior.
    """

    needs: ClassVar[Needs] = "pinv"
    usual: ClassVar[str] = "ddpm"

    def made(self, problem: Problem, process: Process, sampler: Sampler) -> tuple[tuple[Guidance, ...], Sampler]:
        return (Consistent(problem),), sampler
