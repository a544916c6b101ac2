"""The command `jaxdiff`: its commands by name, its help, and what a shell completes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jaxdiff import __version__, commands
from jaxdiff.commands import COMMANDS, evaluate, sample, train
from tests.tiny_run import TINY

Run = Callable[..., Any]


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_the_commands_are_listed(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.main(arguments) == 0
    out = capsys.readouterr().out
    assert all(f"  jaxdiff {name}" in out for name in COMMANDS)


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.main(["--version"]) == 0
    assert capsys.readouterr().out == f"jaxdiff {__version__}\n"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("trian", "; did you mean 'train'?"),
        ("--seed", "; there are train, sample, evaluate, runs"),
        ("digits_unet", "; there are train, sample, evaluate, runs"),
    ],
)
def test_an_unknown_command(name: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.main([name]) == 2
    assert capsys.readouterr().err == f"jaxdiff: error: there is no command {name!r}{hint}\n"


@pytest.mark.parametrize(("name", "module"), [("train", train), ("sample", sample), ("evaluate", evaluate)])
def test_help_begins_with_the_text_of_the_module(name: str, module: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        module.main(["--help"])
    out = capsys.readouterr().out
    lines = [line.strip() for line in (module.__doc__ or "").splitlines() if line.strip()]
    assert lines[1].startswith(f"jaxdiff {name}") and all(line in out for line in lines)
    assert out.startswith(f"usage: jaxdiff {name}")


@pytest.mark.nightly
def test_from_training_to_the_list_of_runs(run_python: Run, tmp_path: Path) -> None:
    """By `python -m jaxdiff`: the configuration by its name, and each next command as it is printed."""
    folder = tmp_path / "runs" / "one"
    options = ("--workdir", folder, "--train.steps", "2", "--train.sample_every", "0", *TINY)
    trained = run_python("-m", "jaxdiff", "train", "digits_flow", *options).stdout
    assert json.loads((folder / "config.json").read_text())["name"] == "digits_flow"
    (line,) = [line for line in trained.splitlines() if line.startswith("to sample")]
    assert not any(line.startswith("samples ") for line in trained.splitlines())  # none were drawn
    assert line.split()[3:] == ["-m", "jaxdiff", "sample", str(folder)]
    drawn = run_python(*line.split()[3:], "--num", "4", "--out", tmp_path / "four.png").stdout
    assert drawn.splitlines()[-1] == f"4 samples from step 2 of {folder}: {tmp_path / 'four.png'}"
    assert "finished  2/2" in run_python("-m", "jaxdiff", "runs", tmp_path / "runs").stdout
    done = run_python("-m", "jaxdiff", "runs", tmp_path / "none", check=False)
    assert done.returncode == 2 and done.stderr.startswith("jaxdiff runs: error: there is no folder ")


COMPLETE = """
eval "$("$1" -m jaxdiff --tyro-print-completion bash)"
function=$(complete -p jaxdiff | sed 's/.*-F \\([^ ]*\\).*/\\1/')
completed() {
  COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
  $function
  echo "${COMPREPLY[@]}"
}
completed jaxdiff ev
completed jaxdiff train --optimizer.l
completed jaxdiff sample --feat
"""


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
def test_a_shell_completes_commands_and_options(repository: Path) -> None:
    given = ["bash", "-c", COMPLETE, "bash", sys.executable]
    done = subprocess.run(given, cwd=repository, capture_output=True, text=True, timeout=300)
    assert done.stdout.splitlines() == ["evaluate", "--optimizer.lr", "--feature-cache"], done.stderr
