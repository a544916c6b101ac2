"""jaxdiff on an accelerator: what it reaches of the machine, and beside PyTorch. One command, with an end.

    PYTHONPATH=. python benchmarks/accelerator.py --out accelerator.json

needs, beside the repository, jax, flax, optax, numpy and what `import jaxdiff` takes (jaxtyping); where torch is
installed, PyTorch is timed beside it. Its parts, of which ``--parts`` chooses, each with an end:

- *limits*: the rate of bfloat16 matrix products and of the memory, and the cost of a call, measured.
- *checks*: attention by cuDNN and Pallas against the plain form in value, gradient, tangent and the tangent of the
  gradient; training in bfloat16 against float32; donation; networks and noise against the CPU's; the networks against
  PyTorch's, parameter for parameter. Each with its tolerance; what this machine cannot run is said, not passed.
- *train*: whole training steps in bfloat16 (loss, gradient, clipping, AdamW, average) of DiT-XL/2, DDPM's U-Net,
  DiT-S/2, ADM-64, DiT-B/2 and DiT-L/2: images a second, the share of the measured peak, memory, the floors that
  arithmetic and memory set (`benchmarks.speed.work`), the longest kernels and the gaps between them; and the same
  networks in PyTorch, with fused attention, `torch.compile`, autocast and fused AdamW.
- *attention*: every form at many shapes, and what that says of the constants in `jaxdiff/networks/backend.py`.
- *sample*: a DDIM sampler, many images a call and one image waited for; its time over its evaluations' alone.
- *flags*: training steps with the XLA flags of `jaxdiff/launch/start.py` and without, or with each ``--xla-flags=``.

One process a library, timed in turns (`benchmarks.speed.turns`); calls are queued, as a training loop queues them, and
the last is waited for. Batches are halved until they fit. After ``--limit`` seconds in all it ends; the JSON of
``--out`` is written after every row, and says what was not finished. Exits with 1 when a check fails, a goal is missed
(only on an accelerator) or a piece breaks. ``--read`` measures nothing and shows the tables of such files together,
into ``--page`` too. On a CPU, and by ``--quick``, the networks are tiny and no time is judged.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from benchmarks.report import Line, fill, say, table
from benchmarks.speed.accelerator_parts import PARTS
from benchmarks.speed.attention_forms import told
from benchmarks.speed.large_cases import LARGE
from benchmarks.speed.session import Session, merged
from benchmarks.vs_torch import ACCELERATOR_BOUND

START = 120.0  # seconds that a worker may take to load its library and find the device
OVERHEAD = 1.03  # times a sampler's evaluations alone


def lines(record: Mapping[str, Any]) -> list[Line]:
    """The rows, with the project's goals where they are judged."""
    found, judge = [], record.get("judged", False)
    for row in record["rows"]:
        what = f"{row['case']} {row['mode']}, batch {row['batch']}"
        if row["mode"] == "train" and "utilization" in row:
            least = LARGE[row["case"]].utilization if judge else None
            found.append(Line(f"{what}: share of the peak", row["utilization"]["jaxdiff"], low=least, percent=True))
        for side, ratio in row["ratios"].items():
            least = ACCELERATOR_BOUND if judge and side == "torch" else None
            other = {"torch": "PyTorch's time", "portable": "time without kernels for attention"}[side]
            found.append(Line(f"{what}: {other} / jaxdiff's", ratio["median"], low=least))
        if "overhead" in row:
            most = OVERHEAD if judge and not row["each"] else None
            found.append(Line(f"{what}: time / its evaluations'", row["overhead"]["median"], high=most))
    return found


def checked(record: Mapping[str, Any]) -> str:
    """The checks with their tolerances.

    >>> row = {"name": "far", "value": 2e-6, "most": 1e-5, "passed": True, "note": ""}
    >>> print(checked({"checks": [row, {**row, "name": "not run", "value": None, "passed": None, "note": "why"}]}))
    pass      2.0e-06, at most 1e-05  far
    -                                 not run: why
    """
    found = []
    for check in record["checks"]:
        verdict = {True: "pass", False: "FAIL", None: "-"}[check["passed"]]
        bound = "" if check["value"] is None else f"{check['value']:.1e}, at most {check['most']:g}"
        note = f": {check['note']}" if check["note"] else ""
        found.append(f"{verdict:<6}{bound:>26}  {check['name']}{note}")
    return "\n".join(found)


