"""MNIST with a coarse semantic map beside each digit, made of the picture by code: what stands where, not how.

With g the ink of a pixel, from 0 to 1, and y the digit, all pixels of a block B, 4x4 of them, are of one class:

    m_B = y + 1   where the mean of g over B is above 1/8,      else 0, the background              (1)
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from jaxdiff.data.maps import MAP
from jaxdiff.data.parquet import open_mnist
from jaxdiff.data.sources import DataError, Records, Source, classes_of, digest, fingerprint, name_of, take
from jaxdiff.spec import Spec

BLOCK, LEAST = 4, 1 / 8


class MnistMaps:
    """A `Source` over one of grey pictures and labels, such as `open_mnist`, with ``"map"`` (H, W) by equation (1).

    Args:
      source: uint8 pictures (H, W, 1) of bright ink on black, H and W multiples of 4, with labels.

    Raises:
      DataError: other pictures, or none with labels.

    >>> from jaxdiff.data import open_digits
    >>> source = MnistMaps(open_digits())
    >>> source.spec["map"], source.take(np.array([5]))["map"][0, ::4, ::4].tolist()
    (Spec(shape=(8, 8), dtype='uint8', low=0, high=10, null=None), [[7, 0], [7, 7]])
    """

    def __init__(self, source: Source) -> None:
        x, label = source.spec["x"], source.spec.get("label")
        height, width, channels = x.shape if len(x.shape) == 3 else (0, 0, 0)
        whole = channels == 1 and x.dtype == "uint8" and not (height or 1) % BLOCK and not (width or 1) % BLOCK
        if not whole or label is None or label.high is None:
            raise DataError(
                f"{name_of(source)}: maps are made of grey pictures with labels, of sides that {BLOCK} divides; got "
                f"{x.dtype} {x.shape} and {', '.join(source.spec)}"
            )
        self.source, self.name, self.classes = source, name_of(source), classes_of(source)
        self.spec = {**source.spec, MAP: Spec(x.shape[:2], "uint8", 0, label.high + 1)}
        self.files: Sequence[Path] = getattr(source, "files", ())
        self.fingerprint = digest(np.array([f"maps of {BLOCK} {LEAST} {fingerprint(source)}"]))

    def __len__(self) -> int:
        return len(self.source)

    def take(self, indices: NDArray[np.int64], /) -> Records:
        """Pictures, labels and maps."""
        records = take(self.source, indices)
        return {**records, MAP: coarse_maps(records["x"], records["label"])}


def coarse_maps(pictures: NDArray[np.uint8], label: NDArray[np.int32]) -> NDArray[np.uint8]:
    """Equation (1).

    Args:
      pictures: ``(B, H, W, 1)``, H and W multiples of 4.
      label: ``(B,)``.

    Returns:
      ``(B, H, W)``: 0 for the background, or the label + 1.

    >>> coarse_maps(np.full((1, 4, 4, 1), 255, np.uint8), np.int32([3]))[0, 0].tolist()
    [4, 4, 4, 4]
    """
    n, height, width, _ = pictures.shape
    ink = pictures.reshape(n, height // BLOCK, BLOCK, width // BLOCK, BLOCK).mean(axis=(2, 4)) / 255
    ids = np.where(ink > LEAST, label[:, None, None] + 1, 0).astype(np.uint8)
    return ids.repeat(BLOCK, axis=1).repeat(BLOCK, axis=2)


def open_mnist_maps(
    path: str | os.PathLike[str] | None = None,
    *,
    split: str = "train",
    image_size: int | None = None,
    channels: int | None = None,
    num_classes: int | None = None,
    resize: bool = False,
    skip_bad: bool = False,
    conditions: Sequence[str] | None = None,
    text: str | None = None,
) -> MnistMaps:
    """MNIST by `open_mnist`, with the maps of `MnistMaps`: 11 classes, the background and ten digits.

    Args:
      path, split, image_size, channels, num_classes, resize, skip_bad, text: see there.
      conditions: labels are read too, of which the maps are made.

    >>> open_mnist_maps()
    Traceback (most recent call last):
    jaxdiff.data.sources.DataError: mnist: no path given; set path (data.path) to the folder with mnist's train.parquet
    ...
    """
    source = open_mnist(
        path,
        split=split,
        image_size=image_size,
        channels=channels,
        num_classes=num_classes,
        resize=resize,
        skip_bad=skip_bad,
        conditions=("label",),
        text=text,
    )
    return MnistMaps(source)
