"""A codec of conditions beside the codec of the data, which does all else."""

from __future__ import annotations

import abc
import dataclasses
import os
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from jax import Array
from numpy.typing import NDArray

from jaxdiff.codecs.base import Stored


class BesideData(abc.ABC):
    """A codec that makes conditions, and leaves the data to an inner codec; abstract. A subclass is a record.

    Attributes:
      inner: the codec of the data.
      told: conditions that it makes, which are no part of a record.
    """

    inner: Any
    told: ClassVar[tuple[str, ...]]

    @abc.abstractmethod
    def encode(self, record: Mapping[str, Any], key: Array | None = None) -> dict[str, Any]:
        """The inner codec's batch, and the conditions."""

    @property
    def suffixes(self) -> tuple[str, ...]:
        """As the inner codec's."""
        suffixes: tuple[str, ...] = self.inner.suffixes
        return suffixes

    def sized(self, x: Any) -> Any:
        """The same for records ``{"x": x}`` of another size, where the inner codec has this."""
        return dataclasses.replace(self, inner=self.inner.sized(x))  # type: ignore[type-var]

    def precompute(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """As the inner codec's."""
        made: dict[str, Any] = self.inner.precompute(record)
        return made

    def decode(self, x0: Array, cond: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """As the inner codec's; what the network is told is no part of a record."""
        others = {name: value for name, value in (cond or {}).items() if name not in self.told}
        decoded: dict[str, Any] = self.inner.decode(x0, others)
        return decoded

    def picture(self, stored: Stored, columns: int | None = None) -> NDArray[np.uint8]:
        """As the inner codec's."""
        picture: NDArray[np.uint8] = self.inner.picture(stored, columns)
        return picture

    def save(self, path: str | os.PathLike[str], stored: Stored, columns: int | None = None) -> None:
        """As the inner codec's."""
        self.inner.save(path, stored, columns)
