"""The embedded digits and `.npz` files: content, splits, and one clear line for what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxdiff import data
from tests.data.pictures import check_content, one_line_error, pictures

# --- digits


def test_digits_are_scikit_learns() -> None:
    from sklearn.datasets import load_digits

    truth = load_digits()
    everything = data.open_digits(split="all")
    images = everything.take(np.arange(1797))["x"][:, :, :, 0].astype(np.float64)
    assert images.min() == 0
    assert images.max() == 255
    assert (np.rint(images * (16 / 255)) == truth.images).all()
    assert everything.take(np.arange(1797))["label"].tolist() == truth.target.tolist()


def test_digits_split_is_stratified_and_complete() -> None:
    train, test, everything = (data.open_digits(split=split) for split in ("train", "test", "all"))
    counts = {len(s): np.bincount(s.take(np.arange(len(s)))["label"]) for s in (train, test, everything)}
    assert list(counts) == [1438, 359, 1797]
    assert (np.abs(counts[359] - 0.2 * counts[1797]) <= 0.5).all()
    rows = [sorted(x.tobytes() for x in s.take(np.arange(len(s)))["x"]) for s in (train, test, everything)]
    assert sorted(rows[0] + rows[1]) == rows[2]


def test_digits_refusals() -> None:
    assert one_line_error(lambda: data.open_digits(split="val")) == "digits: no split 'val'; it has train, test, all"
    assert "images have 1 channel, expected 3 channels; set channels=1" in one_line_error(
        lambda: data.open_digits(channels=3)
    )
    assert "image is 8x8, expected 32x32; set resize (data" in one_line_error(lambda: data.open_digits(image_size=32))
    assert "digits row 5: label 6, expected 0..4 (717 such rows)" in one_line_error(
        lambda: data.open_digits(num_classes=5)
    )
    assert "lie in the package" in one_line_error(lambda: data.open_digits("somewhere"))
    assert data.open_digits(image_size=16, resize=True).spec["x"].shape == (16, 16, 1)


# --- npz


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize(
    ("image_key", "label_key"),
    [("images", "labels"), ("arr_0", "arr_1"), ("x", "y"), ("x_train", "y_train"), ("train_images", "train_labels")],
)
def test_npz_keys(tmp_path: Path, save: Callable[..., None], image_key: str, label_key: str) -> None:
    images, labels = pictures(), [0, 1, 2, 0, 1, 2]
    save(tmp_path / "a.npz", **{image_key: images, label_key: np.array(labels)})
    source = data.open_npz(tmp_path / "a.npz")
    assert data.num_classes(source) == 3
    check_content(source, images, labels)


@pytest.mark.parametrize("order", ["C", "F"])
def test_npz_is_mapped_or_held(tmp_path: Path, order: Any) -> None:
    images = pictures(4, (8, 8, 1))
    np.savez(tmp_path / "a.npz", images=np.asarray(images[..., 0], order=order))
    source: Any = data.open_npz(tmp_path / "a.npz")
    check_content(source, images, None)
    assert isinstance(source._arrays["x"], np.memmap)


def test_npz_splits(tmp_path: Path) -> None:
    np.savez(tmp_path / "keys.npz", x_train=pictures(6), x_test=pictures(3))
    assert len(data.open_npz(tmp_path / "keys.npz", split="test")) == 3
    assert "no split 'val'; it has the arrays x_train, x_test" in one_line_error(
        lambda: data.open_npz(tmp_path / "keys.npz", split="val")
    )
    folder = tmp_path / "files"
    folder.mkdir()
    np.savez(folder / "train.npz", images=pictures(6))
    np.savez(folder / "test.npz", images=pictures(3))
    assert len(data.open_npz(folder, split="test")) == 3
    assert "no split 'val'; it has test, train" in one_line_error(lambda: data.open_npz(folder, split="val"))
    assert "2 .npz files, expected one" in one_line_error(lambda: data.open_npz(folder, split="all"))
    assert "does not tell of a split 'test'" in one_line_error(
        lambda: data.open_npz(folder / "train.npz", split="test")
    )


def test_npz_refusals(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    images = pictures()
    for arrays, message in [
        ({"pixels": images}, "no array of images; it has pixels, expected one of images, image, x"),
        ({"images": images.astype(np.int64)}, "x is int64, expected floats, or uint8 in 0..255"),
        ({"images": images[0, 0, 0]}, "x has shape (3,), expected (N, ...)"),
        ({"images": images.transpose(0, 3, 1, 2)}, "channels first as it seems"),
        ({"images": images[:0]}, "the set is empty"),
        ({"images": images, "labels": np.arange(5)}, "labels have shape (5,), expected (6,)"),
        ({"images": images, "labels": np.arange(6.0)}, "labels are float64, expected integers"),
        ({"images": images, "labels": np.arange(6) - 1}, "a.npz row 0: label -1, expected at least 0"),
        (
            {"images": images, "labels": np.array(list("abcdef"), object)},
            "array 'labels' cannot be read (Object arrays",
        ),
        ({"images": images, "labels": np.array([[1, 2]] * 6)}, "labels have shape (6, 2), expected (6,)"),
    ]:
        np.savez(path, **arrays)
        found = one_line_error(lambda: data.open_npz(path))
        assert found.startswith(str(path))
        assert message in found
    np.savez(path, images=images, labels=np.arange(6))
    assert "a.npz row 4: label 4, expected 0..3 (2 such rows)" in one_line_error(
        lambda: data.open_npz(path, num_classes=4)
    )
    path.write_bytes(path.read_bytes()[:900])
    assert f"{path}: not an .npz file, or damaged (" in one_line_error(lambda: data.open_npz(path))
    assert "no such file or folder" in one_line_error(lambda: data.open_npz(tmp_path / "none.npz"))
    np.savez_compressed(path, images=images)
    content = bytearray(path.read_bytes())
    content[300:500] = b"\x00" * 200
    path.write_bytes(content)
    assert f"{path}: array 'images' cannot be read (" in one_line_error(lambda: data.open_npz(path))


def test_from_arrays() -> None:
    check_content(data.from_arrays(pictures(), np.arange(6)), pictures(), [0, 1, 2, 3, 4, 5])
    assert "arrays row 5: label 5, expected 0..4" in one_line_error(
        lambda: data.from_arrays(pictures(), np.arange(6), num_classes=5)
    )
