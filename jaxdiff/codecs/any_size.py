"""Batches of pictures that each have a size of their own: training in buckets (`jaxdiff.data.buckets`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jax import Array

from jaxdiff.record import record


@record
class AnySize:
    """What a training step is given in the place of its codec: it encodes pictures of any size.

    Args:
      inner: a codec with a method ``sized`` that gives the same codec for records of the size of a stored ``x``:
        images, their latents, and text beside them. Its own shape stays that of samples.

    >>> import numpy as np
    >>> from jaxdiff.codecs import Images
    >>> AnySize(Images((8, 8, 3))).encode({"x": np.zeros((2, 6, 10, 3), np.uint8)})["x"].shape
    (2, 6, 10, 3)
    """

    inner: Any

    def nulls(self) -> dict[str, Any]:
        """As the inner codec's; none where it has none."""
        found: dict[str, Any] = self.inner.nulls() if hasattr(self.inner, "nulls") else {}
        return found

    def encode(self, record: Mapping[str, Any], key: Array | None = None) -> dict[str, Any]:
        """As the inner codec's, for these records' size."""
        batch: dict[str, Any] = self.inner.sized(record["x"]).encode(record, key)
        return batch
