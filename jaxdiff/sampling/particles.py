"""Groups of weighted particles: what samplers that weigh and resample them share.

A sample is drawn with k particles, its group: k rows of the batch, one after the other. With W_i the normalised weights
of a group,

    ESS = 1/sum_i W_i^2                                                                              (1)

says how many of its particles count. Where it is below threshold x k the group is resampled: each particle is replaced
by one of its group, a_j, that is drawn with probability W_i (Chopin & Papaspiliopoulos 2020, "An Introduction to
Sequential Monte Carlo", chapter 9):

    systematic:   a_j = min{i: W_1 + ... + W_i > (j - 1 + u)/k},    one u ~ U(0, 1) a group          (2)
    multinomial:  a_j = min{i: W_1 + ... + W_i > u_j},              k of them                        (3)

and every weight w_i becomes the group's mean weight, so that at last

    E[(1/k) sum_i w_i f(x_i)]  =  E_proposal[f x (all weights of a path)],                           (4)

for any threshold. With f = 1 the left side estimates the normalising constant without bias: `Particles.log_evidence`.

A weight's logarithm is kept as

    ln w = carried + target(x),                                                                      (5)

where target is what the method weighs a state by and ``carried`` is finite, so that a state of weight 0 is one whose
target is -inf. A group of such states alone has no weights to draw by; it keeps its particles and is ``stuck``.

A group's random numbers are made of the noise of its first row for that step, so they are a function of that row's key
and of the times, whatever batch it is in.
"""

from __future__ import annotations

import abc
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.broadcast import flatten
from jaxdiff.denoiser import Bound, Cond, Denoise, Denoiser
from jaxdiff.denoiser import begin as begin_memory
from jaxdiff.noise import Noise, NoiseSource, salted_keys, step_noise
from jaxdiff.prediction import Prediction
from jaxdiff.process import refuse_unless
from jaxdiff.record import record
from jaxdiff.sampling.base import Sampler, State, integrate, start

RESAMPLE, LAST, PARTICLE = 0x72737064, 0x6C617374, 0x70617274  # "rspd", "last", "part"
Scheme = Literal["systematic", "multinomial"]


class Particles(NamedTuple):
    """Weighted particles of n samples, k each.

    Attributes:
      x0: ``(n, k, ...)``.
      log_weights: ``(n, k)``, not normalised, equation (5).
      stuck: ``(n,)``, whether all particles of a group had weight 0 at some time of the grid.
    """

    x0: Array
    log_weights: Array
    stuck: Array

    @property
    def weights(self) -> Array:
        """Normalised, ``(n, k)``; equal ones where all are 0."""
        return normalised(self.log_weights)

    @property
    def log_evidence(self) -> Array:
        """ln of the mean weight ``(n,)``: equation (4)."""
        return _log_mean(self.log_weights)


def normalised(log_weights: Array) -> Array:
    """W_i of log weights ``(n, k)``; equal ones where all are -inf.

    >>> normalised(jnp.array([[0.0, -jnp.inf], [-jnp.inf, -jnp.inf]])).tolist()
    [[1.0, 0.0], [0.5, 0.5]]
    """
    most = log_weights.max(axis=1, keepdims=True)
    weights = jnp.where(most > -jnp.inf, jnp.exp(log_weights - jnp.where(most > -jnp.inf, most, 0.0)), 1.0)
    return weights / weights.sum(axis=1, keepdims=True)


def effective_size(log_weights: Array) -> Array:
    """Equation (1) of log weights ``(n, k)``: ``(n,)``, k for equal ones.

    >>> effective_size(jnp.array([[0.0, 0.0, -jnp.inf, 0.0]])).tolist()
    [3.0]
    """
    most = log_weights.max(axis=1, keepdims=True)
    weights = jnp.where(most > -jnp.inf, jnp.exp(log_weights - jnp.where(most > -jnp.inf, most, 0.0)), 1.0)
    return jnp.square(weights.sum(axis=1)) / jnp.square(weights).sum(axis=1)  # k exactly for equal weights


def ancestors(log_weights: Array, u: Array) -> Array:
    """a_j of equations (2) and (3), from 0.

    Args:
      log_weights: ``(n, k)``.
      u: ``(n, m)`` in [0, 1): the points on the right side.

    Returns:
      ``(n, m)``: indices within the group.
    """
    heights = jnp.cumsum(normalised(log_weights), axis=1)
    heights = heights / heights[:, -1:]
    below = jnp.minimum(u, 1.0 - jnp.finfo(u.dtype).epsneg)  # (k - 1 + u)/k may round to 1
    return jax.vmap(lambda h, u: jnp.searchsorted(h, u, side="right"))(heights, below)


