"""Diffusion transformers with adaLN-Zero, and with cross-attention to text.

Peebles & Xie 2023, "Scalable Diffusion Models with Transformers", https://arxiv.org/abs/2212.09748, section 3. The
image is cut into patches, one token each. With c = silu(e), e = embedding of time + embedding of class, a block is

    shift1, scale1, gate1, shift2, scale2, gate2 = W c + b                  (1)
    x = x + gate1 attention(norm(x) (1 + scale1) + shift1)                  (2)
    x = x + gate2 mlp(norm(x) (1 + scale2) + shift2)                        (3)

where W, b and the last projection start at zero, so that every block starts as the identity and the whole network as
zero.

Where a condition is a row of tokens y (a text), every block attends to them after it has attended to itself; between
(2) and (3), with K the tokens that the mask leaves (Chen et al. 2023, "PixArt-alpha", https://arxiv.org/abs/2310.00426,
section 2.3, and its published code),

    x = x + attention(queries x, keys and values W2 gelu(W1 y) of K)        (4)

whose last projection starts at zero too. PixArt's adaLN-single has one W for all blocks, and a table S of each block:

    shift1, ..., gate2 = W c + b + S,   and at the end   shift, scale = e + S'        (5)

The blocks are one row (`jaxdiff.networks.modulation.through`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.networks.attention import CrossAttention, SelfAttention
from jaxdiff.networks.conditions import (
    NetCondition,
    Tokens,
    Vector,
    cond_specs,
    image_channels,
    token_width,
    with_images,
)
from jaxdiff.networks.embedded import ConditionEmbeddings
from jaxdiff.networks.embeddings import LabelEmbedding, TimeEmbedding, position_embedding
from jaxdiff.networks.layers import (
    DType,
    Linear,
    at_least_1,
    check_images,
    draw,
    dropout,
    each_token,
    layer_norm,
    normal,
    zeros,
)
from jaxdiff.networks.modulation import gated, modulate, parted, stacked, through, to_pixels, to_tokens
from jaxdiff.networks.perturbed import Perturbation, Rows, attending, left_out
from jaxdiff.networks.placement import by_feature
from jaxdiff.networks.remat import Remat, check_remat
from jaxdiff.spec import Specs

Modulation = Literal["block", "single"]
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
      mlp_norm_eps: of those before the perceptrons, where it is another, as in diffusers' pipelines.
      remat: what the backward pass computes again to save memory: nothing, a whole block at a time ("full"), or all but
        the results of matrix products with weights ("dots").
      dtype: what matrix products compute in; parameters and output are float32.
      conditions: what else the network takes (`jaxdiff.networks.conditions`). Of rows of tokens every block has a
        cross-attention.
      modulation: whether each block has a W of its own, equation (1), or all share one, equation (5).
      span: what positions run up to, whatever the number of tokens: row r of R stands at ``r span / R``; None: at r.

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
    mlp_norm_eps: float | None = None
    remat: Remat = "none"
    dtype: DType = "float32"
    conditions: tuple[NetCondition, ...] = ()
    modulation: Modulation = "block"
    span: float | None = None

    def __post_init__(self) -> None:
        at_least_1(
            self, "in_channels", "out_channels", "patch", "width", "depth", "heads", "num_classes", "frequencies"
        )
        if self.width % self.heads or self.width % 4:
            raise ValueError(f"width={self.width} must be divisible by 4 and by heads={self.heads}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout} must be in [0, 1)")
        if self.modulation not in get_args(Modulation):
            raise ValueError(f"modulation={self.modulation!r} must be one of {', '.join(get_args(Modulation))}")
        if self.span is not None and not self.span > 0:
            raise ValueError(f"span={self.span} must be positive")
        check_remat(self.remat)
        cond_specs(self.num_classes, self.null_class, self.conditions)

    @property
    def cond(self) -> Specs:
        """What the network takes beside x and t."""
        return cond_specs(self.num_classes, self.null_class, self.conditions)

    @property
    def attends(self) -> bool:
        """Whether it has tokens to attend to."""
        return token_width(self.conditions, self.width) is not None

    def __call__(self, rngs: nnx.Rngs) -> DiTModule:
        """The module, with fresh parameters."""
        return draw(DiTModule(self), rngs.params())


class Told(NamedTuple):
    """What every block is told, the samples first.

    Attributes:
      vector: c of equation (1), ``(B, width)``; with one modulation for all, e.
      shared: W c + b of equation (5), ``(B, 6 width)``.
      text: keys and values of equation (4), ``(B, L, width)``.
      mask: which of them are attended, ``(B, L)``; None: all.
    """

    vector: Array
    shared: Array | None = None
    text: Array | None = None
    mask: Array | None = None


class DiTBlock(nnx.Module):
    """Equations (1) to (5)."""

    perturbed: Perturbation | None = None

    def __init__(self, config: DiT):
        hidden = int(config.width * config.mlp_ratio)
        self.config = config
        self.attention = SelfAttention(config.width, config.heads, dtype=config.dtype)
        if config.attends:
            self.cross_attention = CrossAttention(
                config.width, config.width, config.heads, dtype=config.dtype, init=zeros
            )
        self.expand = Linear(config.width, hidden, dtype=config.dtype)
        self.contract = Linear(hidden, config.width, dtype=config.dtype)
        if config.modulation == "block":
            self.modulation = Linear(config.width, 6 * config.width, init=zeros)
        else:
            self.table = normal(config.width**-0.5)((6, config.width))

    def __call__(self, x: Array, told: Told, key: Array | None, grid: tuple[int, int] | None = None) -> Array:
        """``(B, L, C)`` tokens -> ``(B, L, C)``; grid: their rows and columns."""
        return x if left_out(self.perturbed) else self.traced(x, told, key, grid)[0]

    def traced(
        self, x: Array, told: Told, key: Array | None, grid: tuple[int, int] | None = None
    ) -> tuple[Array, tuple[Array, ...]]:
        """Also what attention, cross-attention and perceptron gave, before the gates."""
        keys = (None, None) if key is None else jax.random.split(key)
        eps, rate = self.config.norm_eps, self.config.dropout
        shift1, scale1, gate1, shift2, scale2, gate2 = self._modulation(told)  # (B, C) each

        attend = attending(self.perturbed, grid)
        attended = self.attention(modulate(layer_norm(x, eps), shift1, scale1).astype(x.dtype), attend=attend)
        x = gated(x, gate1, dropout(attended, rate, keys[0]))
        crossed: tuple[Array, ...] = ()
        if told.text is not None:
            crossed = (self.cross_attention(x, told.text, told.mask),)
            x = sum(crossed, start=x)
        last = eps if self.config.mlp_norm_eps is None else self.config.mlp_norm_eps
        h = self.expand(modulate(layer_norm(x, last), shift2, scale2).astype(x.dtype))
        h = self.contract(jax.nn.gelu(h, approximate=True))
        return gated(x, gate2, dropout(h, rate, keys[1])), (attended, *crossed, h)

    def joined(self, x: Array, told: Told, given: tuple[Array, ...]) -> Array:
        """The block with what its parts give given: of equations (1) to (5) the gates and the sums."""
        _, _, gate1, _, _, gate2 = self._modulation(told)
        attended, *crossed, h = given
        return gated(sum(crossed, start=gated(x, gate1, attended)), gate2, h)

    def _modulation(self, told: Told) -> list[Array]:
        if told.shared is None:
            return parted(self.modulation, told.vector, 6)
        return jnp.split(told.shared + self.table[...].reshape(1, -1), 6, axis=-1)


class DiTModule(nnx.Module):
    """The transformer that a `DiT` configures, called as ``module(x, t, cond, key)``."""

    def __init__(self, config: DiT):
        self.config = config
        width, pixels = config.width, config.patch**2
        inputs = config.in_channels + image_channels(config.conditions)
        self.patches = Linear(inputs * pixels, width, dtype=config.dtype)
        self.time = TimeEmbedding(config.frequencies, width, shift=config.time_shift, init=small)
        classes = config.num_classes
        self.label = LabelEmbedding(classes, width, null=config.null_class, init=small) if classes is not None else None
        tokens = width if config.attends else None
        self.told = ConditionEmbeddings(config.conditions, width, tokens=tokens, mapped=True, init=small)
        if config.attends:
            self.text = Linear(width, width, dtype=config.dtype, init=small)
        self.blocks = stacked(lambda: DiTBlock(config), config.depth)
        if config.modulation == "block":
            self.modulation = Linear(width, 2 * width, init=zeros)
        else:
            self.modulation = Linear(width, 6 * width, init=small)
            self.table = normal(width**-0.5)((2, width))
        outputs = (config.out_channels or config.in_channels) * pixels
        self.out = Linear(width, outputs, init=zeros)

    def __call__(self, x: Array, t: ArrayLike, cond: Mapping[str, Any], key: Array | None) -> Array:
        tokens, told = self.enter(x, t, cond)
        grid = x.shape[1] // self.config.patch, x.shape[2] // self.config.patch
        return self.leave(self._blocks(tokens, told, key, grid), told, x)

    @property
    def rows(self) -> Rows:
        """What can be perturbed (`jaxdiff.networks.perturbed`)."""
        return Rows([(self.blocks, self.config.depth)])

    def enter(self, x: Array, t: ArrayLike, cond: Mapping[str, Any]) -> tuple[Array, Told]:
        """The tokens ``(B, L, width)`` that the first block takes, and what all are told."""
        config = self.config
        check_images(x, config.in_channels, config.patch, "DiT")
        embedded = self.told(cond)
        e = self.time(t, x.shape[0])
        if self.label is not None:
            e = e + self.label(cond["label"])
        e = e + embedded.vector
        told = Told(jax.nn.silu(e))
        if config.modulation == "single":
            told = Told(e, by_feature(self.modulation(told.vector), config.width))
        if embedded.tokens is not None:
            text = each_token(self.text, jax.nn.gelu(embedded.tokens, approximate=True))
            told = told._replace(text=text, mask=embedded.mask)

        rows, columns = x.shape[1] // config.patch, x.shape[2] // config.patch
        tokens = self.patches(to_tokens(with_images(x, cond, config.conditions), config.patch))
        row, column = (np.arange(n) * (1 if config.span is None else config.span / n) for n in (rows, columns))
        return tokens + jnp.asarray(position_embedding(row, column, config.width), tokens.dtype)[None], told

    def leave(self, tokens: Array, told: Told, x: Array) -> Array:
        """The output, shaped by the input x, of the last block's tokens."""
        if self.config.modulation == "block":
            shift, scale = parted(self.modulation, told.vector, 2)
        else:
            shift, scale = (row[None] + told.vector for row in self.table[...])
        tokens = self.out(modulate(layer_norm(tokens, self.config.norm_eps), shift, scale))
        return to_pixels(tokens, (x.shape[1], x.shape[2]), self.config.patch)

    def _blocks(self, tokens: Array, told: Told, key: Array | None, grid: tuple[int, int]) -> Array:
        depth, remat = self.config.depth, self.config.remat
        keys = None if key is None else jax.random.split(key, depth)

        def call(block: DiTBlock, tokens: Array, told: Told, key: Array | None) -> tuple[Array, None]:
            return block(tokens, told, key, grid), None

        return through(self.blocks, tokens, told, keys, call=call, depth=depth, remat=remat)[0]


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


