"""A running folder that is moved or removed ends the run in one line, and nothing is written where it was."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jaxdiff.train import Checkpoints, SaveError
from tests.faults.processes import Training, half_written, logged, whole_steps
from tests.train import runs
from tests.train.runs import go


def moved(folder: Path) -> None:
    folder.rename(folder.with_name("elsewhere"))


def replaced(folder: Path) -> None:
    moved(folder)
    shutil.copytree(folder.with_name("elsewhere"), folder)


@pytest.mark.parametrize("change", [moved, replaced, shutil.rmtree])
def test_nothing_is_written_where_the_folder_was(
    change: Callable[[Path], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, drawn = tmp_path / "run", list[int]()

    def read(data: Any, whole: Any = runs.SlowData.__next__) -> Any:
        if data.position["batches"] == 5:
            while not (folder / "checkpoints" / "3").exists():  # it is saved in the background
                time.sleep(0.01)
            change(folder)
        return whole(data)

    monkeypatch.setattr(runs.SlowData, "__next__", read)
    with pytest.raises(SaveError, match="run was moved, removed or replaced while the run was training"):
        go(folder, 12, log_every=100, save_every=3, callbacks=[(2, lambda step, state: drawn.append(step))])
    assert drawn == [2, 4]
    assert folder.exists() == (change is replaced)
    if change is not shutil.rmtree:
        with Checkpoints(tmp_path / "elsewhere" / "checkpoints", readonly=True) as checkpoints:
            assert checkpoints.steps() == [3]
    if change is replaced:
        with Checkpoints(folder / "checkpoints", readonly=True) as checkpoints:
            assert checkpoints.steps() == [3]


@pytest.mark.nightly
def test_a_run_that_is_moved_while_it_saves_goes_on_from_its_new_place(tmp_path: Path) -> None:
    options = (
        *("--train.steps", "1000000", "--optimizer.schedule", "constant", "--train.sample_every", "1"),
        *("--checkpoint.every", "1"),
    )
    training = Training(tmp_path / "run", options)
    with training.start() as life:
        life.until(lambda: whole_steps(training.folder) and half_written(training.folder))
        moved(training.folder)
        assert life.end() == 2
    (said,) = [line for line in life.err.splitlines() if not line.startswith("step ")]
    assert said.startswith(f"train.py: error: {training.folder} was moved, removed or replaced"), life
    assert f"--workdir and {tmp_path / 'elsewhere'}, where it is now, goes on" in said
    assert not training.folder.exists()
    there = whole_steps(tmp_path / "elsewhere")[-1]
    again = Training(tmp_path / "elsewhere", ("--train.steps", str(there + 2), *options[2:]), cache=training.compiled)
    with again.start() as life:
        assert life.end() == 0, life
    assert f"going on after step {there}" in life.out
    assert [line["step"] for line in logged(again.folder)] == list(range(1, there + 3))
