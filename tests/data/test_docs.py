"""docs/data.md runs: its Python as it stands, and its command on photos."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import train
from jaxdiff.config import SOURCES
from jaxdiff.config.folder import CONFIG
from jaxdiff.runs.run import Run
from tests.test_readme import blocks, run_block

PAGE = Path(__file__).resolve().parents[2] / "docs" / "data.md"
SNIPPETS = blocks(PAGE, "python")


@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_snippets_run(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("jaxdiff.config.build.SOURCES", dict(SOURCES))
    run_block(SNIPPETS[number], f"data_{number}")


@pytest.mark.nightly
def test_the_command_trains_on_photos(
    tmp_path: Path, shared_data: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """The twelve photos in three classes, one turned, one linked, one transparent; a small network, two steps."""
    for number, photo in enumerate(sorted((shared_data / "photos").glob("*.png"))):
        target = tmp_path / "photos" / "train" / ("cat", "dog", "other")[number % 3] / photo.name
        target.parent.mkdir(parents=True, exist_ok=True)
        exif = Image.Exif()
        exif[0x0112] = 6
        if number == 0:
            target.symlink_to(photo)
        elif number == 1:
            Image.open(photo).convert("RGBA").save(target)
        else:
            Image.open(photo).save(target, exif=exif if number == 2 else None)
    command = " ".join(blocks(PAGE, "bash")[0].split("\\\n"))
    program, file, *arguments = shlex.split(command)
    assert (program, file) == ("python", "train.py")
    monkeypatch.chdir(tmp_path)
    small = "--network.width 8 --network.blocks 1 --train.steps 2 --train.batch_size 4 --train.sample_every 0"
    train.main([*arguments, *small.split(), "--optimizer.warmup", "1", "--sample.steps", "2", "--no-cache"])
    assert re.search(r"12 records, .* in runs/photos", capsys.readouterr().out)
    run = Run.load(tmp_path / "runs" / "photos")
    assert run.config.data.classes == ("cat", "dog", "other")
    assert '"classes": ["cat", "dog", "other"]' in (tmp_path / "runs" / "photos" / CONFIG).read_text()
    assert run.sample(0, 2, {"label": 1})["x"].shape == (2, 32, 32, 3)
