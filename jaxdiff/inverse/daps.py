"""DAPS: x0 is drawn given x and y, and noise is put on it anew.

Zhang et al. 2024, "Improving Diffusion Inverse Problem Solving with Decoupled Noise Annealing",
https://arxiv.org/abs/2407.01521, algorithm 1. At each time t of a grid, and for the next one s,

    x0^ = the end of the probability flow from x_t, in ``solve`` evaluations                         (1)
    x0  ~ q(x0) ~ exp(-|x0 - x0^|^2/(2 r^2)) p(y | x0)                                               (2)
    x_s = alpha_s x0 + sigma_s z.                                                                    (3)

As x_s depends on x_t through x0 alone, errors of one level can be mended at the next. With ``solve`` = 1, x0^ is the
prediction E[x0 | x_t] itself. Their r is the noise rho = sigma/alpha; here, with v for the variance of one number of
the data,

    r^2 = rho^2 v/(v + rho^2)                                                                        (4)

of which theirs is the limit of large v. With solve = 1 and Gaussian data of covariance v I, N(x0^, r^2 I) is the law of
x0 given x_t, (2) that given x_t and y, and DAPS is exact on any grid.

For a linear operator with singular values and Gaussian noise (2) is a Gaussian and drawn at once (equations 1 and 4 of
`jaxdiff.inverse.update`). Else it is approached by Langevin dynamics begun at x0^ (their section 3.2), ``steps`` of

    x0 <- x0 + h grad ln q(x0) + sqrt(2 h) z,        h = size/(1/r^2 + 1/tau^2)                      (5)

where std is tau at least, and 1/tau^2 the curvature of ln p(y | x0) for |A| = 1: h is to be small against 1 over the
largest curvature. They have one h for all levels, falling linearly.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.denoiser import Denoise
from jaxdiff.guidance import Guidance
from jaxdiff.inverse.method import Method, Needs
from jaxdiff.inverse.operators.base import Rows
from jaxdiff.inverse.problem import Gaussian, Problem
from jaxdiff.inverse.update import spread, updated
from jaxdiff.noise import Noise
from jaxdiff.process import Process, refuse_unless
from jaxdiff.record import field, record
from jaxdiff.sampling import Sampler
from jaxdiff.sampling.base import State

DRAW, LANGEVIN = 0x64726177, 0x6C616E67  # "draw", "lang"


@record
class DAPS(Method):
    """x0 is drawn given x and y at each level, and noise is put on it anew.

    Equations (1) to (3).     ``solve`` evaluations a step and, where the operator has no singular values or the noise
    is not Gaussian, ``steps`` gradients of ln p(y | x0), which need no network. Any operator that has a derivative, any
    noise.

    Args:
      solve: evaluations of equation (1), 1 or more; static. The paper's are from 5 to 10.
      variance: v of equation (4), positive; data. inf is the paper's r, for grids that
        begin at a sigma/alpha of some tens at most.
      steps: of equation (5), 1 or more; static. The paper's are 100.
      size: of equation (5), positive; data.
      tau: the least deviation that measurements are taken to have in (5), positive; data. The paper's is 0.01.

    Raises:
      ValueError: a number out of range.

    >>> DAPS(solve=0)
    Traceback (most recent call last):
    ...
    ValueError: solve of daps is a whole number, 1 or more, got 0
    """

    solve: int = field(default=5, pytree_node=False)
    variance: ArrayLike = 1.0
    steps: int = field(default=100, pytree_node=False)
    size: ArrayLike = 0.1
    tau: ArrayLike = 0.01
    needs: ClassVar[Needs] = "differentiable"
    own_steps: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name, number in (("solve", self.solve), ("steps", self.steps)):
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                raise ValueError(f"{name} of daps is a whole number, 1 or more, got {number!r}")
        for name, value in (("variance", self.variance), ("size", self.size), ("tau", self.tau)):
            refuse_unless(lambda number: number > 0, f"{name} of daps is to be positive", **{name: value})

    def made(self, problem: Problem, process: Process, sampler: Sampler) -> tuple[tuple[Guidance, ...], Sampler]:
        return (), DAPSSteps(process, problem, self)


@record
class DAPSSteps(Sampler):
    """Equations (1) to (3).

    Args:
      process: the process.
      problem: what was measured.
      settings: see `DAPS`.
    """

    problem: Problem
    settings: DAPS

    def noise_level(self) -> ArrayLike:
        return 1.0

    def rows(self, cut: Rows) -> Any:
        """The sampler of some of the samples: `jaxdiff.plan.rows_of`."""
        return dataclasses.replace(self, problem=self.problem.rows(cut))

    def step(self, denoise: Denoise, noise: Noise, state: State, x: Array, t: Array, s: Array) -> tuple[Array, State]:
        near = self._flowed(denoise, x, t)
        precision = jnp.exp(self.process.log_snr(t)) + 1 / jnp.asarray(self.settings.variance)  # 1/r^2
        x0 = self._given_y(near, precision.astype(x.dtype), lambda salt: noise(t, s, salt))
        return self.process.alpha(s) * x0 + self.process.sigma(s) * noise(t, s), state

    def _flowed(self, denoise: Denoise, x: Array, t: Array) -> Array:
        """Equation (1): DDIM's steps, equal in atan(sigma/alpha), and a last denoising."""
        solve = self.settings.solve
        if solve == 1:
            return denoise(x, t).x0
        process, last = self.process, self.process.min_time()
        first, end = (jnp.arctan2(process.sigma(u), process.alpha(u)) for u in (t, last))

        def once(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
            x, u = carry
            angle = first + (end - first) * ((i + 1) / solve)
            v = jnp.clip(process.time_of_log_snr(-2.0 * jnp.log(jnp.tan(angle))), last, u)
            found = denoise(x, u)
            return process.alpha(v) * found.x0 + process.sigma(v) * found.eps, v.astype(u.dtype)

        x, u = jax.lax.fori_loop(0, solve - 1, once, (x, t))
        return denoise(x, u).x0

    def _given_y(self, near: Array, precision: Array, draw: Any) -> Array:
        """Equation (2)."""
        problem, settings = self.problem, self.settings
        if problem.operator.spectral and isinstance(problem.noise, Gaussian):
            return near + updated(problem, near, precision) + spread(problem, draw(DRAW), precision)
        tau = jnp.asarray(settings.tau)
        law = problem
        if isinstance(problem.noise, Gaussian):
            tau = jnp.maximum(tau, jnp.asarray(problem.noise.std))
            law = dataclasses.replace(problem, noise=dataclasses.replace(problem.noise, std=tau))
        h = (settings.size / (precision + 1 / jnp.square(tau))).astype(near.dtype)

        def once(i: Array, x0: Array) -> Array:
            slope = jax.grad(lambda x0: law.log_likelihood(x0).sum())(x0) - precision * (x0 - near)
            return x0 + h * slope + jnp.sqrt(2.0 * h) * draw(LANGEVIN + i)

        return jax.lax.fori_loop(0, settings.steps, once, near)
