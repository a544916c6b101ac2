"""Multimodal diffusion transformers: attention of image and text to each other, each with weights of its own.

Esser et al. 2024, "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis" (SD3),
https://arxiv.org/abs/2403.03206, section 4 and figure 2; FLUX.1 (Black Forest Labs 2024) by its published code. With x
the tokens of the image (its patches), y those of the text, c = silu(embedding of time + of the pooled text), and
m(h) = norm(h) (1 + scale) + shift, a double block is, for each stream h in (x, y) with weights of its own,

    shift1, scale1, gate1, shift2, scale2, gate2 = W c + b                                          (1)
    q_h, k_h, v_h = P m1(h),    then by head   q_h = g norm(q_h),  k_h = g' norm(k_h)               (2)
    a_x, a_y = attention(queries [q_x, q_y], keys [k_x, k_y], values [v_x, v_y])                    (3)
    h = h + gate1 O a_h                                                                             (4)
    h = h + gate2 mlp(m2(h))                                                                        (5)

norm in (2) divides by the root mean square (Zhang & Sennrich 2019, https://arxiv.org/abs/1910.07467); SD3 has no norm
there, 3.5 and FLUX.1 do. Nothing reads the text after the network's last block: where that is a double block, its text
stream has only (1) to (3), and of (1) only shift1, scale1. The first blocks of SD3.5-Medium have a second attention, of
the image to itself, which sees x as (3) does: between (4) and (5)

    x = x + gate3 O' attention(P' (norm(x before (4)) (1 + scale3) + shift3)).                      (6)

FLUX.1 goes on with single blocks, one set of weights over the joined row z = [x, y], attention beside the perceptron:

    shift, scale, gate = W c + b,    z = z + gate (O attention(P m(z)) + D gelu(E m(z)))            (7)

Positions are sines and cosines added to x (SD3), or rotations of q_x and k_x by row and column (FLUX.1); a text has
none. The order in which (3) joins the streams does not matter to the result. W, b and the last projection start at
zero: every block starts as the identity and the whole network as zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.networks.attention import QueryKeyValue
from jaxdiff.networks.conditions import (
    NetCondition,
    cond_specs,
    image_channels,
    token_width,
    with_images,
)
from jaxdiff.networks.embedded import ConditionEmbeddings, filled_up
from jaxdiff.networks.embeddings import LabelEmbedding, TimeEmbedding, position_embedding, rotary_angles, rotated
from jaxdiff.networks.layers import DType, Linear, RMSNorm, at_least_1, check_images, draw, layer_norm, normal, zeros
from jaxdiff.networks.modulation import Perceptron, gated, modulate, parted, stacked, through, to_pixels, to_tokens
from jaxdiff.networks.perturbed import Perturbation, Rows, attending, left_out
from jaxdiff.networks.remat import Remat, check_remat
from jaxdiff.spec import Specs

small = normal(0.02)


@dataclass(frozen=True)
class MMDiT:
    """Configuration of a transformer over two streams; `jaxdiff.networks.functional` makes a network of it. Defaults:
    the size of SD3-Medium.

    At least one condition is a row of tokens (`jaxdiff.networks.Text`, `jaxdiff.networks.Tokens`): the text stream.

    Args:
      in_channels: of the images or latents.
      out_channels: of the output; None: as many as ``in_channels``.
      patch: side of the square of pixels that makes a token.
      width: of the tokens, divisible by 4 and by ``heads``.
      depth: double blocks, equations (1) to (5).
      single_blocks: after them, equation (7).
      heads: of attention.
      mlp_ratio: width of the perceptrons' hidden layers over ``width``.
      qk_norm: whether queries and keys are normalised, (2).
      dual: how many of the double blocks, the first ones, have the second attention (6).
      rope: widths of the rotary axes (none, row, column) that make up a head, such as (16, 56, 56); None: positions are
        added, not rotated.
      grid: without ``rope``: rows and columns of tokens of the table of positions; an image has those at its middle.
      span: without ``rope``: what positions run up to: row r of the table stands at ``r span / grid``.
      num_classes: for a network conditioned on ``cond["label"]``; None for one that is not.
      null_class: whether label ``num_classes`` means "no class".
      frequencies: width of the sinusoidal time embedding, even.
      norm_eps: of the normalisations.
      remat: as of `jaxdiff.networks.DiT`.
      dtype: what matrix products compute in; parameters and output are float32.
      conditions: what else the network takes (`jaxdiff.networks.conditions`).

    Raises:
      ValueError: values that do not fit each other.

    >>> from jaxdiff.networks import Tokens, functional
    >>> text = Tokens("text", 8, pooled=6)
    >>> net = functional(MMDiT(in_channels=1, width=16, depth=2, heads=2, conditions=(text,)))
    >>> params = jax.jit(net.init)(jax.random.key(0))
    >>> given = {"tokens": jnp.ones((2, 5, 8)), "mask": jnp.ones((2, 5)), "pooled": jnp.ones((2, 6))}
    >>> jax.jit(net.apply)(params, jnp.zeros((2, 8, 8, 1)), 0.5, {"text": given}).shape
    (2, 8, 8, 1)
    """

    in_channels: int = 16
    out_channels: int | None = None
    patch: int = 2
    width: int = 1536
    depth: int = 24
    single_blocks: int = 0
    heads: int = 24
    mlp_ratio: float = 4.0
    qk_norm: bool = False
    dual: int = 0
    rope: tuple[int, ...] | None = None
    grid: int = 192
    span: float = 64.0
    num_classes: int | None = None
    null_class: bool = True
    frequencies: int = 256
    norm_eps: float = 1e-6
    remat: Remat = "none"
    dtype: DType = "float32"
    conditions: tuple[NetCondition, ...] = ()

    def __post_init__(self) -> None:
        at_least_1(self, "in_channels", "out_channels", "patch", "width", "depth", "heads", "grid", "num_classes")
        at_least_1(self, "frequencies")
        if self.width % self.heads or self.width % 4:
            raise ValueError(f"width={self.width} must be divisible by 4 and by heads={self.heads}")
        if self.single_blocks < 0 or not self.span > 0:
            raise ValueError(f"single_blocks={self.single_blocks} must be at least 0, span={self.span} positive")
        if not 0 <= self.dual <= self.whole_blocks:
            raise ValueError(f"dual={self.dual} must be 0 to {self.whole_blocks}, the blocks that end on both streams")
        head = self.width // self.heads
        if self.rope is not None and (len(self.rope) < 2 or sum(self.rope) != head or any(n % 2 for n in self.rope)):
            raise ValueError(
                f"rope={self.rope} must be even widths, the last two of row and column, that add up to the "
                f"{head} of a head"
            )
        check_remat(self.remat)
        cond_specs(self.num_classes, self.null_class, self.conditions)
        if token_width(self.conditions, self.width) is None:
            raise ValueError("an MMDiT needs a condition of tokens, Text or Tokens, for its second stream: use a DiT")

    @property
    def cond(self) -> Specs:
        """What the network takes beside x and t."""
        return cond_specs(self.num_classes, self.null_class, self.conditions)

    @property
    def whole_blocks(self) -> int:
        """Double blocks after which the text is still read."""
        return self.depth if self.single_blocks else self.depth - 1

    def __call__(self, rngs: nnx.Rngs) -> MMDiTModule:
        """The module, with fresh parameters."""
        return draw(MMDiTModule(self), rngs.params())


class Told(NamedTuple):
    """What every block is told, the samples first.

    Attributes:
      vector: c of equation (1), ``(B, width)``.
      mask: which tokens of the text are attended, ``(B, L)``; None: all.
    """

    vector: Array
    mask: Array | None


class Heads(nnx.Module):
    """Equation (2) and its way back: what an attention has of one stream.

    Args:
      config: of the network.
      out: whether the result is projected, by O of equation (4).
      bias: whether O has a bias.
    """

    def __init__(self, config: MMDiT, *, out: bool = True, bias: bool = True):
        self.config = config
        self.qkv = QueryKeyValue(config.width, dtype=config.dtype)
        if config.qk_norm:
            depth = config.width // config.heads
            self.query_norm, self.key_norm = (RMSNorm(depth, eps=config.norm_eps) for _ in range(2))
        if out:
            self.out = Linear(config.width, config.width, bias=bias, dtype=config.dtype)

    def __call__(self, x: Array, angles: np.ndarray | None) -> tuple[Array, Array, Array]:
        """``(B, L, C)`` -> queries, keys and values ``(B, heads, L, depth)``."""
        batch, length, width = x.shape
        heads = self.config.heads
        q, k, v = (y.reshape(batch, length, heads, width // heads).transpose(0, 2, 1, 3) for y in self.qkv(x))
        if self.config.qk_norm:
            q, k = self.query_norm(q).astype(v.dtype), self.key_norm(k).astype(v.dtype)
        if angles is not None:
            q, k = rotated(q, angles), rotated(k, angles)
        return q, k, v


def joined_heads(mixed: Array) -> Array:
    """``(B, heads, L, depth) -> (B, L, heads depth)``."""
    batch, heads, length, depth = mixed.shape
    return mixed.transpose(0, 2, 1, 3).reshape(batch, length, heads * depth)


def joint_mask(mask: Array | None, image_tokens: int) -> Array | None:
    """The mask of [image, text]: the image is always attended."""
    return None if mask is None else jnp.pad(mask, ((0, 0), (image_tokens, 0)), constant_values=True)


class Stream(nnx.Module):
    """One stream's weights in a double block.

    Args:
      config: of the network.
      dual: whether it has the second attention (6).
      last: whether nothing reads it afterwards.
    """

    def __init__(self, config: MMDiT, *, dual: bool = False, last: bool = False):
        self.parts = 2 if last else 9 if dual else 6
        self.modulation = Linear(config.width, self.parts * config.width, init=zeros)
        self.attention = Heads(config, out=not last)
        if dual:
            self.own_attention = Heads(config)
        if not last:
            self.mlp = Perceptron(config.width, int(config.width * config.mlp_ratio), dtype=config.dtype)


class DoubleBlock(nnx.Module):
    """Equations (1) to (6).

    Args:
      config: of the network.
      dual: whether the image has the second attention.
      last: whether nothing reads the text afterwards.
    """

    perturbed: Perturbation | None = None

    def __init__(self, config: MMDiT, *, dual: bool = False, last: bool = False):
        self.config, self.dual, self.last = config, dual, last
        self.image = Stream(config, dual=dual)
        self.text = Stream(config, last=last)

    def __call__(
        self, tokens: tuple[Array, Array], told: Told, angles: np.ndarray | None, grid: tuple[int, int]
    ) -> tuple[Array, Array]:
        """Image ``(B, N, C)`` and text ``(B, L, C)`` -> the same; angles: of the image's positions; grid: its rows and
        columns."""
        if left_out(self.perturbed):
            return tokens
        eps, attend = self.config.norm_eps, attending(self.perturbed, grid)
        streams = self.image, self.text
        normed = [layer_norm(h, eps) for h in tokens]
        parts = [parted(stream.modulation, told.vector, stream.parts) for stream in streams]
        heads = [
            stream.attention(modulate(n, part[0], part[1]).astype(h.dtype), turned)
            for stream, n, part, h, turned in zip(streams, normed, parts, tokens, (angles, None), strict=True)
        ]
        n = tokens[0].shape[1]
        query, key, value = (jnp.concatenate(both, axis=2) for both in zip(*heads, strict=True))
        query = heads[0][0] if self.last else query
        mixed = joined_heads(attend(query, key, value, joint_mask(told.mask, n)))

        after = []
        for stream, h, part, a in zip(streams, tokens, parts, (mixed[:, :n], mixed[:, n:]), strict=True):
            if stream.parts == 2:
                after.append(h)
                continue
            _, _, gate1, shift2, scale2, gate2 = part[:6]
            h = gated(h, gate1, stream.attention.out(a))
            if stream.parts == 9:
                shift3, scale3, gate3 = part[6:]
                own = stream.own_attention(modulate(normed[0], shift3, scale3).astype(h.dtype), angles)
                h = gated(h, gate3, stream.own_attention.out(joined_heads(attend(*own))))
            after.append(gated(h, gate2, stream.mlp(modulate(layer_norm(h, eps), shift2, scale2).astype(h.dtype))))
        return after[0], after[1]


class SingleBlock(nnx.Module):
    """Equation (7)."""

    perturbed: Perturbation | None = None

    def __init__(self, config: MMDiT):
        self.config = config
        self.modulation = Linear(config.width, 3 * config.width, init=zeros)
        self.attention = Heads(config, bias=False)
        self.mlp = Perceptron(config.width, int(config.width * config.mlp_ratio), dtype=config.dtype)

    def __call__(self, tokens: Array, told: Told, angles: np.ndarray | None, grid: tuple[int, int]) -> Array:
        """``(B, N + L, C)`` -> the same; angles: of all, the text's zero; grid: rows and columns of the image."""
        if left_out(self.perturbed):
            return tokens
        shift, scale, gate = parted(self.modulation, told.vector, 3)
        h = modulate(layer_norm(tokens, self.config.norm_eps), shift, scale).astype(tokens.dtype)
        mask = joint_mask(told.mask, grid[0] * grid[1])
        mixed = joined_heads(attending(self.perturbed, grid)(*self.attention(h, angles), mask))
        return gated(tokens, gate, self.attention.out(mixed) + self.mlp(h))


