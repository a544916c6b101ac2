"""What a run says of itself: `metrics.jsonl`, TensorBoard, and a progress bar.

`metrics.jsonl` has one JSON object a logged step, `step` first. Numbers that JSON cannot hold (NaN, infinities) are
written as null. A disk that is full is told of once and ends nothing: lines are kept until there is room.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxdiff.train.events import Events

METRICS = "metrics.jsonl"
Value = float | int | list[float]
_LATEST = ("lr", "param_norm", "skipped")  # means over an interval say nothing of these


def summarize(steps: Sequence[Mapping[str, Any]]) -> dict[str, Value]:
    """Metrics of several steps as one record: means over the steps that were not skipped (NaN where all were), except
    the last `lr`, `param_norm` and `skipped`, and what ends in `_by_noise`, sums and counts, bin by bin.

    Args:
        steps: metrics on the host, as `train_step` returns them, at least one step.

    Example:
        >>> import numpy as np
        >>> first = {"loss": np.float32(1), "lr": np.float32(0), "loss_by_noise": np.array([[2.0, 0.0], [4.0, 0.0]])}
        >>> second = {"loss": np.float32(3), "lr": np.float32(1), "loss_by_noise": np.array([[1.0, 0.0], [2.0, 0.0]])}
        >>> summarize([first, second])
        {'loss': 2.0, 'lr': 1.0, 'loss_by_noise': [0.5, nan]}
    """
    record: dict[str, Value] = {}
    taken = [step for step in steps if not step.get("in_a_row", 0)]
    names = [name for name in steps[-1] if name != "in_a_row"]
    for name in sorted(names, key=lambda name: name != "loss"):  # jit returns dictionaries in alphabetical order
        if name in _LATEST:
            record[name] = np.asarray(steps[-1][name]).item()
        elif name.endswith("_by_noise"):
            sums, counts = sum((np.asarray(step[name], np.float64) for step in taken), np.zeros(steps[-1][name].shape))
            record[name] = [float(s / n) if n else math.nan for s, n in zip(sums, counts, strict=True)]
        else:
            record[name] = float(np.mean([float(step[name]) for step in taken])) if taken else math.nan
    return record


class MetricsLog:
    """Writes records to `folder/metrics.jsonl` and, when wanted, TensorBoard events to `folder/tensorboard`.

    Args:
        folder: the run's folder; made when missing.
        start: the step the run goes on from: lines of later steps, and a torn last line, are taken out.
        tensorboard: write events as well.
        active: False writes nothing: processes other than the first.
        listener: gets each record too, with its step: for a tracker of experiments. What it raises is told of once.

    Attributes:
        folder: the run's folder.

    Example:
        >>> import tempfile, pathlib
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with MetricsLog(folder, tensorboard=False) as log:
        ...         log.write(10, {"loss": 0.5, "grad_norm": float("nan")})
        ...     print(pathlib.Path(folder, "metrics.jsonl").read_text(), end="")
        {"step": 10, "loss": 0.5, "grad_norm": null}
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        start: int = 0,
        tensorboard: bool = True,
        active: bool = True,
        listener: Callable[[int, Mapping[str, Any]], None] | None = None,
    ) -> None:
        self.folder = Path(folder)
        self._listener = listener if active else None
        self._file: Any = None
        self._events: Any = None
        self._owed = b""  # what did not fit on the disk yet
        self._full = self._listener_failed = False
        if not active:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        self._path = self.folder / METRICS
        cut_back(self._path, start)
        self._file = self._path.open("ab", buffering=0)
        if tensorboard:
            with self._drawn():
                self._events = Events(self.folder / "tensorboard", start + 1)

    def write(self, step: int, record: Mapping[str, Value]) -> None:
        """Append one line, and flush it."""
        if self._file is None:
            return
        line = {"step": step} | {name: _json(value) for name, value in record.items()}
        self._owed += json.dumps(line, allow_nan=False).encode() + b"\n"
        try:
            while self._owed:
                self._owed = self._owed[self._file.write(self._owed) :]
            self._full = False
        except OSError as error:
            if not self._full:
                _warn(self._path, error)
            self._full = True
        with self._drawn() as events:
            for name, value in record.items() if events is not None else ():
                for index, number in enumerate(value) if isinstance(value, list) else [(None, value)]:
                    if math.isfinite(number):
                        events.number(name if index is None else f"{name}/{index}", number, step)
        if self._listener is not None:
            self._tell(self._listener, step, dict(record))

    def _tell(self, listener: Callable[[int, Mapping[str, Any]], None], step: int, record: dict[str, Any]) -> None:
        try:
            listener(step, record)
        # A run is worth more than a tracker of it, whatever the tracker raises.
        except Exception as error:
            if not self._listener_failed:
                told = " ".join(f"{type(error).__name__}: {error}".split())
                print(
                    f"WARNING: log raised {told} (step {step}); training goes on, and further ones are not told of",
                    file=sys.stderr,
                    flush=True,
                )
            self._listener_failed = True

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Show an image, uint8 (H, W, C), in TensorBoard."""
        with self._drawn() as events:
            if events is not None:
                events.picture(name, image, step)

    @contextlib.contextmanager
    def _drawn(self) -> Iterator[Any]:
        """The event file, or None; the first error ends it: its records would no longer be read."""
        try:
            yield self._events
        except OSError as error:
            if self._events is not None:
                self._events.abandon()
            self._events = None
            _warn(self._path.with_name("tensorboard"), error)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        with self._drawn() as events:
            if events is not None:
                events.close()

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _warn(path: Path, error: OSError) -> None:
    print(f"WARNING: {path} cannot be written ({error.strerror})", file=sys.stderr, flush=True)


def cut_back(path: Path, start: int) -> None:
    """Takes the lines of steps after `start`, and a torn last line, out of a metrics file; a missing one stays missing.

    Lines that are no record of a step stay where they are: they are someone else's.
    """
    if not path.exists():
        return
    with path.open("rb") as file:
        lines = file.readlines()
    kept = [line for line in lines if line.endswith(b"\n") and ((step := _step_of(line)) is None or step <= start)]
    if kept == lines[: len(kept)]:
        os.truncate(path, sum(map(len, kept)))
    else:
        partial = path.with_suffix(".partial")
        partial.write_bytes(b"".join(kept))
        partial.replace(path)


def _step_of(line: bytes) -> int | None:
    try:
        step = json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return None
    return step if type(step) is int else None


def _json(value: Value) -> Any:
    if isinstance(value, list):
        return [_json(item) for item in value]
    return value if math.isfinite(value) else None


class Progress:
    """A Rich bar on a terminal that can move its cursor, plain lines elsewhere, nothing when not active.

    Args:
        total: steps of the run.
        start: steps done already.
        active: False shows nothing.

    Example:
        >>> with Progress(100) as progress:
        ...     progress.update(50, loss=0.25, images_per_second=1000.0)    # doctest: +ELLIPSIS
        step 50/100  loss 0.2500  1,000 images/s  ... left
    """

    def __init__(self, total: int, start: int = 0, *, active: bool = True) -> None:
        self._total, self._start, self._active = total, start, active
        self._begun = time.monotonic()
        self._bar: Any = None
        if active and sys.stdout.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown"):
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
            from rich.progress import Progress as Bar

            columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
            self._bar = Bar(*columns, refresh_per_second=2)
            self._task = self._bar.add_task("compiling", total=total, completed=start)

    def begin(self) -> None:
        """Time left is counted from here."""
        self._begun = time.monotonic()

    def advance(self, step: int) -> None:
        """Move the bar, without new figures."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

    def update(self, step: int, *, loss: float, images_per_second: float, **more: float) -> None:
        """Show the figures of a step; ``more`` of them by name, such as a classifier's accuracy."""
        if not self._active:
            return
        done = max(step - self._start, 1)
        left = (time.monotonic() - self._begun) / done * (self._total - step)
        told = "".join(f"  {name} {value:.3f}" for name, value in more.items())
        text = f"loss {loss:.4f}{told}  {images_per_second:,.0f} images/s  {_clock(left)} left"
        if self._bar is not None:
            self._bar.update(self._task, completed=step, description=text)
        else:
            print(f"step {step}/{self._total}  {text}", flush=True)

    def say(self, text: str) -> None:
        """Print a line, above the bar where there is one."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        elif self._active:
            print(text, flush=True)

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.stop()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
