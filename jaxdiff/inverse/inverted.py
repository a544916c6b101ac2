"""What an exact inversion gives: noise, and what its sampler has to know to find the record again."""

from __future__ import annotations

from typing import Any

from jax import Array

from jaxdiff.record import record
from jaxdiff.sampling import Sampler


@record
class Inverted:
    """A record at the first time of a grid, by a sampler whose falling times undo the rising ones (`EDICT`, `BELM`).

    `Model.invert` makes it and ``Model.sample(x=...)`` takes it. The way back has the same times and no last denoising:
    samples are x/alpha at the last time, where inversion began. With the same conditions and guidance they are the
    record to rounding; with others they are an edit of it.

    Args:
      x: samples at ``ts[0]``, ``(B, ...)``.
      state: the sampler's state there.
      sampler: the sampler.
      ts: ``(n,)`` falling times.
    """

    x: Array
    state: Any
    sampler: Sampler
    ts: Array
