"""Encoder and decoder of `jaxdiff.networks.autoencoder`: the layout that its configurations share, and its modules.

The convolutional networks of LDM (Rombach et al. 2022, https://arxiv.org/abs/2112.10752, appendix G), which are those
of VQGAN (Esser et al. 2021, https://arxiv.org/abs/2012.09841). A block is

    h = conv2(silu(norm2(conv1(silu(norm1(x)))))),   y = skip(x) + h

Convolutions that halve the size pad at the bottom and the right only, as the originals do.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float, Int

from jaxdiff.networks.attention import SelfAttention
from jaxdiff.networks.layers import (
    Conv3x3,
    DType,
    GroupNorm,
    Linear,
    at_least_1,
    by_rows,
    check_images,
    draw,
    upsample,
    zeros,
)
from jaxdiff.networks.placement import by_sample


@dataclass(frozen=True)
class Layout(abc.ABC):
    """What all autoencoders have; abstract. The defaults are those of LDM's KL-f8.

    Args:
      in_channels: of the images.
      channels: of the latents.
      width: channels at a multiplier of 1.
      multipliers: channels of each level over ``width``; each further level has half the resolution.
      blocks: residual blocks a level of the encoder; the decoder has one more.
      attention: levels, 0 being the full resolution, whose blocks are followed by self-attention.
      middle_attention: whether there is self-attention at the lowest resolution, between two blocks.
      heads: of attention.
      patch: side of the squares of pixels that become one place with so many more channels, before the first level:
        most of a small autoencoder's arithmetic is then at half the resolution (``patch=2``).
      projections: whether 1x1 convolutions stand on both sides of the latents (LDM's have them, SD3's and FLUX's not).
      groups: most groups of the normalisations.
      least_group: fewest channels of a group.
      norm_eps: of the normalisations.
      dtype: what convolutions and matrix products compute in; parameters and output are float32.

    Raises:
      ValueError: values that do not fit each other.
    """

    in_channels: int = 3
    channels: int = 4
    width: int = 128
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    blocks: int = 2
    attention: tuple[int, ...] = ()
    middle_attention: bool = True
    heads: int = 1
    patch: int = 1
    projections: bool = True
    groups: int = 32
    least_group: int = 4
    norm_eps: float = 1e-6
    dtype: DType = "float32"

    def __post_init__(self) -> None:
        at_least_1(self, "in_channels", "channels", "width", "blocks", "heads", "patch", "groups", "least_group")
        if not self.multipliers or min(self.multipliers) < 1:
            raise ValueError(f"multipliers={self.multipliers} must be numbers of at least 1, one a level")
        levels = range(len(self.multipliers))
        if unknown := set(self.attention) - set(levels):
            raise ValueError(f"attention={self.attention}: there is no level {min(unknown)}; they are {list(levels)}")
        attending = {self.width * self.multipliers[level] for level in self.attention}
        attending |= {self.width * self.multipliers[-1]} if self.middle_attention else set()
        if wrong_widths := sorted(width for width in attending if width % self.heads):
            raise ValueError(f"attention over {wrong_widths[0]} channels: they do not divide by heads={self.heads}")

    @property
    def norm(self) -> dict[str, Any]:
        """Options of the group normalisations."""
        return {"groups": self.groups, "eps": self.norm_eps, "least": self.least_group}

    @property
    def factor(self) -> int:
        """Pixels of an image for one of its latents, along a side: 8 for f8."""
        return self.patch * 2 ** (len(self.multipliers) - 1)

    @property
    @abc.abstractmethod
    def encoded(self) -> int:
        """Channels that the encoder gives."""

    @abc.abstractmethod
    def codebook(self) -> nnx.Param | None:
        """The entries of a codebook, ``(entries, channels)``; None where there are none."""

    def __call__(self, rngs: nnx.Rngs) -> AutoencoderModule:
        """The module, with fresh parameters."""
        return draw(AutoencoderModule(self), rngs.params())


class Quantised(NamedTuple):
    """Latents rounded to a codebook's entries.

    Attributes:
      z: ``(B, h, w, c)``: the entries, with the gradient of the latents.
      entry: ``(B, h, w, c)``: the entries, with the codebook's gradient.
      code: ``(B, h, w)`` int32: their numbers.
    """

    z: Array
    entry: Array
    code: Array


class Block(nnx.Module):
    """The residual block of the module's docstring."""

    def __init__(self, config: Layout, inputs: int, outputs: int):
        self.norm1 = GroupNorm(inputs, **config.norm)
        self.conv1 = Conv3x3(inputs, outputs, dtype=config.dtype)
        self.norm2 = GroupNorm(outputs, **config.norm)
        self.conv2 = Conv3x3(outputs, outputs, dtype=config.dtype, init=zeros)
        self.skip = None if inputs == outputs else Linear(inputs, outputs, dtype=config.dtype)

    def __call__(self, x: Array) -> Array:
        h = self.conv2(jax.nn.silu(self.norm2(self.conv1(jax.nn.silu(self.norm1(x))))))
        return by_sample(h + (x if self.skip is None else self.skip(x)))


class Attend(nnx.Module):
    """Self-attention over the pixels, added to them."""

    def __init__(self, config: Layout, channels: int):
        self.norm = GroupNorm(channels, **config.norm)
        self.attention = SelfAttention(channels, config.heads, dtype=config.dtype, init=zeros)

    def __call__(self, x: Array) -> Array:
        batch, height, width, channels = x.shape
        tokens = self.norm(x).reshape(batch, height * width, channels)
        return by_sample(x + self.attention(tokens).reshape(x.shape))


class Level(nnx.Module):
    """The blocks at one resolution, each with attention where the level has it, and the change to the next."""

    def __init__(self, config: Layout, level: int, inputs: int, blocks: int, resample: Conv3x3 | None):
        outputs, attends = config.width * config.multipliers[level], level in config.attention
        self.blocks = nnx.List(Block(config, outputs if n else inputs, outputs) for n in range(blocks))
        self.attentions = nnx.List(Attend(config, outputs) for _ in range(blocks if attends else 0))
        self.resample = resample

    def __call__(self, x: Array) -> Array:
        for n, block in enumerate(self.blocks):
            x = block(x)
            x = self.attentions[n](x) if len(self.attentions) else x
        return x


class Middle(nnx.Module):
    """Two blocks at the lowest resolution, attention between them."""

    def __init__(self, config: Layout, channels: int):
        self.first = Block(config, channels, channels)
        self.attend = Attend(config, channels) if config.middle_attention else None
        self.second = Block(config, channels, channels)

    def __call__(self, x: Array) -> Array:
        x = self.first(x)
        return self.second(x if self.attend is None else self.attend(x))


class Encoder(nnx.Module):
    """From images to what is known of their latents."""

    def __init__(self, config: Layout):
        self.patch = config.patch
        now = config.width * config.multipliers[0]
        self.conv_in = Conv3x3(config.in_channels * config.patch**2, now, dtype=config.dtype)
        levels = []
        for level, multiplier in enumerate(config.multipliers):
            inputs, now = now, config.width * multiplier
            last = level == len(config.multipliers) - 1
            halve = None if last else Conv3x3(now, now, stride=2, padding="bottom_right", dtype=config.dtype)
            levels.append(Level(config, level, inputs, config.blocks, halve))
        self.levels = nnx.List(levels)
        self.middle = Middle(config, now)
        self.norm_out = GroupNorm(now, **config.norm)
        self.conv_out = Conv3x3(now, config.encoded)

    def __call__(self, x: Array) -> Array:
        h = by_sample(self.conv_in(_to_channels(x, self.patch)))
        for level in self.levels:
            h = level(h)
            h = h if level.resample is None else by_sample(level.resample(h))
        return self.conv_out(jax.nn.silu(self.norm_out(self.middle(h).astype(jnp.float32))))


class Decoder(nnx.Module):
    """From latents to images: `features`, and one convolution more."""

    def __init__(self, config: Layout):
        self.patch = config.patch
        now = config.width * config.multipliers[-1]
        self.conv_in = Conv3x3(config.channels, now, dtype=config.dtype)
        self.middle = Middle(config, now)
        levels = []
        for level in reversed(range(len(config.multipliers))):
            inputs, now = now, config.width * config.multipliers[level]
            levels.append(
                Level(
                    config, level, inputs, config.blocks + 1, Conv3x3(now, now, dtype=config.dtype) if level else None
                )
            )
        self.levels = nnx.List(levels)
        self.norm_out = GroupNorm(now, **config.norm)
        self.conv_out = Conv3x3(now, config.in_channels * config.patch**2)

    def features(self, z: Array) -> Array:
        h = self.middle(by_sample(self.conv_in(z)))
        for level in self.levels:
            h = level(h)
            h = h if level.resample is None else by_sample(level.resample(upsample(h)))
        return jax.nn.silu(self.norm_out(h.astype(jnp.float32)))

    def finish(self, features: Array) -> Array:
        return _to_pixels(self.conv_out(features), self.patch)


class AutoencoderModule(nnx.Module):
    """Encoder, decoder and what stands between them."""

    def __init__(self, config: Layout):
        self.config = config
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        self.project_in = Linear(config.encoded, config.encoded) if config.projections else None
        self.project_out = Linear(config.channels, config.channels) if config.projections else None
        self.codebook = config.codebook()

    def encode(self, x: Array) -> Array:
        """What the encoder gives, ``(B, h, w, encoded)``."""
        check_images(x, self.config.in_channels, self.config.factor, type(self.config).__name__)
        encoded = self.encoder(x)
        return encoded if self.project_in is None else self.project_in(encoded)

    def features(self, z: Array) -> Array:
        """What the last convolution sees."""
        if z.ndim != 4 or z.shape[3] != self.config.channels:
            raise ValueError(f"latents are (batch, h, w, {self.config.channels}), got {z.shape}")
        return self.decoder.features(z if self.project_out is None else self.project_out(z))

    def finish(self, features: Array) -> Array:
        """The images."""
        return self.decoder.finish(features)

    def quantise(self, z: Array) -> Quantised:
        """The nearest entries."""
        if self.codebook is None:
            raise ValueError(f"{type(self.config).__name__} has no codebook: its latents are not rounded")
        return nearest(z, self.codebook[...])


def nearest(z: Float[Array, "batch h w c"], codebook: Float[Array, "entries c"]) -> Quantised:
    """Latents rounded to the nearest entries of a codebook: equations (2) and (3) of `jaxdiff.networks.autoencoder`.

    >>> found = nearest(jnp.array([0.2, 0.9]).reshape(1, 2, 1, 1), jnp.array([[0.0], [1.0], [5.0]]))
    >>> found.code.ravel().tolist(), found.entry.ravel().tolist()
    ([0, 1], [0.0, 1.0])
    """
    held, rows = jax.lax.stop_gradient((codebook, by_rows(z)))
    # |m - e|^2 less |m|^2, which is the same for all entries
    distance = jnp.square(held).sum(1)[None, :] - 2 * jnp.matmul(rows, held.T, precision="highest")
    code: Int[Array, " rows"] = jnp.argmin(distance, axis=1).astype(jnp.int32)
    entry = codebook[code].reshape(z.shape)
    return Quantised(z + jax.lax.stop_gradient(entry - z), entry, code.reshape(z.shape[:3]))


def _to_channels(x: Array, patch: int) -> Array:
    """Squares of pixels as channels: ``(B, H, W, C) -> (B, H/patch, W/patch, patch^2 C)``."""
    if patch == 1:
        return x
    batch, height, width, channels = x.shape
    squares = x.reshape(batch, height // patch, patch, width // patch, patch, channels).swapaxes(2, 3)
    return squares.reshape(batch, height // patch, width // patch, patch * patch * channels)


def _to_pixels(x: Array, patch: int) -> Array:
    """The inverse of `_to_channels`."""
    if patch == 1:
        return x
    batch, height, width, channels = x.shape
    squares = x.reshape(batch, height, width, patch, patch, channels // patch**2).swapaxes(2, 3)
    return squares.reshape(batch, height * patch, width * patch, channels // patch**2)
