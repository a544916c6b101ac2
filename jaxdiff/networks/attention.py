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
from jaxtyping import Bool, Float

from jaxdiff.networks.backend import (
    AttentionForm,
    Call,
    choose_attention,
    filled,
    present_device,
    present_machine,
    steady,
)
from jaxdiff.networks.chunked import chunked_attention, unmasked
from jaxdiff.networks.kernels import cudnn_attention, flash_attention
from jaxdiff.networks.layers import DType, Init, Linear, by_rows, each_token, fan_average, zeros
from jaxdiff.networks.probe import works

Attend = Callable[..., Array]
"""``(query, key, value, mask=None)``, as `attention`."""


def attention(
    query: Float[Array, "batch heads queries depth"],
    key: Float[Array, "batch heads keys depth"],
    value: Float[Array, "batch heads keys width"],
    mask: Bool[Array, "batch keys"] | None = None,
) -> Float[Array, "batch heads queries width"]:
    """``softmax(q k^T / sqrt(depth)) v`` over the keys that count, with logits and softmax in float32.

    Forward, reverse and second derivatives hold in every form, under `jax.vmap` too. A masked key has the weight 0: its
    numbers, finite or not, change no bit of the output, nor of any gradient, in every form on every machine. Where all
    keys of a sample are masked its output is 0, and so is its gradient. On a CPU the plain form also has the same bits
    for the same keys with more masked ones after them (`jaxdiff.networks.backend.filled`); the chunked form's and other
    machines' are equal up to rounding.

    Args:
      query: ``(batch, heads, queries, depth)``.
      key: ``(batch, heads, keys, depth)``.
      value: ``(batch, heads, keys, width)``.
      mask: ``(batch, keys)``, true where a key is attended to; None: everywhere.

    Returns:
      ``(batch, heads, queries, width)`` in ``value``'s dtype.

    >>> q = k = jnp.zeros((1, 1, 2, 4))
    >>> v = jnp.array([0.0, 1.0]).reshape(1, 1, 2, 1)
    >>> attention(q, k, v).ravel().tolist(), attention(q, k, v, jnp.array([[False, True]])).ravel().tolist()
    ([0.5, 0.5], [1.0, 1.0])
    """

    def tried(form: AttentionForm) -> bool:
        dtype = jnp.result_type(query, key, value)
        masked = mask is not None
        return works(form, FORMS[form], plain_attention, present_device(), query.shape[-1], dtype, masked)

    form = FORMS[choose_attention(present_machine(), query, key, value, tried)]
    # Numbers, for the kernels' derivatives: a truth value has no tangent.
    return form(query, key, value) if mask is None else form(query, key, value, mask.astype(query.dtype))


def plain_attention(
    query: Array,
    key: Array,
    value: Array,
    mask: Array | None = None,
    *,
    bias: Array | None = None,
    scale: float | None = None,
) -> Array:
    """`attention` with all logits at once; and ``softmax(scale q k^T + bias) v``, which the other forms do not take.

    A bias is ``(heads or 1, queries, keys)``, float32, and -inf where a query may not look.

    Heads stand before tokens: each head's products are then plain matrix products on contiguous data, which on a CPU is
    over twice as fast as the (batch, tokens, heads, depth) order of `jax.nn.dot_product_attention`. The softmax's sum
    divides the mixture of values, which is smaller than the logits where heads are narrower than rows are long.

    With a mask, on a CPU, the sum is one more column of the product with the values: XLA adds a row of numbers in an
    order that depends on its length, and a product of matrices in order.
    """
    wide, fill = jnp.promote_types(query.dtype, jnp.float32), 0
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    column = mask is not None and steady(present_machine())
    if mask is not None:
        key, value = unmasked(key, mask), unmasked(value, mask)
        if column:
            fill = filled(Call.of(query, key, value)) - key.shape[2]
            mask = jnp.pad(mask, ((0, 0), (0, fill)))
            value = jnp.concatenate([value, jnp.ones_like(value[..., :1])], axis=-1)
            key, value = (jnp.pad(x, ((0, 0), (0, 0), (0, fill), (0, 0))) for x in (key, value))
    logits = jnp.einsum("bhqd,bhkd->bhqk", query, key, preferred_element_type=wide) * scale
    if bias is not None:
        logits = logits + jnp.pad(bias, ((0, 0), (0, 0), (0, fill)))[None]
    if mask is not None:
        logits = jnp.where(mask[:, None, None, :] != 0, logits, -jnp.inf)
    top = jax.lax.stop_gradient(logits.max(-1, keepdims=True))
    weights = jnp.exp(logits - (top if mask is None else jnp.where(top == -jnp.inf, 0.0, top)))
    mixed = jnp.einsum("bhqk,bhkd->bhqd", weights.astype(value.dtype), value, preferred_element_type=wide)
    mixed, total = (mixed[..., :-1], mixed[..., -1:]) if column else (mixed, weights.sum(-1, keepdims=True))
    return (mixed / (total if mask is None else jnp.where(total == 0, 1.0, total))).astype(value.dtype)


