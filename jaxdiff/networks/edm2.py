"""EDM2, the magnitude-preserving U-Net of Karras et al. 2024, "Analyzing and Improving the Training Dynamics of
Diffusion Models", https://arxiv.org/abs/2312.02696: no group normalisation, no biases, and activations, weights and
updates of one expected magnitude. Its published models are `jaxdiff.networks.edm2_img64` and `edm2_img512`.

The magnitude of a vector a of N numbers is |a|/sqrt(N), and with a small eps

    n(a) = a / (eps + |a|/sqrt(N))                                                  unit magnitude     (1)
    w^ = g n(w) / sqrt(N), over the N inputs of each output                         equations 47, 66   (2)
    mp_silu(a) = silu(a) / 0.596                                                    equation 81        (3)
    mp_sum(a, b, t) = ((1 - t) a + t b) / sqrt((1 - t)^2 + t^2)                     equation 88        (4)
    mp_cat(a, b, t) = sqrt((Na + Nb)/((1 - t)^2 + t^2)) [(1 - t) a/sqrt(Na), t b/sqrt(Nb)]  equation 103   (5)
    fourier(c) = sqrt(2) cos(f c + p),  f and p drawn once                          equation 75        (6)

A block (figure 21), with e the embedding, R the change of resolution, and W^ maps as in (2); on the way down x is first
R x -> n(skip(R x)), over the channels of each pixel:

    h = W2^ dropout(mp_silu((W1^ mp_silu(x)) (1 + We^ e)))                                             (7)
    y = mp_sum(x or, on the way up, skip(x); h; 0.3)                                                   (8)
    y <- mp_sum(y, attention(n(query), n(key), n(value)), 0.3), normalised over each head's channels   (9)

and y is clipped to +-256. The image has one more channel, of ones, which stands for the biases. The network ends with a
learned gain that starts at 0.

In training the weights themselves are kept at unit magnitude: `unit_weights` after each step (equation 66). Its loss
weighs the noise levels by a learned u(sigma), `log_variance` (equations 14 to 16 and 21): with D the prediction,

    L = lambda(sigma)/exp(u) |D - x0|^2 + u                                                            (10)
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

from jaxdiff.networks.conditions import cond_specs
from jaxdiff.networks.embeddings import standard_normal, times_of
from jaxdiff.networks.layers import (
    DType,
    Uniform,
    at_least_1,
    by_rows,
    check_images,
    conv3x3,
    draw,
    dropout,
    normal,
    zeros,
)
from jaxdiff.networks.perturbed import Perturbation, Rows, attending, left_out, levelled
from jaxdiff.networks.placement import by_sample
from jaxdiff.networks.remat import Remat, check_remat, convolved, recomputed
from jaxdiff.networks.resampling import Direction, halved, resample
from jaxdiff.spec import Condition

BALANCE = 0.3  # t of (8) and (9)
CLIP = 256.0
_EPS = 1e-4


@dataclass(frozen=True)
class EDM2:
    """Configuration of EDM2's U-Net; `jaxdiff.networks.functional` makes a network of it.

    It is told ln(sigma)/4, as `jaxdiff.LogSigma` says, and its data have the standard deviation 0.5.

    Args:
      image_size: side of the images that ``attention_resolutions`` refer to. Images of any size divisible by
        ``2^(len(multipliers) - 1)`` pass through the network.
      in_channels: of the images, and of the output.
      width: channels at a multiplier of 1.
      multipliers: channels of each level over ``width``.
      blocks: a level on the way down; one more on the way up.
      attention_resolutions: the resolutions with attention; the middle always has it.
      head_width: channels of a head.
      num_classes: for a network conditioned on ``cond["label"]``; None for one that is not.
      null_class: whether label ``num_classes`` means "no class": a vector of zeros.
      dropout: rate in the blocks, in [0, 1); applies when a key is passed.
      level_features: of the noise level, for `log_variance`.
      dtype: what convolutions and matrix products compute in; parameters and output are float32.
      remat: as in `jaxdiff.networks.UNet`.

    Raises:
      ValueError: values that do not fit each other.

    >>> from jaxdiff.networks import functional
    >>> net = functional(EDM2(image_size=8, width=16, multipliers=(1, 2), attention_resolutions=(4,), head_width=16))
    >>> params = jax.jit(net.init)(jax.random.key(0))
    >>> jax.jit(net.apply)(params, jnp.ones((2, 8, 8, 4)), jnp.array([-1.5, 1.1])).max().item()  # it starts at 0
    0.0
    """

    image_size: int = 64
    in_channels: int = 4
    width: int = 192
    multipliers: tuple[int, ...] = (1, 2, 3, 4)
    blocks: int = 3
    attention_resolutions: tuple[int, ...] = (16, 8)
    head_width: int = 64
    num_classes: int | None = None
    null_class: bool = True
    dropout: float = 0.0
    level_features: int = 128
    dtype: DType = "float32"
    remat: Remat = "none"

    def __post_init__(self) -> None:
        at_least_1(self, "image_size", "in_channels", "width", "blocks", "head_width", "num_classes", "level_features")
        levels = halved(self.image_size, self.multipliers, self.attention_resolutions)
        for level in range(len(levels)):
            channels = self.channels(level)
            if (self.attends(level) or level == len(levels) - 1) and channels % self.head_width:
                raise ValueError(f"attention over {channels} channels: not divisible by head_width={self.head_width}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout} must be in [0, 1)")
        check_remat(self.remat)

    @property
    def cond(self) -> dict[str, Condition]:
        """What the network takes beside x and t."""
        return cond_specs(self.num_classes, self.null_class, ())

    def channels(self, level: int) -> int:
        """Channels of a level, 0 being the full resolution."""
        return self.width * self.multipliers[level]

    def attends(self, level: int) -> bool:
        """Whether a level has attention."""
        return self.image_size // 2**level in self.attention_resolutions

    def __call__(self, rngs: nnx.Rngs) -> EDM2Module:
        """The module, with fresh parameters."""
        return draw(EDM2Module(self), rngs.params())


def normalised(a: Array, axes: int | tuple[int, ...] = -1) -> Array:
    """Equation (1) over some axes, in float32.

    >>> bool(abs(normalised(jnp.array([3.0, 4.0])) - jnp.array([3.0, 4.0]) / 12.5**0.5).max() < 1e-4)
    True
    """
    wide = a.astype(jnp.float32)
    squares = jnp.square(wide).mean(axes, keepdims=True)
    some = squares > 0  # the root has no derivative at 0
    magnitude = jnp.where(some, jnp.sqrt(jnp.where(some, squares, 1.0)), 0.0)
    return (wide / (_EPS + magnitude)).astype(a.dtype)


def mp_silu(a: Array) -> Array:
    """Equation (3)."""
    return jax.nn.silu(a) / 0.596


def mp_sum(a: Array, b: Array, t: float = 0.5) -> Array:
    """Equation (4).

    >>> mp_sum(jnp.ones(1), -jnp.ones(1)).item()
    0.0
    """
    return (a + t * (b - a)) / math.hypot(1 - t, t)


def mp_cat(a: Array, b: Array, t: float = 0.5) -> Array:
    """Equation (5), along the channels.

    >>> [round(each, 3) for each in mp_cat(jnp.ones(1), jnp.ones(3)).tolist()]
    [1.414, 0.816, 0.816, 0.816]
    """
    first, second = a.shape[-1], b.shape[-1]
    both = math.sqrt(first + second) / math.hypot(1 - t, t)
    return jnp.concatenate([both * (1 - t) / math.sqrt(first) * a, both * t / math.sqrt(second) * b], axis=-1)


def unit_weights(params: Any) -> Any:
    """The parameters with every weight at unit magnitude, which training keeps them at: equation 66. The function of
    the network does not change, but for eps; the size of a step relative to the weights does.

    Args:
      params: of an `EDM2`, after a step of the optimizer.

    >>> [round(each, 3) for each in unit_weights({"kernel": jnp.array([[3.0], [4.0]])})["kernel"][:, 0].tolist()]
    [0.849, 1.131]
    """
    return jax.tree.map(lambda leaf: normalised(leaf, _inputs(leaf)) if leaf.ndim > 1 else leaf, params)


def log_variance(net: Any, params: Mapping[str, Any], t: Array) -> Array:
    """u(sigma) of equation (10), the logarithm of how uncertain the prediction is at a noise level.

    Args:
      net: `functional` of an `EDM2`.
      params: its parameters.
      t: ``(B,)``, what the network is told.

    Returns:
      ``(B,)``.

    >>> from jaxdiff.networks import functional
    >>> net = functional(EDM2(image_size=8, width=16, multipliers=(1,), attention_resolutions=(), head_width=16))
    >>> log_variance(net, net.init(jax.random.key(0)), jnp.array([0.0, 1.0])).shape
    (2,)
    """
    u: Array = net.module(params).log_variance(t)
    return u


def _inputs(kernel: Array) -> tuple[int, ...]:
    """The axes of a kernel that are its inputs: all but the last; of query, key and value the first."""
    return (0,) if kernel.ndim == 3 else tuple(range(kernel.ndim - 1))


class Map(nnx.Module):
    """A linear map or a 3x3 convolution with the weights of (2)."""

    def __init__(self, *shape: int, dtype: DType = "float32"):
        self.dtype = dtype
        self.kernel = standard_normal(shape)

    def weight(self, gain: Array | float = 1.0) -> Array:
        """w^."""
        kernel = self.kernel[...].astype(jnp.float32)
        inputs = _inputs(kernel)
        fan = math.prod(kernel.shape[axis] for axis in inputs)
        return (normalised(kernel, inputs) * (gain / math.sqrt(fan))).astype(self.dtype)

    def __call__(self, x: Array, gain: Array | float = 1.0) -> Array:
        x, weight = x.astype(self.dtype), self.weight(gain)
        if weight.ndim == 4:
            return convolved(conv3x3(x, weight))
        return jnp.dot(by_rows(x), weight).reshape(*x.shape[:-1], -1)


class Fourier(nnx.Module):
    """Equation (6). Frequencies and phases are stored, and have no derivative."""

    def __init__(self, features: int):
        self.frequencies = normal(2 * math.pi)((features,))
        self.phases = Uniform(jnp.full((features,), math.pi))

    def __call__(self, c: Array) -> Array:
        frequencies, phases = (jax.lax.stop_gradient(each[...])[None] for each in (self.frequencies, self.phases))
        return math.sqrt(2) * jnp.cos(c[:, None] * frequencies + phases)


class Block(nnx.Module):
    """Equations (7) to (9). ``site`` tells this block's dropout from the others'."""

    perturbed: Perturbation | None = None

    def __init__(
        self,
        config: EDM2,
        inputs: int,
        outputs: int,
        site: int,
        way: Literal["down", "up"],
        *,
        resample: Direction | None = None,
        attention: bool = False,
    ):
        self.config, self.site, self.way, self.resample = config, site, way, resample
        dtype = config.dtype
        self.gain = nnx.Param(jnp.zeros(()))
        self.conv1 = Map(3, 3, outputs if way == "down" else inputs, outputs, dtype=dtype)
        self.embed = Map(max(config.multipliers) * config.width, outputs)
        self.conv2 = Map(3, 3, outputs, outputs, dtype=dtype)
        self.skip = None if inputs == outputs else Map(inputs, outputs, dtype=dtype)
        self.qkv = Map(outputs, 3, outputs, dtype=dtype) if attention else None
        self.mixed = Map(outputs, outputs, dtype=dtype) if attention else None

    def __call__(self, x: Array, e: Array, key: Array | None) -> Array:
        x = resample(x, (1, 1), self.resample)
        if self.way == "down":
            x = normalised(x if self.skip is None else self.skip(x))
        h = self.conv1(mp_silu(x))
        scale = self.embed(e, self.gain[...]) + 1  # (B, outputs)
        h = mp_silu(h * scale[:, None, None, :].astype(h.dtype))
        h = dropout(h, self.config.dropout, None if key is None else jax.random.fold_in(key, self.site))
        h = self.conv2(h)
        if self.way == "up" and self.skip is not None:
            x = self.skip(x)
        y = mp_sum(x, h, BALANCE)
        if self.qkv is not None and self.mixed is not None and not left_out(self.perturbed):
            y = mp_sum(y, self.mixed(self._attended(self.qkv.weight(), y)), BALANCE)
        return jnp.clip(y, -CLIP, CLIP)

    def _attended(self, weight: Array, y: Array) -> Array:
        batch, height, width, channels = y.shape
        parts = jnp.einsum("nc,ctd->ntd", by_rows(y).astype(weight.dtype), weight)
        parts = normalised(parts.reshape(batch, -1, 3, channels // self.config.head_width, self.config.head_width))
        query, key, value = (parts[:, :, i].transpose(0, 2, 1, 3) for i in range(3))  # (B, heads, L, depth)
        mixed = attending(self.perturbed, (height, width))(query, key, value)
        return mixed.transpose(0, 2, 1, 3).reshape(y.shape)


class Level(nnx.Module):
    """The change to a resolution, and the blocks there."""

    def __init__(self, resample: Block | None, blocks: list[Block]):
        self.resample = resample
        self.blocks = nnx.List(blocks)


class EDM2Module(nnx.Module):
    """The network that an `EDM2` configures, called as ``module(x, t, cond, key)``."""

    def __init__(self, config: EDM2):
        self.config = config
        sites, levels = itertools.count(), range(len(config.multipliers))
        embedding = max(config.multipliers) * config.width
        self.fourier = Fourier(config.channels(0))
        self.noise = Map(config.channels(0), embedding)
        self.label = None if config.num_classes is None else Map(config.num_classes, embedding)
        self.level_fourier = Fourier(config.level_features)
        self.level = Map(config.level_features, 1)
        now = config.channels(0)
        self.conv_in = Map(3, 3, config.in_channels + 1, now, dtype=config.dtype)
        skips, down, up = [now], [], []
        for level in levels:
            change = Block(config, now, now, next(sites), "down", resample="down") if level else None
            skips += [now] if level else []
            blocks = []
            for _ in range(config.blocks):
                to, attends = config.channels(level), config.attends(level)
                blocks.append(Block(config, now, to, next(sites), "down", attention=attends))
                now = to
                skips.append(now)
            down.append(Level(change, blocks))
        self.down = nnx.List(down)
        self.middle_in = Block(config, now, now, next(sites), "up", attention=True)
        self.middle_out = Block(config, now, now, next(sites), "up")
        for level in reversed(levels):
            change = Block(config, now, now, next(sites), "up", resample="up") if level < levels[-1] else None
            blocks = []
            for _ in range(config.blocks + 1):
                to, attends = config.channels(level), config.attends(level)
                blocks.append(Block(config, now + skips.pop(), to, next(sites), "up", attention=attends))
                now = to
            up.append(Level(change, blocks))
        self.up = nnx.List(up)
        self.conv_out = Map(3, 3, now, config.in_channels)
        self.gain_out = zeros(())

    @property
    def rows(self) -> Rows:
        """What can be perturbed (`jaxdiff.networks.perturbed`)."""
        return levelled(self.down, self.middle_in, self.up)

    def __call__(self, x: Array, t: ArrayLike, cond: Mapping[str, Any], key: Array | None) -> Array:
        check_images(x, self.config.in_channels, 2 ** (len(self.config.multipliers) - 1), "EDM2")
        e = by_sample(self.embed(times_of(t, x.shape[0]), cond))

        def run(block: Block, *inputs: Array) -> Array:
            # The inputs are joined within, so that the backward pass keeps the skips, not copies of them.
            def call(*inputs: Array) -> Array:
                return block(inputs[0] if len(inputs) == 1 else mp_cat(inputs[0], inputs[1]), e, key)

            return by_sample(recomputed(call, self.config.remat)(*inputs))

        h = by_sample(self.conv_in(jnp.concatenate([x, jnp.ones_like(x[..., :1])], axis=-1)))
        skips = [h]
        for level in self.down:
            if level.resample is not None:
                h = run(level.resample, h)
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
        return self.conv_out(h.astype(jnp.float32), self.gain_out[...])

    def embed(self, t: Array, cond: Mapping[str, Any]) -> Array:
        """The embedding e ``(B, C)`` of the noise level and the class."""
        e = self.noise(self.fourier(t))
        if self.label is not None:
            classes, label = self.config.num_classes, cond["label"]
            assert classes is not None
            known = jnp.where(label < 0, classes + 1, label)  # a label that is none gives NaN, and cannot pass unseen
            table = self.label.weight() * math.sqrt(classes)
            row = jnp.take(table, known, axis=0, mode="fill", fill_value=jnp.nan)
            row = jnp.where((label == classes)[:, None], 0.0, row) if self.config.null_class else row
            e = mp_sum(e, row)
        return mp_silu(e)

    def log_variance(self, t: Array) -> Array:
        """u(sigma) ``(B,)``."""
        return self.level(self.level_fourier(t))[:, 0]
