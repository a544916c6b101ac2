"""Batches that come late are reported; one that cannot be read is read again."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from jaxdiff.train import batch_sharding, make_mesh
from jaxdiff.train.prefetch import AGAIN, PATIENCE, Prefetch
from tests.train.standins import Data


class Halting(Data):
    """Waits before the second batch until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.go = threading.Event()

    def __next__(self) -> Any:
        if self.position["batches"] == 1:
            assert self.go.wait(timeout=60)
        return super().__next__()


def test_data_that_stand_still_are_reported_and_waited_for() -> None:
    said = list[str]()
    data = Halting()

    def say(text: str) -> None:
        said.append(text)
        if len(said) == 3:
            data.go.set()

    with Prefetch(data, batch_sharding(make_mesh(data=1)), patience=0.05, again=0.1, say=say) as batches:
        batches.take()
        assert said == []
        batches.take()
        assert batches.position == {"batches": 2}
        assert len(said) == 3 and all(text.startswith("WARNING: process 0 has waited ") for text in said)
        assert "for the batch after {'batches': 1}" in said[0]
        batches.take()
    assert len(said) == 3


def test_a_report_comes_within_a_minute() -> None:
    assert PATIENCE < 60 and AGAIN <= 60


def test_within_several_batches_only_the_one_that_failed_is_read_again() -> None:
    class Failing(Data):
        failed = False

        def __next__(self) -> Any:
            if self.position["batches"] == 2 and not self.failed:
                self.failed = True
                raise OSError("no")
            return super().__next__()

    with Prefetch(Failing(), batch_sharding(make_mesh(data=1))) as batches:
        with pytest.raises(OSError, match="no"):
            batches.take(4)
        assert batches.position == {"batches": 0}
        taken, expected = batches.take(4), Data()
        assert batches.position == {"batches": 4}
        assert [(one["x"] == next(expected)["x"]).all() for one in taken] == [True] * 4
