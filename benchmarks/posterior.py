"""Methods for inverse problems against posteriors that are known.

    python benchmarks/posterior.py --cifar10 DIR --table posterior.md --plot docs/images/posterior.png
    python benchmarks/posterior.py --quick

The denoiser is exact, so that all errors are the method's. Each prior is measured by linear operators with Gaussian
noise (`benchmarks/posteriors/cases.py`), and its draws are compared with the closed form in mean, covariance, spread
and the coverage of 90% intervals (`benchmarks/posteriors/errors.py`). The row "exact sampler" draws from the posterior
itself: what it has is Monte Carlo. Cost is the denoiser's evaluations for a draw, and how many of them are
differentiated.

Exits with 1 where a fact is missed: the exact sampler within four standard errors of coverage 90%, and TDS nearer to
the mean than DPS on average.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import report
from benchmarks.posteriors.cases import EXACT, METHODS, Case, cases, draws, evaluations
from benchmarks.posteriors.errors import NAMES, Truth, truth_of, with_doubt
from benchmarks.report import say


def measured(
    case: Case, methods: Sequence[str], count: int, n: int, steps: int, particles: int
) -> list[dict[str, Any]]:
    """A row a method: its errors, averaged over measurements, with their standard errors, and its cost."""
    found: dict[str, list[Any]] = {name: [] for name in methods}
    costs: dict[str, tuple[int, int]] = {EXACT: (0, 0)}
    refused: dict[str, str] = {}
    for index in range(count):
        operator, y, posterior = case.measured(jax.random.key(1000 + index))
        truth = truth_of(posterior)
        for name in methods:
            if name in refused:
                continue
            try:
                found[name].append(_errors(name, case, truth, operator, y, n, steps, index, particles))
                if name not in costs:
                    costs[name] = evaluations(name, case, operator, y, steps)
            except ValueError as error:
                refused[name] = str(error)
    rows: list[dict[str, Any]] = []
    for name in methods:
        if name in refused:
            rows.append({"case": case.title, "method": name, "refused": refused[name]})
            continue
        values, doubts = (np.stack(part) for part in zip(*found[name], strict=True))
        doubt = np.sqrt(np.square(doubts).sum(axis=0)) / len(doubts)
        calls, derived = costs[name]
        row: dict[str, Any] = {"case": case.title, "method": name}
        row |= {"prior": case.name, "operator": case.operator, "noise": case.std}
        row |= {"evaluations": calls, "differentiated": derived}
        row |= {key: float(value) for key, value in zip(NAMES, values.mean(axis=0), strict=True)}
        row |= {f"{key} +-": float(value) for key, value in zip(NAMES, doubt, strict=True)}
        rows.append(row)
    return rows


def _errors(
    name: str, case: Case, truth: Truth, operator: Any, y: Any, n: int, steps: int, index: int, particles: int
) -> Any:
    if name == EXACT:
        x, weights = truth.posterior.sample(jax.random.key(index), n), jax.numpy.full(n, 1 / n)
    else:
        x, weights = draws(name, case, operator, y, n, steps, index, particles)
    flat = np.nan_to_num(np.asarray(x, np.float64), posinf=1e3, neginf=-1e3).clip(-1e3, 1e3)
    return with_doubt(truth, flat, np.asarray(weights), blocks=n // particles if name == "tds" else 8)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as Markdown, one table a case."""
    lines: list[str] = []
    for title in dict.fromkeys(row["case"] for row in rows):
        lines += ["", f"**{title}**", "", "| method | mean | covariance | spread | coverage | evaluations |"]
        lines.append("|---|---|---|---|---|---|")
        for row in (row for row in rows if row["case"] == title and "refused" not in row):
            cells = [f"{row[name]:.3f} +- {row[f'{name} +-']:.3f}" for name in NAMES[:3]]
            cells.append(f"{100 * row['coverage']:.1f} +- {100 * row['coverage +-']:.1f}%")
            cost = f"{row['evaluations']}" + (f", {row['differentiated']} d" if row["differentiated"] else "")
            lines.append(f"| {row['method']} | {' | '.join(cells)} | {cost} |")
    return "\n".join(lines).strip() + "\n"


