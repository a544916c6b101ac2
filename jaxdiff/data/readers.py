"""Images that lie encoded or one by one in files: the source over a reader.

Storage is read by a `Reader` (one class a kind of storage: Parquet, folder, TFDS); `ImageSource` makes a `Source` of
any reader and refuses what does not fit. So a new kind of storage is one reader and one function that opens it.

The channels of a set are those that were asked for, or else 3 where any of the images looked at has colours and 1 where
none has. Each image is brought to them: grey is repeated, and what is transparent is laid on white,

    c' = (a c + (255 - a) 255) / 255,                                                               (1)

unless four channels are asked for. An image with colours in a set of one channel is refused.
"""

from __future__ import annotations

import copy
import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from jaxdiff.data.expected import Expected
from jaxdiff.data.labels import label_spec
from jaxdiff.data.maps import MAP, check_size
from jaxdiff.data.sources import DataError, Records, as_caption, spread
from jaxdiff.data.transforms import center_crop_nearest, center_crop_resize, cover_crop, cover_nearest
from jaxdiff.spec import Spec

_SMALL, _CAPTIONS = 10_000, 256  # records of a set that is small; captions that the fingerprint of a larger one reads
_PROBED = 8  # records decoded when a source is opened: the first ones, and as many spread over all
Pixels = NDArray[np.uint8]


class Reader(Protocol):
    """One kind of storage of images: what it holds, as it lies there.

    A reader that decodes files at each read names them in an attribute `files`; then the set can be decoded once
    (`jaxdiff.data.decoded`). One that has maps beside the images (`jaxdiff.data.maps`) says ``has_maps = True``, and
    ``map(index)`` gives a record's (H, W).

    Attributes:
        name: for messages.
        num_classes: what the storage tells; None: no labels.
        classes: names of the classes, where the storage tells them.
        captions: the spec of a record's text; None: no captions.
        identity: text that differs where the records differ; cheap to make (names, sizes, labels: not every pixel).
    """

    name: str
    num_classes: int | None
    classes: tuple[str, ...] | None
    captions: Spec | None
    identity: str

    def __len__(self) -> int: ...

    def read(self, index: int, /) -> tuple[Pixels, int | None]:
        """The image (H, W, C) and the label of one record; DataError where it is damaged."""
        ...

    def size(self, index: int, /) -> tuple[int, int]:
        """(H, W) of the image of one record, not decoded where its file tells; DataError where it is damaged."""
        ...

    def text(self, index: int, /) -> Any:
        """The caption of one record as it is stored, or a list of them; None where it is missing. Not asked for where
        there are no captions."""
        ...

    def where(self, index: int, /) -> str:
        """The file and row of a record, for messages."""
        ...


