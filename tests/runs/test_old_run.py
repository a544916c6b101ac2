"""A run that version 0.1.0 trained: its samples as it drew them, and its training goes on."""

from __future__ import annotations

import dataclasses
import shutil
import tarfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import jaxdiff
from jaxdiff.codecs import Images
from jaxdiff.config import read_config

ARCHIVE = Path(__file__).parents[1] / "data" / "run_of_0_1_0.tar.xz"
LABELS = {"label": [0, 1, 2, 10]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    parent = tmp_path_factory.mktemp("old")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(parent, filter="data")
    return parent / "run_of_0_1_0"


@pytest.mark.parametrize(
    ("name", "cond", "options"),
    [
        ("plain", LABELS, {}),
        ("guided", LABELS, {"guide": 2.0}),
        ("heun", None, {"sampler": "dpmpp_2m", "steps": 6, "grid": "log_snr"}),
        ("raw", LABELS, {"sampler": "sa_solver", "steps": 4}),
    ],
)
def test_it_samples_as_it_did(folder: Path, name: str, cond: Any, options: dict[str, Any]) -> None:
    run = jaxdiff.load(folder)
    x0 = run.sample(jax.random.key(7), 4, cond, **options, decode=False)
    with np.load(folder / "expected.npz", allow_pickle=False) as expected:
        np.testing.assert_allclose(x0, expected[name], atol=1e-6)


def test_its_configuration_is_of_this_version(folder: Path) -> None:
    config = read_config(folder)
    assert config.codec == Images((8, 8, 1)) and dict(config.loss.dropout) == {"label": 0.1}
    assert config.sample.sampler.startswith("unipc") and config.sample.guide == ()
    assert jaxdiff.load(folder).step == 3


@pytest.mark.nightly
def test_its_training_goes_on(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As a run of five steps that ended after the third."""
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    text = (copy / "config.json").read_text()
    (copy / "config.json").write_text(text.replace('"steps": 3,\n    "batch_size"', '"steps": 5,\n    "batch_size"'))
    before = jaxdiff.load(copy, ema=False).denoise.params
    run = jaxdiff.fit(dataclasses.replace(read_config(copy), workdir=str(copy)), cache=False)
    assert run.step == 5 and "going on after step 3" in capsys.readouterr().out
    after = jaxdiff.load(copy, ema=False)
    pairs = zip(*map(jax.tree.leaves, (before, after.denoise.params)), strict=True)
    assert after.step == 5 and all(not np.array_equal(a, b) for a, b in pairs)
    assert "image_shape" not in (copy / "config.json").read_text()  # said anew, in this version's words
