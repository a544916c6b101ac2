"""CFG-Zero* (Fan et al. 2025, "CFG-Zero*: Improved Classifier-Free Guidance for Flow Matching Models",
https://arxiv.org/abs/2503.18886, equations 8 to 10 and algorithm 1).

In the velocity u of the probability flow (equation 3 of `jaxdiff.prediction`), the unconditional one is scaled to fit
the conditional one best,

    s = <u(x, cond), u(x, null)>/|u(x, null)|^2,                                                     (1)
    u = w u(x, cond) + (1 - w) s u(x, null),                                                         (2)

and in the beginning, where a network's velocity is worse than none, u = 0. As a pair, by equation (6) of
`jaxdiff.prediction`, u = u(x, cond) + V moves x0 by -sigma V/D, D = alpha sigma' - sigma alpha'.
"""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.broadcast import expand, flatten
from jaxdiff.denoiser import Memory
from jaxdiff.guidance.contrast import Contrast
from jaxdiff.prediction import Prediction, from_velocity
from jaxdiff.process import Process
from jaxdiff.record import field, record


@record
class CFGZeroStar(Contrast):
    """CFG-Zero*: the unconditional velocity scaled to fit the conditional one, and no velocity in the beginning.

    Args:
      weight: w of equation (2), ``()`` or one a sample ``(B,)``; data. 1 is the plain model, from ``1 - zero`` on.
      zero: share of the way, from 0 to below 1, with velocity 0: t above ``1 - zero``; data. The paper's is one step of
        50; 0: none.
      sequential: the branches one after the other, in less memory; static.

    Raises:
      ValueError: a share out of range.

    >>> CFGZeroStar(4.0, zero=1.5)
    Traceback (most recent call last):
    ...
    ValueError: cfgzero's zero is a share of the way from 0 to below 1, got 1.5
    """

    weight: ArrayLike
    zero: ArrayLike = 0.0
    sequential: bool = field(default=False, pytree_node=False)
    name: ClassVar[str] = "cfgzero"

    def __post_init__(self) -> None:
        if not isinstance(self.zero, jax.core.Tracer) and not 0 <= float(np.asarray(self.zero)) < 1:
            raise ValueError(f"cfgzero's zero is a share of the way from 0 to below 1, got {self.zero}")

    def combine(
        self, process: Process | None, x: Array, t: ArrayLike, parts: tuple[Prediction, ...], memory: Memory
    ) -> tuple[Prediction, Memory]:
        assert process is not None
        given, without = (part.velocity(process, t) for part in parts[:2])
        square = jnp.square(flatten(without)).sum(axis=1)
        scale = (flatten(given) * flatten(without)).sum(axis=1) / jnp.where(square > 0, square, 1.0)
        weight = expand(jnp.asarray(self.weight, x.dtype) - 1.0, x)
        change = weight * (given - expand(scale, x) * without)  # V
        alpha, sigma = expand(process.alpha(t), x), expand(process.sigma(t), x)
        determinant = alpha * expand(process.derivatives(t)[1], x) - sigma * expand(process.derivatives(t)[0], x)
        plain = parts[0]
        guided = plain._replace(
            x0=plain.x0 - sigma / determinant * change, eps=plain.eps + alpha / determinant * change
        )
        still = from_velocity(process, x, t, jnp.zeros_like(x))
        early = expand(jnp.asarray(t, x.dtype) > 1.0 - jnp.asarray(self.zero, x.dtype), x)
        x0, eps = jnp.where(early, still.x0, guided.x0), jnp.where(early, still.eps, guided.eps)
        return guided._replace(x0=x0, eps=eps), memory
