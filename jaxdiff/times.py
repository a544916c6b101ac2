"""Training times: at which t a batch is made noisy.

A record's `sample` draws times and, for importance sampling, the weight 1/p(t) by which their losses are multiplied, p
relative to the uniform density on the range of times, so that the expected loss (and gradient) is that of uniform
times:

    E_{t ~ U}[L(t)] = E_{t ~ p}[L(t) / p(t)].                                                        (1)

Its variance is least for p(t) proportional to sqrt(E[L(t)^2]) (Nichol & Dhariwal 2021, equation 18). The other records
have weight 1: there the density of times is itself the choice of objective.

For a discrete chain times are its own, k/T with k = 1..T. `History`, the state of the adaptive records, is a pytree in
the training
state: checkpointed with it and, being computed from the global batch, the same on every device.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.prediction import refuse_zero_alpha
from jaxdiff.process import Process
from jaxdiff.record import field, record

History = Any
"""State of a `TrainingTime`: a pytree of arrays, () where there is none."""


class Terms(NamedTuple):
    """What a loss says of each sample, ``(B,)`` each.

    Attributes:
      loss: what is averaged and differentiated, weighted and divided by p(t).
      mse: mean squared error on the network's own target, unweighted.
      score_norm2: squared norm of the model's score, summed over dimensions.
    """

    loss: Array
    mse: Array
    score_norm2: Array


@record
class TrainingTime:
    """Draws training times; abstract. Times are between t_min, the process's `min_time`, and 1."""

    def init(self) -> History:
        """The history before the first step."""
        return ()

    def sample(self, process: Process, history: History, key: Array, n: int) -> tuple[Array, Array]:
        """n times and the weights of their losses, ``(n,)`` each."""
        t = self.draw(process, key, n)
        return t, jnp.ones_like(t)

    def draw(self, process: Process, key: Array, n: int) -> Array:
        """n times of a record without history."""
        raise TypeError(f"{type(self).__name__} must define draw or sample")

    def update(self, process: Process, history: History, t: Array, weight: Array, terms: Terms) -> History:
        """The history after a step that drew ``t`` with ``weight`` and found ``terms``."""
        return history


def _spread(process: Process, u: Array, t_min: ArrayLike | None, t_max: ArrayLike) -> Array:
    """Numbers in [0, 1) to times: uniform on (t_min, t_max), or on a chain's own times in it."""
    if process.steps is not None:
        low = 0.0 if t_min is None else jnp.ceil(jnp.asarray(t_min) * process.steps) - 1.0
        high = jnp.asarray(t_max) * process.steps
        return jnp.clip(jnp.floor(low + u * (high - low)) + 1.0, 1.0, process.steps) / process.steps
    least = jnp.asarray(process.min_time() if t_min is None else t_min)
    return least + u * (jnp.asarray(t_max) - least)


def _strata(key: Array, n: int) -> Array:
    """One draw shifted by i/n."""
    u = jax.random.uniform(key)
    return jnp.mod(u + jnp.arange(n, dtype=u.dtype) / n, 1.0)


@record
class Uniform(TrainingTime):
    """Uniform on [t_min, t_max], each sample on its own; on a chain's T times for `DiscreteVP` (Ho et al. 2020).

    Args:
      t_min: the least time; None for the process's `min_time`.
      t_max: the largest.
    """

    t_min: float | None = None
    t_max: float = 1.0

    def draw(self, process: Process, key: Array, n: int) -> Array:
        return _spread(process, jax.random.uniform(key, (n,)), self.t_min, self.t_max)


@record
class Stratified(TrainingTime):
    """Uniform, but the n times of a batch are one draw shifted by i/n: each marginally uniform, together spread evenly
    (Kingma et al. 2021, appendix I.1). Fields as `Uniform`."""

    t_min: float | None = None
    t_max: float = 1.0

    def draw(self, process: Process, key: Array, n: int) -> Array:
        u = _strata(key, n)
        return _spread(process, u, self.t_min, self.t_max)


@record
class LogitNormal(TrainingTime):
    """t = logistic(mean + std z), z ~ N(0, 1) (Esser et al. 2024, equation 19)."""

    mean: float = 0.0
    std: float = 1.0

    def draw(self, process: Process, key: Array, n: int) -> Array:
        t = jax.nn.sigmoid(self.mean + self.std * jax.random.normal(key, (n,)))
        return _on_chain(process, jnp.clip(t, process.min_time(), 1.0))


@record
class LogNormalSigma(TrainingTime):
    """ln(sigma/alpha) ~ N(mean, std^2) (Karras et al. 2022, table 1; the defaults are theirs), limited to the process's
    range."""

    mean: float = -1.2
    std: float = 1.2

    def draw(self, process: Process, key: Array, n: int) -> Array:
        log_ratio = self.mean + self.std * jax.random.normal(key, (n,))
        t = process.time_of_log_snr(-2.0 * log_ratio)
        return _on_chain(process, jnp.clip(t, process.min_time(), 1.0))


