"""WebDataset: what is wrong with tar files, their splits, their index."""

from __future__ import annotations

import gzip
import pickle
from pathlib import Path

import numpy as np
import pytest

from jaxdiff.data import captions, num_classes, open_webdataset, take, webdataset
from tests.data.captioned import ENCODED, PICTURES, pairs, tar
from tests.data.pictures import one_line_error


def test_tar_files_that_are_wrong(tmp_path: Path) -> None:
    a, b = ENCODED[:2]
    for members, message in (
        ({"a.png": a, "b.png": b}, "2 images and no caption, expected pairs KEY.jpg (png, webp, ...) and KEY.txt"),
        ({"a.txt": b"a"}, "no images among its 1 keys, expected pairs"),
        ({"notes.md": b"a"}, "no images among its 0 keys, expected pairs"),
        ({"a.png": a, "a.txt": b"a", "s/b.png": b}, "set.tar key s/b: an image without a caption (1 of 2 images)"),
        ({"a.png": a, "a.txt": b"a", "s/b.txt": b"b"}, "set.tar key s/b: a text without an image (1 of 2 keys)"),
        ({"a.png": a, "a.txt": b"\xff"}, "set.tar key a: txt is not UTF-8 (byte 0 is 0xff)"),
        ({"a.png": a, "a.txt": b"a\0"}, "set.tar key a: txt holds the character NUL (at 1)"),
        ({"a.png": a, "a.json": b"{"}, "set.tar key a: json is not JSON ("),
        (
            {"a.png": a, "a.json": b'{"title": "a"}'},
            "set.tar key a: json has no caption; it has title; set text (data.text)",
        ),
        ({"a.png": a, "a.json": b'{"text": 7}'}, "set.tar key a: text is 7, expected a text"),
        ({"a.png": b"", "a.txt": b"a"}, "set.tar key a: image is empty (0 bytes)"),
        ({"a.png": a, "a.jpg": b, "a.txt": b"a"}, "set.tar key a: has two files of image"),
        ({"a.png": a, "a.txt": b"a", "a.cls": b"cat"}, "set.tar key a: .cls is no label (invalid literal"),
        ({"a.png": a, "a.cls": b"1", "b.png": b}, "set.tar key b: label -1, expected at least 0"),
    ):
        tar(tmp_path / "set.tar", members)
        assert message in one_line_error(lambda: open_webdataset(tmp_path / "set.tar"))
    tar(tmp_path / "set.tar", {"a.png": a, "a.cls": b"0", "b.png": b, "b.cls": b"2", "._b.png": b"", "b.md": b""})
    source = open_webdataset(tmp_path)  # labels alone are a set too
    assert (set(source.spec), num_classes(source)) == ({"x", "label"}, 3)
    whole = tar(tmp_path / "set.tar", {"a.png": a, "a.txt": b"a", "b.png": b, "b.txt": b"b" * 2000}).read_bytes()
    for content, message in (
        (whole[: whole.index(b"b" * 2000) + 100], "set.tar key b: .txt is cut off; fetch the tar file again"),
        (whole[: whole.index(b"b" * 2000) - 600], "set.tar: is damaged, or no tar file without compression ("),
        (gzip.compress(whole), "set.tar: is damaged, or no tar file without compression ("),
        (b"", "set.tar: is damaged, or no tar file without compression (empty file)"),
    ):
        (tmp_path / "set.tar").write_bytes(content)
        assert message in one_line_error(lambda: open_webdataset(tmp_path))


def test_a_txt_is_the_caption_until_a_field_is_named(tmp_path: Path) -> None:
    both = {"a.png": ENCODED[0], "a.txt": b"short", "a.json": b'{"text": "long", "lines": ["1", "2"]}'}
    tar(tmp_path / "set.tar", {**both, "b.png": ENCODED[1], "b.txt": b" alone\r\n"})
    assert list(captions(open_webdataset(tmp_path))) == ["short", "alone"]
    assert list(captions(open_webdataset(tmp_path, text="text"))) == ["long", "alone"]
    assert list(captions(open_webdataset(tmp_path, text="lines"))) == ["1", "2", "alone"]
    tar(tmp_path / "set.tar", {"a.png": ENCODED[0], "a.txt": b"short"})
    said = "set.tar: no KEY.json with the field lines; write them, or leave text (data.text) out"
    assert said in one_line_error(lambda: open_webdataset(tmp_path / "set.tar", text="lines"))


