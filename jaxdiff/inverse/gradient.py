"""Gradients of what a denoiser predicts, with respect to the noisy x.

With x0(x) the prediction at x, J = d x0/d x and any u like x0, J' u is taken by reverse-mode differentiation of the
denoiser, at about twice the cost of an evaluation more. For the true conditional mean (Robbins 1956; Efron 2011)

    Cov[x0 | x] = (sigma^2/alpha) J,                                                                 (1)

by which a change of the score becomes one of x0: for any law of y,

    E[x0 | x, y] = x0(x) + (sigma^2/alpha) grad_x ln p(y | x).                                       (2)

Papers that add a gradient to x itself, with a weight that follows from no law, have it for a variance-preserving
process. A process at the same noise has x in other units, c = sqrt(alpha^2 + sigma^2) as large. With x = c x~ the step
x~_s <- x~_s - w grad_{x~_t} l is

    x_s <- x_s - w c_s c_t grad_{x_t} l,                                                             (3)

which takes x/c along the same way on every process; c = 1 is the papers'.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.denoiser import Cond, Denoise, Denoiser, Memory, recall
from jaxdiff.prediction import Prediction
from jaxdiff.process import Process

Pull = Callable[[Array], Array]
"""u -> J' u."""


def with_pull(
    denoise: Denoiser, x: Array, t: ArrayLike, cond: Cond | None, memory: Memory
) -> tuple[Prediction, Memory, Pull]:
    """A prediction, the memory after it, and J'."""

    def x0_of(x: Array) -> tuple[Array, tuple[Prediction, Memory]]:
        found, after = recall(denoise, x, t, cond, memory)
        return found.x0, (found, after)

    _, pull, (found, after) = jax.vjp(x0_of, x, has_aux=True)
    return found, after, lambda u: pull(u)[0]


def units(process: Process, t: ArrayLike, s: ArrayLike) -> Array:
    """c_s c_t of equation (3).

    >>> from jaxdiff import VP
    >>> print(units(VP(), 0.5, 0.2))
    1.0
    """
    return jnp.hypot(process.alpha(t), process.sigma(t)) * jnp.hypot(process.alpha(s), process.sigma(s))


class Evaluated:
    """A denoiser in a sampler's step, whose evaluation at the step's own x and t is there already.

    Args:
      denoise: the denoiser.
      x, t: where it was evaluated.

    Attributes:
      found: its prediction there.
      pull: J' there.
    """

    def __init__(self, denoise: Denoise, x: Array, t: ArrayLike):
        self.denoise, self.x, self.t = denoise, x, t

        def x0_of(x: Array) -> tuple[Array, Prediction]:
            found = denoise(x, t)
            return found.x0, found

        _, pull, self.found = jax.vjp(x0_of, x, has_aux=True)
        self.pull: Pull = lambda u: pull(u)[0]

    def __call__(self, x: Array, t: ArrayLike) -> Prediction:
        return self.found if x is self.x and t is self.t else self.denoise(x, t)
