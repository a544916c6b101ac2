"""Conditions a network takes, whatever the network: what each is called, its spec, and how it enters.

With e the embedding of time that every block is told, x the sample, C the tokens that cross-attention or joint
attention sees, and c a condition,

    label, vector, level, pooled text    e = embedding(time) + sum over them of embedding(c)             (1)
    text, tokens, vector(into="tokens")  C = [W_1 tokens(c_1), W_2 tokens(c_2), ...]  along the length    (2)
    image, map                           x = [x, resize(c)]                           along the channels  (3)

(1) and (2) are `jaxdiff.networks.embedded`'s, (3) is here. The kinds, and what stands for their absence:

    Vector   z = (c - mean)/std through a perceptron of two layers (Ding et al. 2021, "CcGAN",
             https://arxiv.org/abs/2011.07466, section 3.2), or cosines and sines of z through it (Podell et al. 2023,
             "SDXL", https://arxiv.org/abs/2307.01952, section 2.2). Null: a vector that is learned.
    Level    the noise level s in [0, 1] of a condition that was noised, embedded as a time of 1000 s (Ho et al. 2021,
             "Cascaded Diffusion Models", https://arxiv.org/abs/2106.15282, section 4). Null: a vector that is learned.
    Text     ids of words, through a transformer that is trained along. Null: the ids of the empty caption.
    Tokens   embeddings of a frozen encoder, with a mask, and a pooled vector. Null: zeros, the mask among them.
    Image    enlarged bilinearly to the size of x (Dhariwal & Nichol 2021, their upsamplers; Saharia et al. 2021, "SR3",
             https://arxiv.org/abs/2104.07636). Null: zeros (Brooks et al. 2023, "InstructPix2Pix",
             https://arxiv.org/abs/2211.09800, section 3.2.1).
    Map      a class a pixel, enlarged by its nearest pixel, one channel a class (Wang et al. 2022, "Semantic Image
             Synthesis via Diffusion Models", https://arxiv.org/abs/2207.00050, have one-hot maps). Null: no class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdiff.spec import Condition, Spec

ABSENT = -10_000.0
"""Every number of a `Vector` that is not given. Beyond what a standardised vector holds."""
NO_LEVEL = -1.0
"""A `Level` that is not given."""


@dataclass(frozen=True)
class Vector:
    """A condition of a few numbers, such as an angle, an age or a width; equation (1), or (2) as one token.

    Args:
      name: its name in ``cond``.
      size: how many numbers.
      mean, std: of each, for z = (c - mean)/std; numbers are given in their own units.
      null: whether it can be left out and dropped.
      fourier: if given, each number enters as so many cosines and sines of z (even, at least 4), at frequencies from 1
        down to about 1/10,000 a unit of z: choose std so that z runs over tens or hundreds.
      into: the embedding of time, or a token of its own.
      channels: if given, each number goes alone through one perceptron, the results stand side by side, and are added
        to the channels from the first to before the second of the embedding of time: PixArt-alpha's resolution
        (Chen et al. 2023, https://arxiv.org/abs/2310.00426, and its published code).

    Raises:
      ValueError: a size, or a number of means or deviations, that does not fit; a deviation that is not positive; an
        odd number of sines and cosines; channels that are no share for each number.

    >>> Vector("style", 2, std=(2.0, 0.3)).spec
    Spec(shape=(2,), dtype='float32', low=None, high=None, null=-10000.0)
    """

    name: str
    size: int
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    null: bool = True
    fourier: int = 0
    into: Literal["time", "tokens"] = "time"
    channels: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"{self.name}: size is at least 1, got {self.size}")
        for name in ("mean", "std"):
            if len(getattr(self, name)) not in (0, self.size):
                raise ValueError(f"{self.name}: {name} has {len(getattr(self, name))} numbers, expected {self.size}")
        if any(not number > 0 for number in self.std):
            raise ValueError(f"{self.name}: std must be positive, got {self.std}")
        if self.fourier and (self.fourier < 4 or self.fourier % 2):
            raise ValueError(f"{self.name}: fourier is 0, or even and at least 4, got {self.fourier}")
        if self.into not in ("time", "tokens"):
            raise ValueError(f"{self.name}: into is 'time' or 'tokens', got {self.into!r}")
        if self.channels is not None:
            start, stop = self.channels
            if not 0 <= start < stop or (stop - start) % self.size or self.into != "time":
                raise ValueError(
                    f"{self.name}: channels are (first, before) of the embedding of time, as many for each of "
                    f"{self.size} numbers, got {self.channels}"
                )

    @property
    def spec(self) -> Spec:
        """What the network takes."""
        return Spec((self.size,), "float32", null=ABSENT if self.null else None)


@dataclass(frozen=True)
class Level:
    """The noise level of another condition, from 0 (clean) to 1, or another number at least 0, such as the strength of
    guidance that a distilled network is told; equation (1).

    Args:
      name: its name in ``cond``; ``"low_level"`` is what `jaxdiff.codecs.Images` makes.
      null: whether it can be left out and dropped.
      high: the largest; None: no bound.

    >>> Level("low_level").spec
    Spec(shape=(), dtype='float32', low=0.0, high=1.0, null=None)
    """

    name: str
    null: bool = False
    high: float | None = 1.0

    @property
    def spec(self) -> Spec:
        """What the network takes."""
        return Spec((), "float32", 0.0, self.high, NO_LEVEL if self.null else None)


@dataclass(frozen=True)
class Text:
    """A caption as ids of words, read by a transformer inside the network; equations (1) and (2).

    Args:
      name: its name in ``cond``.
      vocabulary: how many ids there are, 0 to vocabulary - 1.
      length: ids of a caption, padding included.
      width: of the transformer, a multiple of ``heads``.
      depth: its blocks.
      heads: of its attention.
      null: the ids of the empty caption, without its padding: begin and end of jaxdiff's own tokenizers. None: a
        caption cannot be left out.
      padding: the id that fills a caption up. Padding is not attended to.

    Raises:
      ValueError: sizes that do not fit each other, or ids that are none.

    >>> Text("text", vocabulary=50, length=4, width=32, depth=2, heads=4).spec
    Spec(shape=(4,), dtype='int32', low=0, high=49, null=(2, 3, 0, 0))
    """

    name: str
    vocabulary: int
    length: int
    width: int = 128
    depth: int = 2
    heads: int = 4
    null: tuple[int, ...] | None = (2, 3)
    padding: int = 0

    def __post_init__(self) -> None:
        for size in ("vocabulary", "length", "width", "depth", "heads"):
            if getattr(self, size) < 1:
                raise ValueError(f"{self.name}: {size}={getattr(self, size)} must be at least 1")
        if self.width % self.heads:
            raise ValueError(f"{self.name}: width={self.width} must be divisible by heads={self.heads}")
        if self.null is not None and len(self.null) > self.length:
            raise ValueError(f"{self.name}: null has {len(self.null)} ids, a caption has {self.length}")
        if wrong := [i for i in (*(self.null or ()), self.padding) if not 0 <= i < self.vocabulary]:
            raise ValueError(f"{self.name}: null and padding are ids below vocabulary={self.vocabulary}, got {wrong}")

    @property
    def spec(self) -> Spec:
        """What the network takes."""
        null = self.null
        if null is not None:
            null = (*null, *(self.padding,) * (self.length - len(null)))
        return Spec((self.length,), "int32", 0, self.vocabulary - 1, null)


@dataclass(frozen=True)
class Tokens:
    """Embeddings that an encoder has made, such as those of a text; equations (1) and (2).

    Its value is ``{"tokens": (B, L, width), "mask": (B, L), "pooled": (B, pooled)}``: a token counts where its mask is
    not 0.

    Args:
      name: its name in ``cond``.
      width: of the tokens.
      length: their number, padding included; None: it varies.
      pooled: width of the one vector that stands for all; None: there is none.
      null: whether it can be left out and dropped.

    >>> sorted(Tokens("text", 768, 77).spec)
    ['mask', 'tokens']
    """

    name: str
    width: int
    length: int | None = None
    pooled: int | None = None
    null: bool = True

    def __post_init__(self) -> None:
        if any(size is not None and size < 1 for size in (self.width, self.length, self.pooled)):
            raise ValueError(f"{self.name}: width, length and pooled are at least 1, got {self}")

    @property
    def spec(self) -> Condition:
        """What the network takes."""
        null = 0.0 if self.null else None
        specs = {
            "tokens": Spec((self.length, self.width), "float32", null=null),
            "mask": Spec((self.length,), "float32", 0.0, 1.0, null),
        }
        return specs if self.pooled is None else {**specs, "pooled": Spec((self.pooled,), "float32", null=null)}


@dataclass(frozen=True)
class Image:
    """A picture beside the sample, of its size or smaller: a low resolution, an edge map, a mask; equation (3).

    Args:
      name: its name in ``cond``.
      size: its height and width, at most the sample's; None: of whatever size.
      channels: of it.
      low, high: its range.
      null: whether it can be left out and dropped: zeros.

    >>> Image("low", (8, 8), 1).spec
    Spec(shape=(8, 8, 1), dtype='float32', low=-1.0, high=1.0, null=None)
    """

    name: str
    size: tuple[int | None, int | None]
    channels: int
    low: float | None = -1.0
    high: float | None = 1.0
    null: bool = False

    def __post_init__(self) -> None:
        if len(self.size) != 2 or min(self.channels, *(1 if side is None else side for side in self.size)) < 1:
            raise ValueError(f"{self.name}: size is (height, width) and channels at least 1, got {self}")

    @property
    def spec(self) -> Spec:
        """What the network takes."""
        return Spec((*self.size, self.channels), "float32", self.low, self.high, 0.0 if self.null else None)


@dataclass(frozen=True)
class Map:
    """A class at each pixel, such as a segmentation: one channel a class; equation (3).

    Args:
      name: its name in ``cond``.
      size: its height and width.
      classes: how many; the map holds 0 to classes - 1.
      null: whether it can be left out and dropped: the id ``classes``, which has no channel.

    >>> Map("parts", (8, 8), 5).spec
    Spec(shape=(8, 8), dtype='int32', low=0, high=4, null=5)
    """

    name: str
    size: tuple[int, int]
    classes: int
    null: bool = True

    def __post_init__(self) -> None:
        if len(self.size) != 2 or min(*self.size, self.classes) < 1:
            raise ValueError(f"{self.name}: size is (height, width) and classes at least 1, got {self}")

    @property
    def channels(self) -> int:
        """One a class."""
        return self.classes

    @property
    def spec(self) -> Spec:
        """What the network takes."""
        return Spec(self.size, "int32", 0, self.classes - 1, self.classes if self.null else None)


NetCondition = Vector | Level | Text | Tokens | Image | Map


def cond_specs(num_classes: int | None, null_class: bool, conditions: Sequence[NetCondition]) -> dict[str, Condition]:
    """What a network takes: ``"label"`` where it has classes, and its conditions.

    Raises:
      ValueError: two conditions of one name, or one named as the sample is.

    >>> list(cond_specs(10, True, (Vector("style", 2),)))
    ['label', 'style']
    """
    label = None if num_classes is None else Spec((), "int32", 0, num_classes - 1, num_classes if null_class else None)
    specs: dict[str, Condition] = {} if label is None else {"label": label}
    for condition in conditions:
        if condition.name in specs or condition.name == "x" or not condition.name.isidentifier():
            raise ValueError(f"a condition cannot be named {condition.name!r} here: the name is taken, or is no name")
        specs[condition.name] = condition.spec
    return specs


def token_width(conditions: Sequence[NetCondition], default: int) -> int | None:
    """The common width of the tokens of (2): the widest; ``default`` where vectors alone are tokens. None: there are
    none.

    >>> token_width((Tokens("text", 768), Vector("style", 2)), 320), token_width((Vector("style", 2),), 320)
    (768, None)
    """
    widths = [each.width for each in conditions if isinstance(each, Text | Tokens)]
    if widths:
        return max(widths)
    return default if any(isinstance(each, Vector) and each.into == "tokens" for each in conditions) else None


def without_tokens(conditions: Sequence[NetCondition]) -> list[str]:
    """The names of those that a network without attention to tokens has no place for.

    >>> without_tokens((Tokens("a", 8), Tokens("b", 8, pooled=8), Vector("c", 2, into="tokens"), Vector("d", 2)))
    ['a', 'c']
    """
    return [
        each.name
        for each in conditions
        if (isinstance(each, Tokens) and each.pooled is None) or (isinstance(each, Vector) and each.into == "tokens")
    ]


def image_channels(conditions: Sequence[NetCondition]) -> int:
    """How many channels equation (3) adds."""
    return sum(each.channels for each in conditions if isinstance(each, Image | Map))


def with_images(x: Array, cond: Mapping[str, Any], conditions: Sequence[NetCondition]) -> Array:
    """Equation (3): ``(B, H, W, C)`` -> ``(B, H, W, C + image_channels)``."""
    size = x.shape[1], x.shape[2]
    added = [x]
    for each in conditions:
        if isinstance(each, Image):
            added.append(enlarge(cond[each.name], size).astype(x.dtype))
        elif isinstance(each, Map):
            added.append(jax.nn.one_hot(nearest(cond[each.name], size), each.classes, dtype=x.dtype))
    return jnp.concatenate(added, axis=-1) if len(added) > 1 else x


def enlarge(image: Array, size: tuple[int, int]) -> Array:
    """Bilinear interpolation between the centres of pixels, ``(B, h, w, C) -> (B, H, W, C)``, as two products of
    matrices: a program with it can be exported for any batch.

    >>> enlarge(jnp.array([0.0, 1.0]).reshape(1, 1, 2, 1), (1, 4)).ravel().tolist()
    [0.0, 0.25, 0.75, 1.0]
    """
    _not_larger(image, size)
    rows, columns = (jnp.asarray(_between(a, b), image.dtype) for a, b in zip(image.shape[1:3], size, strict=True))
    return jnp.einsum("Hh,bhwc,Ww->bHWc", rows, image, columns, precision="highest")


def nearest(classes: Array, size: tuple[int, int]) -> Array:
    """Each pixel of ``(B, H, W)`` has the class of the pixel of ``(B, h, w)`` that its centre lies in.

    >>> nearest(jnp.array([[[3, 5]]]), (1, 4)).tolist()
    [[[3, 3, 5, 5]]]
    """
    _not_larger(classes, size)
    rows, columns = ((np.arange(b) * 2 + 1) * a // (2 * b) for a, b in zip(classes.shape[1:3], size, strict=True))
    return classes[:, rows][:, :, columns]


def _not_larger(image: Array, size: tuple[int, int]) -> None:
    if image.shape[1] > size[0] or image.shape[2] > size[1]:
        raise ValueError(f"an image of {image.shape[1:3]} as a condition of samples of {size}: it must not be larger")


def _between(source: int, target: int) -> np.ndarray:
    """The matrix ``(target, source)`` of linear interpolation; rows sum to 1."""
    place = np.clip((np.arange(target) + 0.5) * source / target - 0.5, 0, source - 1)
    return np.maximum(0.0, 1.0 - np.abs(place[:, None] - np.arange(source)[None, :]))