class MMDiTModule(nnx.Module):
    """The transformer that an `MMDiT` configures, called as ``module(x, t, cond, key)``."""

    def __init__(self, config: MMDiT):
        self.config = config
        width, pixels = config.width, config.patch**2
        inputs = config.in_channels + image_channels(config.conditions)
        self.patches = Linear(inputs * pixels, width, dtype=config.dtype)
        self.time = TimeEmbedding(config.frequencies, width, init=small)
        classes = config.num_classes
        self.label = LabelEmbedding(classes, width, null=config.null_class, init=small) if classes is not None else None
        self.told = ConditionEmbeddings(config.conditions, width, tokens=width, mapped=True, init=small)
        plain = config.whole_blocks - config.dual
        if config.dual:
            self.dual = stacked(lambda: DoubleBlock(config, dual=True), config.dual)
        if plain:
            self.double = stacked(lambda: DoubleBlock(config), plain)
        if config.single_blocks:
            self.single = stacked(lambda: SingleBlock(config), config.single_blocks)
        else:
            self.last = stacked(lambda: DoubleBlock(config, last=True), 1)
        self.modulation = Linear(width, 2 * width, init=zeros)
        self.out = Linear(width, (config.out_channels or config.in_channels) * pixels, init=zeros)

    def __call__(self, x: Array, t: ArrayLike, cond: Mapping[str, Any], key: Array | None) -> Array:
        config = self.config
        check_images(x, config.in_channels, config.patch, "MMDiT")
        rows, columns = x.shape[1] // config.patch, x.shape[2] // config.patch
        embedded = self.told(filled_up(cond, config.conditions, config.width))
        e = self.time(t, x.shape[0])
        if self.label is not None:
            e = e + self.label(cond["label"])
        told = Told(jax.nn.silu(e + embedded.vector), embedded.mask)

        image = self.patches(to_tokens(with_images(x, cond, config.conditions), config.patch))
        if config.rope is None:
            image = image + jnp.asarray(self._added(rows, columns), image.dtype)[None]
        assert embedded.tokens is not None
        image = self._blocks(image, embedded.tokens.astype(image.dtype), told, (rows, columns))
        shift, scale = parted(self.modulation, told.vector, 2)
        image = self.out(modulate(layer_norm(image, config.norm_eps), shift, scale))
        return to_pixels(image, (x.shape[1], x.shape[2]), config.patch)

    def _added(self, rows: int, columns: int) -> np.ndarray:
        grid, step = self.config.grid, self.config.span / self.config.grid
        if max(rows, columns) > grid:
            raise ValueError(f"an image of {rows}x{columns} tokens is beyond the positions of grid={grid}: raise grid")
        row, column = (step * ((grid - n) // 2 + np.arange(n)) for n in (rows, columns))
        return position_embedding(row, column, self.config.width)

    def _angles(self, rows: int, columns: int) -> np.ndarray | None:
        if self.config.rope is None:
            return None
        row, column = np.indices((rows, columns)).reshape(2, -1)
        zero = np.zeros((len(self.config.rope) - 2, rows * columns))
        return rotary_angles(np.concatenate([zero, row[None], column[None]]).T, self.config.rope)

    @property
    def rows(self) -> Rows:
        """What can be perturbed (`jaxdiff.networks.perturbed`)."""
        config = self.config
        numbers = {"dual": config.dual, "double": config.whole_blocks - config.dual, "last": 1}
        numbers["single"] = config.single_blocks
        return Rows([(getattr(self, name), n) for name, n in numbers.items() if hasattr(self, name)])

    def _blocks(self, image: Array, text: Array, told: Told, grid: tuple[int, int]) -> Array:
        options: dict[str, Any] = {"depth": self.config.depth + self.config.single_blocks, "remat": self.config.remat}
        tokens, angles = (image, text), self._angles(*grid)

        def double(block: DoubleBlock, h: Any, told: Told, _: None) -> tuple[Any, None]:
            return block(h, told, angles, grid), None

        for name in ("dual", "double", "last"):
            if hasattr(self, name):
                tokens = through(getattr(self, name), tokens, told, call=double, **options)[0]
        if not self.config.single_blocks:
            return tokens[0]
        n = image.shape[1]
        if angles is not None:
            angles = np.pad(angles, ((0, text.shape[1]), (0, 0)))
        row = through(
            self.single,
            jnp.concatenate(tokens, axis=1),
            told,
            call=lambda b, h, told, _: (b(h, told, angles, grid), None),
            **options,
        )[0]
        return row[:, :n]
