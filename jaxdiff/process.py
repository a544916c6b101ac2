"""Gaussian processes between data and noise.

A process is two functions of time t in [0, 1] (t = 0 is the data end, t = 1 the noise end),

    x_t = alpha(t) x_0 + sigma(t) eps,    eps ~ N(0, I),                                             (1)

and everything else follows from them (Kingma et al. 2021, "Variational Diffusion Models"; Song et al. 2021,
"Score-Based Generative Modeling through SDEs"; Karras et al. 2022). With ' for d/dt and lambda for the log
signal-to-noise ratio:

    lambda(t)  = ln(alpha^2 / sigma^2)                                                               (2)
    dx = f x dt + g dw,   f = alpha'/alpha,   g^2 = 2 sigma sigma' - 2 sigma^2 alpha'/alpha          (3)
    dx/dt = alpha' x_0 + sigma' eps             (the probability-flow velocity given x_0 and eps)    (4)
    q(x_t | x_s) = N(r x_s, v),   r = alpha_t/alpha_s,   v = sigma_t^2 - r^2 sigma_s^2,   s < t      (5)
                 v = -sigma_t^2 expm1(lambda_t - lambda_s)
    q(x_s | x_t, x_0) = N(alpha_s x_0 + sqrt(sigma_s^2 - w) eps, w),                                 (6)
                 w = -sigma_s^2 expm1(lambda_t - lambda_s),   eps = (x_t - alpha_t x_0)/sigma_t

`Process` derives (2)-(6) from alpha and sigma alone (derivatives by forward-mode differentiation, the inverse of (2) by
bisection); a subclass overrides a method only with a closed form that is better conditioned in float32.

Ends. sigma(0) = 0 for `VP`, `CosineVP`, `SigmoidVP`, `SubVP`, `Flow`: there eps is undefined, and sampling and training
stop at `min_time`. alpha(1) = 0 for `CosineVP`, `SigmoidVP`, `Flow` and zero-terminal-SNR chains: there f and g^2 are
infinite and x_0 cannot be had from eps. `VE` and `KarrasVE` begin at sigma(0) = sigma_min > 0.

A process that ends by itself is taken to its end: t = 0 where sigma(0) > 0 (`VE`), t = 1 where alpha(1) is not small.
Else something finite stands for the end. At the noise end the prior N(0, sigma^2) leaves out alpha m and alpha^2 s^2,
for data of mean m and standard deviation s; with data of the size of the noise they end in, s about sigma(1), it is off
by alpha^2/2 of its standard deviation: 1.25e-5 where alpha = 1/200. So `max_time` is where

    sigma/alpha = min(sigma(1)/alpha(1), 200 sigma(1)),                                              (7)

which is t = 1 for alpha(1) >= 1/200, whatever sigma(1) is, and does not depend on the units of the data: noise c times
as large, for data c times as large, ends at the same t.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.broadcast import expand, flatten
from jaxdiff.noise import PRIOR, salted_keys, white_noise
from jaxdiff.record import record

RATIO_MIN = 0.002
"""Least noise-to-signal ratio sigma/alpha visited by default where sigma(0) = 0: invisible in 8-bit images (Karras et
al. 2022, table 1)."""

RATIO_MAX = 200.0
"""Largest one, in units of sigma(1), where alpha(1) is less than 1/200: equation (7) of `jaxdiff.process`."""


def as_time(t: ArrayLike) -> Array:
    """t as a floating-point array."""
    return jnp.asarray(t, jnp.result_type(float, t))


def refuse_unless(holds: Callable[..., Any], message: str, **numbers: ArrayLike) -> None:
    """Raises ValueError, with what came, unless numbers that are known (not traced) are in their range.

    >>> refuse_unless(lambda eta: 0 <= eta, "eta is to be 0 or more", eta=-1.0)
    Traceback (most recent call last):
    ...
    ValueError: eta is to be 0 or more, got eta = -1.0
    """
    if any(isinstance(value, jax.core.Tracer) for value in numbers.values()):
        return
    if not np.all(holds(*(np.asarray(value) for value in numbers.values()))):
        raise ValueError(f"{message}, got {', '.join(f'{name} = {value}' for name, value in numbers.items())}")


@record
class Process(abc.ABC):
    """A Gaussian process, equation (1). Subclasses give `alpha` and `sigma`, elementwise in t; shapes follow t."""

    @abc.abstractmethod
    def alpha(self, t: ArrayLike) -> Array:
        """The signal's scale, falling with t; 1 at t = 0."""

    @abc.abstractmethod
    def sigma(self, t: ArrayLike) -> Array:
        """The noise's standard deviation, rising with t."""

    @property
    def steps(self) -> int | None:
        """Number of times of a discrete chain, t = k / steps; None for processes in continuous time."""
        return None

    def min_time(self) -> Array:
        """Where grids end and training times begin: 0 where sigma(0) > 0, else the time where sigma/alpha = 0.002."""
        least, most = self.sigma(0.0), self.sigma(1.0)
        noisy = least > 4 * jnp.finfo(least.dtype).eps * most  # less is the rounding of a 0
        return jnp.where(noisy, 0.0, jnp.clip(self.time_of_log_snr(-2.0 * math.log(RATIO_MIN)), 0.0, 1.0))

    def max_time(self, ratio: float = RATIO_MAX) -> Array:
        """Where grids in the noise level and likelihoods begin: equation (7), 1 where alpha(1) >= 1/``ratio``."""
        cut = self.time_of_log_snr(-2.0 * (math.log(ratio) + jnp.log(self.sigma(1.0))))
        return jnp.where(self.alpha(1.0) * ratio >= 1.0, 1.0, cut)

    def log_snr(self, t: ArrayLike) -> Array:
        """Equation (2): lambda(t) = ln(alpha^2/sigma^2), falling with t, infinite where sigma or alpha is 0."""
        return 2.0 * (jnp.log(self.alpha(t)) - jnp.log(self.sigma(t)))

    def time_of_log_snr(self, log_snr: ArrayLike) -> Array:
        """The inverse of `log_snr`, limited to [0, 1].

        By bisection, then one Newton step through which derivatives pass: d t = (d l - d lambda) / lambda'(t).
        """
        target = as_time(log_snr)

        def halve(_: int, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
            low, high = bracket
            middle = 0.5 * (low + high)
            noisier = self.log_snr(middle) < target
            return jnp.where(noisier, low, middle), jnp.where(noisier, middle, high)

        bracket = (jnp.zeros_like(target), jnp.ones_like(target))
        low, high = jax.lax.fori_loop(0, 2 * jnp.finfo(target.dtype).nmant, halve, bracket)
        t = jax.lax.stop_gradient(0.5 * (low + high))
        value, slope = jax.jvp(self.log_snr, (t,), (jnp.ones_like(t),))
        newton = (value - target) / slope
        return jnp.clip(t - jnp.where(jnp.isfinite(newton), newton, 0.0), 0.0, 1.0)

    def derivatives(self, t: ArrayLike) -> tuple[Array, Array]:
        """(alpha'(t), sigma'(t))."""
        t = as_time(t)
        one = jnp.ones_like(t)
        return jax.jvp(self.alpha, (t,), (one,))[1], jax.jvp(self.sigma, (t,), (one,))[1]

    def drift(self, t: ArrayLike) -> Array:
        """f of equation (3): the forward SDE is dx = f(t) x dt + g(t) dw."""
        return self.derivatives(t)[0] / self.alpha(t)

    def diffusion_squared(self, t: ArrayLike) -> Array:
        """g^2 of equation (3)."""
        alpha_dot, sigma_dot = self.derivatives(t)
        alpha, sigma = self.alpha(t), self.sigma(t)
        return 2.0 * sigma * (sigma_dot - sigma * alpha_dot / alpha)

    def snr_slope(self, t: ArrayLike) -> Array:
        """-dSNR/dt = SNR g^2/sigma^2 = 2 alpha (alpha sigma' - sigma alpha')/sigma^3, finite where alpha = 0 though g^2
        is not."""
        alpha_dot, sigma_dot = self.derivatives(t)
        alpha, sigma = self.alpha(t), self.sigma(t)
        return 2.0 * alpha * (alpha * sigma_dot - sigma * alpha_dot) / (sigma * sigma * sigma)

    def velocity(self, x0: Array, eps: Array, t: ArrayLike) -> Array:
        """Equation (4): dx/dt along the probability flow."""
        alpha_dot, sigma_dot = self.derivatives(t)
        return expand(alpha_dot, x0) * x0 + expand(sigma_dot, x0) * eps

    def perturb(self, x0: Array, eps: Array, t: ArrayLike) -> Array:
        """Equation (1): noisy samples ``(B, ...)`` at t ``()`` or ``(B,)``."""
        return expand(self.alpha(t), x0) * x0 + expand(self.sigma(t), x0) * eps

    def transition(self, s: ArrayLike, t: ArrayLike) -> tuple[Array, Array]:
        """Equation (5): scale and variance of q(x_t | x_s), s < t."""
        return self.alpha(t) / self.alpha(s), -jnp.square(self.sigma(t)) * jnp.expm1(self.log_snr(t) - self.log_snr(s))

    def posterior(self, s: ArrayLike, t: ArrayLike) -> tuple[Array, Array, Array]:
        """Equation (6): (a, b, w) of q(x_s | x_t, x_0) = N(a x_0 + b eps, w), with x_t = alpha_t x_0 + sigma_t eps, s <
        t."""
        sigma, difference = self.sigma(s), self.log_snr(t) - self.log_snr(s)
        return self.alpha(s), sigma * jnp.exp(0.5 * difference), -jnp.square(sigma) * jnp.expm1(difference)

    def prior_std(self, t: ArrayLike = 1.0) -> Array:
        """Standard deviation of the noise that sampling starts from at t: sigma(t)."""
        return self.sigma(t)

    def prior_sample(self, keys: Array, shape: tuple[int, ...], t: ArrayLike = 1.0) -> Array:
        """Noise to start from at t: N(0, prior_std(t)^2), one draw a key. The mean alpha(t) E[x_0] is left out, so t is
        to be one where alpha(t) is small against sigma(t).

        Args:
          keys: ``(B,)``, from `sample_keys`.
          shape: of one sample.
          t: the time of the first step.

        Raises:
          ValueError: a single key, where one a sample is needed.

        >>> from jaxdiff.noise import sample_keys
        >>> from jaxdiff.schedule import VE
        >>> VE().prior_sample(sample_keys(jax.random.key(0), 0, 2), (8, 8, 1)).shape
        (2, 8, 8, 1)
        """
        return self.prior_std(t) * white_noise(salted_keys(keys, PRIOR), shape)

    def prior_log_density(self, x: Array, t: ArrayLike = 1.0) -> Array:
        """Natural log density of `prior_sample` at x: ``(B, ...) -> (B,)``."""
        flat = flatten(x)
        std = self.prior_std(t)
        return -0.5 * jnp.square(flat / std).sum(axis=1) - flat.shape[1] * (jnp.log(std) + 0.5 * math.log(2 * math.pi))
