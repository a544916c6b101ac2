"""A part of a source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jaxdiff.data.sources import DataError, Records, Source, classes_of, digest, fingerprint, name_of, texts
from jaxdiff.spec import Spec, fits


class Subset:
    """Some records of a source, or some of their arrays.

    Args:
      source: the whole.
      indices: the records that are kept; None: all.
      names: the conditions that are kept besides ``"x"``; None: all.
      bounds: what some of them must be, where the source itself says less: their type of numbers, range and null.

    Raises:
      DataError: a condition that the source does not have, or has of another shape or type of numbers.

    >>> from jaxdiff.data import open_digits, take
    >>> part = Subset(open_digits(), indices=range(5), names=())
    >>> len(part), list(take(part, [4]))
    (5, ['x'])
    """

    def __init__(
        self,
        source: Source,
        indices: ArrayLike | None = None,
        names: Sequence[str] | None = None,
        bounds: Mapping[str, Spec] | None = None,
    ) -> None:
        self.source, self.name, self.classes = source, name_of(source), classes_of(source)
        self.indices = None if indices is None else np.asarray(indices, np.int64)
        kept = [*source.spec] if names is None else ["x", *names]
        if missing := [name for name in kept if name not in source.spec]:
            has = ", ".join(name for name in source.spec if name != "x") or "none"
            raise DataError(f"{self.name}: has no condition {missing[0]}; its conditions: {has}")
        self.bounds = bounds or {}
        self.spec: Mapping[str, Spec] = {name: self._bounded(name) for name in source.spec if name in kept}
        whole = fingerprint(source)
        self.fingerprint = whole if self.indices is None else digest(np.array([whole]), self.indices)
        self.files: Sequence[Any] = getattr(source, "files", ())

    def _bounded(self, name: str) -> Spec:
        spec, bounds = self.source.spec[name], self.bounds.get(name)
        if bounds is None:
            return spec
        if not fits(spec, bounds) or np.dtype(spec.dtype).kind not in (np.dtype(bounds.dtype).kind, "u"):
            raise DataError(
                f"{self.name}: {name} is {spec.dtype} {spec.shape}, expected {bounds.dtype} "
                f"({', '.join('any' if size is None else str(size) for size in bounds.shape)})"
            )
        return Spec(spec.shape, spec.dtype, bounds.low, bounds.high, bounds.null)

    def __len__(self) -> int:
        return len(self.source) if self.indices is None else len(self.indices)

    def take(self, indices: NDArray[np.int64], /) -> Records:
        records = self.source.take(indices if self.indices is None else self.indices[indices])
        return {name: records[name] for name in self.spec if name in records}

    def texts(self, indices: NDArray[np.int64], /) -> NDArray[Any]:
        return texts(self.source, indices if self.indices is None else self.indices[indices])

    def sizes(self, indices: NDArray[np.int64], /) -> NDArray[np.int32]:
        """As the source's, which has this method."""
        whole: Any = self.source
        found: NDArray[np.int32] = whole.sizes(indices if self.indices is None else self.indices[indices])
        return found

    def at(self, height: int, width: int) -> Subset:
        """As the source's, which has this method."""
        whole: Any = self.source
        kept = [name for name in self.spec if name != "x"]
        return Subset(whole.at(height, width), self.indices, kept, self.bounds)
