"""Two real digits in one picture, with a caption: text to image that needs no download.

Of the 1,797 digits of the package (8x8, `open_digits`), half make the pictures for training and half those for tests. A
picture is 16x16. Two digits a and b stand in it, a on the left of b (rows 4 to 11) or a above b (columns 4 to 11), and
one of two captions says so:

    a on the left of b      "a three left of a seven",  "a seven right of a three"
    a above b               "a zero above a four",      "a four below a zero"

Twenty of the hundred ordered pairs (a, b) are never trained on:

    (3 a + b) mod 5 = 0                                                                              (1)

Each digit has two partners of (1) on either side, so that every word and every place is seen, and only their meeting is
new. The test split holds pictures of all pairs.

At 32x32 the same pictures are enlarged, for the second stage of a cascade: each digit by bicubic interpolation to
16x16, moved until the mean of each 2x2 pixels is the pixel that they were, to rounding. Such a picture holds no more
than the small one.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from jaxdiff.data.arrays import open_digits
from jaxdiff.data.sources import DataError, Records, digest
from jaxdiff.spec import Spec

SIDES = (16, 32)
"""Pixels along one side of a picture."""
SIZES = {"train": 20_000, "test": 2_000}
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
RELATIONS = ("left of", "right of", "above", "below")


def is_held_out(a: int, b: int) -> bool:
    """Equation (1), of the digit on the left or above and the other.

    >>> sum(is_held_out(a, b) for a in range(10) for b in range(10))
    20
    """
    return (3 * a + b) % 5 == 0


def caption(a: int, b: int, relation: str) -> str:
    """The caption of a picture with a on the left or above, in the words of one of the relations.

    >>> caption(3, 8, "left of"), caption(3, 8, "below")
    ('a three left of an eight', 'an eight below a three')
    """
    first, second = (b, a) if relation in ("right of", "below") else (a, b)
    named = [f"{'an' if DIGITS[each] == 'eight' else 'a'} {DIGITS[each]}" for each in (first, second)]
    return f"{named[0]} {relation} {named[1]}"


PROMPTS = {
    caption(a, b, relation): (a, b, relation in ("above", "below"))
    for a, b, relation in itertools.product(range(10), range(10), RELATIONS)
}
"""All 400 captions: the digit on the left or above, the other, and whether one is above."""


def halves() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The numbers of the digits (in ``open_digits(split="all")``) that make pictures for training, and for tests."""
    order = np.random.default_rng(0).permutation(len(open_digits(split="all")))
    half = len(order) // 2
    return np.sort(order[:half]), np.sort(order[half:])


