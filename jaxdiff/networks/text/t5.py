"""T5's encoder, version 1.1.

Raffel et al. 2020, "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer",
https://arxiv.org/abs/1910.10683, section 2.1; the gate is of Shazeer 2020, "GLU Variants Improve Transformer",
https://arxiv.org/abs/2002.05202, equation (6). Nothing has a bias, and norm divides by the root mean square alone:

    norm(x) = gain x / sqrt(mean(x^2) + eps)                                        (1)
    h' = h_i + attention(norm1(h_i)),    logits q . k + table[bucket(j - i)]        (2)
    h_{i+1} = h' + contract(gelu(A n) (B n)),    n = norm2(h')                      (3)
    tokens = norm(h_depth)                                                          (4)

The products in (2) are not divided by sqrt(depth). All blocks share one table. With n = buckets/2 and e = n/2, a key d
tokens before its query is in the bucket

    bucket = d                                                       for d < e      (5)
    bucket = min(e + floor((n - e) log(d/e) / log(distance/e)), n - 1)      beyond  (6)

and one after it n further on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Float

from jaxdiff.networks.embeddings import LabelEmbedding, standard_normal
from jaxdiff.networks.layers import DType, Linear, Normal, RMSNorm, at_least_1, draw, normal
from jaxdiff.networks.text.stack import BiasedSelfAttention, check_dtype, stacked, through


@dataclass(frozen=True)
class T5:
    """Configuration of a T5 encoder; `jaxdiff.networks.text.TextEncoder` makes pure functions of it.

    The defaults are those of XXL.

    Args:
      vocabulary: ids are 0 .. vocabulary - 1.
      width: of the tokens.
      depth: blocks.
      heads: of attention.
      head_depth: of a head; heads times it need not be ``width``.
      hidden: width of the perceptron's hidden layer.
      buckets: of distances, a multiple of 4: half of them for keys before a query, half for those after.
      distance: from which on all distances are alike.
      eps: of the normalisations.
      dtype: what matrix products compute in; parameters and results are float32. XXL's states pass the largest number
        of float16, which is therefore refused.

    Raises:
      ValueError: values that do not fit each other.

    >>> from jaxdiff.networks.text import TextEncoder
    >>> encoder = TextEncoder(T5(vocabulary=100, width=16, depth=2, heads=3, head_depth=4, hidden=32))
    >>> params = jax.jit(encoder.init)(jax.random.key(0))
    >>> jax.jit(encoder.apply)(params, jnp.array([[5, 1, 0]]), jnp.array([[1, 1, 0]]))["tokens"].shape
    (1, 3, 16)
    """

    vocabulary: int = 32_128
    width: int = 4096
    depth: int = 24
    heads: int = 64
    head_depth: int = 64
    hidden: int = 10_240
    buckets: int = 32
    distance: int = 128
    eps: float = 1e-6
    dtype: DType = "float32"

    def __post_init__(self) -> None:
        at_least_1(self, "vocabulary", "width", "depth", "heads", "head_depth", "hidden")
        if self.buckets < 4 or self.buckets % 4 or self.distance <= self.buckets // 4:
            raise ValueError(
                f"buckets is a multiple of 4 and distance more than buckets/4, got {self.buckets} and {self.distance}"
            )
        check_dtype(self.dtype, ", in which T5 overflows" if self.dtype == "float16" else "")

    def __call__(self, rngs: nnx.Rngs) -> T5Module:
        """The module, with fresh parameters."""
        return draw(T5Module(self), rngs.params())


def distance_buckets(length: int, buckets: int = 32, distance: int = 128) -> np.ndarray:
    """Equations (5) and (6), for every difference j - i of a key's and a query's place in a text.

    Floor and logarithm are taken together in whole numbers, since (6) is the largest m with
    ``(d/e)^(n-e) >= (distance/e)^m``: float32 logarithms round where a distance is an edge.

    Args:
      length: L, of the text.
      buckets: of both directions.
      distance: of (6).

    Returns:
      ``(2 L - 1,)`` int32, for j - i = 1 - L .. L - 1.

    >>> distance_buckets(3).tolist()
    [2, 1, 0, 17, 18]
    """
    each, near = buckets // 2, buckets // 4
    far = each - near
    edges = [(distance**m * near ** (far - m), m) for m in range(1, far)]  # of d^far
    ahead = [d if d < near else near + sum(d**far >= edge for edge, _ in edges) for d in range(length)]
    return np.array([*ahead[:0:-1], 0, *(each + bucket for bucket in ahead[1:])], np.int32)


class T5Block(nnx.Module):
    """Equations (2) and (3)."""

    def __init__(self, config: T5):
        width, depth, dtype = config.width, config.head_depth, config.dtype
        inner = config.heads * depth

        def narrow_queries(shape: tuple[int, ...]) -> nnx.Param:  # in place of the division by sqrt(depth)
            deviation = jnp.full(shape, width**-0.5)
            return Normal(deviation.at[:, :inner].multiply(depth**-0.5))

        self.norm1, self.norm2 = (RMSNorm(width, eps=config.eps) for _ in range(2))
        self.attention = BiasedSelfAttention(
            width,
            config.heads,
            depth,
            scale=1.0,
            dtype=dtype,
            init=narrow_queries,
            out_init=normal(inner**-0.5),
            bias=False,
        )
        self.gate = Linear(width, config.hidden, dtype=dtype, init=normal(width**-0.5), bias=False)
        self.expand = Linear(width, config.hidden, dtype=dtype, init=normal(width**-0.5), bias=False)
        self.contract = Linear(config.hidden, width, dtype=dtype, init=normal(config.hidden**-0.5), bias=False)

    def __call__(self, x: Array, bias: Array, mask: Array | None) -> Array:
        """``(B, L, width) -> (B, L, width)`` float32."""
        x = x + self.attention(self.norm1(x), bias, mask).astype(x.dtype)
        n = self.norm2(x)
        return x + self.contract(jax.nn.gelu(self.gate(n), approximate=True) * self.expand(n)).astype(x.dtype)


class T5Module(nnx.Module):
    """The encoder that a `T5` configures, called as ``module(ids, mask)``."""

    def __init__(self, config: T5):
        self.config = config
        self.tokens = LabelEmbedding(config.vocabulary, config.width, null=False, init=standard_normal)
        self.distances = normal(config.width**-0.5)((config.buckets, config.heads))
        self.blocks = stacked(lambda: T5Block(config), config.depth)
        self.norm = RMSNorm(config.width, eps=config.eps)

    def __call__(self, ids: Array, mask: Array | None) -> dict[str, Array]:
        x = self.tokens(ids).astype(jnp.float32)
        x = through(self.blocks, x, 0, self.config.depth, self.distance_bias(ids.shape[1]), mask)
        return {"tokens": self.norm(x)}  # (4)

    def distance_bias(self, length: int) -> Float[Array, "heads length length"]:
        """The table's part of (2)."""
        buckets = distance_buckets(length, self.config.buckets, self.config.distance)
        by_difference = self.distances[...].astype(jnp.float32)[buckets]  # (2 L - 1, heads)
        place = jnp.arange(length)
        return by_difference[place[None, :] - place[:, None] + length - 1].transpose(2, 0, 1)


def t5_xxl(**changes: Any) -> T5:
    """The encoder of T5 v1.1 XXL: of SD3, FLUX.1 and PixArt.

    4,762,310,656 parameters. Texts end with 1 and are padded with 0. PixArt gives the mask of padding, to 120 or 300
    tokens; SD3 and FLUX.1 give none, to 256 or 512.

    Args:
      changes: fields of `T5` to replace.

    >>> t5_xxl(dtype="bfloat16").heads
    64
    """
    return T5(**changes)
