"""A set decoded once is the set: the same records, whatever else happens to the files, the folder or the process."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jaxdiff.config.batches import build_pipeline
from jaxdiff.data import Pipeline, Source, Subset, decoded, from_arrays, open_folder, open_npz, open_parquet
from jaxdiff.data.decoded import Decoded, decode_once
from jaxdiff.data.points import open_points
from jaxdiff.data.sources import Records, fingerprint, take
from tests.data.pictures import check_content, encoded, one_line_error, pictures, record, write_folder, write_parquet


def silent(text: str) -> None:
    """For what is not looked at."""


def kept(folder: Path) -> list[str]:
    return sorted(file.suffix for file in folder.glob("*"))


def once(source: Source, folder: Path, **options: Any) -> Source:
    defaults: dict[str, Any] = {"limit": 10**6, "folder": folder, "say": silent}
    return decode_once(source, **defaults | options)


def one_by_one(source: Source, indices: np.ndarray) -> Records:
    found = [record(source, int(index)) for index in indices]
    return {key: np.stack([each[key] for each in found]) for key in found[0]}


def same_records(a: Source, b: Source) -> bool:
    every = np.arange(len(a))
    x, y = take(a, every), one_by_one(b, every)
    return x.keys() == y.keys() and all(np.array_equal(x[key], y[key]) for key in x)


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, Source]:
    images = pictures(7, (9, 12, 3))
    mixed = [encoded(images[0][:, :, :1]), *map(encoded, images[1:])]
    write_folder(tmp_path / "loose", images, ["."] * 7)
    return {
        "resized": open_parquet(
            write_parquet(tmp_path / "a.parquet", mixed, [0, 1, 2, 0, 1, 2, 5]), image_size=8, resize=True
        ),
        "loose": open_folder(tmp_path / "loose"),
    }


def test_equals_the_source_and_is_decoded_once(
    sources: dict[str, Source], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    first = {name: once(source, tmp_path / "kept", say=said.append) for name, source in sources.items()}
    assert len(said) == 2
    assert f"7 images once; their 0 MB are kept in {tmp_path / 'kept'}" in said[0]
    monkeypatch.setattr(decoded, "_decode", None)
    for name, source in sources.items():
        again = once(source, tmp_path / "kept", say=said.append)
        assert isinstance(again, Decoded)
        assert again.fingerprint == fingerprint(source)
        records = take(source, np.arange(7))
        check_content(again, records["x"], records["label"].tolist() if "label" in records else None)
        options: dict[str, Any] = {"batch_size": 5, "seed": 0}
        with Pipeline(source, **options) as plain, Pipeline(first[name], **options) as fast:
            for _ in range(3):
                a, b = next(plain), next(fast)
                assert a.keys() == b.keys()
                assert all(a[k].dtype == b[k].dtype and np.array_equal(a[k], b[k]) for k in a)
                assert b["x"].flags.c_contiguous
    assert len(said) == 2


@settings(deadline=None, max_examples=60)
@given(indices=st.lists(st.integers(-7, 6), min_size=1, max_size=20), which=st.integers(0, 5))
def test_many_at_once_is_one_by_one(many: list[Source], indices: list[int], which: int) -> None:
    source, chosen = many[which], np.array(indices)
    a, b = take(source, chosen), one_by_one(source, chosen)
    assert a.keys() == b.keys()
    assert a["x"].dtype == b["x"].dtype
    assert (a["x"] == b["x"]).all()
    if "label" in a:
        assert a["label"].dtype == np.int32
        assert (a["label"] == b["label"]).all()
    a["x"][:] = 0  # a copy: the source stays as it is
    assert (one_by_one(source, chosen)["x"] == b["x"]).all()
    with pytest.raises(IndexError):
        take(source, np.array([*indices, len(source)]))


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> list[Source]:
    folder = tmp_path_factory.mktemp("many")
    images, labels = pictures(7), np.array([0, 1, 2, 0, 1, 2, 5])
    np.savez(folder / "a.npz", images=np.asfortranarray(images), labels=labels)
    parquet = open_parquet(write_parquet(folder / "a.parquet", map(encoded, images), labels))
    return [
        from_arrays(images, labels),
        open_npz(folder / "a.npz"),
        open_npz(folder / "a.npz", image_size=4, resize=True),
        open_points("moons"),
        once(parquet, folder),
        Subset(once(parquet, folder), names=()),
    ]


def test_a_changed_file_is_decoded_anew(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    for number in range(3):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / "set" / f"{number}.bmp")
    changing = tmp_path / "set" / "1.bmp"
    folder, before = tmp_path / "kept", changing.stat()
    first = once(open_folder(tmp_path / "set"), folder)
    Image.new("RGB", (8, 8), (200, 0, 0)).save(changing)
    os.utime(changing, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert changing.stat().st_size == before.st_size
    source = open_folder(tmp_path / "set")
    second = once(source, folder)
    assert (record(first, 1)["x"][0, 0, 0], record(second, 1)["x"][0, 0, 0]) == (1, 200)
    assert same_records(second, source)
    assert fingerprint(first) != fingerprint(second)
    assert kept(folder) == [".lock", ".npy"]
    smaller = once(open_folder(tmp_path / "set", image_size=4, resize=True), folder)
    assert smaller.spec["x"].shape == (4, 4, 3)
    assert kept(folder) == [".lock", ".lock", ".npy", ".npy"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda f: f.write_bytes(f.read_bytes()[:-1]),
        lambda f: f.write_bytes(b"PK\x03\x04"),
        lambda f: np.save(f, np.zeros(7)),
    ],
)
def test_what_is_not_whole_is_not_read(sources: dict[str, Source], tmp_path: Path, damage: Any) -> None:
    once(sources["loose"], tmp_path / "kept")
    (file,) = (tmp_path / "kept").glob("*.npy")
    damage(file)
    assert same_records(once(sources["loose"], tmp_path / "kept"), sources["loose"])


WRITER = """
import sys, time
from jaxdiff.data import decoded, open_folder

