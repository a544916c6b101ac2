"""One run, ended by force again and again, against the same run left alone.

A chain starts `train.py` on one folder, ends the process at a moment drawn from a seed, starts it again, and so on; the
last process may finish. A blow is survived when the next process that gets as far as training

- goes on after the newest checkpoint that had its final name when the blow fell (from the start where there was none);
- logs, with what stands in metrics.jsonl already, each step exactly once, in order, with the very figures of the
  run left alone;

and when, at the end of the chain, every leaf of the last checkpoint (weights, their average, optimizer, key, history,
position in the data) is that of the run left alone, bit for bit. A chain whose end differs counts all its blows as not
survived: which of them did it cannot be known.

A polite signal (SIGTERM, SIGINT) must also end the process with status 0 and a checkpoint of the very step it reports;
a second one must end it at once.
"""

from __future__ import annotations

import dataclasses
import random
import re
import shutil
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tests.faults.processes import (
    Life,
    Training,
    differing,
    half_written,
    log_problems,
    logged,
    saved,
    whole_steps,
)
from tests.faults.tally import Tally

STEPS_A_LIFE = 12  # more than any life trains before its blow: at most two saves, three steps apart, and what follows
SAVE_SECONDS = 0.25  # about what a save of the tiny run takes
AT_ONCE = 2.0  # seconds in which a second signal must have ended the process

MOMENTS = {
    "early": "before the first checkpoint",
    "starting": "while Python and JAX start",
    "compiling": "while the step compiles",
    "stepping": "between two checkpoints",
    "saving": "while a checkpoint is written, by the clock",
    "writing": "just before the n-th change of a file",
    "removing": "while an old checkpoint is removed",
}
FIRST_CHANGES = 8  # of files, until a new run's folder, configuration, log and checkpoints' folder are there
LARGEST_NUMBER = {"writing": 100, "removing": 12}  # of changes that two saves surely make
BEFORE_TRAINING = ("starting", "compiling")  # or, in the latter, already in the loop, which then saves its first step
_HALF_WHILE_SAVING = ("saving", "writing", "stepping", "saving", "compiling", "removing", "saving", "starting")


class Blow(NamedTuple):
    """When a process is struck, and how: `number` and `share` place it within the `moment`."""

    moment: str
    number: int
    share: float
    signal: int = signal.SIGKILL
    twice: bool = False

    def __str__(self) -> str:
        name = signal.Signals(self.signal).name
        return f"{name}{' twice' if self.twice else ''} {MOMENTS[self.moment]} ({self.number}, {self.share:.2f})"


@dataclasses.dataclass(frozen=True)
class Reference:
    """The run left alone: its log, its last checkpoint, and how long its start and its compilation took."""

    steps: int
    lines: list[dict[str, Any]]
    leaves: dict[str, np.ndarray]
    start_seconds: float
    compile_seconds: float


def reference(home: Path, steps: int, cache: Path | None = None) -> Reference:
    """Trains the run that is left alone, with no checkpoint but the last."""
    options = ("--train.steps", str(steps), "--checkpoint.every", str(steps))
    training = Training(home / "reference", options, cache=cache)
    with training.start() as life:
        life.until(lambda: "parameters, " in life.out)
        started = time.monotonic() - life.begun
        life.until(lambda: "compiled the training step" in life.out)
        compiled = time.monotonic() - life.begun - started
        if life.end() != 0:
            raise AssertionError(f"the run left alone failed: {life}")
    return Reference(steps, logged(training.folder), saved(training.folder), started, compiled)


def kill_moments(count: int, seed: int) -> list[Blow]:
    """SIGKILLs of one chain: the first before the first checkpoint, half of the others during a save.

    >>> [blow.moment for blow in kill_moments(4, seed=0)]
    ['early', 'saving', 'stepping', 'writing']
    """
    draw = random.Random(seed)
    kinds = [_HALF_WHILE_SAVING[n % len(_HALF_WHILE_SAVING)] for n in range(count - 1)]
    draw.shuffle(kinds)
    return [Blow("early", draw.randint(1, 2), draw.random())] + [
        Blow(kind, draw.randint(1, LARGEST_NUMBER.get(kind, 2)), draw.random()) for kind in kinds
    ]


