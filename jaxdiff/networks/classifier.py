"""The noisy classifier: the half of a U-Net up to its middle, and attention that pools the pixels to one vector.

Dhariwal & Nichol 2021, "Diffusion Models Beat GANs on Image Synthesis", https://arxiv.org/abs/2105.05233, section 4
(their published code: ``EncoderUNetModel`` with ``pool="attention"``). With m_1, ..., m_n the n pixels of the middle,
normalised and through SiLU, and p_0, ..., p_n learned positions, the logits are those of the first token after
attention over all,

    z_0 = mean_i m_i + p_0,     z_i = m_i + p_i                                                      (1)
    logits = W sum_j softmax_j(q_0 . k_j / sqrt(d)) v_j + b,     q, k, v linear in z, by heads          (2)

as in CLIP's image encoders (Radford et al. 2021, https://arxiv.org/abs/2103.00020). The time enters as in a denoiser,
in every residual block. The number of positions fixes the size of the images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.networks.attention import QueryKeyValue, by_heads
from jaxdiff.networks.layers import DType, GroupNorm, Linear, at_least_1, draw, normal
from jaxdiff.networks.unet import UNet, UNetModule
from jaxdiff.spec import Specs


@dataclass(frozen=True)
class Classifier:
    """Configuration of the noisy classifier; `jaxdiff.networks.functional` makes a network of it, whose output is
    logits ``(B, classes)``.

    Args:
      unet: whose half up to the middle it is; its heads are those of the pooling too. Its decoder is not built.
      classes: how many, at least 2.

    Raises:
      ValueError: fewer classes, or a U-Net that takes a label or other conditions: a classifier sees x and t alone.

    >>> from jaxdiff.networks import functional
    >>> half = UNet(image_size=8, in_channels=1, width=16, multipliers=(1, 2), blocks=1, attention_resolutions=())
    >>> net = functional(Classifier(half, 10))
    >>> params = jax.jit(net.init)(jax.random.key(0))
    >>> jax.jit(net.apply)(params, jnp.zeros((3, 8, 8, 1)), 0.5).shape
    (3, 10)
    """

    unet: UNet
    classes: int

    def __post_init__(self) -> None:
        at_least_1(self, "classes")
        if self.classes < 2:
            raise ValueError(f"classes={self.classes} must be at least 2: there is nothing to tell apart")
        if taken := sorted(self.unet.cond):
            raise ValueError(f"a classifier sees x and t alone, and its U-Net takes {taken[0]}: leave it out of unet")

    @property
    def cond(self) -> Specs:
        """What the network takes beside x and t: nothing."""
        return {}

    @property
    def image_size(self) -> int:
        """Side of the images; heads and their width are the U-Net's too."""
        return self.unet.image_size

    @property
    def in_channels(self) -> int:
        """Of the images."""
        return self.unet.in_channels

    @property
    def heads(self) -> int:
        """Of attention."""
        return self.unet.heads

    @property
    def head_width(self) -> int | None:
        """Of attention."""
        return self.unet.head_width

    def computing_in(self, dtype: DType) -> Classifier:
        """The same, which computes in another dtype."""
        return replace(self, unet=replace(self.unet, dtype=dtype))

    def __call__(self, rngs: nnx.Rngs) -> ClassifierModule:
        """The module, with fresh parameters."""
        return draw(ClassifierModule(self), rngs.params())


class AttentionPool(nnx.Module):
    """Equations (1) and (2), of ``side^2`` pixels."""

    def __init__(self, side: int, channels: int, heads: int, classes: int):
        self.heads = heads
        self.positions = normal(channels**-0.5)((side * side + 1, channels))
        self.qkv = QueryKeyValue(channels)
        self.out = Linear(channels, classes)

    def __call__(self, h: Array) -> Array:
        """``(B, side, side, channels) -> (B, classes)``."""
        pixels = h.reshape(h.shape[0], -1, h.shape[3])  # (B, side^2, channels)
        z = jnp.concatenate([pixels.mean(1, keepdims=True), pixels], axis=1) + self.positions[...][None]
        query, key, value = self.qkv(z)
        return self.out(by_heads(query[:, :1], key, value, self.heads)[:, 0])


class ClassifierModule(nnx.Module):
    """The classifier, called as ``module(x, t, cond, key)``."""

    def __init__(self, config: Classifier):
        unet = config.unet
        self.config = config
        self.encoder = UNetModule(unet, decoder=False)
        levels = len(unet.multipliers)
        channels, side = unet.channels(levels - 1), unet.image_size // 2 ** (levels - 1)
        self.norm_out = GroupNorm(channels, **unet.norm)
        self.pool = AttentionPool(side, channels, unet.heads_of(channels), config.classes)

    def __call__(self, x: Array, t: ArrayLike, cond: Mapping[str, Any], key: Array | None) -> Array:
        size = self.config.image_size
        if x.ndim != 4 or x.shape[1:3] != (size, size):
            raise ValueError(
                f"this Classifier has positions for images of {size}x{size}, got {x.shape}: set image_size of its U-Net"
            )
        told = self.encoder.embed(x, t, cond)
        h, _ = self.encoder.encode(self.encoder.enter(x, cond), told, key)
        return self.pool(jax.nn.silu(self.norm_out(h.astype(jnp.float32))))
