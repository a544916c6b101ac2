"""Noise added along the probability flow: ancestral Euler steps, churn and restarts, in rho = sigma/alpha.

With y = x/alpha every process is y = x_0 + rho eps, and the flow is dy/drho = eps (equation 2 of
`jaxdiff.sampling.ode`). Noise added to y raises rho,

    y + sqrt(rho_up^2 - rho^2) z   has the law of   rho_up,                                          (1)

which is q(x_t | x_s), and the flow brings it down again: the marginals are kept, and errors made before are forgotten.

EulerAncestral (k-diffusion's name) goes below rho_s by the flow, then up to it:

    rho_up = min(rho_s, eta sqrt(rho_s^2 (1 - rho_s^2/rho_t^2))),   rho_down = sqrt(rho_s^2 - rho_up^2),
    y_s = y_t + (rho_down - rho_t) eps + rho_up z = x0 + rho_down eps + rho_up z.                    (2)

EDMStochastic (Karras et al. 2022, algorithm 2) first goes up by (1), to rho_hat = (1 + gamma) rho, then steps down:

    y_hat = y_t + sqrt(rho_hat^2 - rho_t^2) S_noise z,   d = eps(y_hat, rho_hat),
    y' = y_hat + (rho_s - rho_hat) d,   y_s = y_hat + (rho_s - rho_hat)/2 (d + eps(y', rho_s)).      (3)

Restart (Xu et al. 2023, algorithm 1) goes up by (1) over a whole interval and comes down in several steps, some times.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.denoiser import Denoise
from jaxdiff.grid import karras_times
from jaxdiff.noise import Noise
from jaxdiff.process import Process, refuse_unless
from jaxdiff.record import field, record
from jaxdiff.sampling.base import Sampler, State, refuse_no_signal

RESTART = 0x72657374  # "rest"
"""Salt of the draws of restarts."""


@record
class EulerAncestral(Sampler):
    """Euler's step below the next level and fresh noise up to it, equation (2).

    Weak order 1; one evaluation a step; falling times, from alpha = 0 too.

    For eta <= 1 it is `DDIM` with that eta (the two sides of the last equality of (2) are k-diffusion's and Song et
    al.'s ways of writing it), in rho and so on every process; beyond 1, where DDIM ends, its noise is limited.

    Args:
      process: the process.
      eta: the noise's level, >= 0; data. 0 is the flow.
    """

    eta: ArrayLike = 1.0

    def __post_init__(self) -> None:
        refuse_unless(lambda eta: eta >= 0, "eta is to be 0 or more", eta=self.eta)

    def noise_level(self) -> ArrayLike:
        return self.eta

    def step(self, denoise: Denoise, noise: Noise, state: State, x: Array, t: Array, s: Array) -> tuple[Array, State]:
        prediction = denoise(x, t)
        fallen = -jnp.expm1(self.process.log_snr(t) - self.process.log_snr(s))  # 1 - rho_s^2/rho_t^2
        up = jnp.minimum(1.0, self.eta * jnp.sqrt(jnp.maximum(fallen, 0.0)))  # in units of rho_s
        down = jnp.sqrt(1.0 - jnp.square(up))
        sigma = self.process.sigma(s)
        return self.process.alpha(s) * prediction.x0 + sigma * (down * prediction.eps + up * noise(t, s)), state


def _ratio(process: Process, t: Array) -> Array:
    return process.sigma(t) / process.alpha(t)


@record
class EDMStochastic(Sampler):
    """Heun's method with churn, equation (3).

    Two evaluations a step; falling times. Weak order 2 where gamma falls
    with the step, as S_churn/N does; with gamma fixed every step has the error of one of length ln(1 + gamma) in
    ln rho, however fine the grid.

    Noise is really raised: the denoiser is asked at the time of rho_hat, at most t = 1.

    Args:
      process: the process.
      gamma: by what share a step raises rho, at most sqrt(2) - 1 (more is taken as that); data. In the paper it is
        S_churn/N for N steps; so that no count of steps can disagree with the grid, it is given here for one step. The
        default is the paper's 40/256 for ImageNet-64. 0 is Heun's method in rho.
      rho_min, rho_max: S_tmin and S_tmax, the sigma/alpha between which steps churn; data.
      noise_scale: S_noise; data. The paper's 1.003 makes up for what networks remove in excess.

    Raises:
      ValueError: times from where alpha = 0.

    >>> from jaxdiff import VE, GaussianDenoiser, karras_times, sample, sample_keys
    >>> process, keys, ts = VE(), sample_keys(jax.random.key(0), 0, 4), karras_times(VE(), 18)
    >>> x = process.prior_sample(keys, (2,), ts[0])
    >>> sample(EDMStochastic(process, gamma=40 / 18), GaussianDenoiser(process, 3.0, 0.1), keys, x, ts).shape
    (4, 2)
    """

    gamma: ArrayLike = 40 / 256
    rho_min: ArrayLike = 0.05
    rho_max: ArrayLike = 50.0
    noise_scale: ArrayLike = 1.0

    def __post_init__(self) -> None:
        refuse_unless(lambda gamma: gamma >= 0, "gamma is to be 0 or more", gamma=self.gamma)

    def noise_level(self) -> ArrayLike:
        return self.gamma

    def check(self, ts: ArrayLike) -> None:
        refuse_no_signal(self.process, ts, "EDMStochastic")

    def step(self, denoise: Denoise, noise: Noise, state: State, x: Array, t: Array, s: Array) -> tuple[Array, State]:
        process, begin = self.process, _ratio(self.process, t)
        churns = (begin >= self.rho_min) & (begin <= self.rho_max) & (jnp.asarray(self.gamma) > 0)
        gamma = jnp.minimum(self.gamma, math.sqrt(2.0) - 1.0)
        raised = process.time_of_log_snr(process.log_snr(t) - 2.0 * jnp.log1p(gamma))
        hat = jnp.where(churns, jnp.maximum(raised, t), t)
        rho, end = _ratio(process, hat), _ratio(process, s)
        # without churn the two may differ by a rounding, whose root would be seen
        added = jnp.where(churns, jnp.sqrt(jnp.maximum(jnp.square(rho) - jnp.square(begin), 0.0)), 0.0)
        y = x / process.alpha(t) + self.noise_scale * added * noise(t, s)
        first = denoise(process.alpha(hat) * y, hat).eps
        second = denoise(process.alpha(s) * (y + (end - rho) * first), s).eps
        return process.alpha(s) * (y + 0.5 * (end - rho) * (first + second)), state


@record
class Restart(Sampler):
    """Restarts around any sampler (the paper's: Heun's method in rho).

    When a step arrives at or below sigma/alpha = ``rho_min`` from above, at s, it is followed ``repeats`` times by (1)
    up to ``rho_max`` and ``steps`` steps of the inner sampler from there down to s, on Karras' grid. The inner sampler
    begins anew at the top; what it remembers at the bottom goes on. Order and evaluations are the inner one's, the
    restarts adding repeats x steps of its steps, whose error does not fall with the grid; falling times.

    Args:
      sampler: the inner sampler; its process is this one's.
      rho_min, rho_max: the interval; data. (The paper's grids have their t_min among their times.)
      repeats: how often, the paper's K; static.
      steps: down from the top; static. The defaults are the paper's for CIFAR-10 at 43 evaluations (N_Restart = 3 there
        counts times).

    Raises:
      ValueError: an empty interval; negative repeats; no step.

    >>> from jaxdiff import VP, GaussianDenoiser, Heun, log_snr_times, sample, sample_keys
    >>> process, keys, ts = VP(), sample_keys(jax.random.key(0), 0, 4), log_snr_times(VP(), 18)
    >>> x = process.prior_sample(keys, (2,), ts[0])
    >>> sample(Restart(Heun(process, "rho")), GaussianDenoiser(process, 3.0, 0.1), keys, x, ts).shape
    (4, 2)

    Source: Xu et al. 2023, "Restart Sampling for Improving Generative Processes", algorithm 1.
    """

    process: Process = field(init=False, repr=False, derived=lambda self: self.sampler.process)
    sampler: Sampler
    rho_min: ArrayLike = 0.06
    rho_max: ArrayLike = 0.3
    repeats: int = field(default=2, pytree_node=False)
    steps: int = field(default=2, pytree_node=False)

    def __post_init__(self) -> None:
        if self.repeats < 0 or self.steps < 1:
            raise ValueError(
                f"repeats is to be 0 or more and steps 1 or more, got {self.repeats} repeats and {self.steps} steps"
            )
        rhos = np.asarray([0.0, self.rho_min, self.rho_max]) if not self._traced() else np.arange(3)
        if not (np.diff(rhos) > 0).all():
            raise ValueError(f"restarts need 0 < rho_min < rho_max, got {self.rho_min} and {self.rho_max}")

    def noise_level(self) -> ArrayLike:
        return 1.0 if self.repeats else self.sampler.noise_level()

    def _traced(self) -> bool:
        return any(isinstance(end, jax.core.Tracer) for end in (self.rho_min, self.rho_max))

    def check(self, ts: ArrayLike) -> None:
        self.sampler.check(ts)

    def init(self, x: Array) -> State:
        return self.sampler.init(x)

    def step(self, denoise: Denoise, noise: Noise, state: State, x: Array, t: Array, s: Array) -> tuple[Array, State]:
        x, state = self.sampler.step(denoise, noise, state, x, t, s)
        if self.repeats == 0:
            return x, state
        process = self.sampler.process
        bottom = -2.0 * jnp.log(self.rho_min)
        arrives = (process.log_snr(s) >= bottom) & (process.log_snr(t) < bottom)
        return jax.lax.cond(arrives, lambda: self._restarts(denoise, noise, x, s), lambda: (x, state))

    def _restarts(self, denoise: Denoise, noise: Noise, x: Array, s: Array) -> tuple[Array, State]:
        process = self.sampler.process
        top = process.time_of_log_snr(-2.0 * jnp.log(self.rho_max))
        times = karras_times(process, self.steps + 1, t_max=top, t_min=s)
        scale, variance = process.transition(s, top)

        def restart(k: Array, carry: tuple[Array, State]) -> tuple[Array, State]:
            salt = jnp.uint32(RESTART) * jnp.asarray(k + 1, jnp.uint32)  # wraps around
            apart: Noise = lambda t, s, inner=0: noise(t, s, salt + jnp.asarray(inner, jnp.uint32))  # noqa: E731
            raised = scale * carry[0] + jnp.sqrt(variance) * noise(s, top, salt)

            def down(carry: tuple[Array, State], interval: tuple[Array, Array]) -> tuple[tuple[Array, State], None]:
                return self.sampler.step(denoise, apart, carry[1], carry[0], *interval), None

            return jax.lax.scan(down, (raised, self.sampler.init(raised)), (times[:-1], times[1:]))[0]

        return jax.lax.fori_loop(0, self.repeats, restart, (x, self.sampler.init(x)))
