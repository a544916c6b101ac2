"""The twisted diffusion sampler (TDS): conditional samples from particles, exact as they become many.

Wu et al. 2023, "Practical and Asymptotically Exact Conditional Sampling in Diffusion Models",
https://arxiv.org/abs/2306.17775, algorithm 1. A sampler whose steps draw from p(x_s | x_t) = N(m, v), times
t_0 > ... > t_N, defines a joint law of x_0, ..., x_N and of x0, the last denoising. Given y, the target is

    p(x_0) p(x_1 | x_0) ... p(x_N | x_(N-1)) p(y | x_N)/p(y).                                        (1)

What is not known before the end, p(y | x_t), is replaced by a twist that can be computed, of the prediction x0(x_t),

    p~(y | x_t) ~ p(y | x0 = x0(x_t)),                                                               (2)

which draws the proposals towards y by its gradient, through the denoiser: with the score moved by it, so x0 by
D = (sigma^2/alpha) grad ln p~ (equation (8) of `jaxdiff.prediction`), the step's mean is some m~, and

    x_s ~ q = N(m~, v),     w = p(x_s | x_t) p~(y | x_s)/(q(x_s | x_t) p~(y | x_t)).                 (3)

(In VE with v = sigma_t^2 - sigma_s^2 this is the paper's m~ = m + v grad ln p~; in general v/r for v, r being the scale
of q(x_t | x_s), as in the authors' code for VP.) With e = (m~ - m)/sqrt(v) and x_s = m~ + sqrt(v) z,

    ln p(x_s | x_t) - ln q(x_s | x_t) = -|e|^2/2 - e . z.                                            (4)

The product of (3) along a path telescopes: it is (1) over the law of the proposals. This holds for any twists before
the end, if the last one is p(y | x_N) itself. So the end decides which law the samples have:

- x0 is a function of x_N, the last denoising's. For a likelihood p(y | x0), then, p(y | x_N) = p(y | x0(x_N)): the
  twist (2) is exact there, and the particles are weighed for the law of the samples that are given.
- Inpainting without noise, section 3.3: y is a part of x0 itself, and x0 as a function of x_N has it with probability
  0. The last step is then one more of the chain, to x0 ~ N(x0(x_N), V_N): p(y | x_N) = N(y; x0(x_N), V_N) on the known
  part, which becomes y, and the rest is that step's mean.

The twists are in `jaxdiff.inverse.twists`.

By equation (4) of `jaxdiff.sampling.particles` the weighted particles have the law (1) as k grows, and the mean weight
estimates p(y) without bias.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.broadcast import expand, sum_features
from jaxdiff.denoiser import Cond, Denoise
from jaxdiff.guidance import Guidance
from jaxdiff.guidance.universal import rows_of_function
from jaxdiff.inverse.method import Method, Needs
from jaxdiff.inverse.operators.base import Rows
from jaxdiff.inverse.problem import Problem
from jaxdiff.inverse.twists import Twist, twist_of
from jaxdiff.noise import Noise
from jaxdiff.prediction import Prediction, moved
from jaxdiff.process import Process
from jaxdiff.record import field, record
from jaxdiff.sampling.base import Sampler, State
from jaxdiff.sampling.particles import (
    RESAMPLE,
    ParticleSampler,
    Scheme,
    check_particles,
    condition_of,
    group_keys,
    resample,
    taken,
    taken_of_state,
)


@record
class TDS(Method):
    """Samples of the posterior from particles that are weighed exactly: any law of it as they become many.

    Any operator with a derivative, with Gaussian noise (above 0) or Poisson's; a mask without noise too. k times the
    evaluations and their reverse-mode derivatives of DPS: a step is one for each particle.

    Args:
      particles: k; static.
      tau: the data's deviation, equation (5) of `jaxdiff.inverse.twists`, 0 or more; data. It decides how many
        particles are needed and nothing else.
      threshold: resample where the effective size is below threshold x k, from 0 to 1; data.
      resampling: "systematic" or "multinomial"; static.

    Raises:
      ValueError: a number out of range; (made) a measurement without noise that is no mask's, a sampler that draws no
        noise.
    """

    particles: int = field(default=16, pytree_node=False)
    tau: ArrayLike = 1.0
    threshold: ArrayLike = 0.5
    resampling: Literal["systematic", "multinomial"] = field(default="systematic", pytree_node=False)
    needs: ClassVar[Needs] = "differentiable"
    usual: ClassVar[str] = "ddpm"

    def made(self, problem: Problem, process: Process, sampler: Sampler) -> tuple[tuple[Guidance, ...], Sampler]:
        twist = twist_of(problem, self.tau)
        return (), Twisted(sampler, twist, self.particles, self.threshold, self.resampling)


class Course(NamedTuple):
    """What `Twisted` remembers.

    Attributes:
      inner: the inner sampler's state.
      carried: ln w less the twist, ``(n k,)``: equation (5) of `jaxdiff.sampling.particles`.
      stuck: ``(n,)``.
    """

    inner: State
    carried: Array
    stuck: Array


@record
class Twisted(ParticleSampler):
    """Conditional samples of any sampler whose step is one Gaussian: algorithm 1.

    A sample is k rows of the batch, as in `jaxdiff.sampling.Steered`. A gradient through the denoiser each step, about
    two more evaluations. Guidance that the denoiser has is part of the law p.

    Args:
      sampler: the inner sampler: one evaluation a step at its beginning, and one draw of noise: `DDPM`, `DDIM` with
        eta, `EulerMaruyama`, `ReverseDiffusion` and others.
      twist: `GaussianTwist`, `InpaintingTwist`, `LikelihoodTwist`, or another `Twist`.
      particles: k; static.
      threshold: resample where the effective size is below threshold x k, from 0 to 1; data.
      resampling: "systematic" or "multinomial"; static.

    Raises:
      ValueError: a number out of range, an inner sampler that draws no noise; (when called) one whose step is of
        several evaluations or draws, samples that are no whole groups, a denoiser that remembers.

    >>> from jaxdiff import DDPM, VP, GaussianDenoiser, log_snr_times, sample, sample_keys
    >>> from jaxdiff.inverse import LikelihoodTwist
    >>> process, keys = VP(), sample_keys(jax.random.key(0), 0, 64)
    >>> x, ts = process.prior_sample(keys, (2,)), log_snr_times(process, 50)
    >>> twist = LikelihoodTwist(lambda x0, cond: -2.0 * (x0[:, 0] - 2.0) ** 2)  # the first coordinate is 2, by 1/2
    >>> found = sample(Twisted(DDPM(process), twist), GaussianDenoiser(process, 0.0, 1.0), keys, x, ts)
    >>> bool(found[:, 0].mean() > 1.0)
    True
    """

    process: Process = field(init=False, repr=False, derived=lambda self: self.sampler.process)
    sampler: Sampler
    twist: Twist
    particles: int = field(default=16, pytree_node=False)
    threshold: ArrayLike = 0.5
    resampling: Scheme = field(default="systematic", pytree_node=False)

    def __post_init__(self) -> None:
        if not isinstance(self.twist, Twist):
            raise ValueError(f"a twist is GaussianTwist, InpaintingTwist or LikelihoodTwist, got {self.twist!r}")
        check_particles(self.sampler, self.particles, self.threshold, self.resampling)

    @property
    def inner(self) -> tuple[Sampler, int, ArrayLike]:
        return self.sampler, self.particles, self.threshold

    def rows(self, cut: Rows) -> Twisted:
        """The same for some of the samples."""
        return dataclasses.replace(self, sampler=rows_of_function(self.sampler, cut), twist=self.twist.rows(cut))

    def init(self, x: Array) -> Course:
        nothing = jnp.zeros(x.shape[0], x.dtype)
        return Course(self.sampler.init(x), nothing, jnp.zeros(x.shape[0] // self.particles, bool))

    def step(self, denoise: Denoise, noise: Noise, state: Course, x: Array, t: Array, s: Array) -> tuple[Array, Course]:
        cond, rho = condition_of(denoise), _rho(self.process, t)

        def twisted(x: Array) -> tuple[Array, tuple[Prediction, Array]]:
            found = denoise(x, t)
            log_twist = _weighable(self.twist(found.x0, cond, rho))
            return log_twist.sum(), (found, log_twist)

        (_, (found, log_twist)), gradient = jax.value_and_grad(twisted, has_aux=True)(x)
        chosen, carried, stuck = resample(
            state.carried,
            log_twist,
            group_keys(noise, t, s, RESAMPLE, self.particles),
            particles=self.particles,
            threshold=self.threshold,
            scheme=self.resampling,
        )
        inner = taken_of_state(self.sampler, x, state.inner, chosen)
        x, found, gradient = taken((x, found, gradient), chosen)
        x, log_ratio, inner = self._propose(found, gradient, noise, inner, x, t, s)
        return x, Course(inner, carried + log_ratio, state.stuck | stuck)

    def _propose(
        self, found: Prediction, gradient: Array, noise: Noise, inner: State, x: Array, t: Array, s: Array
    ) -> tuple[Array, Array, State]:
        """x_s of equation (3), its ln p - ln q of (4), and the inner state after the step of p."""
        alpha, sigma = self.process.alpha(t), self.process.sigma(t)
        reach = jnp.where(alpha > 0, jnp.square(sigma) / jnp.where(alpha > 0, alpha, 1.0), 0.0)
        by = jnp.where(jnp.isfinite(gradient), expand(reach, x) * gradient, 0.0)
        towards = moved(self.process, t, found, by)
        calls: list[str] = []

        def one(prediction: Prediction, z: Array) -> tuple[Array, State]:
            def denoise(at_x: Array, at_t: ArrayLike) -> Prediction:
                calls.append("evaluation" if at_x is x and at_t is t else "evaluation elsewhere")
                return prediction

            def drawn(t: ArrayLike, s: ArrayLike, salt: ArrayLike = 0) -> Array:
                calls.append("draw")
                return z

            return self.sampler.step(denoise, drawn, inner, x, t, s)

        z = noise(t, s)
        _, after = one(found, z)
        if sorted(calls) != ["draw", "evaluation"]:
            raise ValueError(
                f"a twisted step is of one evaluation and one draw, and {type(self.sampler).__name__}'s is of "
                f"{len(calls)} ({', '.join(calls)}): take DDPM(process), or another whose step is one Gaussian"
            )
        move = jax.tree.map(jnp.subtract, towards, found)
        x_s, shift = jax.jvp(lambda prediction: one(prediction, z)[0], (found,), (move,))  # its step is affine
        _, std = jax.jvp(lambda z: one(found, z)[0], (z,), (jnp.ones_like(z),))
        e = shift / std
        return x_s + shift, -sum_features(e * (0.5 * e + z)), after

    def weigh(self, cond: Cond | None, state: Course, x0: Array, t: ArrayLike) -> tuple[Array, Array, Array]:
        log_last, x0 = self.twist.last(x0, cond, _rho(self.process, t))
        log_weights = state.carried + _weighable(log_last)
        return log_weights, state.stuck | (log_weights.reshape(-1, self.particles).max(axis=1) == -jnp.inf), x0


def _rho(process: Process, t: ArrayLike) -> Array:
    """sigma/alpha."""
    return jnp.exp(-0.5 * process.log_snr(t))


def _weighable(log_twist: Array) -> Array:
    """-inf where it is no number."""
    return jnp.where(jnp.isfinite(log_twist), log_twist, -jnp.inf)
