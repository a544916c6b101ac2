"""Images: bytes u = 0..255 as stored, and x0 = u/127.5 - 1 as a network sees them.

    encode:  x0 = u/127.5 - 1,  mirrored left to right with probability 1/2 where that is asked for
    decode:  u  = round(127.5 (x0 + 1)),  clipped to [0, 255]

With `low_resolution` the record's own small copy is a condition (super-resolution, Saharia et al. 2021,
arXiv:2104.07636): the mean of x0 over each of n x n equal rectangles, after mirroring. With `augment` it is noised in
training, and the noise level s is a condition too, ``"low_level"``, which `jaxdiff.networks.Level` tells a network:
`jaxdiff.codecs.augmentation`. With `shrinks` x0 itself is such a small copy of a larger record, rounded to bytes, so
that the stages of a cascade learn from one set of pictures.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike, NDArray

from jaxdiff.broadcast import expand
from jaxdiff.codecs.augmentation import LEVEL, LOW, blurred_half, drawn_levels, noised_copy
from jaxdiff.codecs.base import Stored, passed_on, save_npz, save_png, saved_as
from jaxdiff.noise import sample_keys
from jaxdiff.record import field, record
from jaxdiff.spec import Spec, Specs

SHOWN_SIZE = 48  # smaller images are enlarged to about this many pixels, or an 8x8 digit is a speck on a screen


@record
class Images:
    """The codec of uint8 images.

    Args:
      shape: (H, W, C).
      flip: mirror half of the samples left to right, where `encode` is given a key; conditions ``(B, H', W', C')``,
        which are images too, are mirrored with them.
      low_resolution: n, side in pixels of a small copy, which becomes the condition ``"low"``; None: no such condition.
      augment: s_max, from 0 to 1: largest noise level of the small copy; 0: it is not noised, and there is no
        ``"low_level"``.
      blur: least and largest width of the filter, in pixels of the small copy, that half of the small copies are
        blurred by in training, such as ``(0.4, 0.6)``; None: none.
      shrinks: records are squares of this size or larger, and x0 is their mean over equal rectangles.

    Raises:
      ValueError: a shape that is no image's, a small copy that is not smaller, a noise level or a blur that is none, or
        a rectangle that shrinks.

    >>> codec = Images((2, 2, 1), low_resolution=1)
    >>> batch = codec.encode({"x": np.uint8([[[[0], [255]], [[0], [255]]]]), "label": np.array([3])})
    >>> batch["x"][0, 0, :, 0].tolist(), batch["low"].ravel().tolist(), batch["label"].tolist()
    ([-1.0, 1.0], [0.0], [3])
    >>> codec.decode(batch["x"])["x"][0, 0, :, 0].tolist()
    [0, 255]
    """

    shape: tuple[int, int, int] = field(pytree_node=False)
    flip: bool = field(default=False, pytree_node=False)
    low_resolution: int | None = field(default=None, pytree_node=False)
    augment: float = field(default=0.0, pytree_node=False)
    blur: tuple[float, float] | None = field(default=None, pytree_node=False)
    shrinks: bool = field(default=False, pytree_node=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise ValueError(f"shape: an image is (H, W, C), got {self.shape}")
        n = self.low_resolution
        if n is not None and not 1 <= n < min(self.shape[:2]):
            raise ValueError(f"low_resolution is at least 1 and below the image's {min(self.shape[:2])}, got {n}")
        if not 0 <= self.augment <= 1:
            raise ValueError(f"augment is a noise level from 0 to 1, got {self.augment}")
        if self.augment and n is None:
            raise ValueError(f"augment={self.augment} noises the small copy: set low_resolution too")
        if self.blur is not None:
            object.__setattr__(self, "blur", tuple(self.blur))
            if len(self.blur) != 2 or not 0 < self.blur[0] <= self.blur[1] or n is None:
                raise ValueError(
                    f"blur is (least, largest) width of a filter of the small copy, above 0, such as (0.4, 0.6), with "
                    f"low_resolution; got {self.blur} and low_resolution={n}"
                )
        if self.shrinks and self.shape[0] != self.shape[1]:
            raise ValueError(f"shrinks is of squares, and shape is {self.shape}: leave it out")

    @property
    def suffixes(self) -> tuple[str, ...]:
        """.npz; and .png of up to four channels."""
        return (".png", ".npz") if self.shape[2] <= 4 else (".npz",)

    @property
    def spec(self) -> Specs:
        """``"x"`` in [-1, 1]; ``"low"`` and ``"low_level"`` where they are made."""
        x = Spec(self.shape, "float32", -1, 1)
        n = self.low_resolution
        if n is None:
            return {"x": x}
        if self.augment:
            return {"x": x, LOW: Spec((n, n, self.shape[2])), LEVEL: Spec((), "float32", 0, 1)}
        return {"x": x, LOW: Spec((n, n, self.shape[2]), "float32", -1, 1)}

    def sized(self, x: Any) -> Images:
        """The same for records ``{"x": x}`` of images ``(B, H', W', C)`` of another size.

        Raises:
          ValueError: with a small copy, which is square.
        """
        if self.low_resolution is not None:
            raise ValueError(f"low_resolution={self.low_resolution} is a square copy of square images: leave it out")
        if self.shrinks:
            return dataclasses.replace(self, shape=(*x.shape[1:3], self.shape[2]), shrinks=False)
        return dataclasses.replace(self, shape=(*x.shape[1:3], self.shape[2]))

    def encode(self, record: Mapping[str, Any], key: Array | None = None) -> dict[str, Any]:
        """Records ``{"x": uint8 (B, H, W, C), ...}`` as ``{"x": float32 in [-1, 1], ...}``."""
        x = to_model_range(record["x"])
        if self.shrinks and x.shape[1] == x.shape[2] > self.shape[0]:
            x = (jnp.rint((area_mean(x, self.shape[0]) + 1.0) * 127.5) - 127.5) / 127.5
        if x.shape[1:] != self.shape:
            raise ValueError(f"x is uint8 (B, {', '.join(map(str, self.shape))}), got {x.shape}")
        batch = {"x": x, **passed_on(record, self.spec)}
        if self.flip and key is not None:
            mirrored = mirrors(key, x.shape[0])
            for name, value in batch.items():
                if jnp.ndim(value) == 4:
                    value = jnp.asarray(value)
                    batch[name] = jnp.where(expand(mirrored, value), value[:, :, ::-1], value)
        if self.low_resolution is not None:
            low, level = area_mean(batch["x"], self.low_resolution), jnp.zeros(len(x))
            if key is not None:
                keys = sample_keys(key, 0, len(x))
                low = low if self.blur is None else blurred_half(low, self.blur, keys)
                level = drawn_levels(keys, self.augment)
                low = noised_copy(low, level, keys) if self.augment else low
            batch |= {LOW: low, LEVEL: level} if self.augment else {LOW: low}
        return batch

    def decode(self, x0: Array, cond: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Bytes of samples ``(B, H, W, C)``. What is not finite is no byte: look at x0 first."""
        return {"x": jnp.clip(jnp.rint((x0 + 1.0) * 127.5), 0, 255).astype(jnp.uint8), **passed_on(cond, self.spec)}

    def picture(self, stored: Stored, columns: int | None = None) -> NDArray[np.uint8]:
        """A grid of the images; of two channels the first, of more than three the first three."""
        images = np.asarray(stored["x"])
        return grid(images[..., :3] if images.shape[-1] >= 3 else images[..., :1], columns)

    def save(self, path: str | os.PathLike[str], stored: Stored, columns: int | None = None) -> None:
        """A grid (.png), or the arrays by name (.npz)."""
        what = "images" if self.shape[2] <= 4 else f"images of {self.shape[2]} channels"
        if saved_as(path, self.suffixes, what) == ".npz":
            save_npz(path, stored)
        else:
            save_png(path, self.picture(stored, columns))


def mirrors(key: Array, n: int) -> Array:
    """Which of a batch's n samples `Images` mirrors, ``(n,)`` bool: each with probability 1/2, by its place."""
    return jax.vmap(jax.random.bernoulli)(sample_keys(key, 0, n))


def area_mean(x: Array, n: int) -> Array:
    """Images at n x n pixels: means over equal rectangles where n divides the sides, else antialiased by area.

    Args:
      x: ``(B, H, W, C)``.
      n: side of the result.

    >>> area_mean(jnp.arange(4.0).reshape(1, 2, 2, 1), 1).item()
    1.5
    """
    batch, height, width, channels = x.shape
    if height % n == 0 and width % n == 0:
        return x.reshape(batch, n, height // n, n, width // n, channels).mean(axis=(2, 4))
    return jax.image.resize(x, (batch, n, n, channels), "linear", antialias=True)


def to_model_range(images: ArrayLike) -> Array:
    """Floats in [-1, 1] from bytes: ``u/127.5 - 1``, pure JAX.

    Args:
      images: uint8, any shape.

    Returns:
      float32 of the same shape; 0 becomes -1 and 255 becomes 1.

    Raises:
      ValueError: other numbers than bytes.

    >>> [round(x, 6) for x in to_model_range(np.uint8([0, 51, 255])).tolist()]
    [-1.0, -0.6, 1.0]
    """
    images = jnp.asarray(images)
    if images.dtype != jnp.uint8:
        raise ValueError(f"images are uint8 in 0..255, got {images.dtype}")
    return (images.astype(jnp.float32) - 127.5) / 127.5  # so that white is 1 where XLA multiplies by 1/127.5 instead


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
