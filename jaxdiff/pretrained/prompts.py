"""The frozen text encoders of published pipelines: what each network is told of a text.

With L, G and H CLIP's encoders, T that of T5, and h[-2] the state before the last block, without the final norm,

    Stable Diffusion 1, 2    tokens = L or H, last state with its final norm
    XL                       tokens = [L h[-2], G h[-2]] side by side,  pooled = G projected
    XL's refiner             tokens = G h[-2],                          pooled = G projected
    3 and 3.5                tokens = [[L h[-2], G h[-2], 0], T] one after the other,
                             pooled = [L projected, G projected];       without T zeros in its place
    FLUX.1                   tokens = T,                                pooled = L, not projected
    PixArt                   tokens = T with the caption's mask, which T itself is told

All but PixArt attend to padding. The encoders run once for all samples of a call, outside of the sampler.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec
from numpy.typing import NDArray

from jaxdiff.data.added_words import WithWords
from jaxdiff.data.text import encoded_once, stored_captions
from jaxdiff.data.tokenizers import TokenizerFile
from jaxdiff.networks.text import TextEncoder
from jaxdiff.pretrained.weighted import plain, weigh, weighted_ids

_AT_ONCE = 32  # texts that an encoder sees


@dataclasses.dataclass(frozen=True)
class Branch:
    """One encoder and its tokenizer.

    Args:
      tokenizer: of its ids.
      net: its pure functions, with the state that is taken.
      params: its parameters.
      masked: whether it is told which tokens are a caption's.
      name: of the tokenizer's folder in a published model.
    """

    tokenizer: TokenizerFile | WithWords
    net: TextEncoder
    params: Any
    masked: bool = False
    name: str = "tokenizer"

    def states(self, texts: list[str], *, weighted: bool = False) -> dict[str, Any]:
        """The states of texts, and ``"mask"``, 1 up to a caption's end.

        Args:
          texts: some.
          weighted: whether they say weights, which the tokens' states then have (`jaxdiff.pretrained.weighted`).
        """
        if weighted:
            ids, weights = weighted_ids(self.tokenizer, texts)
        else:
            ids, weights = self.tokenizer.encode(texts), None
        lengths = [len(self.tokenizer.ids(plain(text) if weighted else text)) for text in texts]
        mask = (np.arange(ids.shape[1]) < np.array(lengths)[:, None]).astype(np.float32)
        found = _apply(self.net, self.params, ids, mask if self.masked else None)
        if weights is not None:
            found = {**found, "tokens": weigh(found["tokens"], weights)}
        return {**found, "mask": mask}

    def cut(self, texts: Sequence[str]) -> str | None:
        """What a person is told of texts that are longer than what the encoder takes; None where none is."""
        lengths = [len(self.tokenizer.ids(text)) for text in texts]
        if not (cut := sum(length > self.tokenizer.length for length in lengths)):
            return None
        return (
            f"{cut} of {len(lengths)} prompts {'is' if cut == 1 else 'are'} cut to the {self.tokenizer.length} ids "
            f"that the text encoder takes; the longest has {max(lengths)}"
        )


def _apply(net: TextEncoder, params: Any, ids: Any, mask: Any) -> dict[str, Array]:
    """States, whole on every device that holds the parameters."""
    over = jax.tree.leaves(params)[0].sharding
    whole = NamedSharding(over.mesh, PartitionSpec()) if isinstance(over, NamedSharding) else None
    return _states(net, params, ids, mask, whole)


@functools.partial(jax.jit, static_argnames=("net", "whole"))
def _states(
    net: TextEncoder, params: Any, ids: Array, mask: Array | None, whole: NamedSharding | None
) -> dict[str, Array]:
    found = net.apply(params, ids, mask)
    return found if whole is None else jax.lax.with_sharding_constraint(found, whole)


Join = Callable[[list[dict[str, Any]]], dict[str, Any]]
"""The states of all branches, to tokens, mask and pooled."""


def attended(tokens: Array, **others: Any) -> dict[str, Any]:
    """Tokens, all of which the network attends to."""
    return {"tokens": tokens, "mask": jnp.ones(tokens.shape[:2]), **others}


def stable_diffusion(states: list[dict[str, Any]]) -> dict[str, Any]:
    """Stable Diffusion 1 and 2: the one encoder's tokens."""
    return attended(states[0]["tokens"])