def _log_snr_range(process: Process, low: float | None, high: float | None) -> tuple[Array, Array]:
    least, most = process.log_snr(process.max_time(math.exp(6.0))), process.log_snr(process.min_time())
    return (
        least if low is None else jnp.maximum(low, process.log_snr(1.0)),
        most if high is None else jnp.minimum(high, most),
    )


@record
class UniformLogSNR(TrainingTime):
    """Uniform in log-SNR between that of t_max and t_min, one stratified draw a batch as `Stratified`.

    Args:
      low: the least log-SNR; where the process does not go so far, its own end stands. None: that end, or -12 in units
        of sigma(1) (equation 7 of `jaxdiff.process`) where alpha(1) is less than e^-6.
      high: the largest; the process's `min_time` stands where that is less, or where it is None.
    """

    low: float | None = None
    high: float | None = None

    def draw(self, process: Process, key: Array, n: int) -> Array:
        low, high = _log_snr_range(process, self.low, self.high)
        u = _strata(key, n)
        return _on_chain(process, process.time_of_log_snr(low + u * (high - low)))


@record
class GeometricLevels(TrainingTime):
    """One of ``levels`` noise levels at random, sigma/alpha falling geometrically from the process's largest to its
    least (Song & Ermon 2019, section 3.2; their L is 10). With the weight `SNR`, sigma^2 on the score, this is their
    objective of NCSN (equations 5 and 6).

    Args:
      levels: L, at least 2; static.
      low: the least log-SNR; where the process does not go so far, its own end stands. None: that end, or -12 in units
        of sigma(1) (equation 7 of `jaxdiff.process`) where alpha(1) is less than e^-6.
      high: the largest; the process's `min_time` stands where that is less, or where it is None.
    """

    levels: int = field(default=10, pytree_node=False)
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        if self.levels < 2:
            raise ValueError(f"levels is at least 2, got {self.levels}; for one level take Uniform(t, t)")

    def draw(self, process: Process, key: Array, n: int) -> Array:
        low, high = _log_snr_range(process, self.low, self.high)
        level = jax.random.randint(key, (n,), 0, self.levels)
        return _on_chain(process, process.time_of_log_snr(low + level / (self.levels - 1) * (high - low)))


@record
class LikelihoodTime(TrainingTime):
    """p(t) proportional to g^2/sigma^2, by which the score's error under the weight `Likelihood`, g^2/2, becomes one of
    constant variance (Song et al. 2021b, section 4.2). Since g^2/sigma^2 = -d log_snr/dt, p(t) is uniform in log-SNR:

        t = log_snr^-1(h + u (l - h)),   u ~ U(0, 1),   1/p(t) = (h - l) / (-log_snr'(t) (t_max - t_min)),       (2)

    h and l the log-SNR at t_min and t_max.

    Args:
      t_min: the least time; None for the process's `min_time`.
      t_max: the largest; None for the process's `max_time`, below 1 where alpha(1) = 0: log-SNR has no end there.

    Raises:
      ValueError: (when times are drawn) a discrete chain; alpha(t_max) = 0 at a t_max that is known.
    """

    t_min: float | None = None
    t_max: float | None = None

    def sample(self, process: Process, history: History, key: Array, n: int) -> tuple[Array, Array]:
        if process.steps is not None:
            raise ValueError(
                f"LikelihoodTime is of processes in continuous time, got {type(process).__name__} of {process.steps} "
                "steps: use LossSecondMoment"
            )
        t_min = process.min_time() if self.t_min is None else jnp.asarray(self.t_min)
        t_max = process.max_time() if self.t_max is None else jnp.asarray(self.t_max)
        refuse_zero_alpha(
            process, t_max, "LikelihoodTime is uniform in log-SNR, which has no end", "Give it a t_max below 1, or None"
        )
        high, low = process.log_snr(t_min), process.log_snr(t_max)
        t = process.time_of_log_snr(high + jax.random.uniform(key, (n,)) * (low - high))
        slope = process.diffusion_squared(t) / jnp.square(process.sigma(t))
        return t, (high - low) / (slope * (t_max - t_min))


def _on_chain(process: Process, t: Array) -> Array:
    return t if process.steps is None else jnp.clip(jnp.round(t * process.steps), 1.0, process.steps) / process.steps


