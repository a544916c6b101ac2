"""What exponential and Adams methods share: exact means of polynomials over a step, and the memory of past predictions.

With lambda = ln(alpha/sigma) and rho = sigma/alpha = e^-lambda the probability flow from t to s is (Lu et al. 2022a,
DPM-Solver, equation 3.4; Lu et al. 2022b, DPM-Solver++, equation 8)

    x_s = (alpha_s/alpha_t) x_t + alpha_s int_{rho_t}^{rho_s} eps d rho                                      (1)
        = (sigma_s/sigma_t) x_t + sigma_s int_{lambda_t}^{lambda_s} e^lambda x0 d lambda                     (2)

and holding the integrand D (eps in (1), x0 in (2)) at its value D_0 at t gives DDIM's step either way. A method of
higher order puts for D the polynomial, in some variable p, through D_0 and the values D_i at other places p_i:

    x_s = alpha_s x0 + sigma_s eps + G sum_i W_i (D_i - D_0),     W_i = <L_i>,                               (3)
    L_i = (theta/theta_i) prod_{j != i} (theta - theta_j)/(theta_i - theta_j),   theta = (p - p_t)/(p_s - p_t),

where G is the whole weight of the step and <.> the mean over it. With h = lambda_s - lambda_t,

    (1):  G = -sigma_s expm1(h),      <theta^k> = m_k(h) for p = lambda,   1/(k + 1) for p = rho             (4)
    (2):  G = -alpha_s expm1(-h),     <theta^k> = m_k(-h) for p = lambda                                     (5)
    m_k(z) = int_0^1 e^{(1-theta) z} theta^k d theta / int_0^1 e^{(1-theta) z} d theta
           = k! phi_{k+1}(z)/phi_1(z) = (k/z) m_{k-1}(z) - 1/expm1(z),     m_0 = 1.                          (6)

The W_i multiply differences, so that rounding in them cannot spoil the first order. Places before t make every term of
L_i's expansion of one sign: nothing cancels. A place at infinity drops out (L_i -> 0, its factor in the others -> 1),
which is what a value not there yet and a value from where alpha = 0 have in common: both are remembered as such.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.prediction import Prediction
from jaxdiff.process import Process

_ROOTS, _WEIGHTS = np.polynomial.legendre.leggauss(16)
NODES, NODE_WEIGHTS = 0.5 * (1.0 + _ROOTS), 0.5 * _WEIGHTS
"""Gauss and Legendre's rule of 16 points on [0, 1]."""


def half_log_snr(process: Process, t: ArrayLike) -> Array:
    """lambda = ln(alpha/sigma)."""
    return 0.5 * process.log_snr(t)


def exponential_means(z: Array, n: int) -> Array:
    """Equation (6): ``(n,)``, m_1(z) to m_n(z), for any scalar z, infinite ones too.

    To |z| = 8 by Gauss and Legendre's rule, whose terms are positive and whose error there is far below rounding; the
    recurrence, which cancels for small z, beyond.

    >>> [f"{mean:.4f}" for mean in exponential_means(jnp.asarray(0.0), 3)]
    ['0.5000', '0.3333', '0.2500']
    """
    nodes = jnp.asarray(NODES, z.dtype)
    near = jnp.clip(z, -8.0, 8.0)
    weights = jnp.asarray(NODE_WEIGHTS, z.dtype) * jnp.exp(near * (0.5 - nodes))
    ruled = jnp.stack([(weights * nodes**k).sum() for k in range(1, n + 1)]) / weights.sum()
    far = jnp.where(jnp.abs(z) > 8.0, z, 8.0)
    mean, recurred = jnp.ones_like(z), []
    for k in range(1, n + 1):
        mean = k * mean / far - 1.0 / jnp.expm1(far)
        recurred.append(mean)
    return jnp.where(jnp.abs(z) > 8.0, jnp.stack(recurred), ruled)


def known_places(places: Array, begin: Array, end: Array) -> Array:
    """Which places can carry a polynomial over the step from ``begin`` to ``end``: finite, distinct, none if the step
    itself is infinite or empty."""
    repeated = jnp.triu(places[:, None] == places[None, :], 1).any(axis=0) | (places == begin)
    step = end - begin
    return jnp.isfinite(places) & ~repeated & jnp.isfinite(step) & (step != 0)


def lagrange_weights(places: Array, begin: Array, end: Array, means: Array) -> Array:
    """Equation (3): ``(n,)`` weights W_i.

    Args:
      places: ``(n,)``, the p_i; infinite where there is none, whose weight is 0.
      begin: p_t, the place of D_0.
      end: p_s.
      means: at least n of them, <theta>, <theta^2>, ...; finite.

    >>> print(lagrange_weights(jnp.array([-1.0, jnp.inf]), jnp.array(0.0), jnp.array(1.0), jnp.array([1 / 2, 1 / 3])))
    [-0.5  0. ]
    """
    n = places.shape[0]
    if n == 0:
        return places
    known = known_places(places, begin, end)
    step = jnp.where(known.any(), end - begin, 1.0)
    # Differences of places are taken before anything is divided: places that are near each other stay exact.
    to_begin = jnp.where(known, places - begin, 1.0)
    rows = [jnp.where(known, step / to_begin, 0.0)] + [jnp.zeros_like(places)] * (n - 1)  # of theta, theta^2, ...
    for j in range(n):
        others = known & known[j] & (np.arange(n) != j)
        apart = jnp.where(others, places - places[j], 1.0)
        constant = jnp.where(others, -to_begin[j] / apart, 1.0)
        linear = jnp.where(others, step / apart, 0.0)
        lower = [jnp.zeros_like(places), *rows[:-1]]
        rows = [constant * row + linear * below for row, below in zip(rows, lower, strict=True)]
    total = means[0] * rows[0]
    for k in range(1, n):
        total = total + means[k] * rows[k]
    return total


class History(NamedTuple):
    """Past values D and their places, the newest first; a place at infinity says that there is none."""

    values: tuple[Array, ...]
    places: Array

    def remember(self, value: Array, place: Array) -> History:
        """With a newest one for the oldest."""
        n = len(self.values)
        places = jnp.concatenate([jnp.reshape(place, 1).astype(self.places.dtype), self.places])
        return History((value, *self.values)[:n], places[:n])


def no_history(x: Array, n: int) -> History:
    """Room for n values like x."""
    return History((jnp.zeros_like(x),) * n, jnp.full(n, -jnp.inf, jnp.result_type(float)))


def first_order(process: Process, prediction: Prediction, s: Array) -> Array:
    """DDIM's step to s."""
    return process.alpha(s) * prediction.x0 + process.sigma(s) * prediction.eps


def combine(weights: Array, values: Sequence[Array], here: Array) -> Array | float:
    """sum_i W_i (D_i - D_0)."""
    return sum(weights[i] * (value - here) for i, value in enumerate(values))


def check_order(order: int, most: int, name: str) -> None:
    """Raises ValueError unless ``order`` is an integer from 1 to ``most``."""
    if isinstance(order, bool) or not isinstance(order, int) or not 1 <= order <= most:
        raise ValueError(f"the order of {name} is to be 1 to {most}, got {order!r}")
