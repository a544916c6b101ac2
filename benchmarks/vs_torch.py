"""jaxdiff beside PyTorch, and beside a plain Flax form: the same networks, parameters, batches and training.

    python benchmarks/vs_torch.py --out results.json --page docs/performance.md

in an environment with jaxdiff, torch 2.13 and a C++ compiler (for `torch.compile`). Cases: DDPM's U-Net for CIFAR-10
(35.7 million parameters), the same at a quarter of its width, DiT-S/2 on 32x32x4 latents. Modes:

- *train*: draw times and noise, forward, backward, clip by global norm, AdamW, running average. jaxdiff:
  `jaxdiff.train.compile_step`.
- *sample*: one evaluation of the network, no gradient.
- *ddim*: a whole DDIM sampler of 10 evaluations, at the smallest batch only. jaxdiff: `jaxdiff.model.draw`.

Two processes, one a library, each with all cores; jaxdiff's is set up as its programs are (`jaxdiff.launch.start`).
Each computes only when it is asked, and the other waits. They are timed in turns, each leading every other time, until
the median of the ratio is known within 1% (its 95% interval) or ``--longest`` seconds have gone. PyTorch stands with
its best form: eager and `torch.compile` (sampling also with inductor's frozen weights), NCHW and channels_last, fused
and foreach AdamW are each tried first (a larger batch tries those within 1.5 times the best at the smaller), and all
trials are in the JSON. A ratio is PyTorch's time over jaxdiff's: above 1 jaxdiff is faster. bfloat16 is
``dtype="bfloat16"`` here and autocast there.

Before anything is timed the two are checked to be one: outputs (1e-4), a DDIM sample, and loss, gradient norm and
movement of the parameters and of their average over three training steps (1e-3), from the same parameters, noise and
times. If they are not, nothing is timed.

Time it on an idle machine. Exits with 1 when a bound is missed: on a CPU, training the U-Nets at 0.9 and sampling them
at 0.95, the transformer at 1.0 in both, and 1.5 over plain Flax; on an accelerator 1.2 over PyTorch. ``--full`` times
diffusers' `UNet2DModel` too, which the twin must not be slower than. ``--read`` makes one table of several runs'
results. ``--profile`` times nothing: it prints where jaxdiff's training step spends its time. ``--quick`` only shows
that it runs.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.report import Line, fill, say, table, write
from benchmarks.speed.cases import AS_IT_COMES, CASES
from benchmarks.speed.pipes import Worker
from benchmarks.speed.turns import Timed, choose, compared, in_turns, repeats, spread

MODES = ("train", "sample", "ddim")
DTYPES = ("float32", "bfloat16")
FORMS = ("eager", "eager channels_last", "compile", "compile channels_last", "compile freezing")
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "torch")
PLAIN_BOUND, ACCELERATOR_BOUND, TWIN_BOUND = 1.5, 1.2, 0.95
TOLERANCE = {"output": 1e-4, "sampled": 1e-3, "loss": 1e-3, "grad_norm": 1e-3, "moved": 1e-3, "moved_average": 1e-3}
ROUNDED = 0.05  # of outputs in bfloat16, relative


def bound(case: str, mode: str, platform: str) -> float:
    """The least ratio that the contract allows.

    >>> bound("unet", "train", "cpu"), bound("unet", "ddim", "cpu"), bound("dit_s2", "train", "cpu")
    (0.9, 0.95, 1.0)
    """
    if platform != "cpu":
        return ACCELERATOR_BOUND
    if CASES[case].network == "dit":
        return 1.0
    return 0.9 if mode == "train" else 0.95


def apart(ours: Any, theirs: Any) -> float:
    """The largest relative difference of two numbers, or of two lists of them.

    >>> round(apart([1.0, 2.0], [1.0, 2.2]), 3)
    0.1
    """
    pairs = zip(ours, theirs, strict=True) if isinstance(ours, list) else [(ours, theirs)]
    return max(abs(a - b) / abs(a) for a, b in pairs)


def parity_distances(jax: Worker, torch: Worker, dtype: str) -> dict[str, tuple[float, float]]:
    """How far the forms are apart and how far they may be, by name."""
    ours, theirs = jax.ask("parity", dtype=dtype), torch.ask("parity", dtype=dtype)
    found = {"plain Flax: output": ours.pop("plain_output")}
    for name, value in theirs.items():
        found[f"PyTorch: {name}"] = apart(ours[name], value) if name in ours else value
    rounded = dtype != "float32"
    return {name: (value, ROUNDED if rounded else TOLERANCE[name.split(": ")[1]]) for name, value in found.items()}


def check_parity(jax: Worker, torch: Worker, dtype: str) -> dict[str, float]:
    """How far the forms are apart, by name.

    Raises:
      SystemExit: further than they may be.
    """
    found = parity_distances(jax, torch, dtype)
    for name, (value, most) in found.items():
        print(f"  parity in {dtype}, {name}: {value:.1e} apart, at most {most:g}", flush=True)
    if wrong := [name for name, (value, most) in found.items() if not value <= most]:
        raise SystemExit(f"the forms are not the same network ({', '.join(wrong)}): nothing is timed")
    return {name: value for name, (value, _) in found.items()}


def forms_of(case: str, mode: str, allowed: Sequence[str]) -> list[str]:
    """The forms to try: a transformer has no memory format to choose, and training no weights to freeze.

    >>> forms_of("dit_s2", "train", FORMS)
    ['eager', 'compile']
    """
    left_out = {"freezing"} if mode == "train" else set()
    left_out |= {"channels_last"} if CASES[case].network == "dit" else set()
    return [form for form in allowed if not left_out & set(form.split())]


def measure_one(
    jax: Worker,
    torch: Worker,
    plain: Worker,
    case: str,
    mode: str,
    batch: int,
    dtype: str,
    forms: Sequence[str],
    options: argparse.Namespace,
) -> dict[str, Any]:
    """One row: every form built, PyTorch's chosen among ``forms``, all timed in turns."""
    say(f"{case}, {mode}, batch of {batch}, {dtype}")
    best = choose(torch, forms, mode, batch, dtype)
    theirs = None
    if options.full and CASES[case].network == "unet" and mode != "ddim":
        theirs = choose(torch, [f"diffusers {form}" for form in forms], mode, batch, dtype)
    sides: dict[str, tuple[Worker, str]] = {"jaxdiff": (jax, "ours"), "torch": (torch, best.form)}
    if options.plain and mode != "ddim":
        sides["plain"] = (plain, "plain")
    if theirs is not None:
        sides["diffusers"] = (torch, theirs.form)
    built, timed, calls = {}, {}, {}
    for name, (worker, form) in sides.items():
        if worker is not torch:
            built[name] = worker.ask("build", form=form, mode=mode, batch=batch, dtype=dtype)
            say(f"  {name}: built in {built[name]:.0f} s")
        calls[name] = repeats(worker.ask("time", form=form, calls=1))
        once: Timed = functools.partial(worker.ask, "time", form=form, calls=calls[name])
        timed[name] = once
    laps = in_turns(timed, ("torch", "jaxdiff"), options.turns, options.longest)
    ratios = {name: compared(laps, name, "jaxdiff") for name in laps if name != "jaxdiff"}
    if "diffusers" in laps:
        ratios["diffusers over twin"] = compared(laps, "diffusers", "torch")
    for worker in {jax, torch, plain}:
        worker.ask("drop")
    return {
        "case": case,
        "mode": mode,
        "batch": batch,
        "dtype": dtype,
        "turns": len(laps["torch"]),
        "calls": calls,
        "seconds": {name: spread(values) for name, values in laps.items()},
        "ratios": ratios,
        "build_seconds": built,
        "torch": dataclasses.asdict(best) | {"near": best.near},
        "diffusers": None if theirs is None else dataclasses.asdict(theirs),
        "optimizer": torch.ask("optimizer") if mode == "train" else None,
    }


