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

(4) cannot be used where alpha = 0: a network that predicts eps or the score says nothing of x0 there. A network that
predicts x0 says nothing of eps where sigma = 0, nor does the velocity where alpha' or sigma' is infinite.

Predictions at one (x, t) have affine combinations, by which guidance works: x = alpha x0 + sigma eps holds for

    sum_i w_i p_i,    sum_i w_i = 1,                                                                 (7)

and for no other sum of weights (`mix`). One may be moved by D in x0 (`moved`),

    (x0, eps) = (x0 + D, eps - (alpha/sigma) D).                                                     (8)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.broadcast import expand
from jaxdiff.process import Process

BELOW_1 = "Start below t = 1, as the grids log_snr and karras do; every grid of jaxdiff.grid takes t_max"
ABOVE_0 = "Stay above t = 0, for instance at process.min_time(); every grid of jaxdiff.grid takes t_min"


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


def mix(first: Prediction, *others: tuple[ArrayLike, Prediction]) -> Prediction:
    """Equation (7): (1 - sum_i w_i) first + sum_i w_i p_i, the weights adding up to 1 by construction.

    Args:
      first: the prediction that has the rest of the weight; its variance is kept.
      others: pairs ``(w_i, p_i)`` at the same (x, t); w_i is any number, ``()`` or one a sample ``(B,)``.

    >>> import jax.numpy as jnp
    >>> null, given = (Prediction(jnp.full((1, 2), v), jnp.full((1, 2), v)) for v in (0.0, 1.0))
    >>> print(mix(given, (-0.5, null)).x0)  # classifier-free guidance: given + 0.5 (given - null)
    [[1.5 1.5]]
    """

    def part(start: Array, *values: Array) -> Array:
        total = start
        for (weight, _), value in zip(others, values, strict=True):
            total = total + expand(jnp.asarray(weight, start.dtype), start) * (value - start)
        return total

    return Prediction(
        part(first.x0, *(other.x0 for _, other in others)),
        part(first.eps, *(other.eps for _, other in others)),
        first.variance,
    )


def from_x0(process: Process, x: Array, t: ArrayLike, x0: Array) -> Prediction:
    """The prediction whose data point is ``x0``.

    Raises:
      ValueError: sigma(t) is 0 at a t that is known (not traced).
    """
    refuse_zero_sigma(process, t, "X0 predictions say nothing of eps", f"{ABOVE_0}. Or use V, Eps or Karras")
    alpha, sigma = expand(process.alpha(t), x), expand(process.sigma(t), x)
    return Prediction(x0, (x - alpha * x0) / sigma)


def from_eps(process: Process, x: Array, t: ArrayLike, eps: Array) -> Prediction:
    """Equation (4).

    Raises:
      ValueError: alpha(t) is 0 at a t that is known (not traced).
    """
    refuse_zero_alpha(
        process, t, "Eps and Score predictions say nothing of x0", f"{BELOW_1}. Or use X0, V, Velocity or Karras"
    )
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
    """Equation (6).

    Raises:
      ValueError: alpha'(t) or sigma'(t) is infinite at a t that is known (not traced).
    """
    if _any(process, t, lambda t: ~jnp.isfinite(sum(process.derivatives(t)))):
        raise ValueError(
            f"the velocity of {type(process).__name__} is infinite at t = {t}: Velocity predictions say nothing there. "
            "Stay above t = 0 and below t = 1 (the grids of jaxdiff.grid take t_min and t_max), or use V or Karras"
        )
    alpha, sigma = expand(process.alpha(t), x), expand(process.sigma(t), x)
    alpha_dot, sigma_dot = (expand(d, x) for d in process.derivatives(t))
    determinant = alpha * sigma_dot - sigma * alpha_dot
    return Prediction(
        (sigma_dot * x - sigma * velocity) / determinant, (alpha * velocity - alpha_dot * x) / determinant
    )


def moved(process: Process, t: ArrayLike, prediction: Prediction, by: Array) -> Prediction:
    """Equation (8): the prediction whose x0 is further by ``by``, for the same x. sigma(t) is to be positive."""
    back = expand(process.alpha(t) / process.sigma(t), by) * by
    return prediction._replace(x0=prediction.x0 + by, eps=prediction.eps - back)


def refuse_zero_alpha(process: Process, t: ArrayLike, why: str, remedy: str) -> None:
    """Raises ValueError if alpha(t) is 0 and both process and t are known; inside a trace nothing can be said.

    ``remedy`` ends the message. It says what the user can do there, such as `BELOW_1`.
    """
    if _any(process, t, lambda t: process.alpha(t) == 0):
        raise ValueError(f"alpha({t}) = 0 for {type(process).__name__}: {why} where there is no signal. {remedy}")


def refuse_zero_sigma(process: Process, t: ArrayLike, why: str, remedy: str) -> None:
    """Raises ValueError if sigma(t) is 0; otherwise as `refuse_zero_alpha`."""
    if _any(process, t, lambda t: process.sigma(t) == 0):
        raise ValueError(f"sigma({t}) = 0 for {type(process).__name__}: {why} where there is no noise. {remedy}")


def _any(process: Process, t: ArrayLike, says: Callable[[Array], Array]) -> bool:
    """Whether it is so at any of the times; False if process or times are traced."""
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((process, t))):
        return False
    with jax.ensure_compile_time_eval():
        return bool(jnp.any(says(jnp.asarray(t, jnp.result_type(float)))))
