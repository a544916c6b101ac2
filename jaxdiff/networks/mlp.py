"""A perceptron for points: vectors of a few coordinates, instead of images."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.networks.conditions import Vector, cond_specs
from jaxdiff.networks.embedded import ConditionEmbeddings
from jaxdiff.networks.embeddings import LabelEmbedding, TimeEmbedding
from jaxdiff.networks.layers import Linear, at_least_1, draw, normal, zeros
from jaxdiff.spec import Condition


@dataclasses.dataclass(frozen=True)
class MLP:
    """A residual perceptron on points ``(B, in_channels)``, told of the time in every block. With e the embedding of
    time (and class), h_0 = W [x, sin(2 pi F x), cos(2 pi F x)] + b, and in each block

        h <- h + B silu(A silu(h) + C e).

    F are learned frequencies (Tancik et al. 2020, there fixed). The last layer starts at zero. It is smooth:
    derivatives of any order exist.

    Args:
      in_channels: coordinates of a point.
      out_channels: of the output; None: as in_channels.
      width: of the hidden layers.
      depth: blocks.
      frequencies: sines and cosines of the time, even.
      fourier: rows of F; 0: none, the network sees x alone.
      fourier_scale: standard deviation of F at the start, periods a unit of x.
      num_classes: labels are 0 .. num_classes - 1; None: unconditional.
      null_class: whether there is a vector for "no class".
      conditions: what else it takes: `jaxdiff.networks.Vector`.
    """

    in_channels: int = 2
    out_channels: int | None = None
    width: int = 128
    depth: int = 3
    frequencies: int = 64
    fourier: int = 0
    fourier_scale: float = 0.5
    num_classes: int | None = None
    null_class: bool = True
    conditions: tuple[Vector, ...] = ()

    def __post_init__(self) -> None:
        at_least_1(self, "in_channels", "out_channels", "width", "depth", "num_classes")
        if self.frequencies < 4 or self.frequencies % 2:
            raise ValueError(f"frequencies is even and at least 4, got {self.frequencies}")
        if self.fourier < 0:
            raise ValueError(f"fourier is at least 0, got {self.fourier}")
        if any(not isinstance(each, Vector) for each in self.conditions):
            raise ValueError(f"conditions of an MLP are Vectors, got {self.conditions}")
        cond_specs(self.num_classes, self.null_class, self.conditions)

    @property
    def cond(self) -> dict[str, Condition]:
        """What the network takes beside x and t."""
        return cond_specs(self.num_classes, self.null_class, self.conditions)

    def __call__(self, rngs: nnx.Rngs) -> Perceptron:
        """The module with drawn weights."""
        return draw(Perceptron(self), rngs.params())


class Perceptron(nnx.Module):
    """The module of `MLP`."""

    def __init__(self, recipe: MLP):
        width = recipe.width
        self.recipe = recipe
        self.time = TimeEmbedding(recipe.frequencies, width)
        if recipe.num_classes is not None:
            self.label = LabelEmbedding(recipe.num_classes, width, null=recipe.null_class)
        self.told = ConditionEmbeddings(recipe.conditions, width)
        if recipe.fourier:
            self.fourier = normal(recipe.fourier_scale)((recipe.in_channels, recipe.fourier))
        self.input = Linear(recipe.in_channels + 2 * recipe.fourier, width)
        self.blocks = nnx.List([_Block(width) for _ in range(recipe.depth)])
        self.output = Linear(width, recipe.out_channels or recipe.in_channels, init=zeros)

    def __call__(self, x: Array, t: ArrayLike, cond: Mapping[str, Any], key: Array | None = None) -> Array:
        """``(B, in_channels)``, times ``()`` or ``(B,)`` -> ``(B, out_channels)``.

        Raises:
          ValueError: x or cond do not fit.
        """
        if x.ndim != 2 or x.shape[1] != self.recipe.in_channels or not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(
                f"MLP was built for floating-point points (batch, {self.recipe.in_channels}), got {x.dtype} {x.shape}"
            )
        embedding = self.time(t, len(x))
        if self.recipe.num_classes is not None:
            embedding = embedding + self.label(cond["label"])
        embedding = jax.nn.silu(embedding + self.told(cond).vector)
        features = x.astype(jnp.float32)
        if self.recipe.fourier:
            phase = 2.0 * math.pi * (features @ self.fourier[...])
            features = jnp.concatenate([features, jnp.sin(phase), jnp.cos(phase)], axis=1)
        hidden = self.input(features)
        for block in self.blocks:
            hidden = block(hidden, embedding)
        return self.output(jax.nn.silu(hidden))


class _Block(nnx.Module):
    def __init__(self, width: int):
        self.inner, self.time, self.outer = (Linear(width, width) for _ in range(3))

    def __call__(self, hidden: Array, embedding: Array) -> Array:
        return hidden + self.outer(jax.nn.silu(self.inner(jax.nn.silu(hidden)) + self.time(embedding)))
