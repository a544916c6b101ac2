"""Langevin dynamics: as correctors after the steps of any sampler, and alone.

At one time t, with steps of size epsilon,

    x <- x + epsilon score(x, t) + sqrt(2 epsilon) z                                                 (1)

has, as epsilon falls, the law p_t; for Gaussian p_t of variance n^2 it has n^2/(1 - epsilon/(2 n^2)) instead. A
corrector takes a few such steps at the time where a predictor arrived (Song et al. 2021, "Score-Based Generative
Modeling through SDEs", appendix G), of size

    epsilon = 2 r^2 (snr |z|/|score|)^2     (`Langevin`: their algorithms 4, r = 1, and 5)           (2)
    epsilon = 2 r^2 (snr sigma)^2           (`AnnealedLangevin`: their code's "ald")                 (3)

for a given "signal-to-noise ratio" snr, norms being taken sample by sample. r^2 = (alpha_t/alpha_s)^2 over the step
from t to s is 1 where alpha is, so for VE, and their alpha_i = 1 - beta_i on the VP chain of the grid's times.

Without a predictor (Song & Ermon 2019, algorithm 1) levels sigma_1 > ... > sigma_L have ``steps`` such steps each, with
epsilon = (eps/2) sigma_i^2/sigma_L^2. For any process this is done on y = x/alpha, whose levels are rho = sigma/alpha;
in x it is

    x <- x - (size/2) sigma eps(x, t) + sqrt(size) sigma z,    size = eps/rho_L^2.                   (4)
"""

from __future__ import annotations

import abc

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.broadcast import expand, sum_features
from jaxdiff.denoiser import Denoise
from jaxdiff.noise import Noise
from jaxdiff.process import Process
from jaxdiff.record import field, record
from jaxdiff.sampling.base import Sampler, State, refuse_no_signal

CORRECTOR = 0x636F7272  # "corr"
"""Salt of the draws of correctors, the first of a step; the others count on."""


def _check_steps(steps: int) -> None:
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
        raise ValueError(f"steps of Langevin dynamics are to be an integer, 0 or more, got {steps!r}")


@record
class Corrector(abc.ABC):
    """Steps that leave the law at one time as it is; abstract.

    Args:
      snr: the size of a step, equations (2) and (3); data. The papers' for images: 0.16 (VE), 0.01 to 0.2 (VP).
      steps: how many; static.

    Raises:
      ValueError: a negative number of steps.
    """

    snr: ArrayLike = 0.16
    steps: int = field(default=1, pytree_node=False)

    def __post_init__(self) -> None:
        _check_steps(self.steps)

    @abc.abstractmethod
    def size(self, process: Process, z: Array, score: Array, t: Array, s: Array) -> Array:
        """epsilon, ``()`` or ``(B,)``, at s after a step from t."""

    def correct(self, process: Process, denoise: Denoise, noise: Noise, x: Array, t: Array, s: Array) -> Array:
        """Equation (1) at s, where a step from t arrived at x."""

        def once(i: Array, x: Array) -> Array:
            z, score = noise(t, s, CORRECTOR + i), denoise(x, s).score(process, s)
            size = expand(self.size(process, z, score, t, s), x)
            return x + size * score + jnp.sqrt(2.0 * size) * z

        return jax.lax.fori_loop(0, self.steps, once, x)


@record
class Langevin(Corrector):
    """Langevin steps as long as the score's norm allows, equation (2).

    One evaluation a step. It needs many dimensions, where both norms hardly vary: in a few, the score
    is now and then all but 0 and its step too large; `AnnealedLangevin` is for these. A Gaussian p_t of many dimensions
    it leaves with the variance n^2 (1 + r^2 snr^2)."""

    def size(self, process: Process, z: Array, score: Array, t: Array, s: Array) -> Array:
        slope = sum_features(jnp.square(score))
        ratio = sum_features(jnp.square(z)) / jnp.where(slope == 0, 1.0, slope)
        return 2.0 * jnp.square(_shrink(process, t, s) * self.snr) * jnp.where(slope == 0, 0.0, ratio)


@record
class AnnealedLangevin(Corrector):
    """Langevin steps as long as the noise level allows, equation (3). One evaluation a step."""

    def size(self, process: Process, z: Array, score: Array, t: Array, s: Array) -> Array:
        return 2.0 * jnp.square(_shrink(process, t, s) * self.snr * process.sigma(s))


