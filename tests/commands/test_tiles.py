"""`--size` and `--tiles` of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxdiff.commands import sample
from jaxdiff.panorama import panorama
from jaxdiff.runs import Run
from tests.commands.test_cli import one_line
from tests.runs.test_cascade import config, run_of


@pytest.fixture(scope="module")
def run() -> Run:
    return run_of(config("small", 4))


@pytest.fixture
def folder(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sample.Run, "load", lambda *arguments, **options: run)
    return tmp_path


def test_pictures_of_a_size_are_the_panoramas(run: Run, folder: Path) -> None:
    out = folder / "s.npz"
    options = [
        "--size",
        "4",
        "10",
        "--tiles",
        "1,wrap=x,together=3",
        "--label",
        "0",
        "2",
        "--num",
        "3",
        "--guide",
        "cfg:1.5",
    ]
    sample.main([str(folder), *options, "--out", str(out)])
    given: Any = {"stride": 1, "wrap": "x", "together": 3, "cond": {"label": [0, 0, 2]}, "guide": "cfg:1.5"}
    expected = panorama(run.model, 0, 3, (4, 10), **given)["x"].astype(int)
    with np.load(out) as arrays:
        assert arrays["label"].tolist() == [0, 0, 2] and np.abs(arrays["x"] - expected).max() <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--tiles 2", "--tiles is of pictures larger than the run's own: give their --size HEIGHT WIDTH too"),
        ("--size 4 2", "--size: size (4, 2) is below the (4, 4) that the model was trained on"),
        ("--size 4 8 --tiles 5", "--tiles: a stride of (5, 5) leaves gaps between windows of (4, 4)"),
        ("--size 4 8 --tiles 2,warp=x", "option has no number 'warp'; did you mean 'wrap'|tiles has no number 'warp'"),
        ("--size 4 8 --tiles 2,wrap=z", "wrap is to be none or x or y or both, got 'z'"),
        ("--size 4 8 --tiles wide", "is to be a whole number"),
    ],
)
def test_what_does_not_fit_is_one_line(options: str, message: str, folder: Path, capsys: Any) -> None:
    found = one_line(sample.main, [str(folder), *options.split()], capsys)
    assert any(each in found for each in message.split("|")), found
