"""Exponential singlestep methods, in lambda = ln(alpha/sigma).

They evaluate the denoiser within the step from t to s, h = lambda_s - lambda_t, at the times s_i with lambda = lambda_t
+ r_i h, and remember nothing. Write DDIM(s) for DDIM's step from t to s and G for the weight of the predicted eps, or
of x0, over a step (`jaxdiff.sampling.exponential`, equations 4 and 5). DPM-Solver (Lu et al. 2022a) has D = eps:

    1   x_s = DDIM(s)                                                                                (1)
    2   u_1 = DDIM(s_1),                                         r_1 = 1/2                           (2)
        x_s = DDIM(s) + G(s)/(2 r_1) (D(u_1) - D)
    3   u_1 = DDIM(s_1),                                         r_1 = 1/3, r_2 = 2/3                (3)
        u_2 = DDIM(s_2) + G(s_2) (r_2/r_1) m_1(r_2 h) (D(u_1) - D)
        x_s = DDIM(s) + G(s) m_1(h)/r_2 (D(u_2) - D)

their algorithms 1 (order 2) and 2 (order 3), m_1 that of equation (6) there. DPM-Solver++(2S) (Lu et al. 2022b,
algorithm 1) is (2) with D = x0. In these forms no term is large: (e^h - 1)/h - 1, say, is m_1(h) (e^h - 1).
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.denoiser import Denoise
from jaxdiff.noise import Noise
from jaxdiff.process import Process
from jaxdiff.record import field, record
from jaxdiff.sampling.adams import eps_gain
from jaxdiff.sampling.base import Sampler, State, refuse_no_signal
from jaxdiff.sampling.exponential import check_order, exponential_means, first_order, half_log_snr
from jaxdiff.sampling.multistep import x0_gain


def time_between(process: Process, t: Array, s: Array, share: float) -> Array:
    """The time at lambda_t + share h. Where h is infinite, the one of t and s at which lambda is finite."""
    begin, end = half_log_snr(process, t), half_log_snr(process, s)
    inside = jnp.isfinite(end - begin)
    place = jnp.where(inside, begin + share * (end - begin), 0.0)
    return jnp.where(inside, process.time_of_log_snr(2.0 * place), jnp.where(jnp.isfinite(begin), t, s))


@record
class DPMSolver(Sampler):
    """DPM-Solver-1 (DDIM), -2 and -3, equations (1) to (3). Order p with p evaluations a step; either direction.

    Args:
      process: the process.
      order: p, 1 to 3; static.

    Raises:
      ValueError: an unknown order; times from where alpha = 0.

    >>> import jax
    >>> from jaxdiff import VP, GaussianDenoiser, log_snr_times, sample
    >>> process, x = VP(), jax.random.normal(jax.random.key(0), (4, 2))
    >>> sample(DPMSolver(process, 3), GaussianDenoiser(process, 3.0, 0.1), None, x, log_snr_times(process, 5)).shape
    (4, 2)
    """

    order: int = field(default=2, pytree_node=False)

    def __post_init__(self) -> None:
        check_order(self.order, 3, "DPMSolver")

    def check(self, ts: ArrayLike) -> None:
        refuse_no_signal(self.process, ts, "DPMSolver")

    def step(self, denoise: Denoise, noise: Noise, state: State, x: Array, t: Array, s: Array) -> tuple[Array, State]:
        process, prediction = self.process, denoise(x, t)
        begin, end = half_log_snr(process, t), half_log_snr(process, s)

        def towards(time: Array, factor: Array | float, other: Array) -> Array:
            """The step to ``time`` with ``factor`` of the difference between another eps and that at t."""
            finite = jnp.isfinite(end - begin)
            gain = eps_gain(process, time, begin, half_log_snr(process, time))
            weight = jnp.where(finite, gain * factor, 0.0)
            return first_order(process, prediction, time) + weight * (other - prediction.eps)

        if self.order == 1:
            return first_order(process, prediction, s), state
        first_share, second_share = (1 / 2, 1.0) if self.order == 2 else (1 / 3, 2 / 3)
        first = time_between(process, t, s, first_share)
        eps = denoise(first_order(process, prediction, first), first).eps
        if self.order == 2:
            return towards(s, 0.5 / first_share, eps), state
        second = time_between(process, t, s, second_share)
        h = end - begin
        inner = exponential_means(second_share * h, 1)[0] * second_share / first_share
        eps = denoise(towards(second, inner, eps), second).eps
        return towards(s, exponential_means(h, 1)[0] / second_share, eps), state


@record
class DPMpp2S(Sampler):
    """DPM-Solver++(2S), equation (2) on x0. Order 2; two evaluations a step; either direction. A step from alpha = 0 is
    DDIM's."""

    def step(self, denoise: Denoise, noise: Noise, state: State, x: Array, t: Array, s: Array) -> tuple[Array, State]:
        process, prediction = self.process, denoise(x, t)
        begin, end = half_log_snr(process, t), half_log_snr(process, s)
        middle = time_between(process, t, s, 0.5)
        other = denoise(first_order(process, prediction, middle), middle).x0
        weight = jnp.where(jnp.isfinite(end - begin), x0_gain(process, s, begin, end), 0.0)
        return first_order(process, prediction, s) + weight * (other - prediction.x0), state