def particle_keys(keys: Array, particles: int) -> Array:
    """The keys of the particles of samples: ``(n,)`` to ``(n k,)``, each sample's one after the other."""
    return salted_keys(jnp.repeat(keys, particles), PARTICLE, jnp.tile(jnp.arange(particles), len(keys)))


def group_keys(noise: Noise, t: ArrayLike, s: ArrayLike, salt: int, particles: int) -> Array:
    """One key a group ``(n,)``, of the noise of its first row."""
    rows = flatten(noise(t, s, salt))[::particles].astype(jnp.float32)
    words = jax.lax.bitcast_convert_type(rows, jnp.uint32).sum(axis=1, dtype=jnp.uint32)
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), words)


def points(keys: Array, particles: int, scheme: Scheme) -> Array:
    """The points of equation (2) or (3): ``(n, k)``, of one key a group."""
    count = 1 if scheme == "systematic" else particles
    u = jax.vmap(lambda key: jax.random.uniform(key, (count,)))(keys)
    return (jnp.arange(particles, dtype=u.dtype)[None] + u) / particles if scheme == "systematic" else u


def grouped(x: Array, particles: int) -> Array:
    """Rows as groups: ``(n k, ...)`` to ``(n, k, ...)``.

    Raises:
      ValueError: the rows are not whole groups.
    """
    if x.shape[0] % particles:
        raise ValueError(
            f"{x.shape[0]} samples are no whole groups of {particles} particles: take n x {particles} rows and keys"
        )
    return x.reshape(-1, particles, *x.shape[1:])