def markdown(record: Mapping[str, Any]) -> str:
    """The tables for the page. What was not measured is said to be so."""
    parts = [about(record)]
    heads = ["network", "batch", "images/s", "ms a step", "of the peak", "floors: arithmetic, memory", "GiB"]
    heads += ["PyTorch's form", "images/s", "of the peak", "GiB", "PyTorch's time over jaxdiff's"]
    cells = []
    for name in LARGE:
        mine = [row for row in record["rows"] if (row["case"], row["mode"]) == (name, "train")]
        cells += [training_cells(row) for row in mine] or [[name, "not measured"] + [""] * (len(heads) - 2)]
    parts.append(grid(heads, cells))
    parts.append("\n".join(f"- {row['case']}, {text}" for row in record["rows"] for text in by_kind(row)))
    heads = ["network", "batch", "jaxdiff, ms", "PyTorch's form", "PyTorch, ms", "PyTorch's time over jaxdiff's"]
    heads += ["over the evaluations alone"]
    sampling = [row for row in record["rows"] if row["mode"] == "ddim"]
    parts.append(grid(heads, [[row["case"], *sampling_cells(row)] for row in sampling]) if sampling else "")
    if record["flags"]:
        rows = [
            [row["case"], str(row["batch"]), f"`{row['flags']}`", uncertain(row["without_over_with"])]
            for row in record["flags"]
        ]
        parts.append(grid(["network", "batch", "flags", "time without over time with"], rows))
    if record["attention"]:
        parts.append(grid(["shape", "precision", "pass", "form", "ms", "of plain's", "MiB"], attention_cells(record)))
        parts.append("\n".join(f"- {line}" for line in told(record["attention"])))
    done = [check for check in record["checks"] if check["passed"] is not None]
    if record["checks"]:
        failed = [check["name"] for check in done if not check["passed"]]
        left = [f"{check['name']} ({check['note']})" for check in record["checks"] if check["passed"] is None]
        parts.append(f"{len(done)} checks, {len(failed)} failed{': ' + '; '.join(failed) if failed else ''}.")
        parts.append(f"Not checked: {'; '.join(left)}." if left else "")
    if record["unfinished"]:
        parts.append(
            "Not finished: " + "; ".join(f"{u['what']} ({short(u['why'])})" for u in record["unfinished"]) + "."
        )
    return "\n\n".join(filter(None, parts))


def about(record: Mapping[str, Any]) -> str:
    """The machine, and its measured limits."""
    jax_process, torch = record.get("processes", {}).get("jax"), record.get("processes", {}).get("torch")
    if jax_process is None:
        return "Not yet measured."
    text = f"{len(jax_process['devices'])} x {jax_process['devices'][0]}, jax {jax_process['versions']['jax']}"
    text += f", torch {torch['versions']['torch']} (CUDA {torch['cuda']})" if torch else ", no PyTorch"
    if peaks := record.get("limits"):
        text += f". Measured: bfloat16 products at {peaks['matmul'] / 1e12:.4g} TFLOP/s"
        text += f" (datasheet {peaks['datasheet'] / 1e12:.4g})" if peaks["datasheet"] else ""
        text += f", memory at {peaks['memory'] / 1e12:.3g} TB/s, a call every {1e6 * peaks['call_seconds']:.1f} us"
    return text + ("." if record.get("judged") else ". Tiny networks or a CPU: the times mean nothing.")


def by_kind(row: Mapping[str, Any]) -> list[str]:
    """What a training step's time goes to, by kind of kernel, in each library.

    >>> profile = {"about": "", "kinds": {"matrix product": 0.75, "reduction": 0.25}, "operations": [], "idle": 0.02}
    >>> by_kind({"profile": {"jaxdiff": profile}})
    ["jaxdiff's kernels: matrix product 75%, reduction 25%; the device idle for 2.0%"]
    """
    found = []
    for side, profile in row.get("profile", {}).items():
        if "kinds" in profile:
            name = "jaxdiff" if side == "jaxdiff" else "PyTorch"
            kinds = ", ".join(f"{kind} {100 * part:.0f}%" for kind, part in profile["kinds"].items())
            idle = f"; the device idle for {100 * profile['idle']:.1f}%" if "idle" in profile else ""
            found.append(f"{name}'s kernels: {kinds}{idle}")
    return found


