"""Encoded images to pixels, by Pillow; what it says of damaged ones becomes one line."""

from __future__ import annotations

import io
import re
import struct

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

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
        why = re.sub(r" <[\w.]+ object at 0x[0-9a-f]+>", "", one_line(error))  # Pillow names the file, which is none
        raise DataError(f"{where}: image is damaged or of an unknown kind ({why}); replace or remove it") from error
    raise DataError(f"{where}: image has Pillow mode {found}, expected 8-bit grey, RGB or RGBA; convert the file")
