"""The host's side of skipped steps: which they were, and what is left behind when there are too many in a row."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxdiff.train.state import TrainState

SKIPPED = "skipped_steps.json"


class DivergedError(Exception):
    """Training met too many numbers that are not finite, or gradients far too large; the message is for the user."""


def rewound(state: TrainState, steps: int, skipped: int) -> TrainState:
    """The state from before the last steps, none of which was taken.

    Args:
        state: the state after them.
        steps: how many they are.
        skipped: how many of them were counted as skipped: all but those after the K-th in a row.
    """
    guard = dataclasses.replace(
        state.guard, skipped=state.guard.skipped - skipped, in_a_row=state.guard.in_a_row - skipped
    )
    return dataclasses.replace(state, step=state.step - steps, guard=guard)


class SkippedRow:
    """The steps skipped in a row up to now.

    Args:
        most: in a row; that many end the run.

    Attributes:
        steps: each one's number and figures, of those that this process has run.
        before: how many of the row ran before it started.

    Example:
        >>> row = SkippedRow(3)
        >>> bad, good = {"loss": float("nan"), "grad_norm": 1.0}, {"loss": 0.5, "grad_norm": 1.0}
        >>> for step, in_a_row in enumerate([1, 0, 1, 2, 3, 3], 11):
        ...     row.add(step, (bad if in_a_row else good) | {"in_a_row": in_a_row})
        >>> row.full, row.first, [step["step"] for step in row.steps]
        (True, 13, [13, 14, 15])
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self.steps: list[dict[str, Any]] = []
        self.before = 0

    def add(self, step: int, metrics: Mapping[str, Any]) -> None:
        """One step's metrics, on the host; every step's, in order. Steps after a full row are not counted."""
        in_a_row = int(metrics["in_a_row"])
        if in_a_row == 0:
            self.steps, self.before = [], 0
        elif not self.full:
            self.steps.append({"step": step, **{name: float(metrics[name]) for name in ("loss", "grad_norm")}})
            self.before = in_a_row - len(self.steps)

    @property
    def full(self) -> bool:
        """Whether the run is to end."""
        return len(self.steps) + self.before >= self._most

    @property
    def first(self) -> int:
        """The number of the row's first step."""
        return int(self.steps[0]["step"]) - self.before

    def reason(self) -> str:
        """What was wrong with the first step known."""
        step = self.steps[0]
        wrong = next((name for name in ("loss", "grad_norm") if not math.isfinite(step[name])), None)
        said = f"{wrong} is {step[wrong]}" if wrong else f"grad_norm is {step['grad_norm']:.4g}, a spike,"
        return f"{said} at step {step['step']}"

    def write(self, folder: Path, records: Sequence[Sequence[int]], checkpoint: int) -> Path:
        """Writes the row as JSON; numbers that JSON cannot hold as text.

        Args:
            folder: the run's.
            records: of each step's batch.
            checkpoint: the step of the one to replay from.
        """
        steps = [
            {"step": self.first + n, "records": list(batch), **self._figures(self.first + n)}
            for n, batch in enumerate(records)
        ]
        path = folder / SKIPPED
        path.write_text(json.dumps({"checkpoint": checkpoint, "steps": steps}, indent=1, allow_nan=False) + "\n")
        return path

    def _figures(self, step: int) -> dict[str, Any]:
        known = next((each for each in self.steps if each["step"] == step), {})
        return {name: value if math.isfinite(value) else str(value) for name, value in known.items() if name != "step"}
