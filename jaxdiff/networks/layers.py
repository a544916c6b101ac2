"""Layers that the networks share: weights, projections, normalisation, resampling. Images are NHWC, tokens NLC.

Precision is one policy. Parameters are float32. Matrix products and convolutions compute in the network's ``dtype``;
statistics of the normalisations, softmax, the embeddings of time and class, and a network's last projection compute in
float32.

A module is built first and drawn after: a random weight is built holding the scale of its distribution, and `draw`
multiplies each by noise of its own (`jaxdiff.networks.initial_noise`). Under `jax.jit` with sharded results each device
makes its own part of each weight, and nothing else.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from jaxdiff.networks.backend import in_order, present_machine, steady, steady_rows
from jaxdiff.networks.convolution import EDGES, by_winograd, convolve, winograd
from jaxdiff.networks.initial_noise import Kind, initial_noise

DType = Literal["float32", "bfloat16"]
Padding = Literal["bottom_right", "symmetric"]
Init = Callable[[tuple[int, ...]], nnx.Param]
"""Makes a weight of a shape; if a random one, then for `draw`."""
M = TypeVar("M", bound=nnx.Module)


class Uniform(nnx.Param):
    """A weight from U(-a, a), built holding a."""


class Normal(nnx.Param):
    """A weight from N(0, s^2), built holding s."""


def zeros(shape: tuple[int, ...]) -> nnx.Param:
    """A weight that starts at zero."""
    return nnx.Param(jnp.zeros(shape))


def fan_average(shape: tuple[int, ...]) -> nnx.Param:
    """Glorot's uniform weight, of DDPM and DiT: variance ``2 / (fan_in + fan_out)``; the last axes are in and out."""
    return Uniform(jnp.full(shape, math.sqrt(6 / (math.prod(shape[:-2]) * (shape[-2] + shape[-1])))))


def normal(deviation: float) -> Init:
    """Normal weights of standard deviation ``deviation``."""
    return lambda shape: Normal(jnp.full(shape, deviation))


def draw(module: M, key: Array) -> M:
    """The module with its `Uniform` and `Normal` weights drawn.

    >>> layer = draw(Linear(300, 300), jax.random.key(0))
    >>> abs(float(layer.kernel.var()) * 300 - 1) < 0.02
    True
    """
    graphdef, *states = nnx.split(module, Uniform, Normal, ...)
    numbers = itertools.count()
    kinds: tuple[Kind, ...] = ("uniform", "normal")
    drawn = [
        jax.tree.map(lambda scale, kind=kind: initial_noise(key, next(numbers), scale, kind), scales)
        for kind, scales in zip(kinds, states, strict=False)
    ]
    return nnx.merge(graphdef, *drawn, states[-1])


def at_least_1(config: Any, *sizes: str) -> None:
    """Refuses sizes below 1.

    Args:
      config: a network's configuration.
      sizes: names of its fields. A field of None passes.

    Raises:
      ValueError: a size is below 1; the message names the first.

    >>> at_least_1(jax.ShapeDtypeStruct((1, 2), "int8"), "size", "ndim")
    >>> at_least_1(jax.ShapeDtypeStruct((0,), "int8"), "ndim", "size")
    Traceback (most recent call last):
    ...
    ValueError: size=0 must be at least 1
    """
    for name in sizes:
        if (size := getattr(config, name)) is not None and size < 1:
            raise ValueError(f"{name}={size} must be at least 1")


class Linear(nnx.Module):
    """An affine map of the last axis. On an image it is the 1x1 convolution, and faster than one.

    Args:
      inputs: length of the last axis.
      outputs: of the result's.
      bias: whether there is one; it starts at zero.
      dtype: what it computes in and returns.
      init: of the kernel ``(inputs, outputs)``.
    """

    def __init__(
        self, inputs: int, outputs: int, *, bias: bool = True, dtype: DType = "float32", init: Init = fan_average
    ):
        self.dtype = dtype
        self.kernel = init((inputs, outputs))
        self.bias = zeros((outputs,)) if bias else None

    def __call__(self, x: Array) -> Array:
        """``(..., inputs) -> (..., outputs)``.

        >>> Linear(4, 6)(jnp.ones((2, 8, 8, 4))).shape
        (2, 8, 8, 6)
        """
        kernel = self.kernel[...].astype(self.dtype)
        y = jnp.dot(by_rows(x).astype(self.dtype), kernel).reshape(*x.shape[:-1], kernel.shape[1])
        return y if self.bias is None else y + self.bias[...].astype(self.dtype).reshape((1,) * (x.ndim - 1) + (-1,))


def each_token(linear: Linear, x: Array) -> Array:
    """``linear(x)`` of tokens ``(B, L, C)`` that come with a mask: on a CPU a token's bits do not depend on how many
    there are (`jaxdiff.networks.backend.steady`).

    >>> each_token(Linear(4, 6), jnp.ones((2, 3, 4))).shape
    (2, 3, 6)
    """
    rows, least = x.shape[0] * x.shape[1], steady_rows(min(linear.kernel.shape))
    if not isinstance(rows, int) or rows >= least or not steady(present_machine()):
        return linear(x)
    filled = jnp.pad(by_rows(x), ((0, least - rows), (0, 0)))
    return linear(filled)[:rows].reshape(*x.shape[:2], -1)


