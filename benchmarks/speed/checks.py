"""What must hold on an accelerator and cannot be tested without one. Each check has its tolerance; none is a timing.

What a machine cannot run is answered with the reason and no verdict, never as passed. Distances are ||a - b|| / ||b||
against float32 products that are not rounded (a GPU's default rounds them to TF32, a TPU's to bfloat16).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from benchmarks.speed.jax_side import EPS, PROCESS, started
from benchmarks.speed.large_cases import EVERY
from jaxdiff import DenoisingLoss, sample_keys, white_noise
from jaxdiff.networks import DiT, Functional, UNet, functional
from jaxdiff.networks.attention import FORMS, plain_attention
from jaxdiff.networks.backend import Call, choose_attention, present_machine
from jaxdiff.train import (
    batch_sharding,
    compile_step,
    make_mesh,
    make_optimizer,
    put_batch,
    state_template,
)
from jaxdiff.train.ema import Ema
from jaxdiff.train.step import Given

Tree = Any
DERIVATIVES = ("value", "gradient", "tangent", "tangent of gradient")
HALF = dict(zip(DERIVATIVES, (1e-2, 2e-2, 2e-2, 4e-2), strict=True)) | {"vmap": 1e-2}  # of bfloat16 forms
SINGLE = dict(zip(DERIVATIVES, (1e-5, 1e-5, 1e-5, 1e-4), strict=True)) | {"vmap": 1e-5}  # of float32 forms
ROUNDED = (0.01, 0.05)  # of losses and of gradients' norms in bfloat16, relative
ALIASED = 0.99  # of the state's bytes
STEPS = 10


class Found(NamedTuple):
    """A check's answer: ``passed`` is None where this machine cannot run it, and the note says why."""

    name: str
    value: float | None
    most: float | None
    passed: bool | None
    note: str = ""


def judged(name: str, value: float, most: float, note: str = "") -> Found:
    """Passed where the value is at most that; NaN is not.

    >>> judged("a", 0.5, 1.0).passed, judged("a", float("nan"), 1.0).passed
    (True, False)
    """
    return Found(name, value, most, bool(value <= most), note)


def absent(name: str, why: str) -> list[Found]:
    return [Found(name, None, None, None, f"not on this machine: {why}")]


def distance(a: Tree, b: Tree) -> float:
    """||a - b|| / ||b|| over all arrays of two trees, in float64.

    >>> distance([np.array([3.0, 4.5])], [np.array([3.0, 4.0])])
    0.1
    """
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    wide = [(np.asarray(x, np.float64), np.asarray(y, np.float64)) for x, y in pairs]
    far = sum(((x - y) ** 2).sum() for x, y in wide)
    return float(np.sqrt(far / sum((y**2).sum() for _, y in wide)))


# --- Attention


def derivatives(attend: Callable[..., Array], arrays: Sequence[Array], names: Sequence[str]) -> Tree:
    """What is asked of value, gradient, tangent, and tangent of the gradient.

    Args:
      attend: of query, key and value.
      arrays: three inputs, three tangents, a cotangent.
      names: what is asked.
    """
    inputs, tangents, cotangent = arrays[:3], arrays[3:6], arrays[6]

    def gradient(*inputs: Array) -> tuple[Array, ...]:
        return jax.vjp(attend, *inputs)[1](cotangent)

    found: dict[str, Tree] = {}
    found["value"], found["tangent"] = jax.jvp(attend, tuple(inputs), tuple(tangents))
    if "tangent of gradient" in names:
        found["gradient"], found["tangent of gradient"] = jax.jvp(gradient, tuple(inputs), tuple(tangents))
    else:
        found["gradient"] = gradient(*inputs)
    return found


