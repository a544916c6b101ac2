"""Attention by kernels written for one machine: cuDNN's on NVIDIA GPUs, Pallas' on TPUs. Both are FlashAttention.

A kernel comes with a reverse pass and no forward one: alone, it could not stand under `jax.jvp`, which likelihoods and
score matching take. `with_all_derivatives` adds it. With A the attention, J its Jacobian at q, k, v and K the kernel,

    tangent     J d                    by the differential of the chunked form, which equals A     (1)
    cotangent   J^T g                  by K's own reverse pass                                     (2)

JAX transposes the rule for (1) to get (2). To have K there instead, (1) is told as the solution of a linear system
whose transpose has a solution of its own (`jax.lax.custom_linear_solve`): for d known and w to be found,

    | 1   0 | |u|   |d|                      | 1  -J^T| |y|   |0|
    |-J   1 | |w| = |0|,  w = J d;           | 0    1 | |z| = |g|,  y = J^T g                      (3)

The matrix of (3) is written with (1), and is what a second derivative differentiates; only the two solutions run. So
forward over reverse, reverse over forward and `jax.vmap` of each hold too, and users need not say what they will take.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdiff.networks.chunked import chunked_attention, unmasked

Attend = Callable[..., Array]
"""``(query, key, value) -> output``, or with a mask last: numbers, 0 for the keys that are left out."""


def with_all_derivatives(kernel: Attend, reference: Attend = chunked_attention) -> Attend:
    """``kernel``, with the derivatives it lacks.

    Args:
      kernel: ``(query, key, value) -> output``, with a reverse pass; or of a mask too, in numbers.
      reference: the same function up to rounding, with every derivative.

    Returns:
      A function that runs ``kernel`` and its reverse pass, takes tangents by ``reference``, and second derivatives of
      both by those of ``reference``.
    """

    @jax.custom_jvp
    def recorded(*inputs: Array) -> tuple[Array, Any]:
        moving, mask = inputs[:3], inputs[3:]
        # The pullback is a tree of arrays: what the reverse pass needs. A mask is fixed.
        return jax.vjp(lambda *moving: kernel(*moving, *mask), *moving)

    @recorded.defjvp
    def _(primals: Any, tangents: Any) -> Any:
        output, pullback = recorded(*primals)
        still = jax.tree.map(_no_tangent, pullback)  # it only solves (3), and the solution's derivative is the matrix's
        return (output, pullback), (solved(primals, output, pullback, tangents[:3]), still)

    @jax.custom_jvp
    @functools.wraps(kernel)
    def attend(*inputs: Array) -> Array:
        return kernel(*inputs)

    @attend.defjvp
    def _(primals: Any, tangents: Any) -> Any:
        output, pullback = recorded(*primals)
        return output, solved(primals, output, pullback, tangents[:3])

    def solved(primals: Any, output: Array, pullback: Any, tangents: Any) -> Array:
        @jax.checkpoint  # or JAX would compute what the transpose of (1) needs, where (2) runs in its place
        def differential(primals: Any, d: Any) -> Array:
            return jax.jvp(lambda *moving: reference(*moving, *primals[3:]), primals[:3], d)[1]  # (1)

        push = functools.partial(differential, primals)

        def matrix(x: Any) -> Any:
            tangent = push(x[0])
            return _together((x[0], x[1] - tangent), tangent)

        def solution(_: Any, b: Any) -> Any:
            return b[0], b[1] + push(b[0])

        def solution_of_transpose(_: Any, b: Any) -> Any:
            return jax.tree.map(jnp.add, b[0], tuple(pullback(b[1]))), b[1]  # (2)

        right = _together((tuple(tangents), jnp.zeros_like(output)), tangents)
        return jax.lax.custom_linear_solve(matrix, right, solution, solution_of_transpose)[1]

    return attend


def _together(these: Any, vary: Any) -> Any:
    """``these`` plus 0, but for JAX they vary with ``vary``.

    JAX transposes the solution of a system only where all of its right side varies: not with the 0 of (3) in it, nor
    with the tangent of an input that is constant. Each has an empty sum added, which costs nothing.
    """
    nothing = jnp.stack([x[:0].sum() for x in jax.tree.leaves(vary)]).sum()
    return jax.tree.map(lambda x: x + nothing.astype(x.dtype), these)


def _no_tangent(x: Array) -> Any:
    if jnp.issubdtype(x.dtype, jnp.inexact):
        return jnp.zeros_like(x)
    return np.zeros(jnp.shape(x), jax.dtypes.float0)


@with_all_derivatives
def cudnn_attention(query: Array, key: Array, value: Array, mask: Array | None = None) -> Array:
    """By cuDNN, for 16-bit numbers on an NVIDIA GPU of compute capability 8.0 or more. Its logits are float32.

    Args:
      query, key, value: ``(batch, heads, tokens, depth)``; depth a multiple of 8, at most 128.
      mask: ``(batch, keys)``, 0 for the keys left out; cuDNN adds its logarithm, in the dtype's range, to the logits.

    Raises:
      NotImplementedError, RuntimeError: JAX's own, for another dtype, depth or machine.
    """
    told: dict[str, Any] = {}
    if mask is not None:  # with values of 0, a row of keys that are all left out gives 0 too
        key, value = unmasked(key, mask), unmasked(value, mask)
        told["mask"] = jnp.broadcast_to((mask != 0)[:, None, None, :], (len(mask), 1, query.shape[2], key.shape[2]))
    tokens_first = (x.swapaxes(1, 2) for x in (query, key, value))
    return jax.nn.dot_product_attention(*tokens_first, implementation="cudnn", **told).swapaxes(1, 2)


@with_all_derivatives
def flash_attention(query: Array, key: Array, value: Array, mask: Array | None = None) -> Array:
    """By the Pallas kernel that comes with JAX, on one TPU. Its logits are float32.

    Args:
      query, key, value: ``(batch, heads, tokens, depth)``; tokens a multiple of 128, depth one or at most 128.
      mask: ``(batch, keys)``, 0 for the keys left out; the kernel has it as two segments, of which one is attended to.

    Raises:
      ValueError, NotImplementedError: JAX's own, for other shapes.
    """
    from jaxdiff.compat import tpu_flash_attention as tpu  # here: it is slow to import

    rows, columns = (next(b for b in (512, 256, 128) if x.shape[2] % b == 0 or b == 128) for x in (query, key))
    sizes = tpu.BlockSizes(
        block_b=1,
        block_q=rows,
        block_k_major=columns,
        block_k=columns,
        block_q_major_dkv=rows,
        block_k_major_dkv=columns,
        block_q_dkv=rows,
        block_k_dkv=columns,
        block_q_dq=rows,
        block_k_major_dq=columns,
        block_k_dq=columns,
    )
    segments = None
    if mask is not None:
        key, value = unmasked(key, mask), unmasked(value, mask)
        segments = tpu.SegmentIds(jnp.ones((len(query), query.shape[2]), jnp.int32), (mask != 0).astype(jnp.int32))
    return tpu.flash_attention(
        query, key, value, segment_ids=segments, sm_scale=query.shape[-1] ** -0.5, block_sizes=sizes
    )
