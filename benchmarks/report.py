"""What the quality benchmarks share: lines of value, bound and verdict; their table; the JSON they leave."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from numpy.typing import ArrayLike, NDArray

from jaxdiff import __version__

if TYPE_CHECKING:
    from jaxdiff import Run  # only quality's benchmarks have one

PACKAGES = ("jax", "flax", "optax", "numpy", "scikit-learn")


@dataclasses.dataclass(frozen=True)
class Line:
    """One measured number.

    Args:
      name: what was measured.
      value: the number.
      low, high: the bounds, inclusive; None: none on this side. Without either the line only informs.
      percent: the value is a share, shown as a percentage.
    """

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    percent: bool = False

    @property
    def passed(self) -> bool | None:
        """Whether the value lies in its bounds (NaN does not); None without bounds.

        >>> Line("share", 0.93, low=0.95).passed, Line("share", float("nan"), low=0.95).passed, Line("note", 1.0).passed
        (False, False, None)
        """
        if self.low is None and self.high is None:
            return None
        above = self.low is None or self.value >= self.low
        below = self.high is None or self.value <= self.high
        return above and below


def table(lines: Sequence[Line]) -> str:
    """The lines as aligned text.

    >>> print(table([Line("recognised", 0.953, low=0.95, percent=True), Line("distance ratio", 1.1)]))
    measured        value  bound       verdict
    recognised      95.3%  >= 95.0%    pass
    distance ratio  1.100
    """

    def shown(value: float, percent: bool) -> str:
        return f"{100 * value:.1f}%" if percent else str(value) if isinstance(value, int) else f"{value:.3f}"

    rows = [("measured", "value", "bound", "verdict")]
    for line in lines:
        low, high = (None if b is None else shown(b, line.percent) for b in (line.low, line.high))
        bound = f"{low} to {high}" if low and high else f">= {low}" if low else f"<= {high}" if high else ""
        verdict = {True: "pass", False: "FAIL", None: ""}[line.passed]
        rows.append((line.name, shown(line.value, line.percent), bound, verdict))
    first, second, third = (max(map(len, column)) for column in list(zip(*rows, strict=True))[:3])
    return "\n".join(f"{a:<{first}}  {b:>{second}}  {c:<{third}}  {d}".rstrip() for a, b, c, d in rows)


def agreement_by_class(guesses: ArrayLike, labels: ArrayLike, classes: int = 10) -> NDArray[np.float64]:
    """Share of guesses that are the label, for each label.

    >>> agreement_by_class([0, 1, 1, 0], [0, 0, 1, 1], classes=2).tolist()
    [0.5, 0.5]
    """
    right = np.asarray(guesses) == np.asarray(labels)
    return np.array([right[np.asarray(labels) == label].mean() for label in range(classes)])


def by_class(title: str, shares: ArrayLike) -> str:
    """One line of ten percentages.

    >>> by_class("SVC", [1.0, 0.981])
    'SVC by class    0: 100.0%  1: 98.1%'
    """
    return f"{title} by class    " + "  ".join(f"{label}: {100 * s:.1f}%" for label, s in enumerate(np.asarray(shares)))


def finish(run: Run, lines: Sequence[Line], details: Mapping[str, Any], arguments: argparse.Namespace) -> int:
    """Prints the table, writes the JSON where ``arguments.out`` says, and returns the exit status.

    Args:
      run: what was measured.
      lines: the results.
      details: more of them, for the JSON.
      arguments: the parsed command line, with num, seed and out.

    Returns:
      1 if a line fails, else 0.
    """
    sampling = dataclasses.asdict(run.config.sample)
    print(f"\n{run.config.name}, step {run.step}: {sampling['sampler']}, {sampling['steps']} steps, guidance ", end="")
    print(f"{' '.join(sampling['guide']) or 'none'}, {arguments.num} samples, seed {arguments.seed}\n\n{table(lines)}")
    failed = [line.name for line in lines if line.passed is False]
    print(f"\n{'FAILED: ' + '; '.join(failed) if failed else 'every bound is met'}")
    if arguments.out is not None:
        record = {
            "run": {"name": run.config.name, "step": run.step, "seed": run.config.seed, "sample": sampling},
            "num": arguments.num,
            "seed": arguments.seed,
            "passed": not failed,
            "lines": [dataclasses.asdict(line) | {"passed": line.passed} for line in lines],
            **details,
        }
        write(arguments.out, record)
    return 1 if failed else 0


def write(file: Path, record: Mapping[str, Any], packages: Sequence[str] = PACKAGES) -> None:
    """Writes the JSON of a benchmark, with the versions and the hardware that its figures are of."""
    origin = {
        "versions": {"python": platform.python_version(), "jaxdiff": __version__}
        | {name: importlib.metadata.version(name) for name in packages},
        "hardware": {
            "machine": platform.machine(),
            "cores": os.cpu_count(),
            "devices": [device.device_kind for device in jax.local_devices()],
        },
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({**record, **origin}, indent=2, default=_plain) + "\n", encoding="utf-8")
    print(f"written to {file}")


def fill(page: str, name: str, text: str) -> str:
    """The page with ``text`` between the marks of that name.

    >>> fill("a <!-- NAME: generated --> b <!-- end of NAME --> c".replace("NAME", "orders"), "orders", "d")
    'a <!-- orders: generated -->\\nd\\n<!-- end of orders --> c'
    """
    begin, end = f"<!-- {name}: generated -->", f"<!-- end of {name} -->"
    before, first, rest = page.partition(begin)
    _, last, after = rest.partition(end)
    if not first or not last:
        raise ValueError(f"the page has no {begin} followed by {end}")
    return f"{before}{begin}\n{text}\n{end}{after}"


def spread(values: NDArray[np.float64]) -> dict[str, float]:
    """Median and quartiles.

    >>> spread(np.arange(5.0))
    {'quartile_1': 1.0, 'median': 2.0, 'quartile_3': 3.0}
    """
    low, middle, high = np.percentile(values, [25, 50, 75])
    return {"quartile_1": float(low), "median": float(middle), "quartile_3": float(high)}


def doubt(values: NDArray[np.float64]) -> float:
    """Half the width of the median's 95% interval by order statistics; infinite for fewer than six values.

    >>> doubt(np.arange(100.0)), doubt(np.arange(5.0))
    (9.5, inf)
    """
    n = len(values)
    below = int(np.floor(0.5 * n - 0.98 * np.sqrt(n)))
    if below < 0 or n < 6:
        return float("inf")
    ordered = np.sort(values)
    return float(0.5 * (ordered[n - 1 - below] - ordered[below]))


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} cannot be stored as JSON")


def add_arguments(parser: argparse.ArgumentParser, least: int = 100) -> None:
    """The arguments that every quality benchmark takes."""

    def number(text: str) -> int:
        if not text.isdigit() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
        return int(text)

    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("--num", type=number, default=1000, help=f"samples, at least {least}; the bounds are for 1000")
    parser.add_argument("--seed", type=int, default=0, help="of the samples")
    parser.add_argument("--out", type=Path, default=None, help="JSON file for the results")


def say(text: str) -> None:
    """A line of progress."""
    print(text, file=sys.stderr, flush=True)
