"""The conditions of a network as what its blocks see: a vector beside the time's, and tokens with their mask.

Equations (1) and (2) of `jaxdiff.networks.conditions`. A condition c gives a vector v(c), tokens t(c), or both:

    v(c) = W2 silu(W1 f(c) + b1) + b2,     f(c) = z, or cos|sin of z;  the pooled vector of a text               (1)
    t(c) = W c + b, for tokens of another width than the common one;  c itself for those of that width          (2)

In SDXL (Podell et al. 2023, https://arxiv.org/abs/2307.01952) all f(c) go through one perceptron, side by side: its
``add_embedding``. Here that is ``joined``. A vector with channels has for each of its numbers the same perceptron, and

    v(c) = [0, P(f(c_1)), P(f(c_2)), ..., 0],     P(f) = W2 silu(W1 f + b1) + b2                                 (3)

The text's transformer, with h = embedding(id) + position, has in each block

    h <- h + attention(norm(h)) over the ids that are no padding,    h <- h + W2 gelu(W1 norm(h) + b1) + b2     (4)

and a normalisation last (pre-norm: Radford et al. 2019, "GPT-2", section 2.3; in both directions: Devlin et al. 2018,
"BERT", https://arxiv.org/abs/1810.04805). The pooled vector is the state of the last id that is no padding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from jaxdiff.networks.attention import SelfAttention
from jaxdiff.networks.backend import filled_tokens, present_machine
from jaxdiff.networks.conditions import ABSENT, NO_LEVEL, Level, NetCondition, Text, Tokens, Vector, without_tokens
from jaxdiff.networks.embeddings import TimeEmbedding, standard_normal, timestep_embedding
from jaxdiff.networks.layers import Init, LayerNorm, Linear, each_token, fan_average

LEVEL_FREQUENCIES = 256


class Embedded(NamedTuple):
    """Conditions, embedded.

    Attributes:
      vector: ``(B, C)``, to be added to the time's embedding; 0 where nothing is.
      tokens: ``(B, L, width)``; None where there are none.
      mask: ``(B, L)`` bool, true for the tokens that count; None where there are none.
    """

    vector: Array | float
    tokens: Array | None = None
    mask: Array | None = None


class ConditionEmbeddings(nnx.Module):
    """All conditions of a network but its label and its images.

    Args:
      conditions: of the network.
      width: of the vector, as of the time's embedding.
      tokens: the common width of the tokens; None: the network attends to none, and texts tell it their pooled vector
        alone.
      joined: one perceptron for all vectors and pooled vectors together, rather than one each.
      mapped: whether `Tokens` of the common width are mapped too.
      init: of the kernels.

    Raises:
      ValueError: a condition of tokens alone, and a network that attends to none.

    >>> embed = ConditionEmbeddings((Vector("style", 2), Tokens("text", 6)), 16, tokens=8)
    >>> text = {"tokens": jnp.ones((3, 5, 6)), "mask": jnp.ones((3, 5))}
    >>> vector, tokens, mask = embed({"style": jnp.zeros((3, 2)), "text": text})
    >>> vector.shape, tokens.shape, mask.shape
    ((3, 16), (3, 5, 8), (3, 5))
    """

    def __init__(
        self,
        conditions: Sequence[NetCondition],
        width: int,
        *,
        tokens: int | None = None,
        joined: bool = False,
        mapped: bool = False,
        init: Init = fan_average,
    ):
        if tokens is None and (homeless := without_tokens(conditions)):
            raise ValueError(f"conditions {homeless} are tokens, and this network attends to none: leave them out")
        self.conditions, self.joined = tuple(conditions), joined
        kinds: dict[type, Any] = {
            Vector: lambda each: (
                VectorEmbedding(each, width, joined=joined, init=init)
                if each.into == "time"
                else VectorEmbedding(each, tokens or width, joined=False, init=init)
            ),
            Level: lambda each: LevelEmbedding(each, width, init=init),
            Text: lambda each: TextEmbedding(each, width, tokens, joined=joined, init=init),
            Tokens: lambda each: TokensEmbedding(
                each.width, each.pooled, width, tokens, joined=joined, mapped=mapped, init=init
            ),
        }
        told = [each for each in conditions if type(each) in kinds]
        self.by_name = nnx.Dict({each.name: kinds[type(each)](each) for each in told})
        features = sum(embed.features for embed in self.by_name.values()) if joined else 0
        self.together = Perceptron(features, width, init=init) if features else None

    def __call__(self, cond: Mapping[str, Any]) -> Embedded:
        """Values by name, complete, the batch first."""
        names = [each.name for each in self.conditions if each.name in self.by_name]
        parts = [self.by_name[name](cond[name]) for name in names]
        vector: Array | float = sum((part.vector for part in parts if part.vector is not None), start=0.0)
        if self.together is not None:
            vector = vector + self.together(jnp.concatenate([p.features for p in parts if p.features is not None], 1))
        shown = [(part.tokens, part.mask) for part in parts if part.tokens is not None and part.mask is not None]
        if not shown:
            return Embedded(vector)
        tokens, masks = zip(*shown, strict=True)
        return Embedded(vector, jnp.concatenate(tokens, axis=1), jnp.concatenate(masks, axis=1))


def filled_up(cond: Mapping[str, Any], conditions: Sequence[NetCondition], width: int) -> Mapping[str, Any]:
    """Every `Tokens` with as much padding as the machine's sums keep to one order with, in a network of this width
    (`jaxdiff.networks.backend.filled_tokens`), so that more padding changes no bit of what it makes of them.

    >>> text = {"tokens": jnp.ones((4, 5, 6)), "mask": jnp.ones((4, 5))}
    >>> filled_up({"text": text}, (Tokens("text", 6),), 64)["text"]["mask"].sum(axis=1).tolist()
    [5.0, 5.0, 5.0, 5.0]
    """
    filled = dict(cond)
    for each in conditions:
        if isinstance(each, Tokens):
            tokens, mask = (cond[each.name][name] for name in ("tokens", "mask"))
            batch, length = mask.shape
            fill = (0, 0), (0, filled_tokens(present_machine(), batch, length, width) - length)
            filled[each.name] = {
                **cond[each.name],
                "tokens": jnp.pad(tokens, (*fill, (0, 0))),
                "mask": jnp.pad(mask, fill),
            }
    return filled


class Part(NamedTuple):
    """What one condition gives: a vector, or features for the joined perceptron; tokens and their mask."""

    vector: Array | None = None
    features: Array | None = None
    tokens: Array | None = None
    mask: Array | None = None


class Perceptron(nnx.Module):
    """Two layers, SiLU between: equation (1)."""

    def __init__(self, inputs: int, width: int, *, init: Init):
        self.hidden = Linear(inputs, width, init=init)
        self.out = Linear(width, width, init=init)

    def __call__(self, x: Array) -> Array:
        return self.out(jax.nn.silu(self.hidden(x)))


class VectorEmbedding(nnx.Module):
    """A `Vector` in a network: ``(B, size) -> (B, width)``. Joined, what is absent has features of 0.

    Raises:
      ValueError: channels beyond the width.
    """

    def __init__(self, condition: Vector, width: int, *, joined: bool, init: Init):
        self.condition, self.width = condition, width
        inputs, share = condition.size * (condition.fourier or 1), width
        self.features = inputs if joined and condition.channels is None else 0
        if self.features:
            return
        if condition.channels is not None:
            start, stop = condition.channels
            if stop > width:
                raise ValueError(f"{condition.name}: channels={condition.channels} of an embedding of width {width}")
            inputs, share = condition.fourier or 1, (stop - start) // condition.size
        self.hidden = Linear(inputs, share, init=init)
        self.out = Linear(share, share, init=init)
        if condition.null:
            self.absent = standard_normal((width,))

    def __call__(self, value: Array) -> Part:
        size, fourier = self.condition.size, self.condition.fourier
        mean, std = (
            jnp.asarray(given or (default,) * size, jnp.float32)[None]
            for given, default in ((self.condition.mean, 0.0), (self.condition.std, 1.0))
        )
        z = (value - mean) / std
        if fourier:
            z = timestep_embedding(z.reshape(-1), fourier).reshape(len(value), size * fourier)
        absent = (value == ABSENT).all(axis=-1, keepdims=True) if self.condition.null else None  # (B, 1)
        if self.features:
            return Part(features=z if absent is None else jnp.where(absent, 0.0, z))
        if self.condition.channels is not None:
            start, stop = self.condition.channels
            each = self.out(jax.nn.silu(self.hidden(z.reshape(len(value) * size, fourier or 1))))
            known = jnp.pad(each.reshape(len(value), stop - start), ((0, 0), (start, self.width - stop)))
        else:
            known = self.out(jax.nn.silu(self.hidden(z)))
        if absent is not None:
            known = jnp.where(absent, self.absent[...][None], known)
        if self.condition.into == "time":
            return Part(vector=known)
        return Part(tokens=known[:, None], mask=jnp.ones((len(value), 1), bool))


class LevelEmbedding(nnx.Module):
    """A `Level` in a network: ``(B,) -> (B, width)``, as a time of 1000 s."""

    features = 0

    def __init__(self, condition: Level, width: int, *, init: Init):
        self.time = TimeEmbedding(LEVEL_FREQUENCIES, width, init=init)
        self.absent = standard_normal((width,)) if condition.null else None

    def __call__(self, value: Array) -> Part:
        known = self.time(1000.0 * value, len(value))
        if self.absent is None:
            return Part(vector=known)
        return Part(vector=jnp.where((value == NO_LEVEL)[:, None], self.absent[...][None], known))


class TokensEmbedding(nnx.Module):
    """A `Tokens` in a network; equation (2), and (1) of its pooled vector."""

    def __init__(
        self,
        given: int,
        pooled: int | None,
        width: int,
        tokens: int | None,
        *,
        joined: bool,
        mapped: bool = False,
        init: Init,
    ):
        self.features = pooled or 0 if joined else 0
        self.shown = tokens is not None
        self.map = Linear(given, tokens, init=init) if tokens is not None and (mapped or tokens != given) else None
        self.pooled = Perceptron(pooled, width, init=init) if pooled and not joined else None

    def __call__(self, value: Mapping[str, Array]) -> Part:
        told: dict[str, Array] = {}
        if self.features:
            told["features"] = value["pooled"]
        elif self.pooled is not None:
            told["vector"] = self.pooled(value["pooled"])
        if self.shown:
            mask = value["mask"] != 0
            tokens = jnp.where(mask[..., None], value["tokens"], 0.0)  # whatever stands in the padding
            told |= {"tokens": tokens if self.map is None else each_token(self.map, tokens), "mask": mask}
        return Part(**told)


class TextEmbedding(nnx.Module):
    """A `Text` in a network: its transformer, and what follows as of `Tokens`."""

    def __init__(self, condition: Text, width: int, tokens: int | None, *, joined: bool, init: Init):
        self.reader = TextTransformer(condition)
        self.told = TokensEmbedding(condition.width, condition.width, width, tokens, joined=joined, init=init)
        self.features = self.told.features

    def __call__(self, value: Array) -> Part:
        part: Part = self.told(self.reader(value))
        return part


class TextTransformer(nnx.Module):
    """Equation (4): ids ``(B, L)`` -> ``{"tokens": (B, L, width), "mask": (B, L), "pooled": (B, width)}``."""

    def __init__(self, condition: Text):
        self.padding = condition.padding
        # of order one, as what the blocks add is: smaller words and places would be lost in it
        self.embedding = standard_normal((condition.vocabulary, condition.width))
        self.positions = standard_normal((condition.length, condition.width))
        self.blocks = nnx.List([TextBlock(condition.width, condition.heads) for _ in range(condition.depth)])
        self.norm = LayerNorm(condition.width)

    def __call__(self, ids: Array) -> dict[str, Array]:
        known = jnp.where(ids < 0, len(self.embedding[...]), ids)  # an id that is none is NaN, which cannot pass unseen
        words = jnp.take(self.embedding[...], known, axis=0, mode="fill", fill_value=jnp.nan)
        mask = ids != self.padding
        h = words + self.positions[...][None]
        for block in self.blocks:
            h = block(h, mask)
        h = self.norm(h)
        last = (jnp.arange(ids.shape[1])[None] * mask).max(axis=1)  # 0 where all is padding
        return {"tokens": h, "mask": mask, "pooled": jnp.take_along_axis(h, last[:, None, None], axis=1)[:, 0]}


class TextBlock(nnx.Module):
    """A block of equation (4)."""

    def __init__(self, width: int, heads: int):
        self.norm1, self.norm2 = LayerNorm(width), LayerNorm(width)
        self.attention = SelfAttention(width, heads)
        self.expand, self.contract = Linear(width, 4 * width), Linear(4 * width, width)

    def __call__(self, h: Array, mask: Array) -> Array:
        h = h + self.attention(self.norm1(h), mask)
        return h + self.contract(jax.nn.gelu(self.expand(self.norm2(h)), approximate=False))
