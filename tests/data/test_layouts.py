"""What people's own files look like: split names, links, turned and transparent pictures, mixed modes, shards."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jaxdiff import data
from jaxdiff.data import DataError, take
from jaxdiff.data.files import FolderReader
from jaxdiff.spec import Spec
from tests.data.pictures import check_content, encoded, one_line_error, pictures, record, write_folder, write_parquet

# --- splits and classes of a folder


@pytest.mark.parametrize(
    ("train", "test"), [("train", "test"), ("Train", "Test"), ("training", "testing"), ("TRAINING", "val")]
)
def test_split_folders_are_no_classes(tmp_path: Path, train: str, test: str) -> None:
    """Before: three of these gave a set of two classes, named like the splits."""
    write_folder(tmp_path / train, pictures(), list("aabbcc"))
    write_folder(tmp_path / test, pictures(3), list("abc"))
    source = data.open_folder(tmp_path)
    assert (len(source), source.classes) == (6, ("a", "b", "c"))
    asked = "validation" if test == "val" else "test"
    assert len(data.open_folder(tmp_path, split=asked)) == 3
    other = "test" if test == "val" else "validation"
    assert f"no split {other!r}; it has {train}, {test}" in one_line_error(
        lambda: data.open_folder(tmp_path, split=other)
    )


def test_a_split_beside_classes_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path, pictures(4), ["valid", "invalid", "valid", "invalid"])
    assert "valid is named like a split and invalid like a class; put the class folders" in one_line_error(
        lambda: data.open_folder(tmp_path)
    )
    (tmp_path / "train").mkdir()
    for name in ("valid", "invalid"):
        (tmp_path / name).rename(tmp_path / "train" / name)
    assert data.open_folder(tmp_path).classes == ("invalid", "valid")
    write_folder(tmp_path / "Training", pictures(1), ["a"])
    assert len(data.open_folder(tmp_path)) == 4  # the one of this very name
    (tmp_path / "train").rename(tmp_path / "TRAIN")
    assert "split 'train' could be TRAIN or Training; rename one" in one_line_error(lambda: data.open_folder(tmp_path))


def test_classes_are_in_natural_order_and_named(tmp_path: Path) -> None:
    """Before: "10" was class 1 and "2" class 2, and nothing kept the names."""
    names = [str(number) for number in range(12)]
    write_folder(tmp_path, pictures(12), names)
    source = data.open_folder(tmp_path)
    assert source.classes == tuple(names)
    check_content(source, pictures(12), list(range(12)))


def test_a_folders_fingerprint_knows_sizes_and_content(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / "set").mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / "set" / f"{number}.bmp")
    first = data.open_folder(tmp_path / "set").fingerprint
    shutil.copytree(tmp_path / "set", tmp_path / "copy")
    assert data.open_folder(tmp_path / "copy").fingerprint == first
    Image.new("RGB", (8, 8), (9, 0, 0)).save(tmp_path / "copy" / "1.bmp")  # as large as before
    content = data.open_folder(tmp_path / "copy").fingerprint
    with open(tmp_path / "copy" / "1.bmp", "ab") as file:
        file.write(b"more")
    assert len({first, content, data.open_folder(tmp_path / "copy").fingerprint}) == 3


def test_links_and_all_kinds_are_read_and_the_rest_is_said(tmp_path: Path, capsys: Any) -> None:
    """Before: a linked folder inside a class, .jfif and .avif were left out without a word."""
    image = pictures(1, (16, 16, 3))[0]
    write_folder(tmp_path / "elsewhere", np.stack([image, image]), ["deep", "cats"])
    root = tmp_path / "set"
    (root / "dogs").mkdir(parents=True)
    (root / "cats").symlink_to(tmp_path / "elsewhere" / "cats", target_is_directory=True)
    (root / "dogs" / "more").symlink_to(tmp_path / "elsewhere" / "deep", target_is_directory=True)
    (root / "dogs" / "again").symlink_to(root / "dogs", target_is_directory=True)  # within itself
    (root / "dogs" / "1.png").symlink_to(tmp_path / "elsewhere" / "cats" / "01.png")
    for name, kind in (("2.jfif", "JPEG"), ("3.avif", "AVIF"), ("4.JPG", "JPEG"), ("5.webp", "WEBP")):
        (root / "dogs" / name).write_bytes(encoded(image, kind))
    (root / "dogs" / "6.heic").write_bytes(b"?")
    (root / "dogs" / "notes.txt").write_text("no image")
    (root / "dogs" / ".DS_Store").write_text("no image")
    source = data.open_folder(root)
    names = [file.name for file in source.files]
    assert names == ["01.png", "1.png", "2.jfif", "3.avif", "4.JPG", "5.webp", "00.png"]
    assert take(source, np.arange(7))["label"].tolist() == [0, 1, 1, 1, 1, 1, 1]
    said = capsys.readouterr().err
    assert said == f"{root}: 2 files are no images and are left out (1 .heic, 1 .txt; the first: dogs/6.heic)\n"
    (root / "dogs" / "7.png").symlink_to(tmp_path / "nowhere.png")
    assert "7.png (row 6): cannot be read" in one_line_error(lambda: data.open_folder(root))


# --- pictures as cameras and programs write them


def test_photos_are_upright(tmp_path: Path) -> None:
    """Every orientation of EXIF. Before: sideways as stored."""
    upright = np.zeros((8, 12, 3), np.uint8)
    upright[0, 0], upright[0, -1], upright[-1, 0] = (250, 0, 0), (0, 250, 0), (0, 0, 250)
    inverse = {  # EXIF 2.32, tag 0x0112: where row 0 and column 0 of the stored picture are seen
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
        8: lambda a: np.rot90(a, -1),
    }
    for orientation, stored in inverse.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(np.ascontiguousarray(stored(upright))).save(tmp_path / f"{orientation}.png", exif=exif)
    source = data.open_folder(tmp_path)
    for index in range(8):
        assert (record(source, index)["x"] == upright).all(), index + 1


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    """Before: RGBA sets had four channels, and what a palette hides was shown."""
    rgba = np.random.default_rng(0).integers(0, 256, (8, 8, 4), dtype=np.uint8)
    Image.fromarray(rgba).save(tmp_path / "1.png")
    grey = Image.fromarray(rgba[..., 1:3], "LA")
    grey.save(tmp_path / "2.png")
    palette = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) % 4, "P")
    palette.putpalette([10, 20, 30, 200, 0, 0, 0, 200, 0, 0, 0, 200])
    palette.save(tmp_path / "3.png", transparency=2)
    Image.fromarray(rgba[..., :3]).save(tmp_path / "4.png")
    source = data.open_folder(tmp_path)
    assert source.spec["x"] == Spec((8, 8, 3), "uint8", 0, 255)
    a = rgba[..., 3:].astype(float) / 255
    assert np.abs(record(source, 0)["x"] - (a * rgba[..., :3] + (1 - a) * 255)).max() <= 0.5 + 1e-9
    b = rgba[..., 2:3].astype(float) / 255
    assert np.abs(record(source, 1)["x"] - (b * rgba[..., 1:2] + (1 - b) * 255)).max() <= 0.5 + 1e-9
    assert record(source, 2)["x"][0, :4].tolist() == [[10, 20, 30], [200, 0, 0], [255, 255, 255], [0, 0, 200]]
    whole = data.open_folder(tmp_path, channels=4)
    assert (record(whole, 0)["x"] == rgba).all()
    assert (record(whole, 3)["x"] == np.dstack([rgba[..., :3], np.full((8, 8), 255, np.uint8)])).all()


@pytest.mark.parametrize("place", [0, 5, 15, 29])
def test_one_file_of_another_mode_among_thirty(tmp_path: Path, place: int) -> None:
    """Before: one grey or transparent file was refused, or all the others were."""
    images = pictures(30)
    for channels in (1, 4):
        folder = tmp_path / str(channels)
        write_folder(folder, images, ["."] * 30)
        odd = pictures(1, (8, 8, channels))[0]
        (folder / f"{place:02}.png").write_bytes(encoded(odd))
        each: list[dict[str, Any]] = [{}, {"channels": 3}]
        for options in each:
            x = take(data.open_folder(folder, **options), np.arange(30))["x"]
            assert x.shape == (30, 8, 8, 3)
            assert (np.delete(x, place, axis=0) == np.delete(images, place, axis=0)).all()
            assert channels == 4 or (x[place] == odd.repeat(3, axis=2)).all()


def test_a_colour_file_among_grey_ones_is_the_one_that_is_named(tmp_path: Path) -> None:
    images = pictures(40, (8, 8, 1))
    write_folder(tmp_path, images, ["."] * 40)
    (tmp_path / "13.png").write_bytes(encoded(pictures(1)[0]))
    source = data.open_folder(tmp_path)
    message = "13.png (row 13): image has colours, the set's others are grey; set channels=3"
    assert message in one_line_error(lambda: record(source, 13))
    assert f"bad records: 1: {tmp_path}/{message}" in one_line_error(lambda: data.verify(source))
    assert record(data.open_folder(tmp_path, channels=3), 13)["x"].shape == (8, 8, 3)
    assert len(data.without_bad(data.open_folder(tmp_path, skip_bad=True), keep=False, say=lambda text: None)) == 39


def test_twelve_photos_as_people_have_them(tmp_path: Path, shared_data: Path) -> None:
    """Linked, turned by EXIF, grey and transparent copies of photos of many sizes, at the first try."""
    photos = sorted((shared_data / "photos").glob("*.png"))
    assert len(photos) == 12
    plain, mixed = tmp_path / "plain", tmp_path / "mixed"
    for number, photo in enumerate(photos):
        for root in (plain, mixed):
            (root / "train" / f"c{number % 3}").mkdir(parents=True, exist_ok=True)
        (plain / "train" / f"c{number % 3}" / photo.name).symlink_to(photo)
        target = mixed / "train" / f"c{number % 3}" / photo.name
        picture = Image.open(photo).convert("RGB")
        exif = Image.Exif()
        exif[0x0112] = 6
        if number % 4 == 0:
            target.symlink_to(photo)
        elif number % 4 == 1:
            picture.transpose(Image.Transpose.ROTATE_90).save(target, exif=exif)
        elif number % 4 == 2:
            picture.convert("RGBA").save(target)
        else:
            picture.save(target)
    (mixed / "train").rename(mixed / "Training")
    options: dict[str, Any] = {"image_size": 64, "resize": True}
    first, second = (take(data.open_folder(root, **options), np.arange(12)) for root in (plain, mixed))
    assert first["x"].shape == (12, 64, 64, 3)
    assert (first["x"] == second["x"]).all() and (first["label"] == second["label"]).all()


# --- Parquet


def write_table(path: Path, columns: dict[str, Any], classes: tuple[str, ...] = ()) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    label = next((name for name in columns if "label" in name), "label")
    info = {"info": {"features": {label: {"names": list(classes), "_type": "ClassLabel"}}}}
    metadata = {"huggingface": json.dumps(info)} if classes else None
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), path)


def as_bytes(images: Any) -> list[dict[str, Any]]:
    return [{"bytes": encoded(image), "path": None} for image in images]


@pytest.mark.parametrize(
    ("layout", "image", "label"),
    [
        ("data/train-00000-of-00001.parquet", "image", "label"),
        ("plain_text/train-00000-of-00001.parquet", "img", "fine_label"),
        ("train/0000.parquet", "image", "labels"),
        ("default/train/0000.parquet", "img", "label"),
    ],
)
def test_layouts_of_the_hub(tmp_path: Path, layout: str, image: str, label: str) -> None:
    images, labels = pictures(), [0, 1, 2, 0, 1, 2]
    write_table(tmp_path / layout, {image: as_bytes(images), label: labels, "coarse_label": [0] * 6}, ("a", "b", "c"))
    other = tmp_path / layout.replace("train", "test")
    write_table(other, {image: as_bytes(images[:1]), label: [0]}, ("a", "b", "c"))
    source = data.open_parquet(tmp_path)
    check_content(source, images, labels)
    assert source.classes == ("a", "b", "c")
    assert len(data.open_parquet(tmp_path, split="test")) == 1
    assert len(data.open_parquet(tmp_path, split="all")) == 7
    write_table(tmp_path / "again" / "train.parquet", {image: as_bytes(images), label: labels})
    assert "split 'train' lies in several places" in one_line_error(lambda: data.open_parquet(tmp_path))


def test_shards_of_differing_layout(tmp_path: Path) -> None:
    """Before: all were read by the column of the last one."""
    images, labels = pictures(9), [0, 1, 2] * 3
    kinds: list[dict[str, Any]] = [
        {"image": as_bytes(images[:3]), "label": labels[:3]},
        {"label": pa.array(labels[3:6], pa.int32()), "img": [encoded(image) for image in images[3:6]]},
        {"image": as_bytes(images[6:]), "labels": pa.array(labels[6:], pa.uint8())},
    ]
    for number, columns in enumerate(kinds):
        write_table(tmp_path / f"train-0000{number}-of-00003.parquet", columns)
    check_content(data.open_parquet(tmp_path), images, labels)
    for number, columns in enumerate(kinds):
        classes = ("a", "b", "c") if number < 2 else ("c", "b", "a")
        write_table(tmp_path / f"train-0000{number}-of-00003.parquet", columns, classes)
    assert "00002-of-00003.parquet: its classes are 3 (c, b, a, ...), those of the files before 3 (a, b, c" in (
        one_line_error(lambda: data.open_parquet(tmp_path))
    )


@pytest.mark.parametrize("name", ["train-0000{}-of-00003.parquet", "train/000{}.parquet"])
def test_a_missing_shard_is_said(tmp_path: Path, name: str) -> None:
    """Before: a third of the data was left out without a word."""
    for number in (0, 2):
        write_parquet(tmp_path / name.format(number), map(encoded, pictures()), [0, 1, 2] * 2)
    message = f"{tmp_path}: {Path(name.format(1)).name} is missing"
    assert f"{message}; fetch it, or set skip_bad (data.skip_bad)" in one_line_error(
        lambda: data.open_parquet(tmp_path)
    )
    said: list[str] = []
    source = data.without_bad(data.open_parquet(tmp_path, skip_bad=True), keep=False, say=said.append)
    assert len(source) == 12
    assert f"1 files or entries and 0 of 12 records are bad and left out: {message}" in said[-1]


def test_labels_that_nobody_uses_are_not_looked_at(tmp_path: Path) -> None:
    """Before: text, floats and gaps in the labels stopped a run without classes."""
    for number, labels in enumerate((["a", "b"], [0.5, 1.5], [0, None], [-1, 7])):
        path = write_parquet(tmp_path / f"{number}.parquet", map(encoded, pictures(2)), labels)
        with pytest.raises(DataError):
            data.open_parquet(path)
        check_content(data.open_parquet(path, conditions=()), pictures(2), None)
    np.savez(tmp_path / "a.npz", x=pictures(2), y=np.array([0.5, 1.5]))
    check_content(data.open_npz(tmp_path / "a.npz", conditions=()), pictures(2), None)
    write_folder(tmp_path / "set", pictures(2), list("ab"))
    check_content(data.open_folder(tmp_path / "set", conditions=()), pictures(2), None)


# --- arrays


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_of_any_arrays(tmp_path: Path, save: Any) -> None:
    """Float data, labels (N, 1), conditions by name, more channels than four. Before: each was refused."""
    rng = np.random.default_rng(0)
    latents, slant = rng.standard_normal((6, 4, 4, 8)).astype(np.float16), rng.standard_normal(6)
    save(
        tmp_path / "a.npz",
        x=latents,
        label=np.arange(6).reshape(6, 1) % 3,
        slant=slant,
        kind=np.array([3, 1, 2, 1, 1, 2], np.int64),
        low=rng.integers(0, 256, (6, 2, 2, 3)).astype(np.uint8),
        scale=np.float32(3.0),
        names=np.array(list("abcdef")),
        classes=np.array(["x", "y", "z"]),
    )
    source = data.open_npz(tmp_path / "a.npz")
    assert source.spec == {
        "x": Spec((4, 4, 8), "float32"),
        "label": Spec((), "int32", 0, 2),
        "slant": Spec((), "float32"),
        "kind": Spec((), "int32", 1, 3),
        "low": Spec((2, 2, 3), "uint8", 0, 255),
    }
    assert source.classes == ("x", "y", "z")
    records = take(source, [4, 1])
    assert (records["x"] == latents[[4, 1]].astype(np.float32)).all() and records["x"].dtype == np.float32
    assert records["label"].tolist() == [1, 1] and records["label"].dtype == np.int32
    np.testing.assert_array_equal(records["slant"], slant[[4, 1]].astype(np.float32))
    few = data.open_npz(tmp_path / "a.npz", conditions=("slant",))
    assert few.spec.keys() == {"x", "slant"} and few.fingerprint != source.fingerprint


def test_arrays_of_any_shape() -> None:
    for shape in ((7,), (5, 3), (4, 4, 9), (2, 3, 4, 5)):
        for kind in (np.uint8, np.float32, np.float64):
            x = np.random.default_rng(0).integers(0, 9, (6, *shape)).astype(kind)
            limits: Any = {} if kind == np.uint8 else {"low": -1.0, "high": 10.0}
            source = data.from_arrays(x, width=np.ones((6, 2)), **limits)
            bounds = (0, 255) if kind == np.uint8 else (-1.0, 10.0)
            stored = (*shape, 1) if kind == np.uint8 and len(shape) == 2 else shape
            assert source.spec["x"] == Spec(stored, "uint8" if kind == np.uint8 else "float32", *bounds)
            records = take(source, [5, 0])
            assert (records["x"].reshape(2, *shape) == x[[5, 0]]).all() and records["width"].shape == (2, 2)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"x": np.zeros((3, 2), complex)}, "x is complex128, expected floats, or uint8"),
        ({"x": [[1.0, 2.0], [3.0]]}, "x has rows of unequal lengths"),
        ({"x": 3.0}, "x has shape (), expected (N, ...): one row a record"),
        ({"x": np.zeros(3)}, "x[:, None] makes each number a record"),
        ({"x": np.zeros((3, 2)), "width": 1.0}, "width has shape (), expected one row for each of 3 records"),
        ({"x": np.zeros((3, 2)), "width": [[1.0], [1.0, 2.0], [0.0]]}, "width has rows of unequal lengths"),
        ({"x": np.zeros((3, 2)), "width": [1.0, np.nan, 0.0]}, "arrays row 1: width is not finite in float32"),
        ({"x": np.zeros((3, 2)), "width": [[1.0], [0.0], [np.inf]]}, "arrays row 2: width is not finite"),
        ({"x": np.zeros((3, 2)), "width": [1e300, 1.0, 0.0]}, "which ends at 3.4e+38: fix the record, scale it"),
        ({"x": np.zeros((3, 2)), "low": 1.0, "high": 0.0}, "low 1.0 is above high 0.0"),
        ({"x": np.zeros((3, 2)), "low": "a"}, "low is to be a number or None, got 'a'"),
        ({"x": np.zeros((3, 2), np.uint8), "low": 0.0}, "low and high are of float data, and x is uint8"),
        ({"x": np.zeros((3, 2)), "classes": ["a"]}, "classes name the labels, and there are none"),
        ({"x": np.zeros((3, 2)), "label": [0, 1, 0], "num_classes": 2.5}, "num_classes must be a whole number"),
        ({"x": np.zeros((3, 2)), "label": np.zeros((3, 2), int)}, "labels have shape (3, 2), expected (3,)"),
        ({"x": np.zeros((3, 2)), "width": np.zeros(2)}, "width has shape (2,), expected one row for each of 3 records"),
        ({"x": np.zeros((3, 2)), "title": np.array(["a"] * 3)}, "title is <U1, expected numbers"),
        ({"x": np.zeros((3, 3, 32, 32), np.uint8)}, "channels first as it seems"),
    ]
    for arrays, message in cases:
        assert message in one_line_error(functools.partial(data.from_arrays, **arrays))
    assert data.from_arrays(np.zeros((3, 8, 8, 7), np.uint8)).spec["x"].shape == (8, 8, 7)


def test_fingerprints_of_arrays_know_their_conditions() -> None:
    x, width = np.zeros((6, 2)), np.arange(6.0)
    extras: list[dict[str, Any]] = [{}, {"width": width}, {"width": width + 1}]
    prints = [data.from_arrays(x, **extra).fingerprint for extra in extras]
    assert len(set(prints)) == 3


def test_the_folder_reader_says_to_whom_it_is_told(tmp_path: Path) -> None:
    write_folder(tmp_path, pictures(1), ["a"])
    (tmp_path / "a" / "x.json").write_text("{}")
    said: list[str] = []
    FolderReader(tmp_path, say=said.append)
    assert said == [f"{tmp_path}: 1 files are no images and are left out (1 .json; the first: a/x.json)"]