class TwoDigits:
    """The source of the pictures above. Which digits stand in a picture is drawn once: a record is always the same.

    Args:
      split: "train": 20,000 pictures of the 80 pairs; "test": 2,000 pictures of all 100, made of other digits.
      captioned: with ``"text"``.
      size: of a picture, 16 or 32.

    Raises:
      DataError: another split or size.

    >>> source = TwoDigits("test")
    >>> record = source.take(np.array([0]))
    >>> record["x"].shape, record["text"][0] in PROMPTS
    ((1, 16, 16, 1), True)
    """

    def __init__(self, split: str = "train", *, captioned: bool = True, size: int = 16) -> None:
        if split not in SIZES:
            raise DataError(f"two_digits: no split {split!r}; there are {', '.join(SIZES)}")
        if size not in SIDES:
            raise DataError(f"two_digits: pictures have {' or '.join(map(str, SIDES))} pixels a side, got {size}")
        self.name = f"two_digits ({split})"
        self.spec = {"x": Spec((size, size, 1), "uint8", 0, 255)} | ({"text": Spec((), "str")} if captioned else {})
        digits = open_digits(split="all")
        chosen = halves()[list(SIZES).index(split)]
        records = digits.take(chosen)
        self._images: NDArray[np.uint8] = records["x"][..., 0]
        if size == 32:
            self._images = doubled(self._images)

        rng, n = np.random.default_rng([1, list(SIZES).index(split)]), SIZES[split]
        pairs = [(a, b) for a in range(10) for b in range(10) if split == "test" or not is_held_out(a, b)]
        self.pairs = np.array(pairs)[rng.integers(len(pairs), size=n)]  # (n, 2)
        self.relations = rng.integers(len(RELATIONS), size=n)
        self._places = np.empty((n, 2), np.int64)  # of each digit, which image
        for digit in range(10):
            here = self.pairs == digit
            self._places[here] = rng.choice(np.flatnonzero(records["label"] == digit), here.sum())
        self.fingerprint = digest(self._images, self._places, self.relations)

    def __len__(self) -> int:
        return len(self.relations)

    def take(self, indices: NDArray[np.int64], /) -> Records:
        """Pictures ``(B, 16, 16, 1)`` or ``(B, 32, 32, 1)`` uint8, and captions."""
        n = self._images.shape[1]  # pixels a side of a digit
        x, middle = np.zeros((len(indices), 2 * n, 2 * n, 1), np.uint8), slice(n // 2, n // 2 + n)
        first, second = (self._images[self._places[indices, place]] for place in (0, 1))  # (B, n, n)
        above = self.relations[indices] >= 2
        x[~above, middle, :n, 0], x[~above, middle, n:, 0] = first[~above], second[~above]
        x[above, :n, middle, 0], x[above, n:, middle, 0] = first[above], second[above]
        return {"x": x} | ({"text": self.texts(indices)} if "text" in self.spec else {})

    def texts(self, indices: NDArray[np.int64], /) -> NDArray[np.object_]:
        """The captions ``(B,)`` alone."""
        captions = np.empty(len(indices), object)
        for row, index in enumerate(indices):
            a, b = self.pairs[index].tolist()
            captions[row] = caption(a, b, RELATIONS[self.relations[index]])
        return captions


def doubled(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Images ``(N, H, W)`` at twice the size, of which each 2x2 pixels have the mean that the pixel was, to rounding.

    >>> small = np.uint8([[[0, 100], [200, 255]]])
    >>> large = doubled(small)
    >>> large.shape, bool((abs(large.reshape(1, 2, 2, 2, 2).mean(axis=(2, 4)) - small) <= 0.5).all())
    ((1, 4, 4), True)
    """
    count, height, width = images.shape
    sides = (2 * width, 2 * height)
    pictures = (Image.fromarray(each.astype(np.float32)) for each in images)
    large = np.stack([np.asarray(each.resize(sides, Image.Resampling.BICUBIC)) for each in pictures])
    for _ in range(24):  # what is cut off at black and white is made up for by the others
        means = large.reshape(count, height, 2, width, 2).mean(axis=(2, 4))
        large = np.clip(large + (images - means).repeat(2, axis=1).repeat(2, axis=2), 0, 255)
    return np.rint(large).astype(np.uint8)


def open_two_digits(
    path: str | os.PathLike[str] | None = None,
    *,
    split: str = "train",
    image_size: int | None = None,
    channels: int | None = None,
    num_classes: int | None = None,
    resize: bool = False,
    skip_bad: bool = False,
    conditions: Sequence[str] | None = None,
    text: str | None = None,
) -> TwoDigits:
    """Pictures of two digits with captions, made of the digits in the package: no download.

    Args:
      path: there is none to give.
      split: "train" or "test".
      image_size, channels: 16 or 32, and 1; or None: 16 and 1.
      num_classes: there are no classes.
      resize, skip_bad: nothing is to be done.
      conditions: ``("text",)``, or ``()`` for the pictures alone; None: all.
      text: the captions have no other name to give.

    Raises:
      DataError: an option that does not fit.

    >>> len(open_two_digits()), open_two_digits(conditions=()).spec.keys()
    (20000, dict_keys(['x']))
    """
    if path is not None or num_classes is not None or image_size not in (None, *SIDES) or channels not in (None, 1):
        raise DataError(
            "two_digits: lie in the package, 16x16 or 32x32 and grey, without classes; leave path, channels and the "
            f"network's num_classes out, and image_size={image_size} but for 16 or 32"
        )
    if text is not None:
        raise DataError(f"two_digits: make their own captions, got text={text!r}; leave it out")
    return TwoDigits(split, captioned=conditions is None or "text" in conditions, size=image_size or 16)
