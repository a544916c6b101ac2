"""Labels: their spec, and the one check of all of a set's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jaxdiff.data.sources import DataError
from jaxdiff.spec import Spec


def label_spec(count: int) -> Spec:
    """Of one label among so many classes."""
    return Spec((), "int32", 0, count - 1)


def check_labels(
    labels: NDArray[Any], count: int | None, *, records: int, name: str, where: Callable[[int], str], strict: bool
) -> tuple[NDArray[np.int32], int]:
    """All labels at once, before anything is compiled.

    Args:
      labels: as stored, (N,) or (N, 1).
      count: how many classes there are; None: one more than the largest label.
      records: N.
      name: of the source.
      where: the place of a record, for messages.
      strict: refuse labels out of range; else who reads them does.

    Returns:
      int32 (N,), and the number of classes.

    Raises:
      DataError: naming the first bad row.
    """
    labels = labels[:, 0] if labels.shape == (records, 1) else labels
    if labels.shape != (records,):
        raise DataError(f"{name}: labels have shape {labels.shape}, expected ({records},), one for each record")
    if labels.dtype.kind not in "iu":
        raise DataError(f"{name}: labels are {labels.dtype}, expected integers; store class numbers 0, 1, 2, ...")
    if records == 0:
        return labels.astype(np.int32), count or 1
    bad = (labels < 0) | (labels >= count) if count is not None else labels < 0
    if strict and bad.any():
        row = int(np.argmax(bad))
        allowed = "at least 0" if count is None else f"0..{count - 1}"
        raise DataError(
            f"{where(row)}: label {labels[row]}, expected {allowed} ({int(bad.sum())} such rows); "
            "set num_classes to the largest label + 1, or fix the labels"
        )
    most = np.iinfo(np.int32)  # what does not fit stays out of range
    return np.clip(labels, most.min, most.max).astype(np.int32), count or max(int(labels.max()) + 1, 1)
