"""Memory of a training step against its speed: what is computed again, micro-batches, and Adam's moments.

    python benchmarks/memory.py --out results.json --page docs/performance.md

Two networks, a DDPM U-Net at half of its width (9 million parameters, 32x32 images) and DiT-S/2 (33 million, 32x32x4
latents), both without dropout in float32:

- *Recomputation*: each `remat` policy, without and with micro-batches (`train.accumulate`).
- *Moments*: each `optimizer.state_dtype`, at the plain policy.

Memory is what the compiled program says of itself: its temporaries, and the state, whose buffers it reuses (donation:
the share that is aliased is in the JSON, and the command fails where it is under 99%). Times are of whole steps, taken
in turns in one process; a ratio is the median over the turns of one case's time over the plain case's of the same turn.
On a CPU the programs are compiled with XLA's memory-saving scheduler (`--scheduler memory`): its default there orders
for concurrency. What a network without a loop over its blocks was to compute again late, it computes early even so.
`--quick` only shows that it runs: tiny networks, two turns; its numbers mean nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import jax
import numpy as np

from benchmarks.report import fill, say, write
from benchmarks.training_step import Prepared, prepared
from configs.cifar10_unet import config as cifar10
from jaxdiff.config import Config, keep_compiled, set_up
from jaxdiff.networks import dit
from jaxdiff.networks.remat import Remat
from jaxdiff.train.low_precision import StateDtype
from jaxdiff.train.step import Given

POLICIES = get_args(Remat)
STATES: tuple[StateDtype, ...] = get_args(StateDtype)
ALIASED = 0.99  # of the state's bytes


class Case(NamedTuple):
    network: str
    remat: str
    accumulate: int
    state_dtype: StateDtype

    @property
    def title(self) -> str:
        micro = "" if self.accumulate == 1 else f", {self.accumulate} micro-batches"
        return f"{self.network}, {self.remat}{micro}, {self.state_dtype}"


def configurations(quick: bool) -> dict[str, Config]:
    """The networks, by name."""
    small: dict[str, Any] = {"width": 8, "multipliers": (1, 2), "blocks": 1}
    unet = dataclasses.replace(cifar10.network, dropout=0.0, **(small if quick else {"width": 64}))
    latent = dit("S", 2, out_channels=None, num_classes=None, **({"depth": 2, "width": 48} if quick else {}))
    of = {
        "unet": dataclasses.replace(cifar10, network=unet),
        "dit": dataclasses.replace(
            cifar10, network=latent, data=dataclasses.replace(cifar10.data, image_size=32, channels=4)
        ),
    }
    batch = 4 if quick else 16
    return {
        name: dataclasses.replace(config, train=dataclasses.replace(config.train, batch_size=batch))
        for name, config in of.items()
    }


def cases(accumulate: Sequence[int]) -> list[Case]:
    """Each network's plain case comes first."""
    found = []
    for network in ("unet", "dit"):
        found += [Case(network, remat, parts, "float32") for parts in accumulate for remat in POLICIES]
        found += [Case(network, "none", 1, state) for state in STATES[1:]]
    return found


def step_of(case: Case, config: Config) -> Prepared:
    return prepared(
        dataclasses.replace(
            config,
            network=dataclasses.replace(config.network, remat=case.remat),
            train=dataclasses.replace(config.train, accumulate=case.accumulate),
            optimizer=dataclasses.replace(config.optimizer, state_dtype=case.state_dtype),
        )
    )


def size_of(tree: Any) -> int:
    """Bytes of a tree of arrays or shapes (keys: 8 bytes each)."""
    keys = jax.dtypes.prng_key
    return sum(
        leaf.size * (8 if jax.dtypes.issubdtype(leaf.dtype, keys) else leaf.dtype.itemsize)
        for leaf in jax.tree.leaves(tree)
    )


