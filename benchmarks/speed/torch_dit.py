"""The transformer of `jaxdiff.networks.DiT` in plain PyTorch, parameter for parameter. Needs torch and numpy only.

Written as a PyTorch user would for speed: fused attention and layer norm, `addcmul` for modulation and gates.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.speed.torch_layers import LabelEmbedding, SelfAttention, TimeEmbedding


@dataclasses.dataclass(frozen=True)
class DiTFields:
    """Fields and defaults of `jaxdiff.networks.DiT`, which documents them; and the side of the images."""

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
    image_size: int = 32


def position_embedding(rows: int, columns: int, width: int) -> Tensor:
    """``(rows columns, width)``: sines and cosines of the column, then of the row."""
    omega = 10_000.0 ** (-np.arange(width // 4) / (width // 4))
    row, column = np.indices((rows, columns)).reshape(2, -1, 1)
    waves = [wave(place * omega) for place in (column, row) for wave in (np.sin, np.cos)]
    return torch.from_numpy(np.concatenate(waves, axis=1).astype(np.float32))


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return torch.addcmul(shift[:, None], x, 1 + scale[:, None])


class DiTBlock(nn.Module):
    def __init__(self, config: DiTFields):
        super().__init__()
        hidden = int(config.width * config.mlp_ratio)
        self.shape, self.eps, self.rate = (config.width,), config.norm_eps, config.dropout
        self.attention = SelfAttention(config.width, config.heads)
        self.expand = nn.Linear(config.width, hidden)
        self.contract = nn.Linear(hidden, config.width)
        self.modulation = nn.Linear(config.width, 6 * config.width)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(c).chunk(6, dim=-1)
        h = self.attention(modulate(F.layer_norm(x, self.shape, eps=self.eps), shift1, scale1))
        x = torch.addcmul(x, gate1[:, None], F.dropout(h, self.rate, self.training))
        h = self.expand(modulate(F.layer_norm(x, self.shape, eps=self.eps), shift2, scale2))
        h = self.contract(F.gelu(h, approximate="tanh"))
        return torch.addcmul(x, gate2[:, None], F.dropout(h, self.rate, self.training))


class TorchDiT(nn.Module):
    """``module(x, t, label)``: images ``(B, C, H, W)``, times and labels ``(B,)``; dropout while training."""

    stacked = ("blocks",)
    positions: Tensor

    def __init__(self, config: DiTFields):
        super().__init__()
        self.config = config
        pixels, width = config.patch**2, config.width
        side = config.image_size // config.patch
        self.register_buffer("positions", position_embedding(side, side, width), persistent=False)
        self.patches = nn.Linear(config.in_channels * pixels, width)
        self.time = TimeEmbedding(config.frequencies, width, "cos_sin", config.time_shift)
        classes = config.num_classes
        self.label = LabelEmbedding(classes, width, config.null_class) if classes is not None else None
        self.blocks = nn.ModuleList(DiTBlock(config) for _ in range(config.depth))
        self.modulation = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, (config.out_channels or config.in_channels) * pixels)

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        batch, channels, height, width = x.shape
        patch = self.config.patch
        rows, columns = height // patch, width // patch
        c = self.time(t)
        if self.label is not None:
            c = c + self.label(label, batch)
        c = F.silu(c)
        patches = x.view(batch, channels, rows, patch, columns, patch).permute(0, 2, 4, 3, 5, 1)
        tokens = self.patches(patches.reshape(batch, rows * columns, patch * patch * channels))
        tokens = tokens + self.positions.to(tokens.dtype)
        for block in self.blocks:
            tokens = block(tokens, c)
        shift, scale = self.modulation(c).chunk(2, dim=-1)
        normed = F.layer_norm(tokens, (self.config.width,), eps=self.config.norm_eps)
        pixels = self.out(modulate(normed, shift, scale)).view(batch, rows, columns, patch, patch, -1)
        return pixels.permute(0, 5, 1, 3, 2, 4).reshape(batch, -1, height, width)
