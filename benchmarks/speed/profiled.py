"""Where a compiled program's time goes, by operation, from jax's own profiler.

Each operation counts for as long as the thread that started it was in it, so operations that run side by side add up to
more than the clock's time, and one that hands its work to other threads and returns counts less than it cost: the two
totals are given for the reader to see. Loops are left out, whose bodies count themselves.
"""

from __future__ import annotations

import re
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from benchmarks.speed.kernel_kinds import shares

LOOPS = ("while", "conditional")


def longest_operations(call: Callable[[], Any], calls: int, most: int) -> dict[str, Any]:
    """The operations that took longest, over so many calls.

    Returns:
      ``operations``: lists of name, share of all operations' time, milliseconds a call and times a call, longest first;
      ``about``: what was counted.
    """

    def run() -> None:
        for _ in range(calls):
            call()

    data, clock = _traced(run)
    taken: dict[str, float] = defaultdict(float)
    times: dict[str, int] = defaultdict(int)
    for plane in data.planes:
        for line in plane.lines:
            for event in line.events:
                kind = re.sub(r"[.\d]+$", "", event.name)
                if kind not in LOOPS and any(name == "hlo_op" for name, _ in event.stats):
                    taken[kind] += event.duration_ns / 1e6
                    times[kind] += 1
    return _longest(taken, times, calls, most) | {
        "about": f"{clock / calls:.1f} ms a call by the clock, {sum(taken.values()) / calls:.1f} ms of operations"
    }


def device_time(run: Callable[[], Any], calls: int, most: int) -> dict[str, Any]:
    """What an accelerator did while ``run`` made so many calls and waited: its kernels, and when it did nothing.

    Returns:
      ``operations`` as `longest_operations`; ``about``; ``idle``: the share of the time between the first kernel's
      begin and the last one's end in which none ran; ``gaps``: how many such times were longer than 10 microseconds,
      and their milliseconds, a call; ``kinds``: the share of each kind of kernel.

    Raises:
      RuntimeError: the profiler saw no kernel.
    """
    data, clock = _traced(run)
    lines = [line for plane in data.planes if plane.name.startswith("/device:") for line in plane.lines]
    streams = [line for line in lines if line.name.startswith("Stream")]  # a GPU's; other lines sum them up
    events = [event for line in streams or [line for line in lines if line.name == "XLA Ops"] for event in line.events]
    if not events:
        seen = ", ".join(plane.name for plane in data.planes)
        raise RuntimeError(f"the profiler saw no kernel, only {seen or 'nothing'}")
    taken: dict[str, float] = defaultdict(float)
    times: dict[str, int] = defaultdict(int)
    for event in events:
        name = event.name[:120]
        taken[name] += event.duration_ns / 1e6
        times[name] += 1
    busy, gaps = occupied([(event.start_ns / 1e6, (event.start_ns + event.duration_ns) / 1e6) for event in events])
    long = [gap for gap in gaps if gap > 0.01]
    idle = sum(gaps) / (busy + sum(gaps))
    return _longest(taken, times, calls, most) | {
        "about": f"{clock / calls:.1f} ms a call by the clock under the profiler, the device busy for "
        f"{busy / calls:.1f} ms and idle for {100 * idle:.1f}% of the time between",
        "idle": idle,
        "gaps": {"number": len(long) / calls, "milliseconds": sum(long) / calls},
        "kinds": shares(taken.items()),
    }


def occupied(intervals: Sequence[tuple[float, float]]) -> tuple[float, list[float]]:
    """Length of the union of intervals, and of each gap in it.

    >>> occupied([(0.0, 2.0), (1.0, 3.0), (5.0, 6.0), (5.5, 5.8)])
    (4.0, [2.0])
    """
    busy, gaps, end = 0.0, [], min(begin for begin, _ in intervals)
    for begin, finish in sorted(intervals):
        if begin > end:
            gaps.append(begin - end)
        busy += max(0.0, finish - max(begin, end))
        end = max(end, finish)
    return busy, gaps


def _traced(run: Callable[[], Any]) -> tuple[Any, float]:
    """What the profiler recorded of a run, and the run's milliseconds."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            begin = time.perf_counter()
            run()
            clock = 1e3 * (time.perf_counter() - begin)
        (file,) = Path(folder).rglob("*.xplane.pb")
        return jax.profiler.ProfileData.from_file(str(file)), clock


def _longest(taken: dict[str, float], times: dict[str, int], calls: int, most: int) -> dict[str, Any]:
    whole = sum(taken.values())
    longest = sorted(taken, key=lambda name: -taken[name])[:most]
    return {"operations": [[name, taken[name] / whole, taken[name] / calls, times[name] // calls] for name in longest]}