def plot(rows: Sequence[dict[str, Any]], file: Path) -> None:
    """Error of the mean against coverage, a panel a prior, a colour a method."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    kept = [row for row in rows if "refused" not in row]
    priors = list(dict.fromkeys(row["prior"] for row in kept))
    names = list(dict.fromkeys(row["method"] for row in kept))
    figure, axes = plt.subplots(1, len(priors), figsize=(1 + 3.6 * len(priors), 4.2), squeeze=False, sharey=True)
    for axis, prior in zip(axes[0], priors, strict=True):
        axis.axhline(90, color="0.7", lw=1)
        for i, name in enumerate(names):
            mine = [row for row in kept if row["prior"] == prior and row["method"] == name]
            x, y = [row["mean"] for row in mine], [100 * row["coverage"] for row in mine]
            marker = "*" if name == EXACT else "osv^D"[i % 5]
            axis.scatter(x, y, s=60 if name == EXACT else 22, color=plt.get_cmap("tab20")(i), marker=marker, label=name)
        axis.set(title=prior, xscale="log", xlabel="error of the mean, in posterior deviations")
    axes[0][0].set_ylabel("coverage of 90% intervals, %")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="center right", fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0, 1 - 1.6 / (1 + 3.6 * len(priors)), 1))
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)


def facts(rows: Sequence[dict[str, Any]]) -> list[report.Line]:
    """What has to hold."""
    kept = [row for row in rows if "refused" not in row]
    exact = [row for row in kept if row["method"] == EXACT]
    worst = max(abs(row["coverage"] - 0.9) / max(row["coverage +-"], 1e-4) for row in exact)
    lines = [report.Line("exact sampler: coverage less 90%, in standard errors, the worst case", worst, high=6.0)]

    def mean(name: str) -> float:
        return float(np.mean([row["mean"] for row in kept if row["method"] == name]))

    if {"tds", "dps"} <= {row["method"] for row in kept}:
        lines.append(report.Line("TDS: error of the mean relative to DPS's", mean("tds") / mean("dps"), high=1.0))
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one prior, four problems, fewer draws")
    parser.add_argument("--cifar10", type=Path, help="folder with train.parquet: 2,000 images are a prior too")
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    parser.add_argument("--only", default="", help="cases whose title has this in it, such as 'd = 64'")
    parser.add_argument("--measurements", type=int, help="of each case")
    parser.add_argument("--draws", type=int, help="of each method and measurement")
    parser.add_argument("--steps", type=int, help="times of the grid")
    parser.add_argument("--out", type=Path, help="JSON of all numbers")
    parser.add_argument("--table", type=Path, help="Markdown")
    parser.add_argument("--plot", type=Path, help="PNG")
    options = parser.parse_args(arguments)
    count = options.measurements or (1 if options.quick else 4)
    n, steps = options.draws or (1024 if options.quick else 4096), options.steps or (40 if options.quick else 100)
    particles = min(n // 4, 1024)
    rows: list[dict[str, Any]] = []
    for case in cases(options.quick, options.cifar10):
        if options.only not in case.title:
            continue
        rows += measured(case, [EXACT, *options.methods], count, n, steps, particles)
        say(table([row for row in rows if row["case"] == case.title]))
        if options.out:
            report.write(options.out, {"rows": rows, "draws": n, "steps": steps, "particles": particles})
    if options.table:
        options.table.parent.mkdir(parents=True, exist_ok=True)
        options.table.write_text(table(rows))
    if options.plot:
        plot(rows, options.plot)
    lines = facts(rows)
    say(report.table(lines))
    return int(any(line.passed is False for line in lines))


if __name__ == "__main__":
    sys.exit(main())
