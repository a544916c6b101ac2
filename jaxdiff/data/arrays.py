"""Sources over arrays: the embedded digits, `.npz` files, arrays at hand.

An array stored uncompressed in its `.npz` (`np.savez`) is memory-mapped and read page by page; a compressed one
(`np.savez_compressed`) is held in memory. Nothing is ever unpickled.
"""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jaxdiff.data.files import find_split, given_path
from jaxdiff.data.sources import DataError, Expected, Images, Source, check_labels, digest, one_line

_DIGITS = Path(__file__).with_name("digits.npz")
_IMAGE_KEYS = ("images", "image", "x", "data", "arr_0")
_LABEL_KEYS = ("labels", "label", "y", "targets", "arr_1")


class ArrayReader:
    """Images (N, H, W, C) or (N, H, W) and labels (N,) or None, in memory or mapped."""

    def __init__(
        self,
        images: NDArray[Any],
        labels: NDArray[Any] | None,
        *,
        name: str,
        num_classes: int | None = None,
        expected: int | None = None,
        member: tuple[str, str] | None = None,
        skip_bad: bool = False,
    ) -> None:
        if images.dtype != np.uint8:
            raise DataError(f"{name}: images are {images.dtype}, expected uint8 in 0..255; scale and cast them")
        if images.ndim not in (3, 4):
            raise DataError(f"{name}: images have shape {images.shape}, expected (N, H, W, C) or (N, H, W)")
        images = _channels_last(images)
        if images.shape[1] in (1, 3, 4) and images.shape[3] > 4:
            raise DataError(
                f"{name}: images have shape {images.shape}, channels first as it seems; "
                "store images.transpose(0, 2, 3, 1)"
            )
        self.name = name
        self._images = images
        self._member = member  # the file and key it came from
        self._labels: NDArray[np.int64] | None = None
        self.num_classes: int | None = None
        if labels is not None:
            self._labels, self.num_classes = check_labels(labels, num_classes, self, expected, skip_bad)
        some = images[:: max(1, len(images) // 16)]
        self.identity = digest(some, *([] if self._labels is None else [self._labels]))

    def __getstate__(self) -> dict[str, Any]:
        # For worker processes: a mapped array would be copied whole, so each opens the file again.
        return {**self.__dict__, "_images": None} if self._member else self.__dict__

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._member:
            self._images = _channels_last(_array(*self._member))

    def __len__(self) -> int:
        return len(self._images)

    def read(self, index: int, /) -> tuple[NDArray[np.uint8], int | None]:
        return np.array(self._images[index]), None if self._labels is None else int(self._labels[index])

    def read_many(self, indices: NDArray[np.int64], /) -> tuple[NDArray[np.uint8], NDArray[np.int64] | None]:
        return np.ascontiguousarray(self._images[indices]), None if self._labels is None else self._labels[indices]

    def where(self, index: int, /) -> str:
        return f"{self.name} row {index}"


def from_arrays(
    images: NDArray[np.uint8],
    labels: NDArray[np.integer] | None = None,
    *,
    num_classes: int | None = None,
    name: str = "arrays",
) -> Source:
    """A source over arrays at hand.

    Args:
      images: uint8 ``(N, H, W, C)`` or ``(N, H, W)``.
      labels: integers (N,) in [0, num_classes), or None.
      num_classes: None: the largest label + 1.
      name: for messages.

    Raises:
      DataError: for other shapes or types.

    >>> source = from_arrays(np.zeros((5, 8, 8, 3), np.uint8), np.arange(5))
    >>> len(source), source.image_shape, source.num_classes, source[4]["label"]
    (5, (8, 8, 3), 5, 4)
    """
    labels = None if labels is None else np.asarray(labels)
    reader = ArrayReader(np.asarray(images), labels, name=name, expected=num_classes)
    return Images(reader, Expected(num_classes=num_classes))


def open_digits(
    path: str | os.PathLike[str] | None = None,
    *,
    split: str = "train",
    image_size: int | None = None,
    channels: int | None = None,
    num_classes: int | None = None,
    resize: bool = False,
    skip_bad: bool = False,
) -> Source:
    """The 1,797 handwritten digits (8x8, grey, ten classes) that lie in the package: no download.

    Stored values v = 0..16 become grey levels u = round(255 v / 16); v = round(16 u / 255) recovers them. The split is
    fixed and stratified: 1,438 for training, 359 for tests (DIGITS_LICENSE.md: origin, licence, how the file was made).

    Args:
      path: there is none to give.
      split: "train", "test" or "all".
      image_size, channels, num_classes, resize, skip_bad: as in `open_parquet`.

    >>> source = open_digits()
    >>> len(source), source.image_shape, source.num_classes
    (1438, (8, 8, 1), 10)
    >>> np.round(source[0]["image"][0, :, 0] * (16 / 255)).astype(int).tolist()
    [0, 0, 5, 13, 9, 1, 0, 0]
    """
    if path is not None:
        raise DataError(
            f"digits: lie in the package, got path={str(path)!r}; leave the path out, or choose another source"
        )
    if split not in ("train", "test", "all"):
        raise DataError(f"digits: no split {split!r}; it has train, test, all")
    with np.load(_DIGITS, allow_pickle=False) as file:
        values, labels, test = file["images"], file["labels"], file["test"]
    chosen = {"train": ~test, "test": test, "all": np.ones_like(test)}[split]
    grey = np.rint(values[chosen] * (255 / 16)).astype(np.uint8)
    reader = ArrayReader(grey, labels[chosen], name="digits", num_classes=10, expected=num_classes)
    return Images(reader, Expected(image_size, channels, num_classes, resize, skip_bad))


def open_npz(
    path: str | os.PathLike[str] | None = None,
    *,
    split: str = "train",
    image_size: int | None = None,
    channels: int | None = None,
    num_classes: int | None = None,
    resize: bool = False,
    skip_bad: bool = False,
) -> Source:
    """Images and labels from an `.npz` file.

    Images are uint8 ``(N, H, W, C)`` or ``(N, H, W)`` under the key images, image, x, data or arr_0; integer labels,
    which may be absent, under labels, label, y, targets or arr_1; either with the split before or after it
    (`train_images`, `x_train`).

    Args:
      path: the file, or a folder that holds `train.npz`, `test.npz`.
      split: which of them. A file without splits is its own only one: "train", "all", or the name that the file begins
        with.
      image_size, channels, num_classes, resize, skip_bad: as in `open_parquet`.

    Raises:
      DataError: the file or split is missing, damaged, or not what was asked for.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.savez(folder + "/set.npz", images=np.zeros((4, 8, 8), np.uint8), labels=np.array([0, 1, 1, 2]))
    ...     source = open_npz(folder + "/set.npz")
    ...     len(source), source.image_shape, source.num_classes
    (4, (8, 8, 1), 3)
    """
    expected = Expected(image_size, channels, num_classes, resize, skip_bad)
    path = given_path(path, "npz", "an .npz file with images (N, H, W, C) uint8 and labels (N,)")
    if path.is_dir():
        files = find_split(path, split, "npz")
        if len(files) > 1:
            raise DataError(
                f"{path}: split {split!r} is {len(files)} .npz files, expected one; point the path at one of them"
            )
        path = files[0]
    keys = _keys(path)
    image_key, label_key = _find(keys, _IMAGE_KEYS, split), _find(keys, _LABEL_KEYS, split)
    if image_key is None:
        if split_keys := [
            key for key in keys if any(f in key for f in _IMAGE_KEYS[:3]) and ("train" in key or "test" in key)
        ]:
            raise DataError(f"{path}: no split {split!r}; it has the arrays {', '.join(split_keys)}")
        find_split(path, split, "npz")  # a file without splits inside: is it the one that was asked for?
        image_key, label_key = _find(keys, _IMAGE_KEYS, None), _find(keys, _LABEL_KEYS, None)
    if image_key is None:
        raise DataError(
            f"{path}: no array of images; it has {', '.join(keys) or 'none'}, expected one of {', '.join(_IMAGE_KEYS)}"
        )
    return Images(_read_npz(str(path), image_key, label_key, expected), expected)


def _find(keys: list[str], names: tuple[str, ...], split: str | None) -> str | None:
    forms = [name if split is None else form for name in names for form in (f"{name}_{split}", f"{split}_{name}")]
    return next((form for form in forms if form in keys), None)


def _keys(path: Path) -> list[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(
            f"{path}: not an .npz file, or damaged ({one_line(error)}); write it again with np.savez"
        ) from error


def _read_npz(path: str, image_key: str, label_key: str | None, expected: Expected) -> ArrayReader:
    images = _array(path, image_key)
    labels = None if label_key is None else _array(path, label_key)
    asked, skip = expected.num_classes, expected.skip_bad
    return ArrayReader(images, labels, name=path, expected=asked, member=(path, image_key), skip_bad=skip)


def _channels_last(images: NDArray[Any]) -> NDArray[Any]:
    return images[..., None] if images.ndim == 3 else images


def _array(path: str, key: str) -> NDArray[Any]:
    """An array of an `.npz`, memory-mapped where it is stored uncompressed."""
    try:
        with zipfile.ZipFile(path) as archive:
            member = archive.getinfo(key + ".npy")
            with archive.open(member) as file:
                version = np.lib.format.read_magic(file)
                if member.compress_type == zipfile.ZIP_STORED and version == (1, 0):
                    shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
                    if 0 not in shape and not dtype.hasobject:
                        start = _data_offset(path, member) + file.tell()
                        return np.memmap(path, dtype, "r", start, shape, "F" if fortran else "C")
            with archive.open(member) as file:
                return np.lib.format.read_array(file, allow_pickle=False)
    except (zipfile.BadZipFile, zlib.error, struct.error, OSError, ValueError, EOFError) as error:
        raise DataError(
            f"{path}: array {key!r} cannot be read ({one_line(error)}); write it again with np.savez, without objects"
        ) from error


def _data_offset(path: str, member: zipfile.ZipInfo) -> int:
    """Where a stored member's bytes begin: after its local header, whose name and extra field vary in length."""
    with open(path, "rb") as file:
        file.seek(member.header_offset)
        header = file.read(30)
    name, extra = struct.unpack("<HH", header[26:30])
    return member.header_offset + 30 + name + extra
