"""Normalisation, attention, embeddings, resampling and dropout against closed forms in float64."""

from __future__ import annotations

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxdiff.networks import MLP, DiT, UNet, functional
from jaxdiff.networks.attention import SelfAttention, attention
from jaxdiff.networks.embeddings import LabelEmbedding, position_embedding, timestep_embedding
from jaxdiff.networks.layers import (
    Conv3x3,
    GroupNorm,
    Linear,
    downsample,
    draw,
    dropout,
    group_count,
    layer_norm,
    upsample,
)

RANDOM = np.random.default_rng(0)


def normalised(x, groups, eps):
    """Group normalisation in float64."""
    wide = np.asarray(x, np.float64).reshape(x.shape[0], -1, groups, x.shape[-1] // groups)
    mean, variance = wide.mean((1, 3), keepdims=True), wide.var((1, 3), keepdims=True)
    return ((wide - mean) / np.sqrt(variance + eps)).reshape(x.shape)


@pytest.mark.parametrize(("offset", "spread"), [(0.0, 1.0), (1e4, 1.0), (-300.0, 1e-2), (0.0, 1e3)])
def test_group_norm_is_accurate_wherever_the_data_lie(offset, spread):
    x = jnp.asarray(offset + spread * RANDOM.standard_normal((3, 16, 8, 32)), jnp.float32)
    norm = GroupNorm(32, groups=8, eps=1e-6)
    np.testing.assert_allclose(norm(x), normalised(x, 8, 1e-6), atol=2e-5)


def test_group_norm_of_channels_with_means_far_apart_and_an_outlier_at_the_corner():
    data = RANDOM.standard_normal((2, 8, 8, 16)) + 1e3 * np.arange(16)
    data[:, 0, 0, 0] = -1e5
    x = jnp.asarray(data, jnp.float32)
    np.testing.assert_allclose(GroupNorm(16, groups=4)(x), normalised(x, 4, 1e-6), atol=2e-5)


def test_group_norm_of_a_constant_is_zero():
    assert float(abs(GroupNorm(8)(jnp.full((1, 4, 4, 8), 0.1))).max()) < 1e-3


def test_group_norm_gradient_is_that_of_its_definition():
    norm = GroupNorm(8, groups=2)
    x = jnp.asarray(5 + RANDOM.standard_normal((2, 3, 3, 8)), jnp.float32)
    weight = jnp.asarray(RANDOM.standard_normal(x.shape), jnp.float32)

    def plain(x):
        wide = x.reshape(2, 9, 2, 4)
        centred = wide - wide.mean((1, 3), keepdims=True)
        return (centred / jnp.sqrt((centred**2).mean((1, 3), keepdims=True) + 1e-6)).reshape(x.shape)

    ours = jax.grad(lambda x: (norm(x) * weight).sum())(x)
    np.testing.assert_allclose(ours, jax.grad(lambda x: (plain(x) * weight).sum())(x), atol=1e-5)


def test_group_norm_modulates_after_its_gain_and_bias():
    norm = GroupNorm(4, groups=1)
    norm.scale[...] = jnp.array([1.0, 2.0, 3.0, 4.0])
    norm.bias[...] = jnp.arange(4.0)
    x = jnp.asarray(RANDOM.standard_normal((2, 4, 4, 4)), jnp.float32)
    scale, shift = jnp.asarray(RANDOM.standard_normal((2, 2, 4)), jnp.float32)
    expected = norm(x) * (1 + scale[:, None, None, :]) + shift[:, None, None, :]
    np.testing.assert_allclose(norm(x, scale, shift), expected, atol=1e-5)
    assert norm(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def test_group_count_is_edms_and_the_published_one_at_published_widths():
    assert [group_count(c, 32) for c in (128, 192, 256, 384, 576, 1024)] == [32] * 6
    assert [group_count(c, 32) for c in (4, 8, 16, 24, 64)] == [1, 2, 4, 6, 16]


def test_layer_norm():
    x = 1e3 + RANDOM.standard_normal((2, 5, 16))
    expected = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(layer_norm(jnp.asarray(x, jnp.float32), 1e-6), expected, atol=1e-3)


def softmax_attention(query, key, value):
    query, key, value = (np.asarray(a, np.float64) for a in (query, key, value))
    logits = np.einsum("bhqd,bhkd->bhqk", query, key) / np.sqrt(query.shape[-1])
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return np.einsum("bhqk,bhkd->bhqd", weights / weights.sum(-1, keepdims=True), value)


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 2e-5), (jnp.bfloat16, 3e-2)])
def test_attention_is_softmax_attention_also_with_large_logits_and_other_lengths(dtype, tolerance):
    query = jnp.asarray(5 * RANDOM.standard_normal((2, 3, 7, 8)), dtype)
    key = jnp.asarray(5 * RANDOM.standard_normal((2, 3, 5, 8)), dtype)
    value = jnp.asarray(RANDOM.standard_normal((2, 3, 5, 4)), dtype)
    result = attention(query, key, value)
    assert result.shape == (2, 3, 7, 4) and result.dtype == dtype
    np.testing.assert_allclose(np.asarray(result, np.float64), softmax_attention(query, key, value), atol=tolerance)


