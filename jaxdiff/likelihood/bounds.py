"""Variational bounds on the likelihood of the reverse chain and of the reverse SDE.

A chain of times t_1 > ... > t_n, from noise to data, with the Gaussian steps of `jaxdiff.variational`, has (Ho et al.
2020, equation 5; Nichol & Dhariwal 2021, equations 4-7)

    -ln p(x_0) <= KL(q(x_{t_1} | x_0) || prior) + sum_i L_i,                                          (1)
    L_i = E[KL(q(x_{t_{i+1}} | x_{t_i}, x_0) || p(x_{t_{i+1}} | x_{t_i}))],  i < n,     L_n = E[-ln p(x_0 | x_{t_n})].

With the posterior's own variance L_i = (SNR(t_{i+1}) - SNR(t_i)) E|x_0 - x^_0|^2 / 2, and for infinitely many steps it
becomes (Kingma et al. 2021, "Variational Diffusion Models", equations 11-19; Huang et al. 2021)

    -ln p(x_0) <= KL(q(x_{t_max} | x_0) || prior) + E[-ln p(x_0 | x_{t_min})] + D,                    (2)
    D = 1/2 integral of SNR E|x_0 - x^_0|^2 d lambda = integral of cot(phi) E|v - v^|^2 d phi,        (3)

lambda from log_snr(t_max) to log_snr(t_min); the second form, in the angle phi = arctan(sigma/alpha) and v = cos(phi)
eps - sin(phi) x_0 of `jaxdiff.likelihood.flow`, is finite at alpha = 0 and well conditioned at both ends. For u uniform
in [0, 1] and any way t(u) from one end to the other, D = E_u[cot(phi) |v - v^|^2 |d phi/du|]: which way changes the
variance and not the value. K draws of a sample are taken at u = (k + U)/K, k = 0..K-1, one U each: unbiased, and
spread evenly (Kingma et al. 2021, appendix I.1). Least variance: density of t proportional to sqrt(E L(t)^2) (Nichol &
Dhariwal 2021, equation 18).
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.broadcast import expand, mean_features, sum_features
from jaxdiff.denoiser import Cond, Denoiser
from jaxdiff.likelihood.angle import angle, refuse_blind, time_limits
from jaxdiff.likelihood.dequantise import bits_per_dim, decoder_log_probability
from jaxdiff.noise import salted_keys, white_noise
from jaxdiff.prediction import Prediction, refuse_zero_alpha
from jaxdiff.process import Process
from jaxdiff.record import record
from jaxdiff.sampling.base import check_times
from jaxdiff.variational import between_bounds, discretised_log_likelihood, gaussian_kl

Variance = Literal["fixed_small", "fixed_large", "learned"]
BOUND, LEARN = 0x626F756E, 0x6C656172  # "boun", "lear"; see `jaxdiff.noise`


def prior_kl(process: Process, x0: Array, t: ArrayLike = 1.0) -> Array:
    """KL(q(x_t | x_0) || N(0, prior_std(t)^2)), summed over dimensions, ``(B,)`` in nats."""
    sigma, prior = jnp.log(process.sigma(t)), jnp.log(process.prior_std(t))
    two = jnp.asarray(2.0, x0.dtype)
    mean = expand(process.alpha(t).astype(x0.dtype), x0) * x0
    return sum_features(
        gaussian_kl(mean, two * sigma.astype(x0.dtype), jnp.zeros_like(mean), two * prior.astype(x0.dtype))
    )


class DiscreteBound(NamedTuple):
    """The discrete variational bound, equation (1), in bits per dimension.

    Attributes:
      total: prior + terms, ``(B,)``.
      prior: ``(B,)``.
      terms: L_i at each time of the chain, in the order of ``ts``; the last is the decoder's. ``(n, B)``.
      x0_mse: mean squared error of x0 at each time, ``(n, B)``.
      eps_mse: of eps.
    """

    total: Array
    prior: Array
    terms: Array
    x0_mse: Array
    eps_mse: Array


def discrete_vlb(
    denoise: Denoiser,
    process: Process,
    x0: Array,
    keys: Array,
    cond: Cond | None = None,
    *,
    ts: ArrayLike | None = None,
    variance: Variance = "fixed_small",
    levels: int | None = 256,
) -> DiscreteBound:
    """The bound of a chain, equation (1), with one draw of noise a time and sample: one evaluation a time, and memory
    for one.

    The variance of the last step, which ends at the data, is as in the papers' code: the posterior's of the step before
    it ("fixed_small" and "fixed_large"), or "learned" between that and sigma(t_n)^2.

    Args:
      denoise: the denoiser; `jaxdiff.Clipped` limits x0 to [-1, 1] (Nichol & Dhariwal's evaluation does).
      process: its process.
      x0: data on ``levels`` values in [-1, 1], ``(B, ...)``.
      keys: ``(B,)``, one a sample.
      cond: the condition, batch first.
      ts: ``(n,)`` falling times with sigma(ts[-1]) > 0, a grid of `jaxdiff.grid`; any subset of a chain's times is a
        shorter chain. None: all times of a discrete chain.
      variance: of the reverse steps: the posterior's, the transition's, or a `LearnedVariance` network's; static.
      levels: grey levels, the decoder being the Gaussian's mass on each (Ho et al. 2020, equation 13); None for
        real-valued data, with the density of N(x^_0, (sigma/alpha)^2) at t_n for decoder. Static.

    Returns:
      A `DiscreteBound`.

    Raises:
      ValueError: times that cannot be sampled at; no times for a process in continuous time; a denoiser made of eps
        where alpha(ts[0]) = 0; "learned" with a denoiser that gives no variance.

    >>> from jaxdiff import DiscreteVP, GaussianDenoiser, linear_betas, sample_keys
    >>> process = DiscreteVP(linear_betas(100))
    >>> exact = GaussianDenoiser(process, 0.0, 0.5)
    >>> bound = discrete_vlb(exact, process, jnp.zeros((2, 8, 8, 1)), sample_keys(jax.random.key(0), 0, 2))
    >>> bound.total.shape, bound.terms.shape
    ((2,), (100, 2))
    """
    if variance not in ("fixed_small", "fixed_large", "learned"):
        raise ValueError(f'variance is to be "fixed_small", "fixed_large" or "learned", got {variance!r}')
    if ts is None:
        if process.steps is None:
            raise ValueError(
                f"{type(process).__name__} is in continuous time: pass the chain's times as ts, for instance "
                "log_snr_times(process, 100)"
            )
        ts = jnp.arange(process.steps, 0, -1) / process.steps
    check_times(process, ts)
    times = jnp.asarray(ts, jnp.result_type(float))
    refuse_blind(denoise, process, x0, times[0], cond)
    salted = salted_keys(keys, BOUND)
    number = jnp.arange(times.shape[0])

    def at(t: Array, i: Array) -> tuple[Array, Prediction]:
        eps = white_noise(salted_keys(salted, i), x0.shape[1:], x0.dtype)
        given = denoise(process.perturb(x0, eps, t).astype(x0.dtype), t, cond)
        if variance == "learned" and given.variance is None:
            raise ValueError(
                'variance="learned" needs a network trained with LearnedVariance; this denoiser gives none'
            )
        return eps, given

    def log_variance(given: Prediction, small: Array, large: Array) -> Array:
        low, high = (jnp.log(part).astype(x0.dtype) for part in (small, large))
        if variance == "learned" and given.variance is not None:
            return between_bounds(given.variance, low, high)
        return low if variance == "fixed_small" else high

    def errors(eps: Array, given: Prediction) -> tuple[Array, Array]:
        return mean_features(jnp.square(given.x0 - x0)), mean_features(jnp.square(given.eps - eps))

    def step(_: None, step_of: tuple[Array, Array, Array]) -> tuple[None, tuple[Array, Array, Array]]:
        t, s, i = step_of
        eps, given = at(t, i)
        a, b, small = process.posterior(s, t)
        apart = a.astype(x0.dtype) * (x0 - given.x0) + b.astype(x0.dtype) * (eps - given.eps)
        model = log_variance(given, small, process.transition(s, t)[1])
        kl = gaussian_kl(apart, jnp.log(small).astype(x0.dtype), jnp.zeros((), x0.dtype), model)
        return None, (bits_per_dim(-sum_features(kl), x0), *errors(eps, given))

    _, (terms, x0_mse, eps_mse) = jax.lax.scan(step, None, (times[:-1], times[1:], number[:-1]))

    t, large = times[-1], jnp.square(process.sigma(times[-1]))
    small = process.posterior(t, times[-2])[2] if times.shape[0] > 1 else large
    eps, given = at(t, number[-1])
    model = jnp.broadcast_to(log_variance(given, small, large if variance == "learned" else small), x0.shape)
    if levels is None:
        log_ratio2 = -process.log_snr(t).astype(x0.dtype)
        apart2 = jnp.square(x0 - given.x0) * jnp.exp(-log_ratio2)
        inside = -0.5 * (apart2 + log_ratio2 + math.log(2.0 * math.pi))
    else:
        inside = discretised_log_likelihood(x0, given.x0, model, levels)
    of_x0, of_eps = errors(eps, given)
    last = bits_per_dim(sum_features(inside), x0)
    prior = bits_per_dim(-prior_kl(process, x0, times[0]), x0)
    terms = jnp.concatenate([terms, last[None]])
    return DiscreteBound(
        prior + terms.sum(axis=0),
        prior,
        terms,
        jnp.concatenate([x0_mse, of_x0[None]]),
        jnp.concatenate([eps_mse, of_eps[None]]),
    )


@record
class TimeProposal(abc.ABC):
    """A way t(u) from t_min to t_max or back, u in [0, 1]; abstract."""

    @abc.abstractmethod
    def draw(self, process: Process, u: Array, first: Array, last: Array) -> tuple[Array, Array]:
        """t(u) and |d phi/du|, like u; first and last are t_min and t_max."""


@record
class ProposeTime(TimeProposal):
    """Uniform in t."""

    def draw(self, process: Process, u: Array, first: Array, last: Array) -> tuple[Array, Array]:
        t = first + u * (last - first)
        alpha, sigma = process.alpha(t), process.sigma(t)
        alpha_dot, sigma_dot = process.derivatives(t)
        return t, (last - first) * (alpha * sigma_dot - sigma * alpha_dot) / (jnp.square(alpha) + jnp.square(sigma))


@record
class ProposeLogSNR(TimeProposal):
    """Piecewise uniform in log-SNR, in bins of equal width from end to end.

    Args:
      probabilities: of the bins ``(n,)``, from low log-SNR to high, positive, summing to 1; None is one bin. From
        `learn_proposal`.

    Raises:
      ValueError: (when times are drawn) alpha(t_max) = 0 at a t_max that is known: `ProposeTime` takes it.
    """

    probabilities: Array | None = None

    def draw(self, process: Process, u: Array, first: Array, last: Array) -> tuple[Array, Array]:
        refuse_zero_alpha(
            process,
            last,
            "ProposeLogSNR is uniform in log-SNR, which has no end",
            "Give a t_max below 1, or use ProposeTime",
        )
        low, high = process.log_snr(last), process.log_snr(first)
        if self.probabilities is None:
            place, slope = u, jnp.ones_like(u)
        else:
            bins = self.probabilities.shape[0]
            edges = jnp.concatenate([jnp.zeros(1), jnp.cumsum(self.probabilities)])
            edges = edges / edges[-1]
            k = jnp.clip(jnp.searchsorted(edges, u, side="right") - 1, 0, bins - 1)
            mass = edges[k + 1] - edges[k]
            place, slope = (k.astype(u.dtype) + (u - edges[k]) / mass) / bins, 1.0 / (bins * mass)
        t = process.time_of_log_snr(low + place * (high - low))
        phi = angle(process, t)
        return t, slope * (high - low) * 0.5 * jnp.sin(phi) * jnp.cos(phi)


EVEN_LOG_SNR = ProposeLogSNR()


class ContinuousBound(NamedTuple):
    """The continuous variational bound, equation (2), in bits per dimension, ``(B,)`` each.

    total = prior + reconstruction + diffusion.
    """

    total: Array
    prior: Array
    reconstruction: Array
    diffusion: Array


def _error(
    denoise: Denoiser, process: Process, x0: Array, cond: Cond | None, keys: Array
) -> Callable[[Array, Array], Array]:
    """Equation (3): (t, salt) to cot(phi) |v - v^|^2, ``(B,)``, noise from the keys."""

    def error(t: Array, salt: Array) -> Array:
        eps = white_noise(salted_keys(keys, salt), x0.shape[1:], x0.dtype)
        given = denoise(process.perturb(x0, eps, t).astype(x0.dtype), t, cond)
        phi = angle(process, t)
        cosine, sine = (expand(part.astype(x0.dtype), x0) for part in (jnp.cos(phi), jnp.sin(phi)))
        apart = cosine * (eps - given.eps) - sine * (x0 - given.x0)
        return (process.alpha(t) / process.sigma(t) * sum_features(jnp.square(apart))).astype(x0.dtype)

    return error


def continuous_elbo(
    denoise: Denoiser,
    process: Process,
    x0: Array,
    keys: Array,
    cond: Cond | None = None,
    *,
    draws: int = 16,
    time: TimeProposal = EVEN_LOG_SNR,
    t_min: ArrayLike | None = None,
    t_max: ArrayLike | None = None,
    levels: int | None = 256,
) -> ContinuousBound:
    """The bound of the reverse SDE, equations (2) and (3), estimated without bias by ``draws`` evaluations.

    The mean over a data set has the standard error of its samples' totals, which holds the noise of times, of eps and
    of the choice of images.

    Args:
      denoise: the denoiser.
      process: its process.
      x0: data on ``levels`` values in [-1, 1], ``(B, ...)``.
      keys: ``(B,)``, one a sample.
      cond: the condition, batch first.
      draws: K, times a sample; static.
      time: how times are drawn: `ProposeLogSNR`, `ProposeTime`, or what `learn_proposal` gives; any has the same mean.
      t_min, t_max: the ends, as `jaxdiff.likelihood.log_likelihood`.
      levels: grey levels, with the decoder of `decoder_log_probability`; None for real-valued data, with the decoder
        N(x_t/alpha, (sigma/alpha)^2) at t_min. Static.

    Returns:
      A `ContinuousBound`.

    Raises:
      ValueError: ends that are out of order or without noise; fewer than one draw.

    >>> from jaxdiff import GaussianDenoiser, VP, sample_keys
    >>> process = VP()
    >>> x0, keys = jnp.zeros((2, 8, 8, 1)), sample_keys(jax.random.key(0), 0, 2)
    >>> continuous_elbo(GaussianDenoiser(process, 0.0, 0.5), process, x0, keys).total.shape
    (2,)
    """
    if draws < 1:
        raise ValueError(f"draws is at least 1, got {draws}")
    first, last = time_limits(process, t_min, t_max)
    refuse_blind(denoise, process, x0, last, cond)
    salted = salted_keys(keys, BOUND)
    float_type = jnp.result_type(float)
    offsets = jax.vmap(lambda key: jax.random.uniform(key, (), float_type))(salted_keys(salted, draws))
    error = _error(denoise, process, x0, cond, salted)

    def add(total: Array, k: Array) -> tuple[Array, None]:
        t, slope = time.draw(process, (k.astype(float_type) + offsets) / draws, first, last)
        return total + error(t, k) * slope.astype(x0.dtype) / draws, None

    diffusion, _ = jax.lax.scan(add, jnp.zeros(x0.shape[:1], x0.dtype), jnp.arange(draws))
    ratio = (process.sigma(first) / process.alpha(first)).astype(x0.dtype)
    if levels is None:
        size = math.prod(x0.shape[1:])
        decoded = jnp.broadcast_to(-0.5 * size * (1.0 + jnp.log(2.0 * math.pi * jnp.square(ratio))), x0.shape[:1])
    else:
        eps = white_noise(salted_keys(salted, draws + 1), x0.shape[1:], x0.dtype)
        decoded = sum_features(decoder_log_probability(x0, x0 + ratio * eps, ratio, levels))
    prior, decoding, path = (bits_per_dim(-nats, x0) for nats in (prior_kl(process, x0, last), -decoded, diffusion))
    return ContinuousBound(prior + decoding + path, prior, decoding, path)


def learn_proposal(
    denoise: Denoiser,
    process: Process,
    x0: Array,
    keys: Array,
    cond: Cond | None = None,
    *,
    bins: int = 32,
    uniform: float = 0.1,
    t_min: ArrayLike | None = None,
    t_max: ArrayLike | None = None,
) -> ProposeLogSNR:
    """The proposal of least variance for data like x0: sqrt(E L^2) bin by bin, mixed with the uniform one.

    Its draws are not those of `continuous_elbo` under the same keys, so that the bound has no bias on the same data.

    Args:
      denoise, process, x0, keys, cond, t_min, t_max: as `continuous_elbo`.
      bins: of equal width in log-SNR; static. One evaluation each.
      uniform: the uniform density's share, in (0, 1].
    """
    first, last = time_limits(process, t_min, t_max)
    refuse_blind(denoise, process, x0, last, cond)
    salted = salted_keys(keys, LEARN)
    error = _error(denoise, process, x0, cond, salted)

    def measure(k: Array) -> Array:
        u = jax.vmap(jax.random.uniform)(salted_keys(salted, bins + k))
        t, slope = EVEN_LOG_SNR.draw(process, (k.astype(u.dtype) + u) / bins, first, last)
        return jnp.sqrt(jnp.square(error(t, k) * slope).mean())

    size = jax.lax.map(measure, jnp.arange(bins))
    return ProposeLogSNR((1.0 - uniform) * size / size.sum() + uniform / bins)
