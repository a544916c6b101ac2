"""The discrete variance-preserving chain of DDPM, as a process in [0, 1].

A chain of T steps with variances beta_1, ..., beta_T (Ho et al. 2020) is the Markov chain

    q(x_k | x_{k-1}) = N(sqrt(1 - beta_k) x_{k-1}, beta_k),   abar_k = prod_{i <= k} (1 - beta_i)              (1)
    q(x_{k-1} | x_k, x_0) = N(c_0 x_0 + c_k x_k, betatilde_k)                                                    (2)
        c_0 = sqrt(abar_{k-1}) beta_k/(1 - abar_k),  c_k = sqrt(1 - beta_k) (1 - abar_{k-1})/(1 - abar_k),
        betatilde_k = beta_k (1 - abar_{k-1})/(1 - abar_k)

(Ho et al. 2020, equations 2, 6, 7). Here its k-th time is t = k/T, k = 0..T, with alpha(k/T)^2 = abar_k and sigma^2 = 1
- abar_k: table index k - 1 of the papers' code is time k/T. Between these times log alpha is interpolated linearly; in
the last interval of a chain of zero terminal SNR, where log alpha_T is -infinity, alpha itself is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.process import Process, as_time
from jaxdiff.record import record
from jaxdiff.schedule import unit_at_end


@record
class DiscreteVP(Process):
    """The chain of ``betas`` in continuous time: t = k/T at its k-th step.

    Args:
      betas: ``(T,)`` in (0, 1), rising or not; the last may be 1 (zero terminal SNR). All else is made of them, so they
        can be learned: the process' derivative with respect to its leaves is that with respect to betas.

    Raises:
      ValueError: ``betas`` is not a vector of numbers in (0, 1), or a 1 stands before its end.

    >>> process = DiscreteVP(linear_betas(1000))
    >>> print(f"{process.alpha(1.0) ** 2:.2e} {process.sigma(0.001):.4f}")
    4.04e-05 0.0100
    """

    betas: ArrayLike | Sequence[float]

    def __post_init__(self) -> None:
        if isinstance(self.betas, jax.core.Tracer):
            return
        betas = np.asarray(self.betas, np.float64)
        inside = (betas > 0) & (betas <= 1)
        if betas.ndim != 1 or betas.size == 0 or not inside.all() or (betas[:-1] == 1).any():
            raise ValueError(
                "betas is to be a vector of numbers in (0, 1), of which only the last may be 1; "
                f"got shape {betas.shape}"
                + (f" with values from {betas.min():g} to {betas.max():g}" if betas.size else "")
            )
        object.__setattr__(self, "betas", betas)

    @property
    def steps(self) -> int:
        return np.shape(self.betas)[0]

    @property
    def log_alpha(self) -> Array:
        """``(T + 1,)``: log alpha at k/T, k = 0..T."""
        if isinstance(self.betas, jax.core.Tracer):
            return _table(jnp.asarray(self.betas))
        with np.errstate(divide="ignore"):  # known ones are added up in float64
            table = np.concatenate([[0.0], 0.5 * np.cumsum(np.log1p(-np.asarray(self.betas, np.float64)))])
        return jnp.asarray(table, jnp.result_type(float))

    def min_time(self) -> Array:
        """1/T: the first step of the chain."""
        return jnp.asarray(1.0 / self.steps, jnp.result_type(float))

    def _interval(self, t: ArrayLike) -> tuple[Array, Array, Array, Array]:
        """Index k and place w in (0, 1] of t = (k + w)/T, log alpha at k/T, and log alpha at (k+1)/T."""
        t = as_time(t)
        u = jnp.clip(t * self.steps, 0.0, self.steps)
        near = jnp.round(u)  # k/T times T is k but for rounding: then the table's own entry is meant
        u = jnp.where(jnp.abs(u - near) <= 4 * jnp.finfo(t.dtype).eps * jnp.maximum(u, 1.0), near, u)
        k = jnp.clip(jnp.ceil(u).astype(jnp.int32) - 1, 0, self.steps - 1)
        table = self.log_alpha.astype(t.dtype)
        return k, u - k.astype(t.dtype), table[k], table[k + 1]

    def _log_alpha(self, t: ArrayLike) -> Array:
        _, w, before, after = self._interval(t)
        ends_at_zero = jnp.isneginf(after)
        inner = (1.0 - w) * before + w * jnp.where(ends_at_zero, before, after)
        return jnp.where(ends_at_zero, before + jnp.log1p(-jnp.where(ends_at_zero, w, 0.0)), inner)

    def alpha(self, t: ArrayLike) -> Array:
        return jnp.exp(self._log_alpha(t))

    def sigma(self, t: ArrayLike) -> Array:
        return jnp.sqrt(-jnp.expm1(2.0 * self._log_alpha(t)))

    def log_snr(self, t: ArrayLike) -> Array:
        log_alpha = self._log_alpha(t)
        return 2.0 * log_alpha - jnp.log(-jnp.expm1(2.0 * log_alpha))

    def time_of_log_snr(self, log_snr: ArrayLike) -> Array:
        log_alpha = -0.5 * jax.nn.softplus(-as_time(log_snr))
        table = self.log_alpha.astype(log_alpha.dtype)
        k = jnp.clip(jnp.searchsorted(-table, -log_alpha) - 1, 0, self.steps - 1)
        before, after = table[k], table[k + 1]
        ends_at_zero = jnp.isneginf(after)
        past = log_alpha - before
        w = jnp.where(ends_at_zero, -jnp.expm1(past), past / jnp.where(ends_at_zero, 1.0, after - before))
        return jnp.clip((k.astype(w.dtype) + w) / self.steps, 0.0, 1.0)

    def drift(self, t: ArrayLike) -> Array:
        """Of the interpolated path; at k/T that of the interval that ends there."""
        k, w, _, after = self._interval(t)
        beta = jnp.asarray(self.betas, w.dtype)[k]
        ends_at_zero = jnp.isneginf(after)
        slope = 0.5 * jnp.log1p(-jnp.where(ends_at_zero, 0.0, beta))
        return self.steps * jnp.where(ends_at_zero, -1.0 / (1.0 - jnp.where(ends_at_zero, w, 0.0)), slope)

    def diffusion_squared(self, t: ArrayLike) -> Array:
        return -2.0 * self.drift(t)

    def derivatives(self, t: ArrayLike) -> tuple[Array, Array]:
        _, _, before, after = self._interval(t)
        alpha, sigma = self.alpha(t), self.sigma(t)
        # alpha' is finite where alpha falls linearly to 0, though alpha'/alpha is not
        ends_at_zero = jnp.isneginf(after)
        slope = jnp.where(ends_at_zero, 0.0, self.drift(t)) * alpha
        alpha_dot = jnp.where(ends_at_zero, -self.steps * jnp.exp(before), slope)
        return alpha_dot, -alpha * alpha_dot / sigma

    def prior_std(self, t: ArrayLike = 1.0) -> Array:
        return unit_at_end(t, self.sigma(t))

    def kernel(self, k: ArrayLike) -> tuple[Array, Array]:
        """Equation (1): scale and variance of q(x_k | x_{k-1}), k in 1..T."""
        beta = jnp.asarray(self.betas, jnp.result_type(float))[jnp.asarray(k) - 1]
        return jnp.sqrt(1.0 - beta), beta

    def kernel_posterior(self, k: ArrayLike) -> tuple[Array, Array, Array]:
        """Equation (2): (c_0, c_k, betatilde_k) of q(x_{k-1} | x_k, x_0), k in 1..T."""
        k = jnp.asarray(k)
        scale, beta = self.kernel(k)
        log_alpha = self.log_alpha.astype(beta.dtype)
        variance, earlier = -jnp.expm1(2.0 * log_alpha[k]), -jnp.expm1(2.0 * log_alpha[k - 1])
        return jnp.exp(log_alpha[k - 1]) * beta / variance, scale * earlier / variance, beta * earlier / variance


@jax.jit  # one call in a program that asks for it many times
def _table(betas: Array) -> Array:
    # 1 at the end has no finite derivative, and needs none: log alpha is -infinity there whatever it is
    total = jnp.cumsum(jnp.log1p(-jnp.where(betas < 1, betas, 0.0)))
    return 0.5 * jnp.concatenate([jnp.zeros(1, betas.dtype), jnp.where(betas < 1, total, -jnp.inf)])


def linear_betas(steps: int, start: float = 1e-4, end: float = 0.02) -> np.ndarray:
    """DDPM's schedule, linear from ``start`` to ``end`` at 1,000 steps, scaled by 1000/steps at others.

    Ho et al. 2020, section 4; the scaling keeps the same abar(t) (Nichol & Dhariwal 2021).
    """
    scale = 1000.0 / steps
    return _checked(np.linspace(scale * start, scale * end, steps, dtype=np.float64), "linear_betas", steps)


def scaled_linear_betas(steps: int, start: float = 0.00085, end: float = 0.012) -> np.ndarray:
    """Linear in sqrt(beta), of latent diffusion (Rombach et al. 2022); the defaults are Stable Diffusion's."""
    scale = 1000.0 / steps
    roots = np.linspace(math.sqrt(scale * start), math.sqrt(scale * end), steps, dtype=np.float64)
    return _checked(np.square(roots), "scaled_linear_betas", steps)


