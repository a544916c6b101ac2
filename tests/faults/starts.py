"""Ctrl-C at every moment of a start: from a command's first line to the first steps, the process ends or saves."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import time
from pathlib import Path

from tests.faults.processes import Life, Training, half_written, whole_steps
from tests.faults.tally import Tally

END = 30.0  # seconds; a process that goes on training does not end at all
ENDLESS = ("--train.steps", "1000000", "--optimizer.schedule", "constant")


def first_line_is_done(life: Life) -> bool:
    """Whether Python runs and SIGINT has its default effect: Python ignores SIGPIPE, and answers SIGINT by itself."""
    try:
        status = Path(f"/proc/{life.process.pid}/status").read_text()
    except FileNotFoundError:
        return False
    masks = {name: int(mask, 16) for name, mask in re.findall(r"^(SigCgt|SigIgn):\s+(\w+)", status, re.MULTILINE)}

    def has(mask: str, number: int) -> bool:
        return bool(masks.get(mask, 0) >> (number - 1) & 1)

    return has("SigIgn", signal.SIGPIPE) and not has("SigCgt", signal.SIGINT)


def begun(training: Training) -> Life:
    """A process of the run that has come past its first line."""
    life = training.start()
    for _ in range(2):  # between Python's two settings there is a moment that looks alike
        life.until(lambda: first_line_is_done(life))
        time.sleep(0.02)
    return life


def struck(training: Training, life: Life, number: int = signal.SIGINT) -> list[str]:
    """Sends a signal to a training and all of its children, as a terminal does.

    Returns:
        What is wrong with how they ended.
    """
    if life.process.poll() is not None:
        return [f"it ended by itself: {life}"]
    after = time.monotonic() - life.begun
    os.killpg(life.process.pid, number)
    try:
        status = life.end(END)
    except TimeoutError:
        return [f"{after:.2f} s: it went on: {life}"]
    if not _is_gone(life.process.pid):
        return [f"{after:.2f} s: its children went on: {life}"]
    folder = training.folder
    stopped = re.search(r"stopped after step (\d+); saved in", life.out)
    steps = [] if stopped is None else [int(stopped[1])]
    at_once = status == -number and not stopped
    saved = status == 0 and stopped is not None and whole_steps(folder)[-1:] == steps and not half_written(folder)
    quiet = "Traceback" not in life.err and "leaked" not in life.err
    return [] if quiet and (at_once or saved) else [f"{after:.2f} s: neither ended at once nor saved, quietly: {life}"]


def _is_gone(group: int) -> bool:
    """Whether no process of a group is left, some time after its first has ended."""
    deadline = time.monotonic() + END
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.01)
    os.killpg(group, signal.SIGKILL)
    return False


def start_seconds(training: Training) -> float:
    """From the first line to the second step of a run, with compiled programs on disk where there are any."""
    with begun(training) as life:
        first = time.monotonic()
        life.until(lambda: re.search(r"^step 2/", life.out, re.MULTILINE))
        return time.monotonic() - first


def interrupts(home: Path, moments: int, *options: str) -> Tally:
    """Ctrl-C at moments spread evenly over the start, each to a new run."""
    tally = Tally("Ctrl-C at any moment of a start: the process ends at once, or saves and ends")
    training = Training(home / "0", (*ENDLESS, *options), cache=home / "compiled", group=True)
    seconds = start_seconds(training)
    for number in range(moments):
        one = dataclasses.replace(training, folder=home / str(number + 1))
        with begun(one) as life:
            time.sleep(seconds * (number + 0.5) / moments)
            tally.add("Ctrl-C", struck(one, life))
    tally.notes.append(f"spread over {seconds:.1f} s")
    return tally
