"""The score Fokker-Planck equation, as a residual and as a regulariser of any objective."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff.broadcast import expand, sum_features
from jaxdiff.denoiser import Cond, Net
from jaxdiff.loss import Context, Objective
from jaxdiff.process import Process
from jaxdiff.record import field, record
from jaxdiff.score_matching.base import ScoreAt, all_directions, draw_directions, inner, network_score
from jaxdiff.times import History, Terms

HUTCHINSON = 0x68757463  # apart from the key by which an objective draws directions of its own


def score_fokker_planck(process: Process, score: ScoreAt, x: Array, t: Array, directions: Array | None = None) -> Array:
    """The residual of equation (10), 0 everywhere if ``score`` is that of a density which ``process`` carries along.

    Args:
      process: the process.
      score: s(x, t).
      x: ``(B, ...)``.
      t: ``(B,)``.
      directions: ``(M, B, ...)`` with E[v v^T] = I, to estimate the divergence by; None: exact, by D products.

    Returns:
      Like x.

    >>> from jaxdiff.exact import GaussianDenoiser
    >>> from jaxdiff.schedule import VE
    >>> process = VE()
    >>> exact = GaussianDenoiser(process, mean=0.5, std=2.0)
    >>> x, t = jnp.array([[1.0, -1.0]]), jnp.array([0.7])
    >>> bool(jnp.abs(score_fokker_planck(process, lambda x, t: exact(x, t).score(process, t), x, t)).max() < 1e-3)
    True
    """
    drift, half_diffusion = process.drift(t), 0.5 * process.diffusion_squared(t)

    def potential(x: Array) -> Array:
        # div(f x) = D f is the same at every x
        s, push = jax.linearize(lambda x: score(x, t), x)
        v = all_directions(x) if directions is None else directions
        divergence = inner(v, jax.vmap(push)(v))
        divergence = divergence.sum(axis=0) if directions is None else divergence.mean(axis=0)
        return (half_diffusion * (divergence + sum_features(jnp.square(s))) - drift * sum_features(x * s)).sum()

    change = jax.jvp(lambda t: score(x, t), (t,), (jnp.ones_like(t),))[1]
    return change - jax.grad(potential)(x)


@record
class FokkerPlanckDraws:
    """The draws of the regularised objective, and directions ``(B, M, ...)`` or None."""

    draws: Any
    directions: Array | None

    @property
    def t(self) -> Array:
        """Times ``(B,)``."""
        times: Array = self.draws.t
        return times


@record
class FokkerPlanck:
    """Any objective with the score Fokker-Planck equation as a regulariser (Lai et al. 2023, "FP-Diffusion"),

        factor |tau sigma r|^2/D,   tau = sigma^2/g^2 = dt/d(-log-SNR),

    r the residual (10) and tau its unit of time: the residual over a unit of log-SNR, in which no process's own pace
    shows (Lai et al. take |r|^2/D).

    Args:
      objective: what is regularised.
      factor: of the regulariser, not negative.
      projections: directions a sample for the divergence (Hutchinson's); 0: exact, D products; static.
    """

    objective: Objective
    factor: float = 1.0
    projections: int = field(default=0, pytree_node=False)

    def init(self) -> History:
        """The history before the first step."""
        return self.objective.init()

    def draw(self, key: Array, batch: Cond, history: History = (), context: Context = Context()) -> FokkerPlanckDraws:
        """The objective's draws, and directions."""
        drawn = self.objective.draw(key, batch, history, context)
        if not self.projections:
            return FokkerPlanckDraws(drawn, None)
        other = jax.random.fold_in(key, HUTCHINSON)
        return FokkerPlanckDraws(drawn, draw_directions(other, drawn.x0, self.projections, "rademacher"))

    def terms(
        self, net: Net, params: Any, draws: FokkerPlanckDraws, context: Context = Context(), key: Array | None = None
    ) -> Terms:
        """The objective's terms, the regulariser added to its loss."""
        drawn, process = draws.draws, self.objective.process
        terms = self.objective.terms(net, params, drawn, context, key)
        x = process.perturb(drawn.x0, drawn.eps, drawn.t)
        score = network_score(self.objective, net, params, drawn.conditions(net), key)
        v = None if draws.directions is None else jnp.moveaxis(draws.directions, 1, 0)
        residual = score_fokker_planck(process, score, x, drawn.t, v)
        sigma = process.sigma(drawn.t)
        unit = sigma * jnp.square(sigma) / process.diffusion_squared(drawn.t)
        penalty = sum_features(jnp.square(expand(unit, x) * residual)) / x[0].size
        return terms._replace(loss=terms.loss + self.factor * penalty * drawn.weight)

    def update(self, history: History, draws: FokkerPlanckDraws, terms: Terms) -> History:
        """The history after a step."""
        return self.objective.update(history, draws.draws, terms)
