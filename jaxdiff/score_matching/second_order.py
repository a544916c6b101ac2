"""Objectives that learn the Hessian of log p_t too: as outputs of the network, or as the Jacobian of its score."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.broadcast import expand, mean_features, sum_features
from jaxdiff.denoiser import Cond, Net
from jaxdiff.loss import SNR, Context, Draws, Objective, Weight
from jaxdiff.parameterization import Eps, Extended
from jaxdiff.prediction import Prediction
from jaxdiff.process import Process
from jaxdiff.record import field, record
from jaxdiff.score_matching.base import DirectedDraws, all_directions, draw_directions, inner, network_score
from jaxdiff.times import History, Terms


@record
class LearnedHessian(Extended):
    """A network of 2 + rank times the channels: the first C are ``base``'s output, the next the diagonal a, the others
    the factors b_1 .. b_rank of the Hessian of log p_t, equation (8). Samplers see ``base`` alone.

    Args:
      base: what the first channels are.
      rank: number of factors; 1 is enough for any Hessian in two dimensions; static.
    """

    rank: int = field(default=1, pytree_node=False)

    def read(self, process: Process, x: Array, t: ArrayLike, output: Array) -> Prediction:
        self._check(x.shape[-1], output)
        return self.base.read(process, x, t, output[..., : x.shape[-1]])

    def parts(self, output: Array) -> tuple[Array, Array]:
        """a ``(B, D)`` and b ``(B, rank, D)`` of equation (8)."""
        channels = output.shape[-1] // (2 + self.rank)
        self._check(channels, output)
        _, diagonal, *factors = jnp.split(output, 2 + self.rank, axis=-1)
        flat = [part.reshape(part.shape[0], -1) for part in (diagonal, *factors)]
        return flat[0], jnp.stack(flat[1:], axis=1) if self.rank else jnp.zeros((len(flat[0]), 0, flat[0].shape[1]))

    def hessian(self, process: Process, t: ArrayLike, output: Array) -> Array:
        """The Hessian of log p_t that a network's output stands for, ``(B, D, D)`` over flattened samples."""
        a, b = self.parts(output)
        scaled = jnp.einsum("bi,ij->bij", a, jnp.eye(a.shape[1], dtype=a.dtype)) + jnp.einsum("bri,brj->bij", b, b)
        return scaled / expand(jnp.square(process.sigma(t)), scaled)

    def _check(self, channels: int, output: Array) -> None:
        if output.shape[-1] != (2 + self.rank) * channels:
            raise ValueError(
                f"LearnedHessian of rank {self.rank} needs a network of {(2 + self.rank) * channels} output channels "
                f"(out_channels) for samples of {channels}, got {output.shape[-1]}"
            )


@record
class SecondOrder(Objective):
    """The denoising loss of the score and, ``factor`` times, that of the Hessian, equations (2) and (7) (Meng et al.
    2021). The Hessian is low-rank and diagonal (8), which the Frobenius norm never multiplies out: its cost is linear
    in the dimensions.

    Args:
      process, time, dropout: as `Objective`.
      parameterization: a `LearnedHessian`.
      weight: the weighting, of both parts: `SNR` weighs errors in eps and in sigma^2 times the Hessian equally at all
        times.
      factor: of the second part, not negative.
    """

    parameterization: LearnedHessian
    weight: Weight = SNR()
    factor: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.parameterization, LearnedHessian):
            raise ValueError(
                "SecondOrder needs the parameterization LearnedHessian(base), got "
                f"{type(self.parameterization).__name__}; HighOrder learns the Hessian without one"
            )

    def terms(
        self, net: Net, params: Any, draws: Draws, context: Context = Context(), key: Array | None = None
    ) -> Terms:
        """Both parts, each the mean over its elements, for each sample."""
        process, parameterization, t = self.process, self.parameterization, draws.t
        x = process.perturb(draws.x0, draws.eps, t)
        net_x, net_t = parameterization.condition(process, x, t)
        output = net.apply(params, net_x, net_t, draws.conditions(net), key=key).astype(x.dtype)
        eps = parameterization.read(process, x, t, output).eps
        mse = mean_features(jnp.square(eps - draws.eps))
        a, b = parameterization.parts(output)
        # The score's error must not be traded for the Hessian's: (7) holds for the true score only.
        found, noise = (part.reshape(len(x), 1, -1) for part in (jax.lax.stop_gradient(eps), draws.eps))
        square = _square_norm(1.0 + a, jnp.concatenate([b, found, noise], axis=1))
        weight = self.weight.on_target(process, Eps(), t) * draws.weight
        score_norm2 = sum_features(jnp.square(found[:, 0])) / jnp.square(process.sigma(t))
        return Terms(weight * (mse + self.factor * square / x[0].size ** 2), mse, score_norm2)