class Outcome(NamedTuple):
    """A blow, what went wrong with it or after it (nothing where it was survived), and whether it cut a save short."""

    blow: Blow
    problems: list[str]
    half_written: bool


def chain(training: Training, blows: Sequence[Blow], expected: Reference) -> list[Outcome]:
    """Ends the run by each blow in turn, then lets it finish."""
    judged: list[Outcome] = []
    waiting: list[Outcome] = []  # no process has trained since
    folder = re.escape(str(training.folder))
    for blow in blows:
        there = max(whole_steps(training.folder), default=0)
        patterns = {"writing": folder, "removing": rf"{folder}/checkpoints/\d+(/|$)"}
        killed_at = (blow.number, patterns[blow.moment]) if blow.moment in patterns else None
        if blow.moment == "compiling":
            shutil.rmtree(training.compiled / "jax", ignore_errors=True)
        with training.start(killed_at=killed_at) as life:
            problems = strike(life, training.folder, blow, expected)
        trained, found = _resumption(life, there)
        found += log_problems(training.folder, expected.lines)
        if trained or found:
            judged += [Outcome(old.blow, old.problems + found, old.half_written) for old in waiting]
            waiting = []
        waiting.append(Outcome(blow, problems, bool(half_written(training.folder))))
    there = max(whole_steps(training.folder), default=0)
    with training.start() as life:
        problems = [] if life.end() == 0 else [f"the last process failed: {life}"]
    problems += _resumption(life, there)[1]
    if problems:  # the blows before those have been survived
        return judged + [Outcome(old.blow, old.problems + problems, old.half_written) for old in waiting]
    at_the_end = _end_problems(training.folder, expected)
    return [Outcome(one.blow, one.problems + at_the_end, one.half_written) for one in (*judged, *waiting)]


def _end_problems(folder: Path, expected: Reference) -> list[str]:
    problems = [f"at the end {name} is another" for name in differing(saved(folder), expected.leaves)[:3]]
    problems += log_problems(folder, expected.lines)
    if len(lines := logged(folder)) != len(expected.lines):
        problems.append(f"at the end metrics.jsonl has {len(lines)} lines, not {len(expected.lines)}")
    return problems


def _resumption(life: Life, there: int) -> tuple[bool, list[str]]:
    """Whether a process got as far as training, and what is wrong with where it began."""
    went_on = re.search(r"going on after step (\d+)", life.out)
    trained = went_on is not None or "compiled the training step" in life.out
    begun = int(went_on[1]) if went_on else 0
    problems = []
    if trained and begun != there:
        problems.append(f"it began at step {begun}, with a whole checkpoint of step {there}: {life}")
    if "Traceback" in life.err:
        problems.append(f"a traceback: {life.err.strip().splitlines()[-1]}")
    return trained, problems


def strike(life: Life, folder: Path, blow: Blow, expected: Reference) -> list[str]:
    """Waits for the moment, strikes, and waits for the end of the process.

    Returns:
        What is wrong with how it ended.
    """
    if not _reach(life, folder, blow, expected):
        return [f"it ended before the moment came: {life}"]
    life.send(blow.signal)
    if blow.twice:
        life.until(lambda: "once more to end at once" in life.err)
        life.send(blow.signal)
    second = time.monotonic()
    status = life.end()
    if blow.signal == signal.SIGKILL:
        return [] if status == -signal.SIGKILL else [f"it ended with {status} before it was killed: {life}"]
    if blow.twice and status == -blow.signal:
        taken = time.monotonic() - second
        return [] if taken < AT_ONCE else [f"a second signal took {taken:.1f} s"]
    return _polite_end(life, folder, status, blow)