@record
class Importance(TrainingTime):
    """Importance sampling of times in bins of equal width, learned from the losses met; abstract.

    A mixture with the uniform density bounds the weights by 1/uniform.

    Args:
      bins: number of bins; static. For a chain of T steps take T, or a divisor.
      uniform: the uniform density's share, in (0, 1].

    Raises:
      ValueError: (when times are drawn) more bins than a chain has steps: some would never be seen.
    """

    bins: int = field(default=100, pytree_node=False)
    uniform: float = 0.1

    def importance(self, history: History) -> Array:
        """What p(t) is proportional to, ``(bins,)``; all equal until each bin has been seen enough."""
        raise TypeError(f"{type(self).__name__} must define importance")

    def probabilities(self, history: History) -> Array:
        """Probability of each bin, ``(bins,)``."""
        relative = self.importance(history)
        relative = relative / jnp.maximum(relative.sum(), jnp.finfo(relative.dtype).tiny)
        return (1.0 - self.uniform) * relative + self.uniform / self.bins

    def sample(self, process: Process, history: History, key: Array, n: int) -> tuple[Array, Array]:
        if process.steps is not None and self.bins > process.steps:
            raise ValueError(
                f"{type(self).__name__} has {self.bins} bins for a chain of {process.steps} steps: those without a "
                f"time would never be seen, and times stay uniform. Take bins={process.steps}, or a divisor of it"
            )
        probabilities = self.probabilities(history)
        which, within = jax.random.split(key)
        # by inversion of the cumulative sum: unlike a shuffle of the batch this is the same on any sharding
        edges = jnp.cumsum(probabilities)
        chosen = jnp.searchsorted(edges, jax.random.uniform(which, (n,)) * edges[-1], side="right")
        chosen = jnp.minimum(chosen, self.bins - 1)
        within_bin = jax.random.uniform(within, (n,))
        u = (chosen.astype(within_bin.dtype) + within_bin) / self.bins
        return _spread(process, u, None, 1.0), 1.0 / (self.bins * probabilities[chosen])

    def bin_of(self, process: Process, t: Array) -> Array:
        """The bin of each time, ``(n,)``."""
        first = process.min_time()
        place = (t - first) / (1.0 - first) if process.steps is None else t - 0.5 / process.steps
        return jnp.clip(jnp.floor(place * self.bins), 0, self.bins - 1).astype(jnp.int32)


class LossHistory(NamedTuple):
    """The last losses of each bin ``(bins, length)`` and how many it has seen ``(bins,)``."""

    losses: Array
    seen: Array


@record
class LossSecondMoment(Importance):
    """p(t) proportional to sqrt(E[L(t)^2]) over the last ``length`` losses of each bin (Nichol & Dhariwal 2021, section
    3.3).

    Uniform until every bin has seen that many. For their chain: ``bins`` = T, ``length`` = 10, ``uniform`` = 0.001.
    """

    uniform: float = 0.001
    length: int = field(default=10, pytree_node=False)

    def init(self) -> LossHistory:
        return LossHistory(jnp.zeros((self.bins, self.length)), jnp.zeros(self.bins, jnp.int32))

    def importance(self, history: LossHistory) -> Array:
        moments = jnp.sqrt(jnp.square(history.losses).mean(axis=1))
        return jnp.where(history.seen.min() >= self.length, moments, jnp.ones_like(moments))

    def update(self, process: Process, history: LossHistory, t: Array, weight: Array, terms: Terms) -> LossHistory:
        loss, where = terms.loss / weight, self.bin_of(process, t)
        where = jnp.where(jnp.isfinite(loss), where, self.bins)  # out of bounds: dropped
        same = where[:, None] == where[None, :]  # (B, B)
        order = jnp.arange(t.shape[0])
        rank = (same & (order[None, :] < order[:, None])).sum(axis=1)
        later = (same & (order[None, :] > order[:, None])).sum(axis=1)
        slot = (history.seen.at[where].get(mode="clip") + rank) % self.length
        kept = jnp.where(later < self.length, where, self.bins)  # of more than fit, the last stay
        return LossHistory(
            history.losses.at[kept, slot].set(loss, mode="drop"), history.seen.at[where].add(1, mode="drop")
        )


class MeanHistory(NamedTuple):
    """Running mean ``(bins,)`` of a quantity and the number of samples seen ``(bins,)``."""

    mean: Array
    seen: Array


@record
class ScoreNorm(Importance):
    """p(t) proportional to the expected squared norm of the model's score, E ||score(x_t, t)||^2, a running mean in
    each bin.

    Uniform until every bin has been seen once.

    Args:
      bins: number of bins; static.
      uniform: the uniform density's share.
      horizon: samples of a bin over which its mean runs.
    """

    horizon: float = 1000.0

    def init(self) -> MeanHistory:
        return MeanHistory(jnp.zeros(self.bins), jnp.zeros(self.bins))

    def importance(self, history: MeanHistory) -> Array:
        return jnp.where(history.seen.min() > 0, history.mean, jnp.ones_like(history.mean))

    def update(self, process: Process, history: MeanHistory, t: Array, weight: Array, terms: Terms) -> MeanHistory:
        finite = jnp.isfinite(terms.score_norm2)
        where = jnp.where(finite, self.bin_of(process, t), self.bins)
        here = jnp.zeros(self.bins).at[where].add(1.0, mode="drop")
        total = jnp.zeros(self.bins).at[where].add(jnp.where(finite, terms.score_norm2, 0.0), mode="drop")
        seen = jnp.minimum(history.seen + here, self.horizon)
        share = jnp.where(here > 0, jnp.minimum(here / jnp.maximum(seen, 1.0), 1.0), 0.0)
        return MeanHistory(history.mean + share * (total / jnp.maximum(here, 1.0) - history.mean), seen)
