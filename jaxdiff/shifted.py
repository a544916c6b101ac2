"""Processes with more noise at each time: the time shift of flow models, and schedules shifted by resolution.

A process at warped times,

    alpha_s(t) = alpha(t'),   sigma_s(t) = sigma(t'),    t' = s t/(1 + (s - 1) t),                   (1)

goes the same way from data to noise, and for s > 1 spends more of its time where noise is strong. For `Flow` its
signal-to-noise ratio is 1/s^2 of the flow's at the same t (Esser et al. 2024, "Scaling Rectified Flow Transformers for
High-Resolution Image Synthesis", equation 23: an image of s^2 times the pixels is as hard to see under s times the
noise; their s is 3 at 1024 x 1024 pixels):

    sigma_s/alpha_s = t'/(1 - t') = s t/(1 - t).                                                     (2)

s = 1 changes nothing, shifts compose, Shifted(Shifted(p, a), b) = Shifted(p, a b), and (1) is undone by 1/s:

    t = t'/(s - (s - 1) t'),    dt'/dt = s/(1 + (s - 1) t)^2.                                        (3)

A network that was trained on a process can be sampled on a shifted grid, `jaxdiff.grid.shifted_times`; one that is told
the time of the shifted process is trained on `Shifted` itself.

A process that preserves variance, alpha^2 + sigma^2 = 1, is shifted in its log-SNR by `ShiftedSNR`,

    lambda_s(t) = lambda(t) - 2 ln s,   alpha_s = alpha/n,   sigma_s = s sigma/n,   n^2 = alpha^2 + s^2 sigma^2.   (4)

Both by one rule for the resolution: the mean of k x k pixels with independent noise has k^2 times the SNR of one, so
that pictures of d x d pixels, seen at the base's d_0 x d_0, have the noise that they have there for

    s = d/d_0,     lambda_d(t) = lambda_{d_0}(t) + 2 ln(d_0/d)                                       (5)

(Hoogeboom et al. 2023, "simple diffusion", https://arxiv.org/abs/2301.11093, section 3, with 64 for d_0; Esser et al.
state it as s = sqrt(m/n) for m and n pixels in all). `at_resolution` makes the shifted process.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.process import Process, as_time, refuse_unless
from jaxdiff.record import record


def warped(t: ArrayLike, shift: ArrayLike) -> Array:
    """Equation (1): t' of t.

    >>> print(warped(0.5, 3.0))
    0.75
    """
    t = as_time(t)
    s = jnp.asarray(shift, t.dtype)
    return s * t / (1.0 + (s - 1.0) * t)


@record
class Shifted(Process):
    """Equation (1): a process whose time is shifted towards noise (s > 1) or data (s < 1).

    Args:
      process: the process, in continuous time.
      shift: s, positive; data of a jitted sampler.

    Raises:
      ValueError: a shift that is not positive; a discrete chain, whose times would not be k/T any more.

    >>> from jaxdiff.schedule import Flow
    >>> process = Shifted(Flow(), 3.0)
    >>> print(f"{process.sigma(0.5):.2f} {process.sigma(0.5) / process.alpha(0.5):.2f}")
    0.75 3.00
    """

    process: Process
    shift: ArrayLike

    def __post_init__(self) -> None:
        refuse_unless(lambda shift: shift > 0, "shift is to be positive", shift=self.shift)
        if self.process.steps is not None:
            raise ValueError(
                f"{type(self.process).__name__} has the {self.process.steps} times k/T, which a shift would move: "
                "shift a process in continuous time, or the grid"
            )

    def warp(self, t: ArrayLike) -> Array:
        """Equation (1): t' of t."""
        return warped(t, self.shift)

    def unwarp(self, t: ArrayLike) -> Array:
        """Equation (3): t of t'."""
        t, s = as_time(t), self._shift(t)
        return t / (s - (s - 1.0) * t)

    def _shift(self, t: ArrayLike) -> Array:
        return jnp.asarray(self.shift, as_time(t).dtype)

    def _pace(self, t: ArrayLike) -> Array:
        s = self._shift(t)
        return s / jnp.square(1.0 + (s - 1.0) * as_time(t))

    def alpha(self, t: ArrayLike) -> Array:
        return self.process.alpha(self.warp(t))

    def sigma(self, t: ArrayLike) -> Array:
        return self.process.sigma(self.warp(t))

    def min_time(self) -> Array:
        return self.unwarp(self.process.min_time())

    def log_snr(self, t: ArrayLike) -> Array:
        return self.process.log_snr(self.warp(t))

    def time_of_log_snr(self, log_snr: ArrayLike) -> Array:
        return self.unwarp(self.process.time_of_log_snr(log_snr))

    def snr_slope(self, t: ArrayLike) -> Array:
        return self._pace(t) * self.process.snr_slope(self.warp(t))

    def derivatives(self, t: ArrayLike) -> tuple[Array, Array]:
        alpha_dot, sigma_dot = self.process.derivatives(self.warp(t))
        pace = self._pace(t)
        return pace * alpha_dot, pace * sigma_dot

    def drift(self, t: ArrayLike) -> Array:
        return self._pace(t) * self.process.drift(self.warp(t))

    def diffusion_squared(self, t: ArrayLike) -> Array:
        return self._pace(t) * self.process.diffusion_squared(self.warp(t))

    def transition(self, s: ArrayLike, t: ArrayLike) -> tuple[Array, Array]:
        return self.process.transition(self.warp(s), self.warp(t))

    def prior_std(self, t: ArrayLike = 1.0) -> Array:
        return self.process.prior_std(self.warp(t))


