"""Orders of convergence of every sampler on every process, measured against closed forms in float64.

    python benchmarks/orders.py --out orders.json --plot docs/images/orders.png

What is measured is said in `samplers/order_measures.py`, of which methods in `samplers/order_rows.py`:

- *Deterministic* methods on a mixture's flow: from a history on the true path at least the theoretical order less 0.15;
  beside it the order from the method's own first steps, which is less for methods of order 3 and more.
- *Adaptive* ones by tolerance: the error against the evaluations that it took.
- *Stochastic* ones: the weak order on Gaussian data, propagated exactly, and the strong order along Brownian paths.

A discrete chain's log-alpha has a kink at each of its times, so methods that step or interpolate in t have no order on
it beyond the first; they are measured there and not judged. `DDIM`, methods in rho, log_rho, the angle and
the log-SNR do not see the kinks.

Exits with 1 when an order is missed. `--quick` is for a look: few methods on two processes, no strong orders. The file
after ``--out`` is written after each class of processes; ``--keep`` goes on from it.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import math
import multiprocessing
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import report
from benchmarks.report import say
from benchmarks.samplers.order_measures import measure, measure_adaptive, measure_strong, measure_weak
from benchmarks.samplers.order_rows import ADAPTIVE, QUICK, STOCHASTIC, deterministic
from tests.tables import PROCESSES

SLACK = 0.15
KINDS = ("deterministic", "adaptive", "weak", "strong")
Found = dict[str, dict[str, list[dict[str, Any]]]]
"""Process, kind: what was measured, a method a line."""


def alike(names: Sequence[str]) -> list[list[str]]:
    """Processes of one class together: their numbers are data, so they share compiled programs.

    >>> alike(["SigmoidVP", "VP", "SigmoidVP_skewed"])
    [['SigmoidVP', 'SigmoidVP_skewed'], ['VP']]
    """
    groups: dict[type, list[str]] = {}
    for name in names:
        groups.setdefault(type(PROCESSES[name]()), []).append(name)
    return list(groups.values())


def measure_processes(names: Sequence[str], quick: bool) -> Found:
    """Everything on some processes."""
    return {name: _measure_process(name, quick) for name in names}


def _measure_process(name: str, quick: bool) -> dict[str, list[dict[str, Any]]]:
    # Hundreds of small programs are compiled for few steps each: optimising them would take longer than running them.
    jax.config.update("jax_disable_most_optimizations", True)
    few = lambda rows: [row for row in rows if not quick or row.name in QUICK]  # noqa: E731
    begin, process = time.perf_counter(), PROCESSES[name]()
    with jax.enable_x64(True):
        found = {
            "deterministic": [measure(row, process) for row in few(deterministic())],
            "adaptive": [measure_adaptive(row, process) for row in few(ADAPTIVE)],
            "weak": [measure_weak(row, process) for row in few(STOCHASTIC)],
            "strong": [] if quick else measure_strong(STOCHASTIC, process),
        }
    say(f"{name}: {time.perf_counter() - begin:.0f} s")
    return found


def passed(line: dict[str, Any]) -> bool | None:
    """Whether a measured order is the theoretical one; None where it is not judged. (No slope above rounding: the
    method is exact there.)

    >>> passed({"order": 2, "slope": 1.9}), passed({"order": 2, "slope": 1.8}), passed({"order": 2, "slope": math.nan})
    (True, False, True)
    """
    if not line.get("judged", True):
        return None
    return math.isnan(line["slope"]) or line["slope"] >= line["order"] - SLACK


def by_method(found: Found, kind: str, families: dict[str, str] | None = None) -> dict[str, list[tuple[str, dict]]]:
    """Method (or family) to its lines, with the process of each."""
    lines: dict[str, list[tuple[str, dict]]] = {}
    for process, kinds in found.items():
        for line in kinds[kind]:
            name = line["name"] if families is None else families[line["name"]]
            lines.setdefault(name, []).append((process, line))
    return lines


def least(lines: Sequence[tuple[str, dict]], key: str) -> str:
    """The least slope, with its process."""
    slopes = [(line[key], process) for process, line in lines if not math.isnan(line[key])]
    return f"{min(slopes)[0]:.2f} ({min(slopes)[1]})" if slopes else "exact"


def verdict(lines: Sequence[tuple[str, dict]]) -> str:
    said = [passed(line) for _, line in lines]
    return "FAIL" if False in said else "pass" if True in said else ""


def tables(found: Found, short: bool) -> Iterator[str]:
    """Markdown: the worst of each method over the processes, or, ``short``, of each family of them."""
    families = {row.name: row.family for row in deterministic()} if short else None

    def last(cell: str) -> str:  # the page has no verdicts: one that fails is not written
        return "" if short else f" {cell} |"

    yield f"On {', '.join(found)}, with jax {jax.__version__}:\n"
    yield "| method | evaluations a step | order | least measured | order as started | least measured |" + last(
        "verdict"
    )
    yield "|---|---|---|---|---|---|" + last("---")
    for name, lines in by_method(found, "deterministic", families).items():
        judged = [(process, line) for process, line in lines if line["judged"]]
        each, line = sorted({line["evaluations_a_step"] for _, line in lines}), lines[0][1]
        evaluations = str(each[0]) if len(each) == 1 else f"{each[0]} to {each[-1]}"
        yield (
            f"| {name} | {evaluations} | {line['order']} | {least(judged, 'slope')} | {line['order_as_started']} | "
            f"{least(judged, 'slope_as_started')} |" + last(verdict(judged))
        )
    in_t = {
        name: [(process, line) for process, line in lines if not line["judged"]]
        for name, lines in by_method(found, "deterministic", families).items()
    }
    if any(in_t.values()):
        yield "\n| in t on a discrete chain | order elsewhere | least measured |\n|---|---|---|"
        yield from (
            f"| {name} | {lines[0][1]['order']} | {least(lines, 'slope')} |" for name, lines in in_t.items() if lines
        )
    if any(kinds["adaptive"] for kinds in found.values()):
        yield "\n| adaptive method | order | least measured | evaluations and error at tolerance 1e-4, 1e-7 |" + last(
            "verdict"
        )
        yield "|---|---|---|---|" + last("---")
    for name, lines in by_method(found, "adaptive").items():
        yield (
            f"| {name} | {lines[0][1]['order']} | {least(lines, 'slope')} | {_at(lines, 1e-4)}, {_at(lines, 1e-7)} |"
            + last(verdict(lines))
        )
    yield "\n| stochastic method | weak order | least measured | strong order | least measured |" + last("verdict")
    yield "|---|---|---|---|---|" + last("---")
    strong = by_method(found, "strong")
    for name, lines in by_method(found, "weak").items():
        judged, paths = ([(p, line) for p, line in some if line["judged"]] for some in (lines, strong.get(name, [])))
        yield (
            f"| {name} | {lines[0][1]['order']} | {least(judged, 'slope')} | {paths[0][1]['order'] if paths else ''} | "
            f"{least(paths, 'slope') if paths else ''} |" + last(verdict(judged + paths))
        )


def _at(lines: Sequence[tuple[str, dict]], tolerance: float) -> str:
    """Evaluations and error at a tolerance, the most over the processes."""
    nearest = lambda line: int(np.argmin(np.abs(np.log(np.array(line["tolerances"]) / tolerance))))  # noqa: E731
    places = [(line, nearest(line)) for _, line in lines]
    evaluations, error = (max(line[key][k] for line, k in places) for key in ("evaluations", "errors"))
    return f"{evaluations:.0f}, {error:.0e}"


def plot(found: Found, process: str, file: Path) -> None:
    """Log-log errors on one process, dotted lines of whole orders beneath."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    lines = {kind: {line["name"]: line for line in found[process][kind]} for kind in KINDS}
    figure, axes = plt.subplots(2, 2, figsize=(13, 8), layout="constrained", dpi=100)
    one_step = ["DDIM", "Heun(rho)", "DPMpp2S", "DPMSolver(3)", "RK4(angle)", "RungeKutta(dormand_prince)"]
    several = ["DPMpp2M", "DPMpp3M", "UniPC(3, B2)", "DEIS(3, log_rho)", "LMS(4)"]
    weak = ["DDPM", "EulerMaruyama", "ReverseDiffusion", "DPMppSDE", "DPMpp2MSDE", "SASolver"]
    strong = ["DDPM", "EulerMaruyama", "DPMppSDE", "DPMpp2MSDE", "DPMpp3MSDE", "SASolver"]
    panels = (
        ("One step: DDIM to Dormand-Prince", "deterministic", "seeded", one_step),
        ("Multistep: true history (solid), own start (dashed)", "deterministic", "seeded", several),
        ("Stochastic, weak: error of the variance", "weak", "variance", weak),
        ("Stochastic, strong: mean distance along Brownian paths", "strong", "errors", strong),
    )
    for axis, (title, kind, key, names) in zip(axes.flat, panels, strict=True):
        for number, name in enumerate(name for name in names if name in lines[kind]):
            line = lines[kind][name]
            label = f"{name}: {line['slope']:.2f}"
            if kind == "deterministic" and names is several:
                label += f", {line['slope_as_started']:.2f}"
                axis.plot(line["counts"], line["started"], "--", c=f"C{number}", lw=1.2)
            axis.plot(line["counts"], line[key], "o-", c=f"C{number}", ms=3.5, lw=1.4, label=label)
        axis.set(xscale="log", yscale="log", title=title, xlabel="steps")
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_xticks(line["counts"], [str(n) for n in line["counts"]])
        axis.set_xticks([], minor=True)
        axis.legend(frameon=False, fontsize=8, title="measured order", loc="upper left", bbox_to_anchor=(1.0, 1.0))
    for axis in axes[:, 0]:
        axis.set_ylabel("error")
    figure.suptitle(f"Errors against steps on {process}, float64")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)
    say(f"plot written to {file}")


