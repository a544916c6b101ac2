"""Images of any size to square ones, as Dhariwal & Nichol 2021 (ADM), arXiv:2105.05233, crop them; maps beside them."""

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
    if image.shape[2] not in (1, 3):  # channel by channel; Pillow would multiply colours by a fourth one, alpha
        return np.concatenate([center_crop_resize(image[:, :, c : c + 1], size) for c in range(image.shape[2])], axis=2)
    picture = Image.fromarray(np.ascontiguousarray(image[:, :, 0] if image.shape[2] == 1 else image))
    while min(picture.size) >= 2 * size:
        picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
    scale = size / min(picture.size)
    picture = picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.BICUBIC)
    left, top = (picture.width - size) // 2, (picture.height - size) // 2
    return np.asarray(picture.crop((left, top, left + size, top + size))).reshape(size, size, image.shape[2])


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
    height, width = sides = ids.shape
    while min(sides) >= 2 * size:
        sides = sides[0] // 2, sides[1] // 2
    scale = size / min(sides)
    rows, columns = round(sides[0] * scale), round(sides[1] * scale)
    top, left = (rows - size) // 2, (columns - size) // 2
    of_rows = ((np.arange(top, top + size) + 0.5) * height / rows).astype(int)
    of_columns = ((np.arange(left, left + size) + 0.5) * width / columns).astype(int)
    return ids[of_rows[:, None], of_columns]
