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
- *Twins.* Each shared method on the same grid, as a ratio (`samplers/twins.py`).

On CIFAR-10 only the schedulers that do best on 1,000 of its images are tried, `SCREENED` a budget and process;
``--full`` tries all. ``--quick`` is for a look: few budgets, no CIFAR-10.

Exits with 1 when a recommended sampler is not below diffusers' best, or a twin's ratio is above 1.02 and no fault of
the twin's explains it.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from benchmarks.report import say, write
from benchmarks.samplers.problems import KINDS, WIDTH, Problem, load, scaled_space
from benchmarks.samplers.schedulers import Candidate, on_grid, own_grids, quiet, sampled
from benchmarks.samplers.twins import twins
from jaxdiff import VP, Flow, Process, integrate
from jaxdiff.sampling.base import pad_times
from jaxdiff.sampling.recommended import recommended, recommended_times

BUDGETS = (5, 8, 10, 15, 20, 50, 100)
PROCESSES: dict[str, Process] = {"VP": VP(), "EDM": scaled_space(), "Flow": Flow()}
SCREENED = 12
TWIN_BOUND = 1.02
PACKAGES = ("jax", "torch", "diffusers", "numpy", "scipy")


@dataclasses.dataclass(frozen=True)
class Row:
    """One cell: a problem, a process, a budget."""

    problem: str
    process: str
    budget: int
    jaxdiff: float
    own: tuple[float, str]
    shared: tuple[float, str]

    @property
    def ratio(self) -> float:
        return self.jaxdiff / min(self.own[0], self.shared[0])


@jax.jit
def _run(sampler: Any, wide: Any, x: jax.Array, ts: jax.Array, steps: int) -> jax.Array:
    return integrate(sampler, wide, None, x, ts, num_steps=steps)[0]


def ours(problem: Problem, process: Process, budget: int) -> float:
    """The recommended sampler's error."""
    sampler, wide, ts = recommended(process, problem.build(process, jnp.float32), budget, WIDTH)
    x = (process.sigma(ts[0]) * problem.noise).astype(jnp.float32)
    return problem.error(np.asarray(_run(sampler, wide, x, pad_times(ts, max(BUDGETS) + 1), len(ts) - 1)))


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
            best(found, name, True),
            best(found, name, False),
        )
        say(shown(row))
        rows.append(row)
    return rows, sorted((e, f"{c.process}: {c.name}") for e, c in found)


def shown(row: Row) -> str:
    """A line of the table.

    >>> shown(Row("digits", "VP", 5, 0.1, (0.2, "DDIM() on karras"), (0.4, "none")))
    'digits    VP       5   0.1000     0.2000     0.4000   0.50   DDIM() on karras'
    """
    name = min(row.own, row.shared)[1]
    values = "  ".join(
        f"{value:9.4g}" if value < 1e-3 else f"{value:9.4f}" for value in (row.jaxdiff, row.own[0], row.shared[0])
    )
    return f"{row.problem:<9} {row.process:<5} {row.budget:>4}{values}  {row.ratio:5.2f}   {name}"


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
            lines.append(line | {"ratio": mine / other, "fault": twin.fault})
        done = [line for line in lines if line["method"] == twin.name]
        say(f"{problem.name:<9} {twin.name:<18}" + "  ".join(f"{line['budget']}: {line['ratio']:.3f}" for line in done))
    return lines


def plot(rows: Sequence[Row], everything: dict[str, Any], file: Path, test: bool) -> None:
    """One panel a problem: error against evaluations."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(row.problem for row in rows))
    figure, axes = plt.subplots(
        1, len(names), figsize=(4.0 * len(names), 3.9), layout="constrained", dpi=110, squeeze=False
    )
    known = {
        "EDM: EulerDiscrete() on karras, wide chain": ("Euler, Karras", ":"),
        "EDM: HeunDiscrete() on karras, wide chain": ("Heun, Karras", "-."),
        "VP: DPMSolverMultistep(solver_order=2, solver_type=midpoint, lower_order_final=True) on karras, wide chain":
            ("DPM++ 2M, Karras", "--"),
        "VP: UniPCMultistep(solver_order=3, solver_type=bh2) on karras, wide chain":
            ("UniPC-3, Karras", (0, (5, 1, 1, 1))),
    }  # fmt: skip
    for axis, name in zip(axes[0], names, strict=True):
        budgets = sorted({row.budget for row in rows if row.problem == name})
        for key, (label, style) in known.items():
            line = [{n: e for e, n in everything.get(f"{name} {b}", [])}.get(key) for b in budgets]
            if any(e is not None for e in line):
                axis.plot(budgets, [e or np.nan for e in line], ls=style, c="0.55", lw=1.2, label=f"diffusers {label}")
        cells = {b: [row for row in rows if row.problem == name and row.budget == b] for b in budgets}
        envelope = [min(min(r.own[0], r.shared[0]) for r in cells[b]) for b in budgets]
        axis.plot(budgets, envelope, "s-", c="tab:orange", ms=4, label="diffusers, best of all")
        worst = [max(r.jaxdiff for r in cells[b]) for b in budgets]
        axis.plot(budgets, worst, "o-", c="tab:blue", ms=4, label="jaxdiff recommended")
        axis.set(xscale="log", yscale="log", xlabel="evaluations", title=name)
        axis.set_xticks(budgets, [str(b) for b in budgets])
        axis.minorticks_off()
        axis.grid(alpha=0.25, which="major")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_ylabel("mean RMS error at sigma = 0")
    axes[0, 0].legend(frameon=False, fontsize=7)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)
    say(f"plot written to {file}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--dev", action="store_true", help="the problems that the recommendation was fixed on")
    which.add_argument("--test", action="store_true", help="the problems it is judged by")
    parser.add_argument("--data", type=Path, default=None, help="folder of CIFAR-10's Parquet files")
    parser.add_argument("--problems", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--budgets", nargs="+", type=int, default=list(BUDGETS))
    parser.add_argument("--quick", action="store_true", help="mixture and digits at 5, 10 and 20 evaluations")
    parser.add_argument("--full", action="store_true", help="try every scheduler on CIFAR-10 too")
    parser.add_argument("--twins", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--cache", type=Path, default=Path(".cache/samplers"), help="folder for reference solutions")
    parser.add_argument("--out", type=Path, default=None, help="JSON file for the results")
    parser.add_argument("--plot", type=Path, default=None, help="PNG file")
    options = parser.parse_args(arguments)
    if options.quick:
        options.problems, options.budgets = ["mixture", "digits"], [5, 10, 20]
    quiet()

    rows: list[Row] = []
    everything: dict[str, Any] = {}
    pairs: list[dict[str, Any]] = []
    for kind in options.problems:
        problem = load(kind, options.test, options.data, options.cache)
        screened = kind == "cifar10" and not options.full
        screen = load(kind, options.test, options.data, options.cache, screen=True) if screened else None
        for budget in options.budgets:
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
    wrong = [p for p in pairs if not p["ratio"] <= TWIN_BOUND and not p["fault"]]
    print(f"\nnot below diffusers' best: {', '.join(lost) or 'none'}")
    print(f"above {TWIN_BOUND} times the twin: {', '.join(over) or 'none'}")
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
        plot(rows, everything, options.plot, options.test)
    return 1 if lost or wrong else 0


if __name__ == "__main__":
    sys.exit(main())
