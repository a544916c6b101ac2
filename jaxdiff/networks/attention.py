"""Attention, the one that every network here uses (Vaswani et al. 2017, https://arxiv.org/abs/1706.03762).

One function in several forms, which `jaxdiff.networks.backend` chooses between by machine, shapes and dtype. A
kernel of one kind of machine is tried there first (`jaxdiff.networks.probe`).
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float

from jaxdiff.networks.backend import AttentionForm, choose_attention, present_device, present_machine
from jaxdiff.networks.chunked import chunked_attention
from jaxdiff.networks.kernels import cudnn_attention, flash_attention
from jaxdiff.networks.layers import DType, Init, Linear, by_rows, fan_average, zeros
from jaxdiff.networks.probe import works


def attention(
    query: Float[Array, "batch heads queries depth"],
    key: Float[Array, "batch heads keys depth"],
    value: Float[Array, "batch heads keys width"],
) -> Float[Array, "batch heads queries width"]:
    """``softmax(q k^T / sqrt(depth)) v``, with logits and softmax in float32.

    Forward, reverse and second derivatives hold in every form, under `jax.vmap` too.

    Args:
      query: ``(batch, heads, queries, depth)``.
      key: ``(batch, heads, keys, depth)``.
      value: ``(batch, heads, keys, width)``.

    Returns:
      ``(batch, heads, queries, width)`` in ``value``'s dtype.

    >>> q = k = jnp.zeros((1, 1, 2, 4))
    >>> attention(q, k, jnp.array([0.0, 1.0]).reshape(1, 1, 2, 1)).ravel().tolist()
    [0.5, 0.5]
    """

    def tried(form: AttentionForm) -> bool:
        dtype = jnp.result_type(query, key, value)
        return works(form, FORMS[form], plain_attention, present_device(), query.shape[-1], dtype)

    return FORMS[choose_attention(present_machine(), query, key, value, tried)](query, key, value)


def plain_attention(query: Array, key: Array, value: Array) -> Array:
    """`attention` with all logits at once.

    Heads stand before tokens: each head's products are then plain matrix products on contiguous data, which on a CPU is
    over twice as fast as the (batch, tokens, heads, depth) order of `jax.nn.dot_product_attention`. The softmax's sum
    divides the mixture of values, which is smaller than the logits where heads are narrower than rows are long.
    """
    wide = jnp.promote_types(query.dtype, jnp.float32)
    logits = jnp.einsum("bhqd,bhkd->bhqk", query, key, preferred_element_type=wide) * query.shape[-1] ** -0.5
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True)))
    mixed = jnp.einsum("bhqk,bhkd->bhqd", weights.astype(value.dtype), value, preferred_element_type=wide)
    return (mixed / weights.sum(-1, keepdims=True)).astype(value.dtype)


FORMS: dict[AttentionForm, Callable[[Array, Array, Array], Array]] = {
    "plain": plain_attention,
    "chunked": chunked_attention,
    "cudnn": cudnn_attention,
    "flash": flash_attention,
}


class QueryKeyValue(nnx.Module):
    """The three projections of self-attention, as one product.

    The kernel is ``(width, 3, inner)`` and the bias ``(3, inner)``, with the last axis (head, depth): split along it,
    each device has query, key and value of whole heads (`jaxdiff.train.sharding`). One axis of ``3 inner`` could not be
    split so.

    Args:
      width: of the tokens.
      inner: heads times their depth; None: ``width``.
      dtype: what it computes in and returns.
      init: of the kernel as a matrix ``(width, 3 inner)``.
      bias: whether there is one.
    """

    def __init__(
        self,
        width: int,
        inner: int | None = None,
        *,
        dtype: DType = "float32",
        init: Init = fan_average,
        bias: bool = True,
    ):
        self.dtype = dtype
        inner = width if inner is None else inner
        drawn = init((width, 3 * inner))
        self.kernel = type(drawn)(drawn[...].reshape(width, 3, inner))
        self.bias = zeros((3, inner)) if bias else None

    def __call__(self, x: Array) -> tuple[Array, Array, Array]:
        """``(B, L, width) -> 3 x (B, L, inner)``.

        >>> [part.shape for part in QueryKeyValue(8)(jnp.ones((2, 5, 8)))]
        [(2, 5, 8), (2, 5, 8), (2, 5, 8)]
        """
        parts = jnp.einsum("nc,ctd->tnd", by_rows(x).astype(self.dtype), self.kernel[...].astype(self.dtype))
        if self.bias is not None:
            parts = parts + self.bias[...].astype(self.dtype)[:, None]
        query, key, value = (part.reshape(*x.shape[:-1], -1) for part in parts)
        return query, key, value


class SelfAttention(nnx.Module):
    """Multi-head self-attention over tokens.

    Args:
      width: of the tokens.
      heads: a divisor of ``width``.
      init: of the output projection; zeros make a residual block start as the identity.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        dtype: DType = "float32",
        init: Init = fan_average,
    ):
        self.heads = heads
        self.qkv = QueryKeyValue(width, dtype=dtype)
        self.out = Linear(width, width, dtype=dtype, init=init)

    def __call__(self, x: Array) -> Array:
        """``(B, L, C) -> (B, L, C)``.

        >>> SelfAttention(8, heads=2)(jnp.ones((2, 5, 8))).shape
        (2, 5, 8)
        """
        batch, length, width = x.shape
        heads = (batch, length, self.heads, width // self.heads)
        mixed = attention(*(y.reshape(heads).transpose(0, 2, 1, 3) for y in self.qkv(x)))  # (B, heads, L, depth) each
        return self.out(mixed.transpose(0, 2, 1, 3).reshape(batch, length, width))
