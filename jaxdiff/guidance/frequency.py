"""Frequency-decoupled guidance (Sadat et al. 2025, "Guidance in the Frequency Domain Enables High-Fidelity Sampling at
Low CFG Scales", https://arxiv.org/abs/2506.19713, algorithm 1).

What a condition changes is cut into bands of frequency by a Laplacian pyramid (Burt & Adelson 1983), and each band has
a weight of its own. Low bands decide composition and, weighed much, saturation; high ones decide detail. With
D = x0(x, cond) - x0(x, null), R "blur, then halve" and E "double, then blur",

    D_0 = D,   D_{l+1} = R D_l,        L_l = D_l - E D_{l+1}   (the last: L_n = D_n),                (1)
    x0 = x0(x, cond) + sum_l (w_l - 1) E^l L_l.                                                      (2)

sum_l E^l L_l = D, so equal weights are classifier-free guidance. The weights run from `high` at l = 0 to `low` at
l = n in a straight line.
"""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.broadcast import expand
from jaxdiff.denoiser import Memory
from jaxdiff.guidance.contrast import Contrast
from jaxdiff.prediction import Prediction, moved
from jaxdiff.process import Process
from jaxdiff.record import field, record

BINOMIAL = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)


@record
class FDG(Contrast):
    """Guidance with a weight for low frequencies and one for high ones; of images ``(B, H, W, C)``.

    Args:
      low, high: weights of the lowest and the highest band, ``()`` or one a sample ``(B,)``; data. 1 is the plain
        model. The paper has low weights below high ones.
      levels: n, halvings of the side, 1 or more; static.
      sequential: the branches one after the other, in less memory; static.

    Raises:
      ValueError: no level; (when called) data that are no images, or too small for so many.

    >>> FDG(1.5, 4.0, levels=0)
    Traceback (most recent call last):
    ...
    ValueError: fdg's levels are a whole number, 1 or more, got 0
    """

    low: ArrayLike
    high: ArrayLike
    levels: int = field(default=1, pytree_node=False)
    sequential: bool = field(default=False, pytree_node=False)
    name: ClassVar[str] = "fdg"

    def __post_init__(self) -> None:
        if not isinstance(self.levels, int) or self.levels < 1:
            raise ValueError(f"fdg's levels are a whole number, 1 or more, got {self.levels!r}")

    @property
    def weight(self) -> dict[str, ArrayLike]:
        """Both."""
        return {"low": self.low, "high": self.high}

    def combine(
        self, process: Process | None, x: Array, t: ArrayLike, parts: tuple[Prediction, ...], memory: Memory
    ) -> tuple[Prediction, Memory]:
        assert process is not None
        given, without = parts[0], parts[1]
        if x.ndim != 4 or min(x.shape[1:3]) < 2**self.levels:
            raise ValueError(
                f"fdg of {self.levels} levels is for images of at least {2**self.levels} pixels a side, got samples of "
                f"shape {x.shape[1:]}"
            )
        bands = pyramid(given.x0 - without.x0, self.levels)
        low, high = (jnp.asarray(w, x.dtype) - 1.0 for w in (self.low, self.high))
        change = jnp.zeros_like(x)
        for i, band in enumerate(bands):
            share = i / self.levels
            change = change + expand((1.0 - share) * high + share * low, x) * band
        return moved(process, t, given, change), memory


def pyramid(x: Array, levels: int) -> list[Array]:
    """E^l L_l of equation (1) for l = 0, ..., n, each shaped like x ``(B, H, W, C)``; they add up to x."""
    below, shapes, bands = x, [], []
    for _ in range(levels):
        shapes.append(below.shape)
        smaller = _halved(below)
        bands.append(_restored(below - _doubled(smaller, below.shape), shapes[:-1]))
        below = smaller
    return [*bands, _restored(below, shapes)]


def _restored(band: Array, shapes: list[tuple[int, ...]]) -> Array:
    for shape in reversed(shapes):
        band = _doubled(band, shape)
    return band


def _halved(x: Array) -> Array:
    """R: the binomial filter, then every other pixel."""
    return _blurred(x)[:, ::2, ::2]


def _doubled(x: Array, shape: tuple[int, ...]) -> Array:
    """E: enlarged bilinearly, then the binomial filter."""
    return _blurred(jax.image.resize(x, shape, "bilinear"))


def _blurred(x: Array) -> Array:
    """The binomial filter of width 5 along rows and columns, edges repeated."""
    for axis in (1, 2):
        edges = [(0, 0)] * x.ndim
        edges[axis] = (2, 2)
        wide = jnp.pad(x, edges, mode="edge")
        n = x.shape[axis]
        x = sum(weight * jax.lax.slice_in_dim(wide, i, i + n, axis=axis) for i, weight in enumerate(BINOMIAL))  # type: ignore[assignment]
    return x
