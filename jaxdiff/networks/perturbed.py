"""A trained network with some of its layers perturbed: the worse network that guidance leads away from.

It is another configuration of the same parameters, so nothing inside of a network is switched while it runs. In the
self-attention of a chosen layer, with q, k, v of the tokens of an image and G a Gaussian filter over their rows and
columns,

    identity:  attention(q, k, v) -> v                                                               (1)
    blurred:   attention(q, k, v) -> attention(G q, k, v)                                            (2)
    left_out:  x + f(x) -> x                                                                         (3)

(1) puts the identity in the place of the map softmax(q k^T / sqrt(d)) (Ahn et al. 2024, "Self-Rectifying Diffusion
Sampling with Perturbed-Attention Guidance", https://arxiv.org/abs/2403.17377). (2) blurs that map over the
queries before the softmax, for G (q k^T) = (G q) k^T (Hong 2024, "Smoothed Energy Guidance",
https://arxiv.org/abs/2408.00760; at an infinite sigma every query is the mean). (3) leaves all residual
parts f of the layer out (Stability AI's code of Stable Diffusion 3.5).

Where other tokens stand in the row of the image's (a text, the class, the time), they attend as ever, and G leaves
their queries as they are. By (1) a token of the image then still attends to them and to itself, to no other token of
the image: with c the keys and values of the others,

    attention(q_i, k, v) -> attention(q_i, [k_c, k_i], [v_c, v_i])                                   (4)

G has weights exp(-n^2 / (2 sigma^2)) at n = -r, ..., r, r = floor(ceil(6 sigma) / 2), divided by their sum; at its
edges the image is reflected.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from jaxdiff.networks.attention import Attend, attention
from jaxdiff.networks.chunked import unmasked
from jaxdiff.spec import Specs

Kind = Literal["identity", "blurred", "left_out"]
Layers = tuple[int, ...] | Literal["mid", "all"]


@dataclass(frozen=True)
class Perturbation:
    """What is done to a layer, equation (1), (2) or (3).

    Args:
      kind: which.
      sigma: of G, tokens, above 0.
      which: of a row of equal blocks, those that it is done to; (): to this block.

    Raises:
      ValueError: another kind, or a sigma out of range.
    """

    kind: Kind
    sigma: float = math.inf
    which: tuple[bool, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"kind={self.kind!r} must be one of {', '.join(get_args(Kind))}")
        if not self.sigma > 0:
            raise ValueError(f"sigma={self.sigma} must be above 0, in tokens of the image, or inf")


class Rows(NamedTuple):
    """What of a network can be perturbed.

    Attributes:
      blocks: in the order of the evaluation, each with the number of layers that it stands for.
      middle: the number of the layer in the middle of a U-Net; None: there is none.
    """

    blocks: list[tuple[Any, int]]
    middle: int | None = None


def levelled(down: Any, middle: Any, up: Any) -> Rows:
    """The blocks with attention of a U-Net's levels, on both ways, and the one in the middle."""
    before, after = ([block for level in way for block in level.blocks if block.qkv is not None] for way in (down, up))
    return Rows([(block, 1) for block in (*before, middle, *after)], len(before))


