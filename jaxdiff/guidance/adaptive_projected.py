"""Adaptive projected guidance (Sadat et al. 2024, "Eliminating Oversaturation and Artifacts of High Guidance Scales in
Diffusion Models", https://arxiv.org/abs/2410.02416, algorithm 1).

What a condition changes, D = x0(x, cond) - x0(x, null), is averaged over the evaluations with a momentum beta, below 0
as a rule; shortened to a length r at most; and the part along x0(x, cond), which saturates colours, is weighed by eta:

    M <- D + beta M,        D' = M min(1, r/|M|),                                                    (1)
    D_par = <D', e> e,      e = x0(x, cond)/|x0(x, cond)|,                                           (2)
    x0 = x0(x, cond) + (w - 1) (D' - D_par + eta D_par).                                             (3)

beta = 0, r = inf, eta = 1 is classifier-free guidance.
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
from jaxdiff.prediction import Prediction, moved
from jaxdiff.process import Process
from jaxdiff.record import field, record


@record
class APG(Contrast):
    """Adaptive projected guidance: large weights without saturated colours.

    Without the loops of `jaxdiff.sampling`, which carry the average from one evaluation to the next, beta is 0.

    Args:
      weight: w of equation (3), ``()`` or one a sample ``(B,)``; data. 1 is the plain model.
      eta: share of the part along the prediction, from 0 to 1 as a rule; data.
      norm: r, the greatest length of what a condition changes, over all numbers of a sample; data. inf: any. The paper
        has 2.5 for latents of 64x64x4 of EDM2, 15 for those of Stable Diffusion XL.
      momentum: beta, above -1 and below 1; data. The paper has -0.5 and -0.75.
      sequential: the branches one after the other, in less memory; static.

    Raises:
      ValueError: a length that is not above 0, or a momentum out of range.

    >>> APG(8.0, norm=0.0)
    Traceback (most recent call last):
    ...
    ValueError: apg's norm is a length above 0, or inf, got 0.0
    """

    weight: ArrayLike
    eta: ArrayLike = 0.0
    norm: ArrayLike = float("inf")
    momentum: ArrayLike = -0.5
    sequential: bool = field(default=False, pytree_node=False)
    name: ClassVar[str] = "apg"

    def __post_init__(self) -> None:
        if any(isinstance(each, jax.core.Tracer) for each in (self.norm, self.momentum)):
            return
        if not np.all(np.asarray(self.norm) > 0):
            raise ValueError(f"apg's norm is a length above 0, or inf, got {self.norm}")
        if not np.all(np.abs(np.asarray(self.momentum)) < 1):
            raise ValueError(f"apg's momentum is above -1 and below 1, got {self.momentum}")

    def begin(self, x: Array) -> Memory:
        """M, zero."""
        return jnp.zeros_like(x)

    def combine(
        self, process: Process | None, x: Array, t: ArrayLike, parts: tuple[Prediction, ...], memory: Memory
    ) -> tuple[Prediction, Memory]:
        given, without = parts[0], parts[1]
        assert process is not None
        average = given.x0 - without.x0 + jnp.asarray(self.momentum, x.dtype) * memory
        length = jnp.linalg.norm(flatten(average), axis=1)
        short = average * expand(jnp.minimum(1.0, self.norm / jnp.where(length > 0, length, 1.0)), x)
        along = projected(short, given.x0)
        change = short - along + jnp.asarray(self.eta, x.dtype) * along
        weight = jnp.asarray(self.weight, x.dtype) - 1.0
        return moved(process, t, given, expand(weight, x) * change), average


def projected(difference: Array, onto: Array) -> Array:
    """Equation (2): the part of each sample's difference along another ``(B, ...)``; 0 along 0."""
    d, e = flatten(difference), flatten(onto)
    square = jnp.square(e).sum(axis=1)
    return expand((d * e).sum(axis=1) / jnp.where(square > 0, square, 1.0), onto) * onto
