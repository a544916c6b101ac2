"""Exponential methods on the reverse SDEs, in lambda = ln(alpha/sigma), on x0.

With h = lambda_s - lambda_t and constant tau the SDE (1) of `jaxdiff.sampling.sde` has the exact solution (Xue et al.
2023, SA-Solver, proposition 4.2; Lu et al. 2022b, DPM-Solver++, equation 12 for tau = 1, equation 8 for tau = 0)

    x_s = (sigma_s/sigma_t) e^{-tau^2 h} x_t + (1 + tau^2) alpha_s int e^{-(1 + tau^2)(lambda_s - lambda)} x0 d lambda
          + sigma_s sqrt(1 - e^{-2 tau^2 h}) z.                                                      (1)

Holding x0 at its value D_0 at t, and writing H = (1 + tau^2) h, gives the first order, which is DDIM's of another eta:

    x_s = alpha_s x0 + sigma_s (e^{-tau^2 h} eps + sqrt(1 - e^{-2 tau^2 h}) z).                      (2)

A method of higher order adds to (2), as in `jaxdiff.sampling.exponential`,

    G sum_i W_i (D_i - D_0),    G = -alpha_s expm1(-H),    <theta^k> = m_k(-H),                      (3)

for the values D_i at other places. The weights are those of an integrator of order p, and at tau = 0 the method is one;
but x0 along a path that is driven by noise moves by sqrt(h) in a step, so that for tau > 0 the strong order is 1
whatever p is (as is that of the weight of z, for a given Brownian motion), with an error of O(tau h + h^p) (Xue et al.
2023, theorem 5.1).

The weak order is 2 for p >= 2. `DPMppSDE` finds the drift of x0 and its correlation with the step's noise at the
middle. The multistep methods find both in the step before: for a test function u, with L the SDE's generator, E[u'(x)
(D_0 - D_1)] = h E[u' L D + tau^2 g^2 u'' D'] + O(h^2), which are the terms in h^2 that the first order misses. (It is
measured, on Gaussian data exactly, in tests/sampling/test_stochastic_orders.py.)

Where alpha_t = 0, h is infinite: the step is then alpha_s x0 + sigma_s z (tau > 0), and that x0 has no part in the
next.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.denoiser import Denoise
from jaxdiff.noise import Noise
from jaxdiff.prediction import Prediction
from jaxdiff.process import Process
from jaxdiff.record import field, record
from jaxdiff.sampling.base import Sampler, State
from jaxdiff.sampling.checks import check_tau
from jaxdiff.sampling.exponential import (
    History,
    check_order,
    combine,
    exponential_means,
    half_log_snr,
    known_places,
    lagrange_weights,
    no_history,
)
from jaxdiff.sampling.singlestep import time_between


class Stretch(NamedTuple):
    """What (1) to (3) need of one step: lambda at its ends, H, and the weights of eps and z in units of sigma_s."""

    begin: Array
    end: Array
    rate: Array
    kept: Array
    fresh: Array


def stretch(tau: ArrayLike, begin: Array, end: Array) -> Stretch:
    """The step from ``begin`` to ``end`` in lambda."""
    decay = jnp.where(jnp.asarray(tau) == 0, 0.0, jnp.square(tau) * (end - begin))  # 0 also where h is infinite
    return Stretch(begin, end, end - begin + decay, jnp.exp(-decay), jnp.sqrt(-jnp.expm1(-2.0 * decay)))


def first_order(process: Process, prediction: Prediction, s: Array, part: Stretch, z: Array) -> Array:
    """Equation (2)."""
    return process.alpha(s) * prediction.x0 + process.sigma(s) * (part.kept * prediction.eps + part.fresh * z)


def gain(process: Process, s: Array, part: Stretch) -> Array:
    """G of equation (3)."""
    return -process.alpha(s) * jnp.expm1(-part.rate)


def x0_weights(places: Array, part: Stretch) -> Array:
    """The W_i of equation (3), ``(n,)``. A weight that is alone has the limit of <theta> for short steps, 1/2, as in
    `jaxdiff.sampling.multistep`."""
    means = exponential_means(-part.rate, max(1, places.shape[0]))
    alone = known_places(places, part.begin, part.end).sum() == 1
    return lagrange_weights(places, part.begin, part.end, means.at[0].set(jnp.where(alone, 0.5, means[0])))


@record
class DPMppSDE(Sampler):
    """SDE-DPM-Solver++(2S): equation (2) to the middle of the step in lambda, then (3) with the x0 found there,
    D_m, and W_m = 1. Weak order 2, strong order 1; two evaluations a step; falling times. At tau = 0 it is `DPMpp2S`.

    The noises z_1 of the way to the middle m and z_2 of the way from it are also those of the whole step,

        sqrt(1 - e^{-2 tau^2 h}) z = (e^{-tau^2 h_2} sqrt(1 - e^{-2 tau^2 h_1})) z_1 + sqrt(1 - e^{-2 tau^2 h_2}) z_2.

    A step from alpha = 0 is (2)'s.

    Args:
      process: the process.
      tau: the noise's level, >= 0; data. 0 the probability flow, 1 the reverse SDE.

    >>> import jax
    >>> from jaxdiff import Flow, GaussianDenoiser, log_snr_times, sample, sample_keys
    >>> process, keys, ts = Flow(), sample_keys(jax.random.key(0), 0, 4), log_snr_times(Flow(), 20)
    >>> x = process.prior_sample(keys, (2,), ts[0])
    >>> sample(DPMppSDE(process), GaussianDenoiser(process, 3.0, 0.1), keys, x, ts).shape
    (4, 2)

    Source: Lu et al. 2022b, DPM-Solver++, section 5 and appendix B; two evaluations and one Brownian path as in
    k-diffusion's dpmpp_sde.
    """

    tau: ArrayLike = 1.0

    def __post_init__(self) -> None:
        check_tau(self.tau)

    def noise_level(self) -> ArrayLike:
        return self.tau

    def step(self, denoise: Denoise, noise: Noise, state: State, x: Array, t: Array, s: Array) -> tuple[Array, State]:
        process, prediction = self.process, denoise(x, t)
        begin, end = half_log_snr(process, t), half_log_snr(process, s)
        finite = jnp.isfinite(begin)
        middle = jnp.where(finite, time_between(process, t, s, 0.5), 0.5 * (t + s))
        halfway = half_log_snr(process, middle)
        whole, before, after = (stretch(self.tau, *part) for part in ((begin, end), (begin, halfway), (halfway, end)))
        first, second = noise(t, middle), noise(middle, s)
        other = denoise(first_order(process, prediction, middle, before, first), middle).x0
        sigma = process.sigma(s)
        ahead = process.alpha(s) * prediction.x0 + sigma * whole.kept * prediction.eps
        ahead = ahead + sigma * (after.kept * before.fresh * first + after.fresh * second)
        weight = jnp.where(finite, gain(process, s, whole), 0.0)
        return ahead + weight * (other - prediction.x0), state


@record
class DPMpp2MSDE(Sampler):
    """SDE-DPM-Solver++(2M): equations (2) and (3) with the x0 of the step before. Weak order 2, strong order 1; one
    evaluation a step; falling times. At tau = 0 and "midpoint" it is `DPMpp2M`.

    Args:
      process: the process.
      tau: the noise's level, >= 0; data. k-diffusion's eta is its square.
      solver: <theta> of the one weight: "midpoint" takes 1/2, its limit for short steps, "heun" the exact m_1(-H);
        static.

    Raises:
      ValueError: an unknown solver.

    Source: Lu et al. 2022b, DPM-Solver++, equations 17 and 18.
    """

    tau: ArrayLike = 1.0
    solver: Literal["midpoint", "heun"] = field(default="midpoint", pytree_node=False)

    def __post_init__(self) -> None:
        if self.solver not in ("midpoint", "heun"):
            raise ValueError(f'solver is to be "midpoint" or "heun", got {self.solver!r}')
        check_tau(self.tau)

    def noise_level(self) -> ArrayLike:
        return self.tau

    def init(self, x: Array) -> History:
        return no_history(x, 1)

    def step(
        self, denoise: Denoise, noise: Noise, state: History, x: Array, t: Array, s: Array
    ) -> tuple[Array, History]:
        prediction = denoise(x, t)
        part = stretch(self.tau, half_log_snr(self.process, t), half_log_snr(self.process, s))
        means = jnp.full(1, 0.5) if self.solver == "midpoint" else exponential_means(-part.rate, 1)
        weights = gain(self.process, s, part) * lagrange_weights(state.places, part.begin, part.end, means)
        ahead = first_order(self.process, prediction, s, part, noise(t, s))
        return ahead + combine(weights, state.values, prediction.x0), state.remember(prediction.x0, part.begin)


@record
class DPMpp3MSDE(Sampler):
    """SDE-DPM-Solver++(3M): equations (2) and (3) with the x0 of the two steps before, the first steps of lower order.
    Weak order 2, strong order 1; one evaluation a step; falling times. At tau = 0 it is `DPMpp3M`.

    (k-diffusion's dpmpp_3m_sde has phi_3 where the second derivative's term calls for 2 phi_3.)

    Args:
      process: the process.
      tau: the noise's level, >= 0; data. k-diffusion's eta is its square.
    """

    tau: ArrayLike = 1.0

    def __post_init__(self) -> None:
        check_tau(self.tau)

    def noise_level(self) -> ArrayLike:
        return self.tau

    def init(self, x: Array) -> History:
        return no_history(x, 2)

    def step(
        self, denoise: Denoise, noise: Noise, state: History, x: Array, t: Array, s: Array
    ) -> tuple[Array, History]:
        prediction = denoise(x, t)
        part = stretch(self.tau, half_log_snr(self.process, t), half_log_snr(self.process, s))
        weights = gain(self.process, s, part) * x0_weights(state.places, part)
        ahead = first_order(self.process, prediction, s, part, noise(t, s))
        return ahead + combine(weights, state.values, prediction.x0), state.remember(prediction.x0, part.begin)


@record
class SASolver(Sampler):
    """SA-Solver, a stochastic Adams predictor and corrector: equations (2) and (3), the predictor with the x0 of t and
    of the steps before, the corrector with that of s too, evaluated at the predicted x_s, and with the predictor's
    noise. For tau > 0 weak order 2 (1 for the orders 1 and 0), strong order 1 with an error of O(tau h + h^p); one
    evaluation a step; falling times. The last x is the predictor's.

    At tau = 0 it is `UniPC` of order ``predictor_order`` with B2, without its corrector if ``corrector_order`` is 0,
    with it if that is ``predictor_order + 1``; with the orders 1 and 0 it is DDIM.

    Args:
      process: the process.
      predictor_order: values of x0 that the predictor uses, 1 to 4; static.
      corrector_order: values that the corrector uses, that at s among them, 2 to 5; 0 for no corrector; static.
      tau: the noise's level, >= 0; data. 0 the probability flow, 1 the reverse SDE.
      rho_min, rho_max: tau is 0 for steps that begin at sigma/alpha outside of these; data. The paper's for EDM's
        CIFAR-10 network: 0.05 to 1.

    Raises:
      ValueError: an unknown order.

    Source: Xue et al. 2023, "SA-Solver: Stochastic Adams Solver for Fast Sampling of Diffusion Models", algorithm 1,
    with the choice of their code (as UniPC's) for a weight that is alone.
    """

    predictor_order: int = field(default=3, pytree_node=False)
    corrector_order: int = field(default=4, pytree_node=False)
    tau: ArrayLike = 1.0
    rho_min: ArrayLike = 0.0
    rho_max: ArrayLike = jnp.inf

    def noise_level(self) -> ArrayLike:
        return self.tau

    def __post_init__(self) -> None:
        check_tau(self.tau)
        check_order(self.predictor_order, 4, "SASolver's predictor")
        if self.corrector_order != 0:
            check_order(self.corrector_order, 5, "SASolver's corrector")
            if self.corrector_order == 1:
                raise ValueError("SASolver's corrector uses x0 at both ends: its order is 0 (none) or 2 to 5, got 1")

    def init(self, x: Array) -> History:
        return no_history(x, max(self.predictor_order - 1, self._remembered()))

    def _remembered(self) -> int:
        """Values that correcting the last step takes: the predictor's, and those of the corrector but the one at s."""
        return max(self.predictor_order, self.corrector_order - 1) if self.corrector_order else 0

    def _level(self, half_log_snr: Array) -> Array:
        rho = jnp.exp(-half_log_snr)
        return jnp.where((rho >= self.rho_min) & (rho <= self.rho_max), self.tau, 0.0)

    def step(
        self, denoise: Denoise, noise: Noise, state: History, x: Array, t: Array, s: Array
    ) -> tuple[Array, History]:
        process, prediction = self.process, denoise(x, t)
        here = half_log_snr(process, t)
        part = stretch(self._level(here), here, half_log_snr(process, s))
        ahead = first_order(process, prediction, s, part, noise(t, s))
        if self.corrector_order:
            sigma = process.sigma(t)
            carry = process.sigma(s) / jnp.where(sigma == 0, 1.0, sigma) * part.kept  # of what is added to x_t
            ahead = ahead + self._correction(state, prediction.x0, carry, t, here)
        before = self.predictor_order - 1
        weights = gain(process, s, part) * x0_weights(state.places[:before], part)
        return ahead + combine(weights, state.values[:before], prediction.x0), state.remember(prediction.x0, here)

    def _correction(self, state: History, x0: Array, carry: Array, t: Array, here: Array) -> Array | float:
        """(3) with the corrector's weights less the predictor's, for the step that ended at t, times ``carry``."""
        begin, (first, *others) = state.places[0], state.values
        part = stretch(self._level(begin), begin, here)
        newer, older = self.corrector_order - 2, self.predictor_order - 1  # besides D at s: of the past
        corrector = x0_weights(jnp.concatenate([jnp.reshape(here, 1), state.places[1 : newer + 1]]), part)
        predictor = x0_weights(state.places[1 : older + 1], part)
        size = max(newer, older) + 1
        weights = jnp.zeros(size, here.dtype).at[: newer + 1].add(corrector).at[1 : older + 1].add(-predictor)
        known = jnp.isfinite(begin)
        weights = jnp.where(known, carry * gain(self.process, t, part) * weights, 0.0)
        return combine(weights, [x0, *others[: size - 1]], first)
