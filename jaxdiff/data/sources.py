"""What a source of images is, and the checks that every source shares.

Storage is read by a `Reader` (one class a kind of storage: arrays, Parquet, folder, TFDS); `Images` makes a `Source` of
any reader and refuses what does not fit. So a new kind of storage is one reader and one function that opens it.

A source is read record by record, by `source[i]`. One whose records lie in an array may also have `take`, which gives a
whole batch in one NumPy call; `records_at` uses it where it is there.
"""

from __future__ import annotations

import copy
import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, Protocol, TypedDict, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from jaxdiff.data.transforms import center_crop_resize

_PROBED = 8  # records decoded when a source is opened


class DataError(ValueError):
    """Data that are missing, damaged or not what was asked for. The message is one line, for the user."""


class Record(TypedDict):
    """One record: `image` uint8 (H, W, C), or float32 of any shape that is in the model's range already; `label`, where
    the set has labels."""

    image: NDArray[np.uint8] | NDArray[np.float32]
    label: NotRequired[int]


class Records(TypedDict):
    """Several records: `image` (B, H, W, C), and `label` int32 (B,) where the set has labels."""

    image: NDArray[Any]
    label: NotRequired[NDArray[np.int32]]


class Source(Protocol):
    """Records by number; every record has the same shape.

    Attributes:
        name: for messages.
        image_shape: (H, W, C); (D,) of points.
        num_classes: labels lie in [0, num_classes); None: no labels.
        fingerprint: equal for equal sets of records in equal order, whatever path they lie under.
    """

    @property
    def name(self) -> str: ...

    @property
    def image_shape(self) -> tuple[int, ...]: ...

    @property
    def num_classes(self) -> int | None: ...

    @property
    def fingerprint(self) -> str: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Record: ...


@runtime_checkable
class TakesMany(Protocol):
    """What a `Source` may have besides: several records at once, the same as one by one."""

    def take(self, indices: NDArray[np.int64], /) -> Records: ...


class Reader(Protocol):
    """One kind of storage: what it holds, as it lies there.

    A reader that decodes files at each read names them in an attribute `files`; then the set can be decoded once
    (`jaxdiff.data.decoded`).

    Attributes:
        name: for messages.
        num_classes: what the storage tells; None: no labels.
        identity: text that differs where the records differ; cheap to make (names, sizes, labels: not every pixel).
    """

    name: str
    num_classes: int | None
    identity: str

    def __len__(self) -> int: ...

    def read(self, index: int, /) -> tuple[NDArray[np.uint8], int | None]:
        """The image (H, W, C) and the label of one record; DataError where it is damaged."""
        ...

    def where(self, index: int, /) -> str:
        """The file and row of a record, for messages."""
        ...


@runtime_checkable
class ReadsMany(Protocol):
    """What a `Reader` may have besides: several records at once, the same as one by one."""

    def read_many(self, indices: NDArray[np.int64], /) -> tuple[NDArray[np.uint8], NDArray[np.int64] | None]:
        """Images (B, H, W, C), a new array, and labels (B,)."""
        ...


@dataclass(frozen=True)
class Expected:
    """What the caller needs of a source; None leaves it to the data.

    Attributes:
        image_size: side of the square images, pixels.
        channels: of an image.
        num_classes: labels must lie in [0, num_classes).
        resize: bring images of another size to image_size by `center_crop_resize`, instead of refusing them.
      skip_bad: take what most records are for what they should be, and let `without_bad` find the others.
    """

    image_size: int | None = None
    channels: int | None = None
    num_classes: int | None = None
    resize: bool = False
    skip_bad: bool = False

    def __post_init__(self) -> None:
        for option in ("image_size", "channels", "num_classes"):
            value = getattr(self, option)
            if value is not None and value < 1:
                raise DataError(f"{option} is at least 1, got {value}")
        if self.resize and self.image_size is None:
            raise DataError("resize needs image_size: the side to bring the images to")


