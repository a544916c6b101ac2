"""What a sampler costs beyond its evaluations of the network.

    python benchmarks/overhead.py --out results.json

Three parts, for every row of `jaxdiff.methods.SAMPLERS`, new ones by themselves:

- *U-Net of the digits run* (`configs/digits_unet.py`, untrained parameters), at several batch sizes: the time of jitted
  `sample` over that of its evaluations alone, which are as many calls of the same denoiser in a jitted loop, each fed
  with the mean of the x0 and eps before it. The evaluations are counted by the program itself (a callback in the
  denoiser), not assumed. Sampler and evaluations are timed in turns in one process; the ratio is the median over the
  turns, and its quartiles are the spread.
- *A tiny MLP* (two layers of 64): the same difference in microseconds a step.
- *Memory*: growth of the compiled program's temporary memory from 10 to 1,000 steps, as a share of what the path
  between would take. A sampler that kept the path would show 100%.

Turns go on until the median ratio is known within 1% (its 95% interval), or 40 seconds. Time it on an idle machine.
Exits with 1 when a bound is missed. `--quick` only shows that it runs: few steps and turns, one batch size, no verdict
on times.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from benchmarks.report import Line, doubt, fill, say, spread, table, write
from configs.digits_unet import config as digits
from jaxdiff import (
    Denoiser,
    GaussianDenoiser,
    NetworkDenoiser,
    Prediction,
    Sampler,
    log_snr_times,
    sample,
    sample_keys,
)
from jaxdiff.config import keep_compiled
from jaxdiff.config.build import build_network
from jaxdiff.denoiser import Cond
from jaxdiff.methods import SAMPLERS, parse_sampler
from jaxdiff.prediction import from_v
from jaxdiff.process import Process
from jaxdiff.record import record

SHAPE = (8, 8, 1)
MOST = 1.03  # times the evaluations alone
DOUBT = 0.01  # half the width of the ratio's 95% interval at which no more turns are needed
PATH_SHARE = 0.01  # of the path's memory
NUMBERS = {"annealed_langevin": ":steps=1"}  # at each level: by default it takes 100, which cost the same each


@record
class Perceptron:
    """A tiny v-network: two layers, for samples of any shape."""

    process: Process
    into: Array
    out: Array

    @classmethod
    def drawn(cls, process: Process, size: int, width: int = 64) -> Perceptron:
        a, b = jax.random.split(jax.random.key(0))
        return cls(process, 0.1 * jax.random.normal(a, (size + 1, width)), 0.1 * jax.random.normal(b, (width, size)))

    def __call__(self, x: Array, t: ArrayLike, cond: Cond | None = None) -> Prediction:
        times = jnp.broadcast_to(jnp.asarray(t, x.dtype), x.shape[:1])[:, None]
        hidden = jax.nn.silu(jnp.concatenate([x.reshape(x.shape[0], -1), times], axis=1) @ self.into)
        return from_v(self.process, x, t, (hidden @ self.out).reshape(x.shape))


@record
class Counted:
    """A denoiser that tells a host of each call."""

    denoise: Denoiser

    def __call__(self, x: Array, t: ArrayLike, cond: Cond | None = None) -> Prediction:
        jax.debug.callback(_count_call)
        return self.denoise(x, t, cond)


CALLS = [0]


def _count_call() -> None:
    CALLS[0] += 1


@jax.jit
def sampled(sampler: Sampler, denoise: Denoiser, keys: Array, x: Array, ts: Array) -> Array:
    return sample(sampler, denoise, keys, x, ts)


@jax.jit
def evaluated(denoise: Denoiser, x: Array, ends: Array, calls: ArrayLike) -> Array:
    """The evaluations alone: the number of them is data, so that one program serves all samplers."""

    def body(i: Array, x: Array) -> Array:
        given = denoise(x, ends[0] + (ends[1] - ends[0]) * i / calls)
        return 0.5 * (given.x0 + given.eps)

    return jax.lax.fori_loop(0, calls, body, x)


class Cost(NamedTuple):
    """Seconds of each turn."""

    calls: int
    steps: int
    sampler: np.ndarray
    alone: np.ndarray

    @property
    def ratio(self) -> np.ndarray:
        return self.sampler / self.alone

    @property
    def microseconds(self) -> np.ndarray:
        return 1e6 * (self.sampler - self.alone) / self.steps


def seconds(call: Callable[[], Array]) -> float:
    begin = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - begin


def cost(sampler: Sampler, denoise: Denoiser, batch: int, steps: int, turns: int, longest: float) -> Cost:
    """Times a sampler and its evaluations in turns, each leading every other time: ``turns`` of them, and more until
    the median ratio is known to `DOUBT` or they have taken ``longest`` seconds."""
    keys, ts = sample_keys(jax.random.key(0), 0, batch), log_snr_times(sampler.process, steps + 1)
    x = sampler.process.prior_sample(keys, SHAPE, ts[0])
    CALLS[0] = 0
    jax.block_until_ready(sampled(sampler, Counted(denoise), keys, x, ts))
    jax.effects_barrier()
    calls = CALLS[0]
    runs = [
        lambda: sampled(sampler, denoise, keys, x, ts),
        lambda: evaluated(denoise, x, jnp.stack([ts[0], ts[-1]]), calls),
    ]
    for run in runs:
        jax.block_until_ready(run())
    taken: tuple[list[float], list[float]] = ([], [])
    while len(taken[0]) < turns or (
        sum(taken[0]) + sum(taken[1]) < longest and doubt(np.divide(taken[0], taken[1])) > DOUBT
    ):
        for which in (0, 1) if len(taken[0]) % 2 == 0 else (1, 0):
            taken[which].append(seconds(runs[which]))
    return Cost(calls, steps, np.array(taken[0]), np.array(taken[1]))


def temporary_bytes(sampler: Sampler, steps: int, batch: int) -> int:
    """Temporary memory of the compiled `sample`, over as many steps."""
    keys, ts = sample_keys(jax.random.key(0), 0, batch), log_snr_times(sampler.process, steps + 1)
    x = jnp.zeros((batch, *SHAPE))
    exact = GaussianDenoiser(sampler.process, 0.0, 0.5)
    analysis = sampled.lower(sampler, exact, keys, x, ts).compile().memory_analysis()
    if analysis is None:
        raise RuntimeError(f"{jax.default_backend()} does not tell a program's memory: measure on another")
    return int(analysis.temp_size_in_bytes)


def page_table(details: Mapping[str, Any], batches: Sequence[int]) -> str:
    """A line for each sampler: the ratios with half their 95% interval, and the microseconds."""
    heads = ["sampler", "evaluations", *(f"ratio, batch of {batch}" for batch in batches), "us a step, tiny MLP"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for name, small in details["mlp"].items():
        cells = [details["unet"][f"{name}, {batch}"] for batch in batches]
        ratios = [f"{cell['ratio']['median']:.3f} +- {cell['doubt']:.3f}" for cell in cells]
        extra = f"{small['microseconds_a_step']['median']:.0f}"
        lines.append("| " + " | ".join([f"`{name}`", str(cells[0]["calls"]), *ratios, extra]) + " |")
    return "\n".join(lines)


def measure(options: argparse.Namespace) -> int:
    keep_compiled()
    process = digits.process
    network = build_network(digits)
    unet = NetworkDenoiser(network, network.init(jax.random.key(0)), process, digits.parameterization)
    mlp = Perceptron.drawn(process, int(np.prod(SHAPE)))
    lines: list[Line] = []
    details: dict[str, Any] = {"unet": {}, "mlp": {}, "memory": {}}

    print(f"{'sampler':<24}{'batch':>6}{'calls':>7}{'ratio':>8}  +-     quartiles        ms an evaluation")
    for name in options.samplers:
        sampler = parse_sampler(name + NUMBERS.get(name, ""), process)
        for batch in options.batches:
            say(f"{name}: U-Net, batch of {batch}")
            found = cost(sampler, unet, batch, options.steps, options.turns, options.longest)
            ratio, each = spread(found.ratio), 1e3 * float(np.median(found.alone)) / found.calls
            print(
                f"{name:<24}{batch:>6}{found.calls:>7}{ratio['median']:>8.3f}  {doubt(found.ratio):.3f}  "
                f"{ratio['quartile_1']:.3f} to {ratio['quartile_3']:.3f}   {each:.2f}",
                flush=True,
            )
            details["unet"][f"{name}, {batch}"] = {
                "calls": found.calls,
                "turns": len(found.alone),
                "ratio": ratio,
                "doubt": doubt(found.ratio),
                "ms_an_evaluation": each,
            }
            bound = None if options.quick else MOST
            lines.append(Line(f"{name}: time over evaluations' alone, batch of {batch}", ratio["median"], high=bound))
        say(f"{name}: MLP and memory")
        found = cost(sampler, mlp, 64, options.steps if options.quick else 200, options.turns, options.longest)
        extra = spread(found.microseconds)
        details["mlp"][name] = {"calls": found.calls, "steps": found.steps, "microseconds_a_step": extra}
        lines.append(Line(f"{name}: microseconds a step beyond a tiny MLP's evaluations", extra["median"]))
        few, many = (temporary_bytes(sampler, steps, 16) for steps in (10, 1000))
        path = 990 * 16 * int(np.prod(SHAPE)) * 4
        details["memory"][name] = {"steps_10": few, "steps_1000": many, "path": path}
        lines.append(
            Line(
                f"{name}: memory gained over 990 steps, share of the path", (many - few) / path, None, PATH_SHARE, True
            )
        )

    failed = [line.name for line in lines if line.passed is False]
    print(f"\n{table(lines)}\n\n{'FAILED: ' + '; '.join(failed) if failed else 'every bound is met'}")
    if options.out is not None:
        written = {
            "steps": options.steps,
            "turns": options.turns,
            "quick": options.quick,
            "passed": not failed,
            "lines": [dataclasses.asdict(line) | {"passed": line.passed} for line in lines],
            **details,
        }
        write(options.out, written)
    if options.page is not None:
        page = fill(options.page.read_text(encoding="utf-8"), "overhead", page_table(details, options.batches))
        options.page.write_text(page, encoding="utf-8")
    return 1 if failed else 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Measures what samplers cost beyond their evaluations.")
    parser.add_argument("--samplers", nargs="+", choices=sorted(SAMPLERS), default=list(SAMPLERS), metavar="NAME")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 16, 64], help="batch sizes of the U-Net")
    parser.add_argument("--steps", type=int, default=20, help="of the U-Net's samplers")
    parser.add_argument("--turns", type=int, default=15, help="timings of each, at least")
    parser.add_argument("--longest", type=float, default=40.0, help="seconds after which no more turns are taken")
    parser.add_argument("--quick", action="store_true", help="see that it runs; the times mean nothing")
    parser.add_argument("--out", type=Path, default=None, help="JSON file for the results")
    parser.add_argument("--page", type=Path, default=None, help="Markdown file whose marked part gets the table")
    options = parser.parse_args(arguments)
    if min([options.steps, options.turns, *options.batches]) < 1:
        parser.error("steps, turns and batches are to be at least 1")
    if options.quick:
        options.steps, options.turns, options.longest, options.batches = 3, 2, 0.0, [1]
    return measure(options)


if __name__ == "__main__":
    sys.exit(main())
