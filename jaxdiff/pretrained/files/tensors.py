"""What a set of published tensors is, whatever the files that hold it: names, shapes, and one tensor read at a time."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from jaxdiff.pretrained.errors import PretrainedError

FLOATING = ("float32", "bfloat16", "float16")
"""What parameters are read and written as."""


def floating(dtype: Any) -> Any:
    """A dtype that parameters may have; None: as they are.

    Raises:
      PretrainedError: another one.

    >>> floating("bfloat16"), floating(None)
    (dtype(bfloat16), None)
    """
    try:
        found = None if dtype is None else jnp.dtype(dtype)
    except TypeError:
        found = dtype
    if found is not None and str(found) not in FLOATING:
        raise PretrainedError(f"dtype is {dtype!r}, expected {', '.join(map(repr, FLOATING))}, or None: as stored")
    return found


@runtime_checkable
class Described(Protocol):
    """What is known of a tensor before it is read."""

    @property
    def dtype(self) -> np.dtype:
        """Of its numbers."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of it."""


class Tensors(Mapping[str, Described], abc.ABC):
    """Tensors by name."""

    files: tuple[Path, ...]
    """That hold them, for messages."""

    @abc.abstractmethod
    def read(self, name: str, rows: tuple[int, int] | None = None) -> NDArray[Any]:
        """A tensor.

        Args:
          name: of it.
          rows: first and last + 1 along its first axis; None: all.
        """


class Part(Tensors):
    """Those tensors of a set whose names fulfil a condition.

    Args:
      whole: the set.
      within: whether a name is of this part.
    """

    def __init__(self, whole: Tensors, within: Callable[[str], bool]) -> None:
        self.files, self._whole = whole.files, whole
        self._names = dict.fromkeys(name for name in whole if within(name))

    def __getitem__(self, name: str) -> Described:
        if name not in self._names:
            raise KeyError(name)
        return self._whole[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def read(self, name: str, rows: tuple[int, int] | None = None) -> NDArray[Any]:
        """A tensor of this part: see `Tensors.read`."""
        return self._whole.read(name, rows)


class Renamed(Tensors):
    """Tensors of a set by other names.

    Args:
      whole: the set.
      names: theirs in the set, by those that they get.
    """

    def __init__(self, whole: Tensors, names: Mapping[str, str]) -> None:
        self.files, self._whole, self._names = whole.files, whole, dict(names)

    def __getitem__(self, name: str) -> Described:
        return self._whole[self._names[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def read(self, name: str, rows: tuple[int, int] | None = None) -> NDArray[Any]:
        """A tensor by its other name: see `Tensors.read`."""
        return self._whole.read(self._names[name], rows)
