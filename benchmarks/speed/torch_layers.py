"""The layers of the PyTorch twins, and how they take jaxdiff's parameters. Needs torch and numpy only.

Images are NCHW (in either memory format), tokens NLC. Every name is jaxdiff's, so that `load` goes by name; see
`benchmarks.speed.parameters`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.speed.parameters import check_same, named

LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"}  # jaxdiff's -> PyTorch's


def load(module: nn.Module, params: Mapping[str, Any]) -> None:
    """Copies jaxdiff's parameters into the twin: each parameter of each side is used once.

    Args:
      module: `TorchUNet`, `TorchDiT` or a part; what it names in ``stacked`` jaxdiff keeps as one array for all blocks.
      params: a nested dict of arrays, as `jaxdiff.networks.Functional.init` returns.

    Raises:
      ValueError: the two do not hold the same parameters.
    """
    arrays: dict[str, NDArray[Any]] = {}
    for name, array in named(params, getattr(module, "stacked", ())).items():
        head, _, leaf = name.rpartition(".")
        if head.endswith("qkv"):  # query, key and value have an axis of their own
            array = array.reshape(*array.shape[:-2], -1)
        arrays[f"{head}.{LEAVES[leaf]}"] = _as_torch(array) if leaf == "kernel" else array
    parameters = dict(module.named_parameters())
    check_same({k: v.size for k, v in arrays.items()}, {k: v.numel() for k, v in parameters.items()})
    with torch.no_grad():
        for name, parameter in parameters.items():
            array = arrays[name]
            if tuple(parameter.shape) not in (array.shape, (*array.shape, 1, 1)):  # a projection as 1x1 convolution
                raise ValueError(f"{name} has shape {array.shape} here and {tuple(parameter.shape)} there")
            parameter.copy_(torch.from_numpy(np.array(array)).reshape(parameter.shape))


def _as_torch(kernel: NDArray[Any]) -> NDArray[Any]:
    return kernel.T if kernel.ndim == 2 else kernel.transpose(3, 2, 0, 1)  # (in, out) -> (out, in); HWIO -> OIHW


def group_norm(channels: int, groups: int, eps: float) -> nn.GroupNorm:
    """At most ``groups`` groups, none of fewer than four channels."""
    return nn.GroupNorm(math.gcd(channels, max(1, min(groups, channels // 4))), channels, eps=eps)


class TimeEmbedding(nn.Module):
    """Sines and cosines of the time, then two layers with SiLU between."""

    omega: Tensor

    def __init__(self, frequencies: int, width: int, order: Literal["sin_cos", "cos_sin"], shift: float):
        super().__init__()
        half = frequencies // 2
        omega = 10_000.0 ** (-torch.arange(half, dtype=torch.float64) / (half - shift))
        self.register_buffer("omega", omega.float(), persistent=False)
        self.order = order
        self.hidden = nn.Linear(frequencies, width)
        self.out = nn.Linear(width, width)

    def forward(self, t: Tensor) -> Tensor:
        angle = t.float()[:, None] * self.omega
        waves = (angle.sin(), angle.cos()) if self.order == "sin_cos" else (angle.cos(), angle.sin())
        return self.out(F.silu(self.hidden(torch.cat(waves, dim=1))))


class SelfAttention(nn.Module):
    """Multi-head self-attention, ``(B, L, C) -> (B, L, C)``, by the fused kernel."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(x).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (B, heads, L, depth) each
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.out(mixed.transpose(1, 2).reshape(batch, length, width))


class LabelEmbedding(nn.Embedding):
    """A vector a class and, with ``null``, one for "no class", which no label stands for."""

    def __init__(self, num_classes: int, width: int, null: bool):
        super().__init__(num_classes + null, width)
        self.null_label = num_classes

    def forward(self, label: Tensor | None, batch: int) -> Tensor:
        if label is None:
            label = torch.full((batch,), self.null_label, device=self.weight.device)
        return super().forward(label)