def test_tar_files_of_splits(tmp_path: Path) -> None:
    for name in ("set-train-0000.tar", "set-train-0001.tar", "set-val-0000.tar"):
        tar(tmp_path / name, {"a.png": ENCODED[0], "a.txt": name.encode()})
    assert list(captions(open_webdataset(tmp_path))) == ["set-train-0000.tar", "set-train-0001.tar"]
    assert list(captions(open_webdataset(tmp_path, split="validation"))) == ["set-val-0000.tar"]
    assert len(open_webdataset(tmp_path, split="all")) == 3
    assert f"{tmp_path}: no split 'test'; it has train, validation" in one_line_error(
        lambda: open_webdataset(tmp_path, split="test")
    )
    tar(tmp_path / "set-train-00000-of-00002.tar", {"a.png": ENCODED[0], "a.txt": b"a"})
    assert (
        "set-train-00001-of-00002.tar is missing; fetch it, or set skip_bad (data.skip_bad) to train"
        in one_line_error(lambda: open_webdataset(tmp_path))
    )


def test_an_index_is_made_once_and_anew_when_a_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webdataset, "_SMALL", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "set").mkdir()
    pairs(tmp_path / "set", ["one", "two", "three", "four"])
    first = open_webdataset(tmp_path / "set")
    (index,) = (tmp_path / "cache" / "jaxdiff" / "decoded").glob("*.index.npz")
    with monkeypatch.context() as patch:
        patch.setattr(webdataset, "_made", lambda *arguments: pytest.fail("the index was made again"))
        again = open_webdataset(tmp_path / "set")
        assert list(captions(again)) == list(captions(first)) == ["one", "two", "three", "four"]
        assert again.fingerprint == first.fingerprint
    index.write_bytes(index.read_bytes()[:-30])  # one that is not whole
    assert list(captions(open_webdataset(tmp_path / "set")))[:2] == ["one", "two"]
    tar(tmp_path / "set" / "0001.tar", {"x.png": ENCODED[0], "x.txt": b"another"})
    changed = open_webdataset(tmp_path / "set")
    assert list(captions(changed)) == ["one", "two", "another"]
    assert changed.fingerprint != first.fingerprint
    assert [file for file in index.parent.glob("*.index.npz") if file != index] != []
    assert len([*index.parent.glob("*.index.npz")]) == 1
    webdataset._opened.cache_clear()
    assert "0001.tar: has changed since this run began to read it" in one_line_error(lambda: take(first, [2]))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "set" / "0001.tar"))  # where nothing can be kept
    assert list(captions(open_webdataset(tmp_path / "set"))) == ["one", "two", "another"]


def test_a_tar_file_that_another_thread_drops_is_read_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs(tmp_path, ["one", "two", "three", "four"])
    monkeypatch.setattr(webdataset, "_opened", webdataset._opened.__wrapped__)  # nobody but the reader holds the file
    assert take(open_webdataset(tmp_path), [3, 0])["text"].tolist() == ["four", "one"]


def test_more_tar_files_than_are_held_open(tmp_path: Path) -> None:
    for number in range(webdataset._OPEN + 6):
        tar(tmp_path / f"{number:04}.tar", {"a.png": ENCODED[number % 4], "a.txt": str(number).encode()})
    source = open_webdataset(tmp_path)
    order = np.random.default_rng(0).permutation(len(source))
    for records in (take(source, order), take(pickle.loads(pickle.dumps(source)), order)):
        assert records["text"].tolist() == [str(number) for number in order]
        assert (records["x"] == PICTURES[order % 4]).all()
    held = len([*Path("/proc/self/fd").iterdir()]) if Path("/proc/self/fd").exists() else 0
    take(source, order)
    assert held == 0 or len([*Path("/proc/self/fd").iterdir()]) <= held
