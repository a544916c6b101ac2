"""Objectives that need no noise to compare with: implicit, sliced, and by finite differences."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff.broadcast import expand, sum_features
from jaxdiff.denoiser import Cond
from jaxdiff.loss import Context
from jaxdiff.record import field, record
from jaxdiff.score_matching.base import (
    DirectedDraws,
    Distribution,
    ScoreMatching,
    all_directions,
    draw_directions,
    inner,
)
from jaxdiff.times import History


@record
class Implicit(ScoreMatching):
    """|s|^2 + 2 tr(ds/dx), equation (3) (Hyvarinen 2005, theorem 1), the trace exact: D Jacobian-vector products on one
    evaluation, so for few dimensions. Fields as `ScoreMatching`.

    >>> from jaxdiff.exact import GaussianDenoiser
    >>> from jaxdiff.loss import Context, Draws
    >>> from jaxdiff.parameterization import ScaledTime, Score
    >>> from jaxdiff.schedule import VE
    >>> class Exact:  # data N(0, 1): at sigma(t) = 1 the score is -x/2, its trace in one dimension -1/2
    ...     def apply(self, params, x, t, cond=None, *, key=None):
    ...         return GaussianDenoiser(VE(), 0.0, 1.0)(x, t).score(VE(), t)
    >>> loss = Implicit(VE(), Score(time=ScaledTime(1.0)))
    >>> t = VE().time_of_log_snr(jnp.zeros(1))
    >>> draws = Draws(x0=jnp.full((1, 1), 2.0), eps=jnp.zeros((1, 1)), t=t, weight=jnp.ones(1), cond={})
    >>> print(f"{loss.terms(Exact(), (), draws).loss[0]:.3f}")
    0.000
    """

    def values(self, score: Callable[[Array], Array], x: Array, draws: object) -> tuple[Array, Array]:
        s, push = jax.linearize(score, x)
        basis = all_directions(x)
        trace = inner(basis, jax.vmap(push)(basis)).sum(axis=0)
        return sum_features(jnp.square(s)) + 2.0 * trace, s


@record
class Sliced(ScoreMatching):
    """(v . s)^2 + 2 v . (ds/dx) v over random directions, equation (4) (Song et al. 2019, "Sliced Score Matching"): one
    Jacobian-vector product a direction, whatever the dimensions.

    Args:
      process, parameterization, weight, time, dropout: as `ScoreMatching`.
      projections: M, directions a sample, at least 1; static.
      distribution: of the directions, "rademacher" (signs) or "gaussian"; static.
      variance_reduced: |s|^2 in place of (v . s)^2, its mean over v (their SSM-VR); static.
    """

    projections: int = field(default=1, pytree_node=False)
    distribution: Distribution = field(default="rademacher", pytree_node=False)
    variance_reduced: bool = field(default=False, pytree_node=False)

    def __post_init__(self) -> None:
        if self.projections < 1:
            raise ValueError(f"projections is at least 1, got {self.projections}; Implicit has the exact trace")
        if self.distribution not in ("rademacher", "gaussian"):
            raise ValueError(f"distribution is 'rademacher' or 'gaussian', got {self.distribution!r}")

    def draw(self, key: Array, batch: Cond, history: History = (), context: Context = Context()) -> DirectedDraws:
        drawn = super().draw(key, batch, history, context)
        v = draw_directions(key, drawn.x0, self.projections, self.distribution)
        return DirectedDraws(drawn.x0, drawn.eps, drawn.t, drawn.weight, drawn.cond, drawn.dropped, directions=v)

    def _square(self, v: Array, s: Array) -> Array:
        # v (M, B, ...); s like it, or (1, B, ...)
        return inner(s, s) if self.variance_reduced else jnp.square(inner(v, s))

    def values(self, score: Callable[[Array], Array], x: Array, draws: DirectedDraws) -> tuple[Array, Array]:
        s, push = jax.linearize(score, x)
        v = jnp.moveaxis(draws.directions, 1, 0)
        return (self._square(v, s[None]) + 2.0 * inner(v, jax.vmap(push)(v))).mean(axis=0), s


@record
class FiniteDifference(Sliced):
    """`Sliced` without derivatives, equation (5) (Pang et al. 2020): two evaluations a direction, at x + h v and x - h
    v, which run in parallel. It differs from the sliced objective by O(h^2).

    Args:
      process, parameterization, weight, time, dropout: as `ScoreMatching`.
      projections, distribution, variance_reduced: as `Sliced`.
      step: h/sigma(t), positive: p_t has no structure finer than sigma(t), and of much less float32 leaves nothing.
    """

    step: float = 0.05

    def values(self, score: Callable[[Array], Array], x: Array, draws: DirectedDraws) -> tuple[Array, Array]:
        v = jnp.moveaxis(draws.directions, 1, 0)
        h = self.step * self.process.sigma(draws.t)
        ends = jnp.stack([x[None] + expand(h, x)[None] * v, x[None] - expand(h, x)[None] * v])  # (2, M, B, ...)
        after, before = jax.vmap(jax.vmap(score))(ends)
        middle = 0.5 * (after + before)
        return (self._square(v, middle) + inner(v, after - before) / h[None]).mean(axis=0), middle.mean(axis=0)
