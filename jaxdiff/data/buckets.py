"""Buckets of aspect ratios: pictures of many sizes as sets that have one size each, of about the same area.

NovelAI 2022, "NovelAI Improvements on Stable Diffusion",
https://blog.novelai.net/novelai-improvements-on-stable-diffusion-e10d38db82ac; Podell et al. 2023, "SDXL",
https://arxiv.org/abs/2307.01952, section 2.3 and appendix I. With the side s of a square, a multiple m that divides it
and a ratio r of at least 1, the buckets are the sizes

    (h, w) and (w, h)  for  w = m, 2 m, 3 m, ...  and  h = m floor(s^2 / (m w)),   where max(h/w, w/h) <= r:         (1)

multiples of m, as high as the square's area allows. A picture of H x W goes to the bucket with

    least |log(H / W) - log(h / w)|,                                                                                (2)

that which keeps the most of it: exp of minus that, of its area. It is scaled until it covers the bucket, its aspect
kept, and cut in the middle (`jaxdiff.data.transforms`). The size of each picture is read from the head of its file,
once, and kept. How batches are drawn of several buckets is in `jaxdiff.data.stream`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jaxdiff.data.kept import kept, of_all
from jaxdiff.data.sources import (
    DataError,
    Records,
    Say,
    Source,
    classes_of,
    digest,
    fingerprint,
    name_of,
    texts,
    to_stderr,
)
from jaxdiff.data.subset import Subset
from jaxdiff.data.transforms import covering, middle
from jaxdiff.spec import Spec

SIZES = "sizes"
"""The name of what a record in a bucket says of its picture: (H, W) as stored, (top, left) of the part in what it was
scaled to, (h, w) of the bucket; pixels."""


def bucket_sizes(side: int, multiple: int = 64, ratio: float = 2.0) -> tuple[tuple[int, int], ...]:
    """The sizes (h, w) of equation (1), from the widest to the highest.

    Args:
      side: s, a multiple of ``multiple``.
      multiple: m, at least 1.
      ratio: r, at least 1.

    Raises:
      DataError: one of them is out of its range.

    >>> bucket_sizes(1024)[:4]
    ((704, 1408), (768, 1344), (768, 1280), (832, 1216))
    """
    if multiple < 1 or ratio < 1:
        raise DataError(
            f"the multiple of buckets' sides and their largest ratio are at least 1, got {multiple}, {ratio:g}"
        )
    if side < multiple or side % multiple:
        raise DataError(
            f"image_size {side} is no multiple of {multiple}, as the sides of buckets are: set image_size to one, or "
            f"bucket_multiple to a divisor of {side}"
        )
    sizes, widest = set(), min(side * ratio**0.5, side**2 / multiple)
    for width in range(multiple, int(widest) + 1, multiple):
        height = multiple * (side**2 // (multiple * width))
        if max(height, width) <= ratio * min(height, width):
            sizes |= {(height, width), (width, height)}
    return tuple(sorted(sizes, key=lambda size: size[0] / size[1]))


def nearest(pictures: NDArray[np.integer[Any]], sizes: Sequence[tuple[int, int]]) -> NDArray[np.int64]:
    """The bucket of each picture, by equation (2); of two that are as near the wider one.

    Args:
      pictures: ``(N, 2)``, heights and widths.
      sizes: of the buckets.

    >>> nearest(np.array([[300, 310], [300, 700]]), [(32, 64), (45, 45)]).tolist()
    [1, 0]
    """
    aspects = np.log(pictures[:, 0] / pictures[:, 1])
    of_buckets = np.log(np.array([height / width for height, width in sizes]))
    return np.abs(aspects[:, None] - of_buckets[None]).argmin(axis=1)


class Bucket:
    """Records of a source whose pictures are cut to one size. Fields as `Source`.

    Args:
      source: with pictures of that size.
      members: the records, by their numbers there.
      sizes: ``(len(members), 6)``, the records' `SIZES`; None: they are left out.
    """

    def __init__(self, source: Source, members: NDArray[np.int64], sizes: NDArray[np.int32] | None) -> None:
        self._records, self._sizes = Subset(source, members), sizes
        self.name, self.classes, self.files = self._records.name, self._records.classes, self._records.files
        self.spec: Mapping[str, Spec] = dict(self._records.spec)
        self.fingerprint = self._records.fingerprint
        if sizes is not None:
            self.spec = {**self.spec, SIZES: Spec((6,), "int32", 0)}
            self.fingerprint = digest(np.array([self.fingerprint]), sizes)

    def __len__(self) -> int:
        return len(self._records)

    def take(self, indices: NDArray[np.int64], /) -> Records:
        records = self._records.take(indices)
        return records if self._sizes is None else {**records, SIZES: self._sizes[indices]}

    def texts(self, indices: NDArray[np.int64], /) -> NDArray[Any]:
        return self._records.texts(indices)


class Bucketed:
    """The records of a source in buckets: a `Source` that gives records of one bucket at a time.

    Args:
      source: the whole.
      buckets: a source for each.
      members: of each, the numbers of its records in the whole.
    """

    def __init__(self, source: Source, buckets: Sequence[Source], members: Sequence[NDArray[np.int64]]) -> None:
        self.source, self.buckets, self.members = source, tuple(buckets), tuple(members)
        self.name, self.classes = name_of(source), classes_of(source)
        specs = [bucket.spec for bucket in self.buckets]
        self.spec: Mapping[str, Spec] = {name: _joined([spec[name] for spec in specs]) for name in specs[0]}
        self.fingerprint = digest(np.array([fingerprint(bucket) for bucket in self.buckets]), *self.members)
        self._bucket, self._place = np.zeros((2, len(source)), np.int64)
        for number, numbers in enumerate(self.members):
            self._bucket[numbers], self._place[numbers] = number, np.arange(len(numbers))

    def __len__(self) -> int:
        return len(self.source)

    def take(self, indices: NDArray[np.int64], /) -> Records:
        """Several records of one bucket.

        Raises:
          DataError: they are of several.
        """
        buckets = self._bucket[indices]
        if (buckets != buckets[:1]).any():
            raise DataError(f"{self.name}: records of several sizes are no batch; take those of one bucket at a time")
        return self.buckets[int(buckets[0])].take(self._place[indices])

    def texts(self, indices: NDArray[np.int64], /) -> NDArray[Any]:
        """The captions of several records."""
        return texts(self.source, indices)

    def mapped(self, function: Callable[[Source], Source]) -> Bucketed:
        """The same records in the same buckets, each bucket as a function gives it."""
        buckets = tuple(map(function, self.buckets))
        unchanged = all(new is old for new, old in zip(buckets, self.buckets, strict=True))
        return self if unchanged else Bucketed(self.source, buckets, self.members)


def _joined(specs: Sequence[Spec]) -> Spec:
    """The spec of an array whose sizes differ from bucket to bucket."""
    first = specs[0]
    shape = tuple(sizes[0] if len(set(sizes)) == 1 else None for sizes in zip(*(s.shape for s in specs), strict=True))
    return Spec(shape, first.dtype, first.low, first.high, first.null)


def buckets_of(source: Source) -> tuple[Source, ...]:
    """The sources that batches are drawn of, each of one size: a source's buckets, or itself."""
    return source.buckets if isinstance(source, Bucketed) else (source,)


