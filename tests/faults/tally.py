"""How a promise fared: how often it was put to the test, how often it held, and what was seen where it did not."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence


@dataclasses.dataclass
class Tally:
    """Tries of one promise.

    Attributes:
        promise: what must hold, in a few words.
        tried: how often.
        kept: how often it held.
        kinds: what was tried, and how often.
        faults: one line for each time that it did not hold.
        notes: figures worth reading beside the count.

    >>> tally = Tally("a flipped bit is detected")
    >>> tally.add("params", [])
    >>> tally.add("ema", ["restored in silence"])
    >>> tally.kept, tally.tried, tally.faults
    (1, 2, ['ema: restored in silence'])
    """

    promise: str
    tried: int = 0
    kept: int = 0
    kinds: Counter[str] = dataclasses.field(default_factory=Counter)
    faults: list[str] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)

    def add(self, kind: str, problems: Sequence[str]) -> None:
        """One more try, and what was wrong with it."""
        self.tried += 1
        self.kinds[kind] += 1
        self.kept += not problems
        self.faults += [f"{kind}: {problem}" for problem in problems]