def _polite_end(life: Life, folder: Path, status: int, blow: Blow) -> list[str]:
    stopped = re.search(r"stopped after step (\d+); saved in", life.out)
    if blow.moment in BEFORE_TRAINING and status in (-blow.signal, 128 + blow.signal):
        return []  # there was nothing to save yet
    if status != 0 or stopped is None:
        return [f"it did not stop politely: {life}"]
    step, whole, lines = int(stopped[1]), whole_steps(folder), logged(folder)
    if whole[-1:] != [step] or lines[-1]["step"] != step or half_written(folder):
        return [f"it stopped after step {step}, with checkpoints of {whole} and a log up to {lines[-1]['step']}"]
    return []


def _reach(life: Life, folder: Path, blow: Blow, expected: Reference) -> bool:
    def trained() -> int:
        return len(re.findall(r"^step \d+/", life.out, re.MULTILINE))

    if blow.moment in LARGEST_NUMBER:  # the process kills itself
        life.end()
        return life.process.returncode == -signal.SIGKILL
    if blow.moment == "starting":
        time.sleep(blow.share * expected.start_seconds)
    elif blow.moment == "compiling":
        life.until(lambda: "parameters, " in life.out)
        time.sleep(blow.share * expected.compile_seconds)
    elif blow.moment == "early":
        life.until(lambda: trained() >= blow.number)
    elif blow.moment == "stepping":
        life.until(lambda: trained() >= blow.number + 2)
        time.sleep(blow.share * 0.1)
    else:
        life.until(trained)  # what the process before has left half written is gone by then
        names: set[str] = set()

        def saves() -> int:
            names.update(path.name for path in half_written(folder))
            return len(names)

        life.until(lambda: saves() >= blow.number)
        time.sleep(blow.share * SAVE_SECONDS)
    return life.process.poll() is None


def kills(home: Path, count: int, *, seed: int = 0, most: int = 10) -> Tally:
    """SIGKILL at `count` random moments, in chains of at most `most`, and before each of the run's first changes."""
    parts = [most] * (count // most) + ([count % most] if count % most else [])
    chains = [kill_moments(part, seed + number) for number, part in enumerate(parts)]
    chains.append([Blow("writing", number, 0.0) for number in range(1, FIRST_CHANGES + 1)])
    return _tally(home, "SIGKILL: the run goes on and ends as if it had not been killed, bit for bit", chains)


def signals(home: Path, rounds: int = 1, *, seed: int = 0) -> Tally:
    """SIGTERM and SIGINT, once and twice, in each moment but the imports; all of it `rounds` times."""
    draw = random.Random(seed)
    once = [(moment, False) for moment in ("compiling", "early", "stepping", "saving")]
    kinds = [(number, *kind) for number in (signal.SIGTERM, signal.SIGINT) for kind in (*once, ("stepping", True))]
    chains = []
    for _ in range(rounds):
        draw.shuffle(kinds)
        chains.append([Blow(moment, 1, draw.random(), number, twice) for number, moment, twice in kinds])
    return _tally(home, "SIGTERM, SIGINT: a checkpoint of the very step and exit 0; at a second one the end", chains)


def _tally(home: Path, promise: str, chains: Sequence[Sequence[Blow]]) -> Tally:
    tally, halves = Tally(promise), 0
    expected = reference(home, STEPS_A_LIFE * max(map(len, chains)))
    for number, blows in enumerate(chains):
        training = Training(home / f"chain{number}", ("--train.steps", str(expected.steps)))
        for blow, problems, half in chain(training, blows, expected):
            name = (
                ""
                if blow.signal == signal.SIGKILL
                else f"{signal.Signals(blow.signal).name}{' twice' if blow.twice else ''} "
            )
            tally.add(f"{name}{MOMENTS[blow.moment]}", [f"{blow}: {problem}" for problem in problems])
            halves += half
    tally.notes.append(f"{halves} left a half-written checkpoint")
    return tally