def slowly(*arguments, decode=decoded._decode):
    for rows in decode(*arguments):
        yield rows
        time.sleep(float(sys.argv[3]))

decoded._CHUNK_BYTES, decoded._decode = 1, slowly
sys.stdin.readline()
source = decoded.decode_once(open_folder(sys.argv[1]), limit=10**6, folder=sys.argv[2])
print(type(source).__name__, source.take([6])["x"].tobytes().hex())
"""


@pytest.fixture
def writers(tmp_path: Path, repository: Path) -> Iterator[Any]:
    started = []

    def start(pause: float) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", WRITER, str(tmp_path / "loose"), str(tmp_path / "kept"), str(pause)]
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, cwd=repository, text=True, stdin=pipe, stdout=pipe, stderr=pipe)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def wait_for(stream: Any, text: str) -> None:
    if not any(text in line for line in stream):
        pytest.fail(f"ended without printing {text!r}")


def test_a_killed_writer_and_two_at_once(sources: dict[str, Source], tmp_path: Path, writers: Any) -> None:
    source, folder = sources["loose"], tmp_path / "kept"
    killed, other = writers(600.0), writers(0.02)
    go(killed)
    until = time.monotonic() + 60
    while ".partial" not in kept(folder) and time.monotonic() < until:
        time.sleep(0.01)
    go(other)
    wait_for(other.stderr, "waiting for another process")
    assert kept(folder) == [".lock", ".partial"]
    mine = once(source, folder, say=lambda text: killed.kill() if "waiting for another process" in text else None)
    assert same_records(mine, source)
    out, err = other.communicate(timeout=60)
    assert out.split() == ["Decoded", record(source, 6)["x"].tobytes().hex()], err
    assert kept(folder) == [".lock", ".npy"]


def test_without_locks(sources: dict[str, Source], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError("no locks available")

    monkeypatch.setattr(decoded.fcntl, "flock", no_locks)
    assert isinstance(found := once(sources["resized"], tmp_path / "kept"), Decoded)
    assert same_records(found, sources["resized"])


def test_limit_and_sources_that_decode_nothing(sources: dict[str, Source], tmp_path: Path) -> None:
    source, size = sources["loose"], 7 * 9 * 12 * 3
    for limit in (0, size - 1):
        assert once(source, tmp_path / "kept", limit=limit) is source
    arrays = from_arrays(pictures())
    assert once(arrays, tmp_path / "kept") is arrays
    assert not (tmp_path / "kept").exists()
    assert isinstance(once(source, tmp_path / "kept", limit=size), Decoded)


def test_no_room_is_said_and_changes_nothing(
    sources: dict[str, Source], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, folder, said = sources["loose"], tmp_path / "kept", list[str]()

    def full(*_: object) -> Any:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 10**6))
        assert once(source, folder, say=said.append) is source
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert once(source, folder, say=said.append) is source
    assert kept(folder) == [".lock"]
    (tmp_path / "file").touch()
    assert once(source, tmp_path / "file", say=said.append) is source
    messages = [text for text in said if "cannot be kept" in text]
    assert len(messages) == 3
    assert "0 MB needed, 1 MB free" in messages[0]
    assert "No space left" in messages[1]
    assert not any("\n" in text for text in said)


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    files = [encoded(image) for image in pictures(12)]
    files[10] = files[10][:60]
    source = open_parquet(write_parquet(tmp_path / "train.parquet", files, list(range(12))))
    message = one_line_error(lambda: record(source, 10))
    assert one_line_error(lambda: once(source, tmp_path / "kept")) == message
    assert kept(tmp_path / "kept") == [".lock"]


def test_travels_to_workers(sources: dict[str, Source], tmp_path: Path) -> None:
    cloudpickle = pytest.importorskip("cloudpickle")
    source = once(sources["resized"], tmp_path / "kept")
    sent = cloudpickle.dumps(source)
    assert len(sent) < 2000
    assert same_records(cloudpickle.loads(sent), source)
    shutil.rmtree(tmp_path / "kept")
    assert "is gone, though this run reads from it" in one_line_error(lambda: cloudpickle.loads(sent))


def test_which_runs_decode_once(
    sources: dict[str, Source], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from configs.digits_unet import config

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def read_by(source: Source, steps: int, megabytes: int = 1, **options: Any) -> Source:
        train = dataclasses.replace(config.train, steps=steps, batch_size=2)
        data = dataclasses.replace(config.data, decoded_mb=megabytes, workers=2)
        with build_pipeline(dataclasses.replace(config, train=train, data=data), source, **options) as pipeline:
            found = pipeline._stream.source
            assert pipeline._workers == (2 if found is source else 0)
            return found

    source = sources["resized"]
    for found in (read_by(source, 3), read_by(source, 4, 0), read_by(source, 4, cache=False)):
        assert found is source
    assert not (tmp_path / "cache").exists()
    assert isinstance(read_by(source, 4), Decoded)
    assert kept(tmp_path / "cache" / "jaxdiff" / "decoded") == [".lock", ".npy"]
    unlabelled = read_by(Subset(source, names=()), 4)
    assert isinstance(unlabelled, Subset)
    assert isinstance(unlabelled.source, Decoded)
    assert capsys.readouterr().err.count("decoding 7 images once") == 1
