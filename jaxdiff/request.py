"""What is asked of a model, checked before a plan is made of it: times, and the elements of guidance."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.guidance import And, Contrast, Guidance, Read, resolved
from jaxdiff.methods import Guide, guidance_of, times
from jaxdiff.process import Process
from jaxdiff.spec import whole


def walked_times(
    sampler: Any,
    steps: int,
    grid: str | Callable[[Process, int], Array],
    ts: ArrayLike | None,
    *,
    chosen: bool,
) -> Array:
    """The times that a sampler walks.

    Args:
      sampler: the method.
      steps, grid: times on a grid.
      ts: the times themselves, in the place of a grid.
      chosen: whether the caller chose steps or grid.

    Raises:
      ValueError: both are given, or what are no times.
    """
    if ts is None:
        return times(sampler, grid, whole("steps", steps))
    if chosen:
        raise ValueError("ts are the times themselves: leave steps and grid out")
    if isinstance(ts, str):
        raise ValueError(f"ts are the times themselves, got {ts!r}: for a grid by its name, grid={ts!r}")
    return jnp.asarray(ts, jnp.result_type(float))


def elements_of(
    guide: Guide | Sequence[Guide],
    n: int,
    encoded: Callable[[Mapping[str, Any]], dict[str, Any]],
    read: Read | None = None,
) -> list[Guidance]:
    """Elements of guidance with finite weights, and conditions of their own as the network takes them.

    Args:
      guide: see `jaxdiff.methods.guidance_of`.
      n: samples.
      encoded: makes arrays ``(n, ...)`` of conditions.
      read: loads the runs that elements name; None: none can be loaded.

    Raises:
      ValueError: an unknown name, a run that is not what the element needs, a weight that is not finite, a condition
        that the model does not know.
    """
    elements = []
    for element in resolved(guidance_of(guide), read):
        element.check(n)
        elements.append(
            dataclasses.replace(element, cond=encoded(element.cond)) if isinstance(element, And) else element
        )
    return elements


def contrasts(guide: Guide | Sequence[Guide]) -> bool:
    """Whether guidance leads away from the absence of a condition, so that one must be given.

    >>> contrasts("pag:2"), contrasts(["cfg:2", "pag:1"])
    (False, True)
    """
    return any(isinstance(element, Contrast) for element in guidance_of(guide))


def refuse_sampler(elements: Sequence[Guidance], sampler: Any) -> None:
    """Refuses a sampler that an element of guidance is not for.

    Raises:
      ValueError: naming both.
    """
    for element in elements:
        if element.samplers is not None and type(sampler).__name__ not in element.samplers:
            raise ValueError(
                f"{type(element).__name__} is for the samplers {' and '.join(element.samplers)}, got "
                f"{type(sampler).__name__}: its x0 and eps mean nothing to others"
            )
