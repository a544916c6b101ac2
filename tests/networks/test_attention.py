"""Attention's forms: which one is taken where, and that every derivative of each is the plain one's."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from jaxdiff.networks import DiT, functional
from jaxdiff.networks.attention import attention, plain_attention
from jaxdiff.networks.backend import ATTENTION, LOGITS_BYTES, Machine, attention_form, choose_attention, present_machine
from jaxdiff.networks.chunked import chunked_attention
from jaxdiff.networks.kernels import cudnn_attention, flash_attention, with_all_derivatives

RANDOM = np.random.default_rng(0)


def arrays(*shapes, dtype=jnp.float32, spread=1.0):
    return tuple(jnp.asarray(spread * RANDOM.standard_normal(shape), dtype) for shape in shapes)


def softmax_attention(query, key, value):
    """In float64."""
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    logits = np.einsum("bhqd,bhkd->bhqk", query, key) / np.sqrt(query.shape[-1])
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return np.einsum("bhqk,bhkd->bhqd", weights / weights.sum(-1, keepdims=True), value)


# --- the choice


def chosen(machine, tokens, dtype="bfloat16", depth=64, keys=None, width=None, batch=8, heads=6):
    query, key, value = (
        jax.ShapeDtypeStruct((batch, heads, n, d), dtype)
        for n, d in ((tokens, depth), (keys or tokens, depth), (keys or tokens, width or depth))
    )
    return choose_attention(machine, query, key, value)


CPU, CUDA, TPU = Machine("cpu"), Machine("cuda", 8), Machine("tpu")


@pytest.mark.parametrize(
    ("form", "machine", "call"),
    [
        ("plain", CPU, {"tokens": 256}),
        ("plain", CPU, {"tokens": 256, "dtype": "float32"}),
        ("chunked", CPU, {"tokens": 16384}),
        ("chunked", CPU, {"tokens": 16384, "dtype": "float32"}),
        ("chunked", Machine("another"), {"tokens": 16384}),
        ("cudnn", CUDA, {"tokens": 256}),
        ("cudnn", CUDA, {"tokens": 16384}),
        ("cudnn", CUDA, {"tokens": 256, "dtype": "float16"}),
        ("cudnn", CUDA, {"tokens": 100, "keys": 77}),
        ("cudnn", CUDA, {"tokens": 256, "depth": 72}),
        ("plain", CUDA, {"tokens": 256, "dtype": "float32"}),
        ("chunked", CUDA, {"tokens": 16384, "dtype": "float32"}),
        ("plain", CUDA, {"tokens": 256, "depth": 68}),
        ("plain", CUDA, {"tokens": 256, "depth": 256, "heads": 1}),
        ("plain", CUDA, {"tokens": 256, "width": 32}),
        ("plain", CUDA, {"tokens": 16}),
        ("plain", Machine("gpu"), {"tokens": 256}),
        ("flash", TPU, {"tokens": 1024}),
        ("flash", TPU, {"tokens": 4096, "dtype": "float32", "depth": 128}),
        ("plain", TPU, {"tokens": 256}),
        ("plain", TPU, {"tokens": 1100, "batch": 1}),
        ("plain", TPU, {"tokens": 1024, "depth": 192, "batch": 1}),
        ("chunked", Machine("tpu", 4), {"tokens": 4096}),
    ],
)
def test_the_form_for_each_machine_and_shape(form, machine, call):
    assert chosen(machine, **call) == form


def test_the_limit_is_of_the_logits_bytes():
    most = int(np.sqrt(LOGITS_BYTES["cpu"] / 4))  # tokens
    assert chosen(CPU, most, batch=1, heads=1) == "plain"
    assert chosen(CPU, most + 1, batch=1, heads=1) == "chunked"
    assert chosen(CPU, most, batch=2, heads=1) == chosen(CPU, most, batch=1, heads=2) == "chunked"


def test_the_table_ends_with_the_form_that_is_always_right_and_gives_reasons():
    assert [row.form for row in ATTENTION] == ["cudnn", "flash", "chunked", "plain"]
    assert all(len(row.why) > 40 for row in ATTENTION)


def test_this_machine():
    assert present_machine() == Machine("cpu", jax.device_count())
    with jax.default_device(jax.devices()[0]):
        assert present_machine().platform == "cpu"


@pytest.mark.parametrize(
    ("capability", "platform"), [("9.0", "cuda"), ("8.0", "cuda"), ("7.5", "gpu"), ("gfx942", "gpu"), (None, "gpu")]
)
def test_cudnn_needs_a_capable_nvidia_gpu(monkeypatch, capability, platform):
    class Device:
        platform = "gpu"
        compute_capability = capability

    monkeypatch.setattr(jax, "devices", lambda platform: [Device()] * 3)
    monkeypatch.setattr(jax, "local_devices", lambda backend: [Device()])
    assert present_machine() == Machine(platform, 3)


def test_a_form_can_be_asked_for_and_is_traced_once_each():
    traced = []

    @jax.jit
    def run(x):
        traced.append(choose_attention(present_machine(), x, x, x))
        return attention(x, x, x)

    (x,) = arrays((1, 2, 6, 4))
    usual = run(x)
    for _ in range(2):
        with attention_form("chunked"):
            np.testing.assert_allclose(run(x), usual, rtol=1e-5)
    with attention_form("portable"):
        run(x)
        assert choose_attention(CUDA, *(jax.ShapeDtypeStruct((8, 6, 256, 64), jnp.bfloat16),) * 3) == "plain"
    run(x)
    assert traced == ["plain", "chunked", "plain"]
    wrong: Any = "fused"
    with pytest.raises(ValueError, match="plain, chunked, cudnn, flash, portable, got 'fused'"), attention_form(wrong):
        pass


def test_a_symbolic_batch_is_exported_and_runs():
    batch = jax.export.symbolic_shape("b")[0]
    struct = jax.ShapeDtypeStruct((batch, 2, 6, 4), jnp.float32)
    exported = jax.export.export(jax.jit(attention), platforms=("cpu", "cuda", "tpu"))(struct, struct, struct)
    q, k, v = arrays(*[(3, 2, 6, 4)] * 3)
    np.testing.assert_allclose(exported.call(q, k, v), plain_attention(q, k, v), rtol=1e-6)


# --- the chunked form


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-5), ("bfloat16", 3e-2)])
def test_chunked_is_exact_with_large_logits_and_blocks_that_do_not_divide(dtype, tolerance):
    query, key = arrays((2, 3, 50, 8), (2, 3, 70, 8), dtype=dtype, spread=5)
    (value,) = arrays((2, 3, 70, 4), dtype=dtype)
    blocks = [(16, 24), (64, 16), (50, 9), None]
    results = jax.jit(lambda *inputs: [chunked_attention(*inputs, blocks=b) for b in blocks])(query, key, value)
    for result in results:
        assert result.shape == (2, 3, 50, 4) and result.dtype == dtype
        np.testing.assert_allclose(np.asarray(result, np.float64), softmax_attention(query, key, value), atol=tolerance)


def test_chunked_survives_logits_that_overflow_without_the_maximum_and_grow_over_the_blocks():
    query = jnp.full((1, 1, 2, 1), 20.0)
    key = jnp.linspace(-40, 40, 12).reshape(1, 1, 12, 1)  # logits to +-800: exp overflows float32, and underflows
    (value,) = arrays((1, 1, 12, 3))
    for order in (slice(None), slice(None, None, -1)):
        result = chunked_attention(query, key[:, :, order], value[:, :, order], blocks=(2, 5))
        np.testing.assert_allclose(result, jnp.broadcast_to(value[:, :, -1:], result.shape), rtol=1e-6)


def derivatives(attend, primals, tangents, others):
    """Every way in which attention is differentiated here and in what is built on it."""

    def loss(*inputs):
        return jnp.sin(attend(*inputs)).sum()

    def tangent(*inputs):
        return jax.jvp(attend, inputs, tangents)[1]

    gradient = jax.grad(loss, argnums=(0, 1, 2))
    pair = tuple(jnp.stack(both) for both in zip(tangents, others, strict=True))
    push = jax.linearize(attend, *primals)[1]
    return {
        "value": attend(*primals),
        "jvp": tangent(*primals),
        "grad": gradient(*primals),
        "forward over reverse": jax.jvp(gradient, primals, tangents)[1],
        "reverse over forward": jax.grad(lambda *x: jnp.cos(jax.jvp(attend, x, tangents)[1]).sum(), (0, 1, 2))(
            *primals
        ),
        "reverse over reverse": jax.grad(
            lambda *x: sum((g * d).sum() for g, d in zip(gradient(*x), tangents, strict=True)), (0, 1, 2)
        )(*primals),
        "forward over forward": jax.jvp(tangent, primals, others)[1],
        "vmap of linearize": jax.vmap(push)(*pair),
        "vmap of grad": jax.vmap(gradient)(*pair),
        "checkpoint": jax.grad(jax.checkpoint(loss), argnums=(0, 1, 2))(*primals),
    }


@jax.custom_vjp
def toy(query, key, value):
    """Stands for a kernel: a reverse pass that keeps residuals of its own, and no forward one."""
    return plain_attention(query, key, value)


def toy_forward(*inputs):
    return plain_attention(*inputs), (inputs, jnp.arange(3))


def toy_backward(kept, cotangent):
    return jax.vjp(plain_attention, *kept[0])[1](cotangent)


toy.defvjp(toy_forward, toy_backward)
BLOCKED = functools.partial(chunked_attention, blocks=(3, 4))


@pytest.mark.parametrize("attend", [BLOCKED, with_all_derivatives(toy, BLOCKED)], ids=["chunked", "kernel"])
def test_every_derivative_is_the_plain_ones(attend):
    with jax.enable_x64(True):
        shapes = (2, 2, 5, 3), (2, 2, 7, 3), (2, 2, 7, 2)
        points = [arrays(*shapes, dtype=jnp.float64) for _ in range(3)]
        found, expected = (jax.jit(functools.partial(derivatives, form))(*points) for form in (attend, plain_attention))
        for name in expected:
            for ours, theirs in zip(jax.tree.leaves(found[name]), jax.tree.leaves(expected[name]), strict=True):
                np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-11, err_msg=name)


def test_a_kernel_alone_has_no_forward_pass():
    q, k, v = arrays(*[(1, 1, 3, 2)] * 3)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(toy, (q, k, v), (q, k, v))


def test_the_gradient_is_the_kernels_own_reverse_pass_and_the_tangent_is_not():
    """With a reverse pass that is three times what it should be, the gradient is too, and the tangent right."""

    @jax.custom_vjp
    def marked(*inputs):
        return plain_attention(*inputs)

    marked.defvjp(toy_forward, lambda kept, g: tuple(3 * x for x in toy_backward(kept, g)))
    attend = with_all_derivatives(marked, BLOCKED)
    q, k, v = arrays(*[(1, 2, 4, 2)] * 3)
    for ours, right in zip(
        jax.jit(jax.grad(lambda *x: attend(*x).sum(), (0, 1, 2)))(q, k, v),
        jax.grad(lambda *x: (plain_attention(*x) ** 1).sum(), (0, 1, 2))(q, k, v),
        strict=True,
    ):
        np.testing.assert_allclose(ours, 3 * right, atol=1e-5)
    tangent = jax.jit(lambda *x: jax.jvp(attend, x, x)[1])(q, k, v)
    np.testing.assert_allclose(tangent, jax.jvp(plain_attention, (q, k, v), (q, k, v))[1], rtol=1e-4, atol=1e-6)


def temporary_bytes(function, tokens):
    x = jax.ShapeDtypeStruct((1, 2, tokens, 16), jnp.float32)
    analysis = jax.jit(function).lower(x, x, x).compile().memory_analysis()
    assert analysis is not None
    return analysis.temp_size_in_bytes


@pytest.mark.parametrize("derivative", ["reverse", "forward over reverse"])
def test_chunked_memory_is_linear_in_the_tokens(derivative):
    def gradient(*inputs):
        return jax.grad(lambda *x: (chunked_attention(*x, blocks=(128, 128)) ** 2).sum(), (0, 1, 2))(*inputs)

    def function(*inputs):
        return gradient(*inputs) if derivative == "reverse" else jax.jvp(gradient, inputs, inputs)

    few, many = (temporary_bytes(function, tokens) for tokens in (1024, 4096))
    assert few < many < 5 * few
    assert many < 0.2 * 4 * 2 * 4096**2  # of the logits, of which the plain form holds at least one


def test_a_network_is_the_same_in_either_form():
    network = functional(DiT(in_channels=1, width=16, depth=2, heads=2, frequencies=8, remat="dots"))
    params = jax.jit(network.init)(jax.random.key(0))
    params = jax.tree.map(lambda p: p + 0.1 * jnp.asarray(RANDOM.standard_normal(p.shape), p.dtype), params)
    (x,) = arrays((2, 8, 8, 1))

    @jax.jit
    def run(params, x):
        def loss(params, x):
            return (network.apply(params, x, 0.5) ** 2).sum()

        return jax.value_and_grad(loss)(params, x), jax.jvp(lambda x: network.apply(params, x, 0.5), (x,), (x,))

    plain = run(params, x)
    with attention_form("chunked"):
        chunked = run(params, x)
    for ours, theirs in zip(jax.tree.leaves(chunked), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-3, atol=2e-4)


# --- the kernels, as far as a machine without them can tell


def lowered(function, platform, *inputs):
    return jax.jit(function).trace(*inputs).lower(lowering_platforms=(platform,)).as_text()


def passes(attend):
    """Value, gradient and tangent."""
    gradient = jax.grad(lambda *x: attend(*x).astype(jnp.float32).sum(), (0, 1, 2))
    return attend, gradient, lambda *x: jax.jvp(attend, x, x)[1], lambda *x: jax.jvp(gradient, x, x)[1]


def test_cudnn_is_lowered_for_a_gpu(monkeypatch):
    fused = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
    monkeypatch.setattr(fused, "check_cudnn_version", lambda: 91_000)  # what a machine with cuDNN answers
    x = jax.ShapeDtypeStruct((2, 4, 256, 72), jnp.bfloat16)
    value, gradient, tangent, second = (lowered(f, "cuda", x, x, x) for f in passes(cudnn_attention))
    forward, backward = "@__cudnn$fmhaSoftmax(", "@__cudnn$fmhaSoftmaxBackward("
    assert [text.count(forward) for text in (value, gradient, tangent, second)] == [1, 1, 1, 1]
    assert [text.count(backward) for text in (value, gradient, tangent, second)] == [0, 1, 0, 2]
    assert "256x256" in tangent and "256x256" not in value + gradient  # no logits where the kernels run


SHAPES = [(1024, 64, "bfloat16"), (1152, 72, "float32"), (2048, 128, "bfloat16")]


@pytest.mark.parametrize(("tokens", "depth", "dtype"), SHAPES)
def test_flash_is_lowered_for_a_tpu(tokens, depth, dtype):
    x = jax.ShapeDtypeStruct((1, 2, tokens, depth), dtype)
    value, gradient, tangent, _ = passes(flash_attention)
    counts = [lowered(f, "tpu", x, x, x).count("tpu_custom_call") for f in (value, gradient, tangent)]
    assert counts == [1, 3, 1]  # the gradient has a kernel for the keys' side and one for the queries'


def test_flash_computes_attention_and_its_gradient():
    """The TPU's kernels, interpreted."""
    q, k, v = arrays(*[(1, 1, 128, 8)] * 3, spread=2)
    with pltpu.force_tpu_interpret_mode():
        ours = jax.jit(lambda *x: [f(*x) for f in passes(flash_attention)[:2]])(q, k, v)
    plain = [f(q, k, v) for f in passes(plain_attention)[:2]]
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
