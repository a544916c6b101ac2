"""Files of safetensors: read back bit for bit, as the package reads them, and refused in one line if they are none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from jaxdiff.pretrained import PretrainedError
from jaxdiff.pretrained.files.safetensors import DTYPES, SafeTensors, open_safetensors, write_safetensors

RNG = np.random.default_rng(0)


def tensors() -> dict[str, Any]:
    made = {name: RNG.integers(0, 2, (3, 2)).astype(dtype) for name, dtype in DTYPES.items()}
    return {**made, "scalar": np.full((), 3.5, np.float32), "empty": np.zeros((0, 4), np.float32)}


def test_what_was_written_is_read_bit_for_bit(tmp_path: Path) -> None:
    given = tensors()
    write_safetensors(tmp_path / "a.safetensors", given, {"note": "x"})
    found = SafeTensors(tmp_path / "a.safetensors")
    assert list(found) == list(given) and found.metadata == {"format": "pt", "note": "x"}
    for name, array in given.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape
        assert found.read(name).tobytes() == array.tobytes()
    np.testing.assert_array_equal(found.read("F32", (1, 3)), given["F32"][1:])
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_the_package_reads_what_we_write_and_we_what_it_writes(tmp_path: Path) -> None:
    package = pytest.importorskip("safetensors.numpy")
    given = {name: array for name, array in tensors().items() if not name.startswith("F8")}
    write_safetensors(tmp_path / "ours.safetensors", given)
    theirs = package.load_file(tmp_path / "ours.safetensors")
    package.save_file({k: v for k, v in given.items() if k != "BF16"}, tmp_path / "theirs.safetensors")
    ours = SafeTensors(tmp_path / "theirs.safetensors")
    for name, array in given.items():
        assert theirs[name].tobytes() == array.tobytes()
        if name != "BF16":
            np.testing.assert_array_equal(ours.read(name), array)


def test_a_set_in_several_files_and_its_variants(tmp_path: Path) -> None:
    parts = {f"m-0000{i}-of-00002.safetensors": {f"w{i}": np.full(3, i, np.float32)} for i in (1, 2)}
    for name, held in parts.items():
        write_safetensors(tmp_path / name, held)
    index = {"weight_map": {f"w{i}": name for i, name in zip((1, 2), parts, strict=True)}}
    (tmp_path / "m.safetensors.index.json").write_text(json.dumps(index))
    write_safetensors(tmp_path / "m.fp16.safetensors", {"w": np.zeros(2, np.float16)})
    write_safetensors(tmp_path / "other.safetensors", {})
    whole = open_safetensors(tmp_path, "m")
    assert whole is not None and sorted(whole) == ["w1", "w2"] and whole.read("w2").tolist() == [2, 2, 2]
    half = open_safetensors(tmp_path, "m", "fp16")
    assert half is not None and half["w"].dtype == np.float16
    assert open_safetensors(tmp_path, "nothing") is None
    refused(lambda: open_safetensors(tmp_path, "m", "bf16"), "there is no variant 'bf16'; there are fp16")
    (tmp_path / "m.safetensors.index.json").unlink()
    only = open_safetensors(tmp_path, "m")
    assert only is not None and list(only) == ["w"]
    write_safetensors(tmp_path / "m.bf16.safetensors", {"w": np.zeros(2, ml_dtypes.bfloat16)})
    refused(lambda: open_safetensors(tmp_path, "m"), "several variants, bf16, fp16: say which, variant='bf16'")
    (tmp_path / "m.safetensors.index.fp16.json").write_text(json.dumps(index))
    for name in parts:
        (tmp_path / name).unlink()
    (tmp_path / "m.fp16.safetensors").unlink()
    refused(
        lambda: open_safetensors(tmp_path, "m", "fp16"), "m-00001-of-00002.safetensors is missing (2 of the 2 files"
    )
    (tmp_path / "m.safetensors.index.fp16.json").write_text("{}")
    refused(lambda: open_safetensors(tmp_path, "m", "fp16"), "m.safetensors.index.fp16.json: has no weight_map")


def refused(make: Any, message: str) -> None:
    with pytest.raises(PretrainedError) as error:
        make()
    assert message in str(error.value) and "\n" not in str(error.value)


def header(entries: Any, numbers: bytes = b"") -> bytes:
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text + numbers


def one(**changes: Any) -> Any:
    return {"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty: fetch it again"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 3\n",
            "is a pointer of Git LFS, not the file itself",
        ),
        (b"PK\x03\x04" + b"x" * 90, "is a pickle of torch, which may run code when it is read"),
        (b"\x80\x02}q\x00.", "is a pickle of torch"),
        (b"<!DOCTYPE html><html>", "is a web page, not the file itself: fetch it again"),
        (b"\xff" * 20, "is no safetensors file, or is cut off"),
        (b"\x05\x00", "is no safetensors file, or is cut off"),
        (header(one(), b"1234567"), "is cut off, it has "),
        (header(one(dtype="F31"), b"12345678"), "w is of 'F31', which jaxdiff does not read"),
        (header(one(shape=[3]), b"12345678"), "w of shape (3,) in bytes 0 to 8"),
        (header(one(shape=[-2], data_offsets=[8, 0])), "its header is damaged (w of shape (-2,) in bytes 8 to 0)"),
        (header({"w": 3}), "its header is damaged (w lacks dtype, shape or two data_offsets)"),
        (header([1]), "its header is damaged ("),
        ((3).to_bytes(8, "little") + b"{]}", "its header is damaged (JSONDecodeError"),
    ],
)
def test_a_file_that_is_none_is_one_line(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(content)
    refused(lambda: SafeTensors(tmp_path / "a.safetensors"), message)


def test_a_file_that_is_missing_or_shrinks_is_one_line(tmp_path: Path) -> None:
    refused(lambda: SafeTensors(tmp_path / "a.safetensors"), "cannot be read (No such file or directory)")
    write_safetensors(tmp_path / "a.safetensors", {"w": np.arange(100.0)})
    found = SafeTensors(tmp_path / "a.safetensors")
    (tmp_path / "a.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes()[:-8])
    refused(lambda: found.read("w"), "ends before w does: fetch it again")
    write_safetensors(tmp_path / "b.safetensors", {"w": np.zeros(1)})
    refused(
        lambda: SafeTensors(tmp_path / "b.safetensors", tmp_path / "b.safetensors"), "w stands in b.safetensors too"
    )
