"""Images, and maps beside them, of any size to one size: to squares as Dhariwal & Nichol 2021 (ADM), arXiv:2105.05233,
crop them, and to rectangles.

A picture of H x W is halved as often as it still covers h x w, scaled until one side fits and the other one covers, and
cut in the middle:

    f = max(h / H, w / W),   H' = round(f H),   W' = round(f W),   top = (H' - h) div 2,   left = (W' - w) div 2     (1)

ADM takes f, H' and W' of what is left after the halvings, which loses a pixel of each odd side.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def center_crop_resize(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """The middle square at `size` x `size`: halved by 2x2 means while possible, then bicubic, then cropped.

    Step for step ADM's, to the grey level, so that statistics compare with published ones.

    Args:
      image: uint8 ``(H, W, C)``, of any size; one smaller than `size` is enlarged.
      size: side of the result, pixels.

    Returns:
      uint8 ``(size, size, C)``.

    >>> center_crop_resize(np.zeros((60, 40, 3), np.uint8), 16).shape
    (16, 16, 3)
    """
    rows, columns = image.shape[:2]
    while min(rows, columns) >= 2 * size:
        rows, columns = rows // 2, columns // 2
    return _cut(image, covering(rows, columns, size, size), size, size)


def cover_crop(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """The middle of an image that covers `height` x `width`, by equation (1): its aspect is kept.

    Args:
      image: uint8 ``(H, W, C)``, of any size; a smaller one is enlarged.
      height, width: of the result, pixels.

    Returns:
      uint8 ``(height, width, C)``.

    >>> cover_crop(np.zeros((60, 40, 3), np.uint8), 24, 16).shape
    (24, 16, 3)
    """
    return _cut(image, covering(image.shape[0], image.shape[1], height, width), height, width)


def covering(rows: int, columns: int, height: int, width: int) -> tuple[int, int]:
    """(H', W') of equation (1).

    >>> covering(100, 402, 20, 30)
    (20, 80)
    """
    scale = max(height / rows, width / columns)
    return round(rows * scale), round(columns * scale)


def middle(scaled: tuple[int, int], height: int, width: int) -> tuple[int, int]:
    """(top, left) of equation (1).

    >>> middle((20, 81), 20, 30)
    (0, 25)
    """
    return (scaled[0] - height) // 2, (scaled[1] - width) // 2


def _cut(image: NDArray[np.uint8], scaled: tuple[int, int], height: int, width: int) -> NDArray[np.uint8]:
    if image.shape[2] not in (1, 3):  # channel by channel; Pillow would multiply colours by a fourth one, alpha
        channels = [image[:, :, c : c + 1] for c in range(image.shape[2])]
        return np.concatenate([_cut(each, scaled, height, width) for each in channels], axis=2)
    picture = Image.fromarray(np.ascontiguousarray(image[:, :, 0] if image.shape[2] == 1 else image))
    while picture.height >= 2 * height and picture.width >= 2 * width:
        picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
    picture = picture.resize(scaled[::-1], Image.Resampling.BICUBIC)
    top, left = middle(scaled, height, width)
    return np.asarray(picture.crop((left, top, left + width, top + height))).reshape(height, width, image.shape[2])


def center_crop_nearest(ids: NDArray[Any], size: int) -> NDArray[Any]:
    """A map of ids at `size` x `size`, over the same square as `center_crop_resize` of its image: the nearest pixels.

    Args:
      ids: ``(H, W)``, of any type.
      size: side of the result, pixels.

    Returns:
      ``(size, size)``; no id that was not there.

    >>> center_crop_nearest(np.uint8([[9, 1, 1, 2, 2, 9], [9, 3, 3, 4, 4, 9], [9, 3, 3, 4, 4, 9]]), 1).tolist()
    [[4]]
    """
    rows, columns = ids.shape
    while min(rows, columns) >= 2 * size:
        rows, columns = rows // 2, columns // 2
    return _nearest(ids, covering(rows, columns, size, size), size, size)


def cover_nearest(ids: NDArray[Any], height: int, width: int) -> NDArray[Any]:
    """A map of ids at `height` x `width`, over what `cover_crop` keeps of its image: the nearest pixels.

    Args:
      ids: ``(H, W)``, of any type.
      height, width: of the result, pixels.

    >>> cover_nearest(np.uint8([[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]]), 1, 2).tolist()
    [[1, 2]]
    """
    return _nearest(ids, covering(ids.shape[0], ids.shape[1], height, width), height, width)


def _nearest(ids: NDArray[Any], scaled: tuple[int, int], height: int, width: int) -> NDArray[Any]:
    top, left = middle(scaled, height, width)
    of_rows = ((np.arange(top, top + height) + 0.5) * ids.shape[0] / scaled[0]).astype(int)
    of_columns = ((np.arange(left, left + width) + 0.5) * ids.shape[1] / scaled[1]).astype(int)
    return ids[of_rows[:, None], of_columns]