class Images:
    """A `Source` over a reader: decodes on access, and checks each record against what was asked and the first ones.

    Args:
      reader: the storage.
      expected: what was asked for.

    Raises:
      DataError: the set is empty, or its first records have another size, channel count or label range than asked for.
    """

    def __init__(self, reader: Reader, expected: Expected) -> None:
        self._reader = reader
        self._expected = expected
        self.name = reader.name
        if len(reader) == 0:
            raise DataError(f"{reader.name}: the set is empty, expected at least one image")
        if expected.num_classes is not None and reader.num_classes is None:
            raise DataError(
                f"{reader.name}: has no labels, num_classes={expected.num_classes} was asked; "
                "leave num_classes out to train without labels"
            )
        self.num_classes = expected.num_classes or reader.num_classes
        probed = self._probe()
        # Colour sets often hold some grey files: a set is grey only if all that is looked at is.
        channels = max(image.shape[2] for image in probed)
        if expected.skip_bad:
            counts = Counter(image.shape[2] for image in probed)
            channels = expected.channels or max(counts, key=lambda count: (counts[count], count))
        if expected.channels not in (None, channels):
            raise DataError(
                f"{reader.where(0)}: images have {_channels(channels)}, expected {_channels(expected.channels or 0)}; "
                f"set channels={channels} or convert the files"
            )
        sizes = Counter(image.shape[:2] for image in probed)
        size = max(sizes, key=lambda each: sizes[each]) if expected.skip_bad else probed[0].shape[:2]
        self.image_shape: tuple[int, ...] = (size[0], size[1], channels)
        self._kept: NDArray[np.int64] | None = None
        text = repr((len(reader), self.image_shape, self.num_classes, reader.identity))
        self.fingerprint = hashlib.blake2b(text.encode(), digest_size=12).hexdigest()
        for index in range(0 if expected.skip_bad else len(probed)):
            self[index]

    def without(self, bad: Sequence[int]) -> Images:
        """The same records without some; equal ones left out give an equal fingerprint.

        Raises:
          DataError: none is left.
        """
        if len(bad) == len(self):
            raise DataError(f"{self.name}: none of its {len(self)} records can be used")
        rest = copy.copy(self)
        here = np.arange(len(self._reader)) if self._kept is None else self._kept
        rest._kept = np.delete(here, np.asarray(bad, np.int64))
        rest.fingerprint = hashlib.blake2b(f"{self.fingerprint} {sorted(bad)}".encode(), digest_size=12).hexdigest()
        return rest

    def __len__(self) -> int:
        return len(self._reader) if self._kept is None else len(self._kept)

    def __getitem__(self, index: int, /) -> Record:
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.name}: no record {index}, there are {len(self)}")
        index = int(index) % len(self)
        index = index if self._kept is None else int(self._kept[index])
        image, label = self._reader.read(index)
        image = self._fit(image, index)
        if image.shape[2] == 1 and self.image_shape[2] == 3:
            image = image.repeat(3, axis=2)
        if image.shape != self.image_shape:
            raise DataError(
                f"{self._reader.where(index)}: image is {_shape(image.shape)}, "
                f"the set's others are {_shape(self.image_shape)}; "
                "fix the file, or for images of many sizes set image_size and resize=True"
            )
        if label is None:
            return {"image": image}
        if self.num_classes is not None and not 0 <= label < self.num_classes:
            raise DataError(f"{self._reader.where(index)}: label {label}, expected 0..{self.num_classes - 1}")
        return {"image": image, "label": label}

    def take(self, indices: NDArray[np.int64], /) -> Records:
        """Several records, checked as each one is; at once where the reader can."""
        count = len(self)
        if isinstance(self._reader, ReadsMany) and ((indices >= -count) & (indices < count)).all():
            images, labels = self._reader.read_many(indices if self._kept is None else self._kept[indices])
            fit = images.dtype == np.uint8 and images.shape[1:] == self.image_shape
            if labels is None and fit:
                return {"image": images}
            if labels is not None and fit and ((labels >= 0) & (labels < (self.num_classes or 0))).all():
                return {"image": images, "label": labels.astype(np.int32)}
        return one_by_one(self, indices)  # decoded or resized each by itself, or refused by name

    @property
    def files(self) -> Sequence[Path]:
        """The files that are decoded at each access; none of a reader over arrays."""
        files: Sequence[Path] = getattr(self._reader, "files", ())
        return files

    @property
    def reader(self) -> Reader:
        """The storage."""
        return self._reader

    @property
    def request(self) -> Expected:
        """What was asked for."""
        return self._expected

    def _probe(self) -> list[NDArray[np.uint8]]:
        """The first images; with `skip_bad`, those of the first records that can be read."""
        if not self._expected.skip_bad:
            return [self._image(index) for index in range(min(_PROBED, len(self._reader)))]
        probed: list[NDArray[np.uint8]] = []
        first: DataError | None = None
        for index in range(len(self._reader)):
            try:
                probed.append(self._image(index))
            except DataError as error:
                first = first or error
            if len(probed) == _PROBED:
                break
        if not probed:
            raise DataError(f"{self.name}: none of its {len(self._reader)} records can be read; the first: {first}")
        return probed

    def _image(self, index: int) -> NDArray[np.uint8]:
        return self._fit(self._reader.read(index)[0], index)

    def _fit(self, image: NDArray[np.uint8], index: int) -> NDArray[np.uint8]:
        """The image, resized where that was asked for; refused where it differs from the size that was asked for."""
        where, size = self._reader.where, self._expected.image_size
        if image.dtype != np.uint8 or image.ndim != 3:
            raise DataError(f"{where(index)}: image is {image.dtype} {image.shape}, expected uint8 (H, W, C)")
        if size is None or image.shape[:2] == (size, size):
            return image
        if self._expected.resize:
            return center_crop_resize(image, size)
        raise DataError(
            f"{where(index)}: image is {image.shape[0]}x{image.shape[1]}, expected {size}x{size}; "
            "set resize=True to crop and resize (transforms.center_crop_resize), or leave image_size out"
        )


