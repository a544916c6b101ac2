"""What the transformers share: patches for tokens, modulation by one vector a sample, and the row of equal blocks.

With h the tokens, f a part of a block (attention or a perceptron) and (shift, scale, gate) told to the whole sample
(Peebles & Xie 2023, https://arxiv.org/abs/2212.09748, section 3.2),

    m(h) = norm(h) (1 + scale) + shift                                                              (1)
    h    = h + gate f(m(h))                                                                         (2)

Blocks of one kind are alike: their parameters are stacked along a first axis, and the row of them is one
`jax.lax.scan`, so that the time to compile does not grow with depth. On a CPU the scan of a few blocks is unrolled
(`jaxdiff.networks.backend.unrolled`). Where some of a row are perturbed (`jaxdiff.networks.perturbed`), the scan has
both blocks and runs one of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from jaxdiff.networks.backend import present_machine, unrolled
from jaxdiff.networks.layers import DType, Init, Linear, fan_average
from jaxdiff.networks.perturbed import Perturbation
from jaxdiff.networks.placement import by_feature, by_sample
from jaxdiff.networks.remat import Remat, recomputed


def modulate(x: Array, shift: Array, scale: Array) -> Array:
    """``x (1 + scale) + shift``: ``(B, L, C)`` tokens by one ``(B, C)`` vector a sample.

    >>> modulate(jnp.ones((1, 2, 1)), jnp.array([[3.0]]), jnp.array([[1.0]])).ravel().tolist()
    [5.0, 5.0]
    """
    return x * (1 + scale[:, None, :]) + shift[:, None, :]


def gated(x: Array, gate: Array, part: Array) -> Array:
    """``x + gate part``, of equation (2), in ``x``'s dtype: ``(B, L, C)`` tokens and one ``(B, C)`` gate a sample.

    >>> gated(jnp.ones((1, 2, 1)), jnp.array([[2.0]]), jnp.full((1, 2, 1), 3.0)).ravel().tolist()
    [7.0, 7.0]
    """
    return x + gate[:, None, :].astype(x.dtype) * part


def parted(layer: Linear, c: Array, parts: int) -> list[Array]:
    """The shifts, scales and gates that a layer makes of ``(B, C)`` conditioning: ``parts`` arrays ``(B, C')``."""
    return jnp.split(by_feature(layer(c), c.shape[-1]), parts, axis=-1)


class Perceptron(nnx.Module):
    """Two layers with GELU between.

    Args:
      width: of the tokens.
      hidden: of the layer between.
      exact: whether GELU is by the error function, not by tanh.
      init: of both kernels.
    """

    def __init__(
        self, width: int, hidden: int, *, exact: bool = False, dtype: DType = "float32", init: Init = fan_average
    ):
        self.exact = exact
        self.expand = Linear(width, hidden, dtype=dtype, init=init)
        self.contract = Linear(hidden, width, dtype=dtype, init=init)

    def __call__(self, x: Array) -> Array:
        """``(..., width) -> (..., width)``.

        >>> Perceptron(4, 16)(jnp.ones((2, 3, 4))).shape
        (2, 3, 4)
        """
        return self.contract(jax.nn.gelu(self.expand(x), approximate=not self.exact))


def to_tokens(x: Array, patch: int) -> Array:
    """The pixels of each patch, row after row: ``(B, H, W, C) -> (B, H/p W/p, p p C)``.

    >>> to_tokens(jnp.arange(8.0).reshape(1, 2, 4, 1), 2).tolist()
    [[[0.0, 1.0, 4.0, 5.0], [2.0, 3.0, 6.0, 7.0]]]
    """
    batch, height, width, _ = x.shape
    rows, columns = height // patch, width // patch
    tokens = x.reshape(batch, rows, patch, columns, patch, -1).transpose(0, 1, 3, 2, 4, 5)
    return tokens.reshape(batch, rows * columns, -1)


def to_pixels(tokens: Array, size: tuple[int, int], patch: int) -> Array:
    """The inverse of `to_tokens`: ``(B, H/p W/p, p p C) -> (B, H, W, C)``.

    >>> to_pixels(to_tokens(jnp.arange(8.0).reshape(1, 2, 4, 1), 2), (2, 4), 2).ravel().tolist()
    [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    """
    batch, (height, width) = tokens.shape[0], size
    rows, columns = height // patch, width // patch
    tokens = tokens.reshape(batch, rows, columns, patch, patch, -1).transpose(0, 1, 3, 2, 4, 5)
    return tokens.reshape(batch, height, width, -1)


def stacked(make: Callable[[], nnx.Module], depth: int) -> Any:
    """``depth`` blocks as one module, whose every weight is ``(depth, ...)``."""
    return jax.vmap(lambda _: make())(jnp.arange(depth))


def through(
    blocks: nnx.Module,
    tokens: Any,
    told: Any,
    each: Any = None,
    *,
    call: Callable[[Any, Any, Any, Any], tuple[Any, Any]],
    depth: int,
    remat: Remat,
) -> tuple[Any, Any]:
    """The tokens after a row of equal blocks.

    Args:
      blocks: from `stacked`.
      tokens: what passes from block to block, arrays with the samples first.
      told: what every block is told, likewise.
      each: what each block has for itself, the blocks first: keys, the tokens of a long skip connection.
      call: ``(block, tokens, told, each) -> (tokens, kept)``.
      depth: blocks of the network, which decides whether they are unrolled.
      remat: what the backward pass computes again.

    Returns:
      The tokens, and what the blocks kept, stacked.
    """
    graphdef, weights = nnx.split(blocks)
    perturbed: Perturbation | None = getattr(blocks, "perturbed", None)
    which = None if perturbed is None or all(perturbed.which) else jnp.array(perturbed.which)

    def block(tokens: Any, layer: tuple[Any, Any, Any]) -> tuple[Any, Any]:
        params, mine, chosen = layer

        def run(made: Any) -> tuple[Any, Any]:
            after, kept = call(made, jax.tree.map(by_sample, tokens), jax.tree.map(by_sample, told), mine)
            return jax.tree.map(by_sample, after), kept

        def as_trained() -> tuple[Any, Any]:
            made: Any = nnx.merge(graphdef, params)
            made.perturbed = None
            return run(made)

        if chosen is None:
            return run(nnx.merge(graphdef, params))
        return jax.lax.cond(chosen, lambda: run(nnx.merge(graphdef, params)), as_trained)

    loop = remat != "none" or not unrolled(present_machine(), depth)
    block = recomputed(block, remat, scanned=True)  # which holds in a loop only
    return jax.lax.scan(block, tokens, (weights, each, which), unroll=not loop)
