"""Time travel of methods of reconstruction: steps divided and taken again (`jaxdiff.sampling.recurrent`).

What a step has made of the part that was not measured is then seen by the next round together with the measurement.
"""

from __future__ import annotations

from jaxdiff.sampling import Recurrent, Sampler


def travelling(sampler: Sampler, rounds: int, jumps: int) -> Sampler:
    """A sampler whose steps are divided into ``jumps`` and taken ``rounds`` times; 1 and 1 is the sampler itself."""
    return sampler if rounds == jumps == 1 else Recurrent(sampler, rounds - 1, jumps)


def check_travel(rounds: int, jumps: int, name: str) -> None:
    """Raises ValueError if rounds and jumps are not whole numbers from 1 on."""
    for what, number in (("rounds", rounds), ("jumps", jumps)):
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise ValueError(f"{what} of {name} are to be a whole number, 1 or more, got {number!r}")
