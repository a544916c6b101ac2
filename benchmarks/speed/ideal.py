"""What a training step must at least compute and send, in closed form, from the parameters' shapes and shardings.

A mesh has d x f x t devices (data, fsdp, tensor); each of its d f parts of the batch has R samples. A parameter array
of W elements and b bytes an element acts on p positions of a sample: a DiT's on its L tokens, a U-Net's on the pixels
of its level, and what acts on one vector a sample (embeddings of time and class, modulation) on one. Let w = W b, over
t where tensor splits it. Per device and step:

    multiply-adds of a forward pass, a sample     sum W p + sum over attentions 2 N^2 C             (1)
    operations of a step                          2 R d f (3 (1) + what is recomputed)              (2)
    gradients, of an array that fsdp splits       w (f - 1)/f + 2 (w / f)(d - 1)/d                  (3)
    gradients, of any other                       2 w (d f - 1)/(d f)                               (4)
    weights, of an array that fsdp splits         2 w (f - 1)/f                                     (5)
    or, where p = 1, for (5) and the scatter      b ((1 + s) f R in + n s R out) (f - 1)/f          (6)
    activations, where tensor splits a block      m 2 b R L C (t - 1)/t                             (7)
    the state                                     sum of its arrays, each over what splits it       (8)

(1): N tokens of C channels, two products. (3) is a reduce-scatter over fsdp, and an all-reduce over data of the part
that is left (ZeRO-3: Rajbhandari et al. 2020, https://arxiv.org/abs/1910.02054, section 7); (4) an all-reduce. (5):
gathered in the forward pass and again in the backward, for nothing is kept whole between them. (6): s matrices in x out
that act on one vector a sample, the same for all, need not be gathered: the vectors are, once, and the outputs
exchanged; the outputs' gradients the other way, and the vectors' are scattered, s times. n = 2, and 3 where the block
is recomputed. The lesser of both is the ideal.
(7): two all-reduces a block in each direction (Shoeybi et al. 2019, https://arxiv.org/abs/1909.08053, section 3), m =
4; where the block is recomputed its forward ones too, for the gates' gradients need both sums, m = 6. The norms and the
metrics are a few numbers, and counted as none.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax

from jaxdiff.networks import DiT, UNet

VECTOR = {"modulation", "time", "label", "embed"}
"""Names on the path of what acts on one vector a sample. It computes in float32."""
BLOCKS = ("blocks", "down", "up", "middle_in", "middle_out")
"""First names on the paths of what `remat` computes again."""


@dataclass(frozen=True)
class Layout:
    """Of a training step on a mesh.

    Args:
      data, fsdp, tensor: the mesh.
      batch: R, samples a part of the batch.
      size: pixels of a side.
      half: bytes an element of what acts on tokens or pixels: 2 in bfloat16; what acts on vectors has 4.
    """

    data: int
    fsdp: int
    tensor: int
    batch: int
    size: int
    half: int = 4

    @property
    def devices(self) -> int:
        return self.data * self.fsdp * self.tensor


class Leaf(NamedTuple):
    """A parameter array: names on its path, shape, and the mesh axes that split it."""

    path: tuple[str, ...]
    shape: tuple[int, ...]
    axes: frozenset[str]

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def vector(self) -> bool:
        return not VECTOR.isdisjoint(self.path)


class Sent(NamedTuple):
    """Bytes that a device sends in a step: (4); the two parts of (3), over fsdp and over data; (5) and (6); (7)."""

    whole: float
    scattered: float
    reduced: float
    weights: float
    activations: float

    @property
    def total(self) -> float:
        return sum(self)


def leaves(params: Any) -> Iterator[Leaf]:
    """The arrays of a tree of shapes with shardings."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        names = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
        spec = leaf.sharding.spec if leaf.sharding is not None else ()
        axes = [name for axis in spec if axis for name in ((axis,) if isinstance(axis, str) else axis)]
        yield Leaf(tuple(names), tuple(leaf.shape), frozenset(axes))


