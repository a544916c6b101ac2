"""Methods on the reverse SDE.

The reverse-time SDE has the same marginals as the process (Song et al. 2021, equation 6):

    dx = [f x - g^2 score(x, t)] dt + g dw,    time running from 1 to 0.                             (1)

f and g^2 are infinite where alpha = 0: start at a t_max below 1 there.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.denoiser import Denoise
from jaxdiff.noise import Noise
from jaxdiff.record import record
from jaxdiff.sampling.base import Sampler, State, refuse_no_signal


@record
class EulerMaruyama(Sampler):
    """Euler-Maruyama on equation (1): weak order 1; one evaluation a step; falling times."""

    def check(self, ts: ArrayLike) -> None:
        refuse_no_signal(self.process, ts, "EulerMaruyama")

    def step(self, denoise: Denoise, noise: Noise, state: State, x: Array, t: Array, s: Array) -> tuple[Array, State]:
        g2 = self.process.diffusion_squared(t)
        drift = self.process.drift(t) * x - g2 * denoise(x, t).score(self.process, t)
        return x + (s - t) * drift + jnp.sqrt(g2 * (t - s)) * noise(t, s), state