class ImageSource:
    """A `Source` over a reader: decodes on access, and brings each image to the set's channels and size.

    Args:
      reader: the storage.
      expected: what was asked for.

    Raises:
      DataError: the set is empty, or what is looked at has another size, channel count or label range than asked for.
    """

    def __init__(self, reader: Reader, expected: Expected) -> None:
        self._reader, self._expected = reader, expected
        self._target = None if expected.image_size is None else (expected.image_size, expected.image_size)
        self._covers = False  # by `cover_crop`; else to a square, as ADM
        self.name, self.classes = reader.name, reader.classes
        self.files: Sequence[Path] = getattr(reader, "files", ())
        self.lost: Sequence[str] = getattr(reader, "lost", ())  # whole files that cannot be read, and why
        if len(reader) == 0:
            raise DataError(f"{reader.name}: the set is empty, expected at least one image")
        if expected.num_classes is not None and reader.num_classes is None:
            raise DataError(
                f"{reader.name}: has no labels, num_classes={expected.num_classes} was asked; "
                "leave num_classes out to train without labels"
            )
        probed = self._probe()
        self._channels = self._count_channels(probed)
        sizes = Counter(self._size(image, index) for index, image in probed.items())
        self._shape = (*max(sizes, key=lambda each: sizes[each]), self._channels)
        classes = expected.num_classes or reader.num_classes
        self.spec = {"x": Spec(self._shape, "uint8", 0, 255)}
        if classes is not None:
            self.spec["label"] = label_spec(classes)
        if getattr(reader, "has_maps", False):
            self.spec[MAP] = Spec(self._shape[:2], "uint8", 0, 255)
        identity = repr((len(reader), self._shape, classes, reader.identity))
        if reader.captions is not None:
            self.spec["text"] = reader.captions
            identity += repr((reader.captions, [self._digested(int(index)) for index in digested(len(self))]))
        self.fingerprint = hashlib.blake2b(identity.encode(), digest_size=12).hexdigest()
        for index in range(0 if expected.skip_bad else min(_PROBED, len(self))):
            self._fit(probed[index], index)
            if MAP in self.spec:
                self._map(probed[index], index)

    def __len__(self) -> int:
        return len(self._reader)

    def take(self, indices: NDArray[np.int64], /) -> Records:
        """Several records, each decoded, brought to the set's channels and size, or refused by file and row."""
        images = np.empty((len(indices), *self._shape), np.uint8)
        labels = np.empty(len(indices), np.int32)
        found: Records = {"x": images, "label": labels, MAP: np.empty(images.shape[:3], np.uint8)}
        for row, index in enumerate(self._numbers(indices)):
            image, label = self._reader.read(index)
            images[row] = self._fit(image, index)
            if "label" in self.spec:
                labels[row] = self._label(label, index)
            if MAP in self.spec:
                found[MAP][row] = self._map(image, index)
        if "text" in self.spec:
            found["text"] = self.texts(indices)
        return {name: found[name] for name in self.spec}

    def sizes(self, indices: NDArray[np.int64], /) -> NDArray[np.int32]:
        """(H, W) of the images of several records as they are stored, ``(B, 2)``; no image is decoded where its file
        tells."""
        found = [self._reader.size(index) for index in self._numbers(indices)]
        return np.array(found, np.int32).reshape(-1, 2)

    def at(self, height: int, width: int) -> ImageSource:
        """The same records, with images cropped and resized to another size by `cover_crop`.

        Raises:
          DataError: the source was opened without ``resize``.
        """
        if not self._expected.resize:
            raise DataError(f"{self.name}: opened for one size of images; set resize (data.resize) to have others")
        other = copy.copy(self)
        other._target, other._shape, other._covers = (height, width), (height, width, self._channels), True
        other.spec = {**self.spec, "x": Spec(other._shape, "uint8", 0, 255)}
        if MAP in self.spec:
            other.spec[MAP] = Spec((height, width), "uint8", 0, 255)
        whole = f"{self.fingerprint} {height}x{width}"
        other.fingerprint = hashlib.blake2b(whole.encode(), digest_size=12).hexdigest()
        return other

    def texts(self, indices: NDArray[np.int64], /) -> NDArray[Any]:
        """The captions of several records; no image is decoded."""
        found = np.empty(len(indices), object)
        for row, index in enumerate(self._numbers(indices)):
            found[row] = self._caption(index)
        return found

    def _numbers(self, indices: NDArray[np.int64]) -> Iterator[int]:
        for given in indices:
            if not -len(self) <= given < len(self):
                raise IndexError(f"{self.name}: no record {given}, there are {len(self)}")
            yield int(given) % len(self)

    def _caption(self, index: int) -> str | tuple[str, ...]:
        value, where = self._reader.text(index), f"{self._reader.where(index)}: text"
        return as_caption(value, where, bool(self.spec["text"].shape))

    def _digested(self, index: int) -> str | tuple[str, ...] | None:
        try:
            return self._caption(index)
        except DataError:
            if not self._expected.skip_bad:
                raise
            return None  # met again when it is read

    def _probe(self) -> dict[int, Pixels]:
        """Some images. The first ones must be readable; with `skip_bad`, any."""
        skip, count = self._expected.skip_bad, len(self)
        chosen = [*range(min(_PROBED, count)), *map(int, spread(count, _PROBED))]
        if skip:
            chosen += range(count)
        probed: dict[int, Pixels] = {}
        first: DataError | None = None
        for place, index in enumerate(chosen):
            try:
                image = self._image(index)
                if skip:
                    self._size(image, index)
                probed[index] = image
            except DataError as error:
                if place < _PROBED and not skip:
                    raise
                first = first or error  # met again when it is read
            if len(probed) >= _PROBED and place >= 2 * _PROBED:
                break
        if not probed:
            raise DataError(f"{self.name}: none of its {count} records can be read; the first: {first}")
        return probed

    def _image(self, index: int) -> Pixels:
        image = self._reader.read(index)[0]
        if image.dtype != np.uint8 or image.ndim != 3:
            raise DataError(
                f"{self._reader.where(index)}: image is {image.dtype} {image.shape}, expected uint8 (H, W, C)"
            )
        return image

    def _count_channels(self, probed: dict[int, Pixels]) -> int:
        """What was asked for, where the images can be brought to it; else 3 for colour and 1 for grey."""
        index, most = max(((i, image.shape[2]) for i, image in probed.items()), key=lambda each: _COLOURS[each[1]])
        asked = self._expected.channels
        found = most if asked == 4 and most == 4 else _COLOURS[most]
        if self._expected.skip_bad:  # what most have; where as many have colours, those
            counts = Counter(_COLOURS[image.shape[2]] for image in probed.values())
            return asked or max(counts, key=lambda count: (counts[count], count))
        if asked is None or asked == found or (asked == 3 and found == 1):
            return asked or found
        raise DataError(
            f"{self._reader.where(index)}: images have {_channels(found)}, expected {_channels(asked)}; "
            f"set channels={found} (data.channels) or convert the files"
        )

    def _size(self, image: Pixels, index: int) -> tuple[int, int]:
        """The size at which an image is given; refused where it differs from the one that was asked for."""
        target, (height, width) = self._target, image.shape[:2]
        if target is None:
            return height, width
        if self._expected.resize or (height, width) == target:
            return target
        raise DataError(
            f"{self._reader.where(index)}: image is {height}x{width}, expected {target[0]}x{target[1]}; "
            "set resize (data.resize) to crop and resize, or leave image_size out"
        )

    def _fit(self, image: Pixels, index: int) -> Pixels:
        """The image with the set's channels and size; refused where it cannot have them."""
        found = image.shape
        if image.dtype != np.uint8 or image.ndim != 3:
            return self._image(index)  # refused there
        if self._channels == 1 and _COLOURS[image.shape[2]] == 3:
            raise DataError(
                f"{self._reader.where(index)}: image has colours, the set's others are grey; "
                "set channels=3 (data.channels) to read all in colour, or convert the file"
            )
        image = with_channels(image, self._channels)
        height, width = self._size(image, index)
        if image.shape[:2] != (height, width):
            return cover_crop(image, height, width) if self._covers else center_crop_resize(image, height)
        if image.shape != self._shape:
            raise DataError(
                f"{self._reader.where(index)}: image is {_shape(found)}, the set's others are {_shape(self._shape)}; "
                "fix the file, or for images of many sizes set image_size and resize (data.resize)"
            )
        return image

    def _map(self, image: Pixels, index: int) -> NDArray[np.uint8]:
        """The map of an image that fits the set, brought to its size."""
        ids: NDArray[np.uint8] = self._reader.map(index)  # type: ignore[attr-defined]
        check_size(ids.shape, image.shape, self._reader.where(index))
        if ids.shape == self._shape[:2]:
            return ids
        return cover_nearest(ids, *self._shape[:2]) if self._covers else center_crop_nearest(ids, self._shape[0])

    def _label(self, label: int | None, index: int) -> int:
        count = int(self.spec["label"].high or 0) + 1
        if label is None or not 0 <= label < count:
            raise DataError(f"{self._reader.where(index)}: label {label}, expected 0..{count - 1}")
        return label


