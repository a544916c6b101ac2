"""Timing in turns: each form once a turn, the order reversed every other time, until the ratio asked about is known."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.report import doubt, say, spread
from benchmarks.speed.pipes import Worker, WorkerError

SETTLED = 0.01  # half the width of the median ratio's 95% interval at which no more turns are needed
SLOW = 3.0  # seconds of a call, from which a trial has fewer
LEAST_SECONDS = 0.3  # of one form in one turn; shorter calls are repeated
PAUSE = 0.2  # seconds before each timing, so that the other process's threads have gone to sleep

Timed = Callable[[], float]


def repeats(seconds: float) -> int:
    """Calls in one timing.

    >>> repeats(2.0), repeats(0.1)
    (1, 3)
    """
    return max(1, min(100, math.ceil(LEAST_SECONDS / max(seconds, 1e-6))))


@dataclasses.dataclass(frozen=True)
class Chosen:
    """PyTorch's form: the fastest of those tried, and what each took (seconds of a call) or why it could not be had."""

    form: str
    seconds: float
    tried: dict[str, float | str]
    build_seconds: dict[str, float]

    @property
    def near(self) -> list[str]:
        """The forms worth a trial at a larger batch.

        >>> Chosen("a", 1.0, {"a": 1.0, "b": 1.4, "c": 1.6, "d": "no compiler"}, {}).near
        ['a', 'b']
        """
        seconds = {form: taken for form, taken in self.tried.items() if not isinstance(taken, str)}
        return [form for form, taken in seconds.items() if taken <= 1.5 * self.seconds]


def choose(torch: Worker, forms: Sequence[str], mode: str, batch: int, dtype: str) -> Chosen:
    """Builds every form, times it briefly, and keeps the fastest.

    Raises:
      RuntimeError: none could be built.
    """
    tried: dict[str, float | str] = {}
    built: dict[str, float] = {}
    best: str | None = None
    for form in forms:
        try:
            built[form] = torch.ask("build", form=form, mode=mode, batch=batch, dtype=dtype)
            once = torch.ask("time", form=form, calls=1)
            laps = [once] + [torch.ask("time", form=form, calls=repeats(once)) for _ in range(2 if once < SLOW else 1)]
        except WorkerError as error:
            tried[form] = str(error)
            torch.ask("drop", form=form)
            say(f"  {form}: {error}")
            continue
        tried[form] = min(laps)
        say(f"  {form}: {1e3 * min(laps):.1f} ms a call, built in {built[form]:.0f} s")
        slower = form if best is not None and min(laps) >= float(tried[best]) else best
        best = best if slower == form else form
        if slower is not None:
            torch.ask("drop", form=slower)
    if best is None:
        raise RuntimeError(f"PyTorch had no form for {mode} at batch {batch} in {dtype}: {tried}")
    return Chosen(best, float(tried[best]), tried, built)


def in_turns(timed: Mapping[str, Timed], pair: tuple[str, str], least: int, longest: float) -> dict[str, NDArray[Any]]:
    """Seconds of a call of each form, one a turn: ``least`` turns, and more until the median of the pair's ratio is
    known to `SETTLED` or they have taken ``longest`` seconds.

    >>> laps = in_turns({"a": lambda: 2.0, "b": lambda: 1.0}, ("a", "b"), least=6, longest=0.0)
    >>> len(laps["a"]), float(np.median(laps["a"] / laps["b"]))
    (6, 2.0)
    """
    laps: dict[str, list[float]] = {name: [] for name in timed}
    names = list(timed)
    begin = time.perf_counter()
    first, second = (laps[name] for name in pair)
    while len(first) < least or (
        time.perf_counter() - begin < longest and doubt(np.divide(first, second)) > SETTLED
    ):  # fmt: skip
        for name in names if len(first) % 2 == 0 else names[::-1]:
            time.sleep(PAUSE)
            lap = timed[name]()
            laps[name].append(lap)
    return {name: np.array(values) for name, values in laps.items()}


def compared(laps: Mapping[str, NDArray[Any]], over: str, under: str) -> dict[str, float | None]:
    """Median, quartiles and 95% interval (half its width; None for too few turns) of a ratio turn by turn: above 1,
    ``under`` is faster."""
    ratio = laps[over] / laps[under]
    return {**spread(ratio), "doubt": doubt(ratio) if math.isfinite(doubt(ratio)) else None}
