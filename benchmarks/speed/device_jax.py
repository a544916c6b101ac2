"""The JAX process of `benchmarks.accelerator`: `benchmarks.speed.jax_side` for networks that fill a device.

    python -m benchmarks.speed.device_jax        asked by its parent, `benchmarks.speed.pipes`

Parameters are drawn on the device, programs compiled ahead of time (so that each tells its memory), and calls queued: a
training loop does not wait for each step either. Of the repository it loads neither checkpoints nor the command line.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from benchmarks.speed import attention_forms, checks, limits
from benchmarks.speed.cases import CHAIN
from benchmarks.speed.jax_side import EPS, PROCESS, Call, JaxSide
from benchmarks.speed.large_cases import EVERY
from benchmarks.speed.pipes import serve
from benchmarks.speed.profiled import device_time, longest_operations
from benchmarks.speed.work import forward_work
from jaxdiff import DDIM, NetworkDenoiser, sample
from jaxdiff.networks import Functional
from jaxdiff.networks.backend import attention_form
from jaxdiff.train import make_mesh
from jaxdiff.train.step import Given

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")
NOISE = 0.02  # added to every parameter: of those that start at zero, products would be faster than in training


class DeviceJax(JaxSide):
    """What the parent may ask; each method's arguments and result are plain values."""

    def __init__(self) -> None:
        self.mesh = make_mesh(data=1)
        self.calls: dict[str, Call] = {}
        self.memory: dict[str, dict[str, int] | None] = {}
        self.needed: dict[str, int] | None = None
        self.last: dict[str, Any] = {}
        self.drawn: tuple[Any, ...] | None = None

    def hello(self) -> dict[str, Any]:
        """Versions, device and flags of this process."""
        device = jax.devices()[0]
        return {
            "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
            "platform": jax.default_backend(),
            "devices": [device.device_kind for device in jax.devices()],
            "capability": str(getattr(device, "compute_capability", "")),
            "platform_version": str(getattr(device.client, "platform_version", "")).replace("\n", " "),
            "memory_limit": (device.memory_stats() or {}).get("bytes_limit"),
            "xla_flags": os.environ.get("XLA_FLAGS", ""),
        }

    def limits(self, sizes: list[int], mebibytes: int, seconds: float) -> dict[str, Any]:
        """`benchmarks.speed.limits`."""
        return limits.measured(sizes, mebibytes, seconds)

    def check_names(self) -> list[str]:
        return list(checks.CHECKS)

    def check(self, name: str, quick: bool) -> list[dict[str, Any]]:
        """One of `benchmarks.speed.checks`."""
        return [found._asdict() for found in checks.CHECKS[name](quick)]

    def attend(self, **arguments: Any) -> list[dict[str, Any]]:
        """`benchmarks.speed.attention_forms`."""
        return attention_forms.measured(**arguments)

    # --- Networks

    def draw(self, case: str, quick: bool, dropout: float | None) -> dict[str, Any]:
        """Draws parameters on the device, none of them zero."""
        asked = (case, quick, dropout)
        self.drop()
        if self.drawn != asked:
            self.drawn, self.params = None, None  # nothing of the last network is held beside this one
            self.case = EVERY[case].of(quick, dropout)
            self.params, self.drawn = self.fresh(), asked
        return {"parameters": sum(leaf.size for leaf in jax.tree.leaves(self.params))}

    def fresh(self) -> Any:
        net = self.network("float32")

        def init(key: jax.Array) -> Any:
            params = net.init(key)
            leaves, tree = jax.tree.flatten(params)
            ends = np.cumsum([leaf.size for leaf in leaves])
            noise = jnp.split(NOISE * jax.random.normal(key, (int(ends[-1]),)), ends[:-1])  # one draw compiles faster
            moved = [leaf + part.reshape(leaf.shape) for leaf, part in zip(leaves, noise, strict=True)]
            return jax.tree.unflatten(tree, moved)

        return jax.jit(init, out_shardings=self.whole)(jax.random.key(0))

    def prepare(self, case: str, quick: bool, dropout: float | None, folder: str) -> dict[str, Any]:
        self.drawn = None
        return super().prepare(case, quick, dropout, folder)

    @property
    def whole(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec())

    def work(self, batch: int, dtype: str) -> dict[str, float]:
        """Of a forward pass, by `benchmarks.speed.work`."""
        labelled = self.case.fields.get("num_classes") is not None
        return forward_work(self.network(dtype), self.case.shape, batch, labelled)._asdict()

    def sampler(self, net: Functional, batch: int) -> Call:
        """A whole DDIM sampler under one jit, as `jaxdiff.model.draw` is."""
        keys, ts = self.sampling(batch)
        cond = jax.tree.map(jnp.asarray, self.images(batch)[1]) or None
        denoise = NetworkDenoiser(net, jax.device_put(self.params, self.whole), PROCESS, EPS)
        arguments = jax.device_put((denoise, DDIM(PROCESS), keys, ts, cond), self.whole)
        shape = self.case.shape

        def generate(denoise: NetworkDenoiser, sampler: Any, keys: Any, ts: Any, cond: Any) -> jax.Array:
            return sample(sampler, denoise, keys, denoise.process.prior_sample(keys, shape, ts[0]), ts, cond)

        return self.compiled(jax.jit(generate), *arguments)

    def ours(self, mode: str, batch: int, dtype: str) -> Call:
        net = self.network(dtype)
        if mode == "ddim":
            return self.sampler(net, batch)
        image, cond = self.images(batch)
        if mode == "sample":
            t = np.linspace(0, CHAIN - 1, batch).astype(np.float32)
            arguments = jax.device_put((self.params, image, t, cond or None), self.whole)
            return self.compiled(jax.jit(net.apply), *arguments)
        state, step, inputs, _ = self.training(net, image, cond)
        compiled = step.lower(state, inputs).compile()
        self.needed = needed(compiled)
        kept = [state]

        def once() -> Any:
            kept[0], metrics = compiled(kept[0], inputs, Given())
            return metrics["loss"]

        return once

    def compiled(self, function: Any, *arguments: Any) -> Call:
        program = function.lower(*arguments).compile()
        self.needed = needed(program)
        return lambda: program(*arguments)

    def build(self, form: str, mode: str, batch: int, dtype: str) -> float:
        """Compiles a form and runs it twice; seconds that took.

        Args:
          form: ``ours`` or ``plain`` (the plain Flax form) and then any words; ``portable`` among them leaves out
            attention's kernels.
        """
        begin = time.perf_counter()
        words = form.split()
        make = {"ours": self.ours, "plain": self.plain}[words[0]]
        with attention_form("portable") if "portable" in words else contextlib.nullcontext():
            self.needed = None
            call = self.calls[form] = make(mode, batch, dtype)
        self.memory[form] = self.needed
        for _ in range(2):
            jax.block_until_ready(call())
        return time.perf_counter() - begin

    def time(self, form: str, calls: int, each: bool = False) -> float:
        """Seconds of one call: the mean of so many in a row, or each waited for."""
        call = self.calls[form]
        jax.block_until_ready(call())  # the device is awake again
        if each:
            return sum(limits.queued(call, 1) for _ in range(calls)) / calls
        self.last[form] = None

        def kept() -> Any:
            self.last[form] = call()
            return self.last[form]

        return limits.queued(kept, calls)

    def about(self, form: str) -> dict[str, Any]:
        """The program's memory by XLA's account, the process's peak, and the last result's mean (a loss's own)."""
        stats = jax.devices()[0].memory_stats() or {}
        value = self.last.get(form)
        return {
            "memory": self.memory.get(form),
            "process_peak": stats.get("peak_bytes_in_use"),
            "last": None if value is None else float(jnp.mean(jax.tree.leaves(value)[-1])),
        }

    def profile(self, form: str, calls: int, most: int) -> dict[str, Any]:
        """The operations of a form that took longest, and the share of the time that the device did nothing."""
        call = self.calls[form]
        if jax.default_backend() == "cpu":
            return longest_operations(lambda: jax.block_until_ready(call()), calls, most)
        return device_time(lambda: limits.queued(call, calls), calls, most)

    def drop(self) -> None:
        """Forgets every form and its memory."""
        self.last.clear()
        self.memory.clear()
        super().drop()


def needed(program: Any) -> dict[str, int] | None:
    """Bytes of a compiled program: all at once, of those what it makes for itself, and what it reuses of its inputs."""
    sizes = program.memory_analysis()
    if sizes is None:
        return None
    inputs, outputs, reused = sizes.argument_size_in_bytes, sizes.output_size_in_bytes, sizes.alias_size_in_bytes
    temporaries = sizes.temp_size_in_bytes
    return {"all": inputs + outputs - reused + temporaries, "temporaries": temporaries, "reused": reused}


if __name__ == "__main__":
    serve(DeviceJax())
