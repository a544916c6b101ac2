"""Captions that cannot be used: each is told in one line that names its place, or left out where that was asked for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from jaxdiff.data import (
    Source,
    captions,
    from_arrays,
    open_folder,
    open_npz,
    open_parquet,
    open_webdataset,
    without_bad,
)
from jaxdiff.spec import Spec
from tests.data.captioned import ENCODED, PICTURES, beside, images_of, jsonl, parquet, tar
from tests.data.pictures import one_line_error


def test_parquet_columns_that_are_no_captions(tmp_path: Path) -> None:
    for texts, kind, message in (
        ([1, 2, 3, 4], None, "column text is int64, expected strings or lists of strings; set text (data.text) to"),
        ([None] * 4, None, "column text is null, expected strings"),
        ([[1]] * 4, None, "column text is list<"),
        (["a", None, "c", "d"], pa.string(), "train.parquet row 1: text is missing, expected a text"),
        ([["a"], [], ["c"], ["d"]], None, "row 1: text is an empty list, expected at least one text"),
        (["a", "b\0", "c", "d"], None, "row 1: text holds the character NUL (at 1)"),
    ):
        parquet(tmp_path, texts, kind=kind)
        assert message in one_line_error(lambda: open_parquet(tmp_path))
        assert set(open_parquet(tmp_path, conditions=()).spec) == {"x"}
    binary = pa.array([b"a", b"b\xff", b"c", b"d"])
    invalid = pa.Array.from_buffers(pa.string(), 4, binary.buffers())  # what other writers leave behind
    parquet(tmp_path, invalid, kind=None)
    assert "row 1: text is not UTF-8 (byte 1 is 0xff): save it as UTF-8" in one_line_error(
        lambda: open_parquet(tmp_path)
    )
    large = pa.array(["a", "b", "a", "d"]).dictionary_encode()
    lists = pa.array([["a"], ["b", "c"]] * 2, pa.large_list(pa.large_string()))
    for held in (large, large.cast(pa.large_string()), lists):
        parquet(tmp_path, held)
        assert list(captions(open_parquet(tmp_path)))[:2] == ["a", "b"]


def test_parquet_parts_have_the_same_captions(tmp_path: Path) -> None:
    for number, texts in enumerate((["a"] * 4, [["a"]] * 4)):
        parquet(tmp_path, texts)
        (tmp_path / "train.parquet").rename(tmp_path / f"train-0000{number}-of-00002.parquet")
    assert "-00001-of-00002.parquet: column text is of captions in some files" in one_line_error(
        lambda: open_parquet(tmp_path)
    )


def test_npz_arrays_that_are_no_captions(tmp_path: Path) -> None:
    objects = np.array(["a", "b", None, "d"], object)
    for held, message in (
        (np.array(["a", "b"]), "text has shape (2,), expected one row for each of 4 records"),
        (np.full((4, 1, 1), "a"), "text has shape (4, 1, 1), expected (N,), or (N, m) for m captions each"),
        (np.array([b"a", b"b\xff", b"c", b"d"]), "row 1: text is not UTF-8"),
        (objects, "array 'text' cannot be read (Object arrays cannot be loaded when allow_pickle=False)"),
    ):
        np.savez(tmp_path / "train.npz", x=PICTURES, text=held)
        assert message in one_line_error(lambda: open_npz(tmp_path))
    np.savez(tmp_path / "train.npz", x=PICTURES, text=np.zeros((4, 7), np.int32))
    assert open_npz(tmp_path).spec["text"] == Spec((7,), "int32")  # tokens
    assert "array text is of numbers" in one_line_error(lambda: open_npz(tmp_path, text="text"))
    np.savez(tmp_path / "set.npz", x_train=PICTURES, caption_train=["a"] * 4, x_test=PICTURES, caption_test=["b"] * 4)
    assert list(captions(open_npz(tmp_path / "set.npz", split="test"))) == ["b"] * 4
    wrong: Any
    for wrong, message in (
        ("abcd", "arrays: text is 'abcd', expected a list of captions, one a record"),
        (["a", "b"], "text has shape (2,), expected one row for each of 4 records"),
        (["a", None, "c", "d"], "arrays row 1: text is missing, expected a text"),
    ):
        assert message in one_line_error(lambda wrong=wrong: from_arrays(PICTURES, text=wrong))  # type: ignore[misc]
    tokens = from_arrays(PICTURES, text=np.zeros((4, 7), np.int32))
    assert tokens.spec["text"] == Spec((7,), "int32")
    assert "has no captions; its conditions: text" in one_line_error(lambda: list(captions(tokens)))


def test_metadata_that_are_wrong(tmp_path: Path) -> None:
    jsonl(tmp_path, ["a", "b", "c", "d"])
    lines = (good := (tmp_path / "metadata.jsonl").read_text()).splitlines(keepends=True)
    first = '{"file_name": "0.png", "text": '
    for content, message in (
        (
            good + '{"file_name": "5.png", "text": "e"}',
            f"{tmp_path}/5.png: is named in the metadata, and there is no such",
        ),
        (good + lines[2], "metadata.jsonl line 5: "),
        (
            "".join(lines[1:]),
            f"{tmp_path}/0.png: has no caption, expected one in {tmp_path}/metadata.jsonl (1 of 4 images",
        ),
        ("[1]\n", "metadata.jsonl line 1 is a list, expected an object"),
        (good[:-3], "metadata.jsonl line 4 is not JSON ("),
        ('{"text": "a"}', "metadata.jsonl line 1: no file_name; it has text"),
        (
            '{"file_name": "0.png", "title": "a"}',
            "metadata.jsonl line 1: no caption; it has file_name, title, expected",
        ),
        (first + "7}\n" + "".join(lines[1:]), "0.png (row 0): text is 7, expected a text"),
        (first + "null}\n" + "".join(lines[1:]), "0.png (row 0): text is missing, expected a text"),
        (first + '"a\\u0000"}\n' + "".join(lines[1:]), "0.png (row 0): text holds the character NUL (at 1)"),
        (first + '"\\ud800"}\n' + "".join(lines[1:]), "0.png (row 0): text holds half of a surrogate pair"),
    ):
        (tmp_path / "metadata.jsonl").write_text(content)
        assert message in one_line_error(lambda: open_folder(tmp_path))
        assert set(open_folder(tmp_path, conditions=()).spec) == {"x"}
    (tmp_path / "metadata.jsonl").write_bytes(lines[0].encode() + b'{"file_name": "1.png", "text": "\xff"}')
    assert "metadata.jsonl line 2 is not UTF-8 (byte 32 is" in one_line_error(lambda: open_folder(tmp_path))
    (tmp_path / "metadata.jsonl").unlink()
    (tmp_path / "metadata.csv").write_text('file_name,text\n0.png,"a\n')
    assert "metadata.csv line 2: is not CSV (" in one_line_error(lambda: open_folder(tmp_path))


def test_texts_beside_that_are_wrong(tmp_path: Path, capsys: Any) -> None:
    beside(tmp_path, ["a", "b", "c", "d"])
    (tmp_path / "README.txt").write_text("of nobody")
    assert list(captions(open_folder(tmp_path))) == ["a", "b", "c", "d"]
    assert "1 files are no images and are left out (1 .txt; the first: README.txt)" in capsys.readouterr().err
    (tmp_path / "1.txt").write_bytes(b"\xef\xbb\xbf a b \r\n")  # as Windows writes it
    assert list(captions(open_folder(tmp_path)))[1] == "a b"
    unnamed = "no metadata.jsonl or metadata.csv with the field title; write one, or leave text (data.text) out"
    assert f"{tmp_path}: {unnamed}" in one_line_error(lambda: open_folder(tmp_path, text="title"))
    (tmp_path / "1.txt").write_bytes(b"a\xff")
    assert f"{tmp_path}/1.txt is not UTF-8 (byte 1 is 0xff)" in one_line_error(lambda: open_folder(tmp_path))
    (tmp_path / "1.txt").unlink()
    message = f"{tmp_path}/1.png: has no caption, expected one 1.txt beside it (1 of 4 images have none)"
    assert message in one_line_error(lambda: open_folder(tmp_path))
    (tmp_path / "alone").mkdir()
    images_of(tmp_path / "alone")
    assert f"{tmp_path}/alone: {unnamed}" in one_line_error(lambda: open_folder(tmp_path / "alone", text="title"))


def test_metadata_above_the_splits(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        images_of(tmp_path / split)
    lines = [{"file_name": f"{s}/{n}.png", "text": f"{s} {n}"} for s in ("train", "test") for n in range(4)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert list(captions(open_folder(tmp_path))) == [f"train {n}" for n in range(4)]
    assert list(captions(open_folder(tmp_path, split="test"))) == [f"test {n}" for n in range(4)]


def test_bad_pairs_are_left_out_by_name(tmp_path: Path) -> None:
    said: list[str] = []

    def left(opener: Callable[..., Source], path: Path) -> list[str]:
        said.clear()
        return list(captions(without_bad(opener(path, skip_bad=True), keep=False, say=said.append)))

    a, b = ENCODED[:2]
    members = {
        "a.png": a,
        "a.txt": b"a",
        "b.png": b,
        "c.png": a,
        "c.txt": b"\xff",
        "d.txt": b"d",
        "e.png": b,
        "e.txt": b"",
    }
    assert left(open_webdataset, tar(tmp_path / "set.tar", members)) == ["a", ""]
    for found in (
        "key b: text is missing",
        "key c: txt is not UTF-8",
        "key d: a text without an image",
        "2 of 4 records",
    ):
        assert found in said[-1]
    (tmp_path / "texts").mkdir()
    beside(tmp_path / "texts", ["a", "b", "c", "d"])
    (tmp_path / "texts" / "1.txt").unlink()
    assert left(open_folder, tmp_path / "texts") == ["a", "c", "d"]
    assert "1.png (row 1): text is missing" in said[-1]
    (tmp_path / "lines").mkdir()
    jsonl(tmp_path / "lines", ["a", "b\0", "c", "d"])
    with open(tmp_path / "lines" / "metadata.jsonl", "ab") as file:
        file.write(b'{"file_name": "9.png", "text": "e"}\n{"file_name": "\xff"}')
    assert left(open_folder, tmp_path / "lines") == ["a", "c", "d"]
    for found in ("1.png (row 1): text holds the character NUL", "9.png: is named in the", "line 6 is not UTF-8"):
        assert found in said[-1]
    parquet(tmp_path, ["a", None, "c", "d"], kind=pa.string())
    assert left(open_parquet, tmp_path) == ["a", "c", "d"]
    np.savez(tmp_path / "train.npz", x=PICTURES, text=[b"a", b"\xff", b"c", b"d"])
    assert left(open_npz, tmp_path / "train.npz") == ["a", "c", "d"]