FORMS: dict[AttentionForm, Callable[..., Array]] = {
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
        parts = jnp.einsum("nc,ctd->ntd", by_rows(x).astype(self.dtype), self.kernel[...].astype(self.dtype))
        if self.bias is not None:
            parts = parts + self.bias[...].astype(self.dtype)[None]
        query, key, value = (parts[:, i].reshape(*x.shape[:-1], -1) for i in range(3))
        return query, key, value


class SelfAttention(nnx.Module):
    """Multi-head self-attention over tokens.

    Args:
      width: of the tokens.
      heads: a divisor of ``width``.
      bias: of query, key and value; the output projection always has one.
      init: of the output projection; zeros make a residual block start as the identity.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        bias: bool = True,
        dtype: DType = "float32",
        init: Init = fan_average,
    ):
        self.heads = heads
        self.qkv = QueryKeyValue(width, bias=bias, dtype=dtype)
        self.out = Linear(width, width, dtype=dtype, init=init)

    def __call__(self, x: Array, mask: Array | None = None, attend: Attend = attention) -> Array:
        """``(B, L, C) -> (B, L, C)``; ``mask`` is ``(B, L)``, true for the tokens that are attended to.

        >>> SelfAttention(8, heads=2)(jnp.ones((2, 5, 8))).shape
        (2, 5, 8)
        """
        return self.out(by_heads(*self.qkv(x), self.heads, mask, attend))


class CrossAttention(nnx.Module):
    """Multi-head attention of tokens to those of a context, such as a text.

    Args:
      width: of the tokens.
      context_width: of the context's.
      heads: a divisor of ``width``.
      bias: of query, key and value; the output projection always has one.
      init: of the output projection.
    """

    def __init__(
        self,
        width: int,
        context_width: int,
        heads: int,
        *,
        bias: bool = True,
        dtype: DType = "float32",
        init: Init = fan_average,
    ):
        self.heads = heads
        self.query = Linear(width, width, bias=bias, dtype=dtype)
        self.key = Linear(context_width, width, bias=bias, dtype=dtype)
        self.value = Linear(context_width, width, bias=bias, dtype=dtype)
        self.out = Linear(width, width, dtype=dtype, init=init)

    def __call__(self, x: Array, context: Array, mask: Array | None = None) -> Array:
        """``(B, L, C)`` and ``(B, M, context_width) -> (B, L, C)``; ``mask`` is ``(B, M)``, true where attended to.

        >>> CrossAttention(8, 6, heads=2)(jnp.ones((2, 5, 8)), jnp.ones((2, 3, 6))).shape
        (2, 5, 8)
        """
        key, value = (each_token(map, context) for map in (self.key, self.value))
        return self.out(by_heads(self.query(x), key, value, self.heads, mask))


def by_heads(
    query: Array, key: Array, value: Array, heads: int, mask: Array | None = None, attend: Attend = attention
) -> Array:
    """`attention`, or another of its form, of tokens ``(B, L, C)``, whose last axis is (head, depth).

    >>> by_heads(jnp.ones((2, 5, 8)), jnp.ones((2, 3, 8)), jnp.ones((2, 3, 8)), 4).shape
    (2, 5, 8)
    """

    def cut(x: Array) -> Array:
        return x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3)  # (B, heads, L, depth)

    mixed = attend(cut(query), cut(key), cut(value), mask)
    return mixed.transpose(0, 2, 1, 3).reshape(*query.shape[:2], -1)
