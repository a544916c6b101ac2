"""The converter where torch is not there; with it: `tests/parity/test_dit_files.py`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from jaxdiff.pretrained.convert import main


def test_without_torch_it_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert main([str(tmp_path / "x.pt"), str(tmp_path / "y")]) == 2
    said = capsys.readouterr().err
    assert said == 'convert: error: torch is missing, which reads such files: pip install "jaxdiff[convert]"\n'