def positions(network: DiT | UNet, size: int, leaf: Leaf) -> int:
    """p of (1): on how many positions of a sample an array acts. A table of classes is looked up, not multiplied."""
    if leaf.path[0] == "label" or leaf.path[-1] != "kernel":
        return 0
    if leaf.vector:
        return 1
    if isinstance(network, DiT):
        return (size // network.patch) ** 2
    last = len(network.multipliers) - 1
    match leaf.path:
        case ("down", level, part, *_):
            place = int(level) + (part == "resample")
        case ("up", index, part, *_):
            place = last - int(index) - (part == "resample")
        case ("middle_in" | "middle_out", *_):
            place = last
        case _:  # the first and the last convolution
            place = 0
    return int(size // 2**place) ** 2


def forward_operations(network: DiT | UNet, size: int, params: Any) -> tuple[float, float]:
    """2 (1), of one sample: of the whole network, and of its blocks alone, which `remat` computes again."""
    whole = blocks = 0.0
    for leaf in leaves(params):
        p = positions(network, size, leaf)
        operations = 2.0 * leaf.elements * p
        if leaf.path[-3:] == ("attention", "out", "kernel"):  # once an attention; a stack of them has its depth
            channels = leaf.shape[-1]
            operations += 4.0 * p * p * channels * (leaf.elements // (leaf.shape[-2] * channels))
        whole += operations
        blocks += operations * (leaf.path[0] in BLOCKS)
    return whole, blocks


def step_operations(network: DiT | UNet, layout: Layout, params: Any) -> float:
    """(2), over all devices."""
    whole, blocks = forward_operations(network, layout.size, params)
    return layout.batch * layout.data * layout.fsdp * (3 * whole + (blocks if network.remat == "full" else 0))


def sent(network: DiT | UNet, layout: Layout, params: Any) -> Sent:
    """(3) to (7)."""
    d, f, t = layout.data, layout.fsdp, layout.tensor
    whole = scattered = reduced = weights = 0.0
    split = False
    for leaf in leaves(params):
        element = 4 if leaf.vector else layout.half
        w = leaf.elements * element / (t if "tensor" in leaf.axes else 1)
        split |= "tensor" in leaf.axes
        if "fsdp" not in leaf.axes:
            whole += 2 * w * (d * f - 1) / (d * f)
            continue
        reduced += 2 * w / f * (d - 1) / d
        if leaf.vector and leaf.path[-1] == "kernel":
            stacked = math.prod(leaf.shape[:-2])
            inputs, outputs = leaf.shape[-2:]
            directions = 3 if network.remat == "full" and leaf.path[0] in BLOCKS else 2
            moved = element * layout.batch * ((1 + stacked) * f * inputs + directions * stacked * outputs)
            if moved < 3 * w:
                weights += moved * (f - 1) / f
                continue
        scattered += w * (f - 1) / f
        weights += 2 * w * (f - 1) / f
    activations = 0.0
    if split and isinstance(network, DiT):
        tokens = layout.batch * (layout.size // network.patch) ** 2 * network.width * layout.half
        sums = (6 if network.remat == "full" else 4) * network.depth
        activations = sums * 2 * tokens * (t - 1) / t
    return Sent(whole, scattered, reduced, weights, activations)


def state_bytes(state: Any) -> tuple[int, int]:
    """(8): of all that a state holds, once, and on one device, as its shardings have it. A key has 8 bytes."""
    once = device = 0
    for leaf in jax.tree.leaves(state):
        key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        size = 8 if key else leaf.dtype.itemsize
        once += size * math.prod(leaf.shape)
        device += size * math.prod(leaf.sharding.shard_shape(leaf.shape))
    return once, device


def ratio(measured: float, ideal: float) -> float:
    """Measured over ideal; 1 where both are nothing, as on one device.

    >>> ratio(11.0, 10.0), ratio(0.0, 0.0)
    (1.1, 1.0)
    """
    return 1.0 if measured == ideal == 0 else measured / ideal if ideal else math.inf