def _square_norm(c: Array, u: Array) -> Array:
    """|diag(c) + sum_k s_k u_k u_k^T|_F^2 ``(B,)`` for c ``(B, D)``, u ``(B, K, D)`` and s = (1, .., 1, -1)."""
    signs = jnp.ones(u.shape[1], u.dtype).at[-1].set(-1.0)
    gram = jnp.einsum("bki,bli->bkl", u, u)
    mixed = jnp.einsum("bi,bki,k->b", c, jnp.square(u), signs)
    return jnp.square(c).sum(axis=1) + 2.0 * mixed + jnp.einsum("bkl,k,l->b", jnp.square(gram), signs, signs)


@record
class HighOrder(Objective):
    """The denoising loss of the score and, ``factor`` times, that of its Jacobian, equations (2) and (9) (Lu et al.
    2022, "Maximum Likelihood Training for Score-Based Diffusion ODEs by High-Order Denoising Score Matching", of second
    order). Any parameterization; the error in the Jacobian is bounded by that in the score.

    Args:
      process, parameterization, time, dropout: as `Objective`.
      weight: the weighting, of both parts.
      factor: of the second part, not negative.
      projections: directions a sample in which the Jacobian is compared; 0: all, D products; static.
    """

    weight: Weight = SNR()
    factor: float = 1.0
    projections: int = field(default=0, pytree_node=False)

    def draw(self, key: Array, batch: Cond, history: History = (), context: Context = Context()) -> Draws:
        drawn = super().draw(key, batch, history, context)
        if not self.projections:
            return drawn
        v = draw_directions(key, drawn.x0, self.projections, "rademacher")
        return DirectedDraws(drawn.x0, drawn.eps, drawn.t, drawn.weight, drawn.cond, drawn.dropped, directions=v)

    def terms(
        self, net: Net, params: Any, draws: Draws, context: Context = Context(), key: Array | None = None
    ) -> Terms:
        """Both parts, each the mean over its elements, for each sample."""
        x = self.process.perturb(draws.x0, draws.eps, draws.t)
        score = network_score(self, net, params, draws.conditions(net), key)
        s, push = jax.linearize(lambda x: score(x, draws.t), x)
        sigma = expand(self.process.sigma(draws.t), x)
        error = sigma * s + draws.eps
        mse = mean_features(jnp.square(error))
        # E |M v|^2 = |M|_F^2, and the sum over all unit vectors is exact
        v = jnp.moveaxis(draws.directions, 1, 0) if isinstance(draws, DirectedDraws) else all_directions(x)
        held = jax.lax.stop_gradient(error)[None]
        along = inner(jnp.broadcast_to(held, v.shape), v)  # (M, B)
        residual = (
            jnp.square(sigma)[None] * jax.vmap(push)(v) + v - along.reshape(*along.shape, *x[0].ndim * (1,)) * held
        )
        square = inner(residual, residual)
        square = square.mean(axis=0) if self.projections else square.sum(axis=0)
        weight = self.weight.on_target(self.process, Eps(), draws.t) * draws.weight
        return Terms(weight * (mse + self.factor * square / x[0].size ** 2), mse, sum_features(jnp.square(s)))
