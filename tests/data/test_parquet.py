"""Parquet: pixels and labels as Pillow reads them, layouts, damage; the real MNIST and CIFAR-10."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jaxdiff import data
from jaxdiff.data import DataError, Source, parquet
from tests.data.pictures import check_content, encoded, one_line_error, pictures, record, write_parquet

# --- Parquet


@pytest.mark.parametrize(
    "layout", ["{}.parquet", "{}-00000-of-00001.parquet", "data/{}-00000-of-00001.parquet", "{}/0000.parquet"]
)
def test_parquet_layouts(tmp_path: Path, layout: str) -> None:
    images, labels = pictures(), [0, 1, 2, 0, 1, 2]
    write_parquet(tmp_path / layout.format("train"), map(encoded, images), labels)
    write_parquet(tmp_path / layout.format("test"), map(encoded, images[:1]), [0])
    source = data.open_parquet(tmp_path)
    assert data.num_classes(source) == 3
    check_content(source, images, labels)
    assert len(data.open_parquet(tmp_path, split="test")) == 1
    assert len(data.open_parquet(tmp_path, split="all")) == 7
    message = one_line_error(lambda: data.open_parquet(tmp_path, split="val"))
    assert message == f"{tmp_path}: no split 'val'; it has test, train"


def test_parquet_shards_follow_each_other(tmp_path: Path) -> None:
    images, labels = pictures(7), [0, 1, 2, 0, 1, 2, 1]
    write_parquet(tmp_path / "train-00000-of-00002.parquet", map(encoded, images[:4]), labels[:4], rows=3)
    write_parquet(tmp_path / "train-00001-of-00002.parquet", map(encoded, images[4:]), labels[4:], rows=3)
    check_content(data.open_parquet(tmp_path), images, labels)


def test_parquet_file_is_its_own_split(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "test.parquet", map(encoded, pictures()))
    for split in ("train", "all", "test"):
        check_content(data.open_parquet(path, split=split), pictures(), None)
    assert "does not tell of a split 'val'" in one_line_error(lambda: data.open_parquet(path, split="val"))


def test_parquet_class_names_give_their_number(tmp_path: Path) -> None:
    names = '{"info": {"features": {"label": {"names": ["a", "b", "c", "d"], "_type": "ClassLabel"}}}}'
    path = write_parquet(tmp_path / "a.parquet", map(encoded, pictures(2)), [0, 1], metadata={"huggingface": names})
    assert data.num_classes(data.open_parquet(path)) == 4
    assert data.num_classes(data.open_parquet(path, num_classes=9)) == 9
    path = write_parquet(tmp_path / "b.parquet", map(encoded, pictures(2)), [0, 4], metadata={"huggingface": names})
    assert f"{path} row 1: label 4, expected 0..3" in one_line_error(lambda: data.open_parquet(path))


def test_parquet_keeps_only_so_many_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = pictures(12)
    path = write_parquet(tmp_path / "train.parquet", map(encoded, images), list(range(12)), rows=2)
    monkeypatch.setattr(parquet, "CACHE_BYTES", 1000)
    reader = parquet.ParquetReader([path], "small")
    for index in [*range(12), 0, 11, 3]:
        image, label = reader.read(index)
        assert (image == images[index]).all()
        assert label == index
    assert 1 <= len(reader._cache) < 6
    assert reader._cached_bytes == sum(column.nbytes for column in reader._cache.values())


def test_parquet_grey_among_colour(tmp_path: Path) -> None:
    images = pictures(3)
    files = [encoded(images[0][:, :, :1]), encoded(images[1]), encoded(images[2], "PPM")]
    source = data.open_parquet(write_parquet(tmp_path / "a.parquet", files), channels=3)
    assert (record(source, 0)["x"] == images[0][:, :, :1].repeat(3, axis=2)).all()
    assert (record(source, 2)["x"] == images[2]).all()


def test_parquet_jpeg_as_pillow_decodes_it(tmp_path: Path) -> None:
    jpeg = encoded(pictures(1, (16, 16, 3))[0], "JPEG")
    source = data.open_parquet(write_parquet(tmp_path / "a.parquet", [jpeg]))
    assert (record(source, 0)["x"] == np.asarray(Image.open(io.BytesIO(jpeg)))).all()


def test_parquet_refusals(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    assert "no such file or folder, expected Parquet with columns image" in one_line_error(
        lambda: data.open_parquet(path)
    )
    assert "no path given; set path (data.path)" in one_line_error(data.open_parquet)
    assert f"{tmp_path}: no .parquet files, expected train.parquet" in one_line_error(
        lambda: data.open_parquet(tmp_path)
    )
    path.write_bytes(b"PAR1 is not enough")
    assert f"{path}: not a Parquet file, or damaged (" in one_line_error(lambda: data.open_parquet(path))
    write_parquet(path, map(encoded, pictures(1)), [0])
    pq.write_table(pq.read_table(path)[:0], path)
    assert "the set is empty" in one_line_error(lambda: data.open_parquet(path))
    good = list(map(encoded, pictures(3)))
    for labels, message in [
        ([0, 1, -1], f"{path} row 2: label -1, expected at least 0 (1 such rows)"),
        ([0.0, 1.0, 2.0], f"{path}: column label is double, expected integers"),
        (["a", "b", "c"], f"{path}: column label is string, expected integers"),
        ([0, None, 2], f"{path} row 1: label is missing (1 such rows)"),
    ]:
        write_parquet(path, good, labels)
        assert message in one_line_error(lambda: data.open_parquet(path))
    write_parquet(path, good, [0, 1, 7])
    assert f"{path} row 2: label 7, expected 0..4 (1 such rows); set num_classes" in one_line_error(
        lambda: data.open_parquet(path, num_classes=5)
    )
    assert f"{path} row 0: images have 3 channels, expected 1 channel" in one_line_error(
        lambda: data.open_parquet(path, channels=1)
    )
    assert f"{path} row 0: image is 8x8, expected 32x32" in one_line_error(
        lambda: data.open_parquet(path, image_size=32)
    )
    write_parquet(path, good)
    assert f"{path}: no column label; it has image; num_classes=3 needs one" in one_line_error(
        lambda: data.open_parquet(path, num_classes=3)
    )
    pq.write_table(pa.table({"picture": [b"x"]}), path)
    assert f"{path}: no column image; it has picture" in one_line_error(lambda: data.open_parquet(path))
    pq.write_table(pa.table({"image": [[1, 2]]}), path)
    assert f"{path}: column image is list<" in one_line_error(lambda: data.open_parquet(path))
    pq.write_table(pa.table({"image": [{"bytes": None, "path": "1.png"}]}), path)
    assert f"{path} row 0: image has no bytes, only a path" in one_line_error(lambda: data.open_parquet(path))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (b"", "image is empty (0 bytes)"),
        (None, "image has no bytes"),
        (encoded(pictures(1)[0])[:60], "image is damaged"),
        (b"not an image", "image is damaged or of an unknown kind"),
        (encoded(pictures(1, (9, 8, 3))[0]), "image is 9x8 with 3 channels, the set's others are 8x8 with 3 channels"),
    ],
)
def test_parquet_bad_image_names_file_and_row(tmp_path: Path, damage: bytes | None, message: str) -> None:
    files: list[bytes | None] = [encoded(image) for image in pictures(12)]
    files[10] = damage
    path = write_parquet(tmp_path / "train.parquet", files, list(range(12)), rows=4)
    source = data.open_parquet(tmp_path)  # what is bad far from the start is met when it is read
    record(source, 9), record(source, 11)
    assert one_line_error(lambda: record(source, 10)).startswith(f"{path} row 10: {message}")
    assert f"bad records: 1: {path} row 10: {message}" in one_line_error(lambda: data.verify(source))


def test_parquet_damaged_row_group(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "train.parquet", [encoded(i) for i in pictures(12)], list(range(12)), rows=10)
    metadata = pq.ParquetFile(path).metadata.row_group(1).column(0)
    start = metadata.dictionary_page_offset or metadata.data_page_offset
    content = bytearray(path.read_bytes())
    content[start : start + 40] = b"\xff" * 40
    path.write_bytes(content)
    source = data.open_parquet(path)
    assert one_line_error(lambda: record(source, 11)).startswith(f"{path}: row group 1 is damaged (")


# --- the real sets


@pytest.mark.parametrize(
    ("opener", "name", "shape", "counts"),
    [
        (data.open_mnist, "mnist", (28, 28, 1), {"train": 60_000, "test": 10_000, "all": 70_000}),
        (data.open_cifar10, "cifar10", (32, 32, 3), {"train": 50_000, "test": 10_000, "all": 60_000}),
    ],
)
def test_real_sets(
    shared_data: Path, opener: Callable[..., Source], name: str, shape: tuple[int, int, int], counts: dict[str, int]
) -> None:
    for split, count in counts.items():
        source = opener(shared_data, split=split)
        assert (len(source), source.spec["x"].shape, data.num_classes(source)) == (count, shape, 10)
    assert data.fingerprint(opener(shared_data / name)) == data.fingerprint(opener(shared_data))
    source = opener(shared_data, split="test")
    table = pq.read_table(shared_data / name / "test.parquet")
    for index in np.random.default_rng(0).integers(0, 10_000, 200).tolist():
        truth = Image.open(io.BytesIO(table["image"][index]["bytes"].as_py()))
        assert (record(source, index)["x"].squeeze() == np.asarray(truth)).all()
        assert record(source, index)["label"] == table["label"][index].as_py()
    with pytest.raises(DataError, match=r"images have \d channels?, expected 4 channels; set channels="):
        opener(shared_data, channels=4)
    with pytest.raises(DataError, match="expected 64x64; set resize"):
        opener(shared_data, image_size=64)
    assert opener(shared_data, image_size=16, resize=True).spec["x"].shape == (16, 16, shape[2])
