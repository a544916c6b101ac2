"""A run of `train.py` struck by signals at chosen and random moments, and the same run left alone."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.faults.chains import STEPS_A_LIFE, Blow, Reference, chain, kill_moments, reference
from tests.faults.processes import Training

BLOWS = (
    *kill_moments(3, seed=0),  # before the first checkpoint, and twice in a save
    Blow("stepping", 1, 0.5, signal.SIGINT),
    Blow("saving", 1, 0.5, signal.SIGTERM, twice=True),
)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    return reference(tmp_path_factory.mktemp("alone"), STEPS_A_LIFE * len(BLOWS))


def test_every_blow_is_survived(tmp_path: Path, expected: Reference) -> None:
    training = Training(tmp_path / "run", ("--train.steps", str(expected.steps)))
    outcomes = chain(training, BLOWS, expected)
    assert [outcome.blow for outcome in outcomes] == list(BLOWS)
    assert [(str(o.blow), o.problems) for o in outcomes if o.problems] == []
    assert any(outcome.half_written for outcome in outcomes)  # at least one fell in a save
