"""What a denoiser says of a noisy sample, and the views of it.

A prediction at (x, t) is a pair (x0, eps) with x = alpha x0 + sigma eps. All targets in use are views of this pair,
linear in it (Song et al. 2021; Salimans & Ho 2022, appendix D; Lipman et al. 2023):

    score    = -eps/sigma                                                                            (1)
    v        = alpha eps - sigma x0                                                                  (2)
    velocity = alpha' x0 + sigma' eps                                                                (3)

and each of them with x gives the pair back:

    x0  = (x - sigma eps)/alpha                                                                      (4)
    x0  = (alpha x - sigma v)/(alpha^2 + sigma^2),      eps = (sigma x + alpha v)/(alpha^2 + sigma^2)  (5)
    x0  = (sigma' x - sigma u)/D,   eps = (alpha u - alpha' x)/D,   D = alpha sigma' - sigma alpha'    (6)

(4) cannot be used where alpha = 0: a network that predicts eps or the score says nothing of x0 there.

Predictions at one (x, t) may be mixed with weights whose sum is 1, and one may be moved by D in x0: the pairs stay
pairs of that x,

    (x0, eps) = sum_i w_i (x0_i, eps_i),     sum_i w_i = 1                                           (7)
    (x0, eps) = (x0 + D, eps - (alpha/sigma) D).                                                     (8)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.broadcast import expand
from jaxdiff.process import Process


class Prediction(NamedTuple):
    """The pair (x0, eps) at some (x, t), each shaped like x.

    Attributes:
      x0: the expected data point given x_t = x.
      eps: the expected noise.
      variance: a network's learned variance output, like x, in [-1, 1] (Nichol & Dhariwal 2021, equation 15); else
        None.
    """

    x0: Array
    eps: Array
    variance: Array | None = None

    def score(self, process: Process, t: ArrayLike) -> Array:
        """Equation (1): the gradient of log p_t at x."""
        return -self.eps / expand(process.sigma(t), self.eps)

    def v(self, process: Process, t: ArrayLike) -> Array:
        """Equation (2)."""
        return expand(process.alpha(t), self.eps) * self.eps - expand(process.sigma(t), self.x0) * self.x0

    def velocity(self, process: Process, t: ArrayLike) -> Array:
        """Equation (3): dx/dt of the probability flow."""
        return process.velocity(self.x0, self.eps, t)


def from_x0(process: Process, x: Array, t: ArrayLike, x0: Array) -> Prediction:
    """The prediction whose data point is ``x0``. sigma(t) is to be positive."""
    alpha, sigma = expand(process.alpha(t), x), expand(process.sigma(t), x)
    return Prediction(x0, (x - alpha * x0) / sigma)


def from_eps(process: Process, x: Array, t: ArrayLike, eps: Array) -> Prediction:
    """Equation (4).

    Raises:
      ValueError: alpha(t) is 0 at a t that is known (not traced).
    """
    refuse_zero_alpha(process, t, "Eps and Score predictions say nothing of x0")
    alpha, sigma = expand(process.alpha(t), x), expand(process.sigma(t), x)
    return Prediction((x - sigma * eps) / alpha, eps)


def from_score(process: Process, x: Array, t: ArrayLike, score: Array) -> Prediction:
    """Equations (1) and (4). Raises as `from_eps`."""
    return from_eps(process, x, t, -expand(process.sigma(t), x) * score)


def from_v(process: Process, x: Array, t: ArrayLike, v: Array) -> Prediction:
    """Equation (5)."""
    alpha, sigma = expand(process.alpha(t), x), expand(process.sigma(t), x)
    total = alpha * alpha + sigma * sigma
    return Prediction((alpha * x - sigma * v) / total, (sigma * x + alpha * v) / total)


def from_velocity(process: Process, x: Array, t: ArrayLike, velocity: Array) -> Prediction:
    """Equation (6)."""
    alpha, sigma = expand(process.alpha(t), x), expand(process.sigma(t), x)
    alpha_dot, sigma_dot = (expand(d, x) for d in process.derivatives(t))
    determinant = alpha * sigma_dot - sigma * alpha_dot
    return Prediction(
        (sigma_dot * x - sigma * velocity) / determinant, (alpha * velocity - alpha_dot * x) / determinant
    )


def mix(weights: Sequence[ArrayLike], predictions: Sequence[Prediction]) -> Prediction:
    """Equation (7): how guidance combines what denoisers say of one x.

    Args:
      weights: one a prediction, each ``()`` or one a sample ``(B,)``, of sum 1. The first is taken for what the others
        leave of 1, so that equal predictions, and weights (1, 0), give the first bit for bit.
      predictions: at the same (x, t).

    Returns:
      The mixed pair, with the first one's variance.

    >>> a, b = Prediction(jnp.ones((1, 2)), jnp.zeros((1, 2))), Prediction(jnp.zeros((1, 2)), jnp.ones((1, 2)))
    >>> mix((3.0, -2.0), (a, b)).x0.tolist(), mix((3.0, -2.0), (a, b)).eps.tolist()
    ([[3.0, 3.0]], [[-2.0, -2.0]])
    """

    first, *others = predictions

    def total(name: str) -> Array:
        start: Array = getattr(first, name)
        parts = (
            expand(jnp.asarray(weight, start.dtype), start) * (getattr(other, name) - start)
            for weight, other in zip(weights[1:], others, strict=True)
        )
        return sum(parts, start)

    return Prediction(total("x0"), total("eps"), first.variance)


def moved(process: Process, t: ArrayLike, prediction: Prediction, by: Array) -> Prediction:
    """Equation (8): the prediction whose x0 is further by ``by``, for the same x. sigma(t) is to be positive."""
    back = expand(process.alpha(t) / process.sigma(t), by) * by
    return prediction._replace(x0=prediction.x0 + by, eps=prediction.eps - back)


def refuse_zero_alpha(process: Process, t: ArrayLike, why: str) -> None:
    """Raises ValueError if alpha(t) is 0 and both process and t are known; inside a trace nothing can be said."""
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((process, t))):
        return
    with jax.ensure_compile_time_eval():
        zero = bool((process.alpha(t) == 0).any())
    if zero:
        raise ValueError(
            f"alpha({t}) = 0 for {type(process).__name__}: {why} where there is no signal. "
            "Start below t = 1 (the grids of jaxdiff.grid take t_max), or use X0, V, Velocity or Karras"
        )
