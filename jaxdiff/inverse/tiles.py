"""MultiDiffusion: pictures larger than a network was trained on, from predictions in windows that overlap.

Bar-Tal et al. 2023, "MultiDiffusion: Fusing Diffusion Paths for Controlled Image Generation",
https://arxiv.org/abs/2302.08113. With F_k(x) the k-th window of a large x, d a denoiser of windows, y_k its condition
there, and W_k a weight for each pixel of the window, not negative, the fused prediction is as near as it can be to that
of each window (their equation 3, for the prediction in the place of the step),

    p(x) = argmin_p  sum_k | sqrt(W_k) (F_k(p) - d(F_k(x), y_k)) |^2.                                (1)

It is a least-squares problem of its own at each pixel, whose answer is a mean (their equation 5): with F_k^-1 setting a
window into the large picture, 0 elsewhere,

    p(x) = sum_k V_k d(F_k(x), y_k),      V_k = F_k^-1(W_k) / sum_j F_j^-1(W_j).                     (2)

At each pixel the weights V_k add up to 1, so x = alpha x0 + sigma eps holds for the fused pair where it holds for those
of the windows (`jaxdiff.prediction`, equation 7). A step from t to s that is affine in x and the prediction, as DDIM's,
is one that fuses steps, which is how the paper states it; here every sampler, guidance and parameterization goes with
it. The last denoising is fused too.

With R regions, each with a mask M_r and a condition of its own (their section 4.2), there is one term of (1) for each
region of each window, of weight

    W_kr = F_k(M_r) W_k,       M_0 = max(0, 1 - sum_{r > 0} M_r) of the condition of the call.       (3)

Along an axis that is wrapped, windows go over the border to the other side, so that the picture continues itself. Where
the stride divides its length n, a picture that is moved around by a stride has the prediction moved likewise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.denoiser import Cond, Denoiser, Memory, begin, recall
from jaxdiff.guidance.base import Guidance, Nulls
from jaxdiff.prediction import Prediction
from jaxdiff.process import Process
from jaxdiff.record import field, record

Wrap = Literal["none", "x", "y", "both"]


@record
class Region:
    """A part of the picture that has a condition of its own, equation (3).

    Args:
      mask: M_r at the size of x, from 0 to 1, one a sample ``(B, H, W)`` or one for all ``(1, H, W)``; data.
      cond: what holds there, by name, the batch first, in the place of the call's; other names stay the call's.

    Raises:
      ValueError: a mask of another rank, or numbers beyond 0 and 1.

    >>> Region(jnp.ones((1, 8, 16)), {"label": jnp.array([3])}).mask.shape
    (1, 8, 16)
    """

    mask: ArrayLike
    cond: Mapping[str, Any]

    def __post_init__(self) -> None:
        if isinstance(self.mask, jax.core.Tracer):
            return
        mask = np.asarray(self.mask)
        if mask.ndim != 3 or not ((mask >= 0) & (mask <= 1)).all():
            raise ValueError(f"a region's mask is (B, H, W) or (1, H, W) from 0 to 1, got {mask.shape}")


@record
class Tiles(Guidance):
    """Predictions in overlapping windows, fused by equation (2): an element of guidance, behind those that guide.

    Args:
      window: height and width of a window, those that the network was trained on; static.
      stride: from one window to the next, down and across, from 1 to the window; static.
      wrap: the axes along which the picture continues on its other side: "x" (columns), "y" (rows), "both" or "none";
        static.
      together: so many windows are evaluated in one batch, the others after them in less memory; None: all; static.
      weight: W_k ``(1, h, w)``, the same for all windows, positive, such as `hann`; data. None: 1, as in the paper.
      regions: parts with conditions of their own.
      spatial: the conditions that lie under the picture, ``(B, H', W', ...)``, and are cut into windows with it: names,
        and the height and width that the network knows under a window, None for any; static.

    Raises:
      ValueError: a stride that leaves gaps, or sizes that are none; (when called) pictures that are smaller than a
        window, masks of another size or that leave a pixel out.

    >>> from jaxdiff import VP, GaussianDenoiser
    >>> tiles = Tiles((4, 4), (2, 2), wrap="x")
    >>> plain = GaussianDenoiser(VP(), 0.0, 1.0)
    >>> tiles(plain, plain, VP(), {})(jnp.ones((1, 4, 10, 1)), 0.5).x0.shape
    (1, 4, 10, 1)
    """

    window: tuple[int, int] = field(pytree_node=False)
    stride: tuple[int, int] = field(pytree_node=False)
    wrap: Wrap = field(default="none", pytree_node=False)
    together: int | None = field(default=None, pytree_node=False)
    weight: ArrayLike | None = None
    regions: tuple[Region, ...] = ()
    spatial: tuple[tuple[str, tuple[int | None, int | None]], ...] = field(default=(), pytree_node=False)

    def __post_init__(self) -> None:
        for name in ("window", "stride"):
            sides = tuple(getattr(self, name))
            object.__setattr__(self, name, sides)
            if len(sides) != 2 or not all(isinstance(side, int) and side >= 1 for side in sides):
                raise ValueError(f"{name} is (down, across) in pixels, each at least 1, got {sides}")
        if any(stride > side for stride, side in zip(self.stride, self.window, strict=True)):
            raise ValueError(f"a stride of {self.stride} leaves gaps between windows of {self.window}: take a smaller")
        if self.wrap not in ("none", "x", "y", "both"):
            raise ValueError(f"wrap is 'x', 'y', 'both' or 'none', got {self.wrap!r}")
        if self.together is not None and self.together < 1:
            raise ValueError(f"together is how many windows are in one batch, at least 1, got {self.together}")
        if self.weight is not None and not isinstance(self.weight, jax.core.Tracer):
            weight = np.asarray(self.weight)
            if weight.shape[1:] != self.window or not (np.isfinite(weight) & (weight > 0)).all():
                raise ValueError(f"weight is {(1, *self.window)} of positive numbers, one a pixel, got {weight.shape}")

    def __call__(self, denoise: Denoiser, plain: Denoiser, process: Process, nulls: Nulls) -> Denoiser:
        return Fused(denoise, self)

    def wraps(self) -> tuple[bool, bool]:
        """Whether the picture continues itself downwards, and to the right."""
        return self.wrap in ("y", "both"), self.wrap in ("x", "both")


class Paths(NamedTuple):
    """Where windows lie, and their weights.

    Attributes:
      rows: of each window's pixels ``(K, h)``.
      columns: likewise ``(K, w)``.
    """

    rows: np.ndarray
    columns: np.ndarray


def paths(size: tuple[int, ...], tiles: Tiles) -> Paths:
    """The windows of pictures of one size, row by row.

    Args:
      size: height and width of the picture.
      tiles: see `Tiles`.

    Raises:
      ValueError: a picture that is smaller than a window.

    >>> paths((4, 8), Tiles((4, 4), (4, 2))).columns[:, 0].tolist()
    [0, 2, 4]
    >>> paths((4, 8), Tiles((4, 4), (4, 2), wrap="x")).columns[:, 0].tolist()
    [0, 2, 4, 6]
    """
    if any(side < window for side, window in zip(size, tiles.window, strict=True)):
        raise ValueError(
            f"pictures of {size} are smaller than a window of {tiles.window}: take the model without tiles"
        )
    along = [
        (np.array(_starts(*each))[:, None] + np.arange(each[1])) % each[0]
        for each in zip(size, tiles.window, tiles.stride, tiles.wraps(), strict=True)
    ]
    down, across = (len(each) for each in along)
    return Paths(np.repeat(along[0], across, axis=0), np.tile(along[1], (down, 1)))


def _starts(size: int, window: int, stride: int, wrapped: bool) -> list[int]:
    """Where windows begin along one axis: all the way round, or the last one at the end."""
    if wrapped:
        return list(range(0, size, stride))
    return sorted({min(start, size - window) for start in range(0, size - window + stride, stride)})


def hann(window: tuple[int, int]) -> Array:
    """Hann's window ``(1, h, w)``, the product over both axes of sin^2(pi (i + 1/2)/n): a weight that falls smoothly to
    a window's border, so that neighbours fade into each other. At half a window's stride the weights of all add up to
    the same everywhere.

    >>> np.round(hann((1, 4))[0], 3).tolist()
    [[0.14..., 0.85..., 0.85..., 0.14...]]
    """
    down, across = (np.square(np.sin(np.pi * (np.arange(n) + 0.5) / n)) for n in window)
    return jnp.asarray(np.outer(down, across)[None], jnp.float32)


@record
class Fused:
    """The denoiser of equation (2).

    Args:
      denoise: the denoiser of windows, guided or not.
      tiles: see `Tiles`.

    >>> from jaxdiff import VP, GaussianDenoiser
    >>> fused = Fused(GaussianDenoiser(VP(), 0.0, 1.0), Tiles((4, 4), (2, 2), weight=hann((4, 4))))
    >>> fused(jnp.ones((1, 6, 8, 1)), 0.5).eps.shape
    (1, 6, 8, 1)
    """

    denoise: Denoiser
    tiles: Tiles

    def __call__(self, x: Array, t: ArrayLike, cond: Cond | None = None) -> Prediction:
        return self.recall(x, t, cond, ())[0]

    def begin(self, x: Array, cond: Cond | None = None) -> Memory:
        """See the top of `jaxdiff.denoiser`. One memory a window and region."""
        where = paths(x.shape[1:3], self.tiles)
        told = self._told(x, cond, where)

        def one(rows: Array, columns: Array) -> Memory:
            window = _cut(x, rows, columns)
            return tuple(begin(self.denoise, window, self._within(each, x, rows, columns)) for each in told)

        memory: Memory = jax.vmap(one)(*map(jnp.asarray, where))
        return memory if jax.tree.leaves(memory) else ()

    def recall(self, x: Array, t: ArrayLike, cond: Cond | None, memory: Memory) -> tuple[Prediction, Memory]:
        """See the top of `jaxdiff.denoiser`."""
        where, masks = paths(x.shape[1:3], self.tiles), self._masks(x.shape[1:3])
        told = self._told(x, cond, where)
        if len(where.rows) == 1 and len(told) == 1:  # the window is the picture
            only = jax.tree.map(lambda leaf: leaf[0], memory[0] if memory else ())
            prediction, after = recall(self.denoise, x, t, cond, only)
            return prediction, jax.tree.map(lambda leaf: leaf[None], (after,)) if memory else ()

        def one(path: tuple[Array, Array, Memory]) -> list[tuple[Prediction, Memory]]:
            rows, columns, kept = path
            window, kept = _cut(x, rows, columns), kept or ((),) * len(told)
            given = (self._within(each, x, rows, columns) for each in told)
            return [recall(self.denoise, window, t, *each) for each in zip(given, kept, strict=True)]

        # Windows are mapped over and not joined to the batch: what is one a sample, as a weight of guidance, stays so.
        together, each = self.tiles.together, (*map(jnp.asarray, where), memory)
        if together is None or together >= len(where.rows):
            found: list[tuple[Prediction, Memory]] = jax.vmap(one)(each)
        else:
            found = jax.lax.map(one, each, batch_size=together if together > 1 else None)
        fused = self._fused(x, [prediction for prediction, _ in found], masks, where)
        return fused, tuple(after for _, after in found) if memory else ()

    def _fused(self, x: Array, found: list[Prediction], masks: list[Array], where: Paths) -> Prediction:
        """Equation (2). Axes are (B, K, h, w, C): samples, windows, pixels."""
        places = where.rows[:, :, None], where.columns[:, None, :]
        w = jnp.ones((1, *self.tiles.window)) if self.tiles.weight is None else jnp.asarray(self.tiles.weight)
        weights = [mask[:, *places] * w[:, None] for mask in masks]  # W_kr
        added = [jnp.zeros_like(mask).at[:, *places].add(each) for mask, each in zip(masks, weights, strict=True)]
        total = sum(added[1:], added[0])
        shares = [each / total[:, *places] for each in weights]  # V_kr

        def fuse(*leaves: Array) -> Array:  # one a region, (K, B, h, w, C)
            whole = jnp.zeros_like(x, leaves[0].dtype, shape=(*x.shape[:3], leaves[0].shape[4]))
            for share, leaf in zip(shares, leaves, strict=True):
                whole = whole.at[:, *places].add(share[..., None].astype(leaf.dtype) * jnp.moveaxis(leaf, 0, 1))
            return whole

        fused: Prediction = jax.tree.map(fuse, *found)
        return fused

    def _masks(self, size: tuple[int, ...]) -> list[Array]:
        """M_0, M_1, ... of equation (3); without regions 1."""
        masks = [jnp.asarray(each.mask, jnp.float32) for each in self.tiles.regions]
        for mask in masks:
            if mask.shape[1:] != size:
                raise ValueError(f"a region's mask is (1, {size[0]}, {size[1]}), as its picture is, got {mask.shape}")
        rest = jnp.maximum(jnp.ones((1, *size)) - sum(masks, jnp.zeros((1, *size))), 0.0)
        return [jnp.broadcast_to(each, rest.shape) for each in (rest, *masks)]

    def _told(self, x: Array, cond: Cond | None, where: Paths) -> list[Cond | None]:
        """The conditions of each region, the picture's own first."""
        for name, known in self.tiles.spatial:
            for leaf in jax.tree.leaves((cond or {}).get(name)):
                _check_places(name, known, leaf.shape[1:3], x.shape[1:3], self.tiles.window, where)
        told: list[Cond | None] = [cond]
        for region in self.tiles.regions:
            if unknown := sorted(set(region.cond) - set(cond or {})):
                raise ValueError(f"a region has {unknown}, and the picture's conditions are {sorted(cond or {})}")
            if any(leaf.shape[:1] != x.shape[:1] for leaf in jax.tree.leaves(dict(region.cond))):
                raise ValueError(f"a region's conditions are one a sample, of {len(x)}; and tiles stand behind cfg")
            told.append({**(cond or {}), **region.cond})
        return told

    def _within(self, cond: Cond | None, x: Array, rows: Array, columns: Array) -> Cond | None:
        """Conditions, those under the picture cut to a window."""

        def part(under: Array) -> Array:
            down, across = (
                (places[0] * n // side + jnp.arange(window * n // side)) % n
                for places, n, side, window in zip(
                    (rows, columns), under.shape[1:3], x.shape[1:3], self.tiles.window, strict=True
                )
            )
            return _cut(under, down, across)

        if cond is None:
            return None
        under = dict(self.tiles.spatial)
        return {name: jax.tree.map(part, each) if name in under else each for name, each in cond.items()}


def _check_places(
    name: str,
    known: tuple[int | None, ...],
    size: tuple[int, ...],
    whole: tuple[int, ...],
    window: tuple[int, int],
    where: Paths,
) -> None:
    """Windows begin and end at pixels of a condition of another size, and have as many of them as the network knows."""
    for taught, n, side, length, places in zip(known, size, whole, window, where, strict=True):
        if (places[:, 0] * n % side).any() or length * n % side:
            raise ValueError(
                f"{name} has {n} pixels under {side}, and a window does not begin and end between two of them: take a "
                f"stride, a window and a size that {side // np.gcd(n, side)} divides"
            )
        if taught is not None and n * length // side != taught:
            raise ValueError(
                f"{name} is {size} under a picture of {whole}, and the network knows {known} under {window}: give one "
                f"of {tuple(t if t is None else t * s // w for t, s, w in zip(known, whole, window, strict=True))}"
            )


def _cut(x: Array, rows: Array, columns: Array) -> Array:
    """F_k: ``(B, H, W, ...) -> (B, h, w, ...)``."""
    return x[:, rows[:, None], columns[None, :]]