def verdicts(row: Mapping[str, Any], platform: str, judged: bool) -> list[Line]:
    """The row's ratios with their bounds."""
    what = f"{row['case']} {row['mode']}, batch {row['batch']}, {row['dtype']}"
    least = {
        "torch": bound(row["case"], row["mode"], platform),
        "plain": PLAIN_BOUND,
        "diffusers over twin": TWIN_BOUND,
    }
    names = {"torch": "PyTorch / jaxdiff", "plain": "plain Flax / jaxdiff", "diffusers": "diffusers / jaxdiff"}
    return [
        Line(f"{what}: {names.get(name, name)}", ratio["median"], low=least.get(name) if judged else None)
        for name, ratio in row["ratios"].items()
    ]


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table for the page."""
    heads = ["network", "what", "batch", "precision", "PyTorch's form", "PyTorch, images/s", "jaxdiff, images/s"]
    heads += ["PyTorch's time over jaxdiff's", "plain Flax's over jaxdiff's"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        rates = {name: row["batch"] / seconds["median"] for name, seconds in row["seconds"].items()}
        shown = {
            name: f"{ratio['median']:.2f}" + ("" if ratio["doubt"] is None else f" ± {ratio['doubt']:.2f}")
            for name, ratio in row["ratios"].items()
        }
        lines.append(
            f"| {row['case']} | {row['mode']} | {row['batch']} | {row['dtype']} | {row['torch']['form']} "
            f"| {rates['torch']:.1f} | {rates['jaxdiff']:.1f} | {shown['torch']} | {shown.get('plain', '')} |"
        )
    return "\n".join(lines)


def measure(jax: Worker, torch: Worker, plain: Worker, options: argparse.Namespace) -> int:
    origin = {"jax": jax.ask("hello"), "torch": torch.ask("hello"), "plain": plain.ask("hello")}
    platform = origin["jax"]["platform"]
    if options.full and not origin["torch"]["diffusers"]:
        say("diffusers is not installed: its U-Net is left out")
        options.full = False
    print(f"JAX: {origin['jax']}\nPyTorch: {origin['torch']}", flush=True)
    rows: list[dict[str, Any]] = []
    parity: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for case in options.cases:
            asked = {"case": case, "quick": options.quick, "dropout": options.dropout, "folder": folder}
            counts = {side: side.ask("prepare", **asked)["parameters"] for side in (jax, torch)}
            if plain is not jax:
                plain.ask("prepare", **asked)
            print(f"{case}: {counts[jax]:,} parameters here, {counts[torch]:,} in PyTorch", flush=True)
            for dtype in options.dtypes:
                parity[f"{case}, {dtype}"] = check_parity(jax, torch, dtype)
            for dtype in options.dtypes:
                for mode in options.modes:
                    forms = forms_of(case, mode, options.torch_forms)
                    for batch in sorted(options.batches)[: 1 if mode == "ddim" else None]:
                        row = measure_one(jax, torch, plain, case, mode, batch, dtype, forms, options)
                        rows.append(row)
                        forms = row["torch"]["near"]
                        print(table(verdicts(row, platform, not options.quick)), flush=True)
    lines = [line for row in rows for line in verdicts(row, platform, not options.quick)]
    failed = [line.name for line in lines if line.passed is False]
    met = "no verdict: --quick" if options.quick else "every bound is met"
    print(f"\n{markdown(rows)}\n\n{table(lines)}\n\n{'FAILED: ' + '; '.join(failed) if failed else met}")
    if options.out is not None:
        record = {
            "options": {
                name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()
            },
            "processes": origin,
            "passed": not failed,
            "parity": parity,
            "lines": [dataclasses.asdict(line) | {"passed": line.passed} for line in lines],
            "rows": rows,
        }
        write(options.out, record, PACKAGES)
    into_page(options.page, rows)
    return 1 if failed else 0


def into_page(path: Path | None, rows: Sequence[Mapping[str, Any]]) -> None:
    """The table into the page's marked part, where there is a page."""
    if path is not None:
        path.write_text(fill(path.read_text(encoding="utf-8"), "vs torch", markdown(rows)), encoding="utf-8")
        say(f"table written into {path}")


