"""Images for eyes and files: float samples to bytes, batches to grids, grids to PNG."""

from __future__ import annotations

import io
import math
import os
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

SHOWN_SIZE = 48  # smaller images are enlarged to about this many pixels, or an 8x8 digit is a speck on a screen


def to_uint8(images: ArrayLike) -> NDArray[np.uint8]:
    """Bytes from floats: ``round(127.5 (x + 1))``, clipped to [0, 255].

    Args:
      images: floats in [-1, 1], any shape; what lies outside is clipped.

    Returns:
      uint8 of the same shape.

    Raises:
      ValueError: a value is not finite: a picture of NaN would be a silent black square.

    >>> to_uint8([-1.0, 0.0, 1.0, 1.5]).tolist()
    [0, 128, 255, 255]
    """
    values = np.asarray(images, np.float32)
    if not np.isfinite(values).all():
        raise ValueError(
            f"{int((~np.isfinite(values)).sum())} of {values.size} values are not finite: the samples diverged"
        )
    return np.clip(np.rint((values + 1.0) * 127.5), 0, 255).astype(np.uint8)


def grid(
    images: NDArray[np.uint8], columns: int | None = None, *, padding: int = 1, scale: int | None = None
) -> NDArray[np.uint8]:
    """One picture of many, row by row, each enlarged by a whole factor (nearest) and set apart by black lines.

    Args:
      images: uint8 ``(N, H, W, C)``, N at least 1.
      columns: images a row; None: the most nearly square grid.
      padding: width of the lines, pixels of the result.
      scale: whole factor of enlargement; None: what brings the longer side to about 48 pixels.

    Returns:
      uint8 ``(rows (H scale + padding) + padding, columns (W scale + padding) + padding, C)``; empty places are black.

    >>> grid(np.zeros((10, 8, 8, 1), np.uint8), 5, scale=2).shape
    (35, 86, 1)
    """
    if images.ndim != 4 or images.shape[0] < 1 or images.dtype != np.uint8:
        raise ValueError(f"a grid is made of uint8 (N, H, W, C) with N >= 1, got {images.dtype} {images.shape}")
    n, height, width, channels = images.shape
    columns = math.ceil(math.sqrt(n)) if columns is None else columns
    scale = max(1, round(SHOWN_SIZE / max(height, width))) if scale is None else scale
    if columns < 1 or padding < 0 or scale < 1:
        raise ValueError(f"columns and scale are at least 1, padding at least 0; got {columns}, {scale}, {padding}")
    rows = math.ceil(n / columns)
    large = images.repeat(scale, axis=1).repeat(scale, axis=2)
    tiles = np.zeros((rows * columns, height * scale + padding, width * scale + padding, channels), np.uint8)
    tiles[:n, : height * scale, : width * scale] = large
    tiles = tiles.reshape(rows, columns, *tiles.shape[1:]).swapaxes(1, 2)  # (rows, height, columns, width, C)
    picture = tiles.reshape(rows * tiles.shape[1], columns * tiles.shape[3], channels)
    return np.pad(picture, ((padding, 0), (padding, 0), (0, 0)))


def save_png(path: str | os.PathLike[str], picture: NDArray[np.uint8]) -> None:
    """Writes one uint8 picture ``(H, W, C)``: grey for C = 1, else its first three channels as RGB.

    The file appears whole or not at all. Folders above it are made.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_png(folder + "/a.png", np.zeros((4, 6, 1), np.uint8))
    ...     with Image.open(folder + "/a.png") as image:
    ...         image.size
    (6, 4)
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(png(picture))
    partial.replace(path)


def png(picture: NDArray[np.uint8]) -> bytes:
    """One uint8 picture ``(H, W, C)`` as the bytes of a PNG: grey for C = 1, else its first three channels as RGB."""
    if picture.ndim != 3 or picture.dtype != np.uint8:
        raise ValueError(f"a picture is uint8 (H, W, C), got {picture.dtype} {picture.shape}")
    if picture.shape[2] == 2:
        picture = picture[:, :, :1]
    shown = picture[:, :, 0] if picture.shape[2] == 1 else np.ascontiguousarray(picture[:, :, :3])
    encoded = io.BytesIO()
    Image.fromarray(shown).save(encoded, format="PNG")
    return encoded.getvalue()