@dataclass(frozen=True)
class Perturbed:
    """Configuration of a network, some of whose layers are perturbed. Its parameters are those of ``base``.

    Layers are counted from 0. In a U-Net those are the places with self-attention, on the way down, in the middle and
    on the way up, a transformer of several blocks being one; in a transformer its blocks.

    Args:
      base: the network's configuration.
      perturbation: what is done.
      layers: their numbers, ``"mid"``, ``"all"``, or None: the middle of a U-Net; of a transformer the block in the
        middle, or, of what is left out, blocks 7 to 9 of 24, as Stable Diffusion 3.5 has them, and likewise of other
        depths.

    Raises:
      ValueError: (when built) a network without self-attention, or a layer that it has not.

    >>> from jaxdiff.networks import DiT, functional
    >>> config = DiT(in_channels=1, patch=4, width=16, depth=3, heads=2)
    >>> perturbed = functional(Perturbed(config, Perturbation("identity"), (1,)))
    >>> shapes = [jax.eval_shape(net.init, jax.random.key(0)) for net in (functional(config), perturbed)]
    >>> shapes[0] == shapes[1]
    True
    """

    base: Any
    perturbation: Perturbation
    layers: Layers | None = None

    @property
    def cond(self) -> Specs:
        """What the network takes beside x and t."""
        declared: Specs = self.base.cond
        return declared

    @property
    def settings(self) -> tuple[str, ...]:
        """Those conditions that are settings of a call."""
        declared: tuple[str, ...] = getattr(self.base, "settings", ())
        return declared

    def __call__(self, rngs: nnx.Rngs) -> Any:
        """The module, with fresh parameters."""
        module = self.base(rngs)
        rows = getattr(module, "rows", None)
        if rows is None or not rows.blocks:
            raise ValueError(f"a {type(self.base).__name__} has no self-attention of an image: leave pag, seg, slg out")
        chosen, first = self._chosen(rows), 0
        for block, count in rows.blocks:
            which = tuple(layer in chosen for layer in range(first, first + count))
            if any(which):
                block.perturbed = replace(self.perturbation, which=which)
            first += count
        return module

    def _chosen(self, rows: Rows) -> set[int]:
        count = sum(each for _, each in rows.blocks)
        if self.layers == "all":
            return set(range(count))
        if self.layers is None and rows.middle is None and self.perturbation.kind == "left_out":
            return set(range(7 * count // 24, 7 * count // 24 + max(1, count // 8)))
        if self.layers is None or self.layers == "mid":
            return {count // 2 if rows.middle is None else rows.middle}
        if wrong := [layer for layer in self.layers if not 0 <= layer < count]:
            raise ValueError(f"layer {wrong[0]} is none of this network's, which are 0 to {count - 1}")
        return set(self.layers)


def left_out(perturbed: Perturbation | None) -> bool:
    """Whether a block is as equation (3) has it."""
    return perturbed is not None and perturbed.kind == "left_out"


def attending(perturbed: Perturbation | None, grid: tuple[int, int] | None) -> Attend:
    """The attention of a block.

    Args:
      perturbed: of the block; None: as it was trained.
      grid: rows and columns of the image's tokens, which stand first; needed where it is perturbed.

    >>> q = k = jnp.zeros((1, 1, 4, 2))
    >>> v = jnp.arange(4.0).reshape(1, 1, 4, 1)
    >>> for perturbed in (None, Perturbation("identity")):
    ...     print(attending(perturbed, (2, 2))(q, k, v).ravel())
    [1.5 1.5 1.5 1.5]
    [0. 1. 2. 3.]
    """
    if perturbed is None:
        return attention
    assert grid is not None
    rows, columns = grid
    n = rows * columns

    def identity(query: Array, key: Array, value: Array, mask: Array | None = None) -> Array:
        if key.shape[2] == n:
            return value  # (1)
        image = _own_and_others(query[:, :, :n], key, value, mask)
        others = query[:, :, n:]
        if others.shape[2] == 0:
            return image
        return jnp.concatenate([image, attention(others, key, value, mask)], axis=2)

    def blurred(query: Array, key: Array, value: Array, mask: Array | None = None) -> Array:
        image = blur(query[:, :, :n], grid, perturbed.sigma)
        return attention(jnp.concatenate([image, query[:, :, n:]], axis=2), key, value, mask)

    return {"identity": identity, "blurred": blurred}[perturbed.kind]


def _own_and_others(query: Array, key: Array, value: Array, mask: Array | None) -> Array:
    """Equation (4), of queries (B, heads, n, depth) whose own keys and values are the first n."""
    n, scale = query.shape[2], query.shape[3] ** -0.5
    others, values = key[:, :, n:], value[:, :, n:]
    if mask is not None:
        others, values = (unmasked(each, mask[:, n:].astype(query.dtype)) for each in (others, values))
    wide = jnp.promote_types(query.dtype, jnp.float32)
    logits = jnp.einsum("bhqd,bhkd->bhqk", query, others, preferred_element_type=wide) * scale
    if mask is not None:
        logits = jnp.where(mask[:, None, None, n:] != 0, logits, -jnp.inf)
    own = jnp.einsum("bhqd,bhqd->bhq", query, key[:, :, :n], preferred_element_type=wide)[..., None] * scale
    weights = jax.nn.softmax(jnp.concatenate([own, logits], axis=-1), axis=-1).astype(value.dtype)
    mixed = jnp.einsum("bhqk,bhkd->bhqd", weights[..., 1:], values, preferred_element_type=wide)
    return (weights[..., :1] * value[:, :, :n] + mixed).astype(value.dtype)


def blur(query: Array, grid: tuple[int, int], sigma: float) -> Array:
    """G q of equation (2).

    Args:
      query: ``(B, heads, rows columns, depth)``.
      grid: rows and columns.
      sigma: of the Gaussian, tokens.

    >>> print(blur(jnp.array([0.0, 1.0, 2.0]).reshape(1, 1, 3, 1), (1, 3), 1.0).ravel().round(2))
    [0.71 1.   1.29]
    """
    if math.isinf(sigma):
        return jnp.broadcast_to(query.mean(axis=2, keepdims=True), query.shape)
    image = query.reshape(*query.shape[:2], *grid, query.shape[3])
    down, across = (jnp.asarray(_filter(size, sigma), query.dtype) for size in grid)
    exact = jax.lax.Precision.HIGHEST  # a filter of little width is to change little
    image = jnp.einsum("ir,bhrcd->bhicd", down, image, precision=exact)
    return jnp.einsum("jc,bhrcd->bhrjd", across, image, precision=exact).reshape(query.shape)


def _filter(size: int, sigma: float) -> np.ndarray:
    """G along one axis as a matrix ``(size, size)``."""
    reach = math.ceil(6 * sigma) // 2
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    weights /= weights.sum()
    matrix, period = np.zeros((size, size)), max(1, 2 * (size - 1))
    for row in range(size):
        place = np.arange(row - reach, row + reach + 1) % period
        np.add.at(matrix[row], np.minimum(place, period - place) if size > 1 else place, weights)
    return matrix
