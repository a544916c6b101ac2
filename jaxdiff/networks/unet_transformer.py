"""The transformer block of latent diffusion's U-Net: self-attention over the pixels, and cross-attention to a text.

Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models", https://arxiv.org/abs/2112.10752,
section 3.3 and appendix E.2.1; with several layers, Podell et al. 2023, "SDXL", https://arxiv.org/abs/2307.01952. With
C the tokens of the context, m their mask and h the pixels of x as tokens,

    h = W_in groupnorm(x) + b                                                              (1)
    h <- h + attention(norm1(h), itself)                                                   (2)
    h <- h + attention(norm2(h), C, m)                 where the network has a context     (3)
    h <- h + W2 (a * gelu(g)) + b2,    a|g = W1 norm3(h) + b1                              (4)
    y = x + W_out h + b                                                                    (5)

(2) to (4) once a layer. Queries, keys and values have no bias; gelu is the exact one, x Phi(x); (4) is GEGLU (Shazeer
2020, https://arxiv.org/abs/2002.05202), value first and gate second. The group normalisation has eps 1e-6, whatever the
residual blocks have. W_in and W_out are linear maps of each pixel: the 1x1 convolutions of Stable Diffusion 1 and the
linear layers of 2 and XL are the same function. W_out starts at zero. ``flax_numerics`` chooses what the Flax classes
of diffusers had: the gelu by tanh, and eps 1e-5.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from jaxdiff.networks.attention import Attend, CrossAttention, SelfAttention, attention
from jaxdiff.networks.embedded import Embedded
from jaxdiff.networks.layers import DType, GroupNorm, LayerNorm, Linear, by_rows, fan_average, zeros
from jaxdiff.networks.perturbed import Perturbation, attending, left_out


class GatedLinear(nnx.Module):
    """Equation (4)'s ``a * gelu(g)``; the kernel is ``(width, 2, hidden)``, a and g, split over its last axis.

    Args:
      width: of the tokens.
      hidden: of the result.
      dtype: what it computes in and returns.
      by_tanh: whether gelu is the one by tanh.
    """

    def __init__(self, width: int, hidden: int, *, dtype: DType = "float32", by_tanh: bool = False):
        self.dtype, self.by_tanh = dtype, by_tanh
        drawn = fan_average((width, 2 * hidden))
        self.kernel = type(drawn)(drawn[...].reshape(width, 2, hidden))
        self.bias = zeros((2, hidden))

    def __call__(self, x: Array) -> Array:
        """``(..., width) -> (..., hidden)``.

        >>> GatedLinear(4, 6)(jnp.ones((2, 3, 4))).shape
        (2, 3, 6)
        """
        kernel, bias = self.kernel[...].astype(self.dtype), self.bias[...].astype(self.dtype)
        value, gate = jnp.einsum("nc,ctd->tnd", by_rows(x).astype(self.dtype), kernel) + bias[:, None]
        return (value * jax.nn.gelu(gate, approximate=self.by_tanh)).reshape(*x.shape[:-1], -1)


class TransformerLayer(nnx.Module):
    """Equations (2) to (4)."""

    def __init__(self, width: int, heads: int, context: int | None, *, dtype: DType = "float32", by_tanh: bool = False):
        self.norm1, self.norm3 = LayerNorm(width), LayerNorm(width)
        self.attention = SelfAttention(width, heads, bias=False, dtype=dtype)
        if context is not None:
            self.norm2 = LayerNorm(width)
            self.cross_attention = CrossAttention(width, context, heads, bias=False, dtype=dtype)
        self.attends = context is not None
        self.expand = GatedLinear(width, 4 * width, dtype=dtype, by_tanh=by_tanh)
        self.contract = Linear(4 * width, width, dtype=dtype)

    def __call__(self, h: Array, context: Array | None, mask: Array | None, attend: Attend = attention) -> Array:
        h = h + self.attention(self.norm1(h), attend=attend)
        if self.attends and context is not None:
            h = h + self.cross_attention(self.norm2(h), context, mask)
        return h + self.contract(self.expand(self.norm3(h)))


class Transformer(nnx.Module):
    """Equations (1) to (5), over the pixels.

    Args:
      channels: of the image.
      heads: of attention.
      layers: how often (2) to (4), each with weights of its own.
      context: width of the tokens that (3) attends to; None: there is no (3).
      groups: of the normalisation.
      least_group: fewest channels of a group.
      dtype: what it computes in.
      flax_numerics: see above.
    """

    perturbed: Perturbation | None = None

    def __init__(
        self,
        channels: int,
        heads: int,
        layers: int,
        context: int | None,
        *,
        groups: int = 32,
        least_group: int = 4,
        dtype: DType = "float32",
        flax_numerics: bool = False,
    ):
        self.norm = GroupNorm(channels, groups=groups, eps=1e-5 if flax_numerics else 1e-6, least=least_group)
        self.enter = Linear(channels, channels, dtype=dtype)
        options: dict[str, Any] = {"dtype": dtype, "by_tanh": flax_numerics}
        self.layers = nnx.List([TransformerLayer(channels, heads, context, **options) for _ in range(layers)])
        self.leave = Linear(channels, channels, dtype=dtype, init=zeros)

    def __call__(self, x: Array, told: Embedded) -> Array:
        """``(B, H, W, C) -> (B, H, W, C)``.

        >>> block = Transformer(8, heads=2, layers=1, context=6)
        >>> told = Embedded(0.0, jnp.ones((2, 3, 6)), jnp.ones((2, 3), bool))
        >>> block(jnp.ones((2, 4, 4, 8)), told).shape
        (2, 4, 4, 8)
        """
        if left_out(self.perturbed):
            return x
        batch, height, width, channels = x.shape
        attend = attending(self.perturbed, (height, width))
        h = self.enter(self.norm(x).reshape(batch, height * width, channels))
        for layer in self.layers:
            h = layer(h, told.tokens, told.mask, attend)
        return x + self.leave(h).reshape(x.shape)
