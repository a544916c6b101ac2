"""What a network must at least do: the arithmetic and the traffic of its products, counted from its trace.

A product is a matrix product or a convolution; everything else can be fused into one. With A, B and C its operands and
result, as arrays in the precision they have:

    F = 2 multiply-adds                    a forward pass                   (1)
    M = bytes of A, B and C, once each     a forward pass                   (2)
    3 F, 3 M                               with the gradient                (3)
    36 bytes a parameter                   the optimizer, beside            (4)

(3): for each product the backward pass has two of the same size, over the same three arrays or their cotangents. (4):
parameter, average and two moments are read and written, the gradient read, in float32. Of attention's two products the
logits are left out of (2), for a fused kernel does not store them. What is recomputed to save memory is not counted, so
that 3 F over the time is the "model FLOP/s" of Chowdhery et al. 2022 (PaLM, https://arxiv.org/abs/2204.02311,
appendix B).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdiff.networks import Functional
from jaxdiff.networks.backend import attention_form

STATE_BYTES = 36  # a parameter, equation (4)


class Work(NamedTuple):
    """Floating-point operations, and bytes through memory."""

    flops: float
    bytes: float

    def floors(self, flops_a_second: float, bytes_a_second: float) -> dict[str, float]:
        """Seconds that the arithmetic and the traffic take at the least, each alone.

        >>> Work(100.0, 10.0).floors(50.0, 10.0)
        {'compute': 2.0, 'memory': 1.0}
        """
        return {"compute": self.flops / flops_a_second, "memory": self.bytes / bytes_a_second}


def products(jaxpr: Any) -> Work:
    """(1) and (2) of a traced function; the body of a scan counts as often as it runs.

    >>> a, b = jnp.zeros((2, 3)), jnp.zeros((3, 5))
    >>> products(jax.make_jaxpr(lambda a, b: jax.nn.silu(a @ b))(a, b).jaxpr)
    Work(flops=60.0, bytes=124.0)
    >>> loop = lambda a: jax.lax.scan(lambda a, b: (a @ b, None), a, jnp.zeros((4, 3, 3)))[0]
    >>> products(jax.make_jaxpr(loop)(a).jaxpr).flops
    144.0
    """
    flops = bytes_ = 0.0
    for equation in jaxpr.eqns:
        name, arrays = equation.primitive.name, [variable.aval for variable in (*equation.invars, *equation.outvars)]
        times = equation.params["length"] if name == "scan" else 1
        if name in ("dot_general", "conv_general_dilated"):
            sizes = [array.size * array.dtype.itemsize for array in arrays[:3]]
            if name == "dot_general":
                (contracted, _), (batched, _) = equation.params["dimension_numbers"]
                flops += 2.0 * arrays[2].size * math.prod(arrays[0].shape[axis] for axis in contracted)
                bytes_ += sum(sizes) - (max(sizes) if batched else 0)  # batched: attention, without its logits
            else:
                outputs = arrays[1].shape[equation.params["dimension_numbers"].rhs_spec[0]]
                flops += 2.0 * arrays[2].size * arrays[1].size / outputs
                bytes_ += sum(sizes)
        elif name == "while":
            raise ValueError("a loop of unknown length: its work cannot be counted")
        for inner in _inner(equation.params):
            more = products(inner)
            flops, bytes_ = flops + times * more.flops, bytes_ + times * more.bytes
    return Work(flops, bytes_)


def _inner(params: Mapping[str, Any]) -> list[Any]:
    """The traces within an equation."""
    values = [v for value in params.values() for v in (value if isinstance(value, Sequence) else (value,))]
    return [getattr(value, "jaxpr", value) for value in values if hasattr(value, "eqns") or hasattr(value, "jaxpr")]


def forward_work(net: Functional, shape: Sequence[int], batch: int, labelled: bool) -> Work:
    """Of one evaluation for a batch of samples of that shape."""
    params = jax.eval_shape(net.init, jax.random.key(0))
    x, t = jax.ShapeDtypeStruct((batch, *shape), jnp.float32), jax.ShapeDtypeStruct((batch,), jnp.float32)
    cond = {"label": jax.ShapeDtypeStruct((batch,), jnp.int32)} if labelled else None
    with attention_form("plain"):  # kernels hide their products
        return products(jax.make_jaxpr(net.apply)(params, x, t, cond).jaxpr)


def training_work(forward: Work, parameters: int) -> Work:
    """Of a training step, by (3) and (4).

    >>> training_work(Work(100.0, 10.0), 2)
    Work(flops=300.0, bytes=102.0)
    """
    return Work(3 * forward.flops, 3 * forward.bytes + STATE_BYTES * parameters)