def taken(tree: Any, chosen: Array) -> Any:
    """The particles of each group at ``chosen`` ``(n, m)``; the leaves have the rows of all groups first."""

    def take(leaf: Array) -> Array:
        rows = jax.vmap(lambda group, index: group[index])(grouped(leaf, len(leaf) // len(chosen)), chosen)
        return rows.reshape(-1, *leaf.shape[1:])

    return jax.tree.map(take, tree)


def taken_of_state(sampler: Sampler, x: Array, state: State, chosen: Array) -> State:
    """`taken` of what a sampler remembers: of those arrays that have one row a sample, as `Sampler.init` shows."""

    def shapes(n: int) -> Any:
        return jax.eval_shape(sampler.init, jax.ShapeDtypeStruct((n * x.shape[0], *x.shape[1:]), x.dtype))

    def take(leaf: Array, one: Any, two: Any) -> Array:
        found: Array = leaf if one.shape == two.shape else taken(leaf, chosen)
        return found

    return jax.tree.map(take, state, shapes(1), shapes(2))


class Resampled(NamedTuple):
    """What `resample` decided.

    Attributes:
      chosen: ``(n, k)``, which particle of its group each one is now.
      carried: of equation (5) after it ``(n k,)``.
      stuck: ``(n,)``.
    """

    chosen: Array
    carried: Array
    stuck: Array


def resample(
    carried: Array, target: Array, keys: Array, *, particles: int, threshold: ArrayLike, scheme: Scheme
) -> Resampled:
    """Resamples the groups whose ESS is below threshold x k.

    Args:
      carried, target: of equation (5), ``(n k,)``; a target is finite or -inf.
      keys: ``(n,)``.
      particles: k.
      threshold: data.
      scheme: "systematic" or "multinomial".
    """
    log_weights = grouped(carried + target, particles)
    stuck = log_weights.max(axis=1) == -jnp.inf
    drawn = ~stuck & (effective_size(log_weights) < threshold * particles)
    own = jnp.broadcast_to(jnp.arange(particles)[None], log_weights.shape)
    chosen = jnp.where(drawn[:, None], ancestors(log_weights, points(keys, particles, scheme)), own)
    after = jnp.where(drawn, _log_mean(log_weights), 0.0)[:, None] - grouped(taken(target, chosen), particles)
    carried = jnp.where(drawn[:, None], after, grouped(carried, particles)).reshape(-1)
    return Resampled(chosen, carried, stuck)


def _log_mean(log_weights: Array) -> Array:
    return jax.scipy.special.logsumexp(log_weights, axis=1) - jnp.log(log_weights.shape[1])


class Foreseen:
    """A denoiser for one step whose prediction at that step's (x, t) is known already.

    Args:
      denoise: evaluates anywhere else.
      x, t, prediction: what is known.
    """

    def __init__(self, denoise: Denoise, x: Array, t: Array, prediction: Prediction):
        self.denoise, self.x, self.t, self.prediction = denoise, x, t, prediction

    def __call__(self, x: Array, t: ArrayLike) -> Prediction:
        return self.prediction if x is self.x and t is self.t else self.denoise(x, t)


@record
class ParticleSampler(Sampler):
    """A sampler of groups of weighted particles; abstract.

    Attributes:
      sampler: the inner sampler, which draws noise.
      particles: k.
      threshold: resample where ESS < threshold x k.
      resampling: the scheme.
    """

    @property
    @abc.abstractmethod
    def inner(self) -> tuple[Sampler, int, ArrayLike]:
        """The inner sampler, k, and the threshold."""

    @abc.abstractmethod
    def weigh(self, cond: Cond | None, state: State, x0: Array, t: ArrayLike) -> tuple[Array, Array, Array]:
        """The last log weights ``(n k,)``, ``stuck`` ``(n,)`` and x0, of what the denoiser said at the last time t."""

    def noise_level(self) -> ArrayLike:
        return self.inner[0].noise_level()

    def check(self, ts: ArrayLike) -> None:
        self.inner[0].check(ts)

    def finish(self, denoise: Denoise, noise: Noise, state: State, prediction: Prediction, t: Array) -> Array:
        """x0 with each row drawn anew from its group by the last weights, equation (3): a group's first row alone is a
        sample."""
        log_weights, _, x0 = self.weigh(condition_of(denoise), state, prediction.x0, t)
        k = self.inner[1]
        keys = group_keys(noise, t, jnp.where(jnp.asarray(t) > 0.5, 0.0, 1.0), LAST, k)
        drawn: Array = taken(x0, ancestors(grouped(log_weights, k), points(keys, k, "multinomial")))
        return drawn


def check_particles(sampler: Sampler, particles: int, threshold: ArrayLike, resampling: str) -> None:
    """What every `ParticleSampler` refuses.

    Raises:
      ValueError: a number that is out of range, an unknown scheme, or an inner sampler that draws no noise.
    """
    if isinstance(particles, bool) or not isinstance(particles, int) or particles < 1:
        raise ValueError(f"particles is a whole number, 1 or more, got {particles!r}")
    if resampling not in ("systematic", "multinomial"):
        raise ValueError(f'resampling is to be "systematic" or "multinomial", got {resampling!r}')
    refuse_unless(
        lambda threshold: (threshold >= 0) & (threshold <= 1),
        "threshold is a share of the particles, from 0 (never) to 1 (always)",
        threshold=threshold,
    )
    level = sampler.noise_level()
    if isinstance(sampler, ParticleSampler):
        raise ValueError("a sampler of particles is to be around a plain one, not around another of particles")
    if not isinstance(level, jax.core.Tracer) and not np.any(np.asarray(level) != 0):
        raise ValueError(
            f"{type(sampler).__name__} draws no noise, so particles that were resampled would stay copies of each "
            "other: take a sampler that does, such as DDPM(process) or DDIM(process, eta=1.0)"
        )


def condition_of(denoise: Denoise) -> Cond | None:
    """The condition bound to a denoiser, as the loops bind it.

    Raises:
      ValueError: the denoiser remembers features from one evaluation to the next, which resampling would mix up.
    """
    if jax.tree.leaves(getattr(denoise, "memory", ())):
        raise ValueError(
            "resampling exchanges the particles, and what the denoiser remembers of each would not follow: take the "
            "cache or guidance's `every` off"
        )
    return getattr(denoise, "cond", None)


def sample_particles(
    sampler: ParticleSampler,
    denoise: Denoiser,
    keys: Array,
    x: Array,
    ts: ArrayLike,
    cond: Cond | None = None,
    *,
    noise: NoiseSource = step_noise,
) -> tuple[Array, Particles]:
    """What `jaxdiff.sample` gives, and all particles with the weights that it draws by.

    Args:
      sampler: such as `Steered`.
      denoise, keys, x, ts, cond, noise: as `jaxdiff.sample`, each sample's k rows one after the other.

    Raises:
      ValueError: as `jaxdiff.sample`.
    """
    start(sampler, denoise, x, ts, cond)
    source = noise(keys, x)
    last, state = integrate(sampler, denoise, keys, x, ts, cond, noise=lambda keys, x: source)
    end = jnp.asarray(ts, jnp.result_type(float))[-1]
    bound = Bound(denoise, cond, begin_memory(denoise, last, cond))
    prediction = bound(last, end)
    log_weights, stuck, x0 = sampler.weigh(condition_of(bound), state, prediction.x0, end)
    k = sampler.inner[1]
    drawn = sampler.finish(bound, source, state, prediction, end)
    return drawn, Particles(grouped(x0, k), grouped(log_weights, k), stuck)
