"""An inverse problem: what was measured, by what operator, with what noise.

    y ~ N(A(x0), std^2 I)                                                                            (1)
    y = low + (high - low) N/rate,    N ~ Poisson(rate (A(x0) - low)/(high - low))                   (2)

The second counts light: rate is the mean count where A(x0) is ``high``. With a prior of x0 given by a denoiser, the
law that methods are after is p(x0 | y), proportional to p(x0) p(y | x0).
"""

from __future__ import annotations

import abc
import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.broadcast import sum_features
from jaxdiff.inverse.operators import Operator
from jaxdiff.inverse.operators.base import Rows
from jaxdiff.noise import salted_keys, white_noise
from jaxdiff.process import refuse_unless
from jaxdiff.record import record

MEASURE = 0x6D656173  # "meas"


@record
class MeasurementNoise(abc.ABC):
    """The law of y given A(x0); abstract."""

    @abc.abstractmethod
    def measure(self, keys: Array, clean: Array) -> Array:
        """y ``(B, ...)``, one draw a key, of clean = A(x0)."""

    @abc.abstractmethod
    def log_density(self, y: Array, clean: Array) -> Array:
        """ln p of each number of y given that of clean, shaped like y."""

    def weight(self, y: Array) -> Array:
        """How exact each number of y is, relative to others, shaped like y; by default all are alike."""
        return jnp.ones_like(y)


@record
class Gaussian(MeasurementNoise):
    """Equation (1).

    Args:
      std: the deviation, in units of y, 0 or more; data. 0: y is exact.

    Raises:
      ValueError: a deviation below 0, or several.

    >>> print(Gaussian(1.0).log_density(jnp.zeros(1), jnp.zeros(1)).round(3))
    [-0.919]
    """

    std: ArrayLike = 0.0

    def __post_init__(self) -> None:
        if jnp.ndim(self.std):
            raise ValueError(f"the noise's deviation is one number, got shape {jnp.shape(self.std)}")
        refuse_unless(lambda std: std >= 0, "the noise's deviation is to be 0 or more", std=self.std)

    def measure(self, keys: Array, clean: Array) -> Array:
        return clean + self.std * white_noise(salted_keys(keys, MEASURE), clean.shape[1:], clean.dtype)

    def log_density(self, y: Array, clean: Array) -> Array:
        """ln p of each number of y given that of clean, shaped like y.

        Raises:
          ValueError: std is 0, which has no density.
        """
        refuse_unless(lambda std: std > 0, "a measurement without noise has no density: give noise > 0", std=self.std)
        std = jnp.asarray(self.std, y.dtype)
        return -0.5 * jnp.square((y - clean) / std) - jnp.log(std) - 0.5 * math.log(2 * math.pi)


@record
class Poisson(MeasurementNoise):
    """Equation (2).

    Args:
      rate: the mean count where A(x0) is ``high``, positive; data.
      low, high: the values of A(x0) at which no light falls and all does; data.

    Raises:
      ValueError: a rate that is not positive, or an empty range.

    >>> print(Poisson(2.0).log_density(jnp.array([0.0]), jnp.array([0.0])).round(3))  # one count where one is expected
    [-1.]
    """

    rate: ArrayLike
    low: ArrayLike = -1.0
    high: ArrayLike = 1.0

    def __post_init__(self) -> None:
        refuse_unless(lambda rate: rate > 0, "the rate of Poisson noise is to be positive", rate=self.rate)
        refuse_unless(lambda a, b: a < b, "low is to be below high", low=self.low, high=self.high)

    @property
    def _range(self) -> Array:
        return jnp.asarray(self.high, jnp.result_type(float)) - self.low

    def _mean(self, clean: Array) -> Array:
        """The mean count; what falls below darkness counts as none."""
        return jnp.asarray(self.rate) * jnp.maximum((clean - self.low) / self._range, 0.0)

    def measure(self, keys: Array, clean: Array) -> Array:
        salted = salted_keys(keys, MEASURE)
        counts = jax.vmap(jax.random.poisson)(salted, self._mean(clean)).astype(clean.dtype)
        return jnp.asarray(self.low) + self._range * counts / self.rate

    def log_density(self, y: Array, clean: Array) -> Array:
        """ln of the chance of each count that y stands for, shaped like y; with a mean of at least 1e-3, so that light
        where none is expected has a finite one."""
        mean = jnp.maximum(self._mean(clean), 1e-3)
        counts = jnp.asarray(self.rate * (y - self.low) / self._range)
        return counts * jnp.log(mean) - mean - jax.scipy.special.gammaln(counts + 1)

    def weight(self, y: Array) -> Array:
        """One over the variance of y, which grows with its count: 1 at ``rate``, and no more than for one count."""
        counts = jnp.asarray(self.rate * (y - self.low) / self._range)
        return jnp.asarray(self.rate) / jnp.maximum(counts, 1.0)


