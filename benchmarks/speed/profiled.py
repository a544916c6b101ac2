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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

LOOPS = ("while", "conditional")


def longest_operations(call: Callable[[], Any], calls: int, most: int) -> dict[str, Any]:
    """The operations that took longest, over so many calls.

    Returns:
      ``operations``: lists of name, share of all operations' time, milliseconds a call and times a call, longest first;
      ``about``: what was counted.
    """
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            begin = time.perf_counter()
            for _ in range(calls):
                call()
            clock = 1e3 * (time.perf_counter() - begin)
        (file,) = Path(folder).rglob("*.xplane.pb")
        data = jax.profiler.ProfileData.from_file(str(file))
    taken: dict[str, float] = defaultdict(float)
    times: dict[str, int] = defaultdict(int)
    for plane in data.planes:
        for line in plane.lines:
            for event in line.events:
                kind = re.sub(r"[.\d]+$", "", event.name)
                if kind not in LOOPS and any(name == "hlo_op" for name, _ in event.stats):
                    taken[kind] += event.duration_ns / 1e6
                    times[kind] += 1
    whole = sum(taken.values())
    longest = sorted(taken, key=lambda name: -taken[name])[:most]
    return {
        "about": f"{clock / calls:.1f} ms a call by the clock, {whole / calls:.1f} ms of operations",
        "operations": [[name, taken[name] / whole, taken[name] / calls, times[name] // calls] for name in longest],
    }
