"""Damaged, half-written and contested folders of real runs; `benchmarks/reliability.py` tries many more."""

from __future__ import annotations

import pytest

from tests.faults.storage import Stand, damaged_runs, second_training


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Stand:
    return Stand(tmp_path_factory.mktemp("stand"))


def test_damaged_runs_go_back_a_step_and_end_the_same(stand: Stand) -> None:
    tally = damaged_runs(stand, ["flip", "half-written step"])
    assert (tally.tried, tally.faults) == (2, [])


def test_a_second_training_is_refused(stand: Stand) -> None:
    tally = second_training(stand)
    assert (tally.tried, tally.faults) == (2, [])