def attention_checks(form: Any, dtype: str, shapes: Sequence[Sequence[int]], most: dict[str, float]) -> list[Found]:
    """A form against the plain one in float32 on the same numbers, at each shape (batch, heads, queries, keys, depth).

    ``most`` has what is compared with its tolerance: the four of `derivatives`, and "vmap".
    """
    found = []
    for shape in shapes:
        title = f"{form} {dtype} {'x'.join(map(str, shape))}"
        try:
            far = attention_distances(form, dtype, shape, list(most))
        except Exception as error:  # a kernel that refuses one shape must not hide the others
            reason = (str(error).strip().splitlines() or [""])[0][:200]
            found.append(Found(f"{title} runs", None, None, False, f"{type(error).__name__}: {reason}"))
            continue
        found += [judged(f"{title}: {name}", far[name], allowed) for name, allowed in most.items()]
    return found


def attention_distances(form: Any, dtype: str, shape: Sequence[int], names: Sequence[str]) -> dict[str, float]:
    """How far a form is from the plain one, by name."""
    batch, heads, queries, tokens, depth = shape
    sizes = [(batch, heads, n, depth) for n in (queries, tokens, tokens)] * 2 + [(batch, heads, queries, depth)]
    keys = jax.random.split(jax.random.key(queries + depth), len(sizes))
    drawn = [jax.random.normal(key, size, jnp.dtype(dtype)) for key, size in zip(keys, sizes, strict=True)]
    wide = [x.astype(jnp.float32) for x in drawn]
    far: dict[str, float] = {}
    asked = [name for name in names if name != "vmap"]
    precision = "highest" if dtype == "float32" else "default"
    if asked:
        with jax.default_matmul_precision("highest"):
            exact = jax.jit(lambda *x: derivatives(plain_attention, x, asked))(*wide)
        with jax.default_matmul_precision(precision):
            ours = jax.jit(lambda *x: derivatives(FORMS[form], x, asked))(*drawn)
        far = {name: distance(ours[name], exact[name]) for name in asked}
    if "vmap" in names:
        stacked = [[jnp.stack([x, x[::-1]]) for x in arrays[:3]] for arrays in (drawn, wide)]
        with jax.default_matmul_precision("highest"):
            right = jnp.stack([jax.jit(plain_attention)(*(x[i] for x in stacked[1])) for i in (0, 1)])
        with jax.default_matmul_precision(precision):
            far["vmap"] = distance(jax.jit(jax.vmap(FORMS[form]))(*stacked[0]), right)
    return far


def cudnn(quick: bool, names: Sequence[str] = DERIVATIVES, shapes: Sequence[Sequence[int]] = ()) -> list[Found]:
    """cuDNN's kernel: at DiT-XL/2's attention, or other shapes."""
    if present_machine().platform != "cuda":
        return absent("attention by cuDNN", "it is for NVIDIA GPUs of compute capability 8.0 and more")
    most = {name: HALF[name] for name in names}
    return attention_checks("cudnn", "bfloat16", shapes or [(2, 16, 256, 256, 72)], most)


def cudnn_elsewhere(quick: bool) -> list[Found]:
    """At ADM-64's longest, at the table's bounds, and across lengths; then under `jax.vmap`."""
    shapes = [(2, 3, 1024, 1024, 64), (2, 2, 64, 64, 128), (2, 2, 128, 320, 40)]
    found = cudnn(quick, ("value", "gradient", "tangent"), shapes)
    return found if found[0].passed is None else found + cudnn(quick, ("vmap",))


def pallas(quick: bool) -> list[Found]:
    """The Pallas kernel at the least length that the table gives it, in both precisions."""
    if present_machine().platform != "tpu":
        return absent("attention by Pallas", "its kernel is for TPUs")
    found = attention_checks("flash", "bfloat16", [(2, 4, 1024, 1024, 64)], HALF)
    return found + attention_checks("flash", "float32", [(2, 4, 1024, 1024, 128)], dict.fromkeys(SINGLE, 1e-3))


