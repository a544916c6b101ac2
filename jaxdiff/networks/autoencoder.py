"""Autoencoders of images: the KL and the VQ ones of latent diffusion, small or as published.

- LDM: Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models",
  https://arxiv.org/abs/2112.10752, section 3.1 and appendix G.
- VQ: van den Oord et al. 2017, "Neural Discrete Representation Learning", https://arxiv.org/abs/1711.00937.

With E the encoder and D the decoder, both convolutional, of images x and latents z with factor times fewer pixels a
side, a KL autoencoder has

    (m, log v) = E(x),   z = m + sqrt(v) n,   n ~ N(0, 1),   x^ = D(z)                       (1)

with log v within [-30, 20], and a VQ one, with entries e_k of a codebook,

    m = E(x),   k = argmin_k |m - e_k|^2,   z = e_k,   x^ = D(z)                             (2)

at each place by itself. The argmin has no derivative; the straight-through estimator takes that of the identity,

    z = m + stop_gradient(e_k - m)                                                           (3)

so that the codebook learns from a loss of its own (`jaxdiff.autoencoding`). Latents are those before (2): a diffusion
model of them is rounded to entries by the decoder.

`Autoencoder` makes pure functions of a configuration.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float

from jaxdiff.networks.encoder_decoder import AutoencoderModule, Layout, Quantised
from jaxdiff.networks.functional import Functional, Params
from jaxdiff.networks.layers import Uniform
from jaxdiff.spec import Specs

LOG_VARIANCE = (-30.0, 20.0)
"""What the log-variance of a KL autoencoder is clipped to, as published."""


@dataclass(frozen=True)
class KLAutoencoder(Layout):
    """An autoencoder whose latents are normally distributed, equation (1). The defaults are LDM's KL-f8.

    Args: see `Layout`. `ldm_kl` has the published ones; SD3's and FLUX's is ``KLAutoencoder(channels=16,
    projections=False)``.

    >>> KLAutoencoder().factor, KLAutoencoder(patch=2, multipliers=(1, 2)).factor
    (8, 4)
    """

    @property
    def encoded(self) -> int:
        """Mean and log-variance of each latent."""
        return 2 * self.channels

    def codebook(self) -> None:
        """None."""


@dataclass(frozen=True)
class VQAutoencoder(Layout):
    """An autoencoder whose decoder sees entries of a learned codebook, equations (2) and (3); `ldm_vq` has the
    published ones.

    Args: see `Layout`.
      entries: of the codebook.

    >>> VQAutoencoder(entries=512).encoded
    4
    """

    entries: int = 8192

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.entries < 2:
            raise ValueError(f"entries={self.entries} must be at least 2")

    @property
    def encoded(self) -> int:
        """The latents themselves."""
        return self.channels

    def codebook(self) -> nnx.Param:
        """Uniform within 1/entries of zero, as published."""
        return Uniform(jnp.full((self.entries, self.channels), 1 / self.entries))


@dataclass(frozen=True)
class Autoencoder:
    """The pure functions of an autoencoder. It holds no arrays: a static argument of `jax.jit`, equal when ``build`` is
    equal.

    Args:
      build: a configuration, `KLAutoencoder` or `VQAutoencoder`.

    >>> import jax
    >>> net = Autoencoder(KLAutoencoder(width=8, multipliers=(1, 2), blocks=1, channels=2))
    >>> params = jax.jit(net.init)(jax.random.key(0))
    >>> mean, log_variance = jax.jit(net.moments)(params, jnp.zeros((1, 8, 8, 3)))
    >>> mean.shape, log_variance.shape, jax.jit(net.decode)(params, mean).shape
    ((1, 4, 4, 2), (1, 4, 4, 2), (1, 8, 8, 3))
    """

    build: Layout

    @property
    def factor(self) -> int:
        """Pixels of an image for one of its latents, along a side."""
        return self.build.factor

    @property
    def channels(self) -> int:
        """Of the latents."""
        return self.build.channels

    @property
    def quantises(self) -> bool:
        """Whether its decoder rounds latents to entries of a codebook."""
        return isinstance(self.build, VQAutoencoder)

    @property
    def cond(self) -> Specs:
        """It is conditioned on nothing."""
        return {}

    def init(self, key: Array) -> Params:
        """Fresh parameters, float32: a nested dict. Under `jax.jit` and `jax.eval_shape` as outside them."""
        return Functional(self.build).init(key)

    def moments(
        self, params: Mapping[str, Any], x: Float[Array, "batch height width channels"]
    ) -> tuple[Float[Array, "batch h w c"], Float[Array, "batch h w c"] | None]:
        """Mean and log-variance of the latents of images.

        Args:
          params: as `init` made them.
          x: ``(B, H, W, C)`` in [-1, 1]; H and W are multiples of ``factor``.

        Returns:
          Mean and log-variance, ``(B, H/factor, W/factor, channels)`` float32, the latter within `LOG_VARIANCE`. With a
          codebook, the latents before they are rounded, and None: they have no variance.
        """
        encoded = self._module(params).encode(x)
        if self.quantises:
            return encoded, None
        mean, log_variance = jnp.split(encoded, 2, axis=-1)
        return mean, jnp.clip(log_variance, *LOG_VARIANCE)

    def decode(
        self, params: Mapping[str, Any], z: Float[Array, "batch h w c"]
    ) -> Float[Array, "batch height width c2"]:
        """Images of latents ``(B, h, w, channels)``: about [-1, 1], float32, not clipped. With a codebook, of the
        nearest entries."""
        module = self._module(params)
        z = module.quantise(z).z if self.quantises else z
        return module.finish(module.features(z))

    def quantise(self, params: Mapping[str, Any], z: Float[Array, "batch h w c"]) -> Quantised:
        """Latents rounded to the codebook, equations (2) and (3).

        Raises:
          ValueError: there is no codebook.
        """
        return self._module(params).quantise(z)

    def features(self, params: Mapping[str, Any], z: Float[Array, "batch h w c"]) -> Array:
        """What the decoder's last convolution sees, of latents as they are: ``decode`` is ``finish(features)``."""
        return self._module(params).features(z)

    def finish(self, params: Mapping[str, Any], features: Array) -> Array:
        """The images of `features`: the decoder's last convolution alone."""
        return self._module(params).finish(features)

    def _module(self, params: Mapping[str, Any]) -> AutoencoderModule:
        module: AutoencoderModule = Functional(self.build).module(params)
        return module


