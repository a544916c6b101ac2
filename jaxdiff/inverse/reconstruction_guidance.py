"""Reconstruction guidance: the gradient of |y - A x0(x)|^2.

Ho et al. 2022, "Video Diffusion Models", https://arxiv.org/abs/2204.03458, section 3.1. With p(y | x) taken for
N(A x0(x), (sigma^2/alpha^2) I), (2) of `jaxdiff.inverse.gradient` is their equation 7, times a weight w > 1 that they
found to be needed,

    x0' = x0 - (w alpha/2) grad_x |y - A x0(x)|^2 = x0 + w alpha J' A' (y - A x0(x)).                (1)

They also replace what is measured itself. Here that is (1) of `jaxdiff.inverse.ddnm` on x0' where the operator has a
pseudo-inverse. It takes no notice of noise; w = 0 is DDNM. Operators that are not linear have the derivative of A at
x0(x) in the place of A.
"""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.broadcast import expand
from jaxdiff.denoiser import Cond, Denoiser, Memory, begin
from jaxdiff.guidance import Guidance
from jaxdiff.guidance.base import Nulls
from jaxdiff.inverse.ddnm import Consistent
from jaxdiff.inverse.gradient import with_pull
from jaxdiff.inverse.method import Measured, Method, Needs
from jaxdiff.inverse.problem import Problem
from jaxdiff.prediction import Prediction, moved
from jaxdiff.process import Process, refuse_unless
from jaxdiff.record import field, record
from jaxdiff.sampling import Sampler


@record
class ReconstructionGuidance(Method):
    """The gradient of the squared residual, as video models are extended, equation (1).

    One evaluation and its reverse-mode derivative a step. Exact for no data.

    Args:
      weight: w, 0 or more; data.
      replace: replace the measured part too, where the operator has a pseudo-inverse; static.

    Raises:
      ValueError: a weight below 0.
    """

    weight: ArrayLike = 2.0
    replace: bool = field(default=True, pytree_node=False)
    needs: ClassVar[Needs] = "differentiable"

    def __post_init__(self) -> None:
        refuse_unless(lambda w: w >= 0, "the weight of reconstruction guidance is to be 0 or more", weight=self.weight)

    def made(self, problem: Problem, process: Process, sampler: Sampler) -> tuple[tuple[Guidance, ...], Sampler]:
        guided = ResidualGuided(problem, self.weight)
        replaced = self.replace and problem.operator.invertible
        return (guided, Consistent(problem)) if replaced else (guided,), sampler


@record
class ResidualGuided(Measured):
    """Equation (1), as an element of guidance.

    Args:
      problem: what was measured.
      weight: w.
    """

    weight: ArrayLike

    def __call__(self, denoise: Denoiser, plain: Denoiser, process: Process, nulls: Nulls) -> Denoiser:
        return ResidualPart(denoise, process, self.problem, self.weight)


@record
class ResidualPart:
    """The denoiser of equation (1).

    Args:
      denoise: the denoiser, guided or not.
      process: its process.
      problem: what was measured.
      weight: w.

    >>> from jaxdiff import VE, GaussianDenoiser
    >>> from jaxdiff.inverse.operators import Mask
    >>> problem = Problem(Mask((2,), jnp.array([1, 0])), jnp.array([[3.0, 0.0]]))
    >>> part = ResidualPart(GaussianDenoiser(VE(), 0.0, 1e6), VE(), problem, 0.5)  # J = I
    >>> bool(jnp.allclose(part(jnp.zeros((1, 2)), 0.5).x0, jnp.array([[1.5, 0.0]])))
    True
    """

    denoise: Denoiser
    process: Process
    problem: Problem
    weight: ArrayLike

    def __call__(self, x: Array, t: ArrayLike, cond: Cond | None = None) -> Prediction:
        return self.recall(x, t, cond, ())[0]

    def begin(self, x: Array, cond: Cond | None = None) -> Memory:
        """See the top of `jaxdiff.denoiser`."""
        return begin(self.denoise, x, cond)

    def recall(self, x: Array, t: ArrayLike, cond: Cond | None, memory: Memory) -> tuple[Prediction, Memory]:
        """See the top of `jaxdiff.denoiser`."""
        found, after, pull = with_pull(self.denoise, x, t, cond, memory)
        measured, back = jax.vjp(self.problem.operator, found.x0)
        residual = self.problem.y.astype(x.dtype) - measured
        weight = expand(jnp.asarray(self.weight * self.process.alpha(t), x.dtype), x)
        return moved(self.process, t, found, weight * pull(back(residual)[0])), after
