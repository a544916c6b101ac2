"""Encoded images to pixels, or to their size alone, by Pillow; what it says of damaged ones becomes one line."""

from __future__ import annotations

import io
import re
import struct

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from jaxdiff.data.sources import DataError, one_line

# What Pillow, and TFDS over it, raise on a damaged file.
DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, Image.DecompressionBombError)

_MODES = {"1": "L", "L": "L", "LA": "LA", "La": "LA", "PA": "RGBA", "RGB": "RGB", "RGBA": "RGBA", "RGBa": "RGBA"}
_MODES |= {"RGBX": "RGB", "CMYK": "RGB", "YCbCr": "RGB"}


def decode(data: bytes | memoryview, where: str) -> NDArray[np.uint8]:
    """The pixels of an encoded image (PNG, JPEG, what Pillow reads), uint8 (H, W, C), upright as its EXIF data say.

    Grey stays one channel, or two with its opacity; palettes and CMYK become RGB, or RGBA where they are transparent
    in places; the first frame of many. Depths above 8 bits are refused.

    Raises:
      DataError: with `where`, when the data are empty, damaged or of another kind.

    >>> decode(b"text", "cat.png")
    Traceback (most recent call last):
    jaxdiff.data.sources.DataError: cat.png: image is damaged or of an unknown kind (cannot identify image file);
        replace or remove it
    """
    if len(data) == 0:
        raise DataError(f"{where}: image is empty (0 bytes); replace or remove it")
    try:
        with Image.open(io.BytesIO(data)) as picture:
            picture.load()
            found, hidden = picture.mode, "transparency" in picture.info  # one colour of the palette, or of all
            mode = _MODES.get("PA" if found == "P" and hidden else "RGB" if found == "P" else found)
            mode = "RGBA" if mode == "RGB" and hidden else "LA" if mode == "L" and hidden else mode
            if mode is not None:
                upright = ImageOps.exif_transpose(picture)
                pixels = np.asarray(upright if upright.mode == mode else upright.convert(mode))
                return pixels.reshape(upright.height, upright.width, -1)
    except DECODE_ERRORS as error:
        raise DataError(_damaged(error, where)) from error
    raise DataError(f"{where}: image has Pillow mode {found}, expected 8-bit grey, RGB or RGBA; convert the file")


def size_of(file: io.BytesIO | io.BufferedReader, where: str) -> tuple[int, int]:
    """(height, width) of an encoded image as `decode` gives it, by the head of its file.

    An orientation that a PNG holds behind its pixels is not seen.

    Raises:
      DataError: with `where`, when the head is empty, damaged or of another kind.

    >>> file = io.BytesIO()
    >>> Image.new("RGB", (8, 6)).save(file, "PNG")
    >>> size_of(file, "cat.png")
    (6, 8)
    """
    try:
        with Image.open(file) as picture:
            # Of the base class: that of PNG decodes the pixels, to look for such data behind them.
            exif = Image.Image.getexif(picture)
            turned = exif.get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
            return (picture.width, picture.height) if turned else (picture.height, picture.width)
    except DECODE_ERRORS as error:
        raise DataError(_damaged(error, where)) from error


def _damaged(error: BaseException, where: str) -> str:
    why = re.sub(r" <[\w.]+ object at 0x[0-9a-f]+>", "", one_line(error))  # Pillow names the file, which is none
    return f"{where}: image is damaged or of an unknown kind ({why}); replace or remove it"
