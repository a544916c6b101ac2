"""Attention a block at a time: exact, with memory that does not grow with queries times keys.

- Milakov & Gimelshein 2018, "Online normalizer calculation for softmax", https://arxiv.org/abs/1805.02867, algorithm 3.
- Rabe & Staats 2021, "Self-attention Does Not Need O(n^2) Memory", https://arxiv.org/abs/2112.05682, section 2.
- Dao et al. 2022, "FlashAttention", https://arxiv.org/abs/2205.14135, section 3.1 and appendix B.

For a block of queries q, over the blocks of keys and values j = 1 .. n, from m_0 = -inf, z_0 = 0 and a_0 = 0:

    s_j = q k_j^T / sqrt(depth)                                 (1)
    m_j = max(m_{j-1}, max_keys s_j)                            (2)
    z_j = exp(m_{j-1} - m_j) z_{j-1} + sum_keys exp(s_j - m_j)  (3)
    a_j = exp(m_{j-1} - m_j) a_{j-1} + exp(s_j - m_j) v_j       (4)
    o = a_n / z_n,   L = m_n + ln z_n                           (5)

o is softmax(s) v, and L the logarithm of the softmax's denominator, from which any block of weights can be had again:
p_j = exp(s_j - L). A key that is masked has s_j = -inf; where all are, m_n = -inf and z_n = 0, o and L are 0 by
definition, and so are all p_j. The differential of (5), with ds_j = (dq k_j^T + q dk_j^T) / sqrt(depth):

    dL = sum_j sum_keys p_j ds_j                                (6)
    do = sum_j ((p_j ds_j) v_j + p_j dv_j) - dL o               (7)

(6) and (7) are the one rule given to JAX, for o and L together, so that it applies to itself: every derivative of any
order, forward or reverse, follows. They are linear in dq, dk, dv, and their transpose, which JAX takes, is
FlashAttention's backward pass (appendix B.2, with D = o . o~ as the cotangent of dL in (7)):

    v~_j = p_j^T o~,   s~_j = p_j (o~ v_j^T - o . o~) / sqrt(depth),   q~ = sum_j s~_j k_j,   k~_j = s~_j^T q

Each block, and each row of blocks, stands under `jax.checkpoint`: what the gradient keeps are q, k, v, o and L.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Num

BLOCK_BYTES = 2**22
"""Of a block's float32 logits, over all samples and heads: they pass between a product, the exponential and another
product, and should do so in a processor's cache."""
LEAST_BLOCK = 128
"""Tokens of a block at least, whatever its bytes: a matrix product over fewer is slow."""

Blocks = tuple[int, int]


def chunked_attention(
    query: Float[Array, "batch heads queries depth"],
    key: Float[Array, "batch heads keys depth"],
    value: Float[Array, "batch heads keys width"],
    mask: Num[Array, "batch keys"] | Bool[Array, "batch keys"] | None = None,
    *,
    blocks: Blocks | None = None,
) -> Float[Array, "batch heads queries width"]:
    """``softmax(q k^T / sqrt(depth)) v`` by (1) to (5), logits and softmax in float32.

    Args:
      query: ``(batch, heads, queries, depth)``.
      key: ``(batch, heads, keys, depth)``.
      value: ``(batch, heads, keys, width)``.
      mask: ``(batch, keys)``, true (or not 0) where a key is attended to; None: everywhere.
      blocks: queries and keys of a block at most; None: `block_sizes` has the rule. With a mask each block of keys has
        this size, however many there are: blocks that are all padding then change no bit.

    Returns:
      ``(batch, heads, queries, width)`` in ``value``'s dtype.

    >>> q = k = jnp.zeros((1, 1, 3, 4))
    >>> chunked_attention(q, k, jnp.arange(3.0).reshape(1, 1, 3, 1), blocks=(2, 2)).ravel().tolist()
    [1.0, 1.0, 1.0]
    """
    if blocks is None:
        batch, heads, queries, _ = query.shape
        blocks = block_sizes(batch * heads if isinstance(batch, int) else heads, queries, key.shape[2])
    if mask is not None:
        key, value = unmasked(key, mask), unmasked(value, mask)
    return _output_and_log_sum(blocks, query, key, value, None if mask is None else mask != 0)[0]


def unmasked(x: Array, mask: Array) -> Array:
    """``(B, H, L, C)`` with zeros for the tokens that ``mask``, ``(B, L)``, leaves out: whatever stands there."""
    return jnp.where(mask[:, None, :, None] != 0, x, jnp.zeros((), x.dtype))


