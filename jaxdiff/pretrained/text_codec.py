"""The frozen text encoders of a published model beside the codec of the data, for training.

As `jaxdiff.codecs.WithText`, with the encoders, tokenizers and states of `jaxdiff.pretrained.prompts`: the ids of all
tokenizers stand one after the other,

    ids = [ids of the first (L_1), ids of the second (L_2), ...],      text = join(E_1(ids_1), E_2(ids_2), ...)   (1)

A word that is trained has rows V_i after the table T_i of each encoder of CLIP, so that its ids are those after T_i's:

    E_i looks up its ids in [T_i; V_i]                                                                            (2)
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike, NDArray

from jaxdiff.codecs.base import Codec
from jaxdiff.codecs.recipe import Find, Read, built, noted, resolved
from jaxdiff.codecs.text import TextBesideData
from jaxdiff.data.added_words import WithWords
from jaxdiff.data.buckets import SIZES
from jaxdiff.data.sources import Source
from jaxdiff.data.text import TEXT
from jaxdiff.data.tokenizers import TokenizerFile
from jaxdiff.networks.text import CLIPText, TextEncoder
from jaxdiff.pretrained.kinds import join_of
from jaxdiff.pretrained.told_sizes import NAMES, told_of, told_sizes
from jaxdiff.record import field, record
from jaxdiff.spec import Condition, Spec, Specs


@dataclass(frozen=True)
class Several:
    """Several tokenizers as one: their ids stand one after the other.

    Args:
      tokenizers: in order.

    Raises:
      ValueError: none.
    """

    tokenizers: tuple[TokenizerFile | WithWords, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "tokenizers", tuple(self.tokenizers))
        if not self.tokenizers:
            raise ValueError("tokenizers: at least one")

    @property
    def lengths(self) -> tuple[int, ...]:
        """L_i of equation (1)."""
        return tuple(each.length for each in self.tokenizers)

    @property
    def length(self) -> int:
        """Ids of a caption, of all."""
        return sum(self.lengths)

    @property
    def size(self) -> int:
        """Ids of the largest vocabulary."""
        return max(each.size for each in self.tokenizers)

    @property
    def padding(self) -> int:
        """Of the first."""
        return self.tokenizers[0].padding

    @property
    def null(self) -> tuple[int, ...]:
        """The ids of the empty caption."""
        return tuple(self.encode([""])[0].tolist())

    def noted(self, saved: Any) -> Any:
        """With the checksums that saved ones have noted."""
        if not isinstance(saved, Several) or len(saved.tokenizers) != len(self.tokenizers):
            return self
        pairs = zip(self.tokenizers, saved.tokenizers, strict=True)
        return Several(tuple(mine.noted(theirs) for mine, theirs in pairs))

    def resolved(self, texts: Any) -> Several:
        """With the checksums of their files."""
        return Several(tuple(each.resolved(texts) for each in self.tokenizers))

    def ids(self, text: str) -> list[int]:
        """All ids of one caption, each tokenizer's filled up to its length: more than `length` where one is cut."""
        found: list[int] = []
        for each in self.tokenizers:
            mine = each.ids(text)
            found += [*mine, *[each.padding] * (each.length - len(mine))]
        return found

    def unknown_in(self, text: str) -> list[str]:
        """The parts of a caption that the first has no id for."""
        return self.tokenizers[0].unknown_in(text)

    def encode(self, texts: Sequence[str]) -> NDArray[np.int32]:
        """Ids ``(B, L)``."""
        return np.concatenate([each.encode(texts) for each in self.tokenizers], axis=1)


