"""Runge-Kutta methods on the probability-flow ODE.

With the denoiser's pair at (x, t) the flow is (equation 4 of `jaxdiff.process`; Song et al. 2021, equation 13)

    dx/dt = alpha'(t) x0(x, t) + sigma'(t) eps(x, t).                                                (1)

In the variables y = x/alpha and rho = sigma/alpha it is (Karras et al. 2022, equations 3, 4; Song et al. 2021 DDIM,
equation 14)

    dy/drho = eps(alpha y, t),                                                                       (2)

the same curve, but a step of a method is another: Euler in rho is DDIM, Heun in rho Karras' algorithm 1. (2) needs
alpha > 0.
"""

from __future__ import annotations

from typing import Literal

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.denoiser import Denoise
from jaxdiff.noise import Noise
from jaxdiff.process import Process
from jaxdiff.record import field, record
from jaxdiff.sampling.base import Sampler, State, refuse_infinite_velocity, refuse_no_signal

Variable = Literal["t", "rho"]


def _check_variable(variable: str) -> None:
    if variable not in ("t", "rho"):
        raise ValueError(f'variable is to be "t" or "rho", got {variable!r}')


def _slope(process: Process, variable: Variable, denoise: Denoise, y: Array, t: Array) -> Array:
    if variable == "t":
        return denoise(y, t).velocity(process, t)
    return denoise(process.alpha(t) * y, t).eps


def _place(process: Process, variable: Variable, t: Array) -> tuple[Array, Array]:
    """Scale of y in x = scale y, and the variable of integration."""
    if variable == "t":
        return jnp.ones_like(t), t
    alpha = process.alpha(t)
    return alpha, process.sigma(t) / alpha


@record
class Euler(Sampler):
    """Euler's method on equation (1). Order 1; one evaluation a step; either direction."""

    def check(self, ts: ArrayLike) -> None:
        refuse_infinite_velocity(self.process, ts, "Euler")

    def step(self, denoise: Denoise, noise: Noise, state: State, x: Array, t: Array, s: Array) -> tuple[Array, State]:
        return x + (s - t) * _slope(self.process, "t", denoise, x, t), state


@record
class Heun(Sampler):
    """Heun's method, the explicit trapezoid. Order 2; two evaluations a step; either direction.

    Args:
      process: the process.
      variable: "t", equation (1), or "rho", equation (2): Karras et al. 2022, algorithm 1; static.
    """

    variable: Variable = field(default="t", pytree_node=False)

    def __post_init__(self) -> None:
        _check_variable(self.variable)

    def check(self, ts: ArrayLike) -> None:
        if self.variable == "rho":
            refuse_no_signal(self.process, ts, "Heun in rho")
        else:
            refuse_infinite_velocity(self.process, ts, "Heun")

    def step(self, denoise: Denoise, noise: Noise, state: State, x: Array, t: Array, s: Array) -> tuple[Array, State]:
        (scale, begin), (scale_s, end) = (_place(self.process, self.variable, time) for time in (t, s))
        y, h = x / scale, end - begin
        first = _slope(self.process, self.variable, denoise, y, t)
        second = _slope(self.process, self.variable, denoise, y + h * first, s)
        return scale_s * (y + 0.5 * h * (first + second)), state
