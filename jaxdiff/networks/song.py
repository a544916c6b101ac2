"""DDPM++ and NCSN++, the U-Nets of Song et al. 2021, "Score-Based Generative Modeling through Stochastic Differential
Equations", https://arxiv.org/abs/2011.13456, as EDM trains them: Karras et al. 2022, https://arxiv.org/abs/2206.00364,
appendix F, their `SongUNet`. `jaxdiff.networks.published_unets` has the published ones by name.

A block, with e the embedding, R the change of resolution by a filter (`jaxdiff.networks.resampling`) and s = sqrt(1/2):

    h = norm2(conv1(R silu(norm1(x))) + W e)                                       (1)
    y = s (skip(R x) + conv2(dropout(silu(h))))                                    (2)
    y <- s (y + attention(norm3(y))),  one head, where the level has it            (3)

In NCSN++ the image itself comes in at each resolution, with x_0 = z_0 the image and what enters the first level:

    z_l = s (down_l(z_{l-1}) + f * conv_l(z_{l-1})),   f the filter, halving       (4)

The embedding, with w sines and cosines of the noise level, N classes, one of which is the row c of a table, and a the
vector of augmentations that the sample has undergone (appendix F.2):

    e = silu(W_2 silu(W_1 (w + sqrt(N) c + b + A a)))                              (5)

No class is c = 0, no augmentation a = 0. NCSN++ draws its frequencies once, from N(0, 16^2): they are stored, and have
no derivative.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.networks.attention import QueryKeyValue, by_heads
from jaxdiff.networks.conditions import cond_specs
from jaxdiff.networks.embeddings import times_of, timestep_embedding
from jaxdiff.networks.layers import (
    Conv3x3,
    DType,
    GroupNorm,
    Init,
    Linear,
    Uniform,
    at_least_1,
    check_images,
    draw,
    dropout,
    fan_average,
    normal,
    zeros,
)
from jaxdiff.networks.perturbed import Perturbation, Rows, attending, left_out, levelled
from jaxdiff.networks.placement import by_sample
from jaxdiff.networks.remat import Remat, check_remat, convolved, recomputed
from jaxdiff.networks.resampling import Direction, Taps, check_taps, half, halved, resample
from jaxdiff.spec import Condition, Spec

SCALE = math.sqrt(0.5)  # s
EPS = 1e-6  # of the normalisations
DEVIATION = 16.0  # of the frequencies that are drawn


@dataclass(frozen=True)
class SongUNet:
    """Configuration of DDPM++ (the defaults) or NCSN++; `jaxdiff.networks.functional` makes a network of it.

    It is told ln(sigma)/4, as `jaxdiff.LogSigma` says.

    Args:
      image_size: side of the images that ``attention_resolutions`` refer to. Images of any size divisible by
        ``2^(len(multipliers) - 1)`` pass through the network.
      in_channels: of the images.
      out_channels: of the output; None: as many as ``in_channels``.
      width: channels at a multiplier of 1, and a quarter of the width of the embedding. Even, at least 4.
      multipliers: channels of each level over ``width``. What enters the first level has ``width``.
      blocks: a level on the way down; one more on the way up.
      attention_resolutions: the resolutions with attention: after each block on the way down, and after the last one on
        the way up. The middle always has it.
      num_classes: for a network conditioned on ``cond["label"]``; None for one that is not.
      null_class: whether label ``num_classes`` means "no class".
      augment: length of ``cond["augment"]``, the vector a of (5); 0: there is none. EDM's augmentations have 9.
      embedding: sines and cosines of geometric frequencies (DDPM++), or of frequencies that are drawn (NCSN++).
      waves: their number over ``width``: 1 in DDPM++, 2 in NCSN++.
      residual_input: equation (4), of NCSN++.
      taps: of the filter: (1, 1) in DDPM++, (1, 3, 3, 1) in NCSN++.
      dropout: rate in the blocks, in [0, 1); applies when a key is passed.
      dtype: what convolutions and matrix products compute in; parameters and output are float32.
      remat: as in `jaxdiff.networks.UNet`.

    Raises:
      ValueError: values that do not fit each other.

    >>> from jaxdiff.networks import functional
    >>> net = functional(SongUNet(image_size=8, width=16, multipliers=(1, 2), blocks=1, attention_resolutions=(4,)))
    >>> params = jax.jit(net.init)(jax.random.key(0))
    >>> jax.jit(net.apply)(params, jnp.zeros((2, 8, 8, 3)), jnp.array([-1.5, 1.1])).shape
    (2, 8, 8, 3)
    """

    image_size: int = 32
    in_channels: int = 3
    out_channels: int | None = None
    width: int = 128
    multipliers: tuple[int, ...] = (2, 2, 2)
    blocks: int = 4
    attention_resolutions: tuple[int, ...] = (16,)
    num_classes: int | None = None
    null_class: bool = True
    augment: int = 0
    embedding: Literal["positional", "fourier"] = "positional"
    waves: int = 1
    residual_input: bool = False
    taps: Taps = (1, 1)
    dropout: float = 0.13
    dtype: DType = "float32"
    remat: Remat = "none"

    def __post_init__(self) -> None:
        at_least_1(self, "image_size", "in_channels", "out_channels", "width", "blocks", "num_classes", "waves")
        halved(self.image_size, self.multipliers, self.attention_resolutions)
        if self.width < 4 or self.width % 2:
            raise ValueError(f"width={self.width} must be even and at least 4")
        if self.augment < 0:
            raise ValueError(f"augment={self.augment} must be 0 or more")
        if self.embedding not in ("positional", "fourier"):
            raise ValueError(f"embedding={self.embedding!r} must be 'positional' or 'fourier'")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout} must be in [0, 1)")
        check_taps(self.taps)
        check_remat(self.remat)

    @property
    def cond(self) -> dict[str, Condition]:
        """What the network takes beside x and t."""
        specs = cond_specs(self.num_classes, self.null_class, ())
        return {**specs, "augment": Spec((self.augment,), "float32", null=0.0)} if self.augment else specs

    def attends(self, level: int) -> bool:
        """Whether a level has attention."""
        return self.image_size // 2**level in self.attention_resolutions

    def __call__(self, rngs: nnx.Rngs) -> SongUNetModule:
        """The module, with fresh parameters."""
        return draw(SongUNetModule(self), rngs.params())


def _times(factor: float) -> Init:
    """`fan_average`, smaller."""
    return lambda shape: Uniform(factor * fan_average(shape)[...])


_SMALL, _LESS = _times(1e-5), _times(math.sqrt(0.2))  # of the last map of a branch; of query, key and value


class Embedding(nnx.Module):
    """Equation (5)."""

    def __init__(self, config: SongUNet):
        self.config = config
        inputs, outputs = config.waves * config.width, 4 * config.width
        self.frequencies = normal(DEVIATION)((inputs // 2,)) if config.embedding == "fourier" else None
        if config.num_classes is not None:
            self.label = fan_average((config.num_classes, inputs))
            self.label_bias = zeros((inputs,))
        self.augment = Linear(config.augment, inputs, bias=False) if config.augment else None
        self.hidden = Linear(inputs, outputs)
        self.out = Linear(outputs, outputs)

    def __call__(self, t: ArrayLike, batch: int, cond: Mapping[str, Any]) -> Array:
        t, classes = times_of(t, batch), self.config.num_classes
        if self.frequencies is None:
            told = timestep_embedding(t, self.config.waves * self.config.width, order="sin_cos", shift=1.0)
        else:
            angle = t[:, None] * (2 * jnp.pi * jax.lax.stop_gradient(self.frequencies[...]))[None]
            told = jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=1)
        if classes is not None:
            label = cond["label"]
            known = jnp.where(label < 0, classes + 1, label)  # a label that is none gives NaN, and cannot pass unseen
            row = jnp.take(self.label[...], known, axis=0, mode="fill", fill_value=jnp.nan)
            row = jnp.where((label == classes)[:, None], 0.0, row) if self.config.null_class else row
            told = told + math.sqrt(classes) * row + self.label_bias[...][None]
        if self.augment is not None:
            told = told + self.augment(cond["augment"])
        return jax.nn.silu(self.out(jax.nn.silu(self.hidden(told))))


class Block(nnx.Module):
    """Equations (1) to (3). ``site`` tells this block's dropout from the others'."""

    perturbed: Perturbation | None = None

    def __init__(
        self,
        config: SongUNet,
        inputs: int,
        outputs: int,
        site: int,
        *,
        resample: Direction | None = None,
        attention: bool = False,
    ):
        self.config, self.site, self.resample = config, site, resample
        dtype = config.dtype
        self.norm1 = GroupNorm(inputs, eps=EPS)
        self.conv1 = Conv3x3(inputs, outputs, dtype=dtype)
        self.embed = Linear(4 * config.width, outputs)
        self.norm2 = GroupNorm(outputs, eps=EPS)
        self.conv2 = Conv3x3(outputs, outputs, dtype=dtype, init=_SMALL)
        self.skip = None if inputs == outputs and resample is None else Linear(inputs, outputs, dtype=dtype)
        self.norm3 = GroupNorm(outputs, eps=EPS) if attention else None
        self.qkv = QueryKeyValue(outputs, dtype=dtype, init=_LESS) if attention else None
        self.mixed = Linear(outputs, outputs, dtype=dtype, init=_SMALL) if attention else None

    def __call__(self, x: Array, e: Array, key: Array | None) -> Array:
        h = self.conv1(resample(jax.nn.silu(self.norm1(x)), self.config.taps, self.resample))
        h = by_sample(convolved(h))
        h = jax.nn.silu(self.norm2(h + self.embed(e)[:, None, None, :].astype(h.dtype)))
        h = dropout(h, self.config.dropout, None if key is None else jax.random.fold_in(key, self.site))
        x = resample(x, self.config.taps, self.resample)
        y = convolved(SCALE * (self.conv2(h) + (x if self.skip is None else self.skip(x))))
        if self.norm3 is None or self.qkv is None or self.mixed is None or left_out(self.perturbed):
            return y
        tokens = self.norm3(y).reshape(y.shape[0], -1, y.shape[3])
        mixed = by_heads(*self.qkv(tokens), 1, attend=attending(self.perturbed, (y.shape[1], y.shape[2])))
        return SCALE * (y + self.mixed(mixed).reshape(y.shape))


class FilteredInput(nnx.Module):
    """The second term of equation (4). The convolution reaches beyond the image as far as the filter does."""

    def __init__(self, config: SongUNet, inputs: int, outputs: int):
        self.taps = config.taps
        self.conv = Conv3x3(inputs, outputs, dtype=config.dtype)

    def __call__(self, x: Array) -> Array:
        reach = len(self.taps) // 2 - 1
        x = self.conv(jnp.pad(x, ((0, 0), (reach, reach), (reach, reach), (0, 0))))
        return half(half(x, self.taps, 1), self.taps, 2)


class Level(nnx.Module):
    """The change to a resolution, and the blocks there."""

    def __init__(self, resample: Block | None, entering: FilteredInput | None, blocks: list[Block]):
        self.resample, self.entering = resample, entering
        self.blocks = nnx.List(blocks)


class SongUNetModule(nnx.Module):
    """The network that a `SongUNet` configures, called as ``module(x, t, cond, key)``."""

    def __init__(self, config: SongUNet):
        self.config = config
        sites = itertools.count()
        widths = [config.width * factor for factor in config.multipliers]
        self.embed = Embedding(config)
        now, image = config.width, config.in_channels
        self.conv_in = Conv3x3(config.in_channels, now, dtype=config.dtype)
        skips, down, up = [now], [], []
        for level, width in enumerate(widths):
            change = Block(config, now, now, next(sites), resample="down") if level else None
            entering = FilteredInput(config, image, now) if level and config.residual_input else None
            skips += [now] if level else []
            image, blocks = now if level else image, []
            for _ in range(config.blocks):
                blocks.append(Block(config, now, width, next(sites), attention=config.attends(level)))
                now = width
                skips.append(now)
            down.append(Level(change, entering, blocks))
        self.down = nnx.List(down)
        self.middle_in = Block(config, now, now, next(sites), attention=True)
        self.middle_out = Block(config, now, now, next(sites))
        last = len(widths) - 1
        for level in range(last, -1, -1):
            change = Block(config, now, now, next(sites), resample="up") if level < last else None
            blocks = []
            for number in range(config.blocks + 1):
                attention = number == config.blocks and config.attends(level)
                blocks.append(Block(config, now + skips.pop(), widths[level], next(sites), attention=attention))
                now = widths[level]
            up.append(Level(change, None, blocks))
        self.up = nnx.List(up)
        self.norm_out = GroupNorm(now, eps=EPS)
        self.conv_out = Conv3x3(now, config.out_channels or config.in_channels, init=_SMALL)

    @property
    def rows(self) -> Rows:
        """What can be perturbed (`jaxdiff.networks.perturbed`)."""
        return levelled(self.down, self.middle_in, self.up)

    def __call__(self, x: Array, t: ArrayLike, cond: Mapping[str, Any], key: Array | None) -> Array:
        check_images(x, self.config.in_channels, 2 ** (len(self.config.multipliers) - 1), "SongUNet")
        e = by_sample(self.embed(t, x.shape[0], cond))

        def run(block: Block, *inputs: Array) -> Array:
            # The inputs are joined within, so that the backward pass keeps the skips, not copies of them.
            def call(*inputs: Array) -> Array:
                joined = inputs[0] if len(inputs) == 1 else jnp.concatenate(inputs, axis=-1)
                return block(joined, e, key)

            return by_sample(recomputed(call, self.config.remat)(*inputs))

        z, h = x, by_sample(self.conv_in(x))
        skips = [h]
        for level in self.down:
            if level.resample is not None:
                h = run(level.resample, h)
                if level.entering is not None:
                    h = z = SCALE * (h + level.entering(z))  # (4)
                skips.append(h)
            for block in level.blocks:
                h = run(block, h)
                skips.append(h)
        h = run(self.middle_out, run(self.middle_in, h))
        for level in self.up:
            if level.resample is not None:
                h = run(level.resample, h)
            for block in level.blocks:
                h = run(block, h, skips.pop())
        return self.conv_out(jax.nn.silu(self.norm_out(h.astype(jnp.float32))))
