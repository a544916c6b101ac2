"""How the axes of a published tensor lie in one of our arrays: a pattern that is read in both directions.

A pattern names the axes of theirs and of ours, ``"o i h w -> h w i o"``. Parentheses join axes into one,
``"(t o) i -> i t o"``; ``1`` is an axis of length 1; ``~t`` runs backwards, which is how two halves change places.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

Group = tuple[str, ...]


@dataclass(frozen=True)
class Axes:
    """A pattern, and the lengths that shapes alone do not tell.

    Args:
      pattern: ``"theirs -> ours"``.
      sizes: lengths of axes by name; those of a group may lack one.

    >>> import numpy as np
    >>> axes = Axes("(t o) i -> i t o")
    >>> axes.theirs((2, 3, 4))  # the shape of theirs, where ours is (2, 3, 4)
    (12, 2)
    >>> axes.to_ours(np.arange(24).reshape(12, 2), (2, 3, 4))[1, 0].tolist()
    [1, 3, 5, 7]
    """

    pattern: str
    sizes: Mapping[str, int] = field(default_factory=dict)

    def theirs(self, ours: Sequence[int]) -> tuple[int, ...]:
        """The shape of their tensor.

        Args:
          ours: the shape of our array.
        """
        left, right, _ = _parsed(self.pattern)
        lengths = self._lengths(right, ours)
        return tuple(math.prod(lengths[axis] for axis in group) for group in left)

    def to_ours(self, tensor: Any, ours: Sequence[int]) -> Any:
        """Our array, of the shape ``ours``, of their tensor; NumPy's or JAX's, as that is."""
        left, right, backwards = _parsed(self.pattern)
        return _moved(tensor, left, right, self._lengths(right, ours), backwards)

    def to_theirs(self, array: NDArray) -> NDArray:
        """Their tensor of our array."""
        left, right, backwards = _parsed(self.pattern)
        return _moved(array, right, left, self._lengths(right, array.shape), backwards)

    def leading(self, axis: int = 0) -> int | None:
        """Which axis of ours is the first one of theirs, unjoined; None: none is. A range of that axis is a range of
        their rows.

        Args:
          axis: of theirs, where another is meant.
        """
        left, right, backwards = _parsed(self.pattern)
        first = left[axis] if len(left) > axis else ()
        return right.index(first) if len(first) == 1 and first in right and not {*first} & backwards else None

    def _lengths(self, groups: Sequence[Group], shape: Sequence[int]) -> dict[str, int]:
        lengths = dict(self.sizes)
        if len(groups) != len(shape):
            raise ValueError(f"{self.pattern}: expected {len(groups)} axes, got shape {tuple(shape)}")
        for group, length in zip(groups, shape, strict=True):
            unknown = [axis for axis in group if axis not in lengths]
            known = math.prod(lengths[axis] for axis in group if axis in lengths)
            if len(unknown) > 1 or length % known or (not unknown and length != known):
                raise ValueError(f"{self.pattern}: {group} do not make up an axis of {length}")
            lengths |= dict.fromkeys(unknown, length // known)
        return lengths


@functools.cache
def _parsed(pattern: str) -> tuple[tuple[Group, ...], tuple[Group, ...], frozenset[str]]:
    sides = []
    for side in pattern.split("->"):
        groups = re.findall(r"\(([^)]*)\)|(\S+)", side)
        sides.append(tuple(tuple((joined or alone).replace("~", "").split()) for joined, alone in groups))
    left, right = (tuple(() if group == ("1",) else group for group in side) for side in sides)
    return left, right, frozenset(re.findall(r"~(\w+)", pattern))


def _moved(
    array: Any,
    source: Sequence[Group],
    target: Sequence[Group],
    lengths: Mapping[str, int],
    backwards: frozenset[str],
) -> Any:
    before = [axis for group in source for axis in group]
    after = [axis for group in target for axis in group]
    array = array.reshape([lengths[axis] for axis in before])
    array = array[tuple(slice(None, None, -1 if axis in backwards else 1) for axis in before)]
    array = array.transpose([before.index(axis) for axis in after])
    return array.reshape([math.prod(lengths[axis] for axis in group) for group in target])
