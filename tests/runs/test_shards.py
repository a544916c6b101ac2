"""Folders of samples: the same whoever draws them, never drawn twice, and refused to another request."""

from __future__ import annotations

import json
import signal
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import jaxdiff
import sample
import train
from jaxdiff.config import ConfigError
from jaxdiff.runs.run import Run
from jaxdiff.runs.shards import (
    Request,
    claim_samples,
    load_samples,
    read_request,
    shard_name,
    wait_for_shards,
    write_shards,
)
from tests.commands.test_cli import one_line
from tests.parallel.processes import Group
from tests.parallel.test_processes import TINY

NUM, SHARD = 60, 8


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Path:
    path = tmp_path_factory.mktemp("runs") / "digits"
    train.main([str(repository / "configs" / "digits_dit.py"), "--workdir", str(path), "--train.steps", "2", *TINY])
    return path


@pytest.fixture(scope="module")
def whole(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """All samples as one array file, of one process and one device."""
    out = tmp_path_factory.mktemp("whole") / "samples.npz"
    sample.main([str(finished), "--num", str(NUM), "--sampler", "ddpm", "--out", str(out)])
    with np.load(out, allow_pickle=False) as arrays:
        return dict(arrays)


def same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found["label"].tolist() == expected["label"].tolist()
    assert np.abs(found["x"].astype(int) - expected["x"].astype(int)).max() <= 1
    assert len(np.unique(found["x"].reshape(NUM, -1), axis=0)) == NUM  # no sample stands for another


@pytest.fixture
def start(finished: Path) -> Iterator[Any]:
    groups: list[Group] = []

    def run(out: Path, *more: str, **where: Any) -> Group:
        options = ["--num", str(NUM), "--shard_size", str(SHARD), "--sampler", "ddpm", "--out", str(out), *more]
        groups.append(Group("sample.py", finished, *options, **where))
        return groups[-1]

    yield run
    for group in groups:
        group.kill()


def shards(folder: Path) -> dict[str, int]:
    return {file.name: file.stat().st_mtime_ns for file in folder.glob("*.npz")}


@pytest.mark.nightly
def test_killed_twice_nothing_is_lost_or_drawn_again(tmp_path: Path, start: Any, whole: dict[str, np.ndarray]) -> None:
    """SIGKILL to all of two processes, to one process with four devices, and to the end with two devices."""
    out = tmp_path / "samples"
    there: dict[str, int] = {}
    for where in ({"processes": 2}, {"devices": 4}):
        group = start(out, "--batch_size", "4", **where)
        before = frozenset(there)
        group.until(lambda before=before: shards(out).keys() > before)
        for index in range(len(group.members)):
            group.send(signal.SIGKILL, index)
        group.kill()
        now = shards(out)
        assert there.items() <= now.items() and len(now) < -(-NUM // SHARD)
        with pytest.raises(ConfigError, match=f"{SHARD * len(now)} of {NUM} samples are there"):
            load_samples(out)
        there = now
    first, *_ = start(out, "--batch_size", "6", devices=2).finish()
    assert f"{len(there)} of {-(-NUM // SHARD)} shards are there already" in first
    assert there.items() <= shards(out).items()
    assert {file.name for file in out.iterdir()} == {"index.json", *map(shard_name, Request(NUM, (), {}, SHARD).shards)}
    same(jaxdiff.load_samples(out), whole)


def test_processes_split_the_batches_of_one_file(tmp_path: Path, start: Any, whole: dict[str, np.ndarray]) -> None:
    out = tmp_path / "samples.npz"
    first, second = start(out, processes=2, devices=2).finish()
    assert f"{NUM} samples from step 2" in first and "samples from" not in second
    with np.load(out, allow_pickle=False) as arrays:
        same(dict(arrays), whole)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("--seed 1", "holds other samples: made_by.seed (0 there, 1 here)"),
        ("--num 61", "num (60 there, 61 here)"),
        ("--sampler ddim", "made_by.sampler (ddpm there, ddim here)"),
        ("--shard_size 9", "shard_size (8 there, 9 here)"),
        ("--label 3", "made_by.label"),
        ("--shard_size 0", "--shard_size: 0 is out of range"),
    ],
)
def test_another_request_is_refused(more: str, message: str, finished: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "samples"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxdiff.commands.sample.write_shards", lambda *args, **kwargs: 0)
        patch.setattr("jaxdiff.commands.sample.wait_for_shards", lambda *args: None)
        options = [str(finished), "--num", str(NUM), "--shard_size", str(SHARD), "--sampler", "ddpm", "--out", str(out)]
        sample.main(options)
        before = (out / "index.json").read_bytes()
        capsys.readouterr()
        sample.main(options)  # the same again is welcome
        capsys.readouterr()
        assert message in one_line(sample.main, [*options, *more.split()], capsys)
    assert (out / "index.json").read_bytes() == before


def test_folders_of_something_else_are_refused(finished: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "file").write_text("mine")
    request = Request(4, (2,), {})
    for folder in (tmp_path, tmp_path / "file"):
        with pytest.raises(ConfigError, match="is there already and holds no samples"):
            claim_samples(folder, request)
    with pytest.raises(ConfigError, match=r"it has no index\.json"):
        load_samples(tmp_path)
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "index.json").write_text('{"num": 4')
    with pytest.raises(ConfigError, match="cannot be read as the index"):
        read_request(tmp_path / "torn")
    assert "must end in .png" in one_line(sample.main, [str(finished), "--out", str(tmp_path / "x.jpg")], capsys)


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    request = Request(5, (2, 2, 1), {"seed": 0}, shard_size=2)
    claim_samples(tmp_path / "s", request)
    say: list[str] = []
    draws: list[tuple[int, int]] = []

    def draw(first: int, n: int) -> dict[str, np.ndarray]:
        draws.append((first, n))
        return {"x": np.full((n, 2, 2, 1), 10 * first, np.uint8), "label": np.arange(first, first + n)}

    assert write_shards(tmp_path / "s", request, draw, part=(1, 2), say=say.append) == 1
    assert write_shards(tmp_path / "s", request, draw, part=(0, 2)) == 2
    assert draws == [(2, 2), (0, 2), (4, 1)] and say == ["shard 1 of 1: samples 2 to 3"]
    wait_for_shards(tmp_path / "s", request)
    found = load_samples(tmp_path / "s")
    assert found["label"].tolist() == [0, 1, 2, 3, 4] and found["x"][:, 0, 0, 0].tolist() == [0, 0, 20, 20, 40]

    file = tmp_path / "s" / "00000002-00000003.npz"
    whole = file.read_bytes()
    for damage in (whole[:-30], b"", whole.replace(b"label", b"labex")):
        file.write_bytes(damage)
        with pytest.raises(ConfigError, match=r"00000002-00000003\.npz cannot be read"):
            load_samples(tmp_path / "s")
    assert zipfile.is_zipfile(tmp_path / "s" / "00000000-00000001.npz")


def test_samples_that_diverged_are_said_to_be(finished: Path, tmp_path: Path) -> None:
    run = Run.load(finished)
    broken = jax.tree.map(lambda leaf: leaf * np.nan, run.denoise.params)
    diverged = Run.of(run.config, broken, run.step, run.mesh)
    request = Request(2, (8, 8, 1), {})
    claim_samples(tmp_path / "s", request)
    with pytest.raises(ConfigError, match="2 of 2 samples are not finite"):
        write_shards(tmp_path / "s", request, lambda first, n: diverged.sample(0, n, start=first, steps=2))
    assert json.loads((tmp_path / "s" / "index.json").read_text())["num"] == 2
    assert shards(tmp_path / "s") == {}


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request = Request(2, (2,), {})
    claim_samples(tmp_path / "s", request)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(ConfigError, match="cannot be written: No space left on device"):
        write_shards(tmp_path / "s", request, lambda first, n: {"x": np.zeros((n, 2), np.float32)})
    assert shards(tmp_path / "s") == {}