def profile(jax: Worker, options: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory() as folder:
        for case in options.cases:
            jax.ask("prepare", case=case, quick=options.quick, dropout=options.dropout, folder=folder)
            for dtype in options.dtypes:
                for batch in options.batches:
                    for form in ("ours", "plain") if options.plain else ("ours",):
                        jax.ask("build", form=form, mode="train", batch=batch, dtype=dtype)
                        found = jax.ask("profile", form=form, calls=1 if options.quick else 3, most=25)
                        print(f"\n{case}, {form}, training step, batch of {batch}, {dtype}: {found['about']}")
                        for name, share, milliseconds, times in found["operations"]:
                            print(f"  {100 * share:5.1f}%  {milliseconds:9.2f} ms  {times:5d} times  {name}")
                        jax.ask("drop")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--batches", nargs="+", type=int, default=[16, 64])
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--torch-forms", nargs="+", choices=FORMS, default=None, help="which to try; all by default")
    parser.add_argument("--plain", action=argparse.BooleanOptionalAction, default=True, help="the plain Flax form too")
    parser.add_argument(
        "--plain-defaults",
        action="store_true",
        help="the plain Flax form in a process of its own, as JAX comes: without what jaxdiff's programs set up",
    )
    parser.add_argument("--full", action="store_true", help="diffusers' U-Net too, where it is installed")
    parser.add_argument("--dropout", type=float, default=None, help="another rate than the networks' own")
    parser.add_argument("--turns", type=int, default=7, help="timings of each, at least")
    parser.add_argument("--longest", type=float, default=90.0, help="seconds of a row after which no more are taken")
    parser.add_argument("--xla-flags", default="", help="added to XLA_FLAGS for the JAX process")
    parser.add_argument("--cpu-devices", type=int, default=1, help="that JAX splits the processor, and batches, into")
    parser.add_argument("--profile", action="store_true", help="where the training step's time goes; nothing is timed")
    parser.add_argument("--quick", action="store_true", help="see that it runs; the times mean nothing")
    parser.add_argument("--read", nargs="+", type=Path, default=None, help="results of before, to be one table")
    parser.add_argument("--out", type=Path, default=None, help="JSON file for the results")
    parser.add_argument("--page", type=Path, default=None, help="Markdown file whose marked part gets the table")
    options = parser.parse_args(arguments)
    if min([options.turns, options.cpu_devices, *options.batches]) < 1:
        parser.error("turns, batches and devices are to be at least 1")
    if options.quick:
        options.turns, options.longest, options.batches = 2, 0.0, [4]
    if options.torch_forms is None:
        options.torch_forms = ["eager", "compile"] if options.quick else list(FORMS)
    if options.read is not None:
        rows = [row for path in options.read for row in json.loads(path.read_text(encoding="utf-8"))["rows"]]
        print(markdown(rows))
        into_page(options.page, rows)
        return 0
    environment = {"JAX_NUM_CPU_DEVICES": str(options.cpu_devices), "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    environment["XLA_FLAGS"] = " ".join(filter(None, [os.environ.get("XLA_FLAGS"), options.xla_flags]))
    with ExitStack() as stack:
        if options.profile:
            return profile(stack.enter_context(Worker("benchmarks.speed.jax_side", environment)), options)
        jax = stack.enter_context(Worker("benchmarks.speed.jax_side", environment))
        torch = stack.enter_context(Worker("benchmarks.speed.torch_side", {}))
        plain = jax
        if options.plain and options.plain_defaults:
            usual = environment | {"JAX_NUM_CPU_DEVICES": "1", AS_IT_COMES: "1"}
            usual["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "")
            plain = stack.enter_context(Worker("benchmarks.speed.jax_side", usual))
        return measure(jax, torch, plain, options)


if __name__ == "__main__":
    sys.exit(main())