def test_self_attention_lays_its_projection_out_as_query_key_value_then_heads():
    layer = draw(SelfAttention(12, heads=3), jax.random.key(1))
    x = jnp.asarray(RANDOM.standard_normal((2, 5, 12)), jnp.float32)
    parts = [np.asarray(x @ layer.qkv.kernel[:, i]) for i in range(3)]
    heads = [part.reshape(2, 5, 3, 4).transpose(0, 2, 1, 3) for part in parts]
    mixed = softmax_attention(*heads).transpose(0, 2, 1, 3).reshape(2, 5, 12)
    np.testing.assert_allclose(layer(x), mixed @ np.asarray(layer.out.kernel[...]), atol=1e-5)


def test_timestep_embedding_in_both_orders():
    t = np.array([0.0, 0.5, 17.0, 999.0])
    ddpm = np.stack([[f(time * 10_000 ** (-i / 3)) for f in (np.sin, np.cos) for i in range(4)] for time in t])
    adm = np.stack([[f(time * 10_000 ** (-i / 4)) for f in (np.cos, np.sin) for i in range(4)] for time in t])
    time = jnp.asarray(t, jnp.float32)
    np.testing.assert_allclose(timestep_embedding(time, 8, order="sin_cos", shift=1.0), ddpm, atol=1e-4)
    np.testing.assert_allclose(timestep_embedding(time, 8, order="cos_sin", shift=0.0), adm, atol=1e-4)


def test_position_embedding_of_a_rectangle_has_the_column_first():
    table = position_embedding(3, 5, 8)
    assert table.shape == (15, 8) and table.dtype == np.float32
    for row in range(3):
        for column in range(5):
            omega = np.array([1.0, 0.01])
            expected = [f(omega * place) for place in (column, row) for f in (np.sin, np.cos)]
            np.testing.assert_allclose(table[row * 5 + column], np.concatenate(expected), atol=1e-6)
    assert len(np.unique(table.round(6), axis=0)) == 15


def test_label_embedding():
    embed = draw(LabelEmbedding(3, 4), jax.random.key(0))
    table = embed.embedding[...]
    np.testing.assert_array_equal(embed(jnp.array([2, 3])), table[2:4])
    assert bool(jnp.isnan(embed(jnp.array([4, -1]))).all())  # a negative one is not taken from the end
    assert LabelEmbedding(3, 4, null=False).embedding.shape == (3, 4)


def test_weights_are_drawn_from_their_distributions_and_none_twice():
    class Three(nnx.Module):
        def __init__(self):
            self.one, self.two, self.table = Linear(200, 100), Conv3x3(20, 60), LabelEmbedding(999, 20)

    three = Three()
    jitted = jax.jit(lambda key: nnx.to_pure_dict(nnx.state(draw(three, key))))
    params = jitted(jax.random.key(0))
    one, two, table = params["one"]["kernel"], params["two"]["kernel"], params["table"]["embedding"]
    for weight, limit in [(one, (6 / 300) ** 0.5), (two, (6 / (9 * 80)) ** 0.5)]:
        assert 0.999 < float(abs(weight).max()) / limit <= 1
        assert abs(float(weight.mean())) < 0.02 * limit
        assert abs(float(weight.std()) / limit * 3**0.5 - 1) < 0.02
    assert abs(float(table.mean())) < 0.03 and abs(float(table.std()) - 1) < 0.03 and float(abs(table).max()) > 3
    assert len(np.unique(np.concatenate([one.ravel() / one.max(), two.ravel() / two.max()]))) > 30_000
    assert not params["one"]["bias"].any()
    assert bool((jitted(jax.random.key(1))["one"]["kernel"] != one).all())


