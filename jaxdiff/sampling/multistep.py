"""Exponential multistep methods on x0, in lambda = ln(alpha/sigma).

With D_0 the prediction of x0 at t, D_1 and D_2 those one and two steps before, h = lambda_s - lambda_t and h_1 the step
before, equation (3) of `jaxdiff.sampling.exponential` on x0 is

    x_s = alpha_s x0 + sigma_s eps - alpha_s expm1(-h) sum_i W_i (D_i - D_0).                        (1)

The second order (Lu et al. 2022b, DPM-Solver++, algorithm 2) takes for its one weight, <theta>/theta_1 with theta_1 =
-h_1/h, the limit of <theta> for short steps:

    W_1 = -h/(2 h_1).                                                                                (2)

The third takes both weights exact. (Published codes of it have phi_3 where the second derivative's term, h^2 D''/2,
calls for 2 phi_3; theirs is of order 2.)

Nothing in it knows the process but through alpha and sigma. Where alpha_t = 0, h is infinite: the step is then x0's
own, and that x0, an infinite h_1 away, has no part in the next.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from jaxdiff.denoiser import Denoise
from jaxdiff.noise import Noise
from jaxdiff.process import Process
from jaxdiff.record import record
from jaxdiff.sampling.base import Sampler
from jaxdiff.sampling.exponential import (
    History,
    combine,
    exponential_means,
    first_order,
    half_log_snr,
    known_places,
    lagrange_weights,
    no_history,
)


def _minus_h(begin: Array, end: Array) -> Array:
    """-h; 0 where a step begins at sigma = 0, or before there were any, and no W_i is used."""
    back = begin - end
    return jnp.where(back < jnp.inf, back, 0.0)


def x0_weights(places: Array, begin: Array, end: Array, lone: Array | float = 0.5) -> Array:
    """The W_i of equation (1), ``(n,)``, with ``lone`` for <theta> where only one place is known."""
    means = exponential_means(_minus_h(begin, end), max(1, places.shape[0]))
    alone = known_places(places, begin, end).sum() == 1
    return lagrange_weights(places, begin, end, means.at[0].set(jnp.where(alone, lone, means[0])))


def x0_gain(process: Process, s: Array, begin: Array, end: Array) -> Array:
    """G of equation (1): the weight of x0 over the step to s, from ``begin`` to ``end`` in lambda."""
    return -process.alpha(s) * jnp.expm1(_minus_h(begin, end))


@record
class DPMpp2M(Sampler):
    """DPM-Solver++(2M), equations (1) and (2), its first step of first order (DDIM). Order 2; one evaluation a step;
    either direction."""

    def init(self, x: Array) -> History:
        return no_history(x, 1)

    def step(
        self, denoise: Denoise, noise: Noise, state: History, x: Array, t: Array, s: Array
    ) -> tuple[Array, History]:
        prediction = denoise(x, t)
        here, there = half_log_snr(self.process, t), half_log_snr(self.process, s)
        weights = lagrange_weights(state.places, here, there, jnp.full(1, 0.5))
        change = combine(x0_gain(self.process, s, here, there) * weights, state.values, prediction.x0)
        return first_order(self.process, prediction, s) + change, state.remember(prediction.x0, here)


@record
class DPMpp3M(Sampler):
    """DPM-Solver++(3M), equation (1), its first two steps of orders 1 (DDIM) and 2 (`DPMpp2M`). Order 3, with that
    start 2 at last: the first step's error is of order 2 and stays; one evaluation a step; either direction.

    >>> import jax
    >>> from jaxdiff import Flow, GaussianDenoiser, log_snr_times, sample
    >>> process, x = Flow(), jax.random.normal(jax.random.key(0), (4, 2))
    >>> sample(DPMpp3M(process), GaussianDenoiser(process, 3.0, 0.1), None, x, log_snr_times(process, 12)).shape
    (4, 2)
    """

    def init(self, x: Array) -> History:
        return no_history(x, 2)

    def step(
        self, denoise: Denoise, noise: Noise, state: History, x: Array, t: Array, s: Array
    ) -> tuple[Array, History]:
        prediction = denoise(x, t)
        here, there = half_log_snr(self.process, t), half_log_snr(self.process, s)
        weights = x0_gain(self.process, s, here, there) * x0_weights(state.places, here, there)
        change = combine(weights, state.values, prediction.x0)
        return first_order(self.process, prediction, s) + change, state.remember(prediction.x0, here)
