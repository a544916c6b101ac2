"""The noise schedules of the literature, as processes in continuous time.

    VP          alpha = exp(-B/2), sigma^2 = 1 - exp(-B), B the integral of a linear beta     Song et al. 2021
    SubVP       alpha = exp(-B/2), sigma = 1 - exp(-B)                                         Song et al. 2021
    CosineVP    alpha = cos(pi t/2), sigma = sin(pi t/2)                                       Nichol & Dhariwal 2021
    SigmoidVP   alpha^2 falls along a logistic curve                                           Chen 2023
    VE          alpha = 1, sigma geometric                                                     Song et al. 2021
    KarrasVE    alpha = 1, sigma^(1/rho) linear                                                Karras et al. 2022
    Flow        alpha = 1 - t, sigma = t                                                       Liu et al. 2022

Each gives closed forms in place of `Process`'s defaults where these are better conditioned in float32: near 0, where
1 - alpha^2 cancels, and near t = 1, where alpha is small.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.process import Process, as_time, refuse_unless
from jaxdiff.record import record


def unit_at_end(t: ArrayLike, sigma: Array) -> Array:
    """sigma, but 1 at t = 1: where alpha(1)^2 is about 4e-5, published models start from N(0, I) exactly."""
    return jnp.where(as_time(t) == 1.0, jnp.ones_like(sigma), sigma)


@record
class _LinearBeta(Process):
    """beta(t) = beta_min + t (beta_max - beta_min), B(t) its integral from 0; alpha = exp(-B/2), f = -beta/2."""

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        refuse_unless(
            lambda low, high: (low > 0) & (high > 0),
            "beta_min and beta_max are to be positive",
            beta_min=self.beta_min,
            beta_max=self.beta_max,
        )

    def beta(self, t: ArrayLike) -> Array:
        return self.beta_min + as_time(t) * (self.beta_max - self.beta_min)

    def beta_integral(self, t: ArrayLike) -> Array:
        t = as_time(t)
        return t * (self.beta_min + 0.5 * t * (self.beta_max - self.beta_min))

    def alpha(self, t: ArrayLike) -> Array:
        return jnp.exp(-0.5 * self.beta_integral(t))

    def drift(self, t: ArrayLike) -> Array:
        return -0.5 * self.beta(t)

    def prior_std(self, t: ArrayLike = 1.0) -> Array:
        return unit_at_end(t, self.sigma(t))

    def _time_of_integral(self, integral: Array) -> Array:
        slope = self.beta_max - self.beta_min
        integral = jnp.minimum(integral, self.beta_integral(1.0))
        return 2.0 * integral / (self.beta_min + jnp.sqrt(self.beta_min**2 + 2.0 * slope * integral))


@record
class VP(_LinearBeta):
    """The variance-preserving SDE of Song et al. 2021 (equation 11), with beta linear in t and B its integral from 0,

        alpha = exp(-B/2),   sigma^2 = 1 - exp(-B),   f = -beta/2,   g^2 = beta.

    Args:
      beta_min: beta at t = 0, positive.
      beta_max: beta at t = 1. The defaults are those of Song et al. (appendix C), the limit of DDPM's chain.

    >>> process = VP()
    >>> print(f"{process.alpha(0.0):.3f} {process.sigma(1.0):.3f}")
    1.000 1.000
    """

    def sigma(self, t: ArrayLike) -> Array:
        return jnp.sqrt(-jnp.expm1(-self.beta_integral(t)))

    def log_snr(self, t: ArrayLike) -> Array:
        integral = self.beta_integral(t)
        return -integral - jnp.log(-jnp.expm1(-integral))

    def time_of_log_snr(self, log_snr: ArrayLike) -> Array:
        return self._time_of_integral(jax.nn.softplus(-as_time(log_snr)))

    def derivatives(self, t: ArrayLike) -> tuple[Array, Array]:
        beta, integral = self.beta(t), self.beta_integral(t)
        return -0.5 * beta * self.alpha(t), 0.5 * beta * jnp.exp(-integral) / self.sigma(t)

    def diffusion_squared(self, t: ArrayLike) -> Array:
        return self.beta(t)

    def transition(self, s: ArrayLike, t: ArrayLike) -> tuple[Array, Array]:
        s, t = as_time(s), as_time(t)
        between = (t - s) * (self.beta_min + 0.5 * (t + s) * (self.beta_max - self.beta_min))  # B(t) - B(s)
        return jnp.exp(-0.5 * between), -jnp.expm1(-between)


@record
class SubVP(_LinearBeta):
    """The sub-VP SDE of Song et al. 2021 (equation 29): VP's drift with less noise,

        alpha = exp(-B/2),   sigma = 1 - exp(-B),   f = -beta/2,   g^2 = beta (1 - exp(-2 B)).

    Args:
      beta_min: beta at t = 0, positive.
      beta_max: beta at t = 1.
    """

    def sigma(self, t: ArrayLike) -> Array:
        return -jnp.expm1(-self.beta_integral(t))

    def log_snr(self, t: ArrayLike) -> Array:
        integral = self.beta_integral(t)
        return -integral - 2.0 * jnp.log(-jnp.expm1(-integral))

    def time_of_log_snr(self, log_snr: ArrayLike) -> Array:
        # alpha/sigma = 1 / (2 sinh(B/2))
        return self._time_of_integral(2.0 * jnp.arcsinh(0.5 * jnp.exp(-0.5 * as_time(log_snr))))

    def derivatives(self, t: ArrayLike) -> tuple[Array, Array]:
        beta = self.beta(t)
        return -0.5 * beta * self.alpha(t), beta * jnp.exp(-self.beta_integral(t))

    def diffusion_squared(self, t: ArrayLike) -> Array:
        return -self.beta(t) * jnp.expm1(-2.0 * self.beta_integral(t))


@record
class CosineVP(Process):
    """alpha = cos(pi t/2), sigma = sin(pi t/2): the cosine schedule in continuous time (Nichol & Dhariwal 2021 without
    their offset; Salimans & Ho 2022). alpha(1) = 0.

        f = -(pi/2) tan(pi t/2),   g^2 = pi tan(pi t/2).
    """

    def alpha(self, t: ArrayLike) -> Array:
        return jnp.sin(0.5 * jnp.pi * (1.0 - as_time(t)))  # the cosine itself is negative at 1 in float32

    def sigma(self, t: ArrayLike) -> Array:
        return jnp.sin(0.5 * jnp.pi * as_time(t))

    def time_of_log_snr(self, log_snr: ArrayLike) -> Array:
        return 2.0 / jnp.pi * jnp.arctan(jnp.exp(-0.5 * as_time(log_snr)))

    def derivatives(self, t: ArrayLike) -> tuple[Array, Array]:
        return -0.5 * jnp.pi * self.sigma(t), 0.5 * jnp.pi * self.alpha(t)

    def drift(self, t: ArrayLike) -> Array:
        return -0.5 * jnp.pi * self.sigma(t) / self.alpha(t)

    def diffusion_squared(self, t: ArrayLike) -> Array:
        return jnp.pi * self.sigma(t) / self.alpha(t)


@record
class SigmoidVP(Process):
    """The sigmoid schedule of Chen 2023 ("On the Importance of Noise Scheduling", algorithm 1) without its clipping:

        alpha^2 = (s(b) - s(u)) / (s(b) - s(a)),   s the logistic function,
                  a = start/tau,   b = end/tau,   u = a + t (b - a).

    Computed by s(p) - s(q) = sinh((p - q)/2) / (2 cosh(p/2) cosh(q/2)), exact near both ends. alpha(1) = 0.

    Args:
      start: where the logistic curve is entered at t = 0.
      end: where it is left at t = 1, more than ``start``.
      tau: temperature, positive.
    """

    start: float = -3.0
    end: float = 3.0
    tau: float = 1.0

    def __post_init__(self) -> None:
        refuse_unless(
            lambda start, end, tau: (start < end) & (tau > 0),
            "a logistic curve needs start < end and tau > 0",
            start=self.start,
            end=self.end,
            tau=self.tau,
        )

    def _interval(self) -> tuple[Array, Array, Array]:
        a, b = as_time(self.start) / self.tau, as_time(self.end) / self.tau
        return a, b, b - a

    def alpha(self, t: ArrayLike) -> Array:
        a, _, span = self._interval()
        t = as_time(t)
        left = jnp.sinh(0.5 * span * (1.0 - t)) / jnp.sinh(0.5 * span)
        return jnp.sqrt(left * jnp.cosh(0.5 * a) / jnp.cosh(0.5 * (a + span * t)))

    def sigma(self, t: ArrayLike) -> Array:
        a, b, span = self._interval()
        t = as_time(t)
        past = jnp.sinh(0.5 * span * t) / jnp.sinh(0.5 * span)
        return jnp.sqrt(past * jnp.cosh(0.5 * b) / jnp.cosh(0.5 * (a + span * t)))

    def log_snr(self, t: ArrayLike) -> Array:
        a, b, span = self._interval()
        t = as_time(t)
        ratio = jnp.log(jnp.sinh(0.5 * span * (1.0 - t))) - jnp.log(jnp.sinh(0.5 * span * t))
        return ratio + jnp.log(jnp.cosh(0.5 * a)) - jnp.log(jnp.cosh(0.5 * b))

    def time_of_log_snr(self, log_snr: ArrayLike) -> Array:
        # With r = sinh(span (1-t)/2) / sinh(span t/2):  span t = ln((r + e^{span/2}) / (r + e^{-span/2})).
        a, b, span = self._interval()
        r = jnp.exp(as_time(log_snr)) * jnp.cosh(0.5 * b) / jnp.cosh(0.5 * a)
        return jnp.clip(jnp.log1p(2.0 * jnp.sinh(0.5 * span) / (r + jnp.exp(-0.5 * span))) / span, 0.0, 1.0)

    def drift(self, t: ArrayLike) -> Array:
        return -0.5 * self.diffusion_squared(t)

    def diffusion_squared(self, t: ArrayLike) -> Array:
        a, _, span = self._interval()
        t = as_time(t)
        return 0.5 * span * (1.0 / jnp.tanh(0.5 * span * (1.0 - t)) + jnp.tanh(0.5 * (a + span * t)))

    def snr_slope(self, t: ArrayLike) -> Array:
        a, b, span = self._interval()
        ratio = jnp.cosh(0.5 * a) / jnp.cosh(0.5 * b) * jnp.sinh(0.5 * span)
        return 0.5 * span * ratio / jnp.square(jnp.sinh(0.5 * span * as_time(t)))

    def derivatives(self, t: ArrayLike) -> tuple[Array, Array]:
        # (sigma^2)' = -(alpha^2)' is finite at both ends, though alpha' and sigma' are not
        a, b, span = self._interval()
        half = 0.25 * span * jnp.cosh(0.5 * a) * jnp.cosh(0.5 * b) / jnp.sinh(0.5 * span)
        half = half / jnp.square(jnp.cosh(0.5 * (a + span * as_time(t))))
        return -half / self.alpha(t), half / self.sigma(t)


@record
class _Exploding(Process):
    """alpha = 1: noise is only added, from sigma_min at t = 0 to sigma_max at t = 1."""

    sigma_min: float
    sigma_max: float

    def __post_init__(self) -> None:
        refuse_unless(
            lambda low, high: (low > 0) & (low < high),
            "noise grows from a positive level: 0 < sigma_min < sigma_max is needed",
            sigma_min=self.sigma_min,
            sigma_max=self.sigma_max,
        )

    def min_time(self) -> Array:
        return jnp.zeros((), jnp.result_type(float))

    def alpha(self, t: ArrayLike) -> Array:
        return jnp.ones_like(as_time(t))

    def drift(self, t: ArrayLike) -> Array:
        return jnp.zeros_like(as_time(t))


@record
class VE(_Exploding):
    """The variance-exploding SDE: alpha = 1, sigma = sigma_min (sigma_max/sigma_min)^t (Song et al. 2021, equation 9).

    Args:
      sigma_min: noise at t = 0, positive.
      sigma_max: noise at t = 1; about the largest distance between two data points.
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0

    def _log_ratio(self) -> Array:
        return jnp.log(self.sigma_max) - jnp.log(self.sigma_min)

    def sigma(self, t: ArrayLike) -> Array:
        return self.sigma_min * jnp.exp(as_time(t) * self._log_ratio())

    def log_snr(self, t: ArrayLike) -> Array:
        return -2.0 * (jnp.log(self.sigma_min) + as_time(t) * self._log_ratio())

    def time_of_log_snr(self, log_snr: ArrayLike) -> Array:
        return jnp.clip((-0.5 * as_time(log_snr) - jnp.log(self.sigma_min)) / self._log_ratio(), 0.0, 1.0)

    def derivatives(self, t: ArrayLike) -> tuple[Array, Array]:
        return jnp.zeros_like(as_time(t)), self.sigma(t) * self._log_ratio()


