"""Diffusion transformers with adaLN-Zero.

Peebles & Xie 2023, "Scalable Diffusion Models with Transformers", https://arxiv.org/abs/2212.09748, section 3. The
image is cut into patches, one token each. With c = silu(embedding of time + embedding of class), a block is

    shift1, scale1, gate1, shift2, scale2, gate2 = W c + b                  (1)
    x = x + gate1 attention(norm(x) (1 + scale1) + shift1)                  (2)
    x = x + gate2 mlp(norm(x) (1 + scale2) + shift2)                        (3)

where W, b and the last projection start at zero, so that every block starts as the identity and the whole network as
zero.

All blocks are alike: their parameters are stacked along a first axis, and depth is one `jax.lax.scan`, so that the time
to compile does not grow with it. On a CPU the scan of a few blocks is unrolled (`jaxdiff.networks.backend.unrolled`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.networks.attention import SelfAttention
from jaxdiff.networks.backend import present_machine, unrolled
from jaxdiff.networks.conditions import NetCondition, cond_specs, image_channels, with_images
from jaxdiff.networks.embedded import ConditionEmbeddings
from jaxdiff.networks.embeddings import LabelEmbedding, TimeEmbedding, position_embedding
from jaxdiff.networks.layers import DType, Linear, check_images, draw, dropout, layer_norm, normal, zeros
from jaxdiff.networks.placement import by_feature, by_sample
from jaxdiff.networks.remat import Remat, check_remat, recomputed
from jaxdiff.spec import Condition

small = normal(0.02)


@dataclass(frozen=True)
class DiT:
    """Configuration of a diffusion transformer; `jaxdiff.networks.functional` makes a network of it. Defaults: DiT-S/2.

    Images of any size divisible by ``patch`` pass through one network, square or not: positions are computed, not
    stored.

    Args:
      in_channels: of the images or latents.
      out_channels: of the output; None: as many as ``in_channels``. A learned variance needs twice as many.
      patch: side of the square of pixels that makes a token.
      width: of the tokens, divisible by 4 and by ``heads``.
      depth: blocks.
      heads: of attention.
      mlp_ratio: width of the perceptron's hidden layer over ``width``.
      num_classes: for a network conditioned on ``cond["label"]``; None for one that is not.
      null_class: whether label ``num_classes`` means "no class" (one row more in the table).
      dropout: rate at the end of attention and perceptron, in [0, 1); applies when a key is passed.
      frequencies: width of the sinusoidal time embedding, even.
      time_shift: of its frequencies: 0 in the authors' code, 1 in diffusers' pipelines.
      norm_eps: of the normalisations.
      remat: what the backward pass computes again to save memory: nothing, a whole block at a time ("full"), or all but
        the results of matrix products with weights ("dots").
      dtype: what matrix products compute in; parameters and output are float32.
      conditions: what else the network takes: `jaxdiff.networks.Vector`, `jaxdiff.networks.Image`.

    Raises:
      ValueError: values that do not fit each other.

    >>> from jaxdiff.networks import functional
    >>> net = functional(DiT(in_channels=3, patch=4, width=32, depth=3, heads=4, num_classes=10))
    >>> params = jax.jit(net.init)(jax.random.key(0))
    >>> params["blocks"]["attention"]["qkv"]["kernel"].shape
    (3, 32, 3, 32)
    >>> jax.jit(net.apply)(params, jnp.zeros((2, 8, 16, 3)), 0.5, {"label": jnp.array([3, 10])}).shape
    (2, 8, 16, 3)
    """

    in_channels: int = 4
    out_channels: int | None = None
    patch: int = 2
    width: int = 384
    depth: int = 12
    heads: int = 6
    mlp_ratio: float = 4.0
    num_classes: int | None = None
    null_class: bool = True
    dropout: float = 0.0
    frequencies: int = 256
    time_shift: float = 0.0
    norm_eps: float = 1e-6
    remat: Remat = "none"
    dtype: DType = "float32"
    conditions: tuple[NetCondition, ...] = ()

    def __post_init__(self) -> None:
        if self.width % self.heads or self.width % 4:
            raise ValueError(f"width={self.width} must be divisible by 4 and by heads={self.heads}")
        if self.depth < 1 or self.patch < 1:
            raise ValueError(f"depth={self.depth} and patch={self.patch} must be at least 1")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout} must be in [0, 1)")
        check_remat(self.remat)
        cond_specs(self.num_classes, self.null_class, self.conditions)

    @property
    def cond(self) -> dict[str, Condition]:
        """What the network takes beside x and t."""
        return cond_specs(self.num_classes, self.null_class, self.conditions)

    def __call__(self, rngs: nnx.Rngs) -> DiTModule:
        """The module, with fresh parameters."""
        return draw(DiTModule(self), rngs.params())


def modulate(x: Array, shift: Array, scale: Array) -> Array:
    """``x (1 + scale) + shift``: ``(B, L, C)`` tokens by one ``(B, C)`` vector a sample."""
    return x * (1 + scale[:, None, :]) + shift[:, None, :]


class DiTBlock(nnx.Module):
    """Equations (1) to (3)."""

    def __init__(self, config: DiT):
        hidden = int(config.width * config.mlp_ratio)
        self.config = config
        self.attention = SelfAttention(config.width, config.heads, dtype=config.dtype)
        self.expand = Linear(config.width, hidden, dtype=config.dtype)
        self.contract = Linear(hidden, config.width, dtype=config.dtype)
        self.modulation = Linear(config.width, 6 * config.width, init=zeros)

    def __call__(self, x: Array, c: Array, key: Array | None) -> Array:
        """``(B, L, C)`` tokens and ``(B, C)`` conditioning -> ``(B, L, C)``."""
        return self.traced(x, c, key)[0]

    def traced(self, x: Array, c: Array, key: Array | None) -> tuple[Array, tuple[Array, Array]]:
        """Also what attention and perceptron gave, before the gates."""
        keys = (None, None) if key is None else jax.random.split(key)
        eps, rate = self.config.norm_eps, self.config.dropout
        shift1, scale1, gate1, shift2, scale2, gate2 = self._modulation(c)  # (B, C) each

        attended = self.attention(modulate(layer_norm(x, eps), shift1, scale1).astype(x.dtype))
        x = x + gate1[:, None, :].astype(x.dtype) * dropout(attended, rate, keys[0])
        h = self.expand(modulate(layer_norm(x, eps), shift2, scale2).astype(x.dtype))
        h = self.contract(jax.nn.gelu(h, approximate=True))
        return x + gate2[:, None, :].astype(x.dtype) * dropout(h, rate, keys[1]), (attended, h)

    def joined(self, x: Array, c: Array, given: tuple[Array, Array]) -> Array:
        """The block with what attention and perceptron give given: of equations (1) to (3) the gates and the sums."""
        _, _, gate1, _, _, gate2 = self._modulation(c)
        for gate, part in zip((gate1, gate2), given, strict=True):
            x = x + gate[:, None, :].astype(x.dtype) * part
        return x

    def _modulation(self, c: Array) -> list[Array]:
        return jnp.split(by_feature(self.modulation(c), self.config.width), 6, axis=-1)


class DiTModule(nnx.Module):
    """The transformer that a `DiT` configures, called as ``module(x, t, cond, key)``."""

    def __init__(self, config: DiT):
        self.config = config
        pixels = config.patch**2
        inputs = config.in_channels + image_channels(config.conditions)
        self.patches = Linear(inputs * pixels, config.width, dtype=config.dtype)
        self.time = TimeEmbedding(config.frequencies, config.width, shift=config.time_shift, init=small)
        classes = config.num_classes
        self.label = (
            LabelEmbedding(classes, config.width, null=config.null_class, init=small) if classes is not None else None
        )
        self.told = ConditionEmbeddings(config.conditions, config.width, init=small)
        self.blocks = jax.vmap(lambda _: DiTBlock(config))(jnp.arange(config.depth))  # every weight (depth, ...)
        self.modulation = Linear(config.width, 2 * config.width, init=zeros)
        outputs = (config.out_channels or config.in_channels) * pixels
        self.out = Linear(config.width, outputs, init=zeros)

    def __call__(self, x: Array, t: ArrayLike, cond: Mapping[str, Array], key: Array | None) -> Array:
        tokens, c = self.enter(x, t, cond)
        return self.leave(self._blocks(tokens, c, key), c, x)

    def enter(self, x: Array, t: ArrayLike, cond: Mapping[str, Array]) -> tuple[Array, Array]:
        """The tokens ``(B, L, width)`` and the conditioning ``(B, width)`` that the first block takes."""
        patch = self.config.patch
        check_images(x, self.config.in_channels, patch, "DiT")
        batch, height, width, _ = x.shape
        rows, columns = height // patch, width // patch

        c = self.time(t, batch)
        if self.label is not None:
            c = c + self.label(cond["label"])
        c = jax.nn.silu(c + self.told(cond).vector)

        x = with_images(x, cond, self.config.conditions)
        tokens = x.reshape(batch, rows, patch, columns, patch, -1).transpose(0, 1, 3, 2, 4, 5)
        tokens = self.patches(tokens.reshape(batch, rows * columns, -1))
        return tokens + jnp.asarray(position_embedding(rows, columns, self.config.width), tokens.dtype)[None], c

    def leave(self, tokens: Array, c: Array, x: Array) -> Array:
        """The output, shaped by the input x, of the last block's tokens."""
        patch = self.config.patch
        batch, height, width, _ = x.shape
        rows, columns = height // patch, width // patch
        shift, scale = jnp.split(by_feature(self.modulation(c), self.config.width), 2, axis=-1)
        tokens = self.out(modulate(layer_norm(tokens, self.config.norm_eps), shift, scale))
        tokens = tokens.reshape(batch, rows, columns, patch, patch, -1).transpose(0, 1, 3, 2, 4, 5)
        return tokens.reshape(batch, height, width, -1)

    def _blocks(self, tokens: Array, c: Array, key: Array | None) -> Array:
        graphdef, stacked = nnx.split(self.blocks)
        keys = None if key is None else jax.random.split(key, self.config.depth)

        def block(tokens: Array, layer: tuple[Any, Array | None]) -> tuple[Array, None]:
            params, key = layer
            return by_sample(nnx.merge(graphdef, params)(by_sample(tokens), by_sample(c), key)), None

        loop = self.config.remat != "none" or not unrolled(present_machine(), self.config.depth)
        block = recomputed(block, self.config.remat, scanned=True)  # which holds in a loop only
        return jax.lax.scan(block, tokens, (stacked, keys), unroll=not loop)[0]


def dit(size: Literal["S", "B", "L", "XL"], patch: int = 2, **changes: Any) -> DiT:
    """The ImageNet networks of Peebles & Xie 2023: 4-channel latents, learned variance, 1000 classes and null.

    Args:
      size: "S", "B", "L" or "XL": 33, 130, 458 or 675 million parameters.
      patch: 2, 4 or 8 in the paper.
      changes: fields of `DiT` to replace.

    Raises:
      ValueError: another size.

    >>> dit("XL", 2).depth
    28
    >>> dit("S", 2, in_channels=1, out_channels=None, num_classes=10).num_classes
    10
    """
    sizes: dict[str, dict[str, Any]] = {
        "S": {"depth": 12, "width": 384, "heads": 6},
        "B": {"depth": 12, "width": 768, "heads": 12},
        "L": {"depth": 24, "width": 1024, "heads": 16},
        "XL": {"depth": 28, "width": 1152, "heads": 16},
    }
    if size not in sizes:
        raise ValueError(f"DiT sizes are {', '.join(sizes)}, got {size!r}: configure `DiT` itself")
    fields: dict[str, Any] = {"out_channels": 8, "num_classes": 1000, "patch": patch}
    return DiT(**{**fields, **sizes[size], **changes})