def cosine_betas(steps: int, offset: float = 0.008, most: float = 0.999) -> np.ndarray:
    """abar(t) = cos^2(pi/2 (t + offset)/(1 + offset)) up to a factor, betas limited to ``most``.

    Nichol & Dhariwal 2021, equation 17.
    """
    t = np.arange(steps + 1, dtype=np.float64) / steps
    abar = np.square(np.cos(0.5 * np.pi * (t + offset) / (1.0 + offset)))
    return _checked(np.minimum(1.0 - abar[1:] / abar[:-1], most), "cosine_betas", steps)


def sigmoid_betas(steps: int, start: float = 1e-4, end: float = 0.02) -> np.ndarray:
    """beta from about ``start`` to about ``end`` along the logistic curve on [-6, 6] (Xu et al. 2022, GeoDiff)."""
    scale = 1000.0 / steps
    curve = 1.0 / (1.0 + np.exp(-np.linspace(-6.0, 6.0, steps, dtype=np.float64)))
    return _checked(scale * (start + curve * (end - start)), "sigmoid_betas", steps)


def rescale_zero_terminal_snr(betas: ArrayLike) -> np.ndarray:
    """Betas of the chain whose sqrt(abar) is shifted to end at 0 and scaled to keep its first value.

    Lin et al. 2024, "Common Diffusion Noise Schedules and Sample Steps are Flawed", algorithm 1. The last beta is 1.
    Eps and Score cannot be used with it: train X0, V or Velocity.
    """
    signal = np.exp(0.5 * np.cumsum(np.log1p(-np.asarray(betas, np.float64))))
    signal = (signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])
    abar = np.concatenate([[1.0], np.square(signal)])
    return 1.0 - abar[1:] / abar[:-1]


def _checked(betas: np.ndarray, name: str, steps: int) -> np.ndarray:
    if not ((betas > 0) & (betas < 1)).all():
        raise ValueError(
            f"{name}({steps}): too few steps for this schedule, a beta reaches {betas.max():.3g}; it is to stay below 1"
        )
    return betas
