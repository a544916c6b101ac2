"""Ancestral sampling: DDPM and DDIM.

With the predicted pair for the true one, a step from t to s draws from (Song et al. 2021 DDIM, equation 12, in alpha
and sigma; w is the posterior's variance, equation 6 of `jaxdiff.process`)

    x_s = alpha_s x0 + sqrt(sigma_s^2 - eta^2 w) eps + eta sqrt(w) z,    w = sigma_s^2 (1 - SNR_t/SNR_s).        (1)

eta = 0 is deterministic: the first-order exponential integrator of the probability flow. eta = 1 has the mean of the
posterior q(x_s | x_t, x_0): DDPM (Ho et al. 2020, equation 11), whose variance may be w (fixed small), that of q(x_t |
x_s) (fixed large), or learned between the two (Nichol & Dhariwal 2021).
"""

from __future__ import annotations

from typing import Literal

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.denoiser import Denoise
from jaxdiff.noise import Noise
from jaxdiff.record import field, record
from jaxdiff.sampling.base import Sampler, State
from jaxdiff.variational import learned_log_variance


@record
class DDIM(Sampler):
    """Equation (1). Order 1; one evaluation a step; any times, rising ones too at eta = 0 (DDIM inversion).

    Args:
      process: the process.
      eta: None is deterministic and needs no keys. A number is data, so that changing it compiles nothing: 0
        deterministic
        too, 1 the posterior's variance, in between allowed.
    """

    eta: ArrayLike | None = None

    def step(self, denoise: Denoise, noise: Noise, state: State, x: Array, t: Array, s: Array) -> tuple[Array, State]:
        prediction = denoise(x, t)
        alpha, sigma = self.process.alpha(s), self.process.sigma(s)
        if self.eta is None:
            return alpha * prediction.x0 + sigma * prediction.eps, state
        kept = jnp.exp(self.process.log_snr(t) - self.process.log_snr(s))  # SNR_t/SNR_s
        eta2 = jnp.square(self.eta)
        mean = alpha * prediction.x0 + sigma * jnp.sqrt(1.0 - eta2 + eta2 * kept) * prediction.eps
        return mean + sigma * self.eta * jnp.sqrt(1.0 - kept) * noise(t, s), state


@record
class DDPM(Sampler):
    """Equation (1) at eta = 1. Weak order 1; one evaluation a step; falling times.

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
