"""A folder of images by class, and what holds for every source."""

from __future__ import annotations

import functools
import inspect
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jaxdiff import data
from jaxdiff.config import SOURCES
from tests.data.pictures import check_content, encoded, one_line_error, pictures, record, write_folder, write_parquet

# --- a folder


def test_folder(tmp_path: Path) -> None:
    images = pictures()
    write_folder(tmp_path / "all", images, ["b", "c", "a", "b", "c", "a"])
    (tmp_path / "all" / "a" / "notes.txt").write_text("not an image")
    (tmp_path / "all" / ".cache").mkdir()
    source = data.open_folder(tmp_path / "all")
    assert data.num_classes(source) == 3
    check_content(source, images[[2, 5, 0, 3, 1, 4]], [0, 0, 1, 1, 2, 2])


def test_folder_with_splits(tmp_path: Path) -> None:
    write_folder(tmp_path / "train", pictures(), list("aabbcc"))
    write_folder(tmp_path / "test", pictures(3), list("abc"))
    assert len(data.open_folder(tmp_path)) == 6
    assert len(data.open_folder(tmp_path, split="test")) == 3
    assert f"{tmp_path}: no split 'val'; it has train, test" in one_line_error(
        lambda: data.open_folder(tmp_path, split="val")
    )


def test_folder_without_classes(tmp_path: Path) -> None:
    write_folder(tmp_path, pictures(), ["."] * 6)
    check_content(data.open_folder(tmp_path), pictures(), None)
    assert "has no labels, num_classes=2 was asked" in one_line_error(lambda: data.open_folder(tmp_path, num_classes=2))


def test_folder_refusals(tmp_path: Path) -> None:
    assert "expected a folder with one sub-folder of images" in one_line_error(lambda: data.open_folder(tmp_path / "x"))
    nothing: list[str] = []
    for conditions, what in ((nothing, "a folder of images"), (["text"], "a folder of images, each with its caption")):
        message = one_line_error(functools.partial(data.open_folder, tmp_path / "x", conditions=conditions))
        assert message == f"{tmp_path}/x: no such file or folder, expected {what}"
    assert f"{tmp_path}: no images" in one_line_error(lambda: data.open_folder(tmp_path))
    write_folder(tmp_path, pictures(), list("aabbcc"))
    assert "3 class folders, expected at most 2" in one_line_error(lambda: data.open_folder(tmp_path, num_classes=2))
    assert "no split 'test'; it has class folders only" in one_line_error(
        lambda: data.open_folder(tmp_path, split="test")
    )
    (tmp_path / "d").mkdir()
    assert f"{tmp_path / 'd'}: class folder without images" in one_line_error(lambda: data.open_folder(tmp_path))
    (tmp_path / "d").rmdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "loose.png")
    assert "loose images (loose.png, ...)" in one_line_error(lambda: data.open_folder(tmp_path))
    assert "is a file, expected a folder" in one_line_error(lambda: data.open_folder(tmp_path / "loose.png"))


def test_folder_bad_images(tmp_path: Path) -> None:
    write_folder(tmp_path, pictures(12), list("aaaaaaaaaabb"))
    empty, deep = tmp_path / "b" / "10.png", tmp_path / "b" / "11.png"
    empty.write_bytes(b"")
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(deep)
    source = data.open_folder(tmp_path)
    assert one_line_error(lambda: record(source, 10)).startswith(f"{empty} (row 10): image is empty (0 bytes)")
    assert f"{deep} (row 11): image has Pillow mode I;16, expected 8-bit" in one_line_error(lambda: record(source, 11))
    message = one_line_error(lambda: data.verify(source))
    assert "bad records: 2" in message
    assert str(empty) in message
    assert str(deep) in message
    assert "1 or more bad records" in one_line_error(lambda: data.verify(source, limit=1))


def test_folder_resize(tmp_path: Path) -> None:
    big, small = pictures(1, (20, 30, 3)), pictures(1, (8, 8, 3))
    write_folder(tmp_path, big, ["a"])
    write_folder(tmp_path, small, ["b"])
    source = data.open_folder(tmp_path, image_size=8, resize=True)
    assert (record(source, 0)["x"] == data.center_crop_resize(big[0], 8)).all()
    assert (record(source, 1)["x"] == small[0]).all()
    assert "image is 8x8 with 3 channels, the set's others are 20x30" in one_line_error(
        lambda: data.open_folder(tmp_path)
    )
    assert "resize needs image_size" in one_line_error(lambda: data.open_folder(tmp_path, resize=True))
    assert "image_size must be a whole number of at least 1, got 0" in one_line_error(
        lambda: data.open_folder(tmp_path, image_size=0)
    )


# --- what makes two sets the same


def test_fingerprint_knows_content_not_place(tmp_path: Path) -> None:
    images, labels = pictures(), [0, 1, 2, 0, 1, 2]
    prints = []
    for name, numbers in (("a", labels), ("b", labels), ("c", labels[::-1])):
        np.savez(tmp_path / f"{name}.npz", images=images, labels=np.array(numbers))
        write_parquet(tmp_path / name / "train.parquet", map(encoded, images), numbers)
        write_folder(tmp_path / f"{name}_folder", images, list(map(str, numbers)))
        openers: list[Any] = [
            (data.open_npz, f"{name}.npz"),
            (data.open_parquet, name),
            (data.open_folder, f"{name}_folder"),
        ]
        prints.append([data.fingerprint(opener(tmp_path / place)) for opener, place in openers])
    assert prints[0] == prints[1]
    assert all(one != other for one, other in zip(prints[0], prints[2], strict=True))
    assert data.open_digits().fingerprint != data.open_digits(split="test").fingerprint


def test_every_source_knows_every_option() -> None:
    names = [name for name in SOURCES if hasattr(data, f"open_{name}")]
    known = {name: set(inspect.signature(getattr(data, f"open_{name}")).parameters) - {"name"} for name in names}
    assert len(names) == 11 and all(options == known["folder"] for options in known.values()), known


def test_two_digits_make_their_own_captions() -> None:
    message = "two_digits: make their own captions, got text='words'; leave it out"
    assert one_line_error(lambda: data.open_two_digits(text="words")) == message
