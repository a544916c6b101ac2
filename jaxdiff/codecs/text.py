"""Text through a frozen encoder: ids become states once a batch, outside of the gradient.

With ids i_1 ... i_L of a caption, E the encoder, and m_j = 1 up to the caption's end and 0 on padding,

    h = E(i),   or E(i, m) where the encoder is to see no padding                          (1)
    text = {tokens: h (L, width),  mask: m (L,),  pooled: the encoder's one vector}        (2)

The step encodes a batch before it differentiates, and the weights are leaves of the codec: the backward pass never
meets them. Whoever has kept text (2) of a caption gives that in the place of its ids.

Stable Diffusion, SD3 and FLUX attend to padding, so ``mask="all"``; PixArt and Imagen do not: ``mask="caption"``.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int
from numpy.typing import ArrayLike

from jaxdiff.codecs.base import Codec
from jaxdiff.codecs.beside import BesideData
from jaxdiff.codecs.default import default_codec
from jaxdiff.codecs.recipe import Find, Read, built, noted, resolved
from jaxdiff.data.sources import Source
from jaxdiff.record import field, record
from jaxdiff.spec import Condition, Spec, Specs

TEXT = "text"
_OF_TOKENIZER = ("length", "padding", "ends_in_padding")


@dataclass(frozen=True)
class WithText:
    """A frozen text encoder beside the codec of the data: what a configuration says of it, ``codec=WithText(path)``.

    The network takes ready embeddings, `jaxdiff.networks.Tokens` of the name "text"; ``Config.tokenizer`` makes the
    ids.

    Args:
      path: folder of the encoder and its weights, from `jaxdiff.train.save_network`, or published, by itself or in a
        model (its first encoder). It is looked for from the working
        folder, and for a saved run also beside it and above.
      inner: the codec of the data, `Latents` or another; None: the one that goes with the data.
      mask: the tokens that the network attends to: "caption", up to its end, or "all".
      masked: whether the encoder itself is told the caption's mask.
      pooled: which of the encoder's vectors is given too: "pooled", "projected", or None.
      step, checksum: of the weights, noted when training began; other weights are refused.
      net: the encoder's pure functions, noted when training began.
      length, padding, ends_in_padding: the tokenizer's, noted when training began: ids of a caption, the id after its
        end, and whether its end is that id too. Of data that hold ids already, padding is to be given.

    >>> WithText("encoders/clip_l", pooled=None).reads
    ('text',)
    """

    path: str
    inner: Any = None
    mask: Literal["caption", "all"] = "all"
    masked: bool = False
    pooled: Literal["pooled", "projected"] | None = None
    step: int | None = None
    checksum: str | None = None
    net: Any = None
    length: int | None = None
    padding: int | None = None
    ends_in_padding: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", os.fspath(self.path))
        if self.mask not in ("caption", "all"):
            raise ValueError(f"mask: 'caption' or 'all', got {self.mask!r}")

    @property
    def reads(self) -> tuple[str, ...]:
        """What it makes of what is stored under the same name: text."""
        return (TEXT,)

    @property
    def spec(self) -> Specs:
        """As the inner codec's, and text (2)."""
        inner: Specs = {"x": Spec((None,))} if self.inner is None else self.inner.spec
        return {**inner, TEXT: {} if self.net is None else _spec(self.net, self.length, self.pooled)}

    @property
    def key(self) -> str:
        """Of what the inner codec caches."""
        key: str = self.inner.key
        return key

    @property
    def text_key(self) -> str:
        """Of text (2) that is kept."""
        return f"text {self.checksum} {self.mask} {self.masked} {self.pooled} {self.net}"

    def decode(self, x0: Array, cond: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The inner codec's, where that is no recipe."""
        decoded: dict[str, Any] = self.inner.decode(x0, cond)
        return decoded

    def noted(self, saved: Any) -> Any:
        """With what a saved recipe has noted; the path may be another, if the weights are the same."""
        if not isinstance(saved, WithText) or self.checksum is not None:
            return self
        inner = saved.inner if self.inner is None else noted(self.inner, saved.inner)
        known = {name: getattr(saved, name) for name in ("step", "checksum", "net", *_OF_TOKENIZER)}
        return dataclasses.replace(self, inner=inner, **known)

    def resolved(self, source: Source, find: Find, *, flip: bool = False) -> WithText:
        """With the encoder that lies at the path, the tokenizer's length and padding, and the inner codec.

        Raises:
          ValueError: a folder that holds no text encoder, or captions that do not fit it.
        """
        if self.inner is None:
            inner: Any = default_codec(source, flip=flip)
        else:
            inner = resolved(self.inner, source, find, flip=flip)
        net = find(self.path, "text_encoder")[0].network if self.net is None else self.net
        if not all(hasattr(net, name) for name in ("apply", "init")) or not hasattr(net, "config"):
            raise ValueError(f"{self.path} holds {type(net).__name__}, not a text encoder")
        ids = source.spec.get(TEXT)
        tokenizer = getattr(source, "tokenizer", None)
        if not isinstance(ids, Spec) or len(ids.shape) != 1:
            raise ValueError("a text encoder takes ids of captions, and the data have none: give a tokenizer")
        if tokenizer is None and self.padding is None:
            raise ValueError("the data hold ids already: say which of them is padding, WithText(..., padding=0)")
        length, config = int(ids.shape[0] or 0), net.config
        if ids.high is not None and ids.high >= config.vocabulary:
            raise ValueError(
                f"{self.path} knows {config.vocabulary:,} ids, and the tokenizer has {ids.high + 1:,.0f}: take the "
                "encoder's own tokenizer"
            )
        if length > getattr(config, "length", length):
            raise ValueError(
                f"{self.path} takes {config.length} ids of a caption: set tokenizer.length to that, or less"
            )
        if self.pooled is not None and self.pooled not in _states(net, length):
            raise ValueError(f"{self.path} gives no {self.pooled!r} vector, but {', '.join(_states(net, length))}")
        known: dict[str, Any] = {"length": length}
        if tokenizer is not None:
            known |= {"padding": tokenizer.padding, "ends_in_padding": tokenizer.padding in tokenizer.ids("")}
        return dataclasses.replace(self, inner=inner, net=net, **known)

    def build(self, read: Read) -> tuple[WithText, Codec]:
        """The codec, by the encoder's weights."""
        assert self.length is not None and self.padding is not None, "resolve it first"
        recipe, inner = built(self.inner, read)
        weights = read(self.path, self.step, self.checksum, "text_encoder")
        parts = {name: getattr(self, name) for name in (*_OF_TOKENIZER, "mask", "masked", "pooled")}
        codec = TextAndData(inner, weights.params, net=weights.net, **parts)
        return dataclasses.replace(self, inner=recipe, step=weights.step, checksum=weights.checksum), codec


@functools.lru_cache(maxsize=8)
def _states(net: Any, length: int) -> dict[str, tuple[int, ...]]:
    """The shapes of what an encoder gives of one caption."""
    params = jax.eval_shape(net.init, jax.random.key(0))
    states = jax.eval_shape(net.apply, params, jax.ShapeDtypeStruct((1, length), jnp.int32))
    return {name: state.shape[1:] for name, state in states.items()}


def _spec(net: Any, length: int | None, pooled: str | None) -> Condition:
    """Of text (2). Its null is zero everywhere, the mask too."""
    shapes = _states(net, length or 1)
    mask = Spec((length,), "float32", 0.0, 1.0, null=0.0)
    specs = {"tokens": Spec((length, *shapes["tokens"][1:]), null=0.0), "mask": mask}
    return specs if pooled is None else {**specs, "pooled": Spec(shapes[pooled], null=0.0)}


class TextBesideData(BesideData):
    """A codec of text beside that of the data; abstract."""

    told: ClassVar[tuple[str, ...]] = (TEXT,)

    @abc.abstractmethod
    def text(self, ids: Any) -> Any:
        """What the network is told of ids ``(B, L)``."""

    def encode(self, record: Mapping[str, Any], key: Array | None = None) -> dict[str, Any]:
        """Records ``{"x": ..., "text": ids (B, L), ...}``; text that was kept passes untouched."""
        batch: dict[str, Any] = self.inner.encode({n: value for n, value in record.items() if n != TEXT}, key)
        if TEXT not in record:
            return batch
        text = record[TEXT]
        return {**batch, TEXT: text if isinstance(text, Mapping) else self.text(text)}

    def cached_spec(self, stored: Specs) -> Mapping[str, Spec]:
        """As the inner codec's."""
        others = {name: spec for name, spec in stored.items() if name != TEXT}
        return self.inner.cached_spec(others) if hasattr(self.inner, "cached_spec") else {}


@record
class TextAndData(TextBesideData):
    """The codec that `WithText` stands for, its weights read: equations (1) and (2).

    Args:
      inner: the codec of the data.
      params: the encoder's.
      net: the encoder's pure functions; static.
      length, padding, ends_in_padding: see `WithText`; static.
      mask, masked, pooled: see `WithText`; static.
    """

    inner: Any
    params: Any
    net: Any = field(pytree_node=False)
    length: int = field(pytree_node=False)
    padding: int = field(pytree_node=False)
    ends_in_padding: bool = field(default=False, pytree_node=False)
    mask: str = field(default="all", pytree_node=False)
    masked: bool = field(default=False, pytree_node=False)
    pooled: str | None = field(default=None, pytree_node=False)

    @property
    def spec(self) -> Specs:
        """As the inner codec's, and text (2)."""
        return {**self.inner.spec, TEXT: _spec(self.net, self.length, self.pooled)}

    def text(self, ids: Int[ArrayLike, "batch length"]) -> dict[str, Float[Array, "batch ..."]]:
        """Text (2) of ids ``(B, L)``."""
        ids = jnp.asarray(ids)
        caption = self.captions(ids)
        states = self.net.apply(self.params, ids, caption if self.masked else None)
        mask = caption.astype(jnp.float32) if self.mask == "caption" else jnp.ones(ids.shape, jnp.float32)
        kept = {"tokens": states["tokens"], "mask": mask}
        return kept if self.pooled is None else {**kept, "pooled": states[self.pooled]}

    def captions(self, ids: Array) -> Array:
        """m of equation (1), ``(B, L)`` bool: up to the last id that is no padding, and up to the first that is where a
        caption's end is the padding, as CLIP's is."""
        place = jnp.arange(ids.shape[1])[None]
        last = jnp.where(ids != self.padding, place, -1).max(axis=1, keepdims=True)
        return place <= last + int(self.ends_in_padding)