@record
class Problem:
    """A measurement of each sample.

    Args:
      operator: A.
      y: ``(B, *operator.measured)``, one a sample, in units of A(x0).
      noise: its noise.

    Raises:
      ValueError: y of another shape.

    >>> from jaxdiff.inverse.operators import Box
    >>> Problem(Box((4, 4, 1), 2), jnp.zeros((1, 2, 2, 1))).residual(jnp.ones((1, 4, 4, 1))).sum().item()
    -4.0
    """

    operator: Operator
    y: Array
    noise: MeasurementNoise = Gaussian()

    def __post_init__(self) -> None:
        wanted = self.operator.measured
        if jnp.ndim(self.y) != 1 + len(wanted) or self.y.shape[1:] != wanted:
            raise ValueError(
                f"y is (B, {', '.join(map(str, wanted))}), what {type(self.operator).__name__} measures of "
                f"{self.operator.shape}, got {jnp.shape(self.y)}"
            )
        object.__setattr__(self, "y", self.operator.seen(jnp.asarray(self.y)))

    @property
    def std(self) -> Array:
        """The deviation of Gaussian noise.

        Raises:
          ValueError: the noise is another.
        """
        if not isinstance(self.noise, Gaussian):
            raise ValueError(f"this method is for Gaussian noise, got {type(self.noise).__name__}: dps takes any")
        return jnp.asarray(self.noise.std, jnp.result_type(float))

    def residual(self, x0: Array) -> Array:
        """y - A(x0)."""
        return self.y.astype(x0.dtype) - self.operator(x0)

    def log_likelihood(self, x0: Array) -> Array:
        """ln p(y | x0): ``(B,)``.

        Raises:
          ValueError: there is no noise, and so no density.
        """
        each = self.noise.log_density(self.y.astype(x0.dtype), self.operator(x0))
        return sum_features(self.operator.seen(each))

    def rows(self, cut: Rows) -> Problem:
        """The problem of some of the samples."""
        return dataclasses.replace(self, operator=self.operator.rows(cut), y=cut(self.y))


def measure(operator: Operator, x0: Array, noise: MeasurementNoise | float = 0.0, keys: Array | None = None) -> Array:
    """y of known x0, for tests and pictures.

    Args:
      operator: A.
      x0: ``(B, *operator.shape)``.
      noise: its law, or the deviation of a Gaussian.
      keys: ``(B,)``, one a sample, from `jaxdiff.noise.sample_keys`; not needed without noise.

    Raises:
      ValueError: noise without keys.

    >>> from jaxdiff.inverse.operators import Box
    >>> measure(Box((2, 2, 1), 2), jnp.arange(4.0).reshape(1, 2, 2, 1)).ravel().tolist()
    [1.5]
    """
    law = noise_of(noise)
    clean = operator(x0)
    if isinstance(law, Gaussian) and not isinstance(law.std, jax.core.Tracer) and not np.any(np.asarray(law.std)):
        return clean
    if keys is None:
        raise ValueError("noise of a measurement is drawn by keys, one a sample: give keys=sample_keys(key, 0, B)")
    return operator.seen(law.measure(keys, clean))


def noise_of(noise: MeasurementNoise | float) -> MeasurementNoise:
    """The law of a noise; a number is the deviation of a Gaussian.

    Raises:
      ValueError: what is neither.

    >>> noise_of(0.1)
    Gaussian(std=0.1)
    """
    if isinstance(noise, MeasurementNoise):
        return noise
    if isinstance(noise, bool) or not isinstance(noise, int | float | np.number | Array):
        raise ValueError(f"noise is the deviation of a Gaussian, or Gaussian(std) or Poisson(rate), got {noise!r}")
    return Gaussian(noise)
