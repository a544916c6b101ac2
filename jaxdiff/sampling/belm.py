"""O-BELM: a multistep method of second order whose steps rising times undo exactly.

Wang et al. 2024, "BELM: Bidirectional Explicit Linear Multi-step Sampler for Exact Inversion in Diffusion Models",
https://arxiv.org/abs/2410.07273. A step that is linear in its neighbours x_{i-1}, x_{i+1} and takes eps at x_i alone
can be solved for either neighbour. Its weights are those that leave the least error: with Y = x/alpha, rho =
sigma/alpha and dY/drho = eps, a step from rho_t to rho_s after one from rho_u to rho_t has, by Taylor at rho_t,

    Y_s = Y_t + d eps + d^2 Y''/2,      Y_u = Y_t - c eps + c^2 Y''/2,      d = rho_s - rho_t,  c = rho_t - rho_u.   (1)

Without Y'', and with r = d/c, that is the paper's optimal weights:

    Y_s = r^2 Y_u + (1 - r^2) Y_t + (1 + r) d eps(x_t, t),                                           (2)

with a local error of order 3. Equation (2) is the same relation of the three whichever neighbour it is solved for, so
rising times undo falling ones. Where the way turns, s = u and r = -1: (2) gives Y_u itself. The first step has no u: it
is DDIM's, r = 0.

An error in Y_u comes into Y_s by -r^2 of what it is in Y_t - Y_u. Falling times whose steps in rho shrink damp it;
rising ones enlarge it by (last step/first step)^2 in all, and going down again takes that back. So a record is found
again to rounding, while noise that was inverted from samples is not. The method needs alpha > 0.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.denoiser import Denoise
from jaxdiff.noise import Noise
from jaxdiff.record import record
from jaxdiff.sampling.base import Sampler, refuse_no_signal


class Before(NamedTuple):
    """The x before a step's and its time; a time of infinity says that there is none."""

    x: Array
    time: Array


@record
class BELM(Sampler):
    """O-BELM, equation (2), its first step DDIM's; rising times undo falling ones exactly. Order 2; one evaluation a
    step.

    The state is the x before. Hand it on, with `integrate`, to go back the way that was come.

    Raises:
      ValueError: times from where alpha = 0.

    >>> import jax
    >>> from jaxdiff import VP, GaussianDenoiser, integrate, log_snr_times
    >>> process, x = VP(), jax.random.normal(jax.random.key(0), (4, 2))
    >>> exact, ts = GaussianDenoiser(process, 1.0, 0.5), log_snr_times(process, 20)
    >>> noise, before = integrate(BELM(process), exact, None, x, ts[::-1])
    >>> back, _ = integrate(BELM(process), exact, None, noise, ts, state=before)
    >>> bool(jnp.abs(back - x).max() < 1e-4)
    True
    """

    exact_inverse: ClassVar[bool] = True

    def check(self, ts: ArrayLike) -> None:
        refuse_no_signal(self.process, ts, "BELM")

    def init(self, x: Array) -> Before:
        return Before(jnp.zeros_like(x), jnp.asarray(jnp.inf, jnp.result_type(float)))

    def step(self, denoise: Denoise, noise: Noise, state: Before, x: Array, t: Array, s: Array) -> tuple[Array, Before]:
        known = jnp.isfinite(state.time)
        u = jnp.where(known, state.time, t)
        alpha_s, alpha_t, alpha_u = (self.process.alpha(time) for time in (s, t, u))
        rho_s, rho_t, rho_u = (self.process.sigma(time) / self.process.alpha(time) for time in (s, t, u))
        forward, back = rho_s - rho_t, rho_t - rho_u
        r = jnp.where(known, forward / jnp.where(known, back, 1.0), 0.0)
        r2 = jnp.square(r)
        y = r2 * (state.x / alpha_u) + (1 - r2) * (x / alpha_t) + (1 + r) * forward * denoise(x, t).eps
        return alpha_s * y, Before(x, jnp.asarray(t, state.time.dtype))
