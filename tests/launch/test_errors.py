"""A person's mistake is one line, and output that nobody reads is none."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jaxdiff.launch.errors import silent_at_a_broken_pipe


@pytest.mark.parametrize("program", ["train.py --help", "sample.py --help", "-m jaxdiff.runs {}", "-m jaxdiff --help"])
def test_a_reader_that_goes_leaves_nothing_said(program: str, repository: Path, tmp_path: Path) -> None:
    """As of `| head -0`: the pipe is closed before the program writes its first line into it."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, *program.format(tmp_path).split()],
            cwd=repository,
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


def test_the_break_of_another_pipe_is_an_error() -> None:
    with pytest.raises(BrokenPipeError), silent_at_a_broken_pipe():
        raise BrokenPipeError("of a worker")


@pytest.mark.parametrize("program", ["train.py", "sample.py", "evaluate.py"])
def test_a_backend_that_is_not_there_is_one_line(program: str, run_python: Callable[..., Any], tmp_path: Path) -> None:
    options = ["--workdir", tmp_path / "run"] if program == "train.py" else [tmp_path]
    done = run_python(program, *options, env={"JAX_PLATFORMS": "cuda"}, check=False)
    assert done.returncode == 2, done.stderr
    (said,) = [line for line in done.stderr.splitlines() if "error: " in line]
    assert said.startswith(f"{program}: error: JAX_PLATFORMS=cuda: ") and "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
