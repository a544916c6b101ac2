"""Real runs of `train.py` killed, interrupted and damaged, and the same runs left alone.

A few of each; `benchmarks/reliability.py` tries many more, and the other cases of this folder.
"""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.faults.chains import STEPS_A_LIFE, Blow, chain, kill_moments, reference
from tests.faults.processes import Training
from tests.faults.storage import Stand, damaged_runs

BLOWS = (
    *kill_moments(3, seed=0),  # before the first checkpoint, and twice in a save
    Blow("saving", 1, 0.5, signal.SIGINT),
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compiled")


def test_every_blow_is_survived(tmp_path: Path, cache: Path) -> None:
    expected = reference(tmp_path, STEPS_A_LIFE * len(BLOWS), cache)
    training = Training(tmp_path / "run", ("--train.steps", str(expected.steps)), cache=cache)
    outcomes = chain(training, BLOWS, expected)
    assert [outcome.blow for outcome in outcomes] == list(BLOWS)
    assert [(str(outcome.blow), outcome.problems) for outcome in outcomes if outcome.problems] == []
    assert any(outcome.half_written for outcome in outcomes)  # at least one fell in a save


@pytest.mark.nightly
def test_damaged_runs_go_back_a_step_and_end_the_same(tmp_path: Path, cache: Path) -> None:
    tally = damaged_runs(Stand(tmp_path, cache), ["flip", "half-written step"])
    assert (tally.tried, tally.faults) == (2, [])
