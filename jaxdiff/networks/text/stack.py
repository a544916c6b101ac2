"""What text encoders share: attention with logits of its own, like blocks in a loop, and the pure boundary.

With a bias b of the logits, -inf where a query may not look, and M the keys that a mask allows,

    attention_q = sum_{k in M} w_qk v_k / sum_{k in M} w_qk,    w_qk = exp(s q_q . k_k + b_qk)        (1)

which is 0 where nothing is allowed. CLIP's b is the causal one; T5's is learned, by distance. Texts are short, so all
logits are held at once.

Precision: matrix products compute in the encoder's ``dtype``; normalisation, logits, softmax and the sum that every
block adds to (the residual) are float32, and so are the results.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Bool, Float, Int, Shaped

from jaxdiff.networks.attention import QueryKeyValue
from jaxdiff.networks.functional import Params, functional
from jaxdiff.networks.layers import DType, Init, Linear
from jaxdiff.networks.placement import by_sample


def biased_attention(
    query: Float[Array, "batch heads queries depth"],
    key: Float[Array, "batch heads keys depth"],
    value: Float[Array, "batch heads keys width"],
    bias: Float[Array, "#heads queries keys"],
    mask: Bool[Array, "batch keys"] | None = None,
    *,
    scale: float = 1.0,
) -> Float[Array, "batch heads queries width"]:
    """Equation (1): attention whose logits have a bias, in float32.

    Args:
      query: ``(batch, heads, queries, depth)``.
      key: ``(batch, heads, keys, depth)``.
      value: ``(batch, heads, keys, width)``.
      bias: b, ``(heads, queries, keys)`` or ``(1, queries, keys)``.
      mask: M, ``(batch, keys)``: True where a key is attended; None: everywhere.
      scale: s, of the products.

    Returns:
      ``(batch, heads, queries, width)`` in ``value``'s dtype.

    >>> q = k = jnp.zeros((1, 1, 2, 4))
    >>> biased_attention(q, k, jnp.array([0.0, 1.0]).reshape(1, 1, 2, 1), causal(2)).ravel().tolist()
    [0.0, 0.5]
    """
    wide = jnp.promote_types(query.dtype, jnp.float32)
    logits = jnp.einsum("bhqd,bhkd->bhqk", query, key, preferred_element_type=wide) * scale + bias[None]
    if mask is not None:
        logits = jnp.where(mask[:, None, None, :], logits, -jnp.inf)
    largest = jax.lax.stop_gradient(logits.max(-1, keepdims=True))
    weights = jnp.exp(logits - jnp.maximum(largest, jnp.finfo(wide).min))  # not -inf - -inf where nothing is allowed
    total = weights.sum(-1, keepdims=True)
    mixed = jnp.einsum("bhqk,bhkd->bhqd", weights.astype(value.dtype), value, preferred_element_type=wide)
    return (mixed / jnp.where(total == 0, 1, total)).astype(value.dtype)


def causal(length: int) -> Float[Array, "1 length length"]:
    """The bias by which no token sees a later one: 0 for itself and those before, -inf after.

    >>> causal(2).tolist()
    [[[0.0, -inf], [0.0, 0.0]]]
    """
    return jnp.where(jnp.tri(length, dtype=bool), 0.0, -jnp.inf)[None]


class BiasedSelfAttention(nnx.Module):
    """Multi-head self-attention over tokens by equation (1).

    Args:
      width: of the tokens.
      heads: of attention.
      depth: of a head.
      scale: s.
      init, out_init: of the kernels of `QueryKeyValue` and of the output projection.
      bias: whether the projections have biases.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        depth: int,
        *,
        scale: float,
        dtype: DType,
        init: Init,
        out_init: Init,
        bias: bool,
    ):
        self.heads, self.depth, self.scale = heads, depth, scale
        self.qkv = QueryKeyValue(width, heads * depth, dtype=dtype, init=init, bias=bias)
        self.out = Linear(heads * depth, width, dtype=dtype, init=out_init, bias=bias)

    def __call__(self, x: Array, bias: Array, mask: Array | None) -> Array:
        """``(B, L, width) -> (B, L, width)``."""
        batch, length, _ = x.shape
        heads = (batch, length, self.heads, self.depth)
        query, key, value = (y.reshape(heads).transpose(0, 2, 1, 3) for y in self.qkv(x))  # (B, heads, L, depth) each
        mixed = biased_attention(query, key, value, bias, mask, scale=self.scale)
        return self.out(mixed.transpose(0, 2, 1, 3).reshape(batch, length, -1))


