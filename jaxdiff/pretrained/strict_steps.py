"""Which of a scheduler's steps a strict call takes, as diffusers' pipelines choose them.

Of n steps, begun from a picture with a strength a, Stable Diffusion's pipelines leave out the first
``n - floor(a n)``, and those of flows, Stable Diffusion 3's and FLUX.1's, the first ``floor(n - a n)``. That of LCM
takes n of the lowest ``floor(a O)`` of the O indices that it was distilled at. Models without such a pipeline (PixArt,
DiT, DDPM) do as Stable Diffusion.

A way that is split between models (Podell et al. 2023, "SDXL", https://arxiv.org/abs/2307.01952, section 2.5) is cut at
the index ``round(T - e T)`` of a chain of T steps: the first part has the evaluations that are told it or more, the
second those that are told less. Of methods of two evaluations a step diffusers begins the second part with a whole
step, and may end the first one with half of the same.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.inverse import Known
from jaxdiff.methods import guidance_of
from jaxdiff.model import Model
from jaxdiff.plan import check_part, encoded, mask_of
from jaxdiff.pretrained import schedulers
from jaxdiff.pretrained.control import counted
from jaxdiff.pretrained.fields import Fields
from jaxdiff.pretrained.schedulers.fields import class_of
from jaxdiff.pretrained.schedulers.steps import StepTable
from jaxdiff.pretrained.schedulers.strict import draw_strictly

_FLOWS = ("StableDiffusion3Pipeline", "FluxPipeline")
_TAUGHT = "LatentConsistencyModelPipeline"

Table = Callable[..., StepTable]
"""`jaxdiff.pretrained.schedulers.table` with all but ``begin`` and ``share`` said."""


def strict_options(
    model: Model,
    fields: Fields,
    kind: str,
    n: int,
    options: dict[str, Any],
    *,
    guided: bool,
    counting: Mapping[str, tuple[float, float]] | None = None,
    **asked: Any,
) -> dict[str, Any]:
    """The options of `jaxdiff.model.Model.sample` that take strict steps.

    Args:
      model: that samples.
      fields: of its scheduler's configuration.
      kind: the class of its pipeline.
      n: samples.
      options: of the call. Those that choose the steps, and the picture that is begun with, leave them.
      guided: whether guidance is the model's own where nothing is said.
      counting: from when to when ControlNets count (`jaxdiff.pretrained.control.shares`); None: there are none.
      asked: of `jaxdiff.pretrained.schedulers.table`.

    Raises:
      ValueError: options that do not go with strict steps, or that leave none.
      PretrainedError: a scheduler that jaxdiff does not follow.
    """
    if taken := [name for name in ("sampler", "grid", "ts", "cache") if options.get(name) is not None]:
        raise ValueError(f"strict steps are those of the model's scheduler: leave {taken[0]} out")
    names = ("steps", "image", "mask", "strength", "denoising_start", "denoising_end")
    steps, image, mask, strength, start, end = (options.get(name) for name in names)
    left = {name: value for name, value in options.items() if name not in names}
    steps = model.defaults.steps if steps is None else steps
    check_part(start, end, begun=options.get("x") is not None, pictured=image is not None)
    if mask is not None and (start is not None or end is not None):
        raise ValueError("mask: strict steps keep a part of a picture on the whole way: leave denoising_... out")
    table: Table = functools.partial(schedulers.table, fields, steps, **asked)
    if image is not None:
        if options.get("x") is not None:
            raise ValueError("image and x are both what samples begin as: give one of them")
        share = strength if strength is not None else 0.8 if mask is None else 1.0
        begun = from_strength(table, kind, steps, share)
        whole = mask is not None and share == 1  # which diffusers begins with noise alone
        part = begun if whole else begun.from_picture()
        drawn = np.ones((n, 1, 1, 1)) if mask is None else mask_of(model.codec, model.shape, mask, n)
        known = Known(encoded(model.codec, model.shape, image, n), jnp.asarray(drawn, jnp.float32))
        guide = options.get("guide")
        guide = (model.defaults.guide if guided else ()) if guide is None else guide
        left["guide"] = [*guidance_of(guide), known]
    else:
        if mask is not None or strength is not None:
            raise ValueError(f"{'mask' if strength is None else 'strength'} is of an image: give image=... too")
        part = table() if start is None else from_index(table, fields, steps, start)
    counts = None if counting is None else counted(counting, len(part.told))
    if end is not None:
        part = part.part(0, int((part.told >= _cut(fields, end, "denoising_end")).sum()))
        left["decode"] = False
        if not len(part.told):
            raise ValueError(f"denoising_end={end} leaves none of {steps} steps: raise it, or the steps")
        counts = jax.tree.map(lambda each: each[: len(part.told)], counts)
    return {**left, "program": functools.partial(draw_strictly, part, counts=counts)}


def from_strength(table: Table, kind: str, n: int, strength: float) -> StepTable:
    """The steps that are left of n by a strength above 0 and at most 1.

    Raises:
      ValueError: a strength out of range, or so small that no step is left.
    """
    if isinstance(strength, bool) or not isinstance(strength, int | float) or not 0 < strength <= 1:
        raise ValueError(f"strength is above 0 (the picture as it is) and at most 1 (nothing of it), got {strength!r}")
    if kind == _TAUGHT:
        return table(share=strength)
    begin = int(n - n * strength) if kind in _FLOWS else n - int(n * strength)
    if begin >= n:
        raise ValueError(f"strength {strength} of {n} steps leaves none: raise it, or the steps")
    return table(begin=begin)


def from_index(table: Table, fields: Fields, n: int, start: float) -> StepTable:
    """The evaluations of n steps after a part of the way, to whole steps.

    Raises:
      ValueError: so late a start that no step is left.
    """
    whole = table()
    left = int((whole.told < _cut(fields, start, "denoising_start")).sum())
    if not left:
        raise ValueError(f"denoising_start={start} leaves none of {n} steps: lower it, or raise the steps")
    each = schedulers.evaluations(fields)
    left += each == 2 and left % 2 == 0
    return table(begin=(len(whole.told) - left) // each)


def _cut(fields: Fields, share: float, option: str) -> int:
    """The index at which a share of the way is over.

    Raises:
      ValueError: a scheduler that tells its network no index.
    """
    name = class_of(fields)
    if name.startswith(("EDM", "CM")) or fields.get("timestep_type", "discrete") == "continuous":
        raise ValueError(f"{option} is of steps that are told an index, and those of {name} are not: leave it out")
    length: int = fields.get("num_train_timesteps", 1000)
    return round(length - share * length)
