"""Semantic maps: for each pixel the class that it is of, as the condition of a network.

With K classes, c the id of a pixel and v that of pixels without a class ("void": 255 in PASCAL VOC and Cityscapes),

    c' = K where c = v,      else c                                                                  (1)

A network makes K channels of it, channel k being 1 where c' = k and 0 elsewhere, so that a void pixel is zero in all of
them; so is a map that is dropped, which is K everywhere (`jaxdiff.networks.ControlNet`, `jaxdiff.networks.Map`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike, NDArray

from jaxdiff.codecs.base import Codec
from jaxdiff.codecs.beside import BesideData
from jaxdiff.codecs.default import default_codec
from jaxdiff.codecs.recipe import Find, Read, built, noted, resolved
from jaxdiff.data.maps import MAP
from jaxdiff.data.sources import Source, name_of
from jaxdiff.networks.control import PICTURE
from jaxdiff.record import field, record
from jaxdiff.spec import Spec, Specs, as_array, whole


@record
class SemanticMap(BesideData):
    """The codec of data with a map of classes, ``"map"`` ``(H, W)`` in a record; another codec does all but the map.

    `encode` makes the condition ``(B, H, W)`` int32 of it, by equation (1). What mirrors the picture mirrors the map.

    Args:
      inner: the codec of the data, `Images` or `Latents`; None: the one that goes with them.
      classes: K; ids are from 0 to K - 1.
      void: the id of pixels without a class, in no channel; None: each pixel has one.
      name: of the condition, a ControlNet's or that of a `jaxdiff.networks.Map`.
      size: (H, W) of the maps, noted when training begins.

    Raises:
      ValueError: K below 1, a void that is a class, or an inner codec of text, which goes around this one.

    >>> from jaxdiff.codecs import Images
    >>> codec = SemanticMap(Images((1, 3, 1)), classes=3, void=255)
    >>> codec.encode({"x": np.zeros((1, 1, 3, 1), np.uint8), "map": np.uint8([[[0, 2, 255]]])})["control"].tolist()
    [[[0, 2, 3]]]
    """

    inner: Any
    classes: int = field(pytree_node=False)
    void: int | None = field(default=None, pytree_node=False)
    name: str = field(default=PICTURE, pytree_node=False)
    size: tuple[int | None, int | None] = field(default=(None, None), pytree_node=False)

    def __post_init__(self) -> None:
        whole("classes", self.classes)
        object.__setattr__(self, "size", tuple(self.size))
        if self.void is not None and 0 <= self.void < self.classes:
            raise ValueError(f"void: {self.void} is one of the {self.classes} classes: name an id that is none of them")
        if hasattr(self.inner, "text_key"):
            raise ValueError(
                "inner: a codec of text goes around that of the map: WithText(path, inner=SemanticMap(...))"
            )

    @property
    def told(self) -> tuple[str, ...]:  # type: ignore[override]
        """The map."""
        return (self.name,)

    @property
    def stored(self) -> Mapping[str, Spec]:
        """What a record must hold: ids of classes, or void."""
        return {MAP: Spec((None, None), "int32", 0, self.classes - 1, self.void)}

    @property
    def spec(self) -> Specs:
        """As the inner codec's, and the map; its null is K."""
        inner: Specs = {"x": Spec((None,))} if self.inner is None else self.inner.spec
        return {**inner, self.name: Spec(self.size, "int32", 0, self.classes - 1, self.classes)}

    @property
    def key(self) -> str:
        """Of what the inner codec caches."""
        key: str = self.inner.key
        return key

    def noted(self, saved: Any) -> Any:
        """With what a saved one has noted of its inner codec."""
        if not isinstance(saved, SemanticMap):
            return self
        return dataclasses.replace(self, inner=saved.inner if self.inner is None else noted(self.inner, saved.inner))

    def resolved(self, source: Source, find: Find, *, flip: bool = False) -> SemanticMap:
        """With the size of the source's maps, and the inner codec resolved.

        Raises:
          ValueError: data without maps.
        """
        if MAP not in source.spec:
            raise ValueError(f"{name_of(source)} has no maps; its conditions: {', '.join(source.spec)}")
        if self.inner is None:
            inner: Any = default_codec(source, flip=flip)
        else:
            inner = resolved(self.inner, source, find, flip=flip)
        height, width = source.spec[MAP].shape
        return dataclasses.replace(self, inner=inner, size=(height, width))

    def build(self, read: Read) -> tuple[SemanticMap, Codec]:
        """The codec, by its inner one's weights where that has some."""
        recipe, inner = built(self.inner, read)
        return dataclasses.replace(self, inner=recipe), dataclasses.replace(self, inner=inner)

    def encode(self, record: Mapping[str, Any], key: Array | None = None) -> dict[str, Any]:
        """Records ``{"x": ..., "map": whole numbers (B, H, W), ...}``; without a map, as the inner codec does."""
        if MAP not in record:
            return dict(self.inner.encode(record, key))
        as_image = jnp.asarray(record[MAP])[..., None]  # (B, H, W, 1), which is mirrored as x is
        batch = dict(self.inner.encode({**record, MAP: as_image}, key))
        ids = batch.pop(MAP)[..., 0].astype(jnp.int32)
        return {**batch, self.name: ids if self.void is None else jnp.where(ids == self.void, self.classes, ids)}

    def ids(self, given: ArrayLike) -> NDArray[Any]:
        """Equation (1) of a person's map ``(H, W)``, or of several ``(n, H, W)``.

        Raises:
          ValueError: a picture with its colours.
        """
        found = as_array(self.name, given)
        if found.ndim == 3 and found.shape[:2] == self.size != found.shape[1:]:
            raise ValueError(
                f"{self.name} is a picture {found.shape}, expected the id of a class at each pixel, {self.size}"
            )
        return found if self.void is None else np.where(found == self.void, self.classes, found)

    def sized(self, x: Any) -> Any:
        """The same for records ``{"x": x}`` of another size, where the inner codec has this."""
        return dataclasses.replace(super().sized(x), size=(None, None))

    def cached_spec(self, stored: Specs) -> Mapping[str, Spec]:
        """As the inner codec's, for which a map is an image.

        Raises:
          ValueError: as there, of mirrored ones.
        """
        if not hasattr(self.inner, "cached_spec"):
            return {}
        ids = stored[MAP]
        assert isinstance(ids, Spec)
        found: Mapping[str, Spec] = self.inner.cached_spec({**stored, MAP: Spec((*ids.shape, 1), ids.dtype)})
        return found


def ids_of_maps(codec: Any) -> dict[str, Callable[[ArrayLike], NDArray[Any]]]:
    """By the name of its condition `SemanticMap.ids`, where a codec is or holds one; else nothing.

    >>> from jaxdiff.codecs import Images
    >>> ids_of_maps(SemanticMap(Images((8, 8, 1)), classes=3, void=255))["control"]([[2, 255]]).tolist()
    [[2, 3]]
    """
    while codec is not None and not isinstance(codec, SemanticMap):
        codec = getattr(codec, "inner", None)
    return {} if codec is None else {codec.name: codec.ids}
