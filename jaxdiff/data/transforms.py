"""What is done to images between storage and network. The way back to bytes is `jaxdiff.images.to_uint8`.

References: Dhariwal & Nichol 2021 (ADM), arXiv:2105.05233, for the crop; Steele, Lea & Flood 2014, "Fast Splittable
Pseudorandom Number Generators", for the hash (SplitMix64).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image


def to_model_range(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Floats in [-1, 1] from bytes: ``x / 127.5 - 1``.

    Args:
      images: uint8, any shape.

    Returns:
      float32 of the same shape; 0 becomes -1 and 255 becomes 1.

    >>> to_model_range(np.array([0, 51, 255], np.uint8)).tolist()
    [-1.0, -0.6000000238418579, 1.0]
    """
    if images.dtype != np.uint8:
        raise ValueError(f"images are uint8 in 0..255, got {images.dtype}")
    scaled: NDArray[np.float32] = np.divide(images, np.float32(127.5), dtype=np.float32)
    scaled -= np.float32(1.0)
    return scaled


def horizontal_flip(images: NDArray[np.uint8], seed: int, index: ArrayLike) -> NDArray[np.uint8]:
    """Mirrors each image left to right with probability 1/2, decided by the seed and the image's own index alone.

    The coin of index i is the top bit of SplitMix64 at place i of the sequence that `seed` starts, so it does not
    depend on which images share a batch, a process or a worker.

    Args:
      images: ``(N, H, W, C)``.
      seed: at least 0.
      index: (N,) integers, the place of each image in the whole stream.

    Returns:
      A new array like `images`.

    >>> row = np.arange(3, dtype=np.uint8).reshape(1, 1, 3, 1).repeat(4, axis=0)
    >>> horizontal_flip(row, seed=0, index=[0, 1, 2, 3])[:, 0, :, 0].tolist()
    [[2, 1, 0], [0, 1, 2], [0, 1, 2], [2, 1, 0]]
    """
    start = np.random.SeedSequence([seed, 0x666C6970]).generate_state(
        1, np.uint64
    )  # "flip": apart from the order's seed
    z = start + (np.asarray(index).astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mirrored = (z ^ (z >> np.uint64(31))) >> np.uint64(63) == 1
    flipped = images.copy()
    pixels = flipped.view(f"V{images.itemsize * images.shape[3]}")  # moved whole: ten times as fast as by channels
    chosen = np.flatnonzero(mirrored)
    pixels[chosen] = pixels[chosen, :, ::-1]
    return flipped


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
