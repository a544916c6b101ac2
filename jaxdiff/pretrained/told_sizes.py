"""What published networks are told of the size of a picture, of height H and width W in pixels.

    Stable Diffusion XL               time_ids = (H, W, 0, 0, H, W): the original's size, no crop, the size    (1)
    its refiner                       time_ids = (H, W, 0, 0, 6), an aesthetic score last                      (2)
    PixArt-alpha of 1024 pixels       resolution = (H, W),  aspect_ratio = H / W                               (3)

(1) and (2): Podell et al. 2023, "SDXL", https://arxiv.org/abs/2307.01952, section 2.2, and diffusers' pipelines; (3):
Chen et al. 2023, "PixArt-alpha", https://arxiv.org/abs/2310.00426, and its published code. diffusers maps the size that
PixArt is asked for to one of its table unless `use_resolution_binning` is false; here it stays as it is asked for.
"""

from __future__ import annotations

from collections.abc import Collection

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
    last = [SCORE] if scored else [height, width]
    known = {"time_ids": [height, width, 0, 0, *last], "resolution": [height, width], "aspect_ratio": [height / width]}
    return {name: [float(number) for number in known[name]] for name in NAMES if name in names}


def is_scored(conditions: Specs) -> bool:
    """Whether a network's time_ids end with an aesthetic score: the refiner's.

    >>> is_scored({"time_ids": Spec((5,))})
    True
    """
    ids = conditions.get("time_ids")
    return isinstance(ids, Spec) and ids.shape == (5,)
