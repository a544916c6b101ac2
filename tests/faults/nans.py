"""Images of NaN in the data of real runs: steps on them are skipped, and too many in a row stop the run."""

from __future__ import annotations

import json
import random
import signal
from pathlib import Path

from tests.faults.processes import (
    EXACT,
    Training,
    differing,
    logged,
    refusal_problems,
    saved,
    whole_steps,
)
from tests.faults.tally import Tally

CONFIG = Path(__file__).with_name("poisoned.py")
DIGITS = 1438  # records of the training split


def _training(home: Path, name: str, bad: list[int], *options: str) -> Training:
    home.mkdir(parents=True, exist_ok=True)
    records = home / f"{name}.json"
    records.write_text(json.dumps(bad))
    return Training(home / name, ("--data.path", str(records), *options), CONFIG)


def few_bad(home: Path, *, bad: int = 12, steps: int = 48, seed: int = 0) -> Tally:
    """A few NaN images among many: each step that meets one changes nothing but its number, and the run ends well.

    The same run killed once on its way ends with the same bits.
    """
    tally = Tally("a step on NaN is skipped and counted: the parameters' norm stays to the last digit")
    records = random.Random(seed).sample(range(DIGITS), bad)
    left_alone = _training(home, "few", records, "--train.steps", str(steps))
    with left_alone.start() as life:
        if life.end() != 0:
            tally.add("run", [f"it failed: {life}"])
            return tally
    lines = logged(left_alone.folder)
    before = 0
    for last, line in zip([None, *lines], lines, strict=False):
        if line["skipped"] > before:
            same = last is None or last["param_norm"] == line["param_norm"]
            tally.add("step", [] if same and line["loss"] is None else [f"step {line['step']}: {line}"])
        elif line["loss"] is None:
            tally.add("step", [f"step {line['step']} was not counted"])
        before = line["skipped"]
    killed = _training(home, "killed", records, "--train.steps", str(steps))
    with killed.start(killed_at=(1, rf"checkpoints/{steps // 2}\.orbax-checkpoint-tmp$")) as life:
        problems = [] if life.end() == -signal.SIGKILL else [f"it was not killed: {life}"]
    with killed.start() as life:
        problems += [] if life.end() == 0 else [f"it failed: {life}"]
    problems += [f"{name} is another" for name in differing(saved(killed.folder), saved(left_alone.folder))[:3]]
    figures = [[[line[name] for name in ("skipped", *EXACT)] for line in log] for log in (lines, logged(killed.folder))]
    if figures[0] != figures[1]:
        problems.append("it logged other figures")
    tally.add("killed and started again", problems)
    return tally


def all_bad(home: Path, *, most: int = 4) -> Tally:
    """Nothing but NaN: the run stops with what to look at, twice the same; with the data mended it goes on."""
    tally = Tally("too many skipped in a row: the run stops, names the records, and can be replayed")
    options = ("--train.steps", "12", "--train.max_skipped", str(most))
    training = _training(home, "all", list(range(DIGITS)), *options)
    said = []
    for attempt in ("stopped", "replayed"):
        with training.start() as life:
            problems = refusal_problems(life, f"{most} steps in a row were skipped", "skipped_steps.json")
        said.append((life.err, (training.folder / "skipped_steps.json").read_text()))
        report = json.loads(said[-1][1])
        if [len(step["records"]) for step in report["steps"]] != [16] * most or len(set(said)) != 1:
            problems.append(f"another report: {said}")
        if report["checkpoint"] not in whole_steps(training.folder):
            problems.append(f"there is no checkpoint of step {report['checkpoint']}")
        tally.add(attempt, problems)
    (home / "all.json").write_text("[]")
    with training.start() as life:
        problems = [] if life.end() == 0 else [f"with the data mended it failed: {life}"]
    clean = _training(home, "clean", [], *options)
    with clean.start() as life:
        problems += [] if life.end() == 0 else [f"it failed: {life}"]
    found, expected = saved(training.folder), saved(clean.folder)
    problems += [f"{name} is another" for name in differing(found, expected)[:3]]
    tally.add("with the data mended", problems)
    return tally


def all_of(home: Path) -> list[Tally]:
    """Every count of this module."""
    return [few_bad(home / "few"), all_bad(home / "all")]
