"""What the objectives of score matching share: noisy data, the model's score, directions."""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff.broadcast import expand, mean_features, sum_features
from jaxdiff.denoiser import Cond, Net
from jaxdiff.loss import SNR, Context, Draws, Objective, Weight
from jaxdiff.parameterization import Score
from jaxdiff.record import record
from jaxdiff.times import Terms

DIRECTIONS = 0x64697265  # apart from the keys that a batch's draws split theirs into

Distribution = Literal["rademacher", "gaussian"]
ScoreAt = Callable[[Array, Array], Array]
"""A score as a function of x ``(B, ...)`` and t ``(B,)``."""


def network_score(objective: Objective, net: Net, params: Any, cond: Cond, key: Array | None = None) -> ScoreAt:
    """The model's score by an objective's process and parameterization. Deterministic: ``key``, of the dropout, is the
    same at each call."""
    process, parameterization = objective.process, objective.parameterization

    def score(x: Array, t: Array) -> Array:
        net_x, net_t = parameterization.condition(process, x, t)
        output = net.apply(params, net_x, net_t, cond, key=key).astype(x.dtype)
        return parameterization.read(process, x, t, output).score(process, t)

    return score


def draw_directions(key: Array, like: Array, count: int, distribution: Distribution) -> Array:
    """Directions v with E[v v^T] = I, ``(B, count, ...)`` for ``like`` ``(B, ...)``."""
    shape = (like.shape[0], count, *like.shape[1:])
    draw = jax.random.rademacher if distribution == "rademacher" else jax.random.normal
    return draw(jax.random.fold_in(key, DIRECTIONS), shape, like.dtype)


def all_directions(x: Array) -> Array:
    """The D unit vectors, for a batch ``(B, ...)``: ``(D, B, ...)``."""
    size = x[0].size
    unit = jnp.eye(size, dtype=x.dtype).reshape(size, 1, *x.shape[1:])
    return jnp.broadcast_to(unit, (size, *x.shape))


def inner(a: Array, b: Array) -> Array:
    """Inner products along all axes but the first two: ``(M, B, ...) -> (M, B)``."""
    return (a * b).reshape(*a.shape[:2], -1).sum(axis=2)


@record
class DirectedDraws(Draws):
    """`Draws` with random directions.

    Attributes:
      directions: ``(B, M, ...)``, M a sample.
    """

    directions: Any = None


@record
class ScoreMatching(Objective):
    """An objective on the score at x_t, equation (1) of `jaxdiff.score_matching`; abstract. A subclass defines
    `values`.

    Its weight, which in every objective weighs the error in x0, multiplies |score|^2 by |d x0/d score|^2 = sigma^4 /
    alpha^2: `SNR` is sigma^2 on the score, `Simple` 1 and `Likelihood` g^2/2.

    Args:
      process, parameterization, time, dropout: as `Objective`.
      weight: the weighting.
    """

    weight: Weight = SNR()

    @abc.abstractmethod
    def values(self, score: Callable[[Array], Array], x: Array, draws: Any) -> tuple[Array, Array]:
        """The objective summed over dimensions ``(B,)``, and the score at x (or close to it)."""

    def terms(self, net: Net, params: Any, draws: Any, context: Context = Context(), key: Array | None = None) -> Terms:
        """The objective's mean over dimensions for each sample. `Terms.mse` is the denoising error in eps, so that all
        objectives can be compared by it."""
        x = self.process.perturb(draws.x0, draws.eps, draws.t)
        score = network_score(self, net, params, draws.conditions(net), key)
        value, s = self.values(lambda x: score(x, draws.t), x, draws)
        weight = self.weight.on_target(self.process, Score(), draws.t) * draws.weight
        s = jax.lax.stop_gradient(s)
        mse = mean_features(jnp.square(expand(self.process.sigma(draws.t), s) * s + draws.eps))
        return Terms(weight * value / x[0].size, mse, sum_features(jnp.square(s)))