def block_sizes(matrices: int, queries: int, keys: int) -> Blocks:
    """Queries and keys of a block: square, with as many logits as `BLOCK_BYTES` hold, or `LEAST_BLOCK` a side.

    Args:
      matrices: samples times heads.
      queries: in all.
      keys: in all.

    >>> block_sizes(4, 4096, 4096), block_sizes(4, 64, 65536), block_sizes(512, 4096, 4096)
    ((512, 512), (64, 4096), (128, 128))
    """
    logits = BLOCK_BYTES // (4 * matrices)
    side = max(LEAST_BLOCK, 2 ** int(math.log2(max(1, logits)) / 2))
    rows = min(queries, side)
    return rows, min(keys, max(side, logits // rows))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _output_and_log_sum(
    blocks: Blocks, query: Array, key: Array, value: Array, mask: Array | None
) -> tuple[Array, Array]:
    """o and L of (5)."""
    wide = jnp.promote_types(query.dtype, jnp.float32)
    even = mask is None
    columns = (_cut(key, blocks[1], even), _cut(value, blocks[1], even), _inside(key.shape[2], blocks[1], mask))

    def row(q: Array) -> tuple[Array, Array]:
        def column(carry: tuple[Array, Array, Array], block: Any) -> tuple[tuple[Array, Array, Array], None]:
            (m, z, a), (k, v, inside) = carry, block
            s = _logits(q, k, inside)
            top = jnp.maximum(m, s.max(-1))
            shift = jnp.where(top == -jnp.inf, 0.0, top)  # no key yet
            e = jnp.exp(s - shift[..., None])
            shrink = jnp.exp(m - shift)
            z = shrink * z + e.sum(-1)
            a = shrink[..., None] * a + _product("bhqk,bhkd->bhqd", e, v)
            return (top, z, a), None

        start = (
            jnp.full(q.shape[:3], -jnp.inf, wide),
            jnp.zeros(q.shape[:3], wide),
            jnp.zeros((*q.shape[:3], value.shape[3]), wide),
        )
        (m, z, a), _ = jax.lax.scan(column, start, columns)
        if mask is None:
            return (a / z[..., None]).astype(value.dtype), m + jnp.log(z)
        some = z > 0
        o = a / jnp.where(some, z, 1.0)[..., None]
        return o.astype(value.dtype), jnp.where(some, m + jnp.log(z), 0.0)

    o, log_sum = jax.lax.map(row, _cut(query, blocks[0]))
    return _join(o, query.shape[2]), _join(log_sum, query.shape[2])


@_output_and_log_sum.defjvp
def _differential(blocks: Blocks, primals: Any, tangents: Any) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """Equations (6) and (7)."""
    query, key, value, mask = primals
    d_query, d_key, d_value, _ = tangents
    o, log_sum = _output_and_log_sum(blocks, query, key, value, mask)
    even = mask is None
    columns = (
        *(_cut(x, blocks[1], even) for x in (key, value, d_key, d_value)),
        _inside(key.shape[2], blocks[1], mask),
    )

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def row(part: Any, columns: Any) -> tuple[Array, Array]:
        q, dq, o, log_sum = part

        @functools.partial(jax.checkpoint, prevent_cse=False)
        def column(carry: tuple[Array, Array], block: Any) -> tuple[tuple[Array, Array], None]:
            (d_log_sum, total), (k, v, dk, dv, inside) = carry, block
            p = jnp.exp(_logits(q, k, inside) - log_sum[..., None])
            ds = p * (_logits(dq, k, None) + _logits(q, dk, None))
            total = total + _product("bhqk,bhkd->bhqd", ds, v) + _product("bhqk,bhkd->bhqd", p, dv)
            return (d_log_sum + ds.sum(-1), total), None

        start = (jnp.zeros_like(log_sum), jnp.zeros(o.shape, log_sum.dtype))
        (d_log_sum, total), _ = jax.lax.scan(column, start, columns)
        return (total - d_log_sum[..., None] * o).astype(o.dtype), d_log_sum

    rows = tuple(_cut(x, blocks[0]) for x in (query, d_query, o, log_sum))
    d_o, d_log_sum = jax.lax.map(lambda part: row(part, columns), rows)
    return (o, log_sum), (_join(d_o, query.shape[2]), _join(d_log_sum, query.shape[2]))


def _logits(q: Array, k: Array, inside: Array | None) -> Array:
    """Equation (1), -inf for the keys that only fill the last block, or are masked: ``inside`` is (B or 1, keys)."""
    s = jnp.einsum("bhqd,bhkd->bhqk", q, k, preferred_element_type=jnp.promote_types(q.dtype, jnp.float32))
    s = s * q.shape[-1] ** -0.5
    return s if inside is None else jnp.where(inside[:, None, None, :], s, -jnp.inf)


def _product(dimensions: str, weights: Array, v: Array) -> Array:
    """Of float32 weights with values, the weights rounded to the values' dtype and the sum in float32."""
    return jnp.einsum(dimensions, weights.astype(v.dtype), v, preferred_element_type=weights.dtype)


def _count(length: int, most: int, even: bool) -> tuple[int, int]:
    """How many blocks, and the size of each: ``most``, or if even at most that, so that little stands past the end."""
    count = -(-length // most)
    return count, -(-length // count) if even else most


def _cut(x: Array, most: int, even: bool = True) -> Array:
    """``(B, H, L, ...) -> (blocks, B, H, size, ...)``, filled with zeros at the end."""
    count, size = _count(x.shape[2], most, even)
    fill = [(0, 0)] * x.ndim
    fill[2] = (0, count * size - x.shape[2])
    return jnp.moveaxis(jnp.pad(x, fill).reshape(*x.shape[:2], count, size, *x.shape[3:]), 2, 0)


def _join(x: Array, length: int) -> Array:
    """The inverse of `_cut`."""
    x = jnp.moveaxis(x, 0, 2)
    return x.reshape(*x.shape[:2], -1, *x.shape[4:])[:, :, :length]


def _inside(length: int, most: int, mask: Array | None) -> Array | None:
    """``(blocks, B or 1, size)``: which tokens of the blocks count; None where all do."""
    if mask is not None:
        return _cut(mask[:, None], most, even=False)[:, :, 0]
    count, size = _count(length, most, even=True)
    return None if count * size == length else (jnp.arange(count * size) < length).reshape(count, 1, size)