def measure(options: argparse.Namespace) -> int:
    keep_compiled()
    saving = options.scheduler == "memory" and jax.default_backend() == "cpu"
    compiler_options = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"} if saving else None
    rows: list[dict[str, Any]] = []
    for name, config in configurations(options.quick).items():
        mine = [case for case in cases(options.accumulate) if case.network == name]
        running = []
        for case in mine:
            say(f"compiling {case.title}")
            parts = step_of(case, config)
            begin = time.perf_counter()
            compiled = parts.step.lower(parts.template, parts.batch).compile(compiler_options=compiler_options)
            seconds = time.perf_counter() - begin
            sizes = compiled.memory_analysis()
            if sizes is None:
                raise RuntimeError(f"{jax.default_backend()} does not tell a program's memory: measure on another")
            state = size_of(parts.template)
            rows.append(
                case._asdict()
                | {
                    "parameters": parts.parameters,
                    "batch_size": config.train.batch_size,
                    "temporaries": sizes.temp_size_in_bytes,
                    "state": state,
                    "moments": size_of(parts.template.opt_state),
                    "aliased": sizes.alias_size_in_bytes / state,
                    "compile_seconds": seconds,
                }
            )
            running.append([compiled, parts.make_state(), parts.make_batch()])
        taken = np.array([turn(running, n) for n in range(options.turns + 1)][1:])  # the first turn warms up
        for row, seconds, ratios in zip(rows[-len(mine) :], taken.T, (taken / taken[:, :1]).T, strict=True):
            low, middle, high = np.percentile(ratios, [25, 50, 75])
            row |= {"seconds": float(np.median(seconds)), "ratio": middle, "quartiles": [low, high]}
    text = page(rows)
    print(text)
    short = [row["network"] for row in rows if row["aliased"] < ALIASED]
    print("FAILED: the state is not reused by " + ", ".join(short) if short else "the state's buffers are all reused")
    if options.page is not None:
        options.page.write_text(fill(options.page.read_text(encoding="utf-8"), "memory", text), encoding="utf-8")
    if options.out is not None:
        record = {"turns": options.turns, "quick": options.quick, "scheduler": options.scheduler, "passed": not short}
        write(options.out, {**record, "rows": rows})
    return 1 if short else 0


def turn(running: list[list[Any]], number: int) -> list[float]:
    """Seconds of one step of each; every other turn in the opposite order."""
    seconds = [0.0] * len(running)
    order = range(len(running)) if number % 2 == 0 else reversed(range(len(running)))
    for which in order:
        compiled, state, batch = running[which]
        begin = time.perf_counter()
        running[which][1] = jax.block_until_ready(compiled(state, batch, Given())[0])
        seconds[which] = time.perf_counter() - begin
    return seconds


def page(rows: Sequence[dict[str, Any]]) -> str:
    """The tables, in Markdown.

    >>> row = dict(network="dit", remat="none", accumulate=1, state_dtype="int8", parameters=2_000_000, batch_size=4)
    >>> sizes = dict(temporaries=3 * 2**20, moments=4 * 2**20, ratio=1.25, seconds=0.5)
    >>> print(page([row | sizes]).splitlines()[-1])
    | DiT-S/2 | int8 | 2.1 | 3 MiB | 1.25 |
    """
    names = {"unet": "U-Net", "dit": "DiT-S/2"}
    lines = [
        "| network | recomputed | micro-batches | temporaries | time of a step |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        if row["state_dtype"] == "float32":
            lines.append(
                f"| {names[row['network']]} | {row['remat']} | {row['accumulate']} | "
                f"{row['temporaries'] / 2**20:,.0f} MiB | {row['ratio']:.2f} |"
            )
    lines += [
        "",
        "| network | moments | bytes a parameter | temporaries | time of a step |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        if (row["remat"], row["accumulate"]) == ("none", 1):
            lines.append(
                f"| {names[row['network']]} | {row['state_dtype']} | {row['moments'] / row['parameters']:.1f} | "
                f"{row['temporaries'] / 2**20:,.0f} MiB | {row['ratio']:.2f} |"
            )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Measures a training step's memory against its speed.")
    parser.add_argument("--accumulate", nargs="+", type=int, default=[1, 4], help="micro-batches; 1 comes first")
    parser.add_argument("--turns", type=int, default=12, help="timed steps of each case")
    parser.add_argument("--scheduler", choices=("memory", "default"), default="memory", help="of XLA, on a CPU")
    parser.add_argument("--quick", action="store_true", help="see that it runs; the numbers mean nothing")
    parser.add_argument("--out", type=Path, default=None, help="JSON file for the results")
    parser.add_argument("--page", type=Path, default=None, help="page whose part `memory` is written anew")
    options = parser.parse_args(arguments)
    if options.accumulate[0] != 1 or min(options.accumulate) < 1 or options.turns < 1:
        parser.error("turns and micro-batches are to be at least 1, and 1 micro-batch is to come first")
    if options.quick:
        options.turns, options.accumulate = 2, [1, 2]
    if arguments is None:
        set_up([])
    return measure(options)


if __name__ == "__main__":
    sys.exit(main())
