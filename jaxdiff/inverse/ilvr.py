"""ILVR: the low frequencies of a reference, step by step.

Choi et al. 2021, "ILVR: Conditioning Method for Denoising Diffusion Probabilistic Models",
https://arxiv.org/abs/2108.02938, algorithm 1. With phi a low-pass filter, down- and up-sampling by a factor, y a
reference picture and y_s a draw of q(y_s | y), after each step to s

    x_s <- phi(y_s) + (I - phi)(x_s).                                                                (1)

phi = A+ A of a down-sampling A is the filter for which (1) is (1) of `jaxdiff.inverse.around` with the measurement A y:
of the reference only that is used. They stop at some noise for more freedom: where sigma/alpha <= low the steps are the
sampler's alone. Else the last denoising is made consistent, as in `jaxdiff.inverse.repaint`.
"""

from __future__ import annotations

from typing import ClassVar

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.denoiser import Denoise
from jaxdiff.guidance import Guidance
from jaxdiff.inverse.around import PROJECT, Around, projected, refuse_own_steps
from jaxdiff.inverse.ddnm import Consistent
from jaxdiff.inverse.method import Method, Needs
from jaxdiff.inverse.problem import Problem
from jaxdiff.noise import Noise
from jaxdiff.process import Process, refuse_unless
from jaxdiff.record import record
from jaxdiff.sampling import Sampler
from jaxdiff.sampling.base import State


@record
class ILVR(Method):
    """The part of x that a down-sampling sees, from a reference at the step's noise.

    Equation (1). One evaluation a step. Linear operators. A measurement with noise is taken as if it had none.

    Args:
      low: sigma/alpha at and below which nothing is replaced, 0 or more; data.

    Raises:
      ValueError: low below 0; (made) a sampler that chooses its steps itself.

    >>> ILVR(-1.0)
    Traceback (most recent call last):
    ...
    ValueError: low of ilvr is a sigma/alpha, 0 or more, got low = -1.0
    """

    low: ArrayLike = 0.0
    needs: ClassVar[Needs] = "linear"
    usual: ClassVar[str] = "ddpm"

    def __post_init__(self) -> None:
        refuse_unless(lambda low: low >= 0, "low of ilvr is a sigma/alpha, 0 or more", low=self.low)

    def made(self, problem: Problem, process: Process, sampler: Sampler) -> tuple[tuple[Guidance, ...], Sampler]:
        refuse_own_steps(sampler, "ilvr")
        return (Consistent(problem, low=self.low),), ILVRSteps(sampler, problem, self.low)


@record
class ILVRSteps(Around):
    """Equation (1).

    Args:
      sampler: whose steps are taken.
      problem: what was measured.
      low: see `ILVR`.
    """

    low: ArrayLike

    def step(self, denoise: Denoise, noise: Noise, state: State, x: Array, t: Array, s: Array) -> tuple[Array, State]:
        x, state = self.sampler.step(denoise, noise, state, x, t, s)
        replaced = projected(self.problem, self.process, x, s, noise(t, s, PROJECT))
        return jnp.where(self.process.sigma(s) > self.low * self.process.alpha(s), replaced, x), state
