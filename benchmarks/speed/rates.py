"""A training step's time on machines that are not here: a prediction from published rates, not a measurement.

With the operations F of a step without what is recomputed, n devices of peak P and an assumed utilization u, B bytes
through a device's memory at M bytes/s, and C_i bytes that a device sends in a group whose slowest link gives it L_i:

    compute        T_c = max(F / (n P u), B / M)                    (1)
    communication  T_m = sum_i C_i / L_i                            (2)
    all hidden     T   = max(T_c, T_m)                              (3)
    none hidden    T   = T_c + T_m                                  (4)

What a machine does lies between (3) and (4). u is what is asked of the machine, and the whole of the guess.

Links. GPUs: nodes of 8 with NVLink within and one 400 Gbit/s network card a GPU between. A ring over k GPUs of each of
several nodes leaves a node by k cards at once and a GPU's part of it is L = min(NVLink, k cards), for in a ring of
rings each card carries 1/k. TPU: a 3-D torus; L is both directions of one axis, the least that a group gets.

Sources: https://www.nvidia.com/en-us/data-center/h100/ and /h200/ (dense bfloat16, half of "with sparsity"; memory;
NVLink's 900 GB/s are both directions), https://docs.nvidia.com/dgx/dgxh100-user-guide/ (a ConnectX-7 of 400 Gbit/s a
GPU), https://docs.cloud.google.com/tpu/docs/v5p (459 TFLOP/s, 2,765 GB/s, 1,200 GB/s in both directions over the six
links of a chip).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from benchmarks.speed.ideal import Layout, Sent

GIGA = 1e9


@dataclass(frozen=True)
class Device:
    """Published rates of one device, a second.

    Args:
      name: of the product.
      peak: bfloat16 operations.
      memory: bytes.
      near: bytes sent within a node, or over one axis of a torus.
      far: bytes sent by its network card between nodes; None: there are no nodes.
      node: devices of a node.
      holds: bytes of its memory.
    """

    name: str
    peak: float
    memory: float
    near: float
    far: float | None
    node: int
    holds: float

    def link(self, layout: Layout, *axes: str) -> float:
        """Bytes a second of a device in a group over mesh axes. Neighbours differ in tensor first, in data last.

        >>> eight, many = Layout(1, 8, 1, batch=1, size=8), Layout(8, 8, 1, batch=1, size=8)
        >>> h100 = DEVICES[0]
        >>> groups = ((eight, "fsdp"), (many, "data", "fsdp"), (many, "data"))
        >>> [h100.link(*group) / 1e9 for group in groups]
        [450.0, 400.0, 50.0]
        """
        if self.far is None:
            return self.near
        room, members, group = self.node, 1, 1
        for axis in ("tensor", "fsdp", "data"):
            size = getattr(layout, axis)
            inside = min(size, room)
            room //= inside
            if axis in axes:
                members, group = members * inside, group * size
        return self.near if group <= members else min(self.near, members * self.far)


DEVICES = (
    Device("H100 SXM", 989.4e12, 3350 * GIGA, 450 * GIGA, 50 * GIGA, 8, 80 * GIGA),
    Device("H200", 989.4e12, 4800 * GIGA, 450 * GIGA, 50 * GIGA, 8, 141 * GIGA),
    Device("TPU v5p", 459e12, 2765 * GIGA, 200 * GIGA, None, 1, 95 * 2**30),
)


class Predicted(NamedTuple):
    """Seconds: (1), (2), and by (3) and (4) the step."""

    compute: float
    communication: float

    @property
    def hidden(self) -> float:
        return max(self.compute, self.communication)

    @property
    def exposed(self) -> float:
        return self.compute + self.communication


def predict(
    device: Device, layout: Layout, sent: Sent, operations: float, traffic: float, utilization: float
) -> Predicted:
    """(1) and (2).

    Args:
      device: of `DEVICES`.
      layout: the mesh.
      sent: bytes that a device sends.
      operations: F, over all devices.
      traffic: B, of one device.
      utilization: u.

    >>> one = Layout(data=1, fsdp=1, tensor=1, batch=1, size=8)
    >>> round(predict(DEVICES[0], one, Sent(0, 0, 0, 0, 0), 989.4e12, 1e9, 0.5).hidden, 3)
    2.0
    """
    seconds = (
        sent.whole / device.link(layout, "data", "fsdp")
        + sent.reduced / device.link(layout, "data")
        + (sent.scattered + sent.weights) / device.link(layout, "fsdp")
        + sent.activations / device.link(layout, "tensor")
    )
    compute = max(operations / layout.devices / device.peak / utilization, traffic / device.memory)
    return Predicted(compute, seconds)