@record
class KarrasVE(_Exploding):
    """alpha = 1 and time uniform on Karras' warp: sigma^(1/rho) is linear in t (Karras et al. 2022, equation 5).

    Args:
      sigma_min: noise at t = 0, positive.
      sigma_max: noise at t = 1.
      rho: 1 is uniform in sigma, large values approach `VE`.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def _root(self, t: ArrayLike) -> tuple[Array, Array]:
        low, high = jnp.power(self.sigma_min, 1.0 / self.rho), jnp.power(self.sigma_max, 1.0 / self.rho)
        t = as_time(t)
        return low * (1.0 - t) + high * t, high - low

    def sigma(self, t: ArrayLike) -> Array:
        return jnp.power(self._root(t)[0], self.rho)

    def log_snr(self, t: ArrayLike) -> Array:
        return -2.0 * self.rho * jnp.log(self._root(t)[0])

    def time_of_log_snr(self, log_snr: ArrayLike) -> Array:
        low, span = self._root(0.0)
        return jnp.clip((jnp.exp(-0.5 * as_time(log_snr) / self.rho) - low) / span, 0.0, 1.0)

    def derivatives(self, t: ArrayLike) -> tuple[Array, Array]:
        root, span = self._root(t)
        return jnp.zeros_like(root), self.rho * jnp.power(root, self.rho - 1.0) * span


@record
class Flow(Process):
    """Rectified flow, the straight line alpha = 1 - t, sigma = t (Liu et al. 2022; Lipman et al. 2023): velocity eps -
    x_0.

    Note that published flow models often run time the other way (SiT: t = 1 is data).

        f = -1/(1 - t),   g^2 = 2 t/(1 - t).
    """

    def alpha(self, t: ArrayLike) -> Array:
        return 1.0 - as_time(t)

    def sigma(self, t: ArrayLike) -> Array:
        return as_time(t)

    def time_of_log_snr(self, log_snr: ArrayLike) -> Array:
        return jax.nn.sigmoid(-0.5 * as_time(log_snr))

    def derivatives(self, t: ArrayLike) -> tuple[Array, Array]:
        t = as_time(t)
        return -jnp.ones_like(t), jnp.ones_like(t)

    def drift(self, t: ArrayLike) -> Array:
        return -1.0 / (1.0 - as_time(t))

    def diffusion_squared(self, t: ArrayLike) -> Array:
        t = as_time(t)
        return 2.0 * t / (1.0 - t)
