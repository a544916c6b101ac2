"""What a command is called, and the lines that start the next one, by how the process was started."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from jaxdiff.launch.program import FILES, about, command, program


@pytest.fixture
def bin_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the installed command, from which processes are started."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "jaxdiff").write_text("#!/bin/sh\n")
    (tmp_path / "bin" / "jaxdiff").chmod(0o755)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "bin"


def started(monkeypatch: pytest.MonkeyPatch, path: str | Path) -> None:
    monkeypatch.setattr(sys, "argv", [str(path), "--seed", "1"])


def test_by_a_file_of_the_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    for name in FILES:
        (tmp_path / "here" / name).touch()
    for name in FILES:
        started(monkeypatch, tmp_path / "here" / name)
        assert program("train") == "train.py"
        assert command("sample", "my runs/x").endswith(" here/sample.py 'my runs/x'")
        assert about("train", "jaxdiff train x") == "python train.py x"
    (tmp_path / "here" / "sample.py").unlink()  # a file of one's own, of the same name
    started(monkeypatch, tmp_path / "here" / "train.py")
    assert command("sample", "runs/x").endswith(" -m jaxdiff sample runs/x")


def test_by_the_installed_command(bin_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started(monkeypatch, bin_folder / "jaxdiff")
    monkeypatch.setenv("PATH", str(bin_folder))
    assert program("train") == "jaxdiff train" and about("train", "jaxdiff train x") == "jaxdiff train x"
    assert command("sample", "runs/x", "--label", "3") == "jaxdiff sample runs/x --label 3"
    monkeypatch.setenv("PATH", os.defpath)  # not activated: by its path
    assert command("sample", "runs/x") == "bin/jaxdiff sample runs/x"


@pytest.mark.parametrize("path", ["/lib/jaxdiff/__main__.py", "-c", "", "/bin/ipython", "experiment.py"])
def test_otherwise_by_the_module(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    started(monkeypatch, path)
    assert program("sample") == "jaxdiff sample"
    assert command("sample", "runs/x").split()[1:] == ["-m", "jaxdiff", "sample", "runs/x"]
