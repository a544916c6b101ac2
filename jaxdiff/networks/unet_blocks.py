"""The blocks of the U-Net: residual blocks, attention, and changes of the resolution.

A residual block, with e the embedding of time and class:

    h = conv1(silu(norm1(x)))                               (1)
    h = norm2(h + W silu(e))                                (2, DDPM)
    h = norm2(h) (1 + scale) + shift,  W silu(e) = scale|shift   (2, ADM)
    y = skip(x) + conv2(dropout(silu(h)))                   (3)

where the residual resampling of ADM halves or doubles both x and silu(norm1(x)) in (1). conv2, the output of attention
and the last convolution start at zero, so that each block starts as its skip connection and the whole network as zero.

Each takes the network's configuration, a `jaxdiff.networks.UNet`.
"""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from jaxdiff.networks.attention import SelfAttention
from jaxdiff.networks.embedded import Embedded
from jaxdiff.networks.layers import Conv3x3, GroupNorm, Linear, downsample, dropout, upsample, zeros
from jaxdiff.networks.perturbed import Perturbation, attending, left_out
from jaxdiff.networks.placement import by_sample
from jaxdiff.networks.remat import convolved
from jaxdiff.networks.unet_transformer import Transformer


class ResidualBlock(nnx.Module):
    """Equations (1) to (3). ``site`` tells this block's dropout from the others'."""

    def __init__(
        self, config: Any, inputs: int, outputs: int, site: int, resample: Literal["up", "down"] | None = None
    ):
        self.rate, self.site, self.scale_shift, self.resample = config.dropout, site, config.scale_shift, resample
        self.norm1 = GroupNorm(inputs, **config.norm)
        self.conv1 = Conv3x3(inputs, outputs, dtype=config.dtype)
        self.embed = Linear(4 * config.width, 2 * outputs if config.scale_shift else outputs)
        self.norm2 = GroupNorm(outputs, **config.norm)
        self.conv2 = Conv3x3(outputs, outputs, dtype=config.dtype, init=zeros)
        self.skip = None if inputs == outputs else Linear(inputs, outputs, dtype=config.dtype)

    def __call__(self, x: Array, told: Embedded, key: Array | None) -> Array:
        h = jax.nn.silu(self.norm1(x))
        if self.resample == "up":
            h, x = self.conv1(upsample(h)), upsample(x)
        elif self.resample == "down":
            h, x = self.conv1(downsample(h)), downsample(x)
        else:
            h = self.conv1(h)
        h = by_sample(convolved(h))
        embedding = self.embed(jnp.asarray(told.vector))  # (B, outputs) or (B, 2 outputs)
        if self.scale_shift:
            h = self.norm2(h, *jnp.split(embedding, 2, axis=1))
        else:
            h = self.norm2(h + embedding[:, None, None, :].astype(h.dtype))
        h = dropout(jax.nn.silu(h), self.rate, None if key is None else jax.random.fold_in(key, self.site))
        return convolved(self.conv2(h) + (x if self.skip is None else self.skip(x)))


class AttentionBlock(nnx.Module):
    """``x + attention(norm(x))`` over the pixels."""

    perturbed: Perturbation | None = None

    def __init__(self, config: Any, channels: int):
        self.norm = GroupNorm(channels, **config.norm)
        self.attention = SelfAttention(channels, config.heads_of(channels), dtype=config.dtype, init=zeros)

    def __call__(self, x: Array, told: Embedded) -> Array:
        if left_out(self.perturbed):
            return x
        batch, height, width, channels = x.shape
        tokens = self.norm(x).reshape(batch, height * width, channels)
        return x + self.attention(tokens, attend=attending(self.perturbed, (height, width))).reshape(x.shape)


class Stage(nnx.Module):
    """A residual block and, where the level has it, a transformer or attention."""

    def __init__(self, config: Any, inputs: int, outputs: int, level: int | None, site: int):
        self.block = ResidualBlock(config, inputs, outputs, site)
        layers = config.layers(level)
        attention: Transformer | AttentionBlock | None = None
        if layers:
            options: dict[str, Any] = {"groups": config.groups, "least_group": config.least_group}
            options |= {"dtype": config.dtype, "flax_numerics": config.flax_numerics}
            attention = Transformer(outputs, config.heads_of(outputs), layers, config.context, **options)
        elif level is None or config.image_size // 2**level in config.attention_resolutions:
            attention = AttentionBlock(config, outputs)
        self.attention = attention

    def __call__(self, x: Array, told: Embedded, key: Array | None) -> Array:
        x = self.block(x, told, key)
        return x if self.attention is None else self.attention(x, told)


class Resample(nnx.Module):
    """DDPM's change of resolution: a stride-2 convolution, or nearest neighbour and a convolution."""

    def __init__(self, config: Any, channels: int, direction: Literal["up", "down"]):
        self.direction = direction
        if direction == "down":
            self.conv = Conv3x3(channels, channels, dtype=config.dtype, stride=2, padding=config.downsample_padding)
        else:
            self.conv = Conv3x3(channels, channels, dtype=config.dtype)

    def __call__(self, x: Array, told: Embedded, key: Array | None) -> Array:
        return self.conv(upsample(x) if self.direction == "up" else x)


class Resolution(nnx.Module):
    """The stages at one resolution and, but for the last level of its direction, the change to the next."""

    def __init__(self, stages: list[Stage], resample: ResidualBlock | Resample | None):
        self.stages = nnx.List(stages)
        self.resample = resample