@record
class ShiftedSNR(Process):
    """Equation (4): a process that preserves variance, with its log-SNR lower by 2 ln s.

    Args:
      process: the process, alpha^2 + sigma^2 = 1, in continuous time.
      shift: s, positive; data of a jitted sampler. More than 1 is more noise.

    Raises:
      ValueError: a shift that is not positive, a process that does not preserve variance, or a discrete chain.

    >>> from jaxdiff.schedule import CosineVP
    >>> process = ShiftedSNR(CosineVP(), 2.0)
    >>> print(f"{process.log_snr(0.3) - CosineVP().log_snr(0.3):.4f}, -2 ln 2 is -1.3863")
    -1.3863, -2 ln 2 is -1.3863
    """

    process: Process
    shift: ArrayLike

    def __post_init__(self) -> None:
        refuse_unless(lambda shift: shift > 0, "shift is to be positive", shift=self.shift)
        if self.process.steps is not None:
            raise ValueError(
                f"{type(self.process).__name__} is a chain of {self.process.steps} steps, of which each has its beta: "
                "shift a process in continuous time"
            )
        if _is(_variance(self.process), 1.0) is False:
            raise ValueError(
                f"{type(self.process).__name__} does not preserve variance, alpha^2 + sigma^2 = 1: a flow is shifted "
                "by Shifted, and one with alpha = 1 by its sigma_max"
            )

    def _parts(self, t: ArrayLike) -> tuple[Array, Array, Array]:
        """alpha, s sigma, n."""
        alpha = self.process.alpha(t)
        noise = jnp.asarray(self.shift, alpha.dtype) * self.process.sigma(t)
        return alpha, noise, jnp.sqrt(alpha * alpha + noise * noise)

    def _twice_log(self) -> Array:
        return 2.0 * jnp.log(jnp.asarray(self.shift, jnp.result_type(float)))

    def alpha(self, t: ArrayLike) -> Array:
        alpha, _, n = self._parts(t)
        return alpha / n

    def sigma(self, t: ArrayLike) -> Array:
        _, noise, n = self._parts(t)
        return noise / n

    def log_snr(self, t: ArrayLike) -> Array:
        return self.process.log_snr(t) - self._twice_log()

    def time_of_log_snr(self, log_snr: ArrayLike) -> Array:
        return self.process.time_of_log_snr(as_time(log_snr) + self._twice_log())

    def snr_slope(self, t: ArrayLike) -> Array:
        return self.process.snr_slope(t) / jnp.square(jnp.asarray(self.shift, jnp.result_type(float)))

    def derivatives(self, t: ArrayLike) -> tuple[Array, Array]:
        alpha, noise, n = self._parts(t)
        alpha_dot, sigma_dot = self.process.derivatives(t)
        turning = (alpha * jnp.asarray(self.shift, alpha.dtype) * sigma_dot - noise * alpha_dot) / (n * n * n)
        return -noise * turning, alpha * turning

    def drift(self, t: ArrayLike) -> Array:
        return -0.5 * self.diffusion_squared(t)

    def diffusion_squared(self, t: ArrayLike) -> Array:
        s = jnp.asarray(self.shift, jnp.result_type(float))
        return jnp.square(s / self._parts(t)[2]) * self.process.diffusion_squared(t)


def at_resolution(process: Process, size: float, base: float = 64) -> Process:
    """The process for pictures of another resolution, equation (5): `ShiftedSNR` of one that preserves variance,
    `Shifted` of a flow, alpha + sigma = 1.

    Args:
      process: as it is at the base's resolution.
      size: d, pixels along one side; of latents their number.
      base: d_0; in simple diffusion 64.

    Raises:
      ValueError: a size that is not positive, or a process that is neither.

    >>> from jaxdiff.schedule import CosineVP, Flow
    >>> at_resolution(CosineVP(), 256).shift, at_resolution(Flow(), 1024, base=256)
    (4.0, Shifted(process=Flow(), shift=4.0))
    """
    refuse_unless(lambda size, base: (size > 0) & (base > 0), "sides are positive", size=size, base=base)
    if _is(_variance(process), 1.0):
        return ShiftedSNR(process, size / base)
    if _is(process.alpha(_TIMES) + process.sigma(_TIMES), 1.0):
        return Shifted(process, size / base)
    raise ValueError(
        f"{type(process).__name__} neither preserves variance nor goes along a line: with alpha = 1 its sigma_max is "
        f"to be {size / base:g} times as large"
    )


_TIMES = np.linspace(0.0, 1.0, 9)


def _variance(process: Process) -> Array:
    return jnp.square(process.alpha(_TIMES)) + jnp.square(process.sigma(_TIMES))


def _is(found: Array, wanted: float) -> bool | None:
    """Whether all are a number, to rounding; None inside a trace."""
    if isinstance(found, jax.core.Tracer):
        return None
    return bool(np.abs(np.asarray(found) - wanted).max() < 1e-5)