def in_buckets(
    source: Any,
    side: int,
    *,
    multiple: int = 64,
    ratio: float = 2.0,
    sizes: bool = False,
    keep: bool = True,
    folder: str | os.PathLike[str] | None = None,
    say: Say = to_stderr,
) -> Bucketed:
    """The pictures of a source in buckets of aspect ratios; buckets without pictures are left out.

    Args:
      source: of pictures of many sizes, opened with ``resize``: a folder, Parquet, WebDataset or TFDS; or one of your
        own with two methods, ``sizes(indices) -> (B, 2)``, heights and widths as they are stored, and ``at(height,
        width)``, a source of the same records with pictures of that size.
      side: s of equation (1), pixels.
      multiple: m; a power of two that the network and its autoencoder halve evenly, such as 64.
      ratio: r; a picture that is longer is cut to the nearest bucket.
      sizes: whether records have `SIZES`.
      keep: keep the pictures' sizes for the next time, where they are files.
      folder: where; None: `jaxdiff.data.decoded.cache_folder`.
      say: gets a line where they cannot be kept.

    Raises:
      DataError: what is no source of pictures of many sizes; `bucket_sizes`; a picture whose file is damaged.

    >>> import tempfile
    >>> from PIL import Image
    >>> from jaxdiff.data import open_folder
    >>> with tempfile.TemporaryDirectory() as data:
    ...     for name, size in (("1.png", (90, 60)), ("2.png", (50, 50)), ("3.png", (30, 20))):
    ...         Image.new("RGB", size).save(f"{data}/{name}")
    ...     source = in_buckets(open_folder(data, image_size=32, resize=True), 32, multiple=8, sizes=True, keep=False)
    ...     records = source.take(np.array([0, 2]))
    >>> [each.spec["x"].shape for each in source.buckets], records["x"].shape, records["sizes"][0].tolist()
    ([(24, 40, 3), (32, 32, 3)], (2, 24, 40, 3), [60, 90, 1, 0, 24, 40])
    """
    whole = source
    while isinstance(whole, Subset):
        whole = whole.source
    if not (hasattr(whole, "sizes") and hasattr(whole, "at")):
        raise DataError(
            f"{name_of(source)}: buckets are of pictures of many sizes, and these have one or are no pictures; take a "
            "folder, Parquet, WebDataset or TFDS, or leave buckets (data.buckets) out"
        )
    known = bucket_sizes(side, multiple, ratio)

    def read() -> list[list[int]]:
        return list(of_all(source, lambda records: source.sizes(np.array(records)).tolist()))

    def checked(held: Any) -> list[list[int]]:
        if np.array(held).shape != (len(source), 2):
            raise ValueError
        return list(held)

    found = kept(source, "sizes", read, checked, what="the pictures' sizes", folder=folder, say=say) if keep else read()
    pictures = np.array(found, np.int64)
    chosen = nearest(pictures, known)
    buckets, members = [], []
    for number in np.unique(chosen):
        (height, width), numbers = known[number], np.flatnonzero(chosen == number)
        told = _told(pictures[numbers], height, width) if sizes else None
        buckets.append(Bucket(source.at(height, width), numbers, told))
        members.append(numbers)
    return Bucketed(source, buckets, members)


def _told(pictures: NDArray[np.int64], height: int, width: int) -> NDArray[np.int32]:
    """`SIZES` of pictures in a bucket."""
    cut = [middle(covering(rows, columns, height, width), height, width) for rows, columns in pictures.tolist()]
    return np.concatenate([pictures, cut, np.broadcast_to([height, width], (len(pictures), 2))], axis=1).astype(
        np.int32
    )
