"""Samples by a scheduler of diffusers, step for step: a program for `jaxdiff.model.Model.sample`.

The plan's network, conditions, guidance and codec are taken, its sampler and its times are not. Guidance is diffusers':
with f the network's answer with the conditions and g that with the nulls, ``g + w (f - g)`` (Ho & Salimans 2022,
https://arxiv.org/abs/2207.12598, equation (6)). Of an answer of twice x's channels the first half counts.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import NamedSharding

from jaxdiff.guidance import CFG
from jaxdiff.inverse import Known
from jaxdiff.networks.control import SCALE
from jaxdiff.networks.placement import samples_over
from jaxdiff.plan import Plan, gathered, split_over
from jaxdiff.pretrained.schedulers.steps import Picture, StepTable, follow


@functools.partial(jax.jit, static_argnames=("decode", "keep", "sharding"))
def draw_strictly(
    table: StepTable,
    plan: Plan,
    keys: Array,
    *,
    counts: Any = None,
    decode: bool = True,
    keep: Any = None,
    sharding: NamedSharding | None = None,
) -> tuple[Any, Any, Array]:
    """Samples of a plan by a table. All but the table as `jaxdiff.plan.draw`.

    Args:
      table: the scheduler's.
      plan: of B samples. Its x, where it has one, is at the scheduler's own scale: ``table.start`` times noise. A
        `Known` of its guidance is the picture that is begun with or kept.
      keys: ``(B,)``.
      counts: ``(E,)``, of several ControlNets by name: their scale's factor at each evaluation; None: there are none.
      decode: give the stored record, else x0; static.
      keep: must be None; static.
      sharding: of the batch; static.

    Raises:
      ValueError: something to keep, or guidance that is not CFG alone.
    """
    if keep is not None:
        raise ValueError("strict steps keep nothing on their way: leave keep out")
    guides = [element for element in plan.guide if isinstance(element, CFG)]
    known = [element for element in plan.guide if isinstance(element, Known)]
    several = [each for each in guides if isinstance(each.weight, Mapping) or callable(each.weight) or each.others]
    if len(guides) + len(known) != len(plan.guide) or len(guides) > 1 or several:
        raise ValueError("strict steps follow cfg with one weight alone: leave other guidance out")
    plan, keys = split_over(plan, keys, sharding)
    weight = guides[0].weight if guides else None

    def answer(x: Array, told: Array, cond: Any) -> Array:
        found: Array = plan.plain.net.apply(plan.plain.params, x, told, cond)
        return found[..., : x.shape[-1]]

    def network(x: Array, told: Array, counted: Any) -> Array:
        cond = plan.cond
        if counted is not None:
            cond = {**cond, SCALE: jax.tree.map(lambda scale, count: scale * count, cond[SCALE], counted)}
        given = answer(x, told, cond or None)
        if weight is None:
            return given
        null = answer(x, told, {**cond, **plan.nulls})
        w = jnp.broadcast_to(jnp.asarray(weight, jnp.float32), x.shape[:1])
        return null + w.reshape(-1, *(1,) * (x.ndim - 1)) * (given - null)

    def noise(number: Array) -> Array:
        draw = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, number), plan.shape, jnp.float32))
        return draw(keys)

    with contextlib.nullcontext() if sharding is None else samples_over(sharding):
        drawn = noise(jnp.array(-1))
        picture = Picture(known[0].x0, drawn, known[0].mask) if known else None
        first = table.begin[1] * drawn if plan.x is None else plan.x
        first = first if picture is None else first + table.begin[0] * picture.x0
        x0 = follow(table, network, first, noise, picture, beside=counts)
        finite = jnp.isfinite(x0.reshape(x0.shape[0], -1)).all(axis=1)
        found = (plan.finish(x0) if decode else x0), (), finite
    return gathered(found, sharding)