def by_rows(x: Array) -> Array:
    """``(..., C) -> (rows, C)``. A product of matrices has matrix products for gradients, which XLA computes as they
    are; of more axes it transposes copies first: a twelfth of a training step of DiT-S/2 on a CPU.

    >>> by_rows(jnp.ones((2, 3, 4))).shape
    (6, 4)
    """
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


class Conv3x3(nnx.Module):
    """A 3x3 convolution with zero padding.

    Args:
      inputs: channels.
      outputs: channels.
      stride: 1 or 2.
      padding: by one pixel on all sides ("symmetric"), or at the bottom and the right only ("bottom_right").
      dtype: what it computes in and returns.
      init: of the kernel ``(3, 3, inputs, outputs)``; the bias starts at zero.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        stride: int = 1,
        padding: Padding = "symmetric",
        dtype: DType = "float32",
        init: Init = fan_average,
    ):
        self.stride, self.padding, self.dtype = stride, padding, dtype
        self.kernel = init((3, 3, inputs, outputs))
        self.bias = zeros((outputs,))

    def __call__(self, x: Array) -> Array:
        """``(B, H, W, inputs) -> (B, H / stride, W / stride, outputs)``.

        >>> Conv3x3(4, 6, stride=2, padding="bottom_right")(jnp.ones((2, 8, 8, 4))).shape
        (2, 4, 4, 6)
        """
        kernel = self.kernel[...].astype(self.dtype)
        y = conv3x3(x.astype(self.dtype), kernel, stride=self.stride, padding=self.padding)
        return y + self.bias[...].astype(self.dtype)[None, None, None, :]


def conv3x3(x: Array, kernel: Array, *, stride: int = 1, padding: Padding = "symmetric") -> Array:
    """A 3x3 convolution with zero padding, without a bias: see `Conv3x3`.

    Args:
      x: ``(B, H, W, inputs)``.
      kernel: ``(3, 3, inputs, outputs)``, of the same dtype.
      stride: 1 or 2.
      padding: as `Conv3x3`.

    >>> conv3x3(jnp.ones((1, 3, 3, 1)), jnp.ones((3, 3, 1, 1)))[0, 1, :, 0].tolist()
    [6.0, 9.0, 6.0]
    """
    machine, edges = present_machine(), EDGES if padding == "symmetric" else ((0, 1), (0, 1))
    if stride == 1 and edges == EDGES and by_winograd(machine, x, kernel):
        return winograd(x, kernel)
    return convolve(x, kernel, stride, edges, in_order=in_order(machine))


class GroupNorm(nnx.Module):
    """Group normalisation (Wu & He 2018, https://arxiv.org/abs/1803.08494), optionally modulated a sample at a time.

    With m and v the mean and variance over the pixels and channels of a group,
    ``y = (x - m) / sqrt(v + eps) * gain + bias``, and modulated ``y (1 + scale) + shift``.

    Computed in float32 as sums a channel, of which one scale and one shift a channel follow, over x less a centre c:
    the mean of the group as float32 rounds it. The result is the same for every c, so c is a constant to the
    derivative, and with this one neither ``sum (x - c)^2 - (sum (x - c))^2 / n`` nor x - m cancels, however far the
    data lie from zero.

    Args:
      channels: of the input.
      groups: their number at most; `group_count` has the rule.
      eps: added to the variance.
      least: fewest channels of a group.
    """

    def __init__(self, channels: int, *, groups: int = 32, eps: float = 1e-6, least: int = 4):
        self.groups = group_count(channels, groups, least)
        self.eps = eps
        self.scale = nnx.Param(jnp.ones(channels))
        self.bias = nnx.Param(jnp.zeros(channels))

    def __call__(self, x: Array, scale: Array | None = None, shift: Array | None = None) -> Array:
        """``(B, H, W, C)`` -> the same, in ``x``'s dtype; ``scale`` and ``shift`` are ``(B, C)``, both or neither.

        >>> y = GroupNorm(8, groups=2)(1e4 + jax.random.normal(jax.random.key(0), (1, 16, 16, 8)))
        >>> bool(abs(y.mean()) < 1e-3), bool(abs(y.std() - 1) < 1e-3)
        (True, True)
        """
        batch, channels = x.shape[0], x.shape[3]
        size = channels // self.groups

        def over_group(per_channel: Array) -> Array:  # (B, C) -> (B, C): each channel has the mean of its group
            return jnp.repeat(per_channel.reshape(batch, self.groups, size).mean(-1), size, axis=1)

        wide = x.astype(jnp.float32)
        centre = jax.lax.stop_gradient(over_group(wide.mean((1, 2))))
        centred = wide - centre[:, None, None, :]
        mean = over_group(centred.mean((1, 2)))
        variance = over_group((centred * centred).mean((1, 2))) - mean * mean
        gain, bias = self.scale[None, :], self.bias[None, :]
        if scale is not None and shift is not None:
            gain, bias = gain * (1 + scale), bias * (1 + scale) + shift
        gain = gain * jax.lax.rsqrt(jnp.maximum(variance, 0) + self.eps)  # (B, C)
        bias = bias - mean * gain
        return (centred * gain[:, None, None, :] + bias[:, None, None, :]).astype(x.dtype)


def group_count(channels: int, most: int, least: int = 4) -> int:
    """How many groups: ``most``, but no group of under ``least`` channels (four is EDM's rule), and a divisor of
    ``channels``.

    >>> [group_count(channels, 32) for channels in (128, 64, 96, 48)]
    [32, 16, 24, 12]
    """
    return math.gcd(channels, max(1, min(most, channels // least)))


def layer_norm(x: Array, eps: float) -> Array:
    """``(x - mean) / sqrt(variance + eps)`` over the last axis, in float32, without learned gain and bias.

    >>> layer_norm(jnp.array([[1.0, 3.0]]), 0.0).tolist()
    [[-1.0, 1.0]]
    """
    x = x.astype(jnp.float32)
    centred = x - x.mean(-1, keepdims=True)
    return centred * jax.lax.rsqrt((centred * centred).mean(-1, keepdims=True) + eps)


class LayerNorm(nnx.Module):
    """`layer_norm` with a learned gain and bias (Ba et al. 2016, https://arxiv.org/abs/1607.06450).

    Args:
      width: of the last axis.
      eps: added to the variance.
    """

    def __init__(self, width: int, eps: float = 1e-5):
        self.eps = eps
        self.scale = nnx.Param(jnp.ones(width))
        self.bias = nnx.Param(jnp.zeros(width))

    def __call__(self, x: Array) -> Array:
        """``(..., width)`` -> the same, in ``x``'s dtype.

        >>> LayerNorm(2, eps=0.0)(jnp.array([[1.0, 3.0]])).tolist()
        [[-1.0, 1.0]]
        """
        gain, bias = (each[...].reshape((1,) * (x.ndim - 1) + (-1,)) for each in (self.scale, self.bias))
        return (layer_norm(x, self.eps) * gain + bias).astype(x.dtype)


class RMSNorm(nnx.Module):
    """``x / sqrt(mean(x^2) + eps)`` over the last axis with a learned gain, in float32 (Zhang & Sennrich 2019,
    https://arxiv.org/abs/1910.07467)."""

    def __init__(self, width: int, *, eps: float):
        self.eps = eps
        self.scale = nnx.Param(jnp.ones(width))

    def __call__(self, x: Array) -> Array:
        """``(..., width)`` -> the same.

        >>> RMSNorm(2, eps=0.0)(jnp.array([[[3.0, 3.0]]])).tolist()
        [[[1.0, 1.0]]]
        """
        x = x.astype(jnp.float32)
        root = jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + self.eps)
        return x * root * self.scale[...].astype(jnp.float32).reshape((1,) * (x.ndim - 1) + (-1,))


def upsample(x: Array) -> Array:
    """Twice the height and width, by nearest neighbour.

    >>> upsample(jnp.arange(2.0).reshape(1, 1, 2, 1))[0, :, :, 0].tolist()
    [[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]]
    """
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)


def downsample(x: Array) -> Array:
    """Half the height and width, by the mean of each 2x2 square.

    >>> downsample(jnp.arange(4.0).reshape(1, 2, 2, 1)).tolist()
    [[[[1.5]]]]
    """
    batch, height, width, channels = x.shape
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).mean((2, 4))


def dropout(x: Array, rate: float, key: Array | None) -> Array:
    """Zeroes each element with probability ``rate`` and divides the others by ``1 - rate``; the identity without a key.

    >>> dropout(jnp.ones(3), 0.5, None).tolist()
    [1.0, 1.0, 1.0]
    """
    if key is None or rate == 0:
        return x
    return jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), jnp.zeros_like(x))


def check_images(x: Array, channels: int, multiple: int, network: str) -> None:
    """Refuses, at trace time, what ``network`` cannot take.

    Args:
      x: should be ``(B, H, W, channels)``, floating point, H and W multiples of ``multiple``.
      channels: what the network was built for.
      multiple: its patch size, or 2 to the power of its down-samplings.
      network: its name, for the message.

    Raises:
      ValueError: it is not.

    >>> check_images(jnp.zeros((1, 9, 9, 3)), 3, 2, "UNet")
    Traceback (most recent call last):
    ...
    ValueError: UNet needs height and width divisible by 2, got 9x9: resize or pad the images
    """
    if x.ndim != 4 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"{network} takes floating-point images (batch, height, width, channel), got {x.dtype} {x.shape}"
        )
    if x.shape[3] != channels:
        raise ValueError(
            f"{network} was built for in_channels={channels}, got images of {x.shape[3]} channels: {x.shape}"
        )
    if x.shape[1] % multiple or x.shape[2] % multiple:
        raise ValueError(
            f"{network} needs height and width divisible by {multiple}, got {x.shape[1]}x{x.shape[2]}: "
            "resize or pad the images"
        )
