"""DDRM: each singular direction by how its noise compares with the step's.

Kawar et al. 2022, "Denoising Diffusion Restoration Models", https://arxiv.org/abs/2201.11793, equations 7 and 8. They
have it for x/alpha, of noise rho = sigma/alpha. Along v_i, with ybar = A+ y of noise std/s_i and a prediction
(x0, eps) at t, a step to s draws x_s/alpha_s from

    N(x0 + sqrt(1 - eta^2) rho eps,                     eta^2 rho^2)           s_i = 0               (1)
    N(x0 + sqrt(1 - eta^2) rho (ybar - x0) s_i/std,     eta^2 rho^2)           rho < std/s_i         (2)
    N((1 - eta_b) x0 + eta_b ybar,                      rho^2 - eta_b^2 std^2/s_i^2)     else        (3)

with rho = sigma_s/alpha_s. Each has x_s = x0 + rho n for the true x0 in the place of the predicted one. The first x is
noise: their first step, N(ybar, rho^2 - std^2/s_i^2), is left out, as it is in every prior of `Process`.

The last denoising is the step to sigma = 0: without noise the third line, x0 + eta_b A+ (y - A x0), else the second.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.denoiser import Denoise
from jaxdiff.guidance import Guidance
from jaxdiff.inverse.ddnm import exact_only
from jaxdiff.inverse.method import Method, Needs
from jaxdiff.inverse.operators.base import Rows
from jaxdiff.inverse.problem import Problem
from jaxdiff.noise import Noise
from jaxdiff.process import Process, refuse_unless
from jaxdiff.record import record
from jaxdiff.sampling import Sampler
from jaxdiff.sampling.base import State


@record
class DDRM(Method):
    """Each singular direction is drawn by how well it is measured.

    Equations (1) to (3). One evaluation a step.

    Args:
      eta: noise of directions that are not measured well, from 0 to 1; data. The paper's 0.85.
      eta_b: weight of the measurement in those that are, from 0 to 1; data. The paper's 1.

    Raises:
      ValueError: a number out of range.

    >>> DDRM(eta=2.0)
    Traceback (most recent call last):
    ...
    ValueError: eta and eta_b are to be from 0 to 1, got eta = 2.0, eta_b = 1.0
    """

    eta: ArrayLike = 0.85
    eta_b: ArrayLike = 1.0
    needs: ClassVar[Needs] = "spectral"
    own_steps: ClassVar[bool] = True

    def __post_init__(self) -> None:
        refuse_unless(
            lambda eta, eta_b: (eta >= 0) & (eta <= 1) & (eta_b >= 0) & (eta_b <= 1),
            "eta and eta_b are to be from 0 to 1",
            eta=self.eta,
            eta_b=self.eta_b,
        )

    def made(self, problem: Problem, process: Process, sampler: Sampler) -> tuple[tuple[Guidance, ...], Sampler]:
        return (exact_only(problem, self.eta_b),), DDRMSteps(process, problem, self.eta, self.eta_b)


@record
class DDRMSteps(Sampler):
    """Equations (1) to (3).

    Args:
      process: the process.
      problem: what was measured.
      eta, eta_b: see `DDRM`.
    """

    problem: Problem
    eta: ArrayLike
    eta_b: ArrayLike

    def noise_level(self) -> ArrayLike:
        return 1.0

    def rows(self, cut: Rows) -> Any:
        """The sampler of some of the samples: `jaxdiff.plan.rows_of`."""
        return dataclasses.replace(self, problem=self.problem.rows(cut))

    def step(self, denoise: Denoise, noise: Noise, state: State, x: Array, t: Array, s: Array) -> tuple[Array, State]:
        found, z = denoise(x, t), noise(t, s)
        operator, std = self.problem.operator, self.problem.std
        alpha, sigma = self.process.alpha(s), self.process.sigma(s)
        singular = operator.singular_values
        measured = singular > 0
        well = measured & (sigma * singular >= alpha * std)  # (3)
        badly = measured & ~well  # (2)
        # without noise the prediction has been corrected already: see the last paragraph above
        eta_b = jnp.where(std == 0, 0.0, self.eta_b)
        kept = jnp.sqrt(1 - jnp.square(self.eta))
        of_y = jnp.where(well, alpha * eta_b, jnp.where(badly, kept * sigma * singular / jnp.where(std > 0, std, 1), 0))
        of_eps = jnp.where(measured, 0, kept * sigma)
        told = alpha * eta_b * std / jnp.where(measured, singular, 1)
        of_z = jnp.where(well, jnp.sqrt(jnp.maximum(jnp.square(sigma) - jnp.square(told), 0)), self.eta * sigma)
        parts = [
            scale.astype(x.dtype) * operator.to_spectrum(part)
            for scale, part in (
                (alpha - of_y, found.x0),
                (of_y, operator.pinv(self.problem.y.astype(x.dtype))),
                (of_eps, found.eps),
                (of_z, z),
            )
        ]
        return operator.from_spectrum(sum(parts[1:], parts[0])), state
