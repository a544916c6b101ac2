"""The forms of attention on this machine: time and memory of a call, which `jaxdiff.networks.backend` is to rest on.

Every form is tried at every shape, also where the table would not take it: the table's bounds are what this settles. A
form that refuses a shape stands in the table with its reason.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from benchmarks.speed.limits import queued
from jaxdiff.networks.attention import FORMS
from jaxdiff.networks.backend import Call, choose_attention, present_machine

PASSES = ("forward", "gradient", "tangent")
OF_MACHINE = {"cudnn": "cuda", "flash": "tpu"}
CHUNKED_TOKENS = 512  # of fewer, the chunked form is one block: the plain form, written otherwise
Form = Callable[[Array, Array, Array], Array]


def measured(
    shape: Sequence[int], dtype: str, which: str, laps: int, seconds: float, memory: float
) -> list[dict[str, Any]]:
    """A row for each form.

    Args:
      shape: ``(batch, heads, tokens, depth)`` of query, key and value.
      dtype: theirs.
      which: of `PASSES`: the attention, its gradient by all three (of a sum of squares), its tangent.
      laps: timings of each form, in turns.
      seconds: of one timing, about.
      memory: bytes that a program may take.
    """
    keys = jax.random.split(jax.random.key(0), 6)
    drawn = [jax.random.normal(each, tuple(shape), jnp.dtype(dtype)) for each in keys]
    inputs = drawn if which == "tangent" else drawn[:3]
    machine, call = present_machine(), Call.of(*drawn[:3])
    common = {"shape": list(shape), "dtype": dtype, "pass": which, "logits_bytes": call.logits_bytes}
    query, key, value, *_ = drawn
    chosen = choose_attention(machine, query, key, value)
    rows: list[dict[str, Any]] = []
    programs: list[Callable[[], Any]] = []
    for form, attend in FORMS.items():
        if form == "chunked" and shape[2] < CHUNKED_TOKENS:
            continue
        row: dict[str, Any] = common | {"form": form, "chosen": form == chosen}
        try:
            if OF_MACHINE.get(form, machine.platform) != machine.platform:
                raise NotImplementedError(f"not on this machine: {form} is for {OF_MACHINE[form]}")
            program = jax.jit(function_of(attend, which)).lower(*inputs).compile()
            sizes = program.memory_analysis()
            row["temporary_bytes"] = None if sizes is None else int(sizes.temp_size_in_bytes)
            if (row["temporary_bytes"] or 0) > memory:
                raise MemoryError(f"it would take {row['temporary_bytes'] / 2**30:.1f} GiB")
            run = lambda program=program: program(*inputs)  # noqa: E731
            queued(run, 2)
        except Exception as error:  # what a kernel refuses is part of the answer
            reason = str(error).strip().splitlines() or [""]
            rows.append(row | {"refused": f"{type(error).__name__}: {reason[0][:160]}"})
            continue
        rows.append(row | {"place": len(programs)})
        programs.append(run)
    taken = in_turns(programs, laps, seconds)
    plain = next((row["place"] for row in rows if row["form"] == "plain" and "place" in row), None)
    for row in rows:
        if (place := row.pop("place", None)) is not None:
            low, middle, high = np.percentile(taken[:, place], [25, 50, 75])
            row |= {"seconds": float(middle), "quartiles": [float(low), float(high)]}
            row["over_plain"] = None if plain is None else float(np.median(taken[:, place] / taken[:, plain]))
    return rows


def function_of(attend: Form, which: str) -> Callable[..., Any]:
    """The pass of a form that is timed."""
    if which == "forward":
        return attend
    if which == "gradient":
        return jax.grad(lambda *x: (attend(*x).astype(jnp.float32) ** 2).sum(), argnums=(0, 1, 2))
    return lambda *x: jax.jvp(attend, x[:3], x[3:])


def in_turns(programs: Sequence[Callable[[], Any]], laps: int, seconds: float) -> np.ndarray:
    """``(laps, programs)`` seconds of a call, another program leading each lap."""
    calls = [max(1, min(200, round(seconds / max(queued(run, 1), 1e-6)))) for run in programs]
    taken = np.zeros((laps, len(programs)))
    for lap in range(laps):
        for place in range(len(programs)):
            which = (place + lap) % len(programs)
            taken[lap, which] = queued(programs[which], calls[which])
    return taken


def shapes(quick: bool) -> list[tuple[tuple[int, int, int, int], str, str]]:
    """What is measured, the most important first: the networks' own calls, then lengths, then depths of a head."""
    if quick:
        return [((2, 2, 64, 16), "bfloat16", "gradient"), ((1, 1, 512, 16), "float32", "forward")]
    networks = [(64, 16, 256, 72), (256, 6, 256, 64), (256, 1, 256, 256), (32, 6, 1024, 64), (32, 9, 256, 64)]
    lengths = [(max(1, 65536 // tokens), 8, tokens, 64) for tokens in (4096, 64, 16384, 32, 16)]
    depths = [(64, 8, 256, depth) for depth in (128, 160, 32)]
    found = [(shape, "bfloat16", which) for shape in networks for which in ("gradient", "forward")]
    found += [(shape, "bfloat16", "gradient") for shape in lengths + depths]
    found += [((8, 8, tokens, 64), "float32", "gradient") for tokens in (1024, 4096)]
    found += [(networks[0], "bfloat16", "tangent"), (lengths[0], "bfloat16", "tangent")]
    return [*found, (lengths[0], "bfloat16", "forward"), (lengths[1], "bfloat16", "forward")]


def told(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What the rows say of the constants of `jaxdiff.networks.backend`.

    >>> row = {"shape": [1, 1, 64, 8], "dtype": "bfloat16", "pass": "gradient", "logits_bytes": 2**14, "chosen": False}
    >>> plain, kernel = row | {"form": "plain", "seconds": 2.0}, row | {"form": "cudnn", "seconds": 1.0}
    >>> for line in told([plain | {"over_plain": 1.0, "chosen": True}, kernel | {"over_plain": 0.5}]): print(line)
    cudnn, tokens (`min(queries, keys) >=`): no slower than plain at 64; slower at none; refused at none
    cudnn, depth (`depth <=`): no slower than plain at 8; slower at none; refused at none
    1x1x64x8 bfloat16 gradient: plain is chosen, cudnn takes 0.50 of its time
    """
    lines = []
    for form in OF_MACHINE:
        mine = [row for row in rows if row["form"] == form]
        if not any("seconds" in row for row in mine):
            continue
        for name, axis in (("tokens (`min(queries, keys) >=`)", 2), ("depth (`depth <=`)", 3)):
            good, slow, refused = _listed(mine, axis)
            lines.append(f"{form}, {name}: no slower than plain at {good}; slower at {slow}; refused at {refused}")
    chunked = [row for row in rows if row["form"] == "chunked" and row.get("over_plain") is not None]
    for row in sorted(chunked, key=lambda row: row["logits_bytes"]):
        size, what = f"{row['logits_bytes'] / 2**20:g} MiB", f"{row['dtype']}, {row['pass']}"
        lines.append(f"chunked, LOGITS_BYTES: at logits of {size} ({what}) {row['over_plain']:.2f} of plain's time")
    for shape, dtype, which in dict.fromkeys((tuple(row["shape"]), row["dtype"], row["pass"]) for row in rows):
        here = [row for row in rows if (tuple(row["shape"]), row["dtype"], row["pass"]) == (shape, dtype, which)]
        ran = [row for row in here if "seconds" in row]
        fastest = min(ran, key=lambda row: row["seconds"], default=None)
        taken = next((row for row in ran if row["chosen"]), None)
        if fastest is not None and taken is not None and fastest["seconds"] < 0.95 * taken["seconds"]:
            share = fastest["seconds"] / taken["seconds"]
            lines.append(
                f"{'x'.join(map(str, shape))} {dtype} {which}: {taken['form']} is chosen, "
                f"{fastest['form']} takes {share:.2f} of its time"
            )
    return lines


def _listed(rows: Sequence[dict[str, Any]], axis: int) -> tuple[str, str, str]:
    """Sizes of an axis where a form was no slower than the plain one, where slower, and where refused."""
    good = {row["shape"][axis] for row in rows if row.get("over_plain") is not None and row["over_plain"] <= 1.02}
    slow = {row["shape"][axis] for row in rows if row.get("over_plain") is not None and row["over_plain"] > 1.02}
    refused = {row["shape"][axis] for row in rows if "refused" in row}
    return tuple(", ".join(map(str, sorted(sizes))) or "none" for sizes in (good, slow, refused))  # type: ignore[return-value]
