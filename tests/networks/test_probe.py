"""`jaxdiff.networks.probe`: a kernel is taken after it worked here, and named in one line where it does not."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.networks.attention import FORMS, attention, plain_attention
from jaxdiff.networks.backend import Machine, attention_form, choose_attention
from jaxdiff.networks.chunked import chunked_attention
from jaxdiff.networks.kernels import with_all_derivatives
from jaxdiff.networks.probe import TOKENS, TOLERANCE, _error, works

RANDOM = np.random.default_rng(0)
DEVICE = jax.local_devices()[0]
CPU, CUDA, TPU = Machine("cpu"), Machine("cuda", 8), Machine("tpu")


def arrays(*shapes, dtype):
    return tuple(jnp.asarray(RANDOM.standard_normal(shape), dtype) for shape in shapes)


def probed(attend):
    """Whether a kernel works here, what was said, and how often it was traced."""
    traced = []

    @jax.custom_vjp
    def kernel(*inputs):
        traced.append(inputs[0].shape)
        return attend(*inputs)

    def forward(*inputs):
        return kernel(*inputs), inputs

    kernel.defvjp(forward, lambda inputs, g: jax.vjp(attend, *inputs)[1](g))
    return with_all_derivatives(kernel), traced


def refused(*inputs):
    raise NotImplementedError("no cuDNN here\nand more lines")


@jax.custom_vjp
def ends_while_running(query, key, value):
    def fails(x):
        raise RuntimeError("the driver is older than the kernel")

    return jax.pure_callback(fails, jax.ShapeDtypeStruct(query.shape, query.dtype), query)


ends_while_running.defvjp(lambda *inputs: (ends_while_running(*inputs), inputs), lambda inputs, g: inputs)


@jax.custom_vjp
def wrong_gradient(*inputs):
    return plain_attention(*inputs)


wrong_gradient.defvjp(
    lambda *inputs: (plain_attention(*inputs), inputs),
    lambda inputs, g: tuple(1.1 * x for x in jax.vjp(plain_attention, *inputs)[1](g)),
)


@pytest.mark.parametrize(("dtype", "depth"), [("float32", 8), ("bfloat16", 72), ("float16", 72)])
def test_a_right_kernel_works_in_each_dtype(dtype, depth, capfd):
    """Rounding alone stays far under the tolerance."""
    assert works("cudnn", with_all_derivatives(plain_attention), plain_attention, DEVICE, depth, jnp.dtype(dtype))
    assert _error(chunked_attention, plain_attention, DEVICE, depth, jnp.dtype(dtype)) < TOLERANCE / 4
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("kernel", "why"),
    [
        (refused, "NotImplementedError: no cuDNN here;"),
        (ends_while_running, "RuntimeError: "),
        (lambda q, k, v: 1.1 * plain_attention(q, k, v), "its answer differs by 0.1 of the plain form's"),
        (lambda q, k, v: plain_attention(q, k[:, :, :-64], v[:, :, :-64]), "its answer differs by 0."),
        (lambda q, k, v: plain_attention(q, k, v).at[0, 0, 0, 0].set(jnp.nan), "its answer differs by nan"),
        (lambda q, k, v: plain_attention(q, k, v)[:, :, 1:], "Error: "),
        (with_all_derivatives(wrong_gradient), "its answer differs by 0.1 of"),
    ],
)
def test_a_kernel_that_fails_in_any_way_is_named_in_one_line(kernel, why, capfd):
    for _ in range(2):  # the second time it is known
        assert not works("cudnn", kernel, plain_attention, DEVICE, 8, jnp.dtype("float32"))
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("WARNING")]
    (line,) = said
    assert line.startswith("WARNING: attention by the cudnn kernel does not work on cpu (float32, heads of 8): ")
    assert why in line and line.endswith("; a form without it is taken")


@pytest.mark.parametrize("kernel", ["works", "fails"])
def test_attention_takes_a_kernel_after_it_worked_and_else_the_next_form(kernel, monkeypatch, capfd):
    """Within jit, vmap, scan and grad, where the probe must know nothing of the trace."""
    taken, traced = probed(plain_attention if kernel == "works" else refused)
    monkeypatch.setitem(FORMS, "cudnn", taken)
    monkeypatch.setattr("jaxdiff.networks.attention.present_machine", lambda: CUDA)
    q, k, v = arrays(*[(2, 1, 2, 64, 8)] * 3, dtype=jnp.bfloat16)

    @jax.jit
    def loss(q):
        def step(total, _):
            return total + jax.vmap(attention)(q, k, v).astype(jnp.float32).sum(), None

        return jax.lax.scan(step, 0.0, None, length=2)[0]

    with jax.transfer_guard("disallow"):
        gradient = jax.jit(jax.grad(loss))(q)
    with attention_form("plain"):
        expected = jax.grad(loss)(q)
    found, right = (np.asarray(x, np.float32) for x in (gradient, expected))
    np.testing.assert_allclose(found, right, atol=2e-2)
    probes = [shape for shape in traced if shape == (1, 2, TOKENS, 8)]
    used = [shape for shape in traced if shape == (1, 2, 64, 8)]
    assert probes and bool(used) == (kernel == "works")
    before = len(traced)
    jax.jit(lambda q: attention(q, q, q))(q[0])  # another trace asks for no other probe
    assert [shape for shape in traced[before:] if shape == (1, 2, TOKENS, 8)] == []
    said = capfd.readouterr().err.count("WARNING")
    assert said == (0 if kernel == "works" else 1)


def test_kernels_fall_to_the_form_that_the_table_has_next():
    short, long = (jax.ShapeDtypeStruct((8, 6, tokens, 64), jnp.bfloat16) for tokens in (256, 16384))
    asked: list[str] = []

    def none(form):
        asked.append(form)
        return False

    assert [choose_attention(CUDA, x, x, x, none) for x in (short, long)] == ["plain", "chunked"]
    assert [choose_attention(TPU, x, x, x, none) for x in (short, long)] == ["plain", "chunked"]
    assert [choose_attention(CPU, x, x, x, none) for x in (short, long)] == ["plain", "chunked"]
    assert asked == ["cudnn", "cudnn", "flash"]
    with attention_form("portable"):
        assert choose_attention(CUDA, long, long, long, none) == "chunked"
    with attention_form("cudnn"):  # who asks for a form gets it, with its own errors
        assert choose_attention(CUDA, long, long, long, none) == "cudnn"
    assert len(asked) == 3