def write(found: Found, file: Path, quick: bool) -> None:
    """The JSON."""
    record = {
        "quick": quick,
        "slack": SLACK,
        "processes": found,
    }
    report.write(file, record, ("jax", "jaxlib", "numpy"))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", nargs="+", choices=list(PROCESSES), default=list(PROCESSES), metavar="NAME")
    parser.add_argument("--jobs", type=int, default=2, help="processes measured at once, each on a core")
    parser.add_argument("--quick", action="store_true", help="a few methods on VP and Flow, no strong orders")
    parser.add_argument("--short", action="store_true", help="a line for each family of methods")
    parser.add_argument("--out", type=Path, default=None, help="JSON file for the results")
    parser.add_argument("--keep", action="store_true", help="measure only the processes that the file lacks")
    parser.add_argument("--plot", type=Path, default=None, help="PNG file")
    parser.add_argument("--page", type=Path, default=None, help="Markdown file whose marked part gets the short tables")
    options = parser.parse_args(arguments)
    if options.jobs < 1:
        parser.error(f"jobs is to be at least 1, got {options.jobs}")
    if options.keep and options.out is None:
        parser.error("--keep needs --out, the file to keep")
    if options.quick:
        options.processes = ["VP", "Flow"]

    found: Found = {}
    if options.keep and options.out.exists():
        kept = json.loads(options.out.read_text(encoding="utf-8"))
        if kept["quick"] != options.quick:
            parser.error(f"{options.out} was measured {'with' if kept['quick'] else 'without'} --quick: do the same")
        found = kept["processes"]
    left = [name for name in options.processes if name not in found]
    # jax does not survive a fork
    with concurrent.futures.ProcessPoolExecutor(options.jobs, multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(measure_processes, names, options.quick) for names in alike(left)]
        for future in concurrent.futures.as_completed(futures):
            found |= future.result()
            if options.out is not None:
                write(found, options.out, options.quick)
    found = {name: found[name] for name in PROCESSES if name in found}

    print("\n".join(tables(found, options.short)))
    missed = [
        f"{line['name']} on {process}, {kind}: {line['slope']:.2f} of {line['order']}"
        for process, kinds in found.items()
        for kind in KINDS
        for line in kinds[kind]
        if passed(line) is False
    ]
    print(f"\n{'MISSED: ' + '; '.join(missed) if missed else 'every order is met'}")
    if options.page is not None:
        page = report.fill(options.page.read_text(encoding="utf-8"), "orders", "\n".join(tables(found, True)))
        options.page.write_text(page, encoding="utf-8")
        say(f"tables written into {options.page}")
    if options.plot is not None:
        plot(found, "VP" if "VP" in found else next(iter(found)), options.plot)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
