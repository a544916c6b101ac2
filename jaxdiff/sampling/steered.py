"""Feynman-Kac steering: samples of high reward, from particles that are weighed by what the denoiser expects of them.

Singhal et al. 2025, "A General Framework for Inference-time Scaling and Steering of Diffusion Models",
https://arxiv.org/abs/2501.06848. The target is the law p of a sampler, tilted by a reward r,

    p(x0) exp(lambda r(x0))/Z.                                                                       (1)

At the times t_0 > ... > t_N of a grid, with r_i = r(x0(x_i)) the reward of the prediction, particles are weighed by
potentials G_0, ..., G_N whose product along a path is the tilt,

    difference:   G_i = exp(lambda (r_i - r_(i-1))),      r_(-1) = 0                                 (2)
    max:          G_i = exp(lambda max(r_0, ..., r_i))                                               (3)
    sum:          G_i = exp(lambda (r_0 + ... + r_i))                                                (4)
    last:         G_N = exp(lambda r_N)/(G_0 ... G_(N-1)),     r_N = r(x0),                          (5)

where (5) holds for (2) as it stands. x0 is the last denoising's, a function of x_N, so (5) makes the product exact for
the law of the samples that the sampler gives: no other step is needed after it. By equation (4) of
`jaxdiff.sampling.particles` the weighted particles have the law (1) as k grows, whatever (2), (3) or (4) is taken and
however often they are resampled; these decide how many particles are needed.

In terms of equation (5) there, the target at t_i is ln(G_0 ... G_i): lambda r_i for (2).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.denoiser import Cond, Denoise
from jaxdiff.guidance.universal import cut_each, each_sample, rows_of_function
from jaxdiff.noise import Noise
from jaxdiff.process import Process, refuse_unless
from jaxdiff.record import as_tree, field, record
from jaxdiff.sampling.base import Sampler, State
from jaxdiff.sampling.particles import (
    RESAMPLE,
    Foreseen,
    ParticleSampler,
    Scheme,
    check_particles,
    condition_of,
    group_keys,
    resample,
    taken,
    taken_of_state,
)

Potential = Literal["difference", "max", "sum"]


class Path(NamedTuple):
    """What `Steered` remembers.

    Attributes:
      inner: the inner sampler's state.
      carried: ln w less the target, ``(n k,)``.
      total: the target, ln(G_0 ... G_i), ``(n k,)``.
      reached: the reward of (2), the largest so far of (3), or the sum of (4), ``(n k,)``.
      stuck: ``(n,)``.
      steps: how many were taken.
    """

    inner: State
    carried: Array
    total: Array
    reached: Array
    stuck: Array
    steps: Array


@record
class Steered(ParticleSampler):
    """A sampler whose samples are tilted by a reward: equation (1).

    A sample is k rows of the batch, one after the other; `jaxdiff.Model.sample` makes them, and gives one sample a
    group. The reward of a prediction is taken once a time; no more evaluations of the denoiser than the inner
    sampler's. The proposals are the inner sampler's steps of the denoiser that it is given: with guidance, (1) tilts
    what that guidance draws. From `jaxdiff.sample` each row is drawn by the weights of its group; the weights are in
    `sample_particles`.

    Args:
      sampler: the inner sampler, which draws noise: the particles of a group would else stay copies.
      reward: ``(x0, cond) -> (B,)``, a function (static) or a `jaxdiff.record` whose arrays are data. It needs no
        derivative. What is NaN or infinite has no weight.
      scale: lambda; data. 0 is the inner sampler.
      particles: k, 1 or more; static. 1 is the inner sampler.
      potential: "difference", "max" or "sum", equations (2) to (4); static.
      threshold: resample where the effective size is below threshold x k, from 0 (never: importance sampling) to 1
        (always); data.
      resampling: "systematic" or "multinomial"; static.
      every: weigh at each time whose number this divides, and at the last denoising; data. The potentials between are
        1. With "max" and "sum" it is the number of potentials, not lambda alone, that says how hard particles are
        selected on the way: some five are the paper's.

    Raises:
      ValueError: a number out of range, an unknown potential, an inner sampler that draws no noise; (when called) a
        reward of another shape, samples that are no whole groups, a denoiser that remembers.

    >>> import jax
    >>> from jaxdiff import DDPM, VP, GaussianDenoiser, log_snr_times, sample, sample_keys
    >>> process, keys = VP(), sample_keys(jax.random.key(0), 0, 64)
    >>> x, ts = process.prior_sample(keys, (2,)), log_snr_times(process, 100)
    >>> steered = Steered(DDPM(process), lambda x0, cond: x0[:, 0], scale=2.0, particles=64)  # N(0, 1) to N(2, 1)
    >>> found = sample(steered, GaussianDenoiser(process, 0.0, 1.0), keys, x, ts)
    >>> found.shape, bool(found[:, 0].mean() > 1)
    ((64, 2), True)
    """

    process: Process = field(init=False, repr=False, derived=lambda self: self.sampler.process)
    sampler: Sampler
    reward: Any
    scale: ArrayLike = 1.0
    particles: int = field(default=16, pytree_node=False)
    potential: Potential = field(default="difference", pytree_node=False)
    threshold: ArrayLike = 0.5
    resampling: Scheme = field(default="systematic", pytree_node=False)
    every: int | Array = 1

    def __post_init__(self) -> None:
        if not callable(self.reward) or isinstance(self.reward, type):
            raise ValueError(f"a reward is a function (x0, cond) -> one number a sample, got {self.reward!r}")
        if self.potential not in ("difference", "max", "sum"):
            raise ValueError(f'potential is to be "difference", "max" or "sum", got {self.potential!r}')
        check_particles(self.sampler, self.particles, self.threshold, self.resampling)
        refuse_unless(lambda every: every >= 1, "every is to be a whole number, 1 or more", every=self.every)
        object.__setattr__(self, "reward", as_tree(self.reward))

    @property
    def inner(self) -> tuple[Sampler, int, ArrayLike]:
        return self.sampler, self.particles, self.threshold

    def rows(self, cut: Callable[[Any], Any]) -> Steered:
        """The same for some of the samples."""
        inner, reward = rows_of_function(self.sampler, cut), rows_of_function(self.reward, cut)
        return dataclasses.replace(self, sampler=inner, reward=reward, scale=cut_each(self.scale, cut))

    def init(self, x: Array) -> Path:
        nothing = jnp.zeros(x.shape[0], x.dtype)
        reached = nothing - jnp.inf if self.potential == "max" else nothing
        stuck = jnp.zeros(x.shape[0] // self.particles, bool)
        return Path(self.sampler.init(x), nothing, nothing, reached, stuck, jnp.zeros((), jnp.int32))

    def _scaled(self, reward: Array) -> Array:
        """lambda r; -inf where r is no number that can be weighed."""
        return jnp.where(jnp.isfinite(reward), jnp.asarray(self.scale, reward.dtype) * reward, -jnp.inf)

    def _rewarded(self, x0: Array, cond: Cond | None) -> Array:
        value = each_sample(self.reward(x0, cond), x0, "a reward").astype(x0.dtype)
        return jnp.where(jnp.isfinite(value), value, -jnp.inf)

    def step(self, denoise: Denoise, noise: Noise, state: Path, x: Array, t: Array, s: Array) -> tuple[Array, Path]:
        cond, prediction = condition_of(denoise), denoise(x, t)
        none = jnp.broadcast_to(jnp.arange(self.particles)[None], (len(state.stuck), self.particles))
        due = (state.steps + 1) % self.every == 0
        chosen, state = jax.lax.cond(
            due,
            lambda: self._resampled(state, prediction.x0, cond, group_keys(noise, t, s, RESAMPLE, self.particles)),
            lambda: (none, state),
        )
        inner = taken_of_state(self.sampler, x, state.inner, chosen)
        x, prediction = taken((x, prediction), chosen)
        x, inner = self.sampler.step(Foreseen(denoise, x, t, prediction), noise, inner, x, t, s)
        return x, state._replace(inner=inner, steps=state.steps + 1)

    def _resampled(self, state: Path, x0: Array, cond: Cond | None, keys: Array) -> tuple[Array, Path]:
        """Which particle of its group each one is now, and the state of it."""
        reward = self._rewarded(x0, cond)
        if self.potential == "difference":
            reached, target = reward, self._scaled(reward)
        else:
            reached = jnp.maximum(state.reached, reward) if self.potential == "max" else state.reached + reward
            target = state.total + self._scaled(reached)
        chosen, carried, stuck = resample(
            state.carried,
            target,
            keys,
            particles=self.particles,
            threshold=self.threshold,
            scheme=self.resampling,
        )
        reached, total = taken((reached, target), chosen)
        return chosen, state._replace(carried=carried, total=total, reached=reached, stuck=state.stuck | stuck)

    def weigh(self, cond: Cond | None, state: Path, x0: Array, t: ArrayLike) -> tuple[Array, Array, Array]:
        log_weights = state.carried + self._scaled(self._rewarded(x0, cond))  # (5)
        return log_weights, state.stuck | (log_weights.reshape(-1, self.particles).max(axis=1) == -jnp.inf), x0
