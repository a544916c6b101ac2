"""The JAX process of `benchmarks.vs_torch`: jaxdiff's form of a network and the plain Flax form.

    python -m benchmarks.speed.jax_side        asked by its parent, `benchmarks.speed.pipes`

jaxdiff's training step is `jaxdiff.train.compile_step` over a mesh of all devices, as train.py calls it; its evaluation
is the jitted ``net.apply``, and its sampler the jitted `jaxdiff.model.draw`.
"""

from __future__ import annotations

import gc
import importlib.metadata
import math
import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from benchmarks.speed.cases import (
    AS_IT_COMES,
    CASES,
    CHAIN,
    CLIP,
    DECAY,
    EVALUATIONS,
    LR,
    PARITY_BATCH,
    PARITY_STEPS,
)
from benchmarks.speed.parameters import named
from benchmarks.speed.pipes import serve
from benchmarks.speed.plain_flax import load, plain_step
from benchmarks.speed.profiled import longest_operations
from jaxdiff import (
    DDIM,
    DenoisingLoss,
    DiscreteVP,
    Eps,
    NetworkDenoiser,
    TimeIndex,
    linear_betas,
    sample_keys,
    uniform_times,
)
from jaxdiff.networks import DiT, Functional, UNet, functional
from jaxdiff.train import (
    TrainState,
    batch_sharding,
    compile_step,
    create_state,
    make_mesh,
    make_optimizer,
    state_template,
)
from jaxdiff.train.ema import Ema
from jaxdiff.train.sharding import put_batch

Call = Callable[[], Any]
PROCESS = DiscreteVP(linear_betas(CHAIN))
EPS = Eps(time=TimeIndex(CHAIN))


