"""The variational bound's terms and the learned variance.

One step of a chain, from t to s < t, has q(x_s | x_t, x_0) = N(mean, w) and a model p(x_s | x_t) = N(mean^, w^) whose
mean takes the predicted pair (x0, eps) for the true one (`Process.posterior`). A network's output u in [-1, 1] places
the variance between the posterior's and the transition's (Nichol & Dhariwal 2021, equation 15),

    ln w^ = f ln v + (1 - f) ln w,   f = (u + 1)/2,   v, w of equations (5), (6) of `jaxdiff.process`.              (1)

The bound's terms, in bits per dimension (Ho et al. 2020, equation 5; Nichol & Dhariwal 2021, equations 4-7):

    L(s, t) = KL(q(x_s | x_t, x_0) || p(x_s | x_t)),   s > 0;      L(0, t) = -ln p(x_0 | x_t)              (2)

with p(x_0 | x_t) the Gaussian's mass on each 8-bit value's interval, of width 2/255, the outermost ones open (Ho et al.
2020, equation 13); for data that are no grey levels it is the Gaussian's density.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.broadcast import expand, mean_features
from jaxdiff.prediction import Prediction
from jaxdiff.process import Process


def learned_log_variance(
    process: Process, s: ArrayLike, t: ArrayLike, output: Array, before: ArrayLike | None = None
) -> Array:
    """Equation (1): ln of the learned variance of the step from t to s, like ``output``.

    Where sigma(s) = 0 the posterior's variance vanishes; that of the chain's step before, which came to t, stands for
    it, as in the papers' code. Both bounds are those of the step asked for, so a strided chain has its own.

    Args:
      process: the process.
      s: where the step ends.
      t: where it begins, after s.
      output: the network's, in [-1, 1].
      before: where the step before this one began; 2 t by default, as in a chain of equal steps.
    """
    s, t = jnp.asarray(s), jnp.asarray(t)
    largest = process.transition(s, t)[1]
    clean = process.sigma(s) == 0.0
    at_end = process.posterior(t, jnp.minimum(2.0 * t, 1.0) if before is None else before)[2]
    least = jnp.where(clean, at_end, process.posterior(jnp.where(clean, 0.5 * t, s), t)[2])
    return between_bounds(output, jnp.log(least), jnp.log(largest))


def between_bounds(output: Array, low: Array, high: Array) -> Array:
    """Equation (1): ln of the variance at u = ``output`` between logarithms low (ln w) and high (ln v), ``()`` or
    ``(B,)``."""
    fraction = 0.5 * (output + 1.0)
    return fraction * expand(high, output) + (1.0 - fraction) * expand(low, output)


def gaussian_kl(mean: Array, log_variance: Array, other_mean: Array, other_log_variance: Array) -> Array:
    """KL(N(mean, e^log_variance) || N(other_mean, e^other_log_variance)) elementwise, in nats."""
    difference = log_variance - other_log_variance
    return 0.5 * (jnp.expm1(difference) - difference + jnp.square(mean - other_mean) * jnp.exp(-other_log_variance))


def discretised_log_likelihood(x: Array, mean: Array, log_variance: Array, levels: int = 256) -> Array:
    """ln of the mass that N(mean, e^log_variance) puts on the interval of each value of x, elementwise, in nats.

    Args:
      x: data in [-1, 1] on ``levels`` equally spaced values.
      mean: the Gaussian's mean, like x.
      log_variance: ln of its variance, like x.
      levels: number of values; their spacing is 2/(levels - 1).
    """
    half = 1.0 / (levels - 1)
    inverse_std = jnp.exp(-0.5 * log_variance)
    upper = jnp.where(x > 1.0 - half, jnp.inf, (x - mean + half) * inverse_std)
    lower = jnp.where(x < -1.0 + half, -jnp.inf, (x - mean - half) * inverse_std)
    # ln(Phi(upper) - Phi(lower)) on the side of the tail that does not cancel
    flip = x > mean
    a, b = jnp.where(flip, -lower, upper), jnp.where(flip, -upper, lower)  # a > b, b mostly negative
    log_a, log_b = jax.scipy.stats.norm.logcdf(a), jax.scipy.stats.norm.logcdf(jnp.where(jnp.isneginf(b), 0.0, b))
    gap = jnp.where(jnp.isneginf(b), -jnp.inf, jnp.minimum(log_b - log_a, -1e-7))
    return log_a + jnp.log(-jnp.expm1(gap))


def gaussian_log_density(x: Array, mean: Array, log_variance: Array) -> Array:
    """ln N(x; mean, e^log_variance) elementwise, in nats."""
    return -0.5 * (jnp.square(x - mean) * jnp.exp(-log_variance) + log_variance + math.log(2.0 * math.pi))


def vlb_term(
    process: Process,
    x0: Array,
    eps: Array,
    prediction: Prediction,
    s: ArrayLike,
    t: ArrayLike,
    levels: int | None = 256,
) -> Array:
    """Equation (2): a term of the variational bound under a learned variance, bits per dimension.

    Args:
      process: the process.
      x0: the data ``(B, ...)``.
      eps: the noise of x_t.
      prediction: the model's at (x_t, t), with its ``variance``.
      s: where the step ends, ``(B,)`` or ``()``; 0 for the last.
      t: where it begins, likewise.
      levels: of the data, equally spaced in [-1, 1]; None for real-valued data, whose last term is a density's. Static.

    Returns:
      ``(B,)``.
    """
    if prediction.variance is None:
        raise ValueError("vlb_term needs a learned variance: use LearnedVariance and a network of twice the channels")
    a, b, variance = (
        expand(part, x0) for part in process.posterior(jnp.where(process.sigma(s) == 0.0, 0.5 * jnp.asarray(t), s), t)
    )
    last = expand(process.sigma(s) == 0.0, x0)
    a, b = jnp.where(last, 1.0, a), jnp.where(last, 0.0, b)
    log_variance = learned_log_variance(process, s, t, prediction.variance)
    mean = a * prediction.x0 + b * prediction.eps
    kl = gaussian_kl(a * x0 + b * eps, jnp.log(variance), mean, log_variance)
    if levels is None:
        decoder = -gaussian_log_density(x0, mean, log_variance)
    else:
        decoder = -discretised_log_likelihood(x0, mean, log_variance, levels)
    return mean_features(jnp.where(last, decoder, kl)) / math.log(2.0)
