"""Adams methods on the predicted noise: DEIS, linear multistep, iPNDM.

In y = x/alpha and rho = sigma/alpha the flow is dy/drho = eps (Song et al. 2021 DDIM, equation 14; Zhang & Chen 2023,
DEIS, proposition 3), so that with eps_0 at t, eps_i i steps before,

    x_s = alpha_s x0 + sigma_s eps_0 - sigma_s expm1(h) sum_i W_i (eps_i - eps_0),   h = lambda_s - lambda_t.        (1)

DEIS (their equations 14, 15) integrates exactly the polynomial through the last values of eps. It is a polynomial in a
variable p, and the step's means <theta^k>, theta = (p - p_t)/(p_s - p_t), give the W_i (equation 3 of
`jaxdiff.sampling.exponential`):

    p = rho       1/(k + 1)                                                                          (2)
    p = lambda    m_k(h)                                                                             (3)
    p = t         int_0^1 e^{-u h} theta(u)^k du / int_0^1 e^{-u h} du,                              (4)
                  theta(u) = (t(lambda_t + u h) - t)/(s - t)

(4) by Gauss and Legendre's rule in lambda, in which t is smooth however near alpha = 0 the step begins. (2) is Adams
and Bashforth's method with steps of any lengths. With steps of equal length in rho it has their classical weights, for
one to four values

    1;    3/2, -1/2;    23/12, -16/12, 5/12;    55/24, -59/24, 37/24, -9/24,                         (5)

which iPNDM uses on every grid (Liu et al. 2022, PNDM, equations 11, 12; Zhang & Chen 2023, section 3.3).

All need alpha > 0.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.denoiser import Denoise
from jaxdiff.noise import Noise
from jaxdiff.process import Process
from jaxdiff.record import field, record
from jaxdiff.sampling.base import Sampler, refuse_no_signal
from jaxdiff.sampling.exponential import (
    NODE_WEIGHTS,
    NODES,
    History,
    check_order,
    combine,
    exponential_means,
    first_order,
    half_log_snr,
    lagrange_weights,
    no_history,
)

Basis = Literal["t", "rho", "log_rho"]

BASHFORTH = ((0.0, 0.0, 0.0), (-1 / 2, 0.0, 0.0), (-16 / 12, 5 / 12, 0.0), (-59 / 24, 37 / 24, -9 / 24))
"""Equation (5) as the W_i of equation (1): the weights of eps_1, eps_2, eps_3, for one to four values."""


def eps_gain(process: Process, s: Array, begin: Array, end: Array) -> Array:
    """G of equation (1), alpha_s (rho_s - rho_t): the weight of eps over the step, from ``begin`` to ``end`` in
    lambda."""
    return -process.sigma(s) * jnp.expm1(end - begin)


@record
class DEIS(Sampler):
    """Equation (1): the exponential integrator with a polynomial through the last ``order`` values of eps, Zhang &
    Chen's tAB-DEIS, in their notation of degree r = order - 1: order 1 is DDIM, order 4 is tAB3. One evaluation a step;
    either direction.

    Order as named; it begins with the values there are, DDIM first, and from such a start the order is at most 2.

    Args:
      process: the process.
      order: the number of values, 1 to 4; static.
      basis: the variable of the polynomial: "t", "rho" = sigma/alpha, or "log_rho"; static.

    Raises:
      ValueError: an unknown order or basis; times from where alpha = 0.

    >>> import jax
    >>> from jaxdiff import VP, GaussianDenoiser, log_snr_times, sample
    >>> process, x = VP(), jax.random.normal(jax.random.key(0), (4, 2))
    >>> sample(DEIS(process), GaussianDenoiser(process, 3.0, 0.1), None, x, log_snr_times(process, 12)).shape
    (4, 2)
    """

    order: int = field(default=3, pytree_node=False)
    basis: Basis = field(default="t", pytree_node=False)

    def __post_init__(self) -> None:
        check_order(self.order, 4, "DEIS")
        if self.basis not in ("t", "rho", "log_rho"):
            raise ValueError(f'basis is to be "t", "rho" or "log_rho", got {self.basis!r}')

    def check(self, ts: ArrayLike) -> None:
        refuse_no_signal(self.process, ts, type(self).__name__)

    def init(self, x: Array) -> History:
        return no_history(x, self.order - 1)

    def _place(self, t: Array) -> Array:
        if self.basis == "t":
            return t
        if self.basis == "log_rho":
            return half_log_snr(self.process, t)
        return self.process.sigma(t) / self.process.alpha(t)

    def _means(self, t: Array, s: Array, begin: Array, end: Array) -> Array:
        """<theta>, <theta^2>, ...: equations (2) to (4)."""
        n = self.order - 1
        if self.basis == "rho":
            return 1.0 / jnp.arange(2.0, n + 2.0, dtype=begin.dtype)
        finite = jnp.isfinite(end - begin)
        begin, h = jnp.where(finite, begin, 0.0), jnp.where(finite, end - begin, 0.0)
        if self.basis == "log_rho":
            return exponential_means(h, n)
        nodes = jnp.asarray(NODES, begin.dtype)
        weights = jnp.asarray(NODE_WEIGHTS, begin.dtype) * jnp.exp(-h * nodes)
        theta = (self.process.time_of_log_snr(2.0 * (begin + h * nodes)) - t) / (s - t)
        return jnp.stack([(weights * theta**k).sum() for k in range(1, n + 1)]) / weights.sum()

    def step(
        self, denoise: Denoise, noise: Noise, state: History, x: Array, t: Array, s: Array
    ) -> tuple[Array, History]:
        prediction = denoise(x, t)
        ahead = first_order(self.process, prediction, s)
        if self.order == 1:
            return ahead, state
        begin, end = half_log_snr(self.process, t), half_log_snr(self.process, s)
        place = self._place(t)
        ahead_place = jnp.where(jnp.isfinite(end - begin), self._place(s), jnp.inf)  # an infinite step is DDIM's
        weights = lagrange_weights(state.places, place, ahead_place, self._means(t, s, begin, end))
        change = combine(eps_gain(self.process, s, begin, end) * weights, state.values, prediction.eps)
        return ahead + change, state.remember(prediction.eps, place)


@record
class LMS(Sampler):
    """Equations (1) and (2): the linear multistep method of Adams and Bashforth in rho, its weights exact for whatever
    lengths the steps have; k-diffusion's LMS and `DEIS` with basis "rho". One evaluation a step; either direction.

    Order as named on any grid; it begins with the values there are, DDIM first, and from such a start the order is at
    most 2.

    Args:
      process: the process.
      order: the number of values, 1 to 4; static.

    Raises:
      ValueError: an unknown order; times from where alpha = 0.
    """

    order: int = field(default=4, pytree_node=False)

    def __post_init__(self) -> None:
        check_order(self.order, 4, "LMS")

    def check(self, ts: ArrayLike) -> None:
        refuse_no_signal(self.process, ts, "LMS")

    def init(self, x: Array) -> History:
        return no_history(x, self.order - 1)

    def step(
        self, denoise: Denoise, noise: Noise, state: History, x: Array, t: Array, s: Array
    ) -> tuple[Array, History]:
        return DEIS(self.process, self.order, "rho").step(denoise, noise, state, x, t, s)


class Past(NamedTuple):
    """Past values of eps, the newest first, and how many of them there are."""

    values: tuple[Array, ...]
    known: Array


@record
class IPNDM(Sampler):
    """iPNDM, equations (1) and (5): Adams and Bashforth's weights for steps of equal length, whatever the lengths are.
    One evaluation a step; either direction.

    Order as named on grids uniform in rho; on others at most 2 (1 where lengths of neighbours stay apart as steps
    shrink), for which `LMS` has the weights right. It begins with the values there are, DDIM first, and from such a
    start the order is at most 2.

    Args:
      process: the process.
      order: the number of values, 1 to 4; static.

    Raises:
      ValueError: an unknown order; times from where alpha = 0.
    """

    order: int = field(default=4, pytree_node=False)

    def __post_init__(self) -> None:
        check_order(self.order, 4, "IPNDM")

    def check(self, ts: ArrayLike) -> None:
        refuse_no_signal(self.process, ts, "IPNDM")

    def init(self, x: Array) -> Past:
        return Past((jnp.zeros_like(x),) * (self.order - 1), jnp.zeros((), jnp.int32))

    def step(self, denoise: Denoise, noise: Noise, state: Past, x: Array, t: Array, s: Array) -> tuple[Array, Past]:
        prediction = denoise(x, t)
        begin, end = half_log_snr(self.process, t), half_log_snr(self.process, s)
        weights = jnp.asarray(BASHFORTH, begin.dtype)[state.known]
        change = combine(eps_gain(self.process, s, begin, end) * weights, state.values, prediction.eps)
        values = (prediction.eps, *state.values)[: self.order - 1]
        ahead = first_order(self.process, prediction, s) + change
        return ahead, Past(values, jnp.minimum(state.known + 1, self.order - 1))
