"""DPS: a step of a sampler, then a step against the residual of the prediction.

Chung et al. 2023, "Diffusion Posterior Sampling for General Noisy Inverse Problems",
https://arxiv.org/abs/2209.14687. p(y | x) is taken for p(y | x0(x)) (their equation 11), and algorithm 1 is, after each
step from t to s of DDPM,

    x_s <- x_s - zeta grad_{x_t} |y - A(x0(x_t))|^2,    zeta = zeta'/|y - A(x0(x_t))|.               (1)

As grad |r| = grad |r|^2/(2 |r|), and their code takes the gradient of the norm itself with the weight ``scale``,

    x_s <- x_s - scale grad_{x_t} |y - A(x0(x_t))|,     scale = 2 zeta'.                             (2)

The norm is each sample's. For Poisson noise squares in it are divided by the count that y stands for, as in their
section 3.2, times the rate. The length of the step does not follow from any law: it does not depend on the
noise, nor on the grid. So DPS does not draw from p(x0 | y), not even for Gaussian data; its samples are too close to
each other or too far, by the weight.

On a process that does not preserve the variance the step is c_s c_t as large: (3) of `jaxdiff.inverse.gradient`.
"""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.broadcast import expand, sum_features
from jaxdiff.denoiser import Denoise
from jaxdiff.guidance import Guidance
from jaxdiff.inverse.around import Around, refuse_own_steps
from jaxdiff.inverse.gradient import Evaluated, units
from jaxdiff.inverse.method import Method, Needs
from jaxdiff.inverse.problem import Problem
from jaxdiff.noise import Noise
from jaxdiff.process import Process, refuse_unless
from jaxdiff.record import record
from jaxdiff.sampling import Sampler
from jaxdiff.sampling.base import State


@record
class DPS(Method):
    """A step against the residual of the prediction after each step of a sampler, equation (2).

    One evaluation and its reverse-mode derivative a step, beside what the sampler evaluates elsewhere. Any operator
    that has a derivative, any noise. Exact for no data.

    Args:
      scale: the weight, 0 or more; data.

    Raises:
      ValueError: a weight below 0; (made) a sampler that chooses its steps itself.
    """

    scale: ArrayLike = 1.0
    needs: ClassVar[Needs] = "differentiable"
    usual: ClassVar[str] = "ddpm"

    def __post_init__(self) -> None:
        refuse_unless(lambda scale: scale >= 0, "the scale of dps is to be 0 or more", scale=self.scale)

    def made(self, problem: Problem, process: Process, sampler: Sampler) -> tuple[tuple[Guidance, ...], Sampler]:
        refuse_own_steps(sampler, "dps")
        return (), DPSSteps(sampler, problem, self.scale)


@record
class DPSSteps(Around):
    """Equation (2).

    Args:
      sampler: whose steps are taken.
      problem: what was measured.
      scale: see `DPS`.
    """

    scale: ArrayLike

    def noise_level(self) -> ArrayLike:
        return self.sampler.noise_level()

    def step(self, denoise: Denoise, noise: Noise, state: State, x: Array, t: Array, s: Array) -> tuple[Array, State]:
        there = Evaluated(denoise, x, t)
        after, state = self.sampler.step(there, noise, state, x, t, s)
        slope = there.pull(norm_gradient(self.problem, there.found.x0))
        return after - self.scale * units(self.process, t, s) * slope, state


def norm_gradient(problem: Problem, x0: Array) -> Array:
    """The gradient of each sample's |y - A(x0)| with respect to x0; 0 where that is 0.

    >>> from jaxdiff.inverse.operators import Mask
    >>> problem = Problem(Mask((2,), jnp.ones(2)), jnp.array([[3.0, 4.0]]))
    >>> norm_gradient(problem, jnp.zeros((1, 2))).tolist()
    [[-0.6000000238418579, -0.800000011920929]]
    """
    measured, back = jax.vjp(problem.operator, x0)
    residual = measured - problem.y.astype(x0.dtype)
    weight = problem.noise.weight(problem.y.astype(x0.dtype))
    square = sum_features(weight * jnp.square(residual))
    size = jnp.where(square > 0, jax.lax.rsqrt(jnp.where(square > 0, square, 1)), 0)
    gradient: Array = back(expand(size, residual) * weight * residual)[0]
    return gradient
