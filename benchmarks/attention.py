"""Time and memory of each form of attention that runs here, over the length of the sequence.

    python benchmarks/attention.py --out attention.json

For each length and dtype, at as many samples as make up `--total` tokens, each form of `jaxdiff.networks.attention` is
jitted and timed, alone and with its gradient, in turns in one process, another form leading each turn. Shown are the
medians with their quartiles, the temporary memory of the compiled program, and the median over the turns of the time
over the plain form's. The last lines say from which size of the logits on the chunked form is no slower, which is what
`jaxdiff.networks.backend.LOGITS_BYTES` weighs against the memory. `--blocks` adds the chunked form with other blocks,
for `jaxdiff.networks.chunked.BLOCK_BYTES`.

Time it on an idle machine. `--quick` only shows that it runs: short sequences and two turns.
"""

from __future__ import annotations

import argparse
import functools
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from benchmarks.report import say, write
from jaxdiff.networks.attention import FORMS
from jaxdiff.networks.backend import ATTENTION, Call, present_machine
from jaxdiff.networks.chunked import chunked_attention

Inputs = tuple[Array, Array, Array]
PASSES = ("forward", "with gradient")


class Program(NamedTuple):
    """A compiled form."""

    form: str
    run: Callable[..., Any]
    bytes: int


def forms_here(inputs: Inputs, blocks: Sequence[int]) -> dict[str, Callable[..., Array]]:
    """The forms that this machine can run on these arrays."""
    machine, call = present_machine(), Call.of(*inputs)
    kernels = [row.form for row in ATTENTION if row.form not in ("plain", "chunked") and row.holds(machine, call)]
    found = {form: FORMS[form] for form in ("plain", "chunked", *kernels)}
    return found | {f"chunked {n}": functools.partial(chunked_attention, blocks=(n, n)) for n in blocks}


def programs(inputs: Inputs, which: str, blocks: Sequence[int], most: float) -> list[Program]:
    """Each form compiled, without those that would take more than ``most`` bytes."""
    found = []
    for form, attend in forms_here(inputs, blocks).items():

        def loss(*inputs: Array, attend: Callable[..., Array] = attend) -> Array:
            return (attend(*inputs).astype(jnp.float32) ** 2).sum()

        function = attend if which == "forward" else jax.grad(loss, argnums=(0, 1, 2))
        compiled = jax.jit(function).lower(*inputs).compile()
        analysis = compiled.memory_analysis()
        size = -1 if analysis is None else int(analysis.temp_size_in_bytes)
        if size <= most:
            found.append(Program(form, compiled, size))
    return found


def timed(compiled: Sequence[Program], inputs: Inputs, turns: int, longest: float) -> np.ndarray:
    """``(turns, forms)`` seconds. Turns end early when they have taken ``longest`` seconds, but three are taken."""
    for program in compiled:
        jax.block_until_ready(program.run(*inputs))
    rows: list[list[float]] = []
    while len(rows) < min(turns, 3) or (len(rows) < turns and np.sum(rows) < longest):
        row = [0.0] * len(compiled)
        for place in range(len(compiled)):
            which = (place + len(rows)) % len(compiled)
            begin = time.perf_counter()
            jax.block_until_ready(compiled[which].run(*inputs))
            row[which] = time.perf_counter() - begin
        rows.append(row)
    return np.array(rows)


def quartiles(values: np.ndarray) -> dict[str, float]:
    low, middle, high = np.percentile(values, [25, 50, 75])
    return {"quartile_1": float(low), "median": float(middle), "quartile_3": float(high)}


