"""The U-Net of DDPM, of ADM and of latent diffusion, one network with options. `jaxdiff.networks.published_unets` has
the published ones by name.

- DDPM: Ho et al. 2020, "Denoising Diffusion Probabilistic Models", https://arxiv.org/abs/2006.11239, appendix B.
- iDDPM: Nichol & Dhariwal 2021, https://arxiv.org/abs/2102.09672: scale-shift normalisation, several heads.
- ADM: Dhariwal & Nichol 2021, "Diffusion Models Beat GANs on Image Synthesis", https://arxiv.org/abs/2105.05233,
  section 3: residual up- and down-sampling, more attention.
- LDM: Rombach et al. 2022, https://arxiv.org/abs/2112.10752: transformer blocks with cross-attention
  (`jaxdiff.networks.unet_transformer`).

Its blocks are those of `jaxdiff.networks.unet_blocks`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.networks.conditions import (
    NO_LEVEL,
    Level,
    NetCondition,
    cond_specs,
    image_channels,
    token_width,
    with_images,
    without_tokens,
)
from jaxdiff.networks.embedded import ConditionEmbeddings, Embedded
from jaxdiff.networks.embeddings import LabelEmbedding, TimeEmbedding, TimeOrder, guidance_embedding
from jaxdiff.networks.layers import (
    Conv3x3,
    DType,
    GroupNorm,
    Padding,
    at_least_1,
    check_images,
    draw,
    zeros,
)
from jaxdiff.networks.perturbed import Rows
from jaxdiff.networks.placement import by_sample
from jaxdiff.networks.remat import Remat, check_remat, recomputed
from jaxdiff.networks.unet_blocks import Resample, ResidualBlock, Resolution, Stage
from jaxdiff.spec import Condition


@dataclass(frozen=True)
class UNet:
    """Configuration of the U-Net; `jaxdiff.networks.functional` makes a network of it. The defaults are DDPM's.

    Args:
      image_size: side of the images that ``attention_resolutions`` refer to. Images of any size divisible by
        ``2^(len(multipliers) - 1)`` pass through the network, square or not.
      in_channels: of the images.
      out_channels: of the output; None: as many as ``in_channels``. A learned variance needs twice as many.
      width: channels at a multiplier of 1, and a quarter of the width of the time embedding. Even.
      multipliers: channels of each level over ``width``; each further level has half the resolution.
      blocks: residual blocks a level on the way down; one more on the way up.
      attention_resolutions: the resolutions whose blocks are followed by self-attention (the middle always is).
      transformer_layers: for each level, layers of the transformer that follows its blocks; 0: none. The middle has as
        many as the last level that has any. Empty: plain attention, and that alone.
      heads: of attention.
      head_width: if given, attention has ``channels / head_width`` heads instead.
      num_classes: for a network conditioned on ``cond["label"]``; None for one that is not.
      null_class: whether label ``num_classes`` means "no class" (one row more in the table).
      dropout: rate in the residual blocks, in [0, 1); applies when a key is passed.
      scale_shift: equation (2, ADM) of the blocks rather than (2, DDPM).
      residual_resampling: up- and down-sample inside residual blocks (ADM) rather than by convolutions.
      downsample_padding: of the stride-2 convolutions. DDPM pads at the bottom and the right only, ADM on all sides.
      time_order: which half of the time embedding comes first.
      time_shift: 1 for DDPM's frequencies, 0 for ADM's.
      groups: most groups of the normalisations.
      least_group: fewest channels of a group.
      norm_eps: of the normalisations.
      dtype: what convolutions and matrix products compute in; parameters and output are float32.
      remat: what the backward pass computes again to save memory: nothing, a whole block at a time ("full"), or all but
        the results of convolutions and of matrix products with weights ("dots").
      conditions: what else the network takes (`jaxdiff.networks.conditions`); tokens need transformers.
      joined_conditions: one perceptron for all vectors and pooled texts, as in SDXL, rather than one each.
      guidance_frequencies: if not 0, ``cond["guidance"]`` is the weight w of guidance that a distilled network is told:
        so many sines and cosines of it join those of the time (`jaxdiff.networks.embeddings.guidance_embedding`).
      flax_numerics: let the transformers compute as the Flax classes of diffusers did: their group normalisation with
        eps 1e-5, and gelu by tanh.

    Raises:
      ValueError: values that do not fit each other.

    >>> from jaxdiff.networks import functional
    >>> net = functional(UNet(image_size=16, width=16, multipliers=(1, 2), attention_resolutions=(8,), num_classes=10))
    >>> params = jax.jit(net.init)(jax.random.key(0))
    >>> labels = jnp.array([3, 10])  # the second is "no class"
    >>> jax.jit(net.apply)(params, jnp.zeros((2, 16, 16, 3)), jnp.array([0.0, 999.0]), {"label": labels}).shape
    (2, 16, 16, 3)
    """

    image_size: int = 32
    in_channels: int = 3
    out_channels: int | None = None
    width: int = 128
    multipliers: tuple[float, ...] = (1, 2, 2, 2)
    blocks: int = 2
    attention_resolutions: tuple[int, ...] = (16,)
    transformer_layers: tuple[int, ...] = ()
    heads: int = 1
    head_width: int | None = None
    num_classes: int | None = None
    null_class: bool = True
    dropout: float = 0.0
    scale_shift: bool = False
    residual_resampling: bool = False
    downsample_padding: Padding = "bottom_right"
    time_order: TimeOrder = "sin_cos"
    time_shift: float = 1.0
    groups: int = 32
    least_group: int = 4
    norm_eps: float = 1e-6
    dtype: DType = "float32"
    remat: Remat = "none"
    conditions: tuple[NetCondition, ...] = ()
    joined_conditions: bool = False
    guidance_frequencies: int = 0
    flax_numerics: bool = False

    def __post_init__(self) -> None:
        at_least_1(self, "image_size", "in_channels", "out_channels", "width", "blocks")
        at_least_1(self, "heads", "head_width", "groups", "least_group", "num_classes")
        if self.guidance_frequencies and (self.guidance_frequencies < 4 or self.guidance_frequencies % 2):
            raise ValueError(f"guidance_frequencies={self.guidance_frequencies} must be 0, or even and at least 4")
        levels = [self.image_size // 2**level for level in range(len(self.multipliers))]
        if not levels or self.image_size % 2 ** (len(levels) - 1):
            raise ValueError(f"image_size={self.image_size} cannot be halved for multipliers={self.multipliers}")
        if unknown := set(self.attention_resolutions) - set(levels):
            raise ValueError(f"attention_resolutions={sorted(unknown)} are no level's; the levels have {levels}")
        widths = [self.width * factor for factor in self.multipliers]
        if self.width < 4 or self.width % 2 or any(width <= 0 or width % 1 for width in widths):
            raise ValueError(
                f"width={self.width} must be even and at least 4; each level's must be whole, got {widths}"
            )
        layers = self.transformer_layers
        if layers and (len(layers) != len(levels) or min(layers) < 0 or not any(layers)):
            raise ValueError(
                f"transformer_layers={layers} must have one number a level, {len(levels)}, not all of them 0"
            )
        if not layers and (tokens := without_tokens(self.conditions)):
            raise ValueError(f"conditions {tokens} are tokens, which transformers attend to: set transformer_layers")
        attending = {
            self.channels(level)
            for level, size in enumerate(levels)
            if size in self.attention_resolutions or self.layers(level)
        }
        for channels in sorted(attending | {self.channels(len(levels) - 1)}):
            if channels % (self.head_width or self.heads):
                heads = f"head_width={self.head_width}" if self.head_width else f"heads={self.heads}"
                raise ValueError(f"attention over {channels} channels: they do not divide by {heads}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout} must be in [0, 1)")
        check_remat(self.remat)
        cond_specs(self.num_classes, self.null_class, self.conditions)

    @property
    def cond(self) -> dict[str, Condition]:
        """What the network takes beside x and t."""
        told = (Level("guidance", null=True, high=None),) if self.guidance_frequencies else ()
        return cond_specs(self.num_classes, self.null_class, (*self.conditions, *told))

    @property
    def norm(self) -> dict[str, Any]:
        """Options of the group normalisations."""
        return {"groups": self.groups, "eps": self.norm_eps, "least": self.least_group}

    def channels(self, level: int) -> int:
        """Channels of a level, 0 being the full resolution."""
        return int(self.width * self.multipliers[level])

    def layers(self, level: int | None) -> int:
        """Layers of a level's transformers, 0 for none; of the middle's for None."""
        if level is None:
            return next((layers for layers in reversed(self.transformer_layers) if layers), 0)
        return self.transformer_layers[level] if self.transformer_layers else 0

    def heads_of(self, channels: int) -> int:
        """How many heads attention over so many channels has."""
        return channels // self.head_width if self.head_width else self.heads

    @property
    def context(self) -> int | None:
        """Width of the tokens that the transformers attend to; None where there are none."""
        return token_width(self.conditions, 4 * self.width) if self.transformer_layers else None

    def __call__(self, rngs: nnx.Rngs) -> UNetModule:
        """The module, with fresh parameters."""
        return draw(UNetModule(self), rngs.params())


class UNetModule(nnx.Module):
    """The U-Net that a `UNet` configures, called as ``module(x, t, cond, key)``; ``decoder=False``: up to the middle
    alone, for `encode`."""

    def __init__(self, config: UNet, *, decoder: bool = True):
        self.config = config
        levels = range(len(config.multipliers))
        sites = itertools.count()

        def resample(level: int, direction: Literal["up", "down"]) -> ResidualBlock | Resample:
            channels = config.channels(level)
            if config.residual_resampling:
                return ResidualBlock(config, channels, channels, next(sites), direction)
            return Resample(config, channels, direction)

        order, shift, told = config.time_order, config.time_shift, config.guidance_frequencies
        self.time = TimeEmbedding(config.width, 4 * config.width, order=order, shift=shift, told=told)
        classes = config.num_classes
        self.label = LabelEmbedding(classes, 4 * config.width, null=config.null_class) if classes is not None else None
        self.told = ConditionEmbeddings(
            config.conditions, 4 * config.width, tokens=config.context, joined=config.joined_conditions
        )
        now = config.channels(0)
        self.conv_in = Conv3x3(config.in_channels + image_channels(config.conditions), now, dtype=config.dtype)
        skips = [now]
        down = []
        for level in levels:
            stages = []
            for _ in range(config.blocks):
                stages.append(Stage(config, now, config.channels(level), level, next(sites)))
                now = config.channels(level)
                skips.append(now)
            last = level == levels[-1]
            down.append(Resolution(stages, None if last else resample(level, "down")))
            skips += [] if last else [now]
        self.down = nnx.List(down)
        self.middle_in = Stage(config, now, now, None, next(sites))
        self.middle_out = ResidualBlock(config, now, now, next(sites))
        if not decoder:
            return
        up = []
        for level in reversed(levels):
            stages = []
            for _ in range(config.blocks + 1):
                now += skips.pop()
                stages.append(Stage(config, now, config.channels(level), level, next(sites)))
                now = config.channels(level)
            up.append(Resolution(stages, resample(level, "up") if level else None))
        self.up = nnx.List(up)
        self.norm_out = GroupNorm(now, **config.norm)
        self.conv_out = Conv3x3(now, config.out_channels or config.in_channels, init=zeros)

    def __call__(self, x: Array, t: ArrayLike, cond: Mapping[str, Any], key: Array | None) -> Array:
        told = self.embed(x, t, cond)
        return self.decode(*self.encode(self.enter(x, cond), told, key), told, key)

    @property
    def rows(self) -> Rows:
        """What can be perturbed (`jaxdiff.networks.perturbed`)."""
        down, up = ([stage for level in part for stage in level.stages] for part in (self.down, self.up))
        places = [stage.attention for stage in (*down, self.middle_in, *up) if stage.attention is not None]
        return Rows([(each, 1) for each in places], sum(stage.attention is not None for stage in down))

    def encode(self, h: Array, told: Embedded, key: Array | None) -> tuple[Array, list[Array]]:
        """The middle's features, and those of the skip connections, from the first's on; h as `enter` makes it."""
        run, h = self._running(told, key), by_sample(h)
        skips = [h]
        for level in self.down:
            for stage in level.stages:
                h = run(stage, h)
                skips.append(h)
            if level.resample is not None:
                h = run(level.resample, h)
                skips.append(h)
        return run(self.middle_out, run(self.middle_in, h)), skips

    def decode(self, h: Array, skips: Sequence[Array], told: Embedded, key: Array | None) -> Array:
        """The output, of what `encode` makes."""
        run, left = self._running(told, key), list(skips)
        for level in self.up:
            for stage in level.stages:
                h = run(stage, h, left.pop())
            if level.resample is not None:
                h = run(level.resample, h)
        return self.leave(h)

    def _running(self, told: Embedded, key: Array | None) -> Callable[..., Array]:
        def run(block: Stage | ResidualBlock | Resample, *inputs: Array) -> Array:
            # The inputs are joined within, so that the backward pass keeps the skips, not copies of them.
            def call(*inputs: Array) -> Array:
                joined = inputs[0] if len(inputs) == 1 else jnp.concatenate(inputs, axis=-1)
                return block(joined, told, key)

            return by_sample(recomputed(call, self.config.remat)(*inputs))

        told = jax.tree.map(by_sample, told)
        return run

    def embed(self, x: Array, t: ArrayLike, cond: Mapping[str, Any]) -> Embedded:
        """The embedding of time, class and vectors ``(B, 4 width)``, as each block's linear map takes it, and the
        tokens that transformers attend to."""
        check_images(x, self.config.in_channels, 2 ** (len(self.config.multipliers) - 1), "UNet")
        guided = self.config.guidance_frequencies
        waves = guidance_embedding(cond["guidance"], guided, absent=NO_LEVEL) if guided else None
        embedding = self.time(t, x.shape[0], waves)
        if self.label is not None:
            embedding = embedding + self.label(cond["label"])
        told = self.told(cond)
        return told._replace(vector=jax.nn.silu(embedding + told.vector))

    def enter(self, x: Array, cond: Mapping[str, Any]) -> Array:
        """The features ``(B, H, W, width)`` of x, images of the condition beside it."""
        return self.conv_in(with_images(x, cond, self.config.conditions))

    def leave(self, h: Array) -> Array:
        """The output of the last stage's features."""
        return self.conv_out(jax.nn.silu(self.norm_out(h.astype(jnp.float32))))
