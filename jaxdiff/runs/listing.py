"""The runs in a folder, one a line: `jaxdiff runs runs/`, or `python -m jaxdiff.runs runs/`.

What a run is, its files say: `config.json` its length, the last line of `metrics.jsonl` its figures, the names in
`checkpoints` what is saved, and an OS lock on `lock`, which a training process holds and which ends with it, whether it
goes on. Nothing of the configuration is executed, no checkpoint is opened and JAX is not started. A folder that cannot
be understood is named with what is wrong, and the others are listed all the same.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from jaxdiff.launch.errors import silent_at_a_broken_pipe
from jaxdiff.launch.lock import is_locked

CONFIG, METRICS, CHECKPOINTS, SAMPLES, LOCK = "config.json", "metrics.jsonl", "checkpoints", "samples", "lock"
USAGE = "usage: jaxdiff runs [FOLDER]    lists the runs in FOLDER, by default in runs"
_TAIL = 2**16  # bytes at the end of the metrics, more than a few lines


@dataclasses.dataclass(frozen=True)
class Status:
    """What a run's folder tells.

    Attributes:
        folder: the run's.
        state: "running" where a process trains in it now; else "finished" or "stopped" by whether all steps are saved.
        step: last logged or saved.
        total: steps of the whole run.
        loss, images_per_second: as last logged; None where they are not known.
        samples: the newest grid of samples.
    """

    folder: Path
    state: Literal["running", "finished", "stopped"]
    step: int
    total: int
    loss: float | None
    images_per_second: float | None
    samples: Path | None


class RunError(Exception):
    """A folder that cannot be understood; the message says why, in one line."""


def read_status(folder: str | os.PathLike[str]) -> Status:
    """The status of the run in a folder.

    Raises:
        RunError: the folder is none of a run, or its files are damaged.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "config.json").write_text('{"train": {"steps": 100}}')
        ...     _ = Path(folder, "metrics.jsonl").write_text('{"step": 40, "loss": 0.5}' + chr(10))
        ...     status = read_status(folder)
        >>> status.state, status.step, status.total, status.loss
        ('stopped', 40, 100, 0.5)
    """
    folder = Path(folder).expanduser()
    try:
        total = _total(folder / CONFIG)
        record = _last_record(folder / METRICS)
        saved = max(_numbers(folder / CHECKPOINTS, ""), default=0)
        grids = _numbers(folder / SAMPLES, "step_", ".png")
        logged = record.get("step", 0)
        if not isinstance(logged, int):
            raise RunError(f"{METRICS}: its last line has the step {logged!r}")
        running = is_locked(folder / LOCK)
    except OSError as error:
        raise RunError(f"{error.filename or folder}: {error.strerror}") from error
    return Status(
        folder,
        "running" if running else "finished" if saved >= total else "stopped",
        max(logged, saved),
        total,
        _number(record.get("loss")),
        _number(record.get("images_per_second")),
        folder / SAMPLES / f"step_{max(grids):08d}.png" if grids else None,
    )


def _total(file: Path) -> int:
    if not file.is_file():
        raise RunError(f"it is not the folder of a run: it has no {CONFIG}")
    try:
        total = json.loads(file.read_text(encoding="utf-8"))["train"]["steps"]
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{CONFIG} cannot be read: {_said(error)}") from error
    if not isinstance(total, int) or total < 1:
        raise RunError(f"{CONFIG}: train.steps is {total!r}")
    return total


def _last_record(file: Path) -> dict[str, Any]:
    """The last whole line that is a record of a step; a run that writes may have begun another. None: an empty one."""
    if not file.exists():
        return {}
    with file.open("rb") as stream:
        stream.seek(max(0, file.stat().st_size - _TAIL))
        lines = stream.read().split(b"\n")[:-1]
    if not lines:
        return {}
    try:
        for line in reversed(lines):  # the file may have lines of others
            with contextlib.suppress(ValueError):
                record = json.loads(line)
                if isinstance(record, dict) and type(record.get("step")) is int:
                    return record
        record = json.loads(lines[-1])
    except ValueError as error:
        raise RunError(f"{METRICS}: its last line cannot be read: {_said(error)}") from error
    if not isinstance(record, dict):
        raise RunError(f"{METRICS}: its last line is no record")
    return record


def _numbers(folder: Path, before: str, after: str = "") -> list[int]:
    """The numbers N in the names ``{before}N{after}`` of a folder."""
    if not folder.is_dir():
        return []
    found = (path.name.removeprefix(before).removesuffix(after) for path in folder.iterdir())
    return [int(name) for name in found if name.isascii() and name.isdigit()]


def _number(value: Any) -> float | None:
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if good else None


def _said(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"there is no {text}" if isinstance(error, KeyError) else text


def folders(parent: str | os.PathLike[str]) -> list[Path]:
    """The folder itself where it is a run's, else the folders in it, by name.

    Raises:
        RunError: there is no such folder.
    """
    parent = Path(parent).expanduser()
    if not os.path.isdir(parent):  # also of a name that is too long for one
        raise RunError(f"there is no folder {str(parent)!r}; pass the folder of your runs, such as runs")
    if (parent / CONFIG).exists():
        return [parent]
    return sorted(path for path in parent.iterdir() if path.is_dir() and not path.name.startswith("."))


def table(paths: Sequence[Path]) -> str:
    """One line a run, in columns; a folder that cannot be understood has its fault in their place."""
    head = ["run", "state", "step", "loss", "images/s", "samples"]
    rows, faults = [head], []
    for path in paths:
        try:
            status = read_status(path)
        except RunError as error:
            faults.append(f"{path}: {error}")
            continue
        loss = "-" if status.loss is None else f"{status.loss:.4f}"
        speed = "-" if status.images_per_second is None else f"{status.images_per_second:,.0f}"
        samples = "-" if status.samples is None else str(status.samples)
        rows.append([str(path), status.state, f"{status.step:,}/{status.total:,}", loss, speed, samples])
    widths = [max(len(row[column]) for row in rows) for column in range(len(head) - 1)] + [0]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*(lines if len(rows) > 1 else ["no runs"]), *faults])


def main(arguments: Sequence[str] | None = None) -> int:
    """Lists the runs of a folder, by default `runs`; 2 where there is no such folder."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if set(arguments) & {"-h", "--help"}:
        print(USAGE)
        return 0
    try:
        if wrong := [text for n, text in enumerate(arguments) if n > 0 or text.startswith("-")]:
            raise RunError(f"{wrong[0]!r} is unexpected; {USAGE}")
        with silent_at_a_broken_pipe():
            print(table(folders(arguments[0] if arguments else "runs")))
    except RunError as error:
        print(f"jaxdiff runs: error: {error}", file=sys.stderr)
        return 2
    return 0
