"""Masks of keys: the same attention as without the keys left out, in every form; what stands there changes nothing."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from jaxdiff.networks.attention import CrossAttention, SelfAttention, attention, plain_attention
from jaxdiff.networks.backend import attention_form
from jaxdiff.networks.chunked import chunked_attention
from jaxdiff.networks.kernels import cudnn_attention, flash_attention, with_all_derivatives
from jaxdiff.networks.layers import draw
from jaxdiff.networks.probe import works
from tests.networks.test_attention import BLOCKED, RANDOM, arrays, derivatives, lowered, passes

KEPT = np.array([0, 2, 3, 6])
MASK = np.zeros((2, 7), bool)
MASK[:, KEPT] = True


@jax.custom_vjp
def toy(query, key, value, mask):
    """Stands for a kernel: a reverse pass of its own, and no forward one."""
    return plain_attention(query, key, value, mask)


toy.defvjp(
    lambda *inputs: (plain_attention(*inputs), inputs), lambda inputs, g: jax.vjp(plain_attention, *inputs)[1](g)
)


def of_kept(query, key, value):
    return plain_attention(query, key[:, :, KEPT], value[:, :, KEPT])


FORMS: dict[str, Any] = {"plain": plain_attention, "chunked": BLOCKED, "kernel": with_all_derivatives(toy, BLOCKED)}


NIGHTLY = pytest.mark.nightly


@pytest.mark.parametrize(
    "name", ["plain", pytest.param("chunked", marks=NIGHTLY), pytest.param("kernel", marks=NIGHTLY)]
)
def test_every_derivative_is_that_of_attention_to_the_keys_kept(name):
    with jax.enable_x64(True):
        shapes = (2, 2, 5, 3), (2, 2, 7, 3), (2, 2, 7, 2)
        points = [arrays(*shapes, dtype=jnp.float64) for _ in range(3)]

        def masked(*inputs):
            return FORMS[name](*inputs, jnp.asarray(MASK, jnp.float64))

        found, expected = (jax.jit(functools.partial(derivatives, form))(*points) for form in (masked, of_kept))
        for each in expected:
            for ours, theirs in zip(jax.tree.leaves(found[each]), jax.tree.leaves(expected[each]), strict=True):
                np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-11, err_msg=each)


def outcome(attend, query, key, value, mask):
    """Value and gradients, as bits can tell them apart."""

    def run(*inputs):
        output, pull = jax.vjp(lambda *inputs: attend(*inputs, mask.astype(query.dtype)), *inputs)
        return output, *pull(jnp.cos(output))

    return [np.asarray(each) for each in jax.jit(run)(query, key, value)]


@pytest.mark.parametrize("name", ["plain", "chunked", "kernel", pytest.param("flash", marks=NIGHTLY)])
def test_a_sample_with_nothing_to_attend_to_is_zero_and_what_stands_in_padding_changes_no_bit(name):
    tokens = 128 if name == "flash" else 7
    attend = flash_attention if name == "flash" else FORMS[name]
    query, key, value = arrays((2, 2, tokens, 8), (2, 2, tokens, 8), (2, 2, tokens, 8))
    mask = jnp.asarray(RANDOM.random((2, tokens)) < 0.6).at[1].set(False).at[0, 0].set(True)
    with pltpu.force_tpu_interpret_mode():
        plain = outcome(attend, query, key, value, mask)
        for garbage in (1e30, jnp.nan):
            wrong = jnp.where(mask[:, None, :, None], 0.0, garbage)
            for ours, theirs in zip(outcome(attend, query, key + wrong, value - wrong, mask), plain, strict=True):
                np.testing.assert_array_equal(ours, theirs)
    expected = outcome(plain_attention, query[:1], key[:1], value[:1], mask[:1])
    for each, wanted in zip(plain, expected, strict=True):
        assert not each[1].any()
        np.testing.assert_allclose(each[:1], wanted, rtol=1e-4, atol=1e-5)
    for gradient in plain[2:]:
        assert not gradient[0][:, ~np.asarray(mask[0])].any()


def extended(x, axis, length):
    """With garbage at the end."""
    fill = [(0, 0)] * x.ndim
    fill[axis] = (0, length - x.shape[axis])
    return jnp.pad(x, fill, constant_values=7.0)


LENGTHS = (11, 12, 31, 64, 77, 128, 154, 300)


@pytest.mark.parametrize(("shape", "real"), [((1, 2, 9, 8), 11), ((2, 2, 64, 16), 11), ((3, 2, 40, 40), 120)])
def test_more_padding_gives_the_same_bits_on_a_cpu(shape, real):
    batch, heads, _, depth = shape
    query, key, value = arrays(shape, (batch, heads, real, depth), (batch, heads, real, depth))
    run = jax.jit(attention)
    outputs = [
        run(query, extended(key, 2, n), extended(value, 2, n), jnp.broadcast_to(jnp.arange(n) < real, (batch, n)))
        for n in LENGTHS
        if n >= real
    ]
    assert len(outputs) > 2
    for output in outputs[1:]:
        np.testing.assert_array_equal(output, outputs[0])


def test_more_padding_gives_the_same_bits_of_cross_attention_and_the_chunked_form():
    """The projections too, at widths and batches where XLA orders their sums by the number of rows."""
    layer = draw(CrossAttention(64, 384, heads=4), jax.random.key(0))
    x, context = arrays((1, 16, 64), (1, 9, 384))
    run = jax.jit(lambda context, mask: layer(x, context, mask))
    outputs = [run(extended(context, 1, n), jnp.arange(n)[None] < 9) for n in (9, 30, 40, 77, 150)]
    query, key, value = arrays((2, 2, 20, 8), (2, 2, 9, 8), (2, 2, 9, 8))
    chunked = jax.jit(functools.partial(chunked_attention, blocks=(20, 16)))
    blocks = [
        chunked(query, *(extended(y, 2, n) for y in (key, value)), jnp.broadcast_to(jnp.arange(n) < 9, (2, n)))
        for n in (9, 17, 40, 100)
    ]
    for first, *others in (outputs, blocks):
        for other in others:
            np.testing.assert_array_equal(other, first)


def test_self_attention_takes_a_mask_and_half_precision():
    layer = draw(SelfAttention(16, heads=2, dtype="bfloat16"), jax.random.key(0))
    (x,) = arrays((2, 6, 16))
    mask = jnp.asarray([[True] * 6, [True] * 4 + [False] * 2])
    output = layer(x, mask)
    assert output.dtype == jnp.bfloat16
    np.testing.assert_allclose(output[1, :4].astype(jnp.float32), layer(x[1:, :4])[0].astype(jnp.float32), atol=0.03)


def test_kernels_are_lowered_with_a_mask(monkeypatch):
    fused = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
    monkeypatch.setattr(fused, "check_cudnn_version", lambda: 91_000)
    x = jax.ShapeDtypeStruct((2, 4, 256, 64), jnp.bfloat16)
    mask = jnp.arange(256)[None] < jnp.array([[100], [0]])

    def masked(kernel):
        return lambda *inputs: kernel(*inputs, mask.astype(jnp.bfloat16))

    value, gradient, *_ = (lowered(f, "cuda", x, x, x) for f in passes(masked(cudnn_attention)))
    assert value.count("@__cudnn$fmhaScaleBiasSoftmax(") == 1
    assert gradient.count("@__cudnn$fmhaScaleBiasSoftmaxBackward(") == 1
    value, gradient, *_ = passes(masked(flash_attention))
    assert [lowered(f, "tpu", x, x, x).count("tpu_custom_call") for f in (value, gradient)] == [1, 3]


def test_a_kernel_that_ignores_its_mask_is_found_out(capfd):
    device, dtype = jax.local_devices()[0], jnp.dtype("float32")
    assert works("a", chunked_attention, plain_attention, device, 8, dtype, masked=True)
    assert not works(
        "b", lambda q, k, v, mask: plain_attention(q, k, v), plain_attention, device, 8, dtype, masked=True
    )
    assert "heads of 8, masked" in capfd.readouterr().err


def test_a_form_asked_for_is_not_filled():
    """Counting FLOPs sees what the model needs: no padding of the implementation's."""
    q, k = (jax.ShapeDtypeStruct((1, 1, n, 4), jnp.float32) for n in (5, 7))
    with attention_form("plain"):
        text = str(jax.make_jaxpr(attention)(q, k, k, jax.ShapeDtypeStruct((1, 7), bool)))
    filled = str(jax.make_jaxpr(attention)(q, k, k, jax.ShapeDtypeStruct((1, 7), bool)))
    assert "[1,1,5,7]" in text and "[1,1,5,7]" not in filled and "[1,1,5,896]" in filled  # 4096/5, to a multiple of 128
