"""`--out`: tried before the work, kept elsewhere after it; and ~ in every path."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import evaluate
import sample
import train
from jaxdiff import load_samples
from jaxdiff.commands import sample as sampling
from jaxdiff.evaluate import METRICS, Result
from jaxdiff.runs import read_status
from jaxdiff.runs.listing import main as runs
from jaxdiff.runs.run import Run
from tests.commands.test_cli import TINY, one_line


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "digits"
    train.main(["--workdir", str(path), "--train.steps", "1", "--train.sample_every", "0", *TINY])
    return path


@pytest.mark.parametrize("name", ["grid.png", "s.npz", "folder"])
def test_a_place_that_cannot_be_written_is_refused_before_the_run_is_loaded(
    name: str, finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(Run, "load", lambda *arguments, **options: pytest.fail("it was loaded"))
    said = one_line(sample.main, [str(finished), "--out", f"/proc/{name}"], capsys)
    assert "--out: '/proc' cannot be written (" in said
    if name == "s.npz":
        said = one_line(evaluate.main, [str(finished), "--out", "/proc/r.json"], capsys)
        assert "--out: '/proc' cannot be written (" in said


def test_a_folder_with_a_files_name_is_refused(finished: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "a.png").mkdir()
    assert "is a folder, expected the name of a file" in one_line(
        sample.main, [str(finished), "--out", str(tmp_path / "a.png")], capsys
    )


@pytest.mark.parametrize("name", ["s.npz", "s.png"])
def test_samples_are_kept_elsewhere_when_their_folder_goes(
    name: str, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    gone, draw = tmp_path / "gone", sampling.draw

    def drawn(*arguments: Any, **options: Any) -> Any:
        gone.rmdir()
        gone.touch()
        return draw(*arguments, **options)

    gone.mkdir()
    monkeypatch.setattr(sampling, "draw", drawn)
    said = one_line(sample.main, [str(finished), "--num", "4", "--label", "1", "--out", str(gone / name)], capsys)
    assert f"--out: '{gone / name}' cannot be written (File exists)" in said
    kept = Path(re.findall(r"what was to stand there is in (\S+)", said)[0])
    try:
        if name == "s.npz":
            with np.load(kept) as arrays:
                assert arrays["x"].shape == (4, 8, 8, 1) and arrays["label"].tolist() == [1] * 4
        else:
            with Image.open(kept) as picture:
                assert picture.size[0] > 4 * 8
    finally:
        shutil.rmtree(kept.parent)


def test_figures_are_kept_elsewhere_too(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    gone = tmp_path / "gone"

    def metric(*arguments: Any) -> Any:
        gone.rmdir()
        gone.touch()
        yield Result("bpd ode", "bits/dim", 2, 2, 3.25, 0.25, {}, [3.0, 3.5])

    gone.mkdir()
    monkeypatch.setitem(METRICS, "bpd", metric)
    said = one_line(evaluate.main, [str(finished), "--out", str(gone / "r.json")], capsys)
    kept = Path(re.findall(r"what was to stand there is in (\S+)", said)[0])
    assert json.loads(kept.read_text())["results"][0]["values"] == [3.0, 3.5]
    shutil.rmtree(kept.parent)


@pytest.mark.nightly
def test_home_is_expanded_in_every_path(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """As of `--out=~/x`, a quoted path, or one in a configuration file, where no shell does it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished, tmp_path / "old")
    options = ["--train.steps", "1", "--train.sample_every", "0", *TINY]
    train.main([*options, "--workdir=~/new", "--init_from=~/old"])
    few = ["--num", "2", "--label", "1", "--steps", "2"]
    sample.main(["~/new", *few, "--out=~/a.png", "--compiled=~/kept"])
    sample.main(["~/new", *few, "--out=~/many"])
    assert runs(["~/new"]) == 0 and f"{tmp_path / 'new'}  finished" in capsys.readouterr().out
    assert Run.load("~/new").step == read_status("~/new").step == 1
    assert load_samples("~/many")["label"].tolist() == [1, 1]
    shutil.copy(finished / "config.json", tmp_path / "data.json")
    assert f"{tmp_path}/data.json: not an .npz file" in one_line(
        train.main, [*options, "--data.name=npz", "--data.path=~/data.json", "--workdir=~/x"], capsys
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "data.json", "kept", "many", "new", "old"]
