"""jaxdiff's samplers side by side with diffusers' schedulers, on exact denoisers.

    python benchmarks/samplers_vs_diffusers.py --test --data DIR --out results.json --plot samplers.png

in an environment with jaxdiff, torch 2.13, diffusers 0.42, scipy and matplotlib. Three problems (a 2-D mixture,
smoothed digits, 5,000 smoothed CIFAR-10 images from DIR: `samplers/problems.py`), three processes (VP, variance
exploding as EDM's, flow), budgets of 5 to 100 evaluations. Both libraries call the same float32 denoiser from the same
noise at sigma/alpha = 80; the error is the mean over samples of the RMS difference to the probability flow's solution
in float64, in x/alpha.

- *Recommended.* `jaxdiff.sampling.recommended`, one sampler and one grid a budget for every problem and process,
  against the best of all deterministic schedulers with all their options, on their own grids and on jaxdiff's. The
  recommended grids were fixed on the ``--dev`` problems; ``--test`` has other mixtures, images and noise. diffusers'
  best is chosen with the test's own answers in hand.
- *Twins.* Each shared method on the same grid, as a ratio, and where the twin has a fault, the ratio to the twin with
  it mended too (`samplers/twins.py`).

On CIFAR-10 only the schedulers that do best on 1,000 of its images are tried, `SCREENED` a budget and process;
``--full`` tries all. ``--quick`` is for a look: few budgets, no CIFAR-10.

Exits with 1 when a recommended sampler is not below diffusers' best, or a twin's ratio is above 1.02, also
once its fault is mended.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from benchmarks.report import fill, say, write
from benchmarks.samplers.candidates import on_grid, own_grids
from benchmarks.samplers.problems import KINDS, WIDTH, Problem, load, scaled_space
from benchmarks.samplers.results import Row, plot, rows_table, shown, twins_table
from benchmarks.samplers.schedulers import Candidate, quiet, sampled
from benchmarks.samplers.twins import twins
from jaxdiff import VP, Flow, Process, integrate, sample
from jaxdiff.sampling.base import pad_times
from jaxdiff.sampling.recommended import recommended, recommended_times
from jaxdiff.sampling.unipc import UniPC

BUDGETS = (5, 8, 10, 15, 20, 50, 100)
PROCESSES: dict[str, Process] = {"VP": VP(), "EDM": scaled_space(), "Flow": Flow()}
UNSEEN = {budget: 4000 if budget < 50 else 5000 for budget in BUDGETS}
"""Seeds of the test problems: for each budget one that was not looked at before its last choice was made. On 2000 and
3000 the tests of earlier tables were seen, on 4000 that of an earlier grid of 50 points."""
SCREENED = 12
TWIN_BOUND = 1.02
PACKAGES = ("jax", "torch", "diffusers", "numpy", "scipy")


@jax.jit
def _run(sampler: Any, wide: Any, x: jax.Array, ts: jax.Array, steps: int) -> jax.Array:
    return integrate(sampler, wide, None, x, ts, num_steps=steps)[0]


def ours(problem: Problem, process: Process, budget: int) -> float:
    """The recommended sampler's error."""
    sampler, wide, ts = recommended(process, problem.build(process, jnp.float32), budget, WIDTH)
    x = (process.sigma(ts[0]) * problem.noise).astype(jnp.float32)
    return problem.error(np.asarray(_run(sampler, wide, x, pad_times(ts, max(BUDGETS) + 1), len(ts) - 1)))


@jax.jit
def _run_plain(sampler: Any, exact: Any, x: jax.Array, ts: jax.Array, steps: int) -> jax.Array:
    return sample(sampler, exact, None, x, ts, num_steps=steps)


