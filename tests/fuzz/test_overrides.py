"""Random command lines: a run that would train, or one clear line; never a traceback, never a half-made folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from tests.fuzz.overrides import command_lines, fuzz

PROCESSES = 3  # `python -m tests.fuzz.overrides 2000` tries more


@pytest.mark.parametrize("count", [40, pytest.param(500, marks=pytest.mark.nightly)])
def test_in_one_process(count: int, capsys: Any) -> None:
    counts = fuzz(count, seed=2)  # whose first 40 hold enough of both
    assert counts["wrong"] == 0, capsys.readouterr().err
    assert counts["tried"] >= count / 2 and min(counts["runs"], counts["refused"]) > count / 15


def real_processes(run_python: Callable[..., Any], folder: Path, count: int, seed: int) -> dict[str, int]:
    """Random command lines as real processes that train one step where they can."""
    drawn: list[list[str]] = []

    @hypothesis.seed(seed)
    @hypothesis.settings(max_examples=count, database=None, phases=[hypothesis.Phase.generate])
    @hypothesis.given(command_lines())
    def draw(arguments: list[str]) -> None:
        drawn.append(arguments)

    draw()
    found = {"runs": 0, "refused": 0}
    for number, arguments in enumerate(drawn[:count]):
        run = folder / f"run{number}"
        one = ("--train.steps", "1", "--train.sample_every", "0")
        done = run_python("train.py", *arguments, *one, "--workdir", run, check=False)
        assert "Traceback" not in done.stderr, (arguments, done.stderr)
        if done.returncode == 0:
            assert (run / "checkpoints" / "1" / "files.json").is_file(), arguments
        else:
            assert done.returncode == 2 and done.stderr.count("\n") == 1, (arguments, done.stderr)
            assert not run.exists(), arguments
        found["runs" if done.returncode == 0 else "refused"] += 1
    return found


@pytest.mark.nightly
def test_as_real_processes(run_python: Callable[..., Any], tmp_path: Path) -> None:
    assert sum(real_processes(run_python, tmp_path, PROCESSES, seed=2).values()) == PROCESSES
