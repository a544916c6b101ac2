"""DDNM and DDNM+: the range of A is measured, its null space is drawn.

Wang et al. 2022, "Zero-Shot Image Restoration Using Denoising Diffusion Null-Space Model",
https://arxiv.org/abs/2212.00490. Of a prediction x0 the part that A sees is replaced by what was measured (their
equation 13), and eps follows so that x = alpha x0' + sigma eps' still holds,

    x0' = A+ y + (I - A+ A) x0 = x0 + A+ (y - A x0)                                                  (1)

so that A x0' = y for every y in the range of A: the last denoising gives a consistent sample whatever the sampler.
Their algorithm 1 takes DDPM's step with x0'; eps there is that of x0' too, as it is the posterior q(x_s | x_t, x0').
For a mask it is `Known`. An operator that is not linear but has A(A+ y) = y, such as rounding, takes
x0' = A+ y + x0 - A+ A(x0).

With noise (their section 3.3) x0' would have the noise of A+ y, of deviation std/s_i along v_i. A step

    x_s = a x0' + b x_t + sqrt(w) z,      a, b, w of q(x_s | x_t, x0), w times eta^2                 (2)

draws as much less noise, and where w is not enough takes only a share l_i of the correction,

    x0'_i = x0_i + l_i (A+ (y - A x0))_i,     l_i = min(1, sqrt(w) s_i/(a std))                      (3)
    variance of z along v_i:  w - (a l_i std/s_i)^2,      w where s_i = 0.                           (4)

Without noise l = 1, and (2) is the step of (1). Towards sigma_s = 0 l falls to 0 with noise: the last denoising is then
the network's.

Either may take its steps several times: `jaxdiff.inverse.time_travel`.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.broadcast import expand
from jaxdiff.denoiser import Cond, Denoise, Denoiser, Memory, begin, recall
from jaxdiff.guidance import Guidance
from jaxdiff.guidance.base import Nulls
from jaxdiff.inverse.around import refuse_own_steps
from jaxdiff.inverse.method import Measured, Method, Needs
from jaxdiff.inverse.operators.base import Rows
from jaxdiff.inverse.problem import Problem
from jaxdiff.inverse.time_travel import check_travel, travelling
from jaxdiff.noise import Noise
from jaxdiff.prediction import Prediction, moved
from jaxdiff.process import Process, refuse_unless
from jaxdiff.record import field, record
from jaxdiff.sampling import Sampler
from jaxdiff.sampling.base import State


@record
class Consistent(Measured):
    """Equation (1), as an element of guidance; the last of a list.

    Args:
      problem: what was measured.
      weight: the share of the correction that is made, from 0 to 1; data.
      low: where sigma/alpha is at most this, none is made; data.
    """

    weight: ArrayLike = 1.0
    low: ArrayLike = 0.0

    def __call__(self, denoise: Denoiser, plain: Denoiser, process: Process, nulls: Nulls) -> Denoiser:
        return ConsistentPart(denoise, process, self.problem, self.weight, self.low)


@record
class ConsistentPart:
    """The denoiser of equation (1).

    Args:
      denoise: the denoiser, guided or not.
      process: its process.
      problem: what was measured.
      weight, low: see `Consistent`.

    >>> import jax.numpy as jnp
    >>> from jaxdiff import VP, GaussianDenoiser
    >>> from jaxdiff.inverse.operators import Box
    >>> problem = Problem(Box((2, 2, 1), 2), jnp.full((1, 1, 1, 1), 3.0))
    >>> part = ConsistentPart(GaussianDenoiser(VP(), 0.0, 1.0), VP(), problem)
    >>> part(jnp.zeros((1, 2, 2, 1)), 0.5).x0.ravel().tolist()
    [3.0, 3.0, 3.0, 3.0]
    """

    denoise: Denoiser
    process: Process
    problem: Problem
    weight: ArrayLike = 1.0
    low: ArrayLike = 0.0

    def __call__(self, x: Array, t: ArrayLike, cond: Cond | None = None) -> Prediction:
        return self.recall(x, t, cond, ())[0]

    def begin(self, x: Array, cond: Cond | None = None) -> Memory:
        """See the top of `jaxdiff.denoiser`."""
        return begin(self.denoise, x, cond)

    def recall(self, x: Array, t: ArrayLike, cond: Cond | None, memory: Memory) -> tuple[Prediction, Memory]:
        """See the top of `jaxdiff.denoiser`."""
        found, after = recall(self.denoise, x, t, cond, memory)
        operator, y = self.problem.operator, self.problem.y.astype(x.dtype)
        if operator.linear:
            by = operator.pinv(y - operator(found.x0))
        else:
            by = operator.pinv(y) - operator.pinv(operator(found.x0))
        noisy = self.process.sigma(t) > self.low * self.process.alpha(t)
        share = jnp.where(noisy, self.weight, 0.0).astype(x.dtype)
        return moved(self.process, t, found, expand(share, x) * by), after


@record
class DDNM(Method):
    """The measured part of each prediction is replaced by the measurement, equation (1).

    One evaluation a step. Exact in A x0 = y; the null space is drawn as the sampler draws it, not from the posterior.
    A measurement with noise is taken as if it had none.

    Args:
      rounds, jumps: time travel: how often a step is taken, and how many shorter ones it is divided into, 1 or more
        each; static. With more than 1 round a step costs ``jumps * rounds`` evaluations.

    Raises:
      ValueError: a number below 1; (made) time travel with a sampler that chooses its steps itself.
    """

    rounds: int = field(default=1, pytree_node=False)
    jumps: int = field(default=1, pytree_node=False)
    needs: ClassVar[Needs] = "pinv"
    usual: ClassVar[str] = "ddpm"

    def __post_init__(self) -> None:
        check_travel(self.rounds, self.jumps, "ddnm")

    def made(self, problem: Problem, process: Process, sampler: Sampler) -> tuple[tuple[Guidance, ...], Sampler]:
        if self.rounds > 1 or self.jumps > 1:
            refuse_own_steps(sampler, "time travel")
        return (Consistent(problem),), travelling(sampler, self.rounds, self.jumps)


@record
class DDNMPlus(Method):
    """DDNM for measurements with noise, equations (2) to (4). One evaluation a step.

    Args:
      eta: the share of the posterior's noise, above 0 and at most 1, as in `DDIM`; data. With noise of the measurement
        and eta = 0 nothing of it would be taken.
      rounds, jumps: see `DDNM`.

    Raises:
      ValueError: a number out of range.
    """

    eta: ArrayLike = 1.0
    rounds: int = field(default=1, pytree_node=False)
    jumps: int = field(default=1, pytree_node=False)
    needs: ClassVar[Needs] = "spectral"
    own_steps: ClassVar[bool] = True

    def __post_init__(self) -> None:
        refuse_unless(lambda eta: (eta > 0) & (eta <= 1), "eta is to be above 0 and at most 1", eta=self.eta)
        check_travel(self.rounds, self.jumps, "ddnm_plus")

    def made(self, problem: Problem, process: Process, sampler: Sampler) -> tuple[tuple[Guidance, ...], Sampler]:
        steps = DDNMPlusSteps(process, problem, self.eta)
        return (exact_only(problem),), travelling(steps, self.rounds, self.jumps)


def exact_only(problem: Problem, weight: ArrayLike = 1.0) -> Consistent:
    """Equation (1) where the measurement has no noise, else nothing: the limit of a step to sigma_s = 0."""
    return Consistent(problem, jnp.where(problem.std == 0, weight, 0.0))


@record
class DDNMPlusSteps(Sampler):
    """Equations (2) to (4).

    Args:
      process: the process.
      problem: what was measured.
      eta: see `DDNMPlus`.
    """

    problem: Problem
    eta: ArrayLike

    def noise_level(self) -> ArrayLike:
        return 1.0

    def rows(self, cut: Rows) -> Any:
        """The sampler of some of the samples: `jaxdiff.plan.rows_of`."""
        return dataclasses.replace(self, problem=self.problem.rows(cut))

    def step(self, denoise: Denoise, noise: Noise, state: State, x: Array, t: Array, s: Array) -> tuple[Array, State]:
        found, z = denoise(x, t), noise(t, s)
        operator, std = self.problem.operator, self.problem.std
        _, _, posterior = self.process.posterior(s, t)
        w = jnp.square(self.eta) * posterior
        sigma_t = self.process.sigma(t)
        from_x = jnp.sqrt(jnp.square(self.process.sigma(s)) - w) / sigma_t
        from_x0 = self.process.alpha(s) - from_x * self.process.alpha(t)

        def share(singular: Array) -> Array:
            needed, there = from_x0 * std, jnp.sqrt(w) * singular
            return jnp.where(needed > there, there / jnp.where(needed > 0, needed, 1), 1)

        def deviation(singular: Array) -> Array:
            taken = from_x0 * share(singular) * std / jnp.where(singular > 0, singular, 1)
            return jnp.sqrt(jnp.maximum(w - jnp.where(singular > 0, jnp.square(taken), 0), 0))

        by = operator.filtered(share, operator.pinv(self.problem.residual(found.x0)))
        return from_x0 * (found.x0 + by) + from_x * x + operator.filtered(deviation, z), state
