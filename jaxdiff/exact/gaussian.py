"""Gaussian data: the denoiser, the density and the probability flow.

For data x_0 ~ N(m, s^2), coordinate by coordinate, and x_t = alpha x_0 + sigma eps, with n^2 = alpha^2 s^2 + sigma^2,

    E[x_0 | x_t = x] = m + (alpha s^2/n^2) (x - alpha m),     E[eps | x] = (sigma/n^2) (x - alpha m)      (1)
    x_t ~ N(alpha m, n^2),    and along the probability flow (x_t - alpha_t m)/n_t is constant.          (2)

For a covariance of any kind, C = sum_r s_r^2 u_r u_r' + s_0^2 (I - sum_r u_r u_r') with orthonormal u_r, the same holds
along each u_r with s_r, and in all directions orthogonal to them with s_0. R directions of D suffice for data that lie
in a plane or are fewer than D (s_0 = 0), and for the probabilistic principal components of Tipping & Bishop 1999, whose
s_0^2 is the mean of the variances left out (their equation 8).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.broadcast import expand, flatten
from jaxdiff.denoiser import Cond
from jaxdiff.prediction import Prediction
from jaxdiff.process import Process
from jaxdiff.record import record


@record
class GaussianDenoiser:
    """Equations (1) and (2): data N(mean, std^2), coordinates independent. `FullGaussianDenoiser` takes a covariance.

    Args:
      process: the process.
      mean: a number, or an array shaped like one sample.
      std: likewise, not negative; 0 is a single data point.

    >>> from jaxdiff.schedule import Flow
    >>> exact = GaussianDenoiser(Flow(), mean=0.0, std=1.0)
    >>> print(exact(jnp.ones((1, 2)), 0.5).x0)
    [[1. 1.]]
    """

    process: Process
    mean: ArrayLike
    std: ArrayLike

    def _parts(self, x: Array, t: ArrayLike) -> tuple[Array, Array, Array, Array, Array]:
        alpha, sigma = expand(self.process.alpha(t), x), expand(self.process.sigma(t), x)
        mean = jnp.broadcast_to(jnp.asarray(self.mean, x.dtype), x.shape[1:])[None]
        variance = jnp.square(jnp.broadcast_to(jnp.asarray(self.std, x.dtype), x.shape[1:])[None])
        return alpha, sigma, mean, variance, alpha * alpha * variance + sigma * sigma

    def __call__(self, x: Array, t: ArrayLike, cond: Cond | None = None) -> Prediction:
        alpha, sigma, mean, variance, total = self._parts(x, t)
        centred = (x - alpha * mean) / total
        return Prediction(mean + alpha * variance * centred, sigma * centred)

    def log_density(self, x: Array, t: ArrayLike) -> Array:
        """ln p_t(x): ``(B, ...) -> (B,)``."""
        alpha, _, mean, _, total = self._parts(x, t)
        terms = jnp.square(x - alpha * mean) / total + jnp.log(2 * math.pi * jnp.broadcast_to(total, x.shape))
        return -0.5 * flatten(terms).sum(axis=1)

    def flow(self, x: Array, t: ArrayLike, s: ArrayLike) -> Array:
        """Equation (2): where the probability flow takes x from t to s."""
        alpha, _, mean, _, total = self._parts(x, t)
        alpha_s, _, _, _, total_s = self._parts(x, s)
        return alpha_s * mean + jnp.sqrt(total_s / total) * (x - alpha * mean)


class _Split(NamedTuple):
    """x - alpha m along the directions ``(B, R)`` and besides them ``(B, D)``, with n^2 of each, ``(B, R)`` and ``(B,
    1)``."""

    along: Array
    beside: Array
    total: Array
    total_beside: Array


@record
class FullGaussianDenoiser:
    """Equations (1) and (2) for data N(mean, C) with a covariance of any kind, by its principal axes.

    Made by `from_covariance` or `from_data`.

    Args:
      process: the process.
      mean: shaped like one sample, of D numbers.
      variances: s_r^2 ``(R,)``, not negative.
      directions: u_r ``(R, D)``, orthonormal rows; R from 1 to D.
      variance_beside: s_0^2, that of all directions orthogonal to these, not negative.

    >>> from jaxdiff.schedule import VP
    >>> exact = FullGaussianDenoiser.from_covariance(VP(), jnp.zeros(2), jnp.array([[1.0, 0.9], [0.9, 1.0]]))
    >>> exact.sample_data(jax.random.key(0), 5).shape
    (5, 2)
    """

    process: Process
    mean: Array
    variances: Array
    directions: Array
    variance_beside: ArrayLike = 0.0

    @classmethod
    def from_covariance(cls, process: Process, mean: Any, covariance: Any) -> FullGaussianDenoiser:
        """Data N(mean, covariance).

        Args:
          process: the process.
          mean: shaped like one sample, of D numbers.
          covariance: ``(D, D)``, symmetric, no eigenvalue below 0; singular ones are welcome.

        Raises:
          ValueError: another shape; not symmetric; a negative eigenvalue.
        """
        centre, matrix = np.asarray(mean), np.asarray(covariance, np.float64)
        if matrix.shape != (centre.size, centre.size):
            raise ValueError(f"a mean of {centre.size} numbers needs a square covariance of them, got {matrix.shape}")
        rounding = 8 * float(np.finfo(jnp.result_type(float)).eps) * max(float(abs(matrix).max()), 1e-300)
        if abs(matrix - matrix.T).max() > rounding:
            raise ValueError(f"the covariance is not symmetric: C - C' is as large as {abs(matrix - matrix.T).max()}")
        values, vectors = np.linalg.eigh(0.5 * (matrix + matrix.T))
        if values[0] < -rounding * centre.size:
            raise ValueError(f"a covariance has no eigenvalue below 0, this one has {values[0]}")
        return cls._of(process, centre, np.maximum(values[::-1], 0.0), vectors.T[::-1], 0.0)

    @classmethod
    def from_data(cls, process: Process, data: Any, rank: int | None = None) -> FullGaussianDenoiser:
        """The Gaussian of a data set's mean and covariance (divided by N, the most likely one).

        Args:
          process: the process.
          data: ``(N, ...)``.
          rank: how many principal components to keep; the rest share their mean variance. None keeps all, min(N - 1,
            D).

        Raises:
          ValueError: fewer than two data, or a rank outside 1 to min(N - 1, D).

        >>> from jaxdiff.schedule import Flow
        >>> data = jax.random.normal(jax.random.key(0), (50, 4, 4, 1))
        >>> FullGaussianDenoiser.from_data(Flow(), data, rank=3).directions.shape
        (3, 16)
        """
        flat = np.asarray(data, np.float64).reshape(len(data), -1)
        most = min(len(flat) - 1, flat.shape[1])
        if len(flat) < 2 or not 1 <= (most if rank is None else rank) <= most:
            raise ValueError(
                f"{len(flat)} data of {flat.shape[1]} numbers have 1 to {most} components, got rank={rank}"
            )
        centre = flat.mean(axis=0)
        flat = flat - centre
        if len(flat) > flat.shape[1]:
            values, vectors = np.linalg.eigh(flat.T @ flat / len(flat))
            values, rows = np.maximum(values[::-1], 0.0), vectors.T[::-1]
        else:
            _, lengths, rows = np.linalg.svd(flat, full_matrices=False)
            values = np.square(lengths) / len(flat)
        kept = most if rank is None else rank
        beside = 0.0 if kept == most else values[kept:].sum() / (flat.shape[1] - kept)
        return cls._of(process, centre.reshape(np.shape(data)[1:]), values[:kept], rows[:kept], beside)

    @classmethod
    def _of(cls, process: Process, *parts: Any) -> FullGaussianDenoiser:
        return cls(process, *(jnp.asarray(part, jnp.result_type(float)) for part in parts))

    def __call__(self, x: Array, t: ArrayLike, cond: Cond | None = None) -> Prediction:
        alpha, sigma, split = self._parts(x, t)
        shares, beside = split.along / split.total, split.beside / split.total_beside
        variances, variance_beside = self._variances(x)
        x0 = alpha * (self._from_axes(variances * shares) + variance_beside * beside)
        eps = sigma * (self._from_axes(shares) + beside)
        return Prediction(self.mean.astype(x.dtype)[None] + x0.reshape(x.shape), eps.reshape(x.shape))

    def log_density(self, x: Array, t: ArrayLike) -> Array:
        """ln p_t(x): ``(B, ...) -> (B,)``."""
        _, _, (along, beside, total, total_beside) = self._parts(x, t)
        others = beside.shape[1] - along.shape[1]
        terms = (jnp.square(along) / total + jnp.log(2 * math.pi * total)).sum(axis=1)
        return -0.5 * (
            terms
            + (jnp.square(beside) / total_beside).sum(axis=1)
            + (others * jnp.log(2 * math.pi * total_beside)[:, 0] if others else 0.0)
        )

    def flow(self, x: Array, t: ArrayLike, s: ArrayLike) -> Array:
        """Equation (2): where the probability flow takes x from t to s."""
        _, _, at_t = self._parts(x, t)
        alpha_s, _, at_s = self._parts(x, s)
        moved = self._from_axes(jnp.sqrt(at_s.total / at_t.total) * at_t.along)
        moved += jnp.sqrt(at_s.total_beside / at_t.total_beside) * at_t.beside
        return (alpha_s * self._flat_mean(x) + moved).reshape(x.shape)

    def sample_data(self, key: Array, n: int) -> Array:
        """``(n, ...)`` data points."""
        first, second = jax.random.split(key)
        scale = jnp.sqrt(self.variances)
        draws = self._from_axes(scale[None] * jax.random.normal(first, (n, *scale.shape), scale.dtype))
        if self.directions.shape[0] < self.directions.shape[1]:
            others = jax.random.normal(second, draws.shape, draws.dtype)
            draws += jnp.sqrt(jnp.asarray(self.variance_beside, draws.dtype)) * (
                others - self._from_axes(self._to_axes(others))
            )
        return self.mean[None] + draws.reshape(n, *self.mean.shape)

    def _variances(self, x: Array) -> tuple[Array, Array]:
        return self.variances.astype(x.dtype)[None], jnp.asarray(self.variance_beside, x.dtype)

    def _flat_mean(self, x: Array) -> Array:
        return self.mean.astype(x.dtype).reshape(1, -1)

    def _to_axes(self, x: Array) -> Array:
        return jnp.matmul(x, self.directions.astype(x.dtype).T, precision=jax.lax.Precision.HIGHEST)

    def _from_axes(self, along: Array) -> Array:
        return jnp.matmul(along, self.directions.astype(along.dtype), precision=jax.lax.Precision.HIGHEST)

    def _parts(self, x: Array, t: ArrayLike) -> tuple[Array, Array, _Split]:
        """alpha and sigma ``(B, 1)``, and x - alpha m split."""
        alpha, sigma = (
            jnp.broadcast_to(part, x.shape[:1])[:, None].astype(x.dtype)
            for part in (self.process.alpha(t), self.process.sigma(t))
        )
        centred = flatten(x) - alpha * self._flat_mean(x)
        along = self._to_axes(centred)
        complete = self.directions.shape[0] == self.directions.shape[1]
        beside = jnp.zeros_like(centred) if complete else centred - self._from_axes(along)
        variances, variance_beside = self._variances(x)
        beside_or_1 = jnp.maximum(variance_beside, float(complete))  # 1: no such direction
        total, total_beside = (jnp.square(alpha) * part + jnp.square(sigma) for part in (variances, beside_or_1))
        return alpha, sigma, _Split(along, beside, total, total_beside)
