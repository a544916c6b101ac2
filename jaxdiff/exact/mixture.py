"""Mixtures of Gaussians.

For data from K Gaussians N(m_k, s_k^2) with weights pi_k, x_t is a mixture of N(alpha m_k, n_k^2), n_k^2 = alpha^2
s_k^2 + sigma^2, with the same weights, and with E_k those of `jaxdiff.exact.gaussian`, its equation (1),

    E[. | x] = sum_k r_k(x) E_k[. | x],     r_k = softmax_k(ln pi_k + ln N(x; alpha m_k, n_k^2)).         (1)
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.broadcast import expand, flatten
from jaxdiff.denoiser import Cond
from jaxdiff.prediction import Prediction
from jaxdiff.process import Process
from jaxdiff.record import record


@record
class MixtureDenoiser:
    """Equation (1): data from a mixture of K Gaussians with independent coordinates.

    Memory grows with B K D; `jaxdiff.exact.empirical` is for many components of one width.

    Args:
      process: the process.
      means: ``(K, ...)``, each shaped like one sample.
      stds: a number, one a component ``(K,)``, or one a coordinate, shaped like ``means``; not negative.
      log_weights: ``(K,)`` up to a constant, or None for equal weights.

    >>> from jaxdiff.schedule import Flow
    >>> exact = MixtureDenoiser(Flow(), jnp.array([[-1.0, 0.0], [1.0, 0.0]]), 0.1)
    >>> print(exact(jnp.array([[0.5, 0.0]]), 0.05).x0.round(3))
    [[0.629 0.   ]]
    """

    process: Process
    means: Array
    stds: ArrayLike
    log_weights: Array | None = None

    def _parts(self, x: Array, t: ArrayLike) -> tuple[Array, Array, Array, Array, Array]:
        """alpha and sigma ``(B, 1, 1)``; x - alpha m_k ``(B, K, D)``; s_k^2 ``(1, K, 1)`` or ``(1, K, D)``;
        unnormalised ln pi_k p_k(x) ``(B, K)``."""
        flat = flatten(x)  # (B, D)
        means = flatten(self.means)  # (K, D)
        alpha = jnp.broadcast_to(self.process.alpha(t), x.shape[:1])[:, None, None]
        sigma = jnp.broadcast_to(self.process.sigma(t), x.shape[:1])[:, None, None]
        variance = jnp.square(jnp.asarray(self.stds, x.dtype))
        if variance.ndim < 2:
            variance = jnp.broadcast_to(variance, means.shape[:1])
        variance = variance.reshape(1, means.shape[0], -1)
        centred = flat[:, None] - alpha * means[None]
        total = jnp.square(alpha) * variance + jnp.square(sigma)
        prior = jnp.zeros(means.shape[0]) if self.log_weights is None else jax.nn.log_softmax(self.log_weights)
        alike = flat.shape[1] // total.shape[2]  # coordinates of one variance
        log_joint = prior[None] - 0.5 * (
            (jnp.square(centred) / total).sum(axis=2) + alike * jnp.log(2 * math.pi * total).sum(axis=2)
        )
        return alpha, sigma, centred, variance, log_joint

    def __call__(self, x: Array, t: ArrayLike, cond: Cond | None = None) -> Prediction:
        alpha, sigma, centred, variance, log_joint = self._parts(x, t)
        responsibility = jax.nn.softmax(log_joint, axis=1)  # (B, K)
        total = jnp.square(alpha) * variance + jnp.square(sigma)
        means = flatten(self.means)
        shares = responsibility[:, :, None] * centred / total
        x0 = jnp.matmul(responsibility, means, precision=jax.lax.Precision.HIGHEST) + alpha[:, 0] * (
            variance * shares
        ).sum(axis=1)
        return Prediction(x0.reshape(x.shape), (sigma[:, 0] * shares.sum(axis=1)).reshape(x.shape))

    @property
    def classes(self) -> int:
        """K."""
        return self.means.shape[0]

    def log_prob(self, x: Array, t: ArrayLike) -> Array:
        """ln r_k(x) of equation (1), ``(B, ...) -> (B, K)``: which component x_t comes of. So it is its own exact noisy
        classifier (`jaxdiff.guidance.ClassifierGuidance`)."""
        return jax.nn.log_softmax(self._parts(x, t)[-1], axis=1)

    def log_density(self, x: Array, t: ArrayLike) -> Array:
        """ln p_t(x): ``(B, ...) -> (B,)``."""
        log_joint = self._parts(x, t)[-1]
        count = 0.0 if self.log_weights is not None else math.log(self.means.shape[0])
        return jax.scipy.special.logsumexp(log_joint, axis=1) - count

    def sample_data(self, key: Array, n: int) -> Array:
        """``(n, ...)`` data points of the mixture."""
        which, noise = jax.random.split(key)
        logits = jnp.zeros(self.means.shape[0]) if self.log_weights is None else self.log_weights
        k = jax.random.categorical(which, logits, shape=(n,))
        std = jnp.asarray(self.stds, self.means.dtype)
        std = (std if std.ndim > 1 else jnp.broadcast_to(std, self.means.shape[:1]))[k]
        draws = jax.random.normal(noise, (n, *self.means.shape[1:]), self.means.dtype)
        return self.means[k] + (std if std.ndim > 1 else expand(std, draws)) * draws
