"""The parts of `benchmarks.accelerator`: each asks the workers of a `Session` and adds to its record."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import math
import tempfile
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks.report import say
from benchmarks.speed.attention_forms import shapes
from benchmarks.speed.cases import EVALUATIONS
from benchmarks.speed.large_cases import LARGE, PARITY
from benchmarks.speed.pipes import Worker
from benchmarks.speed.session import Session
from benchmarks.speed.turns import Timed, choose, compared, in_turns, repeats, spread
from benchmarks.speed.work import Work, training_work
from benchmarks.vs_torch import parity_distances

DTYPE = "bfloat16"
TORCH_SHARE = 0.6  # of a part's time that is left, which PyTorch may take to compile
FLAG_CASES = ("dit_s2", "unet")
GRAPHS = "compile graphs"  # PyTorch's form for single images
PORTABLE = "ours portable"  # jaxdiff with attention that has no kernels of this machine
QUICK_BATCH = 4


def judged(name: str, value: float, most: float) -> dict[str, Any]:
    """A check's answer, as `benchmarks.speed.checks` gives it.

    >>> judged("far", 2.0, 1.0)["passed"]
    False
    """
    return {"name": name, "value": value, "most": most, "passed": value <= most, "note": ""}


def absent(session: Session, name: str, why: str) -> None:
    note = f"not on this machine: {why}"
    session.record["checks"].append({"name": name, "value": None, "most": None, "passed": None, "note": note})


def limits(session: Session, options: argparse.Namespace) -> None:
    """The peaks: each the better of what the two libraries reach."""
    sizes, mebibytes, seconds = ([128], 4, 0.01) if options.quick else ([4096, 8192, 16384], 2048, 0.1)
    found = session.worker("jax").ask("limits", sizes=sizes, mebibytes=mebibytes, seconds=seconds)
    session.record["limits"] = found
    if session.with_torch:
        found["matmul_torch"] = session.worker("torch").ask("matmul", size=sizes[-1] // (1 if options.quick else 2))
        found["matmul"] = max(found["matmul"], found["matmul_torch"])


def checks(session: Session, options: argparse.Namespace) -> None:
    """`benchmarks.speed.checks`, then both libraries' networks, parameter for parameter."""
    record: list[dict[str, Any]] = session.record["checks"]
    for name in session.worker("jax").ask("check_names"):

        def run(name: str = name) -> None:
            record.extend(session.worker("jax").ask("check", name=name, quick=options.quick))

        session.attempt(f"check {name}", run)
    if not session.with_torch:
        absent(session, "the same networks in PyTorch", "PyTorch is not installed, or not asked for")
        return
    for case in PARITY:

        def same(case: str = case) -> None:
            with tempfile.TemporaryDirectory() as folder:
                jax, torch = session.worker("jax"), session.worker("torch")
                for side in (jax, torch):  # small: it is the machine's arithmetic that is checked, at CPU tests' rigour
                    side.ask("prepare", case=case, quick=True, dropout=None, folder=folder)
                for dtype in ("float32", DTYPE):
                    for name, (value, most) in parity_distances(jax, torch, dtype).items():
                        record.append(judged(f"{case} in {dtype}, {name}", value, most))
            session.drop()

        session.attempt(f"check {case} against PyTorch", same)


def attention(session: Session, options: argparse.Namespace) -> None:
    """Every form at every shape, the most important shapes first."""
    session.drop()
    laps, seconds, memory = (2, 0.0, 2**30) if options.quick else (9, 0.02, 40 * 2**30)
    for shape, dtype, which in shapes(options.quick):

        def run(shape: Sequence[int] = shape, dtype: str = dtype, which: str = which) -> None:
            asked: dict[str, Any] = {"shape": shape, "dtype": dtype, "which": which, "laps": laps}
            rows = session.worker("jax").ask("attend", **asked, seconds=seconds, memory=memory)
            session.record["attention"].extend(rows)

        session.attempt(f"attention {'x'.join(map(str, shape))} {dtype} {which}", run)


def train(session: Session, options: argparse.Namespace) -> None:
    """A training step of each network, beside PyTorch's; then where its time goes."""
    for name in options.cases:
        large = LARGE[name]
        batch = options.batch or (QUICK_BATCH if options.quick else large.batch)
        session.attempt(f"train {name}", lambda: fitting(session, options, Wanted(name, "train", batch, large.forms)))  # noqa: B023
        if options.profile and any(row["case"] == name and row["mode"] == "train" for row in session.record["rows"]):
            session.attempt(f"profile {name}", lambda: profile(session, options, name))  # noqa: B023


class Wanted(NamedTuple):
    """What a row is to be of.

    Args:
      name: of the case.
      mode: "train", or "ddim" for a whole sampler, whose evaluations alone are timed too.
      batch: images a call.
      forms: of PyTorch, the best first.
      each: wait for each call (latency) rather than for the last of many (throughput).
    """

    name: str
    mode: str
    batch: int
    forms: Sequence[str]
    each: bool = False


