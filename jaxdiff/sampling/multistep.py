"""Exponential multistep methods, in lambda = ln(alpha/sigma).

The flow in (x/sigma, lambda) has the exact solution (Lu et al. 2022b, DPM-Solver++, equation 8)

    x_s = (sigma_s/sigma_t) x_t + sigma_s int_{lambda_t}^{lambda_s} e^lambda x0(x_lambda, lambda) d lambda.      (1)

Methods replace x0 under the integral by a polynomial through the last predictions. With h = lambda_s - lambda_t, the
second order (their algorithm 2, h' the step before, D' its prediction):

    x_s = (sigma_s/sigma_t) x_t - alpha_s (e^{-h} - 1) [ D + (h/(2 h')) (D - D') ].                              (2)

Nothing in it knows the process but through alpha and sigma. Where alpha_t = 0, h is infinite: the step is then x0's
own, and the next one's h/h' is 0, first order again, which is right.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxdiff.denoiser import Denoise
from jaxdiff.noise import Noise
from jaxdiff.record import record
from jaxdiff.sampling.base import Sampler


class History(NamedTuple):
    """The last prediction of x0, and the length in lambda of the step made with it; 0 before the first."""

    x0: Array
    h: Array


@record
class DPMpp2M(Sampler):
    """DPM-Solver++(2M), equation (2), its first step of first order (DDIM). Order 2; one evaluation a step; either
    direction."""

    def init(self, x: Array) -> History:
        return History(jnp.zeros_like(x), jnp.zeros((), jnp.result_type(float)))

    def step(
        self, denoise: Denoise, noise: Noise, state: History, x: Array, t: Array, s: Array
    ) -> tuple[Array, History]:
        x0 = denoise(x, t).x0
        h = 0.5 * (self.process.log_snr(s) - self.process.log_snr(t))
        first = state.h == 0
        ratio = jnp.where(first | jnp.isinf(h), 0.0, h / jnp.where(first, 1.0, state.h))
        guess = x0 + 0.5 * ratio * (x0 - state.x0)
        scale = self.process.sigma(s) / self.process.sigma(t)
        return scale * x - self.process.alpha(s) * jnp.expm1(-h) * guess, History(x0, h)