def stable_diffusion_xl(states: list[dict[str, Any]]) -> dict[str, Any]:
    """Stable Diffusion XL: both encoders' tokens side by side, and G's projection. The refiner has G alone."""
    tokens = jnp.concatenate([each["tokens"] for each in states], axis=-1)
    return attended(tokens, pooled=states[-1]["projected"])


def stable_diffusion_3(states: list[dict[str, Any]], *, width: int, length: int) -> dict[str, Any]:
    """Stable Diffusion 3 and 3.5.

    Args:
      states: of L, of G and, where it is there, of T5.
      width: channels of a token.
      length: tokens of zeros where T5 is not there.
    """
    clip = jnp.concatenate([each["tokens"] for each in states[:2]], axis=-1)
    clip = jnp.pad(clip, ((0, 0), (0, 0), (0, width - clip.shape[-1])))
    last = states[2]["tokens"] if len(states) > 2 else jnp.zeros((len(clip), length, width))
    pooled = jnp.concatenate([each["projected"] for each in states[:2]], axis=-1)
    return attended(jnp.concatenate([clip, last], axis=1), pooled=pooled)


def flux(states: list[dict[str, Any]]) -> dict[str, Any]:
    """FLUX.1: T5's tokens, and CLIP's pooled state; CLIP's branch is the first."""
    return attended(states[1]["tokens"], pooled=states[0]["pooled"])


def pixart(states: list[dict[str, Any]]) -> dict[str, Any]:
    """PixArt: T5's tokens with their mask."""
    return {"tokens": states[0]["tokens"], "mask": states[0]["mask"]}


@dataclasses.dataclass(frozen=True)
class Prompts:
    """The encoder of text in `jaxdiff.model.Model`: texts to what the network takes.

    Args:
      branches: the encoders.
      join: makes tokens, mask and pooled of their states.
      dropped: how many more of CLIP's last blocks are left out ("CLIP skip").
      weighted: whether texts say weights, ``"a (red:1.3) heart"``: see `jaxdiff.pretrained.weighted`.
    """

    branches: tuple[Branch, ...]
    join: Join
    dropped: int = 0
    weighted: bool = False

    def __call__(self, value: Any) -> Any:
        """Arrays of a text, or of several, the batch first; arrays as they are."""
        return encoded_once(value, self._all)

    def _all(self, texts: list[str]) -> Any:
        parts = [self._encoded(texts[at : at + _AT_ONCE]) for at in range(0, len(texts), _AT_ONCE)]
        return jax.tree.map(lambda *leaves: np.concatenate([np.asarray(leaf) for leaf in leaves]), *parts)

    def _encoded(self, texts: list[str]) -> dict[str, Any]:
        branches = [self._shortened(each) for each in self.branches]
        return self.join([branch.states(texts, weighted=self.weighted) for branch in branches])

    def _shortened(self, branch: Branch) -> Branch:
        config = branch.net.config
        if not self.dropped or not hasattr(config, "skip"):
            return branch
        return dataclasses.replace(
            branch, net=TextEncoder(dataclasses.replace(config, skip=config.skip + self.dropped))
        )

    def doubts(self, texts: Sequence[str]) -> list[str]:
        """What a person is told of texts that an encoder cuts: one line for each length."""
        said = [branch.cut([plain(text) if self.weighted else text for text in texts]) for branch in self.branches]
        return list(dict.fromkeys(line for line in said if line))

    def stored(self, value: Any, n: int) -> NDArray[Any] | None:
        """Text as a record of n samples stores it; None where no text was given but arrays."""
        return stored_captions(value, n)
