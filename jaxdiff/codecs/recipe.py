"""Codecs that use frozen weights: what a configuration holds of them, and how they are made of it.

A configuration holds a recipe: where the weights lie, their checkpoint and their checksum. A recipe goes through three
functions, each of which passes any other codec on as it is, so that recipes may hold codecs that are recipes too:

    noted     what a saved configuration has noted of the same recipe          when a run goes on
    resolved  what only the data and the folder of the weights know            before training
    built     the codec, whose leaves are the weights, and the recipe with     in training, and when a run is loaded
              their checkpoint and checksum noted

The weights are arguments of every jitted function, as all leaves of a codec. They are never saved with the run.
Whoever calls `built` says how weights are read (`jaxdiff.train.initial`): this module reads no runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from jaxdiff.codecs.base import Codec
from jaxdiff.data.sources import Source
from jaxdiff.spec import Spec, Specs


class Weights(NamedTuple):
    """Frozen weights as they were read.

    Attributes:
      net: the pure functions that take them.
      params: on their devices.
      step: of their checkpoint.
      checksum: of all of them.
    """

    net: Any
    params: Any
    step: int
    checksum: str


Read = Callable[[str, int | None, str | None, str], Weights]
"""``(path, step, checksum, part) -> Weights``: a step of None is the newest; weights of another checksum are refused.
The part is the name of a network's folder in a published model, such as "vae"; a run has one network alone."""
Find = Callable[[str, str], tuple[Any, Path]]
"""``(path, part) -> (configuration, folder)`` of what lies there."""


class Recipe(Protocol):
    """What a configuration holds of a codec that uses frozen weights: a frozen dataclass that JSON can hold."""

    @property
    def spec(self) -> Specs:
        """As the codec's; before the data are known, with None for sizes that depend on them."""
        ...

    @property
    def key(self) -> str:
        """What the frozen weights make of a record, as text; other weights, another key (`jaxdiff.data.encoded`)."""
        ...

    def noted(self, saved: Any) -> Any:
        """This recipe with the step, the checksum and the numbers that ``saved``, the codec of a saved configuration,
        has noted, where it is of the same kind and nothing else is asked for."""
        ...

    def resolved(self, source: Source, find: Find, *, flip: bool = False) -> Any:
        """This recipe with what the data and the folder of the weights know: shapes, statistics.

        Raises:
          ValueError: they do not fit.
        """
        ...

    def build(self, read: Read) -> tuple[Any, Codec]:
        """This recipe with step and checksum noted, and the codec."""
        ...


class Cacheable(Protocol):
    """What a codec may have besides: work that is the same in every epoch, done once and kept (`jaxdiff.data.encoded`).

    `encode` takes records with these arrays in the place of those that they are made of.
    """

    def cached_spec(self, stored: Specs) -> Mapping[str, Spec]:
        """Of the arrays that `precompute` makes of records with these specs; none where there is nothing to do.

        Raises:
          ValueError: records whose encoding differs from epoch to epoch in a way that cannot be kept.
        """
        ...

    def precompute(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """The arrays of records, pure JAX."""
        ...


def noted(codec: Any, saved: Any) -> Any:
    """`Recipe.noted`; any other codec as it is.

    >>> from jaxdiff.codecs import Points
    >>> noted(Points(), None)
    Points(shape=(2,))
    """
    return codec.noted(saved) if hasattr(codec, "noted") else codec


def resolved(codec: Any, source: Source, find: Find | None, *, flip: bool = False) -> Any:
    """`Recipe.resolved`; any other codec as it is."""
    return codec.resolved(source, find, flip=flip) if is_recipe(codec) else codec


def built(codec: Any, read: Read | None) -> tuple[Any, Codec]:
    """`Recipe.build`; any other codec, twice, and nothing is read.

    >>> from jaxdiff.codecs import Points
    >>> recipe, codec = built(Points(), None)
    >>> recipe is codec
    True
    """
    return codec.build(read) if is_recipe(codec) else (codec, codec)


def is_recipe(codec: Any) -> bool:
    """Whether a configuration's codec is a recipe."""
    return hasattr(codec, "build")


def innermost(codec: Any) -> Any:
    """The codec of the data alone, of one that others are around.

    >>> from jaxdiff.codecs import Images, SemanticMap
    >>> innermost(SemanticMap(Images((8, 8, 1)), classes=3)).shape
    (8, 8, 1)
    """
    while hasattr(codec, "inner"):
        codec = codec.inner
    return codec