def ldm_kl(factor: Literal[4, 8, 16, 32], **changes: Any) -> KLAutoencoder:
    """The KL autoencoders of Rombach et al. 2022 (table 8): f8, with 83,653,863 parameters, is Stable Diffusion's too.

    Args:
      factor: 4, 8, 16 or 32, with latents of 3, 4, 16 and 64 channels.
      changes: fields of `KLAutoencoder` to replace.

    Raises:
      ValueError: another factor.

    >>> ldm_kl(4).channels
    3
    """
    published: dict[int, dict[str, Any]] = {
        4: {"channels": 3, "multipliers": (1, 2, 4)},
        8: {},
        16: {"channels": 16, "multipliers": (1, 1, 2, 2, 4), "attention": (4,)},
        32: {"channels": 64, "multipliers": (1, 1, 2, 2, 4, 4), "attention": (4, 5)},
    }
    return KLAutoencoder(**{**_published(published, factor), **changes})


def ldm_vq(factor: Literal[4, 8], **changes: Any) -> VQAutoencoder:
    """The VQ autoencoders of Rombach et al. 2022: f4 of 8,192 entries of 3 channels, f8 of 16,384 of 4.

    Args:
      factor: 4 or 8.
      changes: fields of `VQAutoencoder` to replace.

    Raises:
      ValueError: another factor.

    >>> ldm_vq(8).entries
    16384
    """
    published: dict[int, dict[str, Any]] = {
        4: {"channels": 3, "multipliers": (1, 2, 4)},
        8: {"multipliers": (1, 2, 2, 4), "attention": (3,), "entries": 16_384},
    }
    return VQAutoencoder(**{**_published(published, factor), **changes})


def _published(table: Mapping[int, dict[str, Any]], factor: int) -> dict[str, Any]:
    if factor not in table:
        raise ValueError(f"there are autoencoders of factor {', '.join(map(str, table))}, got {factor}: set the fields")
    return table[factor]
