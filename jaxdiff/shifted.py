"""Processes at another pace: the time shift of flow models.

A process at warped times,

    alpha_s(t) = alpha(t'),   sigma_s(t) = sigma(t'),    t' = s t/(1 + (s - 1) t),                   (1)

goes the same way from data to noise, and for s > 1 spends more of its time where noise is strong. For `Flow` its
signal-to-noise ratio is 1/s^2 of the flow's at the same t (Esser et al. 2024, "Scaling Rectified Flow Transformers for
High-Resolution Image Synthesis", equation 23: an image of s^2 times the pixels is as hard to see under s times the
noise; their s is 3 at 1024 x 1024 pixels):

    sigma_s/alpha_s = t'/(1 - t') = s t/(1 - t).                                                     (2)

s = 1 changes nothing, shifts compose, Shifted(Shifted(p, a), b) = Shifted(p, a b), and (1) is undone by 1/s:

    t = t'/(s - (s - 1) t'),    dt'/dt = s/(1 + (s - 1) t)^2.                                        (3)

A network that was trained on a process can be sampled on a shifted grid, ``shifted.warp(uniform_times(...))``; one that
is told the time of the shifted process is trained on `Shifted` itself.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.process import Process, as_time, refuse_unless
from jaxdiff.record import record


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
        t, s = as_time(t), self._shift(t)
        return s * t / (1.0 + (s - 1.0) * t)

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
