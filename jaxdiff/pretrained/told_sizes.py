"""What published networks are told of the size of a picture: h x w pixels, cut at (top, left) of an original of H x W
that was scaled.

    Stable Diffusion XL               time_ids = (H, W, top, left, h, w)                                       (1)
    its refiner                       time_ids = (H, W, top, left, 6), an aesthetic score last                 (2)
    PixArt-alpha of 1024 pixels       resolution = (H, W),  aspect_ratio = h / w                               (3)

Samples are told of no original and no crop, (H, W) = (h, w) and top = left = 0; so are the square pictures of a
training without buckets. (1) and (2): Podell et al. 2023, "SDXL", https://arxiv.org/abs/2307.01952, section 2.2, and
diffusers' pipelines and training scripts; (3): Chen et al. 2023, "PixArt-alpha", https://arxiv.org/abs/2310.00426, and
its published code, whose training tells the original's size and the bucket's aspect. diffusers maps the size that
PixArt is asked for to one of its table unless `use_resolution_binning` is false; here it stays as it is asked for.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.spec import Spec, Specs

NAMES = ("time_ids", "resolution", "aspect_ratio")
SCORE = 6.0


def told_sizes(names: Collection[str], height: int, width: int, *, scored: bool = False) -> dict[str, list[float]]:
    """The conditions of (1) to (3) that a network has.

    Args:
      names: of its conditions.
      height, width: of the picture, in pixels.
      scored: whether its time_ids end with an aesthetic score.

    Returns:
      Their numbers by name; others are left out.

    >>> told_sizes({"text", "resolution", "aspect_ratio"}, 512, 1024)
    {'resolution': [512.0, 1024.0], 'aspect_ratio': [0.5]}
    """
    known = _told(names, (height, width, 0, 0, height, width), scored)
    return {name: [float(number) for number in numbers] for name, numbers in known.items()}


def told_of(names: Collection[str], sizes: ArrayLike, *, scored: bool = False) -> dict[str, Array]:
    """The same of pictures in training, each by its own numbers.

    Args:
      names, scored: as of `told_sizes`.
      sizes: ``(B, 6)``: H, W, top, left, h and w of each picture (`jaxdiff.data.buckets.SIZES`).

    >>> {name: value.tolist() for name, value in told_of({"time_ids"}, jnp.array([[60, 90, 1, 0, 24, 40]])).items()}
    {'time_ids': [[60.0, 90.0, 1.0, 0.0, 24.0, 40.0]]}
    """
    columns = jnp.asarray(sizes, jnp.float32).T
    return {name: jnp.stack(numbers, axis=1) for name, numbers in _told(names, columns, scored).items()}


def _told(names: Collection[str], sizes: Any, scored: bool) -> dict[str, list[Any]]:
    rows, columns, top, left, height, width = sizes
    last = [0 * rows + SCORE] if scored else [height, width]
    known = {
        "time_ids": [rows, columns, top, left, *last],
        "resolution": [rows, columns],
        "aspect_ratio": [height / width],
    }
    return {name: known[name] for name in NAMES if name in names}


def is_scored(conditions: Specs) -> bool:
    """Whether a network's time_ids end with an aesthetic score: the refiner's.

    >>> is_scored({"time_ids": Spec((5,))})
    True
    """
    ids = conditions.get("time_ids")
    return isinstance(ids, Spec) and ids.shape == (5,)
