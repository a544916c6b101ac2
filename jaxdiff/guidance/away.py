"""Guidance away from a worse answer to the same question.

With G the prediction of whatever guidance stands before, P the plain one and Q that of a worse denoiser, at the same x
and with the same condition,

    p = G + s (P - Q),        for x0 and for eps                                                     (1)

s = 0 is G bit for bit. No condition has to be left out, so this guides an unconditional model too. Where no guidance
stands before, G is P, and (1) extrapolates from Q through P. The two networks are evaluated one after the other: of two
that are not the same function no batch can be made.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.denoiser import Cond, Denoiser, Memory, begin, recall
from jaxdiff.guidance.base import Guided, guided_from
from jaxdiff.prediction import Prediction, mix
from jaxdiff.record import record


@record
class Away(Guided):
    """Equation (1).

    Args:
      guided: the denoiser with the guidance before; None: there is none.
      plain: the denoiser before any guidance.
      worse: the worse denoiser.
      scale: s, ``()`` or one a sample ``(B,)``; data.
    """

    guided: Guided | None
    plain: Denoiser
    worse: Denoiser
    scale: ArrayLike

    def __call__(self, x: Array, t: ArrayLike, cond: Cond | None = None) -> Prediction:
        return self.both(x, t, cond, ())[0]

    def begin(self, x: Array, cond: Cond | None = None) -> Memory:
        """See the top of `jaxdiff.denoiser`."""
        return self._remembered(begin(self.guided or self.plain, x, cond), x, cond)

    def begin_apart(self, x: Array, cond: Cond | None) -> Memory:
        mine = begin(self.plain, x, cond) if self.guided is None else self.guided.begin_apart(x, cond)
        return self._remembered(mine, x, cond)

    def _remembered(self, mine: Memory, x: Array, cond: Cond | None) -> Memory:
        memory = mine, begin(self.worse, x, cond)
        return memory if jax.tree.leaves(memory) else ()

    def recall(self, x: Array, t: ArrayLike, cond: Cond | None, memory: Memory) -> tuple[Prediction, Memory]:
        """See the top of `jaxdiff.denoiser`."""
        guided, _, memory = self.both(x, t, cond, memory)
        return guided, memory

    def both(self, x: Array, t: ArrayLike, cond: Cond | None, memory: Memory) -> tuple[Prediction, Prediction, Memory]:
        mine, other = memory or ((), ())
        scale = jnp.asarray(self.scale, x.dtype)
        if self.guided is None:
            plain, mine = recall(self.plain, x, t, cond, mine)
            worse, other = recall(self.worse, x, t, cond, other)
            guided = mix(plain, (-scale, worse))
        else:
            before, plain, mine = self.guided.both(x, t, cond, mine)
            worse, other = recall(self.worse, x, t, cond, other)
            guided = mix(before, (scale, plain), (-scale, worse))
        return guided, plain, (mine, other) if memory else ()

    def alone(self, x: Array, t: ArrayLike, cond: Cond | None, memory: Memory) -> tuple[Prediction, Memory]:
        mine, other = memory or ((), ())
        plain, mine = (
            recall(self.plain, x, t, cond, mine) if self.guided is None else self.guided.alone(x, t, cond, mine)
        )
        return plain, (mine, other) if memory else ()


def away(denoise: Denoiser, plain: Denoiser, worse: Denoiser, scale: ArrayLike, name: str) -> Away:
    """Equation (1), as an element of a list of guidance makes it.

    Args:
      denoise, plain: as `jaxdiff.guidance.Guidance` has them.
      worse: the worse denoiser.
      scale: s.
      name: of the element, for messages.
    """
    return Away(None if denoise is plain else guided_from(denoise, plain, name), plain, worse, scale)


def finite(name: str, number: ArrayLike) -> None:
    """Checks the number of an element: finite, ``()`` or one a sample ``(B,)``; a traced one passes.

    Raises:
      ValueError: another.
    """
    if isinstance(number, jax.core.Tracer):
        return
    found = np.asarray(number)
    if found.dtype.kind not in "iuf" or found.ndim > 1 or not np.isfinite(found).all():
        raise ValueError(f"{name} is to be a finite number, or one a sample, got {number!r}")
