"""Textual inversion: training a new word of a published model.

Gal et al. 2022, "An Image is Worth One Word", https://arxiv.org/abs/2208.01618, equation (2). With the network f, the
text encoders E, ids y of a caption that holds the word S, and the vectors v of S, one table of them for each encoder of
CLIP,

    v* = argmin_v E_{t, x_0, eps, y} |f(x_t, t, E(y; v)) - target|^2                                  (1)

Nothing else is trained: f, E and E's tables stay as they are, bit for bit. The gradient goes through f and through E,
so E is a part of what is differentiated, and a network of ids is made around the network of states,

    params = {"base": f's, "encoders": {part: E's}, "words": {part: v (k, width)}}                    (2)

whose "words" alone are in the training state. Where the word stands in a text its ids are looked up among v, after the
table's (`jaxdiff.pretrained.text_codec`, equation (2)). To sample, no network of ids is needed: texts go through E with
v once, as of any published model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.data.text import TEXT
from jaxdiff.networks.functional import Params
from jaxdiff.networks.initial_noise import initial_noise
from jaxdiff.pretrained.adapters.embeddings import Embeddings
from jaxdiff.pretrained.errors import PretrainedError
from jaxdiff.pretrained.text_codec import PublishedText, PublishedTextAndData, text_of
from jaxdiff.spec import Spec, Specs

BASE, ENCODERS, WORDS = "base", "encoders", "words"
"""The names of the three parts of the parameters, equation (2)."""


@dataclass(frozen=True)
class TextualInversion:
    """A network as two pure functions that takes ids of captions, with the vectors of a new word among its parameters.

    Args:
      base: the network that takes the encoders' states, from `jaxdiff.networks.functional`.
      text: its text encoders; ``text.vectors`` is k, at least 1.

    Raises:
      ValueError: no vectors, or no encoder of CLIP.

    >>> from jaxdiff.codecs import Images
    >>> from jaxdiff.networks import DiT, Tokens, functional
    >>> from jaxdiff.networks.text import CLIPText, TextEncoder
    >>> clip = TextEncoder(CLIPText(vocabulary=50, length=6, width=16, depth=1, heads=2, hidden=16, end=49))
    >>> dit = DiT(in_channels=1, patch=2, width=16, depth=1, heads=2, conditions=(Tokens("text", 16),))
    >>> kind, images = "StableDiffusionPipeline", Images((8, 8, 1))
    >>> text = PublishedText("folder", kind, images, ("text_encoder",), (clip,), (6,), vectors=2)
    >>> net = TextualInversion(functional(dit), text)
    >>> params, ids = net.init(jax.random.key(0)), jnp.array([[48, 7, 50, 51, 49, 49]])  # the word is 50, 51
    >>> params["words"]["text_encoder"].shape
    (2, 16)
    >>> net.apply(params, jnp.ones((1, 8, 8, 1)), 0.5, {"text": ids}).shape
    (1, 8, 8, 1)
    """

    base: Any
    text: PublishedText

    def __post_init__(self) -> None:
        if self.text.vectors < 1 or not self.text.clip:
            raise ValueError(f"{self.text.path}: expected vectors of an encoder of CLIP, got {self.text.vectors}")

    @property
    def build(self) -> Any:
        """The recipe of the network."""
        return self.base.build

    @property
    def cond(self) -> Specs:
        """What it takes beside x and t, by name: of text the ids."""
        return {**self.base.cond, TEXT: Spec((sum(self.text.lengths),), "int32", 0)}

    @property
    def settings(self) -> tuple[str, ...]:
        """Those conditions that are settings of a call."""
        declared: tuple[str, ...] = getattr(self.base, "settings", ())
        return declared

    def init(self, key: Array) -> Params:
        """Fresh parameters, equation (2); the vectors are as CLIP's are at first, of standard deviation 0.02."""
        first, second, third = jax.random.split(key, 3)
        keys = jax.random.split(second, len(self.text.parts))
        encoders = {part: net.init(key) for key, part, net in zip(keys, self.text.parts, self.text.nets, strict=True)}
        words = {
            part: initial_noise(third, number, jnp.full((self.text.vectors, net.config.width), 0.02), "normal")
            for number, (part, net) in enumerate(self.text.clip.items())
        }
        return {BASE: self.base.init(first), ENCODERS: encoders, WORDS: words}

    def apply(
        self,
        params: Mapping[str, Any],
        x: Array,
        t: ArrayLike,
        cond: Mapping[str, Any] | None = None,
        *,
        key: Array | None = None,
    ) -> Array:
        """Runs the encoders, and the network on their states. Arguments and result as of the network's own, but for
        ``cond["text"]``, ids ``(B, L)``."""
        given = dict(cond or {})
        encoders = [params[ENCODERS][part] for part in self.text.parts]
        given[TEXT] = text_of(self.text, encoders, given[TEXT], params[WORDS])
        output: Array = self.base.apply(params[BASE], x, t, given, key=key)
        return output

    def encoders_of(self, codec: Any) -> dict[str, Any]:
        """The encoders' parameters that a codec has read, by their folders."""
        return dict(zip(self.text.parts, codec.params, strict=True))

    def begun(self, encoders: Mapping[str, Any], ids: Mapping[str, int]) -> dict[str, Array]:
        """The vectors to begin with: k times the row of a word that each encoder knows.

        Args:
          encoders: parameters by the encoders' folders.
          ids: of that word, likewise.
        """
        return {
            part: jnp.tile(encoders[part]["tokens"]["embedding"][ids[part]][None], (self.text.vectors, 1))
            for part in self.text.clip
        }

    def sampled(self, params: Mapping[str, Any], codec: PublishedTextAndData) -> tuple[Any, Any, PublishedTextAndData]:
        """The network of states with its parameters, and the codec that gives texts their states with the word.

        Args:
          params: all of equation (2). Vectors that are mere shapes become zeros, since what is checked before training
            encodes the empty text.
          codec: with the encoders.
        """
        words = {
            part: jnp.zeros(rows.shape, rows.dtype, device=rows.sharding)
            if isinstance(rows, jax.ShapeDtypeStruct)
            else rows
            for part, rows in params[WORDS].items()
        }
        return self.base, params[BASE], dataclasses.replace(codec, words=words)


def trained_embeddings(run: Any) -> Embeddings:
    """The vectors of the word that a run has trained, for `jaxdiff.pretrained.write_embeddings`: the averaged ones, as
    the run samples.

    Args:
      run: from `jaxdiff.load`, or from `jaxdiff.fit`.

    Raises:
      PretrainedError: a run without such a word.
    """
    codec = getattr(run, "codec", None)
    words = codec.words if isinstance(codec, PublishedTextAndData) else None
    if words is None:
        kind = type(run).__name__
        raise PretrainedError(f"expected a run that was trained with inversion.word, got a {kind} without one")
    vectors = {part: np.asarray(each, np.float32) for part, each in words.items()}
    if len(vectors) == 1:  # a file of one encoder does not say which
        vectors = {"": next(iter(vectors.values()))}
    return Embeddings(run.config.inversion.word, vectors, str(run.config.folder))
