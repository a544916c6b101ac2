"""A trace of some steps is in the run's folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jaxdiff.train import Window
from tests.train.runs import go


@pytest.mark.parametrize("text", ["", "5", "5:", "a:b", "0:3", "4:3", "-1:3", "1:2:3"])
def test_what_is_no_range_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a range of steps"):
        Window.parse(text)


@pytest.mark.parametrize(("steps_per_call", "traced"), [(1, "3 to 4"), (4, "1 to 4")])
def test_a_trace_is_written(tmp_path: Path, capsys: Any, steps_per_call: int, traced: str) -> None:
    go(tmp_path, 8, profile=Window(3, 4), steps_per_call=steps_per_call)
    assert f"traced steps {traced}: {tmp_path / 'profile'}" in capsys.readouterr().out
    (file,) = (tmp_path / "profile").rglob("*.xplane.pb")
    assert file.stat().st_size > 1000


def test_steps_that_are_not_run_are_not_traced(tmp_path: Path, capsys: Any) -> None:
    go(tmp_path, 4, profile=Window(7, 9))
    assert "no trace: steps 7 to 9 were not run" in capsys.readouterr().out
    assert not (tmp_path / "profile").exists()