def chunked(quick: bool) -> list[Found]:
    """The form in blocks, which runs everywhere and gives the kernels their tangents."""
    if quick:
        first = {name: most for name, most in SINGLE.items() if name != "tangent of gradient"}
        return attention_checks("chunked", "float32", [(1, 1, 640, 640, 16)], first)
    shapes = [(2, 3, 1024, 1024, 64), (1, 2, 1536, 640, 40)]
    found = attention_checks("chunked", "float32", shapes, SINGLE)
    return found + attention_checks("chunked", "bfloat16", shapes[:1], HALF)


def choice(quick: bool) -> list[Found]:
    """A transformer in bfloat16 is compiled with the kernel that the table says."""
    machine = present_machine()
    if machine.platform != "cuda":
        return absent("fused attention in the compiled network", "the table has no kernel for its calls here")
    net = functional(DiT(width=384, depth=2, heads=6, dtype="bfloat16"))
    params = jax.jit(net.init)(jax.random.key(0))
    text = jax.jit(net.apply).lower(params, jnp.zeros((8, 32, 32, 4)), jnp.zeros(8)).compile().as_text() or ""
    call = Call(8, 6, 256, 256, 64, 64, jnp.bfloat16)
    query = jax.ShapeDtypeStruct(call[:3] + call[4:5], call.dtype)
    chosen = choose_attention(machine, query, query, query)
    note = f"the table says {chosen}"
    return [judged("fused attention is missing in the compiled network", float("fmha" not in text.lower()), 0.0, note)]


# --- Networks and training


def network(name: str, dtype: Any, quick: bool = False) -> tuple[Functional, tuple[int, int, int]]:
    """A small network of a case, and the shape of its images."""
    case = EVERY[name].of(quick, 0.0)
    small: dict[str, Any] = {"width": 32} if case.network == "unet" else {"width": 96, "depth": 2, "heads": 3}
    fields = case.fields | ({} if quick else small) | {"num_classes": None, "dtype": dtype}
    return functional(UNet(**fields) if case.network == "unet" else DiT(**fields)), case.shape


def shaken(net: Functional) -> Tree:
    """Parameters of which none is zero, the same on every machine."""
    random = np.random.default_rng(0)
    shapes = jax.eval_shape(net.init, jax.random.key(0))
    return jax.tree.map(lambda leaf: 0.05 * random.standard_normal(leaf.shape).astype(np.float32), shapes)


def against_cpu(quick: bool) -> list[Found]:
    """Networks and their gradients in float32, here and on this machine's own CPU."""
    title = "networks against the CPU"
    if jax.default_backend() == "cpu":
        return absent(title, "it is a CPU")
    try:
        cpu = jax.devices("cpu")[0]
    except RuntimeError as error:  # JAX_PLATFORMS leaves it out
        return absent(title, str(error).splitlines()[0])
    found = []
    for name in ("unet", "dit_s2"):
        net, shape = network(name, "float32")
        params = shaken(net)
        x = np.random.default_rng(1).standard_normal((2, *shape)).astype(np.float32)
        t = np.array([10.0, 700.0], np.float32)

        def both(params: Tree, x: Array, t: Array, net: Functional = net) -> Tree:
            out, pull = jax.vjp(lambda p: net.apply(p, x, t), params)
            return out, pull(out)[0]

        with jax.default_matmul_precision("highest"):
            here = jax.device_get(jax.jit(both)(params, x, t))
            with jax.default_device(cpu):
                there = jax.device_get(jax.jit(both)(*jax.device_put((params, x, t), cpu)))
        found.append(judged(f"{name} against the CPU: output", distance(here[0], there[0]), 1e-4))
        found.append(judged(f"{name} against the CPU: gradient", distance(here[1], there[1]), 1e-3))
    return found


