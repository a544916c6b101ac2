"""What a function must at least compute, counted from its trace, and what a device can do at most.

A product is a matrix product or a convolution; everything else can be fused into one, and is not counted:

    b products of matrices, (m, k) times (k, n)     2 b m n k                                   (1)
    a convolution with a kernel of K places         2 |output| K c_in / groups, padding included (2)
    a scan                                          its body, times its length                  (3)
    a branch                                        the largest one                             (4)
    a loop of unknown length                        0 if its body has no product, else NaN      (5)

Custom derivatives, rematerialisation and nested jits are what is inside them; a Pallas kernel its body times its grid,
a `shard_map` its body times its devices. XLA's own count (`compiled.cost_analysis()`) has a scan's body once only, and
nothing of kernels.

Model FLOPs utilisation (Chowdhery et al. 2022, "PaLM", https://arxiv.org/abs/2204.02311, appendix B) is

    MFU = FLOPs of a step, as the model needs them / (seconds of a step  x  devices  x  peak FLOP/s of one)    (6)

As the model needs them: what is computed again to save memory is no part of it, nor what a kernel adds. So `step_flops`
traces the step with attention in its plain form and without recomputation, whatever form it runs in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from jaxdiff.networks.backend import attention_form
from jaxdiff.networks.remat import nothing_recomputed

PEAKS = (
    ("GB200", 2500e12),  # nvidia.com/en-us/data-center/gb200-nvl72
    ("B200", 2250e12),  # nvidia.com/en-us/data-center/dgx-b200
    ("H200", 989.4e12),  # nvidia.com/en-us/data-center/h200; the GH200 likewise
    ("H100 PCIe", 756e12),  # nvidia.com/en-us/data-center/h100, as are all H100
    ("H100 NVL", 835e12),
    ("H100 80GB HBM3", 989.4e12),
    ("A100", 312e12),  # nvidia.com/en-us/data-center/a100
    ("L40S", 362e12),  # nvidia.com/en-us/data-center/l40s
    ("L40", 181e12),  # nvidia.com/en-us/data-center/l40
    ("L4", 121e12),  # nvidia.com/en-us/data-center/l4
    ("V100-SXM2", 125e12),  # nvidia.com/en-us/data-center/v100: float16, as of the T4
    ("Tesla T4", 65e12),  # nvidia.com/en-us/data-center/tesla-t4
    ("TPU v6 lite", 918e12),  # cloud.google.com/tpu/docs/v6e; the other TPUs' pages likewise
    ("TPU v5 lite", 197e12),
    ("TPU v5p", 459e12),
    ("TPU v5", 459e12),
    ("TPU v4", 275e12),
    ("TPU v3", 61.5e12),  # a device is one of a chip's two cores, as of v2
    ("TPU v2", 22.5e12),
)
"""FLOP/s of 16-bit matrix products by what JAX's `device_kind` contains, dense (half of "with sparsity"); the first row
that fits. From the data sheets of NVIDIA's products and Google's pages of its TPUs."""


class Work(NamedTuple):
    """Floating-point operations of products, and the bytes of their operands and results, once each."""

    flops: float
    bytes: float

    def floors(self, flops_a_second: float, bytes_a_second: float) -> dict[str, float]:
        """Seconds that the arithmetic and the traffic take at the least, each alone.

        >>> Work(100.0, 10.0).floors(50.0, 10.0)
        {'compute': 2.0, 'memory': 1.0}
        """
        return {"compute": self.flops / flops_a_second, "memory": self.bytes / bytes_a_second}


def products(jaxpr: Any) -> Work:
    """The products of a trace, by (1) to (5).

    Of attention's two products the logits are left out of the bytes, for a fused kernel does not store them.

    Args:
        jaxpr: such as `jax.make_jaxpr(f)(*arguments).jaxpr`.

    Example:
        >>> import jax.numpy as jnp
        >>> a, b = jnp.zeros((2, 3)), jnp.zeros((3, 5))
        >>> products(jax.make_jaxpr(lambda a, b: jax.nn.silu(a @ b))(a, b).jaxpr)
        Work(flops=60.0, bytes=124.0)
        >>> loop = lambda a: jax.lax.scan(lambda a, b: (a @ b, None), a, jnp.zeros((4, 3, 3)))[0]
        >>> products(jax.make_jaxpr(loop)(a).jaxpr).flops
        144.0
    """
    flops = bytes_ = 0.0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name == "dot_general":
            more = _matrix_product(equation)
        elif name == "conv_general_dilated":
            more = _convolution(equation)
        else:
            inner = [products(each) for each in _inner(name, equation.params)]
            if name == "cond":  # (4)
                more = max(inner, key=lambda work: math.inf if math.isnan(work.flops) else work.flops)
            else:
                more = Work(sum(work.flops for work in inner), sum(work.bytes for work in inner))
            times = _times(name, equation.params)
            if more.flops:
                more = Work(times * more.flops, times * more.bytes)
        flops, bytes_ = flops + more.flops, bytes_ + more.bytes
    return Work(flops, bytes_)


def _matrix_product(equation: Any) -> Work:
    left, right, result = (variable.aval for variable in (*equation.invars[:2], *equation.outvars))
    (contracted, _), (batched, _) = equation.params["dimension_numbers"]
    sizes = [_bytes(array) for array in (left, right, result)]
    moved = sum(sizes) - (max(sizes) if batched else 0)  # batched: attention, without its logits
    return Work(2.0 * result.size * math.prod(left.shape[axis] for axis in contracted), moved)


def _convolution(equation: Any) -> Work:
    image, kernel, result = (variable.aval for variable in (*equation.invars[:2], *equation.outvars))
    outputs = kernel.shape[equation.params["dimension_numbers"].rhs_spec[0]]
    zeros = math.prod(equation.params["lhs_dilation"])  # between the inputs: of so many products one is of a number
    return Work(2.0 * result.size * kernel.size / outputs / zeros, sum(map(_bytes, (image, kernel, result))))


def _bytes(array: Any) -> float:
    return float(array.size * array.dtype.itemsize)


def _times(name: str, params: Mapping[str, Any]) -> float:
    """How often the inside of an equation runs."""
    match name:
        case "scan":
            return float(params["length"])
        case "while":
            return math.nan
        case "shard_map":
            axes = params["newly_manual_axes" if "newly_manual_axes" in params else "manual_axes"]  # by JAX's release
            return float(math.prod(params["mesh"].shape[axis] for axis in axes))
        case "pallas_call":
            grid = params["grid_mapping"].grid
            return float(math.prod(grid)) if all(isinstance(size, int) for size in grid) else math.nan
        case _:
            return 1.0


def _inner(name: str, params: Mapping[str, Any]) -> list[Any]:
    """The traces within an equation, of those that are alternatives the one that runs."""
    if name in ("custom_linear_solve", "custom_root"):
        return [params["jaxprs"].solve.jaxpr]
    values = [v for value in params.values() for v in (value if isinstance(value, Sequence) else (value,))]
    return [getattr(value, "jaxpr", value) for value in values if hasattr(value, "eqns") or hasattr(value, "jaxpr")]


def step_flops(step: Callable[..., Any], *arguments: Any) -> float:
    """Floating-point operations of a training step over all devices, as the model needs them; NaN where unknown.

    Args:
        step: such as `compile_step` makes.
        arguments: its own, or their shapes.

    Example:
        >>> import jax.numpy as jnp
        >>> w = x = jnp.zeros((8, 8))
        >>> step_flops(jax.grad(lambda w, x: (jnp.tanh(x @ w) ** 2).sum()), w, x)    # forward, and back to w
        2048.0
    """
    with attention_form("plain"), nothing_recomputed():
        return products(jax.make_jaxpr(step)(*arguments).jaxpr).flops


def peak_flops(kind: str) -> float | None:
    """A device's dense 16-bit matrix FLOP/s by its data sheet; None for one that is not in `PEAKS`.

    Args:
        kind: `device.device_kind`.

    Example:
        >>> peak_flops("NVIDIA H200"), peak_flops("cpu")
        (989400000000000.0, None)
    """
    return next((rate for name, rate in PEAKS if name in kind), None)