def training_cells(row: Mapping[str, Any]) -> list[str]:
    rates, floors, used = row["images_per_second"], row.get("floors"), row.get("utilization", {})
    title = row["case"] if row.get("form") in (None, "ours") else f"{row['case']}, {row['form']}"
    found = [title, str(row["batch"]), f"{rates['jaxdiff']:.1f}", f"{1e3 * row['seconds']['jaxdiff']['median']:.1f}"]
    found += [share(used.get("jaxdiff"))]
    found += [f"{1e3 * floors['compute']:.1f}, {1e3 * floors['memory']:.1f} ms" if floors else ""]
    found += [gibibytes((row["about"]["jaxdiff"]["memory"] or {}).get("all"))]
    if row["torch"] is None:
        return [*found, "", "not measured", "", "", ""]
    memory = row["about"]["torch"]["memory"]
    found += [row["torch"]["form"], f"{rates['torch']:.1f}", share(used.get("torch")), gibibytes(memory)]
    return [*found, uncertain(row["ratios"]["torch"])]


def sampling_cells(row: Mapping[str, Any]) -> list[str]:
    each = ", waited for" if row["each"] else ""
    found = [f"{row['batch']}{each}", f"{1e3 * row['seconds']['jaxdiff']['median']:.1f}"]
    if row["torch"] is None:
        found += ["", "not measured", ""]
    else:
        found += [row["torch"]["form"], f"{1e3 * row['seconds']['torch']['median']:.1f}"]
        found += [uncertain(row["ratios"]["torch"])]
    return [*found, uncertain(row["overhead"])]


def attention_cells(record: Mapping[str, Any]) -> list[list[str]]:
    cells = []
    for row in record["attention"]:
        name = f"**{row['form']}**" if row["chosen"] else row["form"]
        start = ["x".join(map(str, row["shape"])), row["dtype"], row["pass"], name]
        if "seconds" not in row:
            cells.append([*start, row["refused"].replace("|", "/"), "", ""])
            continue
        ratio = "" if row["over_plain"] is None else f"{row['over_plain']:.2f}"
        memory = row["temporary_bytes"]
        cells.append([*start, f"{1e3 * row['seconds']:.3f}", ratio, "" if memory is None else f"{memory / 2**20:.0f}"])
    return cells