def training(quick: bool) -> list[Found]:
    """Steps in bfloat16 against float32; the state's buffers are reused, and nothing more is held from step to step."""
    found = []
    for name in ("dit_s2",) if quick else ("dit_s2", "unet"):
        taken = {}
        for dtype in ("float32", "bfloat16"):
            with jax.default_matmul_precision("highest" if dtype == "float32" else "default"):
                taken[dtype], more = steps(name, dtype, quick)
            found += [row._replace(name=f"{name} in {dtype}: {row.name}") for row in more]
        apart = np.abs(taken["bfloat16"] / taken["float32"] - 1).max(axis=0)
        for what, far, most in zip(("losses", "gradients' norms"), apart.tolist(), ROUNDED, strict=True):
            found.append(judged(f"{name}: {what} of {STEPS} steps in bfloat16 against float32", far, most))
    return found


def steps(name: str, dtype: str, quick: bool) -> tuple[np.ndarray, list[Found]]:
    """Loss and gradient's norm of a few training steps, ``(STEPS, 2)``, and what is checked while they run."""
    net, shape = network(name, dtype, quick)
    mesh, key = make_mesh(data=1), jax.random.key(0)
    optimizer, schedule = make_optimizer(lr=1e-3, steps=1000)
    loss = DenoisingLoss(PROCESS, EPS)
    template = state_template(net, optimizer, loss, key, mesh)
    step: Any = compile_step(net=net, loss=loss, optimizer=optimizer, ema=Ema(), schedule=schedule, template=template)
    state = started(optimizer, loss, key, shaken(net), template)
    image = np.clip(np.random.default_rng(2).standard_normal((8, *shape)), -1, 1).astype(np.float32)
    batch = put_batch({"x": image}, batch_sharding(mesh))
    compiled = step.lower(state, batch).compile()
    found = []
    if (sizes := compiled.memory_analysis()) is not None:
        arrays = [
            leaf for leaf in jax.tree.leaves(template) if not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        ]
        whole = sum(leaf.size * leaf.dtype.itemsize for leaf in arrays)
        kept = 1 - sizes.alias_size_in_bytes / whole
        found.append(judged("share of the state that is not donated", kept, 1 - ALIASED))
    device, values = jax.devices()[0], []
    held: list[Any] = []
    for _ in range(STEPS):
        before = jax.tree.leaves(state.params)
        with jax.transfer_guard("disallow"):
            state, metrics = compiled(state, batch, Given())
        values.append((metrics["loss"], metrics["grad_norm"]))
        jax.block_until_ready(state)
        held.append((device.memory_stats() or {}).get("bytes_in_use"))
    alive = sum(not leaf.is_deleted() for leaf in before)
    found.append(judged("parameters of the step before that are still held", float(alive), 0.0))
    if None not in held:
        grown = float(held[-1] - held[2])
        found.append(judged("bytes gained from step 3 to the last", grown, 4096.0 * STEPS, "losses are kept"))
    return np.array(jax.device_get(values), np.float64), found


def noise(quick: bool) -> list[Found]:
    """Sample i starts from the same noise at any batch size, bit for bit, and from the CPU's up to rounding."""

    def drawn(batch: int) -> np.ndarray:
        keys = sample_keys(jax.random.key(3), 0, batch)
        return np.asarray(jax.jit(lambda keys: white_noise(keys, (8, 8, 3)))(keys))

    few, many = drawn(4), drawn(16)
    found = [judged("noise of a sample in two batches: numbers that differ", float((few != many[:4]).sum()), 0.0)]
    if jax.default_backend() == "cpu":
        return found + absent("noise against the CPU's", "it is a CPU")
    try:
        with jax.default_device(jax.devices("cpu")[0]):
            there = drawn(4)
    except RuntimeError as error:
        return found + absent("noise against the CPU's", str(error).splitlines()[0])
    return [*found, judged("noise against the CPU's: largest difference", float(np.abs(few - there).max()), 3e-5)]


CHECKS: dict[str, Callable[[bool], list[Found]]] = {
    "cudnn": cudnn,
    "choice": choice,
    "training": training,
    "cudnn_elsewhere": cudnn_elsewhere,
    "pallas": pallas,
    "chunked": chunked,
    "against_cpu": against_cpu,
    "noise": noise,
}
