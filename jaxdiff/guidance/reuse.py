"""Guidance computed at some evaluations and reused between.

What guidance adds, D = x0_guided - x0_plain, changes slowly along a sampler's path. It is computed at every k-th
evaluation alone and kept between,

    x0 = x0_plain + D,     eps = eps_plain - (alpha/sigma) D                                         (1)

(the "CFG-Cache" of Lv et al. 2024, FasterCache, https://arxiv.org/abs/2410.19355, there with weights by frequency;
Castillo et al. 2023, Adaptive Guidance, https://arxiv.org/abs/2312.12487, and Dinh et al. 2024, Compress Guidance,
https://arxiv.org/abs/2408.11194, likewise leave out evaluations that only guidance needs). It is kept in x0, where it
is finite from alpha = 0 on.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.denoiser import Cond, Denoiser, Memory
from jaxdiff.guidance.base import Guidance, Guided, Nulls, guided_from
from jaxdiff.guidance.interval import Within
from jaxdiff.prediction import Prediction, moved
from jaxdiff.process import Process
from jaxdiff.record import record


@record
class Reuse(Guidance):
    """Guidance computed at every k-th evaluation, and what it adds reused between.

    With an interval, before or behind it in the list, evaluations are counted from where the interval is entered.

    Args:
      every: k, 1 or more; data. 1 reuses nothing.

    Raises:
      ValueError: ``every`` below 1; (in a list) no guidance before it, or another `Reuse`.

    >>> Reuse(0)
    Traceback (most recent call last):
    ...
    ValueError: every is to be a whole number, 1 or more (1 reuses nothing), got 0
    """

    every: int | Array

    def __post_init__(self) -> None:
        if isinstance(self.every, jax.core.Tracer):
            return
        every = np.asarray(self.every)
        if every.dtype.kind not in "iu" or every.ndim or every < 1:
            raise ValueError(f"every is to be a whole number, 1 or more (1 reuses nothing), got {self.every!r}")

    def __call__(self, denoise: Denoiser, plain: Denoiser, process: Process, nulls: Nulls) -> Guided:
        guided = guided_from(denoise, plain, "every")
        if isinstance(guided, Within):  # outermost, so that what is kept is of the inside
            return dataclasses.replace(guided, guided=self(guided.guided, plain, process, nulls))
        if isinstance(guided, Reused):
            raise ValueError("every is to stand once in a list of guidance")
        return Reused(guided, process, self.every)


class Kept(NamedTuple):
    """The memory of `Reused`.

    Attributes:
      branches: of the guided denoiser.
      difference: D of equation (1).
      age: evaluations since guidance began; 0 after one without guidance, so that D is then computed anew.
      computed: how often D was computed so far.
    """

    branches: Memory
    difference: Array
    age: Array
    computed: Array


@record
class Reused(Guided):
    """Equation (1). Called by itself, without the loops of `jaxdiff.sampling`, it reuses nothing.

    Args:
      guided: the guided denoiser.
      process: its process.
      every: k; data.
    """

    guided: Guided
    process: Process
    every: int | Array

    @property
    def plain(self) -> Denoiser:  # type: ignore[override]
        """The denoiser without guidance."""
        return self.guided.plain

    def __call__(self, x: Array, t: ArrayLike, cond: Cond | None = None) -> Prediction:
        return self.both(x, t, cond, ())[0]

    def begin(self, x: Array, cond: Cond | None = None) -> Memory:
        """See the top of `jaxdiff.denoiser`."""
        zero = jnp.zeros((), jnp.int32)
        return Kept(self.guided.begin_apart(x, cond), jnp.zeros_like(x), zero, zero)

    begin_apart = begin

    def recall(self, x: Array, t: ArrayLike, cond: Cond | None, memory: Memory) -> tuple[Prediction, Memory]:
        """See the top of `jaxdiff.denoiser`."""
        guided, _, memory = self.both(x, t, cond, memory)
        return guided, memory

    def both(self, x: Array, t: ArrayLike, cond: Cond | None, memory: Memory) -> tuple[Prediction, Prediction, Memory]:
        if not memory:
            return self.guided.both(x, t, cond, ())

        def anew() -> tuple[Prediction, Prediction, Memory, Array]:
            guided, plain, after = self.guided.both(x, t, cond, memory.branches)
            return guided, plain, after, guided.x0 - plain.x0

        def again() -> tuple[Prediction, Prediction, Memory, Array]:
            plain, after = self.guided.alone(x, t, cond, memory.branches)
            return moved(self.process, t, plain, memory.difference), plain, after, memory.difference

        due = memory.age % self.every == 0
        guided, plain, after, difference = jax.lax.cond(due, anew, again)
        return guided, plain, Kept(after, difference, memory.age + 1, memory.computed + due)

    def alone(self, x: Array, t: ArrayLike, cond: Cond | None, memory: Memory) -> tuple[Prediction, Memory]:
        plain, after = self.guided.alone(x, t, cond, memory.branches if memory else ())
        return plain, memory._replace(branches=after, age=jnp.zeros_like(memory.age)) if memory else ()