def pixart_sigma(**changes: Any) -> DiT:
    """PixArt-Sigma for images of 1024 pixels (Chen et al. 2024, https://arxiv.org/abs/2403.04692): 611 million
    parameters, 300 tokens of T5-XXL with their mask, 4-channel latents, a learned variance.

    Args:
      changes: fields of `DiT` to replace. For 512 pixels ``span`` is 32 too.

    >>> pixart_sigma().modulation
    'single'
    """
    fields: dict[str, Any] = {"in_channels": 4, "out_channels": 8, "patch": 2, "width": 1152, "depth": 28, "heads": 16}
    fields |= {"modulation": "single", "span": 32.0, "conditions": (Tokens("text", 4096),)}
    return DiT(**{**fields, **changes})


def pixart_alpha(**changes: Any) -> DiT:
    """PixArt-alpha for images of 1024 pixels (Chen et al. 2023, https://arxiv.org/abs/2310.00426): `pixart_sigma`, of
    120 tokens, that is told ``"resolution"``, height and width in pixels, and ``"aspect_ratio"``, height over width.

    Args:
      changes: fields of `DiT` to replace.

    >>> sorted(pixart_alpha().cond)
    ['aspect_ratio', 'resolution', 'text']
    """
    network = pixart_sigma(**changes)
    if "conditions" in changes:
        return network
    return dataclasses.replace(network, conditions=(*network.conditions, *sizes_told(network.width)))


def sizes_told(width: int) -> tuple[NetCondition, ...]:
    """PixArt-alpha's conditions beside the text, in a network of a width: each of three numbers has its third of the
    embedding of time.

    >>> [each.name for each in sizes_told(1152)]
    ['resolution', 'aspect_ratio']
    """
    third = width // 3
    return (
        Vector("resolution", 2, fourier=256, null=False, channels=(0, 2 * third)),
        Vector("aspect_ratio", 1, fourier=256, null=False, channels=(2 * third, 3 * third)),
    )