class JaxSide:
    """What the parent may ask; each method's arguments and result are plain values."""

    def __init__(self) -> None:
        from jaxdiff.config import keep_compiled  # here, as below: `device_jax` does without the imports of a run

        keep_compiled()
        self.mesh = make_mesh()
        self.calls: dict[str, Call] = {}

    def hello(self) -> dict[str, Any]:
        """Versions, devices and flags of this process."""
        return {
            "versions": {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax")},
            "platform": jax.default_backend(),
            "devices": [device.device_kind for device in jax.devices()],
            "xla_flags": os.environ.get("XLA_FLAGS", ""),
        }

    def prepare(self, case: str, quick: bool, dropout: float | None, folder: str) -> dict[str, Any]:
        """Draws parameters, none of them zero, and writes them for the other process."""
        self.case = CASES[case].of(quick, dropout)
        self.folder = Path(folder)
        fresh = jax.jit(self.network("float32").init)(jax.random.key(0))
        noise = np.random.default_rng(0)
        self.params = jax.tree.map(
            lambda leaf: np.asarray(leaf + 0.02 * noise.standard_normal(leaf.shape, np.float32)), fresh
        )
        chain = jnp.arange(1, CHAIN + 1) / CHAIN
        arrays = named(self.params)
        np.savez(self.folder / "parameters.npz", **arrays)  # type: ignore[arg-type]
        np.savez(self.folder / "chain.npz", alphas=PROCESS.alpha(chain), sigmas=PROCESS.sigma(chain))
        return {"parameters": sum(array.size for array in arrays.values())}

    def network(self, dtype: str, **changes: Any) -> Functional:
        fields = {**self.case.fields, "dtype": dtype, **changes}
        return functional(UNet(**fields) if self.case.network == "unet" else DiT(**fields))

    def images(self, batch: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Images in [-1, 1] and, where the network takes them, labels: the same for the same batch."""
        random = np.random.default_rng(batch)
        classes = self.case.fields.get("num_classes")
        cond = {} if classes is None else {"label": random.integers(0, classes, batch).astype(np.int32)}
        return np.clip(0.5 * random.standard_normal((batch, *self.case.shape), np.float32), -1, 1), cond

    def times(self, batch: int) -> np.ndarray:
        return np.linspace(0, CHAIN - 1, batch).astype(np.float32)

    # --- Parity

    def parity(self, dtype: str) -> dict[str, Any]:
        """Writes what an evaluation, a sampler and a few steps come to, at a small batch without dropout."""
        on_cpu = jax.default_backend() == "cpu"  # elsewhere products of float32 numbers are rounded by default
        with nullcontext() if on_cpu else jax.default_matmul_precision("highest"):
            return self._parity(dtype)

    def _parity(self, dtype: str) -> dict[str, Any]:
        net = self.network(dtype, dropout=0.0)
        image, cond = self.images(PARITY_BATCH)
        output = jax.jit(net.apply)(self.params, jnp.asarray(image), self.times(PARITY_BATCH), cond or None)
        arrays = {"image": image, "t": self.times(PARITY_BATCH), "output": np.asarray(output), **cond}
        apply, plain = load(net.build, self.params)  # type: ignore[arg-type]
        plain_output = jax.jit(apply)(plain, jnp.asarray(image), arrays["t"], cond.get("label"))
        answer: dict[str, Any] = {"plain_output": _relative(plain_output, output)}
        if dtype == "float32":
            keys, ts = self.sampling(PARITY_BATCH)
            noise = PROCESS.prior_sample(keys, self.case.shape, ts[0])
            arrays |= {"noise": np.asarray(noise), "sampled": np.asarray(self.sampler(net, PARITY_BATCH)())}
            arrays["index"] = np.rint(np.asarray(ts) * CHAIN).astype(np.int64) - 1
            answer |= self.steps(net, image, cond, arrays)
        np.savez(self.folder / "parity.npz", **arrays)  # type: ignore[arg-type]
        return answer

    def steps(self, net: Functional, image: np.ndarray, cond: dict, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
        """A few training steps, with the draws that they make by themselves written down."""
        state, step, batch, loss = self.training(net, image, cond)
        answer: dict[str, Any] = {"loss": [], "grad_norm": []}
        key = jax.random.wrap_key_data(jnp.array(jax.random.key_data(state.key)))  # the state's own is donated
        for n in range(PARITY_STEPS):
            draws = loss.draw(jax.random.split(jax.random.fold_in(key, n))[0], batch, ())
            arrays[f"step_{n}.index"] = np.rint(np.asarray(draws.t) * CHAIN).astype(np.int64) - 1
            arrays[f"step_{n}.noise"] = np.asarray(draws.eps)
            state, metrics = step(state, batch)
            for name in answer:
                answer[name].append(float(metrics[name]))
        for name, tree in {"moved": state.params, "moved_average": state.ema["ema"]}.items():
            far = jax.tree.map(lambda a, b: float(((np.asarray(a, np.float64) - b) ** 2).sum()), tree, self.params)
            answer[name] = math.sqrt(sum(jax.tree.leaves(far)))
        return answer

    # --- What is timed

    def training(self, net: Functional, image: np.ndarray, cond: dict) -> tuple[TrainState, Any, Any, DenoisingLoss]:
        optimizer, schedule = make_optimizer(lr=LR, steps=100_000, clip_norm=CLIP)
        loss = DenoisingLoss(PROCESS, EPS)
        key = jax.random.key(0)
        template = state_template(net, optimizer, loss, key, self.mesh)
        step = compile_step(
            net=net, loss=loss, optimizer=optimizer, ema=Ema(DECAY), schedule=schedule, template=template
        )
        state = started(optimizer, loss, key, self.params, template)
        return state, step, put_batch({"x": image, **cond}, batch_sharding(self.mesh)), loss

    def sampling(self, batch: int) -> tuple[jax.Array, jax.Array]:
        return sample_keys(jax.random.key(0), 0, batch), uniform_times(PROCESS, EVALUATIONS)

    def sampler(self, net: Functional, batch: int) -> Call:
        from jaxdiff.model import Plan, draw

        keys, ts = self.sampling(batch)
        cond = jax.tree.map(jnp.asarray, self.images(batch)[1])
        sharding = None if batch % self.mesh.size else batch_sharding(self.mesh)
        whole = NamedSharding(self.mesh, PartitionSpec())
        denoise = NetworkDenoiser(net, jax.device_put(self.params, whole), PROCESS, EPS)
        plan = Plan(denoise, DDIM(PROCESS), ts, cond, guide=(), nulls={}, codec=None, shape=self.case.shape)
        return lambda: draw(plan, keys, decode=False, sharding=sharding)[0]

    def ours(self, mode: str, batch: int, dtype: str) -> Call:
        net = self.network(dtype)
        image, cond = self.images(batch)
        if mode == "ddim":
            return self.sampler(net, batch)
        if mode == "sample":
            sharding = batch_sharding(self.mesh)
            params = jax.device_put(self.params, NamedSharding(self.mesh, PartitionSpec()))
            put = jax.device_put((image, self.times(batch), cond or None), sharding)
            apply = jax.jit(net.apply)
            return lambda: apply(params, *put)
        state, step, inputs, _ = self.training(net, image, cond)
        kept = [state]

        def once() -> Any:
            kept[0], metrics = step(kept[0], inputs)
            return kept[0], metrics

        return once

    def plain(self, mode: str, batch: int, dtype: str) -> Call:
        apply, params = load(self.network(dtype).build, self.params)  # type: ignore[arg-type]
        image, cond = self.images(batch)
        x, label = jnp.asarray(image), jnp.asarray(cond["label"]) if cond else None
        if mode == "sample":
            run, t = jax.jit(apply), jnp.asarray(self.times(batch))
            return lambda: run(params, x, t, label)
        if mode != "train":
            raise ValueError(f"the plain form has no {mode}")
        chain = jnp.arange(1, CHAIN + 1) / CHAIN
        init, step = plain_step(apply, PROCESS.alpha(chain), PROCESS.sigma(chain), lr=LR, clip=CLIP, decay=DECAY)
        kept = [init(params)]
        keys = iter(jax.random.split(jax.random.key(0), 10_000))

        def once() -> Any:
            kept[0], value = step(kept[0], x, label, next(keys))
            return kept[0], value

        return once

    def build(self, form: str, mode: str, batch: int, dtype: str) -> float:
        """Compiles a form and runs it twice; seconds that took."""
        begin = time.perf_counter()
        self.calls[form] = {"ours": self.ours, "plain": self.plain}[form](mode, batch, dtype)
        for _ in range(2):
            jax.block_until_ready(self.calls[form]())
        return time.perf_counter() - begin

    def time(self, form: str, calls: int) -> float:
        """Seconds of one call, the mean of so many: on a CPU each is waited for, elsewhere the last, as in PyTorch."""
        call, each = self.calls[form], jax.default_backend() == "cpu"
        begin = time.perf_counter()
        for n in range(calls):
            result = call()
            if each or n == calls - 1:
                jax.block_until_ready(result)
        return (time.perf_counter() - begin) / calls

    def drop(self) -> None:
        """Forgets every form and its memory."""
        self.calls.clear()
        gc.collect()
        jax.clear_caches()

    def profile(self, form: str, calls: int, most: int) -> dict[str, Any]:
        """The operations of a form that took longest."""
        call = self.calls[form]
        return longest_operations(lambda: jax.block_until_ready(call()), calls, most)


def started(optimizer: Any, loss: DenoisingLoss, key: jax.Array, params: Any, template: TrainState) -> TrainState:
    """The state of step 0 with parameters that are there already."""

    def make(key: jax.Array, params: Any) -> TrainState:
        copied = SimpleNamespace(init=lambda _: jax.tree.map(jnp.copy, params))  # for the state will be donated
        return create_state(copied, optimizer, loss, key)

    return jax.jit(make, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, template))(key, params)


def _relative(a: Any, b: Any) -> float:
    return float(np.linalg.norm(np.asarray(a - b)) / np.linalg.norm(np.asarray(b)))


if __name__ == "__main__":
    if AS_IT_COMES not in os.environ:
        from jaxdiff.config import set_up

        set_up([])
    serve(JaxSide())