def records_at(source: Source, indices: NDArray[np.int64]) -> Records:
    """Several records, at once where the source can.

    Args:
      source: where they come from.
      indices: (B,), at least one.

    >>> from jaxdiff.data import open_digits
    >>> records = records_at(open_digits(), np.array([4, 2, 4]))
    >>> records["image"].shape, records["label"].shape
    ((3, 8, 8, 1), (3,))
    """
    return source.take(indices) if isinstance(source, TakesMany) else one_by_one(source, indices)


def one_by_one(source: Source, indices: NDArray[np.int64]) -> Records:
    """Several records, each read by itself."""
    records = [source[int(index)] for index in indices]
    together: Records = {"image": np.stack([record["image"] for record in records])}
    if source.num_classes is not None:
        together["label"] = np.array([record["label"] for record in records], np.int32)
    return together


def verify(source: Source, limit: int = 10) -> None:
    """Decodes every record of a source; for once after a download, since it takes as long as an epoch of reading.

    Args:
      source: what to check.
      limit: stop after this many bad records.

    Raises:
      DataError: with every bad record found, at most `limit`.

    >>> from jaxdiff.data import open_digits
    >>> verify(open_digits())
    """
    found: list[str] = []
    for index in range(len(source)):
        try:
            source[index]
        except DataError as error:
            found.append(str(error))
            if len(found) == limit:
                break
    if found:
        count = f"{len(found)} or more bad records" if len(found) == limit else f"bad records: {len(found)}"
        raise DataError(f"{source.name}: {count}: " + " | ".join(found))


def check_labels(
    labels: NDArray[Any],
    num_classes: int | None,
    reader: Reader,
    expected: int | None,
    skip_bad: bool = False,
) -> tuple[NDArray[np.int64], int]:
    """All labels at once, before anything is compiled.

    Args:
      labels: as stored.
      num_classes: what the storage says of their number; None: it says nothing, and one more than the largest label is
        taken.
      reader: the storage they belong to, for their number and for messages.
      expected: what the caller asked for.
      skip_bad: leave labels out of range to who reads them.

    Returns:
      int64 (N,), and the number of classes.

    Raises:
      DataError: naming the first bad row.
    """
    records = len(reader)
    if labels.ndim != 1 or len(labels) != records:
        raise DataError(f"{reader.name}: labels have shape {labels.shape}, expected ({records},), one for each image")
    if labels.dtype.kind not in "iu":
        raise DataError(
            f"{reader.name}: labels are {labels.dtype}, expected integers; store class numbers 0, 1, 2, ..."
        )
    limit = expected or num_classes
    if records == 0:
        return labels.astype(np.int64), limit or 0
    bad = (labels < 0) | (labels >= limit) if limit is not None else labels < 0
    if bad.any() and not skip_bad:
        row = int(np.argmax(bad))
        allowed = "at least 0" if limit is None else f"0..{limit - 1}"
        raise DataError(
            f"{reader.where(row)}: label {labels[row]}, expected {allowed} ({int(bad.sum())} such rows); "
            "set num_classes to the largest label + 1, or fix the labels"
        )
    return labels.astype(np.int64), num_classes or max(int(labels.max()) + 1, 1)


def digest(*arrays: NDArray[np.generic]) -> str:
    """Hexadecimal hash of the bytes of some arrays, for a reader's identity."""
    state = hashlib.blake2b(digest_size=12)
    for array in arrays:
        state.update(np.ascontiguousarray(array).tobytes())
    return state.hexdigest()


def one_line(error: BaseException) -> str:
    """An error's message without line breaks, or its kind where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape[:2])) + f" with {_channels(shape[2])}"


def _channels(count: int) -> str:
    return f"{count} channel{'s' if count > 1 else ''}"
