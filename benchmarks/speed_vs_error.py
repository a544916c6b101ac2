"""Speed against error of everything that makes sampling faster, on one trained run.

    python benchmarks/speed_vs_error.py runs/digits --out speed.json --plot speed.png --page docs/performance.md

For the same noise and labels each choice draws the same images as a fine reference (DPM++(3M) on many times), up to its
error. The choices:

- *samplers*: DDIM, DPM++(2M), UniPC and Heun at 5 to 50 evaluations;
- *features*: DPM++(2M) with a cache of the network's features, DeepCache for a U-Net, the first-block cache and
  TaylorSeer for a transformer (`jaxdiff.networks.caching`), the former with one decision for the batch;
- *guidance*, for a run with labels: the null branch reused, or left out where there is little or much noise
  (`jaxdiff.guidance`: `Reuse`, `Interval`);
- *parallel*: DDIM by Picard iteration (`jaxdiff.sampling.sample_parallel`), whose gain is for devices with room for
  larger batches;
- *adaptive*: Runge-Kutta steps by tolerance.

Time is over that of DPM++(2M) at 50 evaluations, all choices being timed in turns in one process, each turn beginning
at another; the median and the quartiles over the turns. Error is the RMS difference to the reference, "alone" that to
the same sampler on the same times without what the choice adds. Limited guidance is not an approximation but another
aim: what it differs by is no fault. `--quick` only shows that it runs.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from benchmarks.report import fill, say, write
from jaxdiff import (
    DDIM,
    Adaptive,
    ClassifierFree,
    Denoiser,
    DPMpp2M,
    DPMpp3M,
    Heun,
    NetworkDenoiser,
    Run,
    Sampler,
    UniPC,
    integrate,
    log_snr_times,
    pad_times,
    sample,
    sample_keys,
)
from jaxdiff.config import keep_compiled, one_line_errors, set_up
from jaxdiff.guidance import CFG, Contrasted, Interval, Reuse, apply
from jaxdiff.methods import parse_guidance
from jaxdiff.networks import DeepCache, DiT, FirstBlock, TaylorSeer, UNet
from jaxdiff.networks.caching import FeatureCache
from jaxdiff.runs.prompts import rows_of_labels
from jaxdiff.sampling import sample_parallel
from jaxdiff.train import CheckpointError

MOST = 50  # evaluations
BASE = "DPM++(2M)"


@dataclasses.dataclass(frozen=True)
class Problem:
    """What every choice starts from."""

    denoise: NetworkDenoiser
    keys: Array
    x: Array
    cond: dict[str, Array] | None
    weight: float | None
    null: dict[str, Array] | None

    def guided(self, cache: FeatureCache | None = None, sequential: bool = False) -> Denoiser:
        """The denoiser, with guidance where the run has it."""
        inner = dataclasses.replace(self.denoise, cache=cache)
        if self.weight is None or self.null is None:
            return inner
        return ClassifierFree(inner, jnp.float32(self.weight), self.null, sequential)


@dataclasses.dataclass(frozen=True)
class Choice:
    """One point of the plot.

    Args:
      family, name, setting: what it is; ``name`` has one line in the plot.
      evaluations: of the denoiser one after the other, at most; of parallel steps, those that they stand for.
      draw: the images.
      alone: the name and evaluations of the choice without what this one adds; None: it adds nothing.
      count: iterations or evaluations of each image, if it counts them.
    """

    family: str
    name: str
    setting: str
    evaluations: int
    draw: Callable[[], Array]
    alone: tuple[str, int] | None = None
    count: Callable[[], Array] | None = None


@jax.jit
def drawn(sampler: Sampler, denoise: Denoiser, keys: Array, x: Array, ts: Array, steps: Array, cond: Any) -> Array:
    """`sample` on padded times: one program for all numbers of steps."""
    return sample(sampler, denoise, keys, x, ts, cond, num_steps=steps)


@jax.jit
def adapted(sampler: Adaptive, denoise: Denoiser, x: Array, ts: Array, cond: Any) -> tuple[Array, Array]:
    x, progress = integrate(sampler, denoise, None, x, ts, cond)
    return denoise(x, ts[-1], cond).x0, progress.evaluations + 1


@functools.partial(jax.jit, static_argnames="window")
def iterated(
    sampler: Sampler, denoise: Denoiser, x: Array, ts: Array, cond: Any, tolerance: Array, *, window: int
) -> tuple[Array, Array]:
    return sample_parallel(sampler, denoise, None, x, ts, cond, window=window, tolerance=tolerance)


def stepped(problem: Problem, sampler: Sampler, denoise: Denoiser, times: int) -> Callable[[], Array]:
    ts = pad_times(log_snr_times(sampler.process, times), MOST)
    return lambda: drawn(sampler, denoise, problem.keys, problem.x, ts, jnp.int32(times - 1), problem.cond)


def choices(problem: Problem, network: Any, quick: bool) -> Iterator[Choice]:
    """All that suit the run, the plain samplers first."""
    process, plain = problem.denoise.process, problem.guided()
    samplers = {BASE: DPMpp2M(process), "DDIM": DDIM(process), "UniPC": UniPC(process), "Heun": Heun(process, "angle")}
    budgets = (5, MOST) if quick else (5, 8, 10, 15, 20, 30, MOST)
    cached = (MOST,) if quick else (10, 20, MOST)
    for name, sampler in samplers.items():
        for budget in budgets:
            steps = (budget - 1) // 2 if name == "Heun" else budget - 1  # the last denoising is an evaluation too
            taken = 2 * steps + 1 if name == "Heun" else budget
            yield Choice("samplers", name, "", taken, stepped(problem, sampler, plain, steps + 1))

    base = samplers[BASE]
    for name, setting, cache in caches(network, quick):
        for budget in cached:
            draw = stepped(problem, base, problem.guided(cache), budget)
            yield Choice("features", name, setting, budget, draw, (BASE, budget))

    guided = problem.guided()
    if isinstance(guided, Contrasted):
        ways: list[tuple[str, str, list[Any]]] = [
            ("null branch reused", f"every {k}", [Reuse(jnp.int32(k))]) for k in ((2,) if quick else (2, 3, 5))
        ]
        for low, high in ((0.3, 5.0),) if quick else ((0.1, 20.0), (0.3, 5.0)):
            limit = Interval(jnp.float32(low), jnp.float32(high))
            ways.append(("limited guidance", f"{low:g} to {high:g}", [limit]))
        ways.append(("limited and reused", "0.3 to 5, every 2", [Reuse(jnp.int32(2)), limit]))
        for name, setting, elements in ways:
            for budget in cached:
                limited = apply([lambda _: guided, *elements], guided.plain, process, guided.null)
                draw = stepped(problem, base, limited, budget)
                yield Choice("guidance", name, setting, budget, draw, (BASE, budget))

    grid = log_snr_times(process, MOST)
    for window in (16,) if quick else (8, 16, MOST - 1):
        for tolerance in (1e-2,) if quick else (1e-3, 1e-2, 3e-2):
            iterate = functools.partial(
                iterated,
                DDIM(process),
                plain,
                problem.x,
                grid,
                problem.cond,
                jnp.float32(tolerance),
                window=window,
            )
            name, setting = f"DDIM, window {window}", f"tolerance {tolerance:g}"
            yield Choice("parallel", name, setting, MOST, first_of(iterate), ("DDIM", MOST), second_of(iterate))

    for tolerance in (1e-1,) if quick else (1e-3, 1e-2, 1e-1):
        method = Adaptive(process, rtol=jnp.float32(tolerance), atol=jnp.float32(tolerance))
        adapt = functools.partial(adapted, method, plain, problem.x, grid[jnp.array([0, -1])], problem.cond)
        setting, most = f"tolerance {tolerance:g}", int(adapt()[1].max())
        yield Choice("adaptive", "Adaptive", setting, most, first_of(adapt), None, second_of(adapt))


def first_of(pair: Callable[[], tuple[Array, Array]]) -> Callable[[], Array]:
    return lambda: pair()[0]


def second_of(pair: Callable[[], tuple[Array, Array]]) -> Callable[[], Array]:
    return lambda: pair()[1]


def caches(network: Any, quick: bool) -> Iterator[tuple[str, str, FeatureCache]]:
    """Name, setting and cache, of those that suit the network."""
    intervals = (3,) if quick else (2, 3, 5)
    if isinstance(network, UNet):
        level = network.blocks + 1  # of the outermost level's stages: all where there is one level
        for outer in (1,) if quick or len(network.multipliers) == 1 else (1, level):
            for every in intervals:
                yield f"DeepCache, {outer} outer", f"every {every}", DeepCache(jnp.int32(every), outer)
    if isinstance(network, DiT):
        for order in (1,) if quick else (0, 1, 2):
            for every in intervals:
                yield f"TaylorSeer, order {order}", f"every {every}", TaylorSeer(jnp.int32(every), order)
        for threshold in (0.1,) if quick else (0.03, 0.1, 0.2):
            if network.depth > 1:
                cache = FirstBlock(jnp.float32(threshold), together=True)
                yield "first block, as one", f"threshold {threshold:g}", cache


def problem_of(run: Run, num: int, guidance: float | None, seed: int) -> Problem:
    labels, _ = rows_of_labels(run.num_classes, num)
    cond = None if labels is None else {name: jnp.asarray(value) for name, value in labels.items()}
    usual: list[Any] = [each.weight for each in parse_guidance(run.config.sample.guide) if isinstance(each, CFG)]
    weight = guidance if guidance is not None else usual[0] if usual else None
    guided = weight is not None and cond is not None and run.config.loss.dropout.get("label", 0) > 0
    keys = sample_keys(jax.random.key(seed), 0, num)
    x = run.process.prior_sample(keys, run.shape, log_snr_times(run.process, 2)[0])
    null = {"label": jnp.int32(run.num_classes)} if guided and run.num_classes is not None else None
    return Problem(run.denoise, keys, x, cond, weight if guided else None, null)


def rms(difference: Array) -> float:
    return float(jnp.sqrt(jnp.mean(jnp.square(difference))))


def timed(draws: Sequence[Callable[[], Array]], turns: int) -> np.ndarray:
    """Seconds, ``(turns, choices)``; each turn begins at another choice."""
    taken = np.zeros((turns, len(draws)))
    for turn in range(turns):
        for place in range(len(draws)):
            which = (place + turn * 7) % len(draws)
            begin = time.perf_counter()
            jax.block_until_ready(draws[which]())
            taken[turn, which] = time.perf_counter() - begin
    return taken


def measure(run: Run, options: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    problem = problem_of(run, options.num, options.guidance, options.seed)
    say(f"reference: DPM++(3M), {options.reference} evaluations")
    ts = log_snr_times(run.process, options.reference)
    reference = drawn(
        DPMpp3M(run.process), problem.guided(), problem.keys, problem.x, ts, jnp.int32(len(ts) - 1), problem.cond
    )
    found, images = [], {}
    for choice in choices(problem, run.config.network, options.quick):
        say(f"{choice.name} {choice.setting}, {choice.evaluations} evaluations")
        image = images[choice.name, choice.evaluations] = jax.block_until_ready(choice.draw())
        if not bool(jnp.isfinite(image).all()):
            raise FloatingPointError(f"{choice.name} {choice.setting}: images are not finite")
        alone = None if choice.alone is None else rms(image - images[choice.alone])
        found.append((choice, rms(image - reference), alone))
    say(f"timing {len(found)} choices, {options.turns} turns")
    taken = timed([choice.draw for choice, _, _ in found], options.turns)
    base = next(i for i, (c, _, _) in enumerate(found) if (c.name, c.evaluations) == (BASE, MOST))
    rows = []
    for i, (choice, error, alone) in enumerate(found):
        low, middle, high = np.percentile(taken[:, i] / taken[:, base], [25, 50, 75])
        rows.append(
            {
                "family": choice.family,
                "name": choice.name,
                "setting": choice.setting,
                "evaluations": choice.evaluations,
                "time": {"quartile_1": low, "median": middle, "quartile_3": high},
                "error": error,
                "alone": alone,
                "iterations": None if choice.count is None else float(choice.count().mean()),
            }
        )
    details = {
        "run": run.config.name,
        "step": run.step,
        "network": type(run.config.network).__name__,
        "num": options.num,
        "guidance": problem.weight,
        "reference": options.reference,
        "turns": options.turns,
        "quick": options.quick,
        "base_seconds": float(np.median(taken[:, base])),
    }
    return rows, details


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| choice | setting | evaluations | time | quartiles | error | alone | iterations |",
        "| --- | --- | ---: | ---: | --- | ---: | ---: | ---: |",
    ]
    for row in rows:
        span, alone, iterations = row["time"], row["alone"], row["iterations"]
        lines.append(
            f"| {row['name']} | {row['setting']} | {row['evaluations']} | {span['median']:.3f} | "
            f"{span['quartile_1']:.3f} to {span['quartile_3']:.3f} | {row['error']:.4f} | "
            f"{'' if alone is None else f'{alone:.4f}'} | {'' if iterations is None else f'{iterations:.1f}'} |"
        )
    return "\n".join(lines)


def plot(rows: Sequence[dict[str, Any]], title: str, file: Path) -> None:
    """Error against time, a colour a name."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 6))
    marks = {"samplers": "o", "features": "s", "guidance": "^", "parallel": "D", "adaptive": "*"}
    for place, name in enumerate(dict.fromkeys(row["name"] for row in rows)):
        mine = [row for row in rows if row["name"] == name]
        by_setting = mine[0]["family"] in ("features", "guidance")  # each over numbers of evaluations
        for setting in dict.fromkeys(row["setting"] for row in mine) if by_setting else [None]:
            line = sorted((r["time"]["median"], r["error"]) for r in mine if setting in (None, r["setting"]))
            axes.plot(
                *zip(*line, strict=True),
                marks[mine[0]["family"]],
                color=plt.get_cmap("tab20")(place % 20),
                linestyle=":" if by_setting else "-",
                label=name if setting in (None, mine[0]["setting"]) else None,
            )
    axes.set(
        xscale="log", yscale="log", xlabel=f"time over {BASE} at {MOST} evaluations", ylabel="RMS error", title=title
    )
    axes.grid(which="both", alpha=0.3)
    axes.legend(fontsize=7)
    figure.savefig(file, dpi=130, bbox_inches="tight")
    plt.close(figure)
    print(f"plotted in {file}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Speed against error of what makes sampling faster.")
    parser.add_argument("run", type=Path, help="folder of a trained run")
    parser.add_argument("--num", type=int, default=20, help="images, one batch")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--guidance", type=float, default=None, help="weight; by default the run's own")
    parser.add_argument("--reference", type=int, default=400, help="evaluations of the reference")
    parser.add_argument("--turns", type=int, default=9, help="timings of each choice")
    parser.add_argument("--quick", action="store_true", help="see that it runs; the figures mean nothing")
    parser.add_argument("--out", type=Path, default=None, help="JSON file for the results")
    parser.add_argument("--plot", type=Path, default=None, help="picture")
    parser.add_argument("--page", type=Path, default=None, help='page with the marks of "speed against error"')
    options = parser.parse_args(arguments)
    if min(options.num, options.turns, options.reference - 1) < 1:
        parser.error("num and turns are to be at least 1, reference at least 2")
    if options.quick:
        options.num, options.turns, options.reference = 2, 1, MOST + 10
    if arguments is None:
        set_up([])
    keep_compiled()
    with one_line_errors("speed_vs_error.py", CheckpointError):
        run = Run.load(options.run)
    rows, details = measure(run, options)
    guidance = "without guidance" if details["guidance"] is None else f"guidance {details['guidance']:g}"
    about = f"{details['run']} at step {run.step}, {guidance}, {options.num} images at once"
    text = f"{about}; time over that of {BASE} at {MOST} evaluations, {details['base_seconds']:.3g} s.\n\n{table(rows)}"
    print(f"\n{text}")
    if options.plot is not None:
        plot(rows, about, options.plot)
    if options.page is not None:
        page = options.page.read_text(encoding="utf-8")
        options.page.write_text(fill(page, "speed against error", text), encoding="utf-8")
    if options.out is not None:
        write(options.out, {**details, "rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