def plain(problem: Problem, process: Process, budget: int) -> float:
    """The error of UniPC-3 on the recommended grid, not told the width; its last evaluation is the last denoising."""
    ts = recommended_times(process, budget)[:-1]
    x = (process.sigma(ts[0]) * problem.noise).astype(jnp.float32)
    exact = problem.build(process, jnp.float32)
    return problem.error(
        np.asarray(_run_plain(UniPC(process, order=3), exact, x, pad_times(ts, max(BUDGETS) + 1), len(ts) - 1))
    )


def ratios(budget: int) -> NDArray[np.float64]:
    """The recommended grid in sigma/alpha, without its end."""
    process = scaled_space()
    return np.asarray(process.sigma(recommended_times(process, budget)[:-1]), np.float64)


def theirs(problem: Problem, candidates: Sequence[Candidate], budget: int) -> Iterator[tuple[float, Candidate]]:
    """Errors of candidates at a budget, those that fail or give no numbers left out."""
    exact = problem.denoise()
    calls = 0

    def counted(y: Any, rho: float) -> Any:
        nonlocal calls
        calls += 1
        return exact(y, rho)

    z = problem.noise.reshape(len(problem.noise), -1).astype(np.float32)
    for candidate in candidates:
        calls = 0
        try:
            x, evaluations = sampled(candidate, counted, z, budget)
        except RuntimeError as error:  # a singular matrix in UniPC
            say(f"{candidate.name} failed at {budget} evaluations: {error}")
            continue
        if calls != evaluations or evaluations > budget:
            raise AssertionError(f"{candidate.name} made {calls} evaluations of {budget}")
        if x is not None and np.isfinite(x).all():
            yield problem.error(x), candidate


def best(found: Sequence[tuple[float, Candidate]], process: str, own: bool) -> tuple[float, str]:
    """The least error of a process."""
    some = [(e, c.name) for e, c in found if c.process == process and (c.rhos is None) == own]
    return min(some, default=(float("inf"), "none"))


def compare(problem: Problem, budget: int, pool: Sequence[Candidate]) -> tuple[list[Row], list[tuple[float, str]]]:
    """The rows of a budget, and every error for the JSON."""
    found = list(theirs(problem, pool, budget))
    rows = []
    for name, process in PROCESSES.items():
        row = Row(
            problem.name,
            name,
            budget,
            ours(problem, process, budget),
            plain(problem, process, budget),
            best(found, name, True),
            best(found, name, False),
        )
        say(shown(row))
        rows.append(row)
    return rows, sorted((e, f"{c.process}: {c.name}") for e, c in found)


