"""What a run says of itself: `metrics.jsonl`, TensorBoard, and a progress bar.

`metrics.jsonl` has one JSON object a logged step, `step` first. Numbers that JSON cannot hold (NaN, infinities) are
written as null.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

METRICS = "metrics.jsonl"
Value = float | int | list[float]
_LATEST = ("lr", "param_norm", "skipped")  # means over an interval say nothing of these


def summarize(steps: Sequence[Mapping[str, Any]]) -> dict[str, Value]:
    """Metrics of several steps as one record: means over the steps that were not skipped (NaN where all were), except
    the last `lr`, `param_norm` and `skipped`, and `loss_by_noise` bin by bin.

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
        elif name == "loss_by_noise":
            sums, counts = sum((np.asarray(step[name], np.float64) for step in taken), np.zeros(steps[-1][name].shape))
            record[name] = [float(s / n) if n else math.nan for s, n in zip(sums, counts, strict=True)]
        else:
            record[name] = float(np.mean([float(step[name]) for step in taken])) if taken else math.nan
    return record


class MetricsLog:
    """Writes records to `folder/metrics.jsonl` and, when wanted, TensorBoard events to `folder/tensorboard`.

    Args:
        folder: the run's folder; made when missing.
        start: the step the run goes on from: lines of later steps, and a torn last line, are cut off.
        tensorboard: write events as well.
        active: False writes nothing: processes other than the first.

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
        self, folder: str | os.PathLike[str], *, start: int = 0, tensorboard: bool = True, active: bool = True
    ) -> None:
        self.folder = Path(folder)
        self._file = None
        self._events = None
        if not active:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / METRICS
        cut_back(path, start)
        self._file = path.open("a", encoding="utf-8")
        if tensorboard:
            from tensorboardX import SummaryWriter  # slow to import, and samplers never need it

            self._events = SummaryWriter(str(self.folder / "tensorboard"), purge_step=start + 1)

    def write(self, step: int, record: Mapping[str, Value]) -> None:
        """Append one line, and flush it."""
        if self._file is None:
            return
        line = {"step": step} | {name: _json(value) for name, value in record.items()}
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()
        if self._events is not None:
            for name, value in record.items():
                values = enumerate(value) if isinstance(value, list) else [(None, value)]
                for index, number in values:
                    tag = name if index is None else f"{name}/{index}"
                    if math.isfinite(number):
                        self._events.add_scalar(tag, number, step)

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Show an image, uint8 (H, W, C), in TensorBoard."""
        if self._events is not None:
            self._events.add_image(name, image, step, dataformats="HWC")

    def close(self) -> None:
        for writer in (self._file, self._events):
            if writer is not None:
                writer.close()

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def cut_back(path: Path, start: int) -> None:
    """Cut a metrics file after its last whole line of a step up to `start`; a missing file stays missing."""
    if not path.exists():
        return
    good = 0
    with path.open("rb") as file:
        for line in file:
            step = _step_of(line)
            if step is None or step > start:
                break
            good += len(line)
    if good < path.stat().st_size:
        os.truncate(path, good)


def _step_of(line: bytes) -> int | None:
    if not line.endswith(b"\n"):
        return None
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return None


def _json(value: Value) -> Any:
    if isinstance(value, list):
        return [_json(item) for item in value]
    return value if math.isfinite(value) else None


class Progress:
    """A Rich bar on a terminal, plain lines elsewhere, nothing when not active.

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
        if active and sys.stdout.isatty():
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

    def update(self, step: int, *, loss: float, images_per_second: float) -> None:
        """Show the figures of a step."""
        if not self._active:
            return
        done = max(step - self._start, 1)
        left = (time.monotonic() - self._begun) / done * (self._total - step)
        text = f"loss {loss:.4f}  {images_per_second:,.0f} images/s  {_clock(left)} left"
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
