"""PSLD: DPS in latents, with a term that glues the decoded picture to the measurement.

Rout et al. 2023, "Solving Linear Inverse Problems Provably via Posterior Sampling with Latent Diffusion Models",
https://arxiv.org/abs/2307.00619, algorithm 2. With z_t the noisy latents, z0 the prediction at z_t, D and E decoder and
encoder, and A a linear operator on pictures, after each step from t to s of a sampler

    z_s <- z_s - grad_{z_t} (omega |y - A D(z0)| + gamma |z0 - E(u)|)                                (1)
    u    = A+ y + (I - A+ A) D(z0)                                                                   (2)

(the norms themselves, as in their code, where omega = 1 and gamma = 0.1). The first term alone is DPS through the
decoder; as D takes many z to the same measurement, the second asks for one that is the code of a picture which fits.
They write A' in (2) for operators with A A' = I, for which it is A+. On other processes than theirs the step has the
units of (3) of `jaxdiff.inverse.gradient`.
"""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.broadcast import sum_features
from jaxdiff.denoiser import Denoise
from jaxdiff.guidance import Guidance
from jaxdiff.inverse.around import Around, refuse_own_steps
from jaxdiff.inverse.gradient import Evaluated, units
from jaxdiff.inverse.method import Method, Needs
from jaxdiff.inverse.operators import Decoded
from jaxdiff.inverse.problem import Problem
from jaxdiff.noise import Noise
from jaxdiff.process import Process, refuse_unless
from jaxdiff.record import record
from jaxdiff.sampling import Sampler
from jaxdiff.sampling.base import State


@record
class PSLD(Method):
    """DPS through a decoder, and a term that asks for latents of a picture that fits, equation (1).

    One evaluation and its reverse-mode derivative a step, with those of the decoder and the encoder. Models in latents,
    linear operators on their pictures. Exact for no data.

    Args:
      omega: weight of the residual, 0 or more; data.
      gamma: weight of the second term, 0 or more; data. 0: DPS.

    Raises:
      ValueError: a weight below 0; (made) a model in pixels, an operator that is not linear, or a sampler that chooses
        its steps itself.
    """

    omega: ArrayLike = 1.0
    gamma: ArrayLike = 0.1
    needs: ClassVar[Needs] = "differentiable"
    usual: ClassVar[str] = "ddpm"

    def __post_init__(self) -> None:
        refuse_unless(
            lambda omega, gamma: (omega >= 0) & (gamma >= 0),
            "the weights of psld are to be 0 or more",
            omega=self.omega,
            gamma=self.gamma,
        )

    def check(self, problem: Problem) -> None:
        super().check(problem)
        if not isinstance(problem.operator, Decoded):
            raise ValueError("PSLD is for models in latents, and this one is in pixels: take dps")
        if not problem.operator.of_pixels.linear:
            kind = type(problem.operator.of_pixels).__name__
            raise ValueError(f"PSLD needs a linear operator on pictures, and {kind} is not: dps takes any")

    def made(self, problem: Problem, process: Process, sampler: Sampler) -> tuple[tuple[Guidance, ...], Sampler]:
        refuse_own_steps(sampler, "psld")
        return (), PSLDSteps(sampler, problem, self.omega, self.gamma)


@record
class PSLDSteps(Around):
    """Equation (1).

    Args:
      sampler: whose steps are taken.
      problem: what was measured of the pictures.
      omega, gamma: see `PSLD`.
    """

    omega: ArrayLike
    gamma: ArrayLike

    def noise_level(self) -> ArrayLike:
        return self.sampler.noise_level()

    def step(self, denoise: Denoise, noise: Noise, state: State, x: Array, t: Array, s: Array) -> tuple[Array, State]:
        there = Evaluated(denoise, x, t)
        after, state = self.sampler.step(there, noise, state, x, t, s)
        slope = jax.grad(lambda z0: glued(self.problem, z0, self.omega, self.gamma).sum())(there.found.x0)
        return after - units(self.process, t, s) * there.pull(slope), state


def glued(problem: Problem, z0: Array, omega: ArrayLike, gamma: ArrayLike) -> Array:
    """What (1) takes the gradient of, ``(B,)``, at predicted latents.

    Args:
      problem: what was measured of the pictures; its operator is `Decoded`.
      z0: ``(B, ...)``.
      omega, gamma: see `PSLD`.
    """
    operator = problem.operator
    assert isinstance(operator, Decoded)
    pixels = operator.codec.pixels(z0)
    residual = problem.y.astype(z0.dtype) - operator.of_pixels(pixels)
    fitting = pixels + operator.of_pixels.pinv(residual)
    apart = z0 - operator.codec.latents(fitting)
    return jnp.asarray(omega) * _norm(residual) + jnp.asarray(gamma) * _norm(apart)


def _norm(x: Array) -> Array:
    """Of each sample, ``(B,)``, with a derivative of 0 at 0."""
    square = sum_features(jnp.square(x))
    return jnp.sqrt(jnp.where(square > 0, square, 1)) * (square > 0)
