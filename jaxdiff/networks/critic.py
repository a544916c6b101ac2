"""The patch critic: a small convolutional network that judges overlapping squares of an image, each by a number.

Isola et al. 2017, "Image-to-Image Translation with Conditional Adversarial Networks",
https://arxiv.org/abs/1611.07004, appendix 6.1.2: 4x4 convolutions with leaky ReLUs, of which ``layers`` halve the size;
three of them see squares of 70 pixels. The original's batch normalisation keeps running statistics and makes samples
depend on each other; here it is group normalisation, with as many parameters, or spectral normalisation of the weights
(Miyato et al. 2018, https://arxiv.org/abs/1802.05957): W/s(W), where s is the largest singular value,

    s = |W u|,   u the first right singular vector, a constant to the derivative,   ds/dW = (W u/|W u|) u^T       (1)

Miyato et al. carry u from step to step. Here it comes anew of W^T W multiplied by itself, 2^k = 256 steps of the power
method in k = 8 products of matrices: a pure function, without state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float

from jaxdiff.networks.backend import in_order, present_machine
from jaxdiff.networks.convolution import convolve
from jaxdiff.networks.layers import DType, GroupNorm, at_least_1, draw, normal, zeros
from jaxdiff.networks.placement import by_sample

Normalisation = Literal["group", "spectral"]


@dataclass(frozen=True)
class PatchCritic:
    """Configuration of the patch critic; ``functional(PatchCritic()).module(params)`` is called with images.

    Args:
      in_channels: of the images.
      width: channels of the first layer; each further one has twice as many, up to eight times.
      layers: convolutions that halve the size, at least 1.
      norm: "group" or "spectral".
      dtype: what convolutions compute in; parameters and output are float32.

    Raises:
      ValueError: values that do not fit each other.

    >>> from jaxdiff.networks import functional
    >>> net = functional(PatchCritic(width=8, layers=2))
    >>> params = net.init(jax.random.key(0))
    >>> net.module(params)(jnp.zeros((1, 32, 32, 3))).shape
    (1, 6, 6)
    """

    in_channels: int = 3
    width: int = 64
    layers: int = 3
    norm: Normalisation = "group"
    dtype: DType = "float32"

    def __post_init__(self) -> None:
        at_least_1(self, "in_channels", "width", "layers")
        if self.norm not in get_args(Normalisation):
            raise ValueError(f"norm={self.norm!r} must be one of {', '.join(get_args(Normalisation))}")

    @property
    def least(self) -> int:
        """The smallest side of an image that it can judge."""
        return 3 * 2**self.layers

    def __call__(self, rngs: nnx.Rngs) -> PatchCriticModule:
        """The module, with fresh parameters."""
        return draw(PatchCriticModule(self), rngs.params())


class Conv4x4(nnx.Module):
    """A 4x4 convolution with one pixel of zeros on all sides, its kernel divided by its norm where that is asked."""

    def __init__(self, config: PatchCritic, inputs: int, outputs: int, stride: int, *, bias: bool):
        self.stride, self.dtype, self.spectral = stride, config.dtype, config.norm == "spectral"
        self.kernel = normal(0.02)((4, 4, inputs, outputs))
        self.bias = zeros((outputs,)) if bias else None

    def __call__(self, x: Array) -> Array:
        kernel = self.kernel[...]
        if self.spectral:
            kernel = kernel / spectral_norm(kernel.reshape(-1, kernel.shape[3]))
        y = convolve(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            self.stride,
            ((1, 1), (1, 1)),
            in_order=in_order(present_machine()),
        )
        return by_sample(y if self.bias is None else y + self.bias[...].astype(self.dtype)[None, None, None, :])


class PatchCriticModule(nnx.Module):
    """The critic that a `PatchCritic` configures: images ``(B, H, W, C)`` -> ``(B, h, w)`` float32."""

    def __init__(self, config: PatchCritic):
        self.config = config
        widths = [config.width * min(2**layer, 8) for layer in range(config.layers + 1)]
        grouped = config.norm == "group"
        self.first = Conv4x4(config, config.in_channels, widths[0], 2, bias=True)
        self.convolutions = nnx.List(
            Conv4x4(config, widths[n - 1], widths[n], 2 if n < config.layers else 1, bias=not grouped)
            for n in range(1, config.layers + 1)
        )
        self.norms = nnx.List(GroupNorm(width, eps=1e-5) for width in (widths[1:] if grouped else []))
        self.last = Conv4x4(config, widths[-1], 1, 1, bias=True)

    def __call__(self, x: Array) -> Array:
        if x.ndim != 4 or x.shape[3] != self.config.in_channels or min(x.shape[1:3]) < self.config.least:
            raise ValueError(
                f"PatchCritic judges images (batch, height, width, {self.config.in_channels}) of at least "
                f"{self.config.least} pixels a side, got {x.shape}: with fewer layers it judges smaller ones"
            )
        h = jax.nn.leaky_relu(self.first(x), 0.2)
        for n, convolution in enumerate(self.convolutions):
            h = convolution(h)
            h = jax.nn.leaky_relu(self.norms[n](h) if len(self.norms) else h, 0.2)
        return self.last(h)[..., 0].astype(jnp.float32)


def spectral_norm(matrix: Float[Array, "inputs outputs"], squarings: int = 8) -> Float[Array, ""]:
    """The largest singular value of a matrix, with the gradient of equation (1).

    Args:
      matrix: ``(n, m)``.
      squarings: k, for 2^k steps of the power method.

    >>> round(float(spectral_norm(jnp.diag(jnp.array([3.0, 2.0, 1.0])))), 5)
    3.0
    """
    held = jax.lax.stop_gradient(matrix)
    wide = matrix.shape[0] < matrix.shape[1]
    gram = jnp.matmul(held, held.T) if wide else jnp.matmul(held.T, held)
    for _ in range(squarings):
        gram = gram / (jnp.linalg.norm(gram) + 1e-30)
        gram = jnp.matmul(gram, gram)
    # All columns are nearly multiples of the vector; the longest is farthest from rounding.
    vector = gram[:, jnp.argmax(jnp.square(gram).sum(0))]
    vector = vector / (jnp.linalg.norm(vector) + 1e-30)
    return jnp.linalg.norm(jnp.matmul(vector[None, :], matrix) if wide else jnp.matmul(matrix, vector[:, None]))
