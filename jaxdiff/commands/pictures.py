"""Pictures that a command line names: what samples begin as, its mask, and maps of classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from jaxdiff.config import ConfigError
from jaxdiff.data import DataError
from jaxdiff.data.decoding import decode
from jaxdiff.data.maps import read_map


def read_picture(file: Path, shape: tuple[int, ...], option: str) -> NDArray[np.uint8]:
    """A picture at a model's size: enlarged or made smaller until it covers that, and its middle cut out.

    Args:
      file: PNG, JPEG or what else Pillow reads.
      shape: (H, W, C) of the model's pictures.
      option: that named the file, for messages.

    Raises:
      ConfigError: a file that is no picture, or a model of none.
    """
    picture = _opened(file, shape, option)
    if picture.mode in ("RGBA", "LA"):  # on white
        below = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(below, picture.convert("RGBA"))
    picture = _covering(picture.convert("L" if shape[2] == 1 else "RGB"), shape, Image.Resampling.BICUBIC)
    return np.asarray(picture, np.uint8).reshape(shape)


def read_mask(file: Path, shape: tuple[int, ...], option: str) -> NDArray[np.uint8]:
    """A mask at a model's size ``(H, W)``: 1 where the picture is white, 0 where it is black.

    Args:
      file, shape, option: as `read_picture`.

    Raises:
      ConfigError: as `read_picture`.
    """
    picture = _covering(_opened(file, shape, option).convert("L"), shape, Image.Resampling.NEAREST)
    return (np.asarray(picture) >= 128).astype(np.uint8)


def read_ids(file: Path, size: tuple[int | None, ...], option: str) -> NDArray[np.uint8]:
    """The ids ``(H, W)`` of a semantic map: a PNG whose pixel values, or places in the palette, are classes.

    Args:
      file: the map.
      size: its height and width; None: any.
      option: that named the file, for messages.

    Raises:
      ConfigError: a file that is no such map, or of another size.
    """
    try:
        ids = read_map(file.expanduser())
    except DataError as error:
        raise ConfigError(f"{option}: {error}") from error
    if any(want not in (None, side) for want, side in zip(size, ids.shape, strict=True)):
        has, wanted = ("x".join(map(str, sides)) for sides in (ids.shape, size))
        raise ConfigError(f"{option}: {file}: map is {has}, expected {wanted}; resize it by the nearest pixel")
    return ids


def _opened(file: Path, shape: tuple[int, ...], option: str) -> Image.Image:
    if len(shape) != 3 or shape[2] not in (1, 3):
        raise ConfigError(f"{option}: this model draws no pictures in grey or colour: leave it out")
    try:
        pixels = decode(file.expanduser().read_bytes(), str(file))
    except (OSError, DataError) as error:
        raise ConfigError(f"{option}: {error}") from error
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def _covering(picture: Image.Image, shape: tuple[int, ...], by: Image.Resampling) -> Image.Image:
    height, width = shape[:2]
    scale = max(height / picture.height, width / picture.width)
    size = max(width, round(picture.width * scale)), max(height, round(picture.height * scale))
    picture = picture.resize(size, by)
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    return picture.crop((left, top, left + width, top + height))
