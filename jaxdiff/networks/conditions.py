"""Conditions a network takes, whatever the network: what each is called, its spec, and how it enters.

With e the embedding of time that every block is told, x the sample and c a condition,

    label, vector      e = embedding(time) + sum over them of embedding(c)                           (1)
    image              x = [x, resize(c)]    along the channels                                      (2)

A vector is standardised, z = (c - mean)/std, and goes through a perceptron of two layers, as the time does (Ding et al.
2021, "CcGAN", https://arxiv.org/abs/2011.07466, section 3.2 embed a continuous label so). Its null is a vector of its
own that is learned. An image is enlarged bilinearly to the size of x (Dhariwal & Nichol 2021, their upsamplers;
Saharia et al. 2021, "SR3", https://arxiv.org/abs/2104.07636); its null is zero everywhere (Brooks et al. 2023,
"InstructPix2Pix", https://arxiv.org/abs/2211.09800, section 3.2.1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from jaxdiff.networks.embeddings import standard_normal
from jaxdiff.networks.layers import Init, Linear, fan_average
from jaxdiff.spec import Spec

ABSENT = -10_000.0
"""Every number of a `Vector` that is not given. Beyond what a standardised vector holds."""


@dataclass(frozen=True)
class Vector:
    """A condition of a few numbers, such as an angle, an age or a width; equation (1).

    Args:
      name: its name in ``cond``.
      size: how many numbers.
      mean, std: of each, for z = (c - mean)/std; numbers are given in their own units.
      null: whether it can be left out and dropped.

    Raises:
      ValueError: a size, or a number of means or deviations, that does not fit; a deviation that is not positive.

    >>> Vector("style", 2, std=(2.0, 0.3)).spec
    Spec(shape=(2,), dtype='float32', low=None, high=None, null=-10000.0)
    """

    name: str
    size: int
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    null: bool = True

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"{self.name}: size is at least 1, got {self.size}")
        for name in ("mean", "std"):
            if len(getattr(self, name)) not in (0, self.size):
                raise ValueError(f"{self.name}: {name} has {len(getattr(self, name))} numbers, expected {self.size}")
        if any(not number > 0 for number in self.std):
            raise ValueError(f"{self.name}: std must be positive, got {self.std}")

    @property
    def spec(self) -> Spec:
        """What the network takes."""
        return Spec((self.size,), "float32", null=ABSENT if self.null else None)


@dataclass(frozen=True)
class Image:
    """A picture beside the sample, of its size or smaller: a low resolution, an edge map, a mask; equation (2).

    Args:
      name: its name in ``cond``.
      size: its height and width; the sample's are multiples of them or not.
      channels: of it.
      low, high: its range.
      null: whether it can be left out and dropped: zeros.

    >>> Image("low", (8, 8), 1).spec
    Spec(shape=(8, 8, 1), dtype='float32', low=-1.0, high=1.0, null=None)
    """

    name: str
    size: tuple[int, int]
    channels: int
    low: float | None = -1.0
    high: float | None = 1.0
    null: bool = False

    def __post_init__(self) -> None:
        if len(self.size) != 2 or min(*self.size, self.channels) < 1:
            raise ValueError(f"{self.name}: size is (height, width) and channels at least 1, got {self}")

    @property
    def spec(self) -> Spec:
        """What the network takes."""
        return Spec((*self.size, self.channels), "float32", self.low, self.high, 0.0 if self.null else None)


NetCondition = Vector | Image


def cond_specs(num_classes: int | None, null_class: bool, conditions: Sequence[NetCondition]) -> dict[str, Spec]:
    """What a network takes: ``"label"`` where it has classes, and its conditions.

    Raises:
      ValueError: two conditions of one name, or one named as the sample is.

    >>> list(cond_specs(10, True, (Vector("style", 2),)))
    ['label', 'style']
    """
    label = None if num_classes is None else Spec((), "int32", 0, num_classes - 1, num_classes if null_class else None)
    specs = {} if label is None else {"label": label}
    for condition in conditions:
        if condition.name in specs or condition.name == "x" or not condition.name.isidentifier():
            raise ValueError(f"a condition cannot be named {condition.name!r} here: the name is taken, or is no name")
        specs[condition.name] = condition.spec
    return specs


class VectorEmbedding(nnx.Module):
    """A `Vector` in a network: ``(B, size) -> (B, width)``."""

    def __init__(self, condition: Vector, width: int, *, init: Init = fan_average):
        self.condition = condition
        self.hidden = Linear(condition.size, width, init=init)
        self.out = Linear(width, width, init=init)
        if condition.null:
            self.absent = standard_normal((width,))

    def __call__(self, value: Array) -> Array:
        size = self.condition.size
        mean, std = (
            jnp.asarray(given or (default,) * size, jnp.float32)[None]
            for given, default in ((self.condition.mean, 0.0), (self.condition.std, 1.0))
        )
        known = self.out(jax.nn.silu(self.hidden((value - mean) / std)))
        if not self.condition.null:
            return known
        absent = (value == ABSENT).all(axis=-1, keepdims=True)  # (B, 1)
        return jnp.where(absent, self.absent[...][None], known)


class VectorEmbeddings(nnx.Module):
    """The sum of equation (1) over a network's vectors."""

    def __init__(self, conditions: Sequence[NetCondition], width: int, *, init: Init = fan_average):
        vectors = [each for each in conditions if isinstance(each, Vector)]
        self.by_name = nnx.Dict({each.name: VectorEmbedding(each, width, init=init) for each in vectors})

    def __call__(self, cond: Mapping[str, Array]) -> Array | float:
        return sum((embed(cond[name]) for name, embed in self.by_name.items()), start=0.0)


def image_channels(conditions: Sequence[NetCondition]) -> int:
    """How many channels equation (2) adds."""
    return sum(each.channels for each in conditions if isinstance(each, Image))


def with_images(x: Array, cond: Mapping[str, Any], conditions: Sequence[NetCondition]) -> Array:
    """Equation (2): ``(B, H, W, C)`` -> ``(B, H, W, C + image_channels)``."""
    size = x.shape[1], x.shape[2]
    images = [enlarge(cond[each.name], size).astype(x.dtype) for each in conditions if isinstance(each, Image)]
    return jnp.concatenate([x, *images], axis=-1) if images else x


def enlarge(image: Array, size: tuple[int, int]) -> Array:
    """Bilinear interpolation between the centres of pixels, ``(B, h, w, C) -> (B, H, W, C)``, as two products of
    matrices: a program with it can be exported for any batch.

    >>> enlarge(jnp.array([0.0, 1.0]).reshape(1, 1, 2, 1), (1, 4)).ravel().tolist()
    [0.0, 0.25, 0.75, 1.0]
    """
    if image.shape[1] > size[0] or image.shape[2] > size[1]:
        raise ValueError(f"an image of {image.shape[1:3]} as a condition of samples of {size}: it must not be larger")
    rows, columns = (jnp.asarray(_between(a, b), image.dtype) for a, b in zip(image.shape[1:3], size, strict=True))
    return jnp.einsum("Hh,bhwc,Ww->bHWc", rows, image, columns, precision="highest")


def _between(source: int, target: int) -> np.ndarray:
    """The matrix ``(target, source)`` of linear interpolation; rows sum to 1."""
    place = np.clip((np.arange(target) + 0.5) * source / target - 0.5, 0, source - 1)
    return np.maximum(0.0, 1.0 - np.abs(place[:, None] - np.arange(source)[None, :]))
