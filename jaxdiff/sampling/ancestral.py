"""Ancestral sampling: DDPM, DDIM and the analytic variance.

With the predicted pair for the true one, a step from t to s draws from (Song et al. 2021 DDIM, equation 12, in alpha
and sigma; w is the posterior's variance, equation 6 of `jaxdiff.process`)

    x_s = alpha_s x0 + sqrt(sigma_s^2 - eta^2 w) eps + eta sqrt(w) z,    w = sigma_s^2 (1 - SNR_t/SNR_s).        (1)

eta = 0 is deterministic: the first-order exponential integrator of the probability flow. eta = 1 has the mean of the
posterior q(x_s | x_t, x_0): DDPM (Ho et al. 2020, equation 11), whose variance may be w (fixed small), that of q(x_t |
x_s) (fixed large), or learned between the two (Nichol & Dhariwal 2021).

The variance that is best under KL adds to eta^2 w what the true x0 varies about its prediction, per dimension (Bao et
al. 2022, Analytic-DPM, theorem 1; their sigma* in alpha and sigma):

    eta^2 w + c^2 V(t),   c = alpha_s (1 - sqrt((SNR_t/SNR_s) (1 - eta^2 w/sigma_s^2))),                         (2)
    V = E|x_0 - x^_0|^2/d = (sigma_t/alpha_t)^2 (1 - Gamma),     Gamma(t) = E|eps(x_t, t)|^2/d.                    (3)

1 - Gamma is in [0, 1], and V at most the square of half the data's range: (2) is clipped to that (their theorem 2).
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.denoiser import Cond, Denoise, Denoiser
from jaxdiff.noise import Noise
from jaxdiff.prediction import BELOW_1, refuse_zero_alpha
from jaxdiff.process import Process, refuse_unless
from jaxdiff.record import field, record
from jaxdiff.sampling.base import Sampler, State
from jaxdiff.variational import learned_log_variance


def _check_eta(eta: ArrayLike) -> None:
    refuse_unless(lambda eta: (eta >= 0) & (eta <= 1), "eta is to be from 0 (the flow) to 1 (DDPM's noise)", eta=eta)


@record
class DDIM(Sampler):
    """The step of DDIM with eta times the posterior's noise, equation (1).

    Order 1; one evaluation a step; any times, rising ones too at eta = 0 (DDIM inversion).

    Args:
      process: the process.
      eta: None is deterministic and needs no keys. A number is data, so that changing it compiles nothing: 0
        deterministic too, 1 the posterior's variance, in between allowed.

    Raises:
      ValueError: eta outside [0, 1]: equation (1) has no root there. `EulerAncestral` takes more.
    """

    eta: ArrayLike | None = None

    def __post_init__(self) -> None:
        if self.eta is not None:
            _check_eta(self.eta)

    def noise_level(self) -> ArrayLike:
        return 0.0 if self.eta is None else self.eta

    def step(self, denoise: Denoise, noise: Noise, state: State, x: Array, t: Array, s: Array) -> tuple[Array, State]:
        prediction = denoise(x, t)
        alpha, sigma = self.process.alpha(s), self.process.sigma(s)
        if self.eta is None:
            return alpha * prediction.x0 + sigma * prediction.eps, state
        kept = jnp.exp(self.process.log_snr(t) - self.process.log_snr(s))  # SNR_t/SNR_s
        eta2 = jnp.square(self.eta)
        mean = alpha * prediction.x0 + sigma * jnp.sqrt(1.0 - eta2 + eta2 * kept) * prediction.eps
        fresh = jnp.sqrt(jnp.maximum(1.0 - kept, 0.0))  # 0 on rising times, where eta is
        return mean + sigma * self.eta * fresh * noise(t, s), state


@record
class DDPM(Sampler):
    """The step of DDPM: the posterior of the chain, equation (1) at eta = 1.

    Weak order 1; one evaluation a step; falling times.

    Args:
      process: the process.
      variance: "fixed_small" (the posterior's), "fixed_large" (the transition's) or "learned" (from a `LearnedVariance`
        network); static.

    Raises:
      ValueError: an unknown variance; "learned" with a denoiser that gives none.
    """

    variance: Literal["fixed_small", "fixed_large", "learned"] = field(default="fixed_small", pytree_node=False)

    def __post_init__(self) -> None:
        if self.variance not in ("fixed_small", "fixed_large", "learned"):
            raise ValueError(f'variance is to be "fixed_small", "fixed_large" or "learned", got {self.variance!r}')

    def noise_level(self) -> ArrayLike:
        return 1.0

    def step(self, denoise: Denoise, noise: Noise, state: State, x: Array, t: Array, s: Array) -> tuple[Array, State]:
        prediction = denoise(x, t)
        a, b, small = self.process.posterior(s, t)
        std: Array
        if self.variance == "fixed_small":
            std = jnp.sqrt(small)
        elif self.variance == "fixed_large":
            std = jnp.sqrt(self.process.transition(s, t)[1])
        elif prediction.variance is None:
            raise ValueError(
                'variance="learned" needs a network trained with LearnedVariance; this denoiser gives none'
            )
        else:
            std = jnp.exp(0.5 * learned_log_variance(self.process, s, t, prediction.variance))
        return a * prediction.x0 + b * prediction.eps + std * noise(t, s), state


@record
class AnalyticDDPM(Sampler):
    """`DDIM` with the variance that is best for the data, equations (1) to (3).

    For data that are an isotropic Gaussian it has the
    exact law, however few the steps. Weak order 1; one evaluation a step; falling times.

    Args:
      process: the process.
      times: ``(n,)`` falling times, alpha > 0, at which Gamma is known: a grid.
      gamma: ``(n,)``, Gamma there, from `estimate_gamma`; data. ln V is interpolated between them, linearly in the
        log-SNR, and constant beyond.
      eta: 1 is Analytic-DDPM, 0 Analytic-DDIM (which draws noise too); data.
      half_range: bounds V by its square: 1 for images in [-1, 1]; data.

    Raises:
      ValueError: times and gamma of different shapes; times that do not fall; eta outside [0, 1].

    >>> from jaxdiff import VP, GaussianDenoiser, log_snr_times, sample, sample_keys
    >>> process, exact = VP(), GaussianDenoiser(VP(), 1.0, 0.5)
    >>> keys, ts = sample_keys(jax.random.key(0), 0, 4), log_snr_times(process, 10)
    >>> gamma = estimate_gamma(process, exact, 1.0 + 0.5 * jax.random.normal(jax.random.key(1), (999, 2)), ts, keys[0])
    >>> x = process.prior_sample(keys, (2,), ts[0])
    >>> sample(AnalyticDDPM(process, ts, gamma), exact, keys, x, ts).shape
    (4, 2)
    """

    times: ArrayLike
    gamma: ArrayLike
    eta: ArrayLike = 1.0
    half_range: ArrayLike = jnp.inf

    def __post_init__(self) -> None:
        if jnp.ndim(self.times) != 1 or jnp.shape(self.times) != jnp.shape(self.gamma) or jnp.size(self.times) == 0:
            raise ValueError(
                "times and gamma are to be vectors of one length, got shapes "
                f"{jnp.shape(self.times)} and {jnp.shape(self.gamma)}"
            )
        if not isinstance(self.times, jax.core.Tracer) and not (np.diff(np.asarray(self.times)) < 0).all():
            raise ValueError("the times of gamma are to fall, as a grid's do")
        _check_eta(self.eta)

    def noise_level(self) -> ArrayLike:
        return 1.0

    def _spread(self, t: Array) -> Array:
        """V(t) of equation (3)."""
        log_snr = self.process.log_snr(self.times)
        unexplained = jnp.clip(1.0 - jnp.asarray(self.gamma), 0.0, 1.0)
        log_spread = jnp.log(jnp.maximum(unexplained, jnp.finfo(unexplained.dtype).tiny)) - log_snr
        spread = jnp.exp(jnp.interp(self.process.log_snr(t), log_snr, log_spread))
        return jnp.minimum(spread, jnp.square(self.half_range))

    def step(self, denoise: Denoise, noise: Noise, state: State, x: Array, t: Array, s: Array) -> tuple[Array, State]:
        prediction = denoise(x, t)
        alpha, sigma = self.process.alpha(s), self.process.sigma(s)
        kept = jnp.exp(self.process.log_snr(t) - self.process.log_snr(s))  # SNR_t/SNR_s
        drawn = jnp.square(self.eta) * (1.0 - kept)  # eta^2 w/sigma_s^2
        mean = alpha * prediction.x0 + sigma * jnp.sqrt(1.0 - drawn) * prediction.eps
        c = alpha * (1.0 - jnp.sqrt(kept * (1.0 - drawn)))
        return mean + jnp.sqrt(jnp.square(sigma) * drawn + c * c * self._spread(t)) * noise(t, s), state


def estimate_gamma(
    process: Process, denoise: Denoiser, x0: Array, ts: Array, key: Array, cond: Cond | None = None
) -> Array:
    """Gamma of equation (3) at each of ``ts``, from data: ``(n,)``, for `AnalyticDDPM`.

    It is estimated as 1 - (alpha/sigma)^2 E|x_0 - x0(x_t, t)|^2/d, which for a perfect denoiser is E|eps|^2/d and, at
    high noise, where Gamma is all but 1, has a relative instead of an absolute error in 1 - Gamma; for another denoiser
    it makes (2) the variance of the error that is made (Bao et al. 2022b, Extended-Analytic-DPM, theorem 3).

    Args:
      process: the process.
      denoise: the denoiser.
      x0: ``(B, ...)`` data; some thousands of numbers are enough.
      ts: ``(n,)`` times with alpha > 0, one evaluation each.
      key: for the noise.
      cond: the data's condition, batch first.

    Raises:
      ValueError: alpha is 0 at a known time.
    """
    refuse_zero_alpha(process, ts, "Gamma says nothing", BELOW_1)

    def at(place: tuple[Array, Array]) -> Array:
        t, key = place
        noisy = process.perturb(x0, jax.random.normal(key, x0.shape, x0.dtype), t)
        error = jnp.square(x0 - denoise(noisy, t, cond).x0).mean()
        return 1.0 - jnp.exp(process.log_snr(t)) * error

    return jax.lax.map(at, (jnp.asarray(ts), jax.random.split(key, len(ts))))
