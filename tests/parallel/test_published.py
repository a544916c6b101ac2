"""A published model on the devices of two processes: each reads its part, and samples are those of one process."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxdiff
import sample
from tests.parallel.processes import Group
from tests.pretrained.test_pipeline import SD, write_pipeline

pytestmark = pytest.mark.nightly
ASKED = ("--prompt", "a cat", "--num", "2", "--steps", "3")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pipeline(tmp_path_factory.mktemp("two") / "model", {"_class_name": "DDIMScheduler", **SD})


def finish(group: Group) -> None:
    try:
        group.finish()
    finally:
        group.kill()


def test_each_process_reads_its_part(folder: Path, tmp_path: Path) -> None:
    finish(Group("-m", "tests.parallel.published", folder, tmp_path, processes=2, flags=[]))
    for number in range(2):
        read = json.loads((tmp_path / f"read_{number}.json").read_text())
        shares = {Path(file).parent.name: size / Path(file).stat().st_size for file, size in read.items()}
        print(number, shares)
        assert {*shares} == {"unet", "vae", "text_encoder"}
        assert max(shares.values()) <= 0.56, shares  # beside its half what is not split, and the header
    with np.load(tmp_path / "params.npz") as found:
        parts = jaxdiff.load(folder).parts
        ours = jax.tree.leaves({name: part.params for name, part in parts.items()})
        assert len(found.files) == len(ours)
        for name, leaf in zip(found.files, ours, strict=True):
            np.testing.assert_array_equal(found[name], leaf)


def test_samples_of_two_processes_are_those_of_one(folder: Path, tmp_path: Path) -> None:
    sample.main([str(folder), *ASKED, "--out", str(tmp_path / "one.npz")])
    two = ["--mesh.fsdp", "2", "--out", str(tmp_path / "two.npz")]
    finish(Group("sample.py", folder, *ASKED, *two, processes=2))
    with np.load(tmp_path / "one.npz") as one, np.load(tmp_path / "two.npz") as found:
        assert found["text"].tolist() == one["text"].tolist()
        assert np.abs(found["x"].astype(int) - one["x"]).max() <= 1