def pool(problem: Problem, screen: Problem | None, budget: int) -> list[Candidate]:
    """The schedulers to try: all, or those that do best on the problem ``screen``."""
    candidates = [*own_grids(), *on_grid(ratios(budget))]
    if screen is None:
        return candidates
    found = sorted(theirs(screen, candidates, budget), key=lambda pair: pair[0])
    chosen: list[Candidate] = []
    for process in PROCESSES:
        for own in (True, False):
            some = [c for _, c in found if c.process == process and (c.rhos is None) == own]
            chosen += some[: SCREENED if own else SCREENED // 2]
    return chosen


def compare_twins(problem: Problem, budgets: Sequence[int]) -> list[dict[str, Any]]:
    """Every shared method at every budget it can be had at."""
    exact, z = problem.denoise(), problem.noise.reshape(len(problem.noise), -1).astype(np.float32)
    lines = []
    for twin in twins():
        for budget in budgets:
            grids = twin.grids(budget)
            if grids is None:
                continue
            x, _ = sampled(twin.candidate(grids[1]), exact, z, budget)
            if x is None:
                continue
            mine, other = twin.error(problem, budget), problem.error(x)
            line = {"problem": problem.name, "method": twin.name, "budget": budget, "jaxdiff": mine, "diffusers": other}
            line |= {"ratio": mine / other, "fault": None if twin.mend is None else twin.mend.__name__}
            if twin.mend is not None:
                mended, _ = sampled(twin.candidate(grids[1]), exact, z, budget, twin.mend)
                assert mended is not None  # the bare one was not
                line["ratio_mended"] = mine / problem.error(mended)
            lines.append(line)
        done = [line for line in lines if line["method"] == twin.name]
        say(f"{problem.name:<9} {twin.name:<18}" + "  ".join(f"{line['budget']}: {line['ratio']:.3f}" for line in done))
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--dev", action="store_true", help="the problems that the recommendation was fixed on")
    which.add_argument("--test", action="store_true", help="the problems it is judged by")
    parser.add_argument("--data", type=Path, default=None, help="folder of CIFAR-10's Parquet files")
    parser.add_argument("--problems", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--budgets", nargs="+", type=int, choices=BUDGETS, default=list(BUDGETS))
    parser.add_argument("--quick", action="store_true", help="mixture and digits at 5, 10 and 20 evaluations")
    parser.add_argument("--full", action="store_true", help="try every scheduler on CIFAR-10 too")
    parser.add_argument("--twins", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--cache", type=Path, default=Path(".cache/samplers"), help="folder for reference solutions")
    parser.add_argument("--out", type=Path, default=None, help="JSON file for the results")
    parser.add_argument("--plot", type=Path, default=None, help="PNG file")
    parser.add_argument("--page", type=Path, default=None, help="Markdown file whose marked parts get the tables")
    options = parser.parse_args(arguments)
    if options.quick:
        options.problems, options.budgets = ["mixture", "digits"], [5, 10, 20]
    quiet()

    rows: list[Row] = []
    everything: dict[str, Any] = {}
    pairs: list[dict[str, Any]] = []
    for kind in options.problems:
        screened = kind == "cifar10" and not options.full
        for budget in options.budgets:
            take = functools.partial(load, kind, options.test, options.data, options.cache, unseen=UNSEEN[budget])
            problem, screen = take(), take(screen=True) if screened else None
            more, errors = compare(problem, budget, pool(problem, screen, budget))
            rows += more
            everything[f"{problem.name} {budget}"] = errors
        if options.twins and kind != "cifar10":
            pairs += compare_twins(problem, options.budgets)

    print(f"{'problem':<9} {'proc.':<5} {'n':>4}    jaxdiff  their grid   our grid  ratio   diffusers' best")
    print("\n".join(shown(row) for row in rows))
    lost = [f"{row.problem} {row.process} {row.budget}" for row in rows if not row.ratio < 1]
    over = [
        f"{p['problem']} {p['method']} {p['budget']} ({p['ratio']:.3f})" for p in pairs if not p["ratio"] <= TWIN_BOUND
    ]
    wrong = [
        f"{p['problem']} {p['method']} {p['budget']} ({p['ratio']:.3f}, {p.get('ratio_mended', p['ratio']):.3f})"
        for p in pairs
        if not p["ratio"] <= TWIN_BOUND and not p.get("ratio_mended", p["ratio"]) <= TWIN_BOUND
    ]
    print(f"\nnot below diffusers' best: {', '.join(lost) or 'none'}")
    print(f"above {TWIN_BOUND} times the twin: {', '.join(over) or 'none'}")
    print(f"and no fault of the twin's explains it (the ratio, mended): {', '.join(wrong) or 'none'}")
    if options.out is not None:
        record = {
            "problems": "test" if options.test else "dev",
            "rows": [dataclasses.asdict(row) | {"ratio": row.ratio} for row in rows],
            "twins": pairs,
            "diffusers": everything,
            "grids": {budget: ratios(budget).tolist() for budget in options.budgets},
        }
        write(options.out, record, PACKAGES)
    if options.plot is not None:
        plot(rows, everything, options.plot)
    if options.page is not None:
        page = options.page.read_text(encoding="utf-8")
        page = fill(fill(page, "results", rows_table(rows)), "twins", twins_table(pairs))
        options.page.write_text(page, encoding="utf-8")
        say(f"tables written into {options.page}")
    return 1 if lost or wrong else 0


if __name__ == "__main__":
    sys.exit(main())
