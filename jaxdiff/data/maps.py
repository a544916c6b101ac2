"""Semantic maps beside pictures: for each pixel the class that it is of, ``"map"`` (H, W), an id a pixel.

In a folder they are PNG files of the picture's name, `1.map.png` beside `1.jpg`, as sets for segmentation have them:
8-bit grey or with a palette, and a pixel's value, or its place in the palette, is the id. In an `.npz` they are
integers (N, H, W) under the key map. A map has the size of its picture; where the picture is cropped and resized, so
is the map, to the nearest pixel.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from jaxdiff.data.decoding import DECODE_ERRORS
from jaxdiff.data.sources import DataError, one_line

MAP = "map"
"""The name of a map in a record."""
SUFFIX = ".map.png"
_DEPTH = 24  # where a PNG says how many bits a pixel has


def decode_map(data: bytes, where: str) -> NDArray[np.uint8]:
    """The ids ``(H, W)`` of a PNG: pixel values of a grey one of 1 to 8 bits, places in the palette of another.

    Raises:
      DataError: with `where`, when the data are empty, damaged, no PNG, of colours or of 16 bits.

    >>> Image.fromarray(np.uint8([[0, 7]])).save(png := io.BytesIO(), "PNG")
    >>> decode_map(png.getvalue(), "1.map.png").tolist()
    [[0, 7]]
    """
    if len(data) == 0:
        raise DataError(f"{where}: map is empty (0 bytes); replace or remove it")
    try:
        with Image.open(io.BytesIO(data)) as picture:
            picture.load()
            kind, mode, ids = picture.format, picture.mode, np.asarray(picture)
    except DECODE_ERRORS as error:
        raise DataError(f"{where}: map is damaged or no picture ({one_line(error)}); replace or remove it") from error
    if kind != "PNG":
        raise DataError(f"{where}: map is a {kind} file, expected a PNG, which keeps ids as they are; save it as one")
    if mode not in ("1", "L", "P"):
        raise DataError(
            f"{where}: map has Pillow mode {mode}, expected 8-bit grey or a palette, whose pixel values are the ids of "
            "classes; convert the file"
        )
    most = 2 ** data[_DEPTH] - 1
    return (ids // (255 // most) if mode == "L" else ids).astype(np.uint8)  # which Pillow stretches to 0..255


def read_map(file: Path) -> NDArray[np.uint8]:
    """`decode_map` of a file.

    Raises:
      DataError: as there, or a file that cannot be read.
    """
    try:
        return decode_map(file.read_bytes(), str(file))
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({one_line(error)}); replace or remove it") from error


def maps_beside(names: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The maps among the pictures of a folder.

    Args:
      names: of all pictures and maps.

    Returns:
      By each picture's name its map's, and the maps beside which there is no picture. Where no picture has a map there
      are none, whatever files are called.

    >>> maps_beside(["a/1.jpg", "a/1.map.png", "a/2.png"])
    ({'a/1.jpg': 'a/1.map.png'}, [])
    """
    maps = {name for name in names if name.endswith(SUFFIX)}
    found = {
        name: beside for name in names if name not in maps and (beside := str(Path(name).with_suffix(SUFFIX))) in maps
    }
    return found, sorted(maps - {*found.values()}) if found else []


def check_size(ids: Sequence[int], image: Sequence[int], where: str) -> None:
    """Refuses a map of another height and width than its picture's.

    Raises:
      DataError: with `where`.

    >>> check_size((8, 9), (8, 8, 3), "cat.png")
    Traceback (most recent call last):
    jaxdiff.data.sources.DataError: cat.png: map is 8x9 and its image 8x8; give it the image's size
    """
    if tuple(ids[:2]) != tuple(image[:2]):
        has, wanted = ("x".join(map(str, sides[:2])) for sides in (ids, image))
        raise DataError(f"{where}: map is {has} and its image {wanted}; give it the image's size")


def is_map(name: str, array: NDArray[Any]) -> bool:
    """Whether an array by this name is maps ``(N, H, W)``: integers."""
    return name == MAP and array.ndim == 3 and array.dtype.kind in "iub"