@dataclass(frozen=True)
class PublishedText:
    """The text encoders of a published model, for a configuration's ``codec``.

    Args:
      path: the model's folder.
      kind: the class of its pipeline.
      inner: the codec of the data.
      parts: the folders of its encoders.
      nets: their pure functions, with the states that are taken.
      lengths: L_i of equation (1).
      width: channels of a token, where the kind needs it.
      sizes: the conditions by which the network is told the size of the data (`jaxdiff.pretrained.told_sizes`).
      side: of the data's square pictures, in pixels.
      scored: whether its time_ids end with an aesthetic score.
      checksums: of the weights, noted when training began; other weights are refused.
      empty: ids of the empty text. A caption that is dropped becomes it, and guidance leads away from it. (): zeros
        take its place, as in Stable Diffusion XL.
      vectors: rows of V_i, where a word is trained: the network then takes ids, and runs the encoders itself
        (`jaxdiff.pretrained.adapters.inversion`).
    """

    path: str
    kind: str
    inner: Any
    parts: tuple[str, ...]
    nets: tuple[Any, ...]
    lengths: tuple[int, ...]
    width: int = 0
    sizes: tuple[str, ...] = ()
    side: int = 0
    scored: bool = False
    checksums: tuple[str, ...] = ()
    empty: tuple[int, ...] = ()
    vectors: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", os.fspath(self.path))

    @property
    def reads(self) -> tuple[str, ...]:
        """What it makes of what is stored under the same name: text."""
        return (TEXT,)

    @property
    def spec(self) -> Specs:
        """As the inner codec's, and text (1)."""
        return {**self.inner.spec, **_spec(self)}

    @property
    def key(self) -> str:
        """Of what the inner codec caches."""
        key: str = self.inner.key
        return key

    @property
    def clip(self) -> dict[str, TextEncoder]:
        """Those encoders that are CLIP's, by their folders."""
        both = zip(self.parts, self.nets, strict=True)
        return {part: net for part, net in both if isinstance(net.config, CLIPText)}

    @property
    def text_key(self) -> str:
        """Of text (1) that is kept."""
        return f"text {self.kind} {self.checksums} {self.lengths} {self.nets}"

    @property
    def negative(self) -> dict[str, Any]:
        """What guidance leads away from: the empty text, or zeros in its place."""
        return {TEXT: ""} if self.empty else {}

    def decode(self, x0: Array, cond: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The inner codec's, where that is no recipe."""
        decoded: dict[str, Any] = self.inner.decode(x0, cond)
        return decoded

    def noted(self, saved: Any) -> Any:
        """With what a saved recipe has noted; the path may be another, if the weights are the same."""
        if not isinstance(saved, PublishedText) or self.checksums:
            return self
        return dataclasses.replace(self, inner=noted(self.inner, saved.inner), checksums=saved.checksums)

    def resolved(self, source: Source, find: Find, *, flip: bool = False) -> PublishedText:
        """With the inner codec resolved."""
        return dataclasses.replace(self, inner=resolved(self.inner, source, find, flip=flip))

    def build(self, read: Read) -> tuple[PublishedText, Codec]:
        """The codec, by the encoders' weights."""
        recipe, inner = built(self.inner, read)
        known = self.checksums or (None,) * len(self.parts)
        weights = [read(self.path, 0, each, part) for part, each in zip(self.parts, known, strict=True)]
        recipe = dataclasses.replace(self, inner=recipe, checksums=tuple(each.checksum for each in weights))
        return recipe, PublishedTextAndData(inner, tuple(each.params for each in weights), recipe)


def text_of(recipe: PublishedText, params: Sequence[Any], ids: Array, words: Mapping[str, Array] | None = None) -> Any:
    """Text (1) of ids ``(B, L)``.

    Args:
      recipe: which encoders.
      params: of each.
      ids: of all tokenizers, one after the other.
      words: V_i ``(k, width)`` of equation (2) by the encoders' folders; None: there are none.
    """
    states, start = [], 0
    for part, net, weights, length in zip(recipe.parts, recipe.nets, params, recipe.lengths, strict=True):
        if words is not None and part in words:
            net, weights = _longer(net, weights, words[part])
        mine = ids[:, start : start + length]
        start += length
        mask = (mine != 0).astype(jnp.float32)
        masked = recipe.kind.startswith("PixArt")
        states.append({**net.apply(weights, mine, mask if masked else None), "mask": mask})
    join = join_of(recipe.kind, width=recipe.width, length=recipe.lengths[-1])
    assert join is not None
    return join(states)


def _longer(net: TextEncoder, params: Mapping[str, Any], rows: Array) -> tuple[TextEncoder, dict[str, Any]]:
    """An encoder with equation (2)'s table."""
    table = params["tokens"]["embedding"]
    whole = jnp.concatenate([table, rows.astype(table.dtype)])
    config = dataclasses.replace(net.config, vocabulary=len(whole))
    return TextEncoder(config), {**params, "tokens": {**params["tokens"], "embedding": whole}}


def _spec(recipe: PublishedText) -> Specs:
    params = [jax.eval_shape(net.init, jax.random.key(0)) for net in recipe.nets]
    ids = jax.ShapeDtypeStruct((1, sum(recipe.lengths)), jnp.int32)
    made = jax.eval_shape(functools.partial(text_of, recipe), params, ids)
    specs: dict[str, Condition] = {TEXT: {name: Spec(leaf.shape[1:], null=0.0) for name, leaf in made.items()}}
    return {**specs, **{name: Spec((len(numbers),)) for name, numbers in _sizes(recipe).items()}}


def _sizes(recipe: PublishedText) -> dict[str, list[float]]:
    return told_sizes(recipe.sizes, recipe.side, recipe.side, scored=recipe.scored)


@record
class PublishedTextAndData(TextBesideData):
    """The codec that `PublishedText` stands for, its weights read.

    Args:
      inner: the codec of the data.
      params: of each encoder.
      recipe: what it stands for; static.
      words: V_i of equation (2) by the encoders' folders, once they are trained.
    """

    inner: Any
    params: tuple[Any, ...]
    recipe: PublishedText = field(pytree_node=False)
    words: Any = None

    told: ClassVar[tuple[str, ...]] = (TEXT, *NAMES)

    @property
    def spec(self) -> Specs:
        """As the inner codec's, and text (1)."""
        return {**self.inner.spec, **_spec(self.recipe)}

    def text(self, ids: ArrayLike) -> Any:
        """Text (1) of ids ``(B, L)``; the ids themselves while a word is trained."""
        if self.recipe.vectors and self.words is None:
            return jnp.asarray(ids)
        return text_of(self.recipe, self.params, jnp.asarray(ids), self.words)

    def nulls(self) -> dict[str, Any]:
        """What the network is told where captions are dropped, one row of it."""
        return {TEXT: self.text(jnp.array([self.recipe.empty]))} if self.recipe.empty else {}

    def encode(self, record: Mapping[str, Any], key: Array | None = None) -> dict[str, Any]:
        """As of other text, and the sizes: each record's own, where it has some (`jaxdiff.data.buckets.SIZES`)."""
        batch = super().encode({name: value for name, value in record.items() if name != SIZES}, key)
        if SIZES in record:
            return {**batch, **told_of(self.recipe.sizes, record[SIZES], scored=self.recipe.scored)}
        for name, numbers in _sizes(self.recipe).items():
            batch[name] = jnp.broadcast_to(jnp.asarray(numbers)[None], (len(batch["x"]), len(numbers)))
        return batch