@pytest.mark.parametrize(
    ("network", "own"),
    [
        (DiT(in_channels=40, width=128, depth=2, heads=2, num_classes=150), {"time": 0.02**2, "label": 0.02**2}),
        (UNet(16, 40, width=40, multipliers=(1, 2), attention_resolutions=(8,), num_classes=150), {"label": 1.0}),
        (MLP(40, width=128, fourier=40, fourier_scale=0.25, num_classes=150), {"label": 1.0, "fourier": 0.25**2}),
    ],
    ids=["dit", "unet", "mlp"],
)
def test_every_weight_has_mean_zero_and_the_variance_of_its_initialiser(network, own):
    """Glorot's 2 / (fan_in + fan_out) but for those named in ``own``; the last of each residual branch is zero."""
    params = jax.jit(functional(network).init)(jax.random.key(4))
    drawn = 0
    for path, weight in jax.tree_util.tree_leaves_with_path(params):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        shape = weight.shape[1:] if name.startswith("blocks/") and isinstance(network, DiT) else weight.shape
        if weight.size < 1000 or not weight.any():
            last = r"bias|scale|modulation|conv2|middle_in/attention/.*out|/attention/attention/out|^(conv_)?out"
            assert re.search(last, name), name
            continue
        if "qkv" in name:  # (width, 3, width): one matrix of 3 width columns
            shape = (shape[0], 3 * shape[2])
        fans = math.prod(shape[:-2]) * (shape[-2] + shape[-1])
        variance = own.get(name.split("/")[0], 2 / fans)
        tolerance = 5 / math.sqrt(weight.size)  # a mean's deviation is 1 / sqrt(n), a variance's at most sqrt(2 / n)
        assert abs(float(weight.mean())) < tolerance * math.sqrt(variance), name
        assert abs(float(weight.var()) / variance - 1) < math.sqrt(2) * tolerance, name
        drawn += 1
    assert drawn >= 8


def test_paddings_of_the_strided_convolution():
    """With one weight on the tap at (0, 0), the output shows where each mode starts to read."""
    x = jnp.arange(1.0, 17).reshape(1, 4, 4, 1)
    first = jnp.zeros((3, 3, 1, 1)).at[0, 0].set(1)
    last = jnp.zeros((3, 3, 1, 1)).at[2, 2].set(1)
    expected = {
        ("bottom_right", "first"): [[1, 3], [9, 11]],
        ("bottom_right", "last"): [[11, 0], [0, 0]],
        ("symmetric", "first"): [[0, 0], [0, 6]],
        ("symmetric", "last"): [[6, 8], [14, 16]],
    }
    for (padding, tap), values in expected.items():
        conv = Conv3x3(1, 1, stride=2, padding=padding)  # type: ignore[arg-type]
        conv.kernel[...] = first if tap == "first" else last
        np.testing.assert_array_equal(conv(x)[0, :, :, 0], np.array(values))


def test_bottom_right_padding_is_tensorflows_same():
    conv = draw(Conv3x3(3, 4, stride=2, padding="bottom_right"), jax.random.key(0))
    x = jnp.asarray(RANDOM.standard_normal((2, 8, 6, 3)), jnp.float32)
    same = jax.lax.conv_general_dilated(x, conv.kernel[...], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    np.testing.assert_allclose(conv(x), same, atol=1e-6)


def test_resampling():
    x = jnp.asarray(RANDOM.standard_normal((2, 4, 6, 3)), jnp.float32)
    np.testing.assert_array_equal(upsample(x), np.kron(x, np.ones((1, 2, 2, 1))).astype(np.float32))
    np.testing.assert_allclose(downsample(upsample(x)), x, atol=1e-6)


def test_dropout_keeps_the_mean_and_is_off_without_a_key():
    x = jnp.ones((1000, 20))
    dropped = dropout(x, 0.25, jax.random.key(0))
    assert set(np.unique(dropped).round(4)) == {np.float32(0), np.float32(1.3333)}
    assert abs(float(dropped.mean()) - 1) < 0.02
    assert dropout(x, 0.25, None) is x and dropout(x, 0.0, jax.random.key(0)) is x
