"""Runs of two processes of which one is killed or told to stop, and runs that move to other devices and processes."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import numpy as np

from tests.faults.processes import TINY, half_written, logged, whole_steps
from tests.faults.tally import Tally
from tests.parallel.processes import PEER_TIMEOUT, Group

BOUND = PEER_TIMEOUT + 50  # seconds in which a process must have ended after another has died
TOLERANCE = 1e-5  # of losses on other devices: sums in another order


def _start(folder: Path, *options: str, processes: int = 1, devices: int = 1) -> Group:
    compiled = {"JAX_COMPILATION_CACHE_DIR": str(folder.parent / "compiled"), "JAX_PLATFORMS": "cpu"}
    return Group(
        "train.py", TINY, "--workdir", folder, *options, processes=processes, devices=devices, environment=compiled
    )


def deaths(home: Path, rounds: int = 2) -> Tally:
    """SIGKILL to either of two processes; both are started again each time, and the run ends as it should."""
    tally = Tally("one of two processes killed: the other ends by itself with a message, both go on together")
    folder, long = home / "deaths", ("--train.steps", "100000", "--optimizer.schedule", "constant")
    slowest = 0.0
    for victim in (1, 0) * rounds:
        there = max(whole_steps(folder), default=0)
        group = _start(folder, *long, processes=2)
        try:
            group.until(lambda there=there: whole_steps(folder)[-1:] > [there + 6])  # type: ignore[misc]
            group.send(signal.SIGKILL, victim)
            begun = time.monotonic()
            survivor = group.members[1 - victim]
            status = survivor.wait(BOUND)
            slowest = max(slowest, time.monotonic() - begun)
        finally:
            group.kill()
        told = "another process" in survivor.said or "another task died" in survivor.said
        problems = (
            [] if status in (1, -signal.SIGABRT) and told else [f"the other ended with {status}: {survivor.said}"]
        )
        went_on = f"going on after step {there}" in "".join(group.members[0].out)
        problems += [] if went_on or not there else [f"it did not go on after step {there}: {group.members[0].said}"]
        tally.add("the first" if victim == 0 else "the second", problems)
    tally.notes.append(f"the other ended within {slowest:.0f} s (peer_timeout {PEER_TIMEOUT})")
    return tally


def polite(home: Path) -> Tally:
    """SIGTERM and SIGINT to one of two processes: both save the same step and end with 0."""
    tally = Tally("SIGTERM or SIGINT to one of two processes: both stop after one step, saved, exit 0")
    folder, long = home / "polite", ("--train.steps", "100000", "--optimizer.schedule", "constant")
    for number, receiver in ((signal.SIGTERM, 1), (signal.SIGINT, 0)):
        there = max(whole_steps(folder), default=0)
        group = _start(folder, *long, processes=2)
        try:
            group.until(lambda there=there: len(logged(folder)) > there + 4)  # type: ignore[misc]
            group.send(number, receiver)
            statuses = [member.wait(60) for member in group.members]
        finally:
            group.kill()
        last, whole = logged(folder)[-1]["step"], whole_steps(folder)[-1]
        good = statuses == [0, 0] and last == whole and not half_written(folder)
        said = f"exits {statuses}, logged to {last}, saved {whole}: {group.members[0].said}"
        tally.add(f"{number.name} to process {receiver}", [] if good else [said])
    return tally


def moves(home: Path) -> Tally:
    """One run on 8 devices, then 4, then two processes, then one device: no record lost or read twice."""
    tally = Tally("restart on other devices and processes: goes on, no record lost or repeated")
    steps = ("--optimizer.schedule", "constant", "--train.steps")
    _start(home / "still", *steps, "20").finish()
    expected = np.array([line["loss"] for line in logged(home / "still")])
    folder = home / "moved"
    stages = (
        (5, 1, 8, ("--mesh.fsdp", "8")),
        (10, 1, 4, ("--mesh.fsdp", "2", "--mesh.tensor", "2")),
        (15, 2, 1, ()),
        (20, 1, 1, ()),
    )
    last = 0
    for end, processes, devices, mesh in stages:
        out = _start(folder, *steps, str(end), *mesh, processes=processes, devices=devices).finish(600)
        problems = [] if not last or f"going on after step {last}" in out[0] else [f"it did not go on: {out[0]}"]
        found = np.array([line["loss"] for line in logged(folder)])
        far = np.abs(found / expected[: len(found)] - 1).max()
        if len(found) != end or far > TOLERANCE:
            problems.append(f"{len(found)} steps were logged, losses differ by {far:.1e}")
        same = _positions(folder) == _positions(home / "still") if end == 20 else True
        tally.add(f"{processes} x {devices}", problems if same else [*problems, "it stands at other records"])
        last = end
    tally.notes.append(f"losses within {far:.0e} of the run that never moved")
    return tally


def _positions(folder: Path) -> str:
    note = folder / "checkpoints" / str(whole_steps(folder)[-1]) / "data" / "metadata"
    return json.dumps(json.loads(note.read_text())["position"], sort_keys=True)


def all_of(home: Path) -> list[Tally]:
    """Every count of this module."""
    return [deaths(home / "deaths"), polite(home / "polite"), moves(home / "moves")]
