"""Arrays of real numbers: standardised, so that a network sees data of mean 0 and standard deviation 1.

    encode:  x0 = (x - mean) / std
    decode:  x  = mean + std x0,  clipped to the declared range

mean and std are numbers, or one for each entry of the last axis (the channels). They are estimated once, from records
that are always the same ones, and are kept with the run: a network learns data on this scale.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from numpy.typing import NDArray

from jaxdiff.codecs.base import Stored, save_npz, save_png, saved_as
from jaxdiff.codecs.drawing import histogram, lines
from jaxdiff.codecs.images import grid
from jaxdiff.codecs.points import scatter
from jaxdiff.data.sources import DataError, Source, name_of, not_finite, spread, take
from jaxdiff.record import field, record
from jaxdiff.spec import Spec, Specs

_CHUNK = 256  # records read at a time
_IMAGE_FROM = 9  # columns from which an array of two axes is drawn as an image, not as so many lines


@record
class Arrays:
    """The codec of float arrays of any shape.

    Args:
      shape: of one sample.
      mean: a number, or one for each entry of the last axis ``(C,)``.
      std: likewise, above 0.
      low: least value of the stored data; None: no bound.
      high: largest value.

    Raises:
      ValueError: mean or std of another shape, or a std that is not above 0.

    >>> codec = Arrays((3,), mean=10.0, std=2.0, low=9.0)
    >>> codec.encode({"x": np.float32([[8, 10, 14]])})["x"].tolist()
    [[-1.0, 0.0, 2.0]]
    >>> codec.decode(jnp.array([[-1.0, 0.0, 2.0]]))["x"].tolist()
    [[9.0, 10.0, 14.0]]
    """

    shape: tuple[int, ...] = field(pytree_node=False)
    mean: ArrayLike = 0.0
    std: ArrayLike = 1.0
    low: float | None = field(default=None, pytree_node=False)
    high: float | None = field(default=None, pytree_node=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))
        for name in ("mean", "std"):
            value = getattr(self, name)
            if isinstance(value, tuple | list):  # as a configuration reads it back
                value = np.asarray(value, np.float32)
                object.__setattr__(self, name, value)
            if np.shape(value) not in ((), self.shape[-1:]):
                raise ValueError(
                    f"{name} is a number or one for each entry of the last axis of {self.shape}, got {np.shape(value)}"
                )
        if isinstance(self.std, int | float | np.ndarray) and not (np.asarray(self.std) > 0).all():
            raise ValueError(f"std is above 0, got {self.std}")

    @classmethod
    def fitted(cls, source: Source, records: int = 10_000, *, per_channel: bool = True) -> Arrays:
        """The codec with the mean and std of a source, and with the range that its spec declares.

        Args:
          source: of float arrays.
          records: at most so many are looked at, evenly over the source: always the same ones.
          per_channel: one mean and std for each entry of the last axis; else one for all.

        Raises:
          DataError: a record that is not finite, by its number.

        >>> from jaxdiff.data import from_arrays
        >>> codec = Arrays.fitted(from_arrays(np.float32([[0, 5], [2, 5]])))
        >>> codec.mean.tolist(), codec.std.tolist()  # what does not vary is only shifted
        ([1.0, 5.0], [1.0, 1.0])
        """
        spec = source.spec["x"]
        shape = tuple(int(size or 0) for size in spec.shape)
        chosen = spread(len(source), records)
        count, total, squares = 0, np.float64(0.0), np.float64(0.0)
        shift: Any = None  # near the mean, so that no digits are lost
        for first in range(0, len(chosen), _CHUNK):
            part = chosen[first : first + _CHUNK]
            x = take(source, part)["x"].astype(np.float64)
            if not np.isfinite(x).all():
                row = part[int(np.argmin(np.isfinite(x).reshape(len(x), -1).all(axis=1)))]
                raise DataError(f"{name_of(source)} row {row}: x {not_finite('float32')}")
            x = x.reshape(-1, shape[-1] if per_channel and shape else 1)
            shift = x.mean(axis=0) if shift is None else shift
            count, total, squares = count + len(x), total + (x - shift).sum(0), squares + ((x - shift) ** 2).sum(0)
        mean = shift + total / count
        std = np.sqrt(np.maximum(squares / count - (total / count) ** 2, 0.0))
        std = np.where(std > 1e-6 * np.maximum(np.abs(mean), std.max()), std, 1.0)
        if not (per_channel and shape):
            mean, std = mean[0], std[0]
        return cls(shape, np.asarray(mean, np.float32), np.asarray(std, np.float32), spec.low, spec.high)

    @property
    def suffixes(self) -> tuple[str, ...]:
        """.png and .npz."""
        return (".png", ".npz")

    @property
    def spec(self) -> Specs:
        """``"x"``, and the declared range on a network's scale. Not under a jit that takes the codec as data."""
        mean, std = np.asarray(self.mean), np.asarray(self.std)
        low = None if self.low is None else float(np.min((self.low - mean) / std))
        high = None if self.high is None else float(np.max((self.high - mean) / std))
        return {"x": Spec(self.shape, "float32", low, high)}

    def encode(self, record: Mapping[str, Any], key: Array | None = None) -> dict[str, Any]:
        """Records ``{"x": (B, ...), ...}`` standardised, float32."""
        x = (jnp.asarray(record["x"], jnp.float32) - self._over_samples(self.mean)) / self._over_samples(self.std)
        return {**record, "x": x}

    def decode(self, x0: Array, cond: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Stored values of samples ``(B, ...)``."""
        x = self._over_samples(self.mean) + self._over_samples(self.std) * x0
        x = x if self.low is None and self.high is None else jnp.clip(x, self.low, self.high)
        return {"x": x, **{name: value for name, value in (cond or {}).items() if name != "x"}}

    def _over_samples(self, value: ArrayLike) -> Array:
        value = jnp.asarray(value, jnp.float32)
        return value.reshape((1,) * (len(self.shape) + 1 - value.ndim) + value.shape)

    def picture(self, stored: Stored, columns: int | None = None) -> NDArray[np.uint8]:
        """What shows arrays of this shape best.

        Pairs (2,): a scatter plot on their own range. ``(H, W, C)``, and ``(H, W)`` of more than 8 columns: a grid of
        images, each on its own range; of two channels the first, of more than three the first three. ``(L,)`` and
        ``(L, C)``: a panel of lines for each of at most 36 samples. Else a histogram of all values.
        """
        x = np.asarray(stored["x"], np.float32)
        if self.shape == (2,):
            finite = x[np.isfinite(x).all(axis=1)]
            middle = (finite.min(axis=0) + finite.max(axis=0)) / 2 if len(finite) else np.zeros(2)
            half = np.abs(finite - middle).max() if len(finite) else 1.0
            return scatter((x - middle) / max(float(half), 1e-30))
        if len(self.shape) == 2 and self.shape[1] >= _IMAGE_FROM:
            x = x[..., None]
        if x.ndim == 4:
            return grid(_own_range(x[..., :3] if x.shape[3] >= 3 else x[..., :1]), columns)
        if x.ndim in (2, 3):
            return lines(x[..., None] if x.ndim == 2 else x, columns)
        return histogram(x)

    def save(self, path: str | os.PathLike[str], stored: Stored, columns: int | None = None) -> None:
        """A picture (.png), or the arrays by name (.npz)."""
        if saved_as(path, self.suffixes, "arrays") == ".npz":
            save_npz(path, stored)
        else:
            save_png(path, self.picture(stored, columns))


def _own_range(x: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Images as bytes, each from its least value to its largest; what is not finite is black."""
    finite = np.isfinite(x)
    low = np.where(finite, x, np.inf).min(axis=(1, 2, 3), keepdims=True)
    high = np.where(finite, x, -np.inf).max(axis=(1, 2, 3), keepdims=True)
    scaled = np.divide(x - low, high - low, out=np.zeros_like(x), where=finite & (high > low))
    return np.rint(255 * scaled).astype(np.uint8)