def stacked(block: Callable[[], nnx.Module], depth: int) -> nnx.Module:
    """Like blocks as one module, whose every weight is ``(depth, ...)``."""
    return jax.vmap(lambda _: block())(jnp.arange(depth))


def through(blocks: nnx.Module, x: Array, first: int, last: int, *given: Any) -> Array:
    """``x`` after the blocks number ``first`` to ``last - 1`` of a stack, in one loop.

    Args:
      blocks: from `stacked`.
      x: ``(B, L, C)`` tokens.
      first, last: numbers of blocks.
      given: to each block, beside the tokens.
    """
    graphdef, weights = nnx.split(blocks)
    depth = len(jax.tree.leaves(weights)[0])

    def block(x: Array, weights: Any) -> tuple[Array, None]:
        return by_sample(nnx.merge(graphdef, weights)(by_sample(x), *given)), None

    def numbered(x: Array, number: Array) -> tuple[Array, None]:  # from the whole stack: a part of it would be copied
        one = functools.partial(jax.lax.dynamic_index_in_dim, index=number, keepdims=False)
        return block(x, jax.tree.map(one, weights))

    if (first, last) == (0, depth):
        return jax.lax.scan(block, x, weights)[0]
    return jax.lax.scan(numbered, x, jnp.arange(first, last))[0]


def check_dtype(dtype: str, why: str = "") -> None:
    """Refuses a dtype that is no `DType`.

    Raises:
      ValueError: it is none.
    """
    if dtype not in ("float32", "bfloat16"):
        raise ValueError(f"dtype is float32 or bfloat16, got {dtype!r}{why}")


@dataclass(frozen=True)
class TextEncoder:
    """A text encoder as two pure functions of its parameters. It is equal when its configuration is equal.

    It holds no arrays, so it is a static argument of `jax.jit`. Weights may have 16 bits where memory counts: each is
    cast to the configuration's ``dtype`` as it is used.

    Args:
      config: `jaxdiff.networks.text.CLIPText` or `jaxdiff.networks.text.T5`.

    >>> from jaxdiff.networks.text import CLIPText
    >>> encoder = TextEncoder(CLIPText(vocabulary=100, length=8, width=16, depth=2, heads=2, hidden=32, end=99))
    >>> params = jax.jit(encoder.init)(jax.random.key(0))
    >>> states = jax.jit(encoder.apply)(params, jnp.array([[98, 5, 99, 99, 99, 99, 99, 99]]))
    >>> states["tokens"].shape, states["pooled"].shape
    ((1, 8, 16), (1, 16))
    """

    config: Any

    def init(self, key: Array) -> Params:
        """Fresh parameters, float32.

        Args:
          key: a `jax.random.key`.
        """
        return functional(self.config).init(key)

    def apply(
        self,
        params: Mapping[str, Any],
        ids: Int[Array | np.ndarray, "batch length"],
        mask: Shaped[Array | np.ndarray, "batch length"] | None = None,
    ) -> dict[str, Array]:
        """The states of texts.

        Args:
          params: as `init` made them.
          ids: ``(B, L)`` integers of the vocabulary. One outside of it gives NaN.
          mask: ``(B, L)``, nonzero or True where a token is attended; None: everywhere. Diffusion models give CLIP
            none, nor do SD3 and FLUX give T5 one; PixArt does.

        Returns:
          ``"tokens"``, ``(B, L, width)``, and for CLIP also ``"pooled"``, ``(B, width)``, and ``"projected"``,
          ``(B, projection)``, as the configuration says; float32.

        Raises:
          ValueError: at trace time, where shapes do not fit.
        """
        ids = jnp.asarray(ids)
        if ids.ndim != 2 or not jnp.issubdtype(ids.dtype, jnp.integer):
            raise ValueError(f"a text encoder takes integer ids (batch, length), got {ids.dtype} {ids.shape}")
        if mask is not None and mask.shape != ids.shape:
            raise ValueError(f"a mask has the shape of its ids, {ids.shape}; got {mask.shape}")
        allowed = None if mask is None else jnp.asarray(mask).astype(bool)
        states: dict[str, Array] = functional(self.config).module(params)(ids, allowed)
        return states
