"""The U-Net of `jaxdiff.networks.UNet` in plain PyTorch, parameter for parameter. Needs torch and numpy only.

Written as a PyTorch user would for speed: NCHW in either memory format, `torch.nn.functional.group_norm`,
`scaled_dot_product_attention`, `addcmul` for scale and shift, and no shape that changes between calls, so that
`torch.compile` sees one graph.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.speed.torch_layers import LabelEmbedding, SelfAttention, TimeEmbedding, group_norm


@dataclasses.dataclass(frozen=True)
class UNetFields:
    """Fields and defaults of `jaxdiff.networks.UNet`, which documents them."""

    image_size: int = 32
    in_channels: int = 3
    out_channels: int | None = None
    width: int = 128
    multipliers: tuple[float, ...] = (1, 2, 2, 2)
    blocks: int = 2
    attention_resolutions: tuple[int, ...] = (16,)
    heads: int = 1
    head_width: int | None = None
    num_classes: int | None = None
    null_class: bool = True
    dropout: float = 0.0
    scale_shift: bool = False
    residual_resampling: bool = False
    downsample_padding: Literal["bottom_right", "symmetric"] = "bottom_right"
    time_order: Literal["sin_cos", "cos_sin"] = "sin_cos"
    time_shift: float = 1.0
    groups: int = 32
    norm_eps: float = 1e-6

    def norm(self, channels: int) -> nn.GroupNorm:
        return group_norm(channels, self.groups, self.norm_eps)


class ResidualBlock(nn.Module):
    def __init__(self, config: UNetFields, inputs: int, outputs: int, resample: Literal["up", "down"] | None = None):
        super().__init__()
        self.rate, self.scale_shift, self.resample = config.dropout, config.scale_shift, resample
        self.norm1 = config.norm(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.embed = nn.Linear(4 * config.width, 2 * outputs if config.scale_shift else outputs)
        self.norm2 = config.norm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = None if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = F.silu(self.norm1(x))
        if self.resample == "up":
            h, x = (F.interpolate(y, scale_factor=2.0, mode="nearest") for y in (h, x))
        elif self.resample == "down":
            h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
        h = self.conv1(h)
        told = self.embed(embedding)[:, :, None, None]
        if self.scale_shift:
            scale, shift = told.chunk(2, dim=1)
            h = torch.addcmul(shift, self.norm2(h), 1 + scale)
        else:
            h = self.norm2(h + told)
        h = F.dropout(F.silu(h), self.rate, self.training)
        return self.conv2(h) + (x if self.skip is None else self.skip(x))


class AttentionBlock(nn.Module):
    def __init__(self, config: UNetFields, channels: int):
        super().__init__()
        self.norm = config.norm(channels)
        heads = channels // config.head_width if config.head_width else config.heads
        self.attention = SelfAttention(channels, heads)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(x).flatten(2).transpose(1, 2)  # (B, HW, C)
        return x + self.attention(tokens).transpose(1, 2).reshape(x.shape)


class Stage(nn.Module):
    def __init__(self, config: UNetFields, inputs: int, outputs: int, attends: bool):
        super().__init__()
        self.block = ResidualBlock(config, inputs, outputs)
        self.attention = AttentionBlock(config, outputs) if attends else None

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        x = self.block(x, embedding)
        return x if self.attention is None else self.attention(x)


class Resample(nn.Module):
    def __init__(self, config: UNetFields, channels: int, direction: Literal["up", "down"]):
        super().__init__()
        self.direction, self.corner = direction, config.downsample_padding == "bottom_right"
        if direction == "down":
            self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=0 if self.corner else 1)
        else:
            self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        if self.direction == "up":
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        elif self.corner:
            x = F.pad(x, (0, 1, 0, 1))
        return self.conv(x)


class Level(nn.Module):
    def __init__(self, stages: list[Stage], resample: ResidualBlock | Resample | None):
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.resample = resample


class TorchUNet(nn.Module):
    """``module(x, t, label)``: images ``(B, C, H, W)``, times and labels ``(B,)``; dropout while training.

    The precision is autocast's; the memory format is the input's and the weights'.
    """

    def __init__(self, config: UNetFields):
        super().__init__()
        levels = range(len(config.multipliers))
        widths = [int(config.width * factor) for factor in config.multipliers]
        attends = [config.image_size // 2**level in config.attention_resolutions for level in levels]

        def resample(level: int, direction: Literal["up", "down"]) -> ResidualBlock | Resample:
            if config.residual_resampling:
                return ResidualBlock(config, widths[level], widths[level], direction)
            return Resample(config, widths[level], direction)

        wide = 4 * config.width
        self.time = TimeEmbedding(config.width, wide, config.time_order, config.time_shift)
        classes = config.num_classes
        self.label = LabelEmbedding(classes, wide, config.null_class) if classes is not None else None
        now = widths[0]
        self.conv_in = nn.Conv2d(config.in_channels, now, 3, padding=1)
        skips, down = [now], []
        for level in levels:
            stages = []
            for _ in range(config.blocks):
                stages.append(Stage(config, now, widths[level], attends[level]))
                now = widths[level]
                skips.append(now)
            last = level == levels[-1]
            down.append(Level(stages, None if last else resample(level, "down")))
            skips += [] if last else [now]
        self.down = nn.ModuleList(down)
        self.middle_in = Stage(config, now, now, True)
        self.middle_out = ResidualBlock(config, now, now)
        up = []
        for level in reversed(levels):
            stages = []
            for _ in range(config.blocks + 1):
                stages.append(Stage(config, now + skips.pop(), widths[level], attends[level]))
                now = widths[level]
            up.append(Level(stages, resample(level, "up") if level else None))
        self.up = nn.ModuleList(up)
        self.norm_out = config.norm(now)
        self.conv_out = nn.Conv2d(now, config.out_channels or config.in_channels, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        embedding = self.time(t)
        if self.label is not None:
            embedding = embedding + self.label(label, len(x))
        embedding = F.silu(embedding)
        h = self.conv_in(x)
        skips = [h]
        for level in self.down:
            for stage in level.stages:
                h = stage(h, embedding)
                skips.append(h)
            if level.resample is not None:
                h = level.resample(h, embedding)
                skips.append(h)
        h = self.middle_out(self.middle_in(h, embedding), embedding)
        for level in self.up:
            for stage in level.stages:
                h = stage(torch.cat((h, skips.pop()), dim=1), embedding)
            if level.resample is not None:
                h = level.resample(h, embedding)
        return self.conv_out(F.silu(self.norm_out(h)))