def _shrink(process: Process, t: Array, s: Array) -> Array:
    """r of equations (2) and (3)."""
    return process.alpha(t) / process.alpha(s)


@record
class PredictorCorrector(Sampler):
    """A step of any sampler, then steps of a corrector at the time it arrived at. Evaluations: the predictor's and the
    corrector's steps. The law's error is the predictor's, lessened, and what (1) adds for steps that are not short.

    Args:
      predictor: the sampler; its process is this one's.
      corrector: `Langevin` or `AnnealedLangevin`.

    >>> from jaxdiff import VE, GaussianDenoiser, log_snr_times, sample, sample_keys
    >>> from jaxdiff.sampling.sde import ReverseDiffusion
    >>> process, keys, ts = VE(), sample_keys(jax.random.key(0), 0, 4), log_snr_times(VE(), 50)
    >>> x = process.prior_sample(keys, (2,), ts[0])
    >>> sampler = PredictorCorrector(ReverseDiffusion(process), AnnealedLangevin(0.16))
    >>> sample(sampler, GaussianDenoiser(process, 3.0, 0.1), keys, x, ts).shape
    (4, 2)

    Source: Song et al. 2021, algorithms 2 and 3, in the order of the boxes: predictor first.
    """

    process: Process = field(init=False, repr=False, derived=lambda self: self.predictor.process)
    predictor: Sampler
    corrector: Corrector

    def check(self, ts: ArrayLike) -> None:
        self.predictor.check(ts)

    def noise_level(self) -> ArrayLike:
        return 1.0 if self.corrector.steps else self.predictor.noise_level()

    def init(self, x: Array) -> State:
        return self.predictor.init(x)

    def step(self, denoise: Denoise, noise: Noise, state: State, x: Array, t: Array, s: Array) -> tuple[Array, State]:
        x, state = self.predictor.step(denoise, noise, state, x, t, s)
        return self.corrector.correct(self.predictor.process, denoise, noise, x, t, s), state


@record
class AnnealedLangevinDynamics(Sampler):
    """Langevin dynamics alone, on the grid's times, equation (4).

    Each is begun where the last one ended, y = x/alpha unchanged.
    ``steps`` evaluations a step of the grid; falling times.

    The dynamics of a step are those of its end: the start is to have the law of ts[0], as `Process.prior_sample` has.
    No order: levels near each other and many short steps make the law right, up to a factor 1/(1 - size/4) of the
    variance where the data have none of their own.

    Args:
      process: the process.
      size: equation (4); data. The paper's eps = 2e-5 and sigma_L = 0.01 make 0.2.
      steps: at each time, the paper's T; static.

    Raises:
      ValueError: a negative number of steps; times from where alpha = 0.

    >>> from jaxdiff import VE, GaussianDenoiser, log_snr_times, sample, sample_keys
    >>> process, keys, ts = VE(), sample_keys(jax.random.key(0), 0, 4), log_snr_times(VE(), 10, t_max=0.5)
    >>> x = process.prior_sample(keys, (2,), ts[0])
    >>> sample(AnnealedLangevinDynamics(process), GaussianDenoiser(process, 3.0, 0.1), keys, x, ts).shape
    (4, 2)

    Source: Song & Ermon 2019, "Generative Modeling by Estimating Gradients of the Data Distribution", algorithm 1.
    """

    size: ArrayLike = 0.2
    steps: int = field(default=100, pytree_node=False)

    def __post_init__(self) -> None:
        _check_steps(self.steps)

    def check(self, ts: ArrayLike) -> None:
        refuse_no_signal(self.process, ts, "AnnealedLangevinDynamics")

    def noise_level(self) -> ArrayLike:
        return 1.0

    def step(self, denoise: Denoise, noise: Noise, state: State, x: Array, t: Array, s: Array) -> tuple[Array, State]:
        sigma = self.process.sigma(s)

        def once(i: Array, x: Array) -> Array:
            z, eps = noise(t, s, CORRECTOR + i), denoise(x, s).eps
            return x - 0.5 * self.size * sigma * eps + jnp.sqrt(self.size) * sigma * z

        return jax.lax.fori_loop(0, self.steps, once, self.process.alpha(s) / self.process.alpha(t) * x), state
