"""Published models by the names of the Hub's repositories, with a package for it that is not the real one, or none."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

import jaxdiff
from jaxdiff.commands.train import main as train
from jaxdiff.pretrained import PretrainedError, load_network, load_pipeline
from jaxdiff.pretrained.control import control_folders
from jaxdiff.pretrained.origin import found, is_published
from jaxdiff.runs.published import load_config, published_config
from tests.pretrained.test_pipeline import write_pixels

NAME = "hf:owner/name"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pixels(tmp_path_factory.mktemp("pixels") / "model")


@pytest.fixture
def asked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the Hub's package is asked for; it has one repository."""
    calls: list[Any] = []

    def snapshot_download(name: str, *, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        calls.append((name, allow_patterns, ignore_patterns))
        if name == "owner/network":
            return str(folder / "unet")
        if name != "owner/name":
            raise OSError("404 Client Error.\nRepository Not Found")
        return str(folder)

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=snapshot_download))
    return calls


def test_a_repository_is_its_folder(asked: list[Any], folder: Path) -> None:
    model = jaxdiff.load(NAME)
    assert model.origin.folder == folder and [each[0] for each in asked] == ["owner/name"]
    jax.tree.map(np.testing.assert_array_equal, model.denoise.params, load_pipeline(folder).denoise.params)
    one = load_network("hf:owner/network")
    jax.tree.map(np.testing.assert_array_equal, one.params, model.denoise.params)
    assert control_folders(folder, {}, {"edges": "hf:owner/network"}) == {"edges": folder / "unet"}
    assert is_published(NAME) and load_config(NAME) == published_config(folder)


def test_the_weights_that_are_fetched(asked: list[Any]) -> None:
    """The plain ones, or those of the variant that is asked for."""
    found(NAME), found(NAME, "fp16")
    plain, half = asked
    assert "*.safetensors" in plain[1] and "*.fp16.*" in plain[2]
    assert "*.fp16.safetensors" in half[1] and "*.safetensors" not in half[1] and half[2] == []


def test_training_reads_a_repository(
    asked: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As far as the data, which are not there; and says in one line that there is no repository, or no package."""

    def said(name: str) -> str:
        with pytest.raises(SystemExit) as status:
            train([name, "--data.path", str(tmp_path / "none"), "--workdir", str(tmp_path / "a"), "--no-cache"])
        assert status.value.code == 2
        told = capsys.readouterr().err.strip()
        assert "\n" not in told
        return told

    assert str(tmp_path / "none") in said(NAME) and asked[0][0] == "owner/name"
    assert "hf:owner/other: the repository cannot be fetched (OSError: 404 Client Error.)" in said("hf:owner/other")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert f"{NAME}: the Hub needs the package huggingface_hub: pip install it" in said(NAME)
    for load in (jaxdiff.load, load_pipeline, load_network):
        with pytest.raises(PretrainedError, match="the Hub needs the package huggingface_hub"):
            load(NAME)
