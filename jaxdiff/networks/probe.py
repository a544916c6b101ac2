"""Whether a kernel written for one kind of machine works on this one, found out when attention would first take it.

No table of machines can say it: drivers, versions of cuDNN and of XLA, and the machines themselves change. So the
kernel is compiled and run once on a small problem, forward and backward, and its answers compared with the plain form's
of the same numbers in float32. A kernel that ends the whole process, or never returns, is beyond this.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

Attend = Callable[..., Array]

TOKENS = 512
"""Of the small problem: a whole block of either kernel."""

TOLERANCE = 0.02
"""Norm of the error over the norm of the answer. bfloat16 alone makes 0.003; a wrong factor, mask or order far more."""


@functools.cache
def works(
    form: str, kernel: Attend, reference: Attend, device: jax.Device, depth: int, dtype: Any, masked: bool = False
) -> bool:
    """Whether ``kernel`` compiles, runs and answers as ``reference`` does. If not, one line on stderr says why.

    It may be called while JAX traces: the probe runs in a thread of its own, which knows of no trace. Each process asks
    once for each kernel, device, depth and dtype, with a mask and without.

    Args:
      form: the kernel's name, for the line.
      kernel: ``(query, key, value) -> output``, of arrays ``(batch, heads, tokens, depth)``, with a reverse pass.
      reference: the same function, known to be right.
      device: of this process.
      depth: numbers a head.
      dtype: of the arrays.
      masked: with a mask, whose first sample leaves out some keys and whose second leaves out all.

    >>> from jaxdiff.networks.attention import plain_attention
    >>> works("plain", plain_attention, plain_attention, jax.local_devices()[0], 8, jnp.dtype("float32"))
    True
    """
    try:
        with ThreadPoolExecutor(1) as aside:
            error = aside.submit(_error, kernel, reference, device, depth, dtype, masked).result()
        why = "" if error <= TOLERANCE else f"its answer differs by {error:.2g} of the plain form's"
    except Exception as problem:  # whatever stops a kernel: each compiler and driver has errors of its own
        why = (f"{type(problem).__name__}: {problem}".splitlines())[0]
    if why:
        said = (
            f"attention by the {form} kernel does not work on {device.device_kind} ({dtype}, heads of {depth}"
            f"{', masked' * masked}): {why}"
        )
        print(f"WARNING: {said}; a form without it is taken", file=sys.stderr, flush=True)
    return not why


def _error(
    kernel: Attend, reference: Attend, device: jax.Device, depth: int, dtype: Any, masked: bool = False
) -> float:
    """The largest relative error of the output and the three gradients."""
    random = np.random.default_rng(0)
    drawn = [random.standard_normal((1 + masked, 2, TOKENS, depth)).astype(dtype) for _ in range(4)]
    kept = np.stack([random.random(TOKENS) < 0.5, np.zeros(TOKENS, bool)]) if masked else None

    def answers(attend: Attend, kind: Any) -> list[np.ndarray]:
        def both(query: Array, key: Array, value: Array, weight: Array) -> tuple[Array, ...]:
            told = () if kept is None else (jnp.asarray(kept, query.dtype),)
            output, pull = jax.vjp(lambda *inputs: attend(*inputs, *told), query, key, value)
            return output, *pull(weight)

        inputs = (jax.device_put(x.astype(kind), device) for x in drawn)
        return [np.asarray(x, np.float64) for x in jax.jit(both)(*inputs)]

    with jax.transfer_guard("allow"):
        pairs = zip(answers(kernel, dtype), answers(reference, jnp.float32), strict=True)
        return float(np.max([np.linalg.norm(ours - right) / np.linalg.norm(right) for ours, right in pairs]))