def fitting(session: Session, options: argparse.Namespace, wanted: Wanted) -> None:
    """A row at the largest of the batch, its half and so on that the device's memory holds."""
    while True:
        try:
            row = measured(session, options, wanted)
        except RuntimeError as error:
            if wanted.batch < 8 or not out_of_memory(error):
                raise
            say(f"  {wanted.name}: a batch of {wanted.batch} does not fit")
            wanted = wanted._replace(batch=wanted.batch // 2)
        else:
            session.record["rows"].append(row)
            return


def measured(session: Session, options: argparse.Namespace, wanted: Wanted) -> dict[str, Any]:
    """One row: both libraries' forms built and timed in turns."""
    name, mode, batch, _, each = wanted
    say(f"  {name}, {mode}, batch of {batch}{', each call waited for' if each else ''}")
    session.bury()
    session.drop()
    asked = {"case": name, "quick": options.quick, "dropout": options.dropout}
    parameters = session.worker("jax").ask("draw", **asked)["parameters"]
    work = Work(**session.worker("jax").ask("work", batch=batch, dtype=DTYPE))
    built: dict[str, float] = {}
    ours = "ours"
    try:
        built["jaxdiff"] = build(session, ours, mode, batch)
    except (RuntimeError, OSError) as error:
        if out_of_memory(error) or isinstance(error, TimeoutError):
            raise
        session.unfinished(f"{name} {mode} with this machine's attention", str(error), timed_out=False)
        session.bury()
        ours = PORTABLE  # what a kernel broke is still to be measured without it
        session.worker("jax").ask("draw", **asked)
        built["jaxdiff"] = build(session, ours, mode, batch)
    sides = {"jaxdiff": (session.worker("jax"), ours, 1)}
    more = [("evaluations", ours.replace("ours", "ours alone"), "sample", EVALUATIONS)] if mode == "ddim" else []
    more += [("portable", PORTABLE, mode, 1)] if options.portable and ours != PORTABLE else []
    for side, form, what, times in more:
        built[side] = build(session, form, what, batch)
        sides[side] = (session.worker("jax"), form, times)
    best = theirs(session, options, wanted, asked)
    if best is not None:
        sides["torch"] = (session.worker("torch"), best["form"], 1)
    other = next(side for side in ("torch", "evaluations", "jaxdiff") if side in sides)
    laps = take_turns(sides, (other, "jaxdiff"), options, session.left(), each)
    seconds = {side: spread(values) for side, values in laps.items()}
    row: dict[str, Any] = {
        "case": name,
        "mode": mode,
        "batch": batch,
        "dtype": DTYPE,
        "each": each,
        "form": ours,
        "parameters": parameters,
        "turns": len(laps["jaxdiff"]),
        "seconds": seconds,
        "images_per_second": {side: batch / found["median"] for side, found in seconds.items()},
        "ratios": {side: compared(laps, side, "jaxdiff") for side in laps if side in ("torch", "portable")},
        "build_seconds": built,
        "torch": best,
        "about": {
            side: worker.ask("about", form=form)
            for side, (worker, form, _) in sides.items()
            if side in ("jaxdiff", "torch")
        },
    }
    for side, told in row["about"].items():
        if told["last"] is not None:
            finite = float(not math.isfinite(told["last"]))
            session.record["checks"].append(
                judged(f"{name}, {mode}, {batch}, {side}: result is not finite", finite, 0.0)
            )
    if mode == "ddim":
        row["overhead"] = compared(laps, "jaxdiff", "evaluations")
        work = Work(EVALUATIONS * work.flops, EVALUATIONS * work.bytes)
    else:
        work = training_work(work, parameters)
    row["work"] = work._asdict()
    if peaks := session.record.get("limits"):
        row["floors"] = work.floors(peaks["matmul"], peaks["memory"])
        row["utilization"] = {side: row["floors"]["compute"] / found["median"] for side, found in seconds.items()}
    return row


def build(session: Session, form: str, mode: str, batch: int) -> float:
    """Has the JAX worker build a form; seconds that took."""
    taken: float = session.worker("jax").ask("build", form=form, mode=mode, batch=batch, dtype=DTYPE)
    say(f"    {form}, {mode}: built in {taken:.0f} s")
    return taken


def out_of_memory(error: Exception) -> bool:
    """Whether that is what either library says.

    >>> out_of_memory(RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 8 bytes"))
    True
    """
    return "out of memory" in str(error).lower() or "resource_exhausted" in str(error).lower()


def theirs(
    session: Session, options: argparse.Namespace, wanted: Wanted, asked: dict[str, Any]
) -> dict[str, Any] | None:
    """PyTorch's form, built: the best of those asked for; else the first of those wanted, then of safer ones, that can
    be had in time. None where none can, which is recorded."""
    name, mode, batch, forms, _ = wanted
    if not session.with_torch:
        return None
    trials = [options.torch_forms] if options.torch_forms else [[form] for form in (*forms, "compile", "eager")]
    late = False
    for trial in dict.fromkeys(map(tuple, trials)):
        if late and "eager" not in trial:
            continue  # it would compile for as long
        try:
            torch = session.worker("torch", TORCH_SHARE * session.left())
            torch.ask("draw", **asked)
            return dataclasses.asdict(choose(torch, trial, mode, batch, DTYPE))
        except (RuntimeError, TimeoutError, OSError) as error:
            if out_of_memory(error):
                raise  # both take a smaller batch
            title = f"{name} {mode}, batch of {batch}, in PyTorch: {', '.join(trial)}"
            late = isinstance(error, TimeoutError)
            session.unfinished(title, f"{type(error).__name__}: {error}", late)
            session.bury()
    return None


def take_turns(
    sides: dict[str, tuple[Worker, str, int]],
    pair: tuple[str, str],
    options: argparse.Namespace,
    left: float,
    each: bool = False,
) -> dict[str, np.ndarray]:
    """Seconds of a call of each side (of so many calls, by its third number), one a turn, until the pair's ratio is
    known."""
    timed: dict[str, Timed] = {}
    for side, (worker, form, times) in sides.items():
        once = worker.ask("time", form=form, calls=1, each=each)
        calls = 1 if options.quick else repeats(once)

        def lap(worker: Worker = worker, form: str = form, times: int = times, calls: int = calls) -> float:
            return times * float(worker.ask("time", form=form, calls=calls, each=each))

        timed[side] = lap
    return in_turns(timed, pair, options.turns, min(options.longest, 0.3 * left))


def profile(session: Session, options: argparse.Namespace, name: str) -> None:
    """The kernels of the training step that is built now, in both libraries."""
    row = next(row for row in reversed(session.record["rows"]) if row["case"] == name and row["mode"] == "train")
    calls = 1 if options.quick else 3
    row["profile"] = {"jaxdiff": session.worker("jax", 60).ask("profile", form=row["form"], calls=calls, most=15)}
    if row["torch"] is not None and not options.quick:
        form = row["torch"]["form"]
        row["profile"]["torch"] = session.worker("torch", 60).ask("profile", form=form, calls=calls, most=10)


def sample(session: Session, options: argparse.Namespace) -> None:
    """A sampler of `EVALUATIONS` evaluations: many images a call, then one image, waited for."""
    for name in options.cases:
        large = LARGE[name]
        batch = QUICK_BATCH if options.quick else large.throughput
        for images, forms, each in ((batch, large.forms, False), (1, (GRAPHS,), True))[: 1 if options.quick else None]:
            wanted = Wanted(name, "ddim", images, forms, each)
            run: Callable[[], None] = functools.partial(fitting, session, options, wanted)
            session.attempt(f"sample {name}, batch of {images}", run)


def flags(session: Session, options: argparse.Namespace) -> None:
    """Training steps with XLA's flags, in a process of their own, beside one without."""
    try:
        from jaxdiff.launch.start import flags_for
    except ModuleNotFoundError as error:  # its package needs Pillow
        absent(session, "XLA's flags", f"{error}")
        return
    hello = session.worker("jax").ask("hello")
    backend = {"gpu": "cuda"}.get(hello["platform"], hello["platform"])
    candidates = options.xla_flags or [" ".join(flags_for(backend, hello["versions"]["jaxlib"]))]
    session.stop("torch")  # its memory
    for candidate in filter(None, candidates):

        def run(candidate: str = candidate) -> None:
            session.start("flags", candidate)
            taken = session.worker("flags").ask("hello")["xla_flags"]
            session.record["checks"].append(judged(f"XLA refuses {candidate}", float(candidate not in taken), 0.0))
            for name in [name for name in FLAG_CASES if name in options.cases] or options.cases[:1]:
                session.drop()
                session.record["flags"].append(one_flag(session, options, name, candidate))

        session.attempt(f"flags {candidate}", run)
        session.stop("flags")
    if not any(candidates):
        say(f"  jaxdiff sets no flags for {backend} under jaxlib {hello['versions']['jaxlib']}")


def one_flag(session: Session, options: argparse.Namespace, name: str, candidate: str) -> dict[str, Any]:
    """A row of the flags' part."""
    batch = QUICK_BATCH if options.quick else LARGE[name].batch
    sides = {}
    for side, worker in (("without", session.worker("jax")), ("with", session.worker("flags"))):
        worker.ask("draw", case=name, quick=options.quick, dropout=options.dropout)
        worker.ask("build", form="ours", mode="train", batch=batch, dtype=DTYPE)
        sides[side] = (worker, "ours", 1)
    laps = take_turns(sides, ("without", "with"), options, session.left())
    return {
        "case": name,
        "batch": batch,
        "flags": candidate,
        "seconds": {side: spread(values) for side, values in laps.items()},
        "without_over_with": compared(laps, "without", "with"),
    }


PARTS: dict[str, tuple[float, Callable[[Session, argparse.Namespace], None]]] = {
    "limits": (1, limits),
    "checks": (3, checks),
    "train": (6, train),
    "attention": (2, attention),
    "sample": (3, sample),
    "flags": (1, flags),
}
"""The parts in their order, each with its weight: it has at most its share, by weight, of the time that is left to it
and the parts after it."""
