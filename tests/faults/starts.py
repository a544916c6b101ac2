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


def interrupted(training: Training, after: float, number: int = signal.SIGINT) -> list[str]:
    """Sends a signal to a training and all of its children, so long after its first line.

    Returns:
        What is wrong with how it ended.
    """
    with begun(training) as life:
        time.sleep(after)
        if life.process.poll() is not None:
            return [f"it ended by itself: {life}"]
        os.killpg(life.process.pid, number)  # as a terminal does
        try:
            status = life.end(END)
        except TimeoutError:
            return [f"{after:.2f} s: it went on: {life}"]
    folder = training.folder
    stopped = re.search(r"stopped after step (\d+); saved in", life.out)
    steps = [] if stopped is None else [int(stopped[1])]
    at_once = status == -number and "Traceback" not in life.err and not stopped
    saved = status == 0 and stopped is not None and whole_steps(folder)[-1:] == steps and not half_written(folder)
    return [] if at_once or saved else [f"{after:.2f} s: neither ended at once nor saved: {life}"]


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
        tally.add("Ctrl-C", interrupted(one, seconds * (number + 0.5) / moments))
    tally.notes.append(f"spread over {seconds:.1f} s")
    return tally
