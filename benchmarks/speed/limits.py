"""What the machine can do: its rate of bfloat16 matrix products, its memory's rate, and the cost of a call.

Each is the best of a few laps: a peak is what the machine can do, not what it does on average. Numbers are random, for
products of zeros draw less power and run faster.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff.train.flops import peak_flops


def queued(call: Callable[[], Any], calls: int, wait: Callable[[Any], Any] = jax.block_until_ready) -> float:
    """Seconds of a call, of so many in a row with one wait at the end: a device works while the host calls on."""
    result = None
    begin = time.perf_counter()
    for _ in range(calls):
        result = call()
    wait(result)
    return (time.perf_counter() - begin) / calls


def best(call: Callable[[], Any], seconds: float, laps: int = 5) -> float:
    """Seconds of a call in the best lap; a lap has calls for about ``seconds``."""
    queued(call, 2)
    once = queued(call, 1)
    calls = max(1, min(1000, round(seconds / max(once, 1e-7))))
    return min(queued(call, calls) for _ in range(laps))


def measured(sizes: Sequence[int], mebibytes: int, seconds: float) -> dict[str, Any]:
    """The machine's limits.

    Args:
      sizes: of square matrices, whose fastest product counts.
      mebibytes: of the array that is read and written for the memory's rate: several times the caches.
      seconds: of a lap.
    """
    product = jax.jit(jnp.matmul)
    rates = {}
    for n in sizes:
        a, b = (jax.random.normal(key, (n, n), jnp.bfloat16) for key in jax.random.split(jax.random.key(0)))
        rates[n] = 2.0 * n**3 / best(lambda a=a, b=b: product(a, b), seconds)  # type: ignore[misc]
    more = jax.jit(lambda x: x + 1)
    array = jax.random.normal(jax.random.key(1), (mebibytes * 2**18,))  # float32
    traffic = 2.0 * array.nbytes / best(lambda: more(array), seconds)
    scalar = jnp.zeros(())
    waited = best(lambda: jax.block_until_ready(more(scalar)), seconds)
    return {
        "matmul": max(rates.values()),
        "matmul_by_size": {str(n): rate for n, rate in rates.items()},
        "memory": traffic,
        "call_seconds": best(lambda: more(scalar), seconds),
        "call_and_wait_seconds": waited,
        "datasheet": peak_flops(jax.devices()[0].device_kind),
    }