def measured(options: argparse.Namespace, dtype: str, tokens: int, which: str) -> list[dict[str, Any]]:
    """One row for each form, printed and returned."""
    batch = max(1, options.total // tokens)
    shape = (batch, options.heads, tokens, options.depth)
    q, k, v = (jax.random.normal(key, shape, dtype) for key in jax.random.split(jax.random.key(0), 3))
    say(f"{dtype}, {tokens} tokens, {which}")
    compiled = programs((q, k, v), which, options.blocks, options.memory * 2**30)
    if not compiled:
        return []
    seconds = timed(compiled, (q, k, v), options.turns, options.longest)
    plain = next((i for i, program in enumerate(compiled) if program.form == "plain"), None)
    rows = []
    for i, program in enumerate(compiled):
        row: dict[str, Any] = {
            "dtype": dtype,
            "pass": which,
            "shape": shape,
            "logits_bytes": Call.of(q, k, v).logits_bytes,
            "form": program.form,
            "turns": len(seconds),
            "ms": quartiles(1e3 * seconds[:, i]),
            "temporary_bytes": program.bytes,
            "over_plain": None if plain is None else quartiles(seconds[:, i] / seconds[:, plain]),
        }
        rows.append(row)
        ms, ratio = row["ms"], row["over_plain"]
        print(
            f"{dtype:<9}{which:<15}{batch:>5}{tokens:>7}{row['logits_bytes'] / 2**20:>10.1f}  {program.form:<13}"
            f"{ms['median']:>10.2f}{ms['quartile_1']:>10.2f}{ms['quartile_3']:>10.2f}{program.bytes / 2**20:>10.1f}"
            + (f"{ratio['median']:>9.2f}" if ratio else ""),
            flush=True,
        )
    return rows


def crossing(rows: Sequence[dict[str, Any]], dtype: str, which: str) -> str:
    """From which size of the logits the chunked form is no slower than the plain one, at every measured size."""
    ratios = {
        row["logits_bytes"]: row["over_plain"]["median"]
        for row in rows
        if (row["dtype"], row["pass"], row["form"]) == (dtype, which, "chunked") and row["over_plain"]
    }
    slower = [size for size, ratio in ratios.items() if ratio > 1]
    later = [size for size in ratios if not slower or size > max(slower)]
    where = f"from logits of {min(later) / 2**20:g} MiB" if later else "at no measured size"
    return f"{dtype}, {which}: chunked is no slower than plain {where}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Measures the forms of attention against each other.")
    parser.add_argument("--tokens", nargs="+", type=int, default=[64, 256, 1024, 4096, 16384])
    parser.add_argument("--total", type=int, default=16384, help="tokens of the batch, which has at least one sample")
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--depth", type=int, default=64, help="of a head")
    parser.add_argument("--dtypes", nargs="+", choices=["float32", "bfloat16"], default=["float32", "bfloat16"])
    parser.add_argument("--blocks", nargs="*", type=int, default=[], help="also chunked, with blocks of N by N tokens")
    parser.add_argument("--turns", type=int, default=15, help="timings of each")
    parser.add_argument("--longest", type=float, default=60.0, help="seconds after which no more turns are taken")
    parser.add_argument("--memory", type=float, default=8.0, help="GiB of temporary memory that a form may take")
    parser.add_argument("--quick", action="store_true", help="see that it runs; the times mean nothing")
    parser.add_argument("--out", type=Path, default=None, help="JSON file for the results")
    options = parser.parse_args(arguments)
    sizes = [options.total, options.heads, options.depth, options.turns, *options.tokens, *options.blocks]
    if min(sizes) < 1:
        parser.error("tokens, heads, depth, blocks and turns are to be at least 1")
    if options.quick:
        options.tokens, options.total, options.heads, options.turns = [64, 256], 256, 2, 2

    head = f"{'':<24}{'batch':>5}{'tokens':>7}{'logits':>10}  {'form':<13}{'median':>10}"
    print(f"{head}{'quartiles':>20}{'temporary':>10}\n{'MiB':>46}{'ms':>25}{'ms':>20}{'MiB':>10}{'/ plain':>9}")
    rows = [
        row
        for dtype in options.dtypes
        for tokens in options.tokens
        for which in PASSES
        for row in measured(options, dtype, tokens, which)
    ]
    found = [crossing(rows, dtype, which) for dtype in options.dtypes for which in PASSES]
    print("\n" + "\n".join(found))
    if options.out is not None:
        settings = {name: getattr(options, name) for name in ("total", "heads", "depth", "turns", "memory", "quick")}
        write(options.out, {**settings, "machine": vars(present_machine()), "crossing": found, "rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