def digested(records: int) -> NDArray[np.int64]:
    """The records whose captions a fingerprint reads: all of a small set, else some, spread over all.

    >>> len(digested(5000)), len(digested(10**6))
    (5000, 256)
    """
    return spread(records, records if records <= _SMALL else _CAPTIONS)


_COLOURS = {1: 1, 2: 1, 3: 3, 4: 3}  # channels -> those without transparency


def with_channels(image: Pixels, channels: int) -> Pixels:
    """An image of 1 to 4 channels (grey, grey and opacity, RGB, RGBA) as one of 1, 3 or 4, by equation (1).

    Args:
      image: uint8 ``(H, W, C)``.
      channels: 1 takes grey images only.

    >>> half = np.uint8([[[255, 0, 0, 51]]])  # a fifth of red
    >>> with_channels(half, 3).tolist()
    [[[255, 204, 204]]]
    >>> with_channels(np.uint8([[[7]]]), 4).tolist()
    [[[7, 7, 7, 255]]]
    """
    opacity = image[:, :, -1:] if image.shape[2] in (2, 4) else None
    colours = image if opacity is None else image[:, :, :-1]
    if opacity is not None and channels != 4:
        a, c = opacity.astype(np.uint32), colours.astype(np.uint32)
        colours = ((a * c + (255 - a) * 255 + 127) // 255).astype(np.uint8)
    if colours.shape[2] == 1 and channels != 1:
        colours = colours.repeat(3, axis=2)
    if channels == 4:
        full = np.full_like(colours[:, :, :1], 255) if opacity is None else opacity
        return np.concatenate([colours, full], axis=2)
    return colours


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape[:2])) + f" with {_channels(shape[2])}"


def _channels(count: int) -> str:
    return f"{count} channel{'s' if count > 1 else ''}"
