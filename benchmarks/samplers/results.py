"""What `benchmarks/samplers_vs_diffusers.py` found: its rows, the picture, the tables of the page."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import say


@dataclasses.dataclass(frozen=True)
class Row:
    """One cell: a problem, a process, a budget.

    Args:
      problem, process, budget: which.
      jaxdiff: error of the recommended sampler.
      plain: of UniPC-3 on the same grid, not told the data's width.
      own, shared: diffusers' least error on its own grids and on jaxdiff's, and by which scheduler.
    """

    problem: str
    process: str
    budget: int
    jaxdiff: float
    plain: float
    own: tuple[float, str]
    shared: tuple[float, str]

    @property
    def ratio(self) -> float:
        return self.jaxdiff / min(self.own[0], self.shared[0])


def shown(row: Row) -> str:
    """A line of the table.

    >>> shown(Row("digits", "VP", 5, 0.1, 0.3, (0.2, "DDIM() on karras"), (float("inf"), "none")))
    'digits    VP       5   0.1000     0.3000     0.2000        inf   0.50   DDIM() on karras'
    """
    name = min(row.own, row.shared)[1]
    values = "  ".join(
        f"{value:9.4g}" if value < 1e-3 else f"{value:9.4f}"
        for value in (row.jaxdiff, row.plain, row.own[0], row.shared[0])
    )
    return f"{row.problem:<9} {row.process:<5} {row.budget:>4}{values}  {row.ratio:5.2f}   {name}"


def plot(rows: Sequence[Row], everything: dict[str, Any], file: Path) -> None:
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


def _number(value: float) -> str:
    """
    >>> _number(0.01234), _number(0.000123)
    ('0.0123', '1.2e-04')
    """
    return f"{value:.1e}" if value < 1e-3 else f"{value:.4f}"


def rows_table(rows: Sequence[Row]) -> str:
    """A line for each problem and budget: jaxdiff's largest error over the processes, diffusers' least on each."""
    lines = [
        "| problem | evaluations | jaxdiff | without the width | diffusers' best: VP | EDM | flow | largest ratio "
        "| the best of theirs |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for problem, budget in dict.fromkeys((row.problem, row.budget) for row in rows):
        cells = {row.process: row for row in rows if (row.problem, row.budget) == (problem, budget)}
        mine, plain = (max(getattr(row, name) for row in cells.values()) for name in ("jaxdiff", "plain"))
        theirs = {name: min(row.own, row.shared) for name, row in cells.items()}
        numbers = " | ".join(_number(theirs[name][0]) for name in ("VP", "EDM", "Flow"))
        ratio = max(row.ratio for row in cells.values())
        lines.append(
            f"| {problem} | {budget} | {_number(mine)} | {_number(plain)} | {numbers} | {ratio:.2f} "
            f"| {min(theirs.values())[1]} |"
        )
    return "\n".join(lines)


def twins_table(pairs: Sequence[Mapping[str, Any]]) -> str:
    """A line for each shared method: its largest ratio, and that to the twin with its fault mended."""
    lines = [
        "| method | largest ratio | at | the twin's fault | largest ratio, fault mended |",
        "|---|---|---|---|---|",
    ]
    for method in dict.fromkeys(pair["method"] for pair in pairs):
        some = [pair for pair in pairs if pair["method"] == method]
        most = max(some, key=lambda pair: pair["ratio"])
        fault = most["fault"]
        mended = "" if fault is None else f"{max(pair['ratio_mended'] for pair in some):.3f}"
        lines.append(
            f"| {method} | {most['ratio']:.3f} | {most['problem']}, {most['budget']} evaluations "
            f"| {'' if fault is None else f'`{fault}`'} | {mended} |"
        )
    return "\n".join(lines)
