"""Denoisers in closed form: what a perfect network would return.

For data x_0 ~ N(m, s^2) (per coordinate) and x_t = alpha x_0 + sigma eps, with n^2 = alpha^2 s^2 + sigma^2,

    E[x_0 | x_t = x] = m + (alpha s^2/n^2) (x - alpha m),     E[eps | x] = (sigma/n^2) (x - alpha m)      (1)
    x_t ~ N(alpha m, n^2),    and along the probability flow (x_t - alpha_t m)/n_t is constant.          (2)

For a mixture of K such Gaussians of weights pi_k, x_t is a mixture with the same weights and

    E[. | x] = sum_k r_k(x) E_k[. | x],     r_k = softmax_k(ln pi_k + ln N(x; alpha m_k, n_k^2)).         (3)

They are exact problems for samplers, likelihoods and parameterizations: for research, teaching and tests.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.broadcast import expand
from jaxdiff.denoiser import Cond
from jaxdiff.prediction import Prediction
from jaxdiff.process import Process
from jaxdiff.record import record


@record
class GaussianDenoiser:
    """Equations (1) and (2): data N(mean, std^2), coordinates independent.

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
        return -0.5 * terms.reshape(x.shape[0], -1).sum(axis=1)

    def flow(self, x: Array, t: ArrayLike, s: ArrayLike) -> Array:
        """Equation (2): where the probability flow takes x from t to s."""
        alpha, _, mean, _, total = self._parts(x, t)
        alpha_s, _, _, _, total_s = self._parts(x, s)
        return alpha_s * mean + jnp.sqrt(total_s / total) * (x - alpha * mean)


@record
class MixtureDenoiser:
    """Equation (3): data from a mixture of K isotropic Gaussians.

    Args:
      process: the process.
      means: ``(K, ...)``, each shaped like one sample.
      stds: ``()`` or ``(K,)``, not negative.
      log_weights: ``(K,)`` up to a constant, or None for equal weights.
    """

    process: Process
    means: Array
    stds: ArrayLike
    log_weights: Array | None = None

    def _parts(self, x: Array, t: ArrayLike) -> tuple[Array, Array, Array, Array, Array]:
        """alpha and sigma ``(B, 1)``; x - alpha m_k ``(B, K, D)``; s_k^2 ``(1, K)``; unnormalised ln pi_k p_k(x) ``(B,
        K)``."""
        flat = x.reshape(x.shape[0], -1)  # (B, D)
        means = self.means.reshape(self.means.shape[0], -1)  # (K, D)
        alpha = jnp.broadcast_to(self.process.alpha(t), x.shape[:1])[:, None]
        sigma = jnp.broadcast_to(self.process.sigma(t), x.shape[:1])[:, None]
        variance = jnp.broadcast_to(jnp.square(jnp.asarray(self.stds, x.dtype)), means.shape[:1])[None]
        centred = flat[:, None] - alpha[:, :, None] * means[None]
        total = jnp.square(alpha) * variance + jnp.square(sigma)  # (B, K)
        prior = jnp.zeros(means.shape[0]) if self.log_weights is None else jax.nn.log_softmax(self.log_weights)
        log_joint = prior[None] - 0.5 * (
            jnp.square(centred).sum(axis=2) / total + flat.shape[1] * jnp.log(2 * math.pi * total)
        )
        return alpha, sigma, centred, variance, log_joint

    def __call__(self, x: Array, t: ArrayLike, cond: Cond | None = None) -> Prediction:
        alpha, sigma, centred, variance, log_joint = self._parts(x, t)
        responsibility = jax.nn.softmax(log_joint, axis=1)  # (B, K)
        total = jnp.square(alpha) * variance + jnp.square(sigma)
        means = self.means.reshape(self.means.shape[0], -1)
        gain = responsibility * alpha * variance / total
        x0 = responsibility @ means + jnp.einsum("bk,bkd->bd", gain, centred)
        eps = jnp.einsum("bk,bkd->bd", responsibility * sigma / total, centred)
        return Prediction(x0.reshape(x.shape), eps.reshape(x.shape))

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
        std = jnp.broadcast_to(jnp.asarray(self.stds, self.means.dtype), self.means.shape[:1])[k]
        draws = jax.random.normal(noise, (n, *self.means.shape[1:]), self.means.dtype)
        return self.means[k] + expand(std, draws) * draws
