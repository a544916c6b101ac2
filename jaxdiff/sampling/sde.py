"""Methods on the reverse SDE, in t.

A family of reverse-time SDEs has the marginals of the process dx = f x dt + g dw, whatever tau >= 0 is (Song et al.
2021, "Score-Based Generative Modeling through SDEs", equations 6 and 13, and between and beyond them Karras et al.
2022, equation 6; Xue et al. 2023, SA-Solver, equation 6):

    dx = [f x - (1 + tau^2)/2 g^2 score(x, t)] dt + tau g dw,    time running from 1 to 0.           (1)

tau = 0 is the probability flow, 1 the reverse of the process, sqrt(2) has twice its noise. `EulerMaruyama` takes the
coefficients of (1) at t. `ReverseDiffusion` takes those of the discretised process instead (Song et al. 2021, appendix
E): where the forward chain goes from s to t by

    x_t = x_s + f_t(x_s) + G_t z,    f_t(x) = (r - 1) x,    G_t^2 = v,

which for a Gaussian process is q(x_t | x_s) = N(r x_s, v), equation (5) of `jaxdiff.process`, the reverse is

    x_s = x_t - f_t(x_t) + G_t^2 score + G_t z = (2 - r) x_t + v score + sqrt(v) z.                  (2)

f and g^2 are infinite where alpha = 0; r and v never are.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.denoiser import Denoise
from jaxdiff.noise import Noise
from jaxdiff.record import record
from jaxdiff.sampling.base import Sampler, State, refuse_no_signal
from jaxdiff.sampling.checks import check_tau


@record
class EulerMaruyama(Sampler):
    """Euler-Maruyama on equation (1): weak and, its noise being additive, strong order 1; one evaluation a step;
    falling times. At tau = 0 it is `Euler`, in either direction.

    Args:
      process: the process.
      tau: the noise's level, >= 0; data. 0 the probability flow, 1 the reverse SDE, sqrt(2) twice its noise.

    >>> import jax
    >>> from jaxdiff import VP, GaussianDenoiser, log_snr_times, sample, sample_keys
    >>> process, keys = VP(), sample_keys(jax.random.key(0), 0, 4)
    >>> x, ts = process.prior_sample(keys, (2,)), log_snr_times(process, 100)
    >>> sample(EulerMaruyama(process, tau=0.5), GaussianDenoiser(process, 3.0, 0.1), keys, x, ts).shape
    (4, 2)
    """

    tau: ArrayLike = 1.0

    def __post_init__(self) -> None:
        check_tau(self.tau)

    def noise_level(self) -> ArrayLike:
        return self.tau

    def check(self, ts: ArrayLike) -> None:
        refuse_no_signal(self.process, ts, "EulerMaruyama")

    def step(self, denoise: Denoise, noise: Noise, state: State, x: Array, t: Array, s: Array) -> tuple[Array, State]:
        g2 = self.process.diffusion_squared(t)
        pull = 0.5 * (1.0 + jnp.square(self.tau)) * g2
        drift = self.process.drift(t) * x - pull * denoise(x, t).score(self.process, t)
        return x + (s - t) * drift + self.tau * jnp.sqrt(g2 * jnp.abs(t - s)) * noise(t, s), state


@record
class ReverseDiffusion(Sampler):
    """The discretised SDE's reverse, equation (2).

    For other tau it is the family (1 + tau^2)/2 v score, tau sqrt(v) z: weak and strong order 1; one
    evaluation a step; falling times. tau = 0 is the paper's "reverse diffusion" probability flow (appendix D.3).

    From alpha = 0 its step is finite but as coarse as can be, r being 0 there however short the step is: begin below.

    Args:
      process: the process.
      tau: the noise's level, >= 0; data.

    Source: Song et al. 2021, equations 46 and, for VE and VP, their algorithms' predictors.
    """

    tau: ArrayLike = 1.0

    def __post_init__(self) -> None:
        check_tau(self.tau)

    def noise_level(self) -> ArrayLike:
        return self.tau

    def step(self, denoise: Denoise, noise: Noise, state: State, x: Array, t: Array, s: Array) -> tuple[Array, State]:
        scale, variance = self.process.transition(s, t)
        pull = 0.5 * (1.0 + jnp.square(self.tau)) * variance
        mean = (2.0 - scale) * x + pull * denoise(x, t).score(self.process, t)
        fresh = jnp.sqrt(jnp.maximum(variance, 0.0))  # 0 on rising times, where tau is
        return mean + self.tau * fresh * noise(t, s), state
