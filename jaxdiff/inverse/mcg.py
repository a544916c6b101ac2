"""MCG: a gradient step that stays near the data, then the measurement itself.

Chung et al. 2022, "Improving Diffusion Models for Inverse Problems using Manifold Constraints",
https://arxiv.org/abs/2206.00941, algorithm 1: after each step from t to s of a sampler,

    x_s <- x_s - alpha' grad_{x_t} |y - A x0(x_t)|^2,       alpha' = scale/(2 |y - A x0(x_t)|)       (1)
    x_s <- x_s + A+ (alpha_s y + sigma_s A z - A x_s)                                                (2)

(1) is the step of DPS, which came out of it by leaving (2) out, and (2) is (1) of `jaxdiff.inverse.around`. Without (1)
it is the replacement of Song et al. 2021. A measurement with noise is taken as if it had none.
"""

from __future__ import annotations

from typing import ClassVar

from jax import Array
from jax.typing import ArrayLike

from jaxdiff.denoiser import Denoise
from jaxdiff.guidance import Guidance
from jaxdiff.inverse.around import PROJECT, Around, projected, refuse_own_steps
from jaxdiff.inverse.dps import DPSSteps
from jaxdiff.inverse.method import Method, Needs
from jaxdiff.inverse.operators.base import Rows
from jaxdiff.inverse.problem import Problem
from jaxdiff.noise import Noise
from jaxdiff.process import Process, refuse_unless
from jaxdiff.record import record
from jaxdiff.sampling import Sampler
from jaxdiff.sampling.base import State


@record
class MCG(Method):
    """The gradient step of DPS, then the measured part replaced by the measurement at the step's noise.

    One evaluation and its reverse-mode derivative a step. Linear operators. A x0 = y up to the last time's noise.

    Args:
      scale: the weight in equation (1), 0 or more; data. 0: replacement alone.

    Raises:
      ValueError: a weight below 0; (made) a sampler that chooses its steps itself.

    >>> MCG(-1.0)
    Traceback (most recent call last):
    ...
    ValueError: the scale of mcg is to be 0 or more, got scale = -1.0
    """

    scale: ArrayLike = 1.0
    needs: ClassVar[Needs] = "linear"
    usual: ClassVar[str] = "ddpm"

    def __post_init__(self) -> None:
        refuse_unless(lambda scale: scale >= 0, "the scale of mcg is to be 0 or more", scale=self.scale)

    def made(self, problem: Problem, process: Process, sampler: Sampler) -> tuple[tuple[Guidance, ...], Sampler]:
        refuse_own_steps(sampler, "mcg")
        return (), MCGSteps(DPSSteps(sampler, problem, self.scale), problem)


@record
class MCGSteps(Around):
    """Equation (2) after the steps of `DPSSteps`.

    Args:
      sampler: that.
      problem: what was measured.
    """

    def rows(self, cut: Rows) -> MCGSteps:
        """The sampler of some of the samples: `jaxdiff.plan.rows_of`."""
        assert isinstance(self.sampler, DPSSteps)
        return MCGSteps(self.sampler.rows(cut), self.problem.rows(cut))

    def step(self, denoise: Denoise, noise: Noise, state: State, x: Array, t: Array, s: Array) -> tuple[Array, State]:
        x, state = self.sampler.step(denoise, noise, state, x, t, s)
        return projected(self.problem, self.process, x, s, noise(t, s, PROJECT)), state
