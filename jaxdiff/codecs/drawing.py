"""Lines and histograms, drawn with Pillow."""

from __future__ import annotations

import itertools
import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from jaxdiff.codecs.points import DOTS, FINER, PAPER

_COLOURS = (DOTS, (200, 80, 40), (40, 140, 70), (130, 80, 160), (120, 120, 120))
_MOST = 36  # panels


def lines(x: NDArray[np.float32], columns: int | None = None, size: tuple[int, int] = (160, 100)) -> NDArray[np.uint8]:
    """A panel for each of the first 36 samples, all on one range: a line for each of its first five channels.

    Args:
      x: ``(N, L, C)``; a line is broken where a value is not finite.
      columns: panels a row; None: the most nearly square grid.
      size: width and height of a panel, pixels.

    Returns:
      uint8 ``(rows height, columns width, 3)``.

    >>> lines(np.zeros((5, 8, 1), np.float32)).shape
    (200, 480, 3)
    """
    x, (width, height) = x[:_MOST, :, : len(_COLOURS)], size
    columns = max(1, math.ceil(math.sqrt(len(x))) if columns is None else columns)
    rows = max(1, math.ceil(len(x) / columns))
    picture = Image.new("RGB", (FINER * width * columns, FINER * height * rows), PAPER)
    draw, margin = ImageDraw.Draw(picture), 4 * FINER
    finite = x[np.isfinite(x)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    across = (np.arange(x.shape[1]) + 0.5) / x.shape[1] * (FINER * width - 2 * margin)
    for number, sample in enumerate(x):
        left, top = number % columns * FINER * width, number // columns * FINER * height
        draw.rectangle([left, top, left + FINER * width - 1, top + FINER * height - 1], outline=(210, 210, 210))
        for channel, colour in zip(sample.T, _COLOURS, strict=False):
            up = (high - channel) / (high - low) if high > low else np.where(np.isfinite(channel), 0.5, np.nan)
            places = np.stack([left + margin + across, top + margin + up * (FINER * height - 2 * margin)], axis=1)
            for start, end in itertools.pairwise(places):
                if np.isfinite([start, end]).all():
                    draw.line([*start, *end], colour, FINER)
    return np.asarray(picture.resize((width * columns, height * rows), Image.Resampling.BOX))


def histogram(x: NDArray[np.float32], bins: int = 60, size: tuple[int, int] = (480, 240)) -> NDArray[np.uint8]:
    """How often each value occurs: uint8 ``(height, width, 3)``. What is not finite is left out.

    >>> histogram(np.zeros(4, np.float32)).shape
    (240, 480, 3)
    """
    counts, _ = np.histogram(x[np.isfinite(x)], bins)
    width, height = size
    picture = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(picture)
    for place, count in enumerate(counts):
        if count:
            left, right = place * width // bins, (place + 1) * width // bins - 1
            draw.rectangle([left, round(height * (1 - count / counts.max())), right, height], DOTS)
    return np.asarray(picture)
