"""Our parameters by the names that a published checkpoint gives them.

A leaf of ours has a path, ``down/0/stages/1/block/conv1/kernel``. A `Naming` makes of it the name of the tensor,
``down_blocks.0.resnets.1.conv1.weight``, and says how the axes lie (`jaxdiff.pretrained.files.axes`). Since each leaf
has exactly one answer, the same table reads and writes, and what a file has beside these names is known to be unused.

Where our weights are the like blocks of a row, stacked along a first axis, the name has ``{}`` in the place of a
block's number (``{13}``: the first one's). Where one array of ours holds several tensors side by side, as queries, keys
and values, it has several names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from numpy.typing import NDArray

from jaxdiff.pretrained.files.axes import Axes

_USUAL = {  # by the last part of the path, and the number of axes of one block
    ("kernel", 2): "o i -> i o",
    ("kernel", 3): "t o i -> i t o",
    ("kernel", 4): "o i h w -> h w i o",
}
_LAST = {"kernel": "weight", "scale": "weight", "embedding": "weight"}
_AXES = "abcdefgh"


class Cut(NamedTuple):
    """The part of a tensor that is an array of ours.

    Attributes:
      axis: of their tensor.
      start, stop: along it.
      whole: its length.
    """

    axis: int
    start: int
    stop: int
    whole: int


@dataclass(frozen=True)
class Leaf:
    """What one array of ours is made of.

    Args:
      names: of the tensors, block after block, and of each block part after part.
      parts: tensors of a block; None: one, without an axis of its own.
      blocks: how many are stacked along our first axis; None: there is no such axis.
      axes: of one block.
      shape: of one block of ours.
      cut: where each tensor has more than this: the axis of theirs, first and last + 1 along it, and its whole length.
    """

    names: tuple[str, ...]
    parts: int | None
    blocks: int | None
    axes: Axes
    shape: tuple[int, ...]
    cut: Cut | None = None

    @property
    def tensor(self) -> tuple[int, ...]:
        """The shape of each tensor, before it is cut."""
        theirs = self.axes.theirs(self.shape)
        theirs = theirs if self.parts is None else theirs[1:]
        if self.cut is None:
            return theirs
        return (*theirs[: self.cut.axis], self.cut.whole, *theirs[self.cut.axis + 1 :])

    def groups(self) -> Iterator[tuple[str, ...]]:
        """The names of each block in turn."""
        step = self.parts or 1
        for start in range(0, len(self.names), step):
            yield self.names[start : start + step]


@dataclass(frozen=True)
class Naming:
    """A table of names.

    Args:
      renames: pairs (pattern, replacement), each applied once to the whole path, one after another.
      parts: a name in the path, and the names of the tensors that stand side by side in that array.
      axes: pairs (pattern, axes); the first whose pattern is found in the path holds. For others kernels are
        transposed as torch has them, (out, in) and (out, in, height, width), and nothing else is.
      sizes: lengths of axes that shapes do not tell.
      cuts: pairs (pattern, cut), for arrays that are parts of one tensor.
      copies: tensors that repeat another, by name; where they do not, the file is refused.
      aliases: pairs (pattern, replacement) for names of a file, older ones for newer.
      unused: patterns of tensors that may stand in a file and are no weights of ours.
      tables: fixed tensors that are computed here, by name: what makes them. A file that has another one is refused.
      last: ``(path, leaf) -> leaf``, which changes what was found; None: nothing does.

    >>> naming = Naming(renames=[("^block/", "layers.{}.")], parts={"qkv": ("q", "k", "v")})
    >>> leaf = naming.leaf("block/qkv/kernel", (2, 8, 3, 4))
    >>> leaf.names[:4], leaf.tensor
    (('layers.0.q.weight', 'layers.0.k.weight', 'layers.0.v.weight', 'layers.1.q.weight'), (4, 8))
    """

    renames: Sequence[tuple[str, str]]
    parts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    axes: Sequence[tuple[str, str]] = ()
    sizes: Mapping[str, int] = field(default_factory=dict)
    cuts: Sequence[tuple[str, Cut]] = ()
    copies: Mapping[str, str] = field(default_factory=dict)
    aliases: Sequence[tuple[str, str]] = ()
    unused: Sequence[str] = ()
    tables: Mapping[str, Callable[[], NDArray[Any]]] = field(default_factory=dict)
    last: Callable[[str, Leaf], Leaf] | None = None

    def leaf(self, path: str, shape: Sequence[int]) -> Leaf:
        """What the array at a path is made of.

        Args:
          path: with "/" between its names.
          shape: of the array.
        """
        name = path
        for pattern, replacement in self.renames:
            name = re.sub(pattern, replacement, name, count=1)
        *folders, last = name.replace("/", ".").split(".")
        name = ".".join([*folders, _LAST.get(last, last)])
        stacked = re.search(r"\{(\d*)\}", name)
        blocks, one = (shape[0], tuple(shape[1:])) if stacked else (None, tuple(shape))
        joined = next((part for part in self.parts if f".{part}." in f".{name}."), None)
        names = [re.sub(rf"\b{joined}\b", part, name) for part in self.parts[joined]] if joined else [name]
        if stacked:
            first = int(stacked[1] or 0)
            names = [n.replace(stacked[0], str(first + i), 1) for i in range(shape[0]) for n in names]
        usual = _USUAL.get((path.rpartition("/")[2], len(one)), f"{_letters(one)} -> {_letters(one)}")
        pattern = next((axes for found, axes in self.axes if re.search(found, path)), usual)
        parts = len(self.parts[joined]) if joined else None
        cut = next((cut for found, cut in self.cuts if re.search(found, path)), None)
        found = Leaf(tuple(names), parts, blocks, Axes(pattern, self.sizes), one, cut)
        return found if self.last is None else self.last(path, found)

    def newer(self, name: str) -> str:
        """A file's name as this table has it."""
        for pattern, replacement in self.aliases:
            name = re.sub(pattern, replacement, name, count=1)
        return name

    def is_unused(self, name: str) -> bool:
        """Whether a tensor may be left out."""
        return any(re.search(pattern, name) for pattern in self.unused)


def _letters(shape: Sequence[int]) -> str:
    return " ".join(_AXES[: len(shape)])