def grid(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table.

    >>> print(grid(["a", "b"], [["1", "2"]]))
    | a | b |
    |---|---|
    | 1 | 2 |
    """
    head, *body = (f"| {' | '.join(row)} |" for row in (heads, *rows))
    return "\n".join([head, "|---" * len(heads) + "|", *body])


def uncertain(ratio: Mapping[str, float | None]) -> str:
    """A ratio with half its 95% interval.

    >>> uncertain({"median": 1.25, "doubt": 0.01})
    '1.25 ± 0.01'
    """
    return f"{ratio['median']:.2f}" + ("" if ratio["doubt"] is None else f" ± {ratio['doubt']:.2f}")


def share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}%"


def gibibytes(value: int | None) -> str:
    return "" if value is None else f"{value / 2**30:.1f}"


def short(text: str) -> str:
    return text.splitlines()[0][:160]


def profiles(record: Mapping[str, Any]) -> str:
    """The longest kernels of each training step."""
    found = []
    for row in record["rows"]:
        for side, profile in row.get("profile", {}).items():
            found.append(f"{row['case']}, training, batch of {row['batch']}, {side}: {profile['about']}")
            for name, part, milliseconds, times in profile["operations"]:
                found.append(f"  {100 * part:5.1f}%  {milliseconds:9.3f} ms  {times:5d} times  {name}")
    return "\n".join(found)


def show(record: Mapping[str, Any], page: Path | None) -> int:
    """Prints the tables and the verdicts; the exit status."""
    verdicts = lines(record)
    failed = [check["name"] for check in record["checks"] if check["passed"] is False]
    failed += [line.name for line in verdicts if line.passed is False]
    broken = [piece["what"] for piece in record["unfinished"] if not piece["timed_out"]]
    print(f"{profiles(record)}\n\n{markdown(record)}\n\n{checked(record)}\n\n{table(verdicts)}\n")
    late = [piece["what"] for piece in record["unfinished"] if piece["timed_out"]]
    for title, names in (("FAILED", failed), ("BROKEN", broken), ("no time was left for", late)):
        if names:
            print(f"{title}: {'; '.join(names)}")
    if not failed and not broken:
        print("no check failed and no judged goal was missed")
    if page is not None:
        page.write_text(fill(page.read_text(encoding="utf-8"), "accelerator", markdown(record)), encoding="utf-8")
        say(f"tables written into {page}")
    return 1 if failed or broken else 0


def measure(options: argparse.Namespace) -> int:
    with Session(options.out, options.limit, options.torch) as session:
        session.start("jax")
        if session.with_torch:
            session.start("torch")  # both load at once
        processes = session.record["processes"] = {}
        for name in list(session.workers):

            def start(name: str = name) -> None:
                processes[name] = session.worker(name, START).ask("hello")

            session.attempt(f"start {name}", start)
        session.with_torch = "torch" in processes
        if "jax" not in processes:
            return show(merged([session.record]), None)
        options.quick = options.quick or processes["jax"]["platform"] == "cpu"
        session.record["judged"] = not options.quick
        if options.quick:
            options.turns, options.longest = 2, 0.0
            options.torch_forms = options.torch_forms or ["eager"]
        session.record["options"] = {
            name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()
        }
        print(f"JAX: {processes['jax']}\nPyTorch: {processes.get('torch', 'not here')}", flush=True)
        asked = {name: part for name, part in PARTS.items() if name in options.parts}
        weights = [weight for weight, _ in asked.values()]
        for place, (name, (weight, run)) in enumerate(asked.items()):
            session.part(name, weight / sum(weights[place:]), lambda: run(session, options))  # noqa: B023
        return show(merged([session.record]), options.page)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--cases", nargs="+", choices=list(LARGE), default=None, help="in this order; all by default")
    parser.add_argument("--limit", type=float, default=480.0, help="seconds in all")
    parser.add_argument("--batch", type=int, default=None, help="images a training step; each network's own by default")
    parser.add_argument("--turns", type=int, default=7, help="timings of each, at least")
    parser.add_argument("--longest", type=float, default=12.0, help="seconds of a row after which no more are taken")
    parser.add_argument("--dropout", type=float, default=None, help="another rate than the networks' own")
    parser.add_argument("--torch", action=argparse.BooleanOptionalAction, default=True, help="PyTorch's twins too")
    parser.add_argument("--torch-forms", nargs="+", default=None, help='to try, such as "compile tuned" or "eager"')
    parser.add_argument("--portable", action="store_true", help="also time attention without this machine's kernels")
    parser.add_argument("--profile", action=argparse.BooleanOptionalAction, default=True, help="the longest kernels")
    parser.add_argument("--xla-flags", action="append", metavar="FLAGS", help="a set to try: --xla-flags='--xla_...'")
    parser.add_argument("--quick", action="store_true", help="see that it runs; the times mean nothing")
    parser.add_argument("--out", type=Path, default=None, help="JSON file for the results")
    parser.add_argument("--read", nargs="+", type=Path, default=None, help="show such files together; measure nothing")
    parser.add_argument("--page", type=Path, default=None, help="Markdown file whose marked part gets the tables")
    options = parser.parse_args(arguments)
    if min(options.turns, options.batch or 1) < 1 or options.limit <= 0:
        parser.error("turns and the batch are to be at least 1 and the limit above 0")
    if options.read is not None:
        return show(merged([json.loads(file.read_text(encoding="utf-8")) for file in options.read]), options.page)
    jax.config.update("jax_platforms", "cpu")  # this process only waits: the device is its workers'
    if options.cases is None:
        options.cases = ["dit_xl2", "unet"] if options.quick else list(LARGE)
    return measure(options)


if __name__ == "__main__":
    sys.exit(main())
