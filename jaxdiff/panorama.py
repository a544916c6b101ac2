"""Pictures larger than a model was trained on: panoramas, textures without a border, and more around a picture.

    panorama(model, 0, 4, (28, 112), cond={"label": 3})                    four pictures, drawn in windows that overlap
    panorama(model, 0, 4, (56, 56), wrap="both")                           that continue themselves on all sides
    panorama(model, 0, 4, (28, 84), cond={"label": 0}, regions=[(mask, {"label": 7})])
    panorama(model, 0, 4, (28, 84), **placed(picture, (28, 84)))           what lies beside a picture

Windows have the size that the network was trained on; their predictions are fused at each evaluation, so that samplers
and guidance are as for small pictures: `jaxdiff.inverse.tiles`. In latents it is windows of latents, which are decoded
in tiles.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike

from jaxdiff.codecs.tiles import OVERLAP
from jaxdiff.inverse.tiles import Region, Tiles, Wrap, hann
from jaxdiff.methods import Guide, guidance_of
from jaxdiff.model import Model
from jaxdiff.plan import stored_shape
from jaxdiff.spec import Condition, Spec, whole


def panorama(
    model: Model,
    key: Array | int,
    n: int,
    size: tuple[int, int],
    *,
    stride: int | tuple[int, int] | None = None,
    wrap: Wrap = "none",
    smooth: bool = True,
    together: int | None = None,
    regions: Sequence[tuple[ArrayLike, Mapping[str, Any]]] = (),
    cond: Mapping[str, Any] | None = None,
    guide: Guide | Sequence[Guide] | None = None,
    **options: Any,
) -> Any:
    """Draws pictures of another size, in windows of the one that the model was trained on.

    Args:
      model: of images, in pixels or latents. Of a run it is ``run.model``.
      key, n, cond, guide: as `Model.sample`. A condition that lies under the picture, as a low resolution, is as much
        larger as the picture is.
      size: height and width, pixels, at least the model's.
      stride: from one window to the next, pixels, down and across or one for both; None: half a window.
      wrap: the axes along which pictures continue themselves: "x", "y", "both" or "none".
      smooth: windows count less towards their borders (`jaxdiff.inverse.tiles.hann`); else all pixels alike, as in the
        paper.
      together: so many windows are evaluated in one batch; None: all.
      regions: pairs of a mask ``(H, W)`` or ``(n, H, W)`` from 0 to 1, and what holds there: conditions as in ``cond``.
      options: of `Model.sample`, such as ``sampler`` and ``steps``; ``image`` and ``mask`` have the new size.

    Returns:
      As `Model.sample`.

    Raises:
      ValueError: a size, a stride or a condition that does not fit the model.

    >>> from jaxdiff import Flow, NetworkDenoiser, Velocity
    >>> from jaxdiff.codecs import Images
    >>> from jaxdiff.networks import UNet, functional
    >>> net = functional(UNet(image_size=8, in_channels=1, width=8, multipliers=(1,), blocks=1,
    ...                       attention_resolutions=()))
    >>> model = Model(NetworkDenoiser(net, net.init(jax.random.key(0)), Flow(), Velocity()), Images((8, 8, 1)))
    >>> panorama(model, 0, 2, (8, 20), wrap="x", steps=3)["x"].shape
    (2, 8, 20, 1)
    """
    wide = larger(model, size, wrap=wrap)
    n = whole("n", n)
    tiles = tiles_of(model, stride=stride, wrap=wrap, smooth=smooth, together=together)
    if regions:
        tiles = dataclasses.replace(tiles, regions=tuple(_region(wide, n, *each) for each in regions))
    elements = guidance_of((model.defaults.guide if cond else ()) if guide is None else guide)
    return wide.sample(key, n, cond, guide=[*elements, tiles], **options)


def larger(model: Model, size: tuple[int, int], *, wrap: Wrap = "none") -> Model:
    """The model for pictures of another size, whose guidance is to end with `tiles_of` it.

    Args:
      model: of images.
      size: height and width, pixels.
      wrap: see `panorama`.

    Raises:
      ValueError: a model of no images, or a size that is none, or smaller than the model's.

    >>> from jaxdiff import Flow, NetworkDenoiser, Velocity
    >>> from jaxdiff.codecs import Images
    >>> from jaxdiff.networks import UNet, functional
    >>> net = functional(UNet(image_size=8, in_channels=1, width=8, multipliers=(1,), attention_resolutions=()))
    >>> model = Model(NetworkDenoiser(net, None, Flow(), Velocity()), Images((8, 8, 1)))
    >>> larger(model, (8, 20)).shape
    (8, 20, 1)
    """
    stored = stored_shape(model.codec, model.shape)
    if len(stored) != 3 or not hasattr(model.codec, "sized"):
        raise ValueError(f"a larger size is of models of images, and this one draws {stored}: leave it out")
    if len(size) != 2 or any(isinstance(side, bool) or not isinstance(side, int | np.integer) for side in size):
        raise ValueError(f"size is (height, width) in pixels, such as ({stored[0]}, {4 * stored[1]}), got {size!r}")
    if size[0] < stored[0] or size[1] < stored[1]:
        raise ValueError(f"size {tuple(size)} is below the {stored[:2]} that the model was trained on: give a larger")
    codec: Any = model.codec
    if getattr(codec, "low_resolution", None) is not None:  # made in training alone
        codec = dataclasses.replace(codec, low_resolution=None, augment=0.0, blur=None)
    codec = codec.sized(jax.ShapeDtypeStruct((1, *size, stored[2]), jnp.uint8))
    if hasattr(codec, "tile"):  # latents
        side = min(model.shape[:2])
        seen = tuple(side // 2 if wrapped else 0 for wrapped in Tiles((1, 1), (1, 1), wrap).wraps())
        codec = dataclasses.replace(codec, tile=codec.tile or max(side, OVERLAP), wrap=seen)
    specs = {name: _of_any_size(each) for name, each in model.conditions.items()}
    return dataclasses.replace(model, codec=codec, cond=specs, draw_cond=None)


def tiles_of(
    model: Model,
    *,
    stride: int | tuple[int, int] | None = None,
    wrap: Wrap = "none",
    smooth: bool = True,
    together: int | None = None,
) -> Tiles:
    """The windows of a model; arguments as `panorama`.

    Raises:
      ValueError: a stride that leaves gaps, or that is no whole number of latents.

    >>> from jaxdiff import Flow, NetworkDenoiser, Velocity
    >>> from jaxdiff.codecs import Images
    >>> from jaxdiff.networks import UNet, functional
    >>> net = functional(UNet(image_size=8, in_channels=1, width=8, multipliers=(1,), attention_resolutions=()))
    >>> model = Model(NetworkDenoiser(net, None, Flow(), Velocity()), Images((8, 8, 1)))
    >>> tiles_of(model).stride, tiles_of(model, stride=2, wrap="x").wrap
    ((4, 4), 'x')
    """
    window = model.shape[0], model.shape[1]
    factor = stored_shape(model.codec, model.shape)[0] // window[0]  # pixels a side of x's
    sides = (max(1, window[0] // 2), max(1, window[1] // 2))
    if stride is not None:
        asked = tuple(stride) if isinstance(stride, tuple | list) else (stride, stride)
        if any(not isinstance(each, int) or each % factor for each in asked):
            raise ValueError(
                f"stride is in whole latents of {factor} pixels, got {stride}: take a multiple of {factor}"
            )
        sides = (asked[0] // factor, asked[1] // factor)
    spatial = tuple((name, _sides(each)) for name, each in model.conditions.items() if _of_any_size(each) != each)
    weight = hann(window) if smooth else None
    return Tiles(window, sides, wrap, together, weight, spatial=spatial)


def placed(picture: ArrayLike, size: tuple[int, int], at: tuple[int, int] | None = None) -> dict[str, Any]:
    """A picture on a larger canvas, and the mask that has the rest drawn: arguments of `panorama` for outpainting.

    Args:
      picture: uint8 ``(H, W, C)``.
      size: height and width of the canvas.
      at: row and column of its upper left corner; None: the middle.

    Returns:
      ``image`` uint8 ``(height, width, C)``, and ``mask`` ``(height, width)``: 1 where it is to be drawn.

    Raises:
      ValueError: a picture that does not lie on the canvas.

    >>> placed(np.full((2, 2, 1), 9, np.uint8), (2, 4), at=(0, 1))["mask"].tolist()
    [[1, 0, 0, 1], [1, 0, 0, 1]]
    """
    known = np.asarray(picture)
    if known.ndim != 3:
        raise ValueError(f"a picture is (H, W, C), got {known.shape}")
    height, width = known.shape[:2]
    top, left = ((size[0] - height) // 2, (size[1] - width) // 2) if at is None else at
    if min(top, left) < 0 or top + height > size[0] or left + width > size[1]:
        raise ValueError(f"a picture of {height}x{width} at {(top, left)} does not lie on a canvas of {tuple(size)}")
    image, mask = np.zeros((*size, known.shape[2]), known.dtype), np.ones(size, np.uint8)
    image[top : top + height, left : left + width], mask[top : top + height, left : left + width] = known, 0
    return {"image": image, "mask": mask}


def _of_any_size(condition: Condition) -> Condition:
    """The condition with open sides where it lies under the picture: an image (H, W, C), or a map of classes (H, W)."""
    if not isinstance(condition, Spec):
        return {name: _open_sides(each) for name, each in condition.items()}
    return _open_sides(condition)


def _sides(condition: Condition) -> tuple[int | None, int | None]:
    """Height and width of a condition that lies under the picture."""
    if not isinstance(condition, Spec):  # pictures of several ControlNets
        return (None, None)
    return condition.shape[0], condition.shape[1]


def _open_sides(condition: Spec) -> Spec:
    rank = len(condition.shape)
    if rank == 3 or (rank == 2 and condition.dtype == "int32"):
        return dataclasses.replace(condition, shape=(None, None, *condition.shape[2:]))
    return condition


def _region(model: Model, n: int, mask: ArrayLike, cond: Mapping[str, Any]) -> Region:
    """A region of a mask in pixels and what a person says of it."""
    sides = stored_shape(model.codec, model.shape)[:2]
    found = np.asarray(mask, np.float32)
    if found.shape not in (sides, (n, *sides)):
        raise ValueError(f"a region's mask is {sides}, or {n} of them, got {found.shape}")
    steps = [side // own for side, own in zip(sides, model.shape[:2], strict=True)]
    found = found.reshape(-1, *sides)[:, :: steps[0], :: steps[1]]
    return Region(jnp.asarray(found), model.given(n, cond, fill=False))
