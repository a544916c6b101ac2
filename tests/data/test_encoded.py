"""A set encoded once is what the encoder gives of each record: in parts, by several, after a kill, and never stale."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxdiff.data import DataError, Pipeline, from_arrays
from jaxdiff.data import encoded as module
from jaxdiff.data.encoded import Encoded, cache_name, encode_once
from jaxdiff.data.sources import Records, take
from jaxdiff.spec import Spec

SPEC = {"x": Spec((2, 3), "float16")}
BATCH = 4


def encode(records: Records) -> dict[str, Any]:
    """Something that a wrong order, a wrong row or a wrong batch would change."""
    assert len(records["x"]) == BATCH
    x = records["x"].astype(np.float32).reshape(BATCH, -1)
    return {"x": np.stack([x[:, :3] + 0.25, -x[:, -3:]], axis=1)}


def images(count: int = 19, seed: int = 0, **conditions: Any) -> Any:
    x = np.random.default_rng(seed).integers(0, 256, (count, 4, 4, 1), np.uint8)
    return from_arrays(x, np.arange(count) % 3, **conditions)


def once(source: Any, folder: Path, **options: Any) -> Encoded:
    defaults: dict[str, Any] = {"name": "set", "batch": BATCH, "folder": folder, "rows": 6, "say": lambda text: None}
    return encode_once(source, encode, SPEC, **defaults | options)


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.glob("set/*"))}


def test_records_are_the_encoders_in_any_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, said = images(), list[str]()
    found = once(source, tmp_path, say=said.append)
    assert len(said) == 1 and "encoding 19 records once, 0 of 4 parts are there" in said[0]
    assert list(files(tmp_path)) == [f"{part:06d}.npy" for part in range(4)]
    chosen = np.array([18, 0, -1, 7, 7, 5, 6])
    records, plain = take(found, chosen), source.take(chosen)
    x = plain["x"].astype(np.float32).reshape(7, -1)
    np.testing.assert_array_equal(records["x"], np.stack([x[:, :3] + 0.25, -x[:, -3:]], 1).astype(np.float16))
    assert records["x"].dtype == np.float16
    np.testing.assert_array_equal(records["label"], plain["label"])
    with pytest.raises(IndexError):
        found.take(np.array([19]))
    monkeypatch.setattr(module, "_encoded", None)  # all is there
    again = once(source, tmp_path)
    options: dict[str, Any] = {"batch_size": 5, "seed": 0}
    with Pipeline(again, **options) as ours, Pipeline(source, **options) as pixels:
        assert ours.position == pixels.position  # a run may go on with the cache or without
        for _ in range(9):
            np.testing.assert_array_equal(next(ours)["label"], next(pixels)["label"])
    sent = pickle.loads(pickle.dumps(again))
    np.testing.assert_array_equal(sent.take(chosen)["x"], records["x"])


def test_parts_by_several_processes_are_those_by_one(tmp_path: Path) -> None:
    source = images()
    once(source, tmp_path / "one")
    first = once(source, tmp_path / "two", part=(0, 2))
    assert list(files(tmp_path / "two")) == ["000000.npy", "000002.npy"]
    with pytest.raises(
        DataError, match=r"arrays: .*000001.npy is gone, .*several processes need one data.cache_folder"
    ):
        first.take(np.arange(19))
    once(source, tmp_path / "two", part=(1, 2))
    assert files(tmp_path / "two") == files(tmp_path / "one")
    assert len(first.take(np.arange(19))["x"]) == 19


def test_a_damaged_part_is_made_again(tmp_path: Path) -> None:
    source = images()
    once(source, tmp_path)
    whole, file = files(tmp_path), tmp_path / "set" / "000001.npy"
    file.write_bytes(file.read_bytes()[:-1])
    said: list[str] = []
    once(source, tmp_path, say=said.append)
    assert "3 of 4 parts are there" in said[0] and files(tmp_path) == whole


class Captioned:
    """Pictures with captions; a record has several."""

    spec: Mapping[str, Spec] = {"x": Spec((4, 4, 1), "uint8", 0, 255), "text": Spec((None,), "str")}

    def __len__(self) -> int:
        return 7

    def take(self, indices: np.ndarray) -> Records:
        texts = np.empty(len(indices), object)
        texts[:] = [tuple(f"record {i}, caption {k}: 'ß'" for k in range(1 + i % 3)) for i in indices % 7]
        return {
            "x": np.broadcast_to(indices[:, None, None, None], (len(indices), 4, 4, 1)).astype(np.uint8),
            "text": texts,
        }


def test_captions_are_kept_beside(tmp_path: Path) -> None:
    found, chosen = once(Captioned(), tmp_path), np.array([6, 0, 5])
    assert found.spec["text"].is_text and found.spec["x"] == SPEC["x"]
    assert take(found, chosen)["text"].tolist() == Captioned().take(chosen)["text"].tolist()
    (tmp_path / "set" / "000001.json").unlink()
    whole = files(tmp_path)
    once(Captioned(), tmp_path)
    assert set(files(tmp_path)) == {*whole, "000001.json"}


def test_other_data_weights_or_shapes_are_another_set() -> None:
    names = [cache_name(images(), "a"), cache_name(images(seed=1), "a"), cache_name(images(), "b")]
    names.append(cache_name(images(style=np.zeros(19, np.float32)), "a"))
    assert len(set(names)) == 4 and cache_name(images(), "a") == names[0]


def test_what_cannot_be_kept_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoilt(records: Records) -> dict[str, Any]:
        made = encode(records)
        made["x"][records["label"] == 2] = 1e6  # beyond float16
        return made

    options: dict[str, Any] = {"name": "set", "batch": BATCH, "folder": tmp_path, "rows": 6, "say": lambda text: None}
    with pytest.raises(DataError, match=r"^arrays row 2: the encoder gives x that is not finite in float16: look at"):
        encode_once(images(), spoilt, SPEC, **options)
    assert files(tmp_path) == {}
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 10}))
    with pytest.raises(DataError, match=r"cannot be kept in .*MB needed, 0 MB free.*name another data.cache_folder"):
        once(images(), tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot be kept in .*(Not a directory|File exists)"):
        once(images(), tmp_path / "file")


SLOW = """
import sys, time
from pathlib import Path
from tests.data import test_encoded as tests

def slow(records, calls=[]):
    calls.append(1)
    if len(calls) == 4:  # in the middle of the second part
        print("ready", flush=True)
        time.sleep(600)
    return whole(records)

whole, tests.encode = tests.encode, slow
tests.once(tests.images(), Path(sys.argv[1]))
"""


def test_a_run_killed_while_it_encodes_goes_on_bit_for_bit(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", SLOW, str(tmp_path / "killed")]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    with subprocess.Popen(command, cwd=root, env=environment, stdout=subprocess.PIPE, text=True) as slow:
        assert slow.stdout is not None and slow.stdout.readline() == "ready\n"
        slow.kill()
    assert list(files(tmp_path / "killed")) == ["000000.npy"]
    (tmp_path / "killed" / "set" / "000001.left.partial").write_bytes(b"half")  # as a kill while writing leaves it
    kept, said = (tmp_path / "killed" / "set" / "000000.npy").stat().st_mtime_ns, list[str]()
    time.sleep(0.01)
    once(images(), tmp_path / "killed", say=said.append)
    assert "1 of 4 parts are there" in said[0]
    assert (tmp_path / "killed" / "set" / "000000.npy").stat().st_mtime_ns == kept
    once(images(), tmp_path / "whole")
    assert files(tmp_path / "killed") == files(tmp_path / "whole")
