"""U-ViT: a plain vision transformer in which everything is a token, with long skip connections.

Bao et al. 2022, "All are Worth Words: A ViT Backbone for Diffusion Models", https://arxiv.org/abs/2209.12152, sections
3 and 4, and its published code. The row of tokens h holds the image's patches, the sinusoidal embedding of time, the
class and the text, each with a learned position. With N(h) = gain norm(h) + bias, a block is

    h = h + attention(N1(h)),       h = h + mlp(N2(h))                                              (1)

and of d = 2 k + 1 blocks the i-th of the last k takes the output of the i-th before the middle, nearest first:

    h = W [h, s_i] + b,   then (1).                                                                 (2)

At the end N, a linear map of the patches' tokens to pixels, and a 3x3 convolution of the image.
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
from jaxdiff.networks.conditions import NetCondition, Text, Tokens, Vector, cond_specs, image_channels, with_images
from jaxdiff.networks.embedded import ConditionEmbeddings
from jaxdiff.networks.embeddings import LabelEmbedding, times_of, timestep_embedding
from jaxdiff.networks.layers import Conv3x3, DType, LayerNorm, Linear, at_least_1, check_images, draw, normal
from jaxdiff.networks.modulation import Perceptron, stacked, through, to_pixels, to_tokens
from jaxdiff.networks.perturbed import Perturbation, Rows, attending, left_out
from jaxdiff.networks.remat import Remat, check_remat
from jaxdiff.spec import Specs

small = normal(0.02)


@dataclass(frozen=True)
class UViT:
    """Configuration of a U-ViT; `jaxdiff.networks.functional` makes a network of it. Defaults: U-ViT-S/2 for CIFAR-10.

    Positions are learned, so the images have one size, and texts one length (a padded token changes nothing).

    Args:
      size: height and width of the images or latents.
      in_channels: of them.
      out_channels: of the output; None: as many as ``in_channels``.
      patch: side of the square of pixels that makes a token.
      width: of the tokens, divisible by ``heads``, even.
      depth: blocks, an odd number.
      heads: of attention.
      mlp_ratio: width of the perceptron's hidden layer over ``width``.
      num_classes: for a network conditioned on ``cond["label"]``; None for one that is not.
      null_class: whether label ``num_classes`` means "no class".
      skips: the long skip connections, equation (2).
      convolution: the 3x3 convolution at the end; the published networks for latents have none.
      norm_eps: of the normalisations.
      remat: as of `jaxdiff.networks.DiT`.
      dtype: what matrix products compute in; parameters and output are float32.
      conditions: what else the network takes (`jaxdiff.networks.conditions`). Rows of tokens join the row, vectors are
        added to the token of time.

    Raises:
      ValueError: values that do not fit each other.

    >>> from jaxdiff.networks import functional
    >>> net = functional(UViT((8, 8), in_channels=1, width=16, depth=3, heads=2, num_classes=10))
    >>> params = jax.jit(net.init)(jax.random.key(0))
    >>> params["position"].shape  # 16 patches, time, class
    (18, 16)
    >>> jax.jit(net.apply)(params, jnp.zeros((2, 8, 8, 1)), 0.5, {"label": jnp.array([3, 10])}).shape
    (2, 8, 8, 1)
    """

    size: tuple[int, int] = (32, 32)
    in_channels: int = 3
    out_channels: int | None = None
    patch: int = 2
    width: int = 512
    depth: int = 13
    heads: int = 8
    mlp_ratio: float = 4.0
    num_classes: int | None = None
    null_class: bool = True
    skips: bool = True
    convolution: bool = True
    norm_eps: float = 1e-5
    remat: Remat = "none"
    dtype: DType = "float32"
    conditions: tuple[NetCondition, ...] = ()

    def __post_init__(self) -> None:
        at_least_1(self, "in_channels", "out_channels", "patch", "width", "heads", "num_classes")
        if self.width % self.heads or self.width % 2:
            raise ValueError(f"width={self.width} must be even and divisible by heads={self.heads}")
        if self.depth < 3 or self.depth % 2 == 0:
            raise ValueError(
                f"depth={self.depth} must be odd and at least 3: as many blocks before the middle as after"
            )
        if min(self.size) < 1 or self.size[0] % self.patch or self.size[1] % self.patch:
            raise ValueError(f"size={self.size} must be divisible by patch={self.patch}")
        check_remat(self.remat)
        cond_specs(self.num_classes, self.null_class, self.conditions)
        for condition in self.conditions:
            token_length(condition)

    @property
    def cond(self) -> Specs:
        """What the network takes beside x and t."""
        return cond_specs(self.num_classes, self.null_class, self.conditions)

    @property
    def length(self) -> int:
        """Tokens of the row: patches, time, class, conditions."""
        patches = self.size[0] * self.size[1] // self.patch**2
        return patches + 1 + (self.num_classes is not None) + sum(map(token_length, self.conditions))

    def __call__(self, rngs: nnx.Rngs) -> UViTModule:
        """The module, with fresh parameters."""
        return draw(UViTModule(self), rngs.params())


def token_length(condition: NetCondition) -> int:
    """How many tokens a condition gives.

    Raises:
      ValueError: its number varies.

    >>> token_length(Tokens("text", 8, length=5)), token_length(Vector("style", 2))
    (5, 0)
    """
    if isinstance(condition, Text | Tokens):
        if condition.length is None:
            raise ValueError(f"{condition.name}: a UViT learns positions, so its tokens need a length")
        return condition.length
    return int(isinstance(condition, Vector) and condition.into == "tokens")


class UViTBlock(nnx.Module):
    """Equation (1); with ``skip`` equation (2) before it."""

    perturbed: Perturbation | None = None

    def __init__(self, config: UViT, *, skip: bool = False):
        width = config.width
        if skip:
            self.join = Linear(2 * width, width, dtype=config.dtype, init=small)
        self.norm1, self.norm2 = (LayerNorm(width, eps=config.norm_eps) for _ in range(2))
        self.attention = SelfAttention(width, config.heads, bias=False, dtype=config.dtype, init=small)
        self.mlp = Perceptron(width, int(width * config.mlp_ratio), exact=True, dtype=config.dtype, init=small)

    def __call__(self, tokens: Array, mask: Array | None, skip: Array | None, grid: tuple[int, int]) -> Array:
        """``(B, L, C) -> (B, L, C)``; grid: rows and columns of the patches, which stand first."""
        if skip is not None:
            tokens = self.join(jnp.concatenate([tokens, skip], axis=-1))
        if left_out(self.perturbed):
            return tokens
        tokens = tokens + self.attention(self.norm1(tokens), mask, attending(self.perturbed, grid))
        return tokens + self.mlp(self.norm2(tokens))


class UViTModule(nnx.Module):
    """The transformer that a `UViT` configures, called as ``module(x, t, cond, key)``."""

    def __init__(self, config: UViT):
        self.config = config
        width, pixels, half = config.width, config.patch**2, config.depth // 2
        inputs = config.in_channels + image_channels(config.conditions)
        outputs = config.out_channels or config.in_channels
        self.patches = Linear(inputs * pixels, width, dtype=config.dtype, init=small)
        classes = config.num_classes
        self.label = LabelEmbedding(classes, width, null=config.null_class) if classes is not None else None
        self.told = ConditionEmbeddings(config.conditions, width, tokens=width, init=small)
        self.position = small((config.length, width))
        self.first = stacked(lambda: UViTBlock(config), half)
        self.middle = stacked(lambda: UViTBlock(config), 1)
        self.second = stacked(lambda: UViTBlock(config, skip=config.skips), half)
        self.norm = LayerNorm(width, eps=config.norm_eps)
        self.out = Linear(width, outputs * pixels, init=small)
        if config.convolution:
            self.convolution = Conv3x3(outputs, outputs)

    @property
    def rows(self) -> Rows:
        """What can be perturbed (`jaxdiff.networks.perturbed`)."""
        half = self.config.depth // 2
        return Rows([(self.first, half), (self.middle, 1), (self.second, half)])

    def __call__(self, x: Array, t: ArrayLike, cond: Mapping[str, Any], key: Array | None) -> Array:
        config = self.config
        check_images(x, config.in_channels, config.patch, "UViT")
        if x.shape[1:3] != config.size:
            raise ValueError(f"UViT was built for images of size={config.size}, got {x.shape[1]}x{x.shape[2]}")
        embedded = self.told(cond)
        time = timestep_embedding(times_of(t, x.shape[0]), config.width) + embedded.vector
        patches = self.patches(to_tokens(with_images(x, cond, config.conditions), config.patch))
        alone = [time] if self.label is None else [time, self.label(cond["label"])]
        text = [] if embedded.tokens is None else [embedded.tokens]
        row = [patches, *(each[:, None, :] for each in alone), *text]
        tokens = jnp.concatenate([each.astype(patches.dtype) for each in row], axis=1)
        tokens = tokens + self.position[...].astype(tokens.dtype)[None]
        before = patches.shape[1] + len(alone)
        mask = None if embedded.mask is None else jnp.pad(embedded.mask, ((0, 0), (before, 0)), constant_values=True)

        tokens = self.norm(self._blocks(tokens, mask)[:, : patches.shape[1]])
        images = to_pixels(self.out(tokens), config.size, config.patch)
        return self.convolution(images) if config.convolution else images

    def _blocks(self, tokens: Array, mask: Array | None) -> Array:
        options: dict[str, Any] = {"depth": self.config.depth, "remat": self.config.remat}
        grid = self.config.size[0] // self.config.patch, self.config.size[1] // self.config.patch

        def plain(block: UViTBlock, tokens: Array, mask: Array | None, _: None) -> tuple[Array, Array | None]:
            after = block(tokens, mask, None, grid)
            return after, after if self.config.skips else None

        def joined(block: UViTBlock, tokens: Array, mask: Array | None, skip: Array | None) -> tuple[Array, None]:
            return block(tokens, mask, skip, grid), None

        tokens, kept = through(self.first, tokens, mask, call=plain, **options)
        tokens, _ = through(self.middle, tokens, mask, call=plain, **options)
        skips = jax.tree.map(lambda each: each[::-1], kept)  # nearest to the middle first
        return through(self.second, tokens, mask, skips, call=joined, **options)[0]


def u_vit(size: Literal["S", "S-deep", "M", "L", "H"], **changes: Any) -> UViT:
    """The networks of Bao et al. 2022, table 1: 44, 58, 131, 287 or 501 million parameters; the last two for latents
    of 32x32x4 with 1000 classes and null.

    Args:
      size: "S", "S-deep", "M", "L" or "H".
      changes: fields of `UViT` to replace.

    Raises:
      ValueError: another size.

    >>> u_vit("S").depth
    13
    """
    latents = {"in_channels": 4, "num_classes": 1000, "convolution": False}
    sizes: dict[str, dict[str, Any]] = {
        "S": {},
        "S-deep": {"depth": 17},
        "M": {"depth": 17, "width": 768, "heads": 12, "size": (64, 64), "patch": 4, "num_classes": 1000},
        "L": {"depth": 21, "width": 1024, "heads": 16, **latents},
        "H": {"depth": 29, "width": 1152, "heads": 16, **latents},
    }
    if size not in sizes:
        raise ValueError(f"U-ViT sizes are {', '.join(sizes)}, got {size!r}: configure `UViT` itself")
    return UViT(**{**sizes[size], **changes})
