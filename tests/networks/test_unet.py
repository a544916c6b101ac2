"""The U-Net: exact sizes, what each option does, and the invariances that every network here has."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxdiff.networks import (
    DiT,
    Image,
    UNet,
    adm,
    ddpm_256,
    ddpm_cifar10,
    functional,
    iddpm_cifar10,
    sd15,
    sd21,
    sdxl,
    sdxl_refiner,
)
from jaxdiff.networks.embedded import Embedded
from jaxdiff.networks.layers import draw
from jaxdiff.networks.unet_blocks import Resample, ResidualBlock

RANDOM = np.random.default_rng(0)


MASK, LEFT = Image("mask", (64, 64), 1, low=0.0), Image("left", (64, 64), 4, low=None, high=None)


def size(config):
    return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(functional(config).init, jax.random.key(0))))


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        (ddpm_cifar10(), 35_746_307),
        (ddpm_256(), 113_673_219),
        (iddpm_cifar10(), 52_546_438),
        (adm(64), 295_904_454),
        (adm(128), 421_529_606),
        (adm(256), 553_838_086),
        (adm(512), 558_997_638),
        (adm(64, null_class=True), 295_904_454 + 4 * 192),
        (sd15(), 859_520_964),
        (sd15(conditions=(*sd15().conditions, MASK, LEFT)), 859_520_964 + 5 * 9 * 320),  # inpainting: 9 channels
        (sd21(), 865_910_724),
        (sdxl(), 2_567_463_684),
        (sdxl_refiner(), 2_259_526_660),  # as diffusers 0.42.1 builds it
    ],
    ids=[
        *("ddpm-cifar10", "ddpm-256", "iddpm-cifar10", "adm-64", "adm-128", "adm-256", "adm-512", "adm-64-null"),
        *("sd15", "sd15-inpainting", "sd21", "sdxl", "sdxl-refiner"),
    ],
)
def test_published_sizes(config, parameters):
    assert size(config) == parameters


def test_published_options():
    ddpm, ours = ddpm_cifar10(), adm(256)
    assert (ddpm.downsample_padding, ddpm.time_order, ddpm.time_shift, ddpm.norm_eps) == (
        "bottom_right", "sin_cos", 1.0, 1e-6,
    )  # fmt: skip
    for each in (ours, sd15(), sd21(), sdxl()):
        assert (each.downsample_padding, each.time_order, each.time_shift, each.norm_eps) == (
            "symmetric", "cos_sin", 0.0, 1e-5,
        )  # fmt: skip


SMALL: dict[str, Any] = {"image_size": 8, "in_channels": 2, "width": 8, "multipliers": (1, 2), "blocks": 1}
CONFIGS: dict[str, UNet | DiT] = {
    "ddpm": UNet(**SMALL, attention_resolutions=(4,), num_classes=3, dropout=0.5),
    "adm": UNet(
        **SMALL,
        out_channels=4,
        attention_resolutions=(8, 4),
        head_width=4,
        num_classes=3,
        dropout=0.5,
        scale_shift=True,
        residual_resampling=True,
        downsample_padding="symmetric",
        time_order="cos_sin",
        time_shift=0.0,
        norm_eps=1e-5,
    ),
    "dit": DiT(in_channels=2, out_channels=4, width=16, depth=3, heads=2, num_classes=3, dropout=0.5, frequencies=16),
}


@functools.cache
def made(name):
    """A network, fresh parameters, and the same disturbed so that nothing that starts at zero stays there."""
    net = functional(CONFIGS[name])
    fresh = jax.jit(net.init)(jax.random.key(0))
    leaves, tree = jax.tree.flatten(fresh)
    disturbed = [leaf + 0.2 * RANDOM.standard_normal(leaf.shape).astype(np.float32) for leaf in leaves]
    return net, fresh, jax.tree.unflatten(tree, disturbed), jax.jit(net.apply)


X = jnp.asarray(RANDOM.standard_normal((3, 8, 8, 2)), jnp.float32)
T = jnp.array([0.0, 0.4, 250.0])
LABEL = jnp.array([0, 2, 1])
each = pytest.mark.parametrize("name", list(CONFIGS))


@each
def test_it_starts_as_zero(name):
    _, fresh, _, apply = made(name)
    output = apply(fresh, X, T, {"label": LABEL})
    assert output.dtype == jnp.float32
    assert output.shape == (3, 8, 8, CONFIGS[name].out_channels or 2)
    np.testing.assert_array_equal(output, 0)


@each
def test_gradient_reaches_every_parameter(name):
    net, _, params, _ = made(name)
    label = jnp.array([0, 1, 2, 3])  # every row of the table
    x = jnp.concatenate([X, X[:1]])

    def loss(params):
        return (net.apply(params, x, jnp.array([1.0, 2.0, 3.0, 4.0]), {"label": label}) ** 2).mean()

    for path, gradient in jax.tree.leaves_with_path(jax.jit(jax.grad(loss))(params)):
        assert float(abs(gradient).max()) > 0, jax.tree_util.keystr(path)
        assert bool(jnp.isfinite(gradient).all()), jax.tree_util.keystr(path)


@each
def test_time_and_class_tell_and_no_cond_is_the_null_class(name):
    _, _, params, apply = made(name)
    base = apply(params, X, T, {"label": LABEL})
    assert bool((abs(apply(params, X, T, {"label": (LABEL + 1) % 3}) - base).max((1, 2, 3)) > 1e-3).all())
    assert bool((abs(apply(params, X, T + 3, {"label": LABEL}) - base).max((1, 2, 3)) > 1e-4).all())
    null = apply(params, X, T, {"label": jnp.full(3, 3)})
    np.testing.assert_allclose(apply(params, X, T), null, atol=1e-5)


@each
def test_samples_are_independent_and_a_scalar_time_is_shared(name):
    net, _, params, apply = made(name)
    together = apply(params, X, T, {"label": LABEL})
    other = apply(params, X.at[0].multiply(-2), T.at[0].set(9.0), {"label": LABEL.at[0].set(1)})
    np.testing.assert_allclose(other[1:], together[1:], atol=1e-5)
    mapped = jax.jit(jax.vmap(lambda x, t, y: net.apply(params, x[None], t, {"label": y[None]})[0]))(X, T, LABEL)
    np.testing.assert_allclose(mapped, together, atol=2e-4, rtol=1e-4)
    np.testing.assert_allclose(apply(params, X, 0.4), apply(params, X, jnp.full(3, 0.4)), atol=1e-5)


@each
def test_dropout_is_a_key(name):
    _, _, params, apply = made(name)
    off, one = apply(params, X, T), apply(params, X, T, key=jax.random.key(1))
    np.testing.assert_array_equal(one, apply(params, X, T, key=jax.random.key(1)))
    assert float(abs(one - off).max()) > 1e-2
    assert float(abs(one - apply(params, X, T, key=jax.random.key(2))).max()) > 1e-2


@each
def test_bfloat16_is_close_to_float32_and_returns_float32(name):
    net, _, params, apply = made(name)
    half = functional(type(net.build)(**{**vars(net.build), "dtype": "bfloat16"}))
    assert jax.tree.map(jnp.shape, jax.eval_shape(half.init, jax.random.key(0))) == jax.tree.map(jnp.shape, params)
    expected = apply(params, X, T, {"label": LABEL})
    output = jax.jit(half.apply)(params, X, T, {"label": LABEL})
    assert output.dtype == jnp.float32
    error = float(jnp.sqrt(((output - expected) ** 2).mean() / (expected**2).mean()))
    assert 1e-5 < error < 0.05  # not equal either: it did compute in bfloat16


@each
def test_refusals_at_trace_time(name):
    net, fresh, _, _ = made(name)
    for x, t, cond, message in [
        (X[..., :1], T, None, "in_channels=2, got images of 1 channels"),
        (X[:, :7], T, None, "divisible by 2, got 7x8"),
        (X[0], T, None, "takes floating-point images"),
        (X.astype(jnp.uint8), T, None, "takes floating-point images"),
        (X, T[:2], None, r"one a sample, \(3,\); got shape \(2,\)"),
        (X, T, {"text": LABEL}, r"takes the conditions \['label'\], got cond with \['text'\]"),
        (X, T, {"label": LABEL[:1]}, r"cond\['label'\] has shape \(1,\), expected \(3,\): the batch first"),
    ]:
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(net.apply, fresh, x, t, cond)


@pytest.mark.parametrize("name", ["ddpm", "adm"])
def test_images_of_other_sizes_and_shapes(name):
    net, fresh, _, _ = made(name)
    for shape in [(1, 16, 16, 2), (2, 4, 10, 2)]:
        assert jax.eval_shape(net.apply, fresh, jnp.zeros(shape), 0.0).shape[:3] == shape[:3]


def test_an_unconditional_network_refuses_labels():
    net = functional(UNet(**SMALL, attention_resolutions=()))
    params = jax.eval_shape(net.init, jax.random.key(0))
    assert "label" not in params
    with pytest.raises(ValueError, match=r"this network is unconditional, got cond with \['label'\]"):
        jax.eval_shape(net.apply, params, X, T, {"label": LABEL})


@pytest.mark.parametrize("name", ["ddpm", "adm"])
@pytest.mark.parametrize("resample", [None, "up", "down"])
def test_a_residual_block_is_its_equations(name, resample):
    """Equations (1) to (3) of the module, written out in numpy."""
    config = CONFIGS[name]
    assert isinstance(config, UNet)
    block = draw(ResidualBlock(config, 8, 16, 0, resample), jax.random.key(0))
    params = jax.tree.map(
        lambda leaf: leaf + 0.3 * RANDOM.standard_normal(leaf.shape).astype(np.float32),
        nnx.to_pure_dict(nnx.state(block)),
    )
    nnx.update(block, nnx.state(nnx.merge(nnx.graphdef(block), params)))
    x, embedding = RANDOM.standard_normal((2, 4, 4, 8)), RANDOM.standard_normal((2, 32))

    def norm(layer, x):
        groups = x.reshape(2, -1, x.shape[-1] // 4, 4)  # four channels a group at these widths
        centred = groups - groups.mean((1, 3), keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean((1, 3), keepdims=True) + config.norm_eps)
        return scaled.reshape(x.shape) * layer["scale"] + layer["bias"]

    def conv(layer, x):
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        size = x.shape[1]
        taps = [padded[:, i : i + size, j : j + size] @ layer["kernel"][i, j] for i in range(3) for j in range(3)]
        return sum(taps) + layer["bias"]

    def change(x):
        if resample == "up":
            return x.repeat(2, 1).repeat(2, 2)
        return (
            x
            if resample is None
            else (x[:, ::2] + x[:, 1::2])[:, :, ::2] / 4 + (x[:, ::2] + x[:, 1::2])[:, :, 1::2] / 4
        )

    def silu(x):
        return x / (1 + np.exp(-x))

    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    h = conv(params["conv1"], change(silu(norm(params["norm1"], x))))
    told = (embedding @ params["embed"]["kernel"] + params["embed"]["bias"])[:, None, None]
    if config.scale_shift:
        h = norm(params["norm2"], h) * (1 + told[..., :16]) + told[..., 16:]
    else:
        h = norm(params["norm2"], h + told)
    h = conv(params["conv2"], silu(h)) + change(x) @ params["skip"]["kernel"] + params["skip"]["bias"]
    result = block(jnp.asarray(x, jnp.float32), Embedded(jnp.asarray(embedding, jnp.float32)), None)
    np.testing.assert_allclose(result, h, atol=2e-4, rtol=1e-4)


def test_padding_is_an_option_of_the_strided_convolutions():
    params = None
    outputs = {}
    for padding in ("bottom_right", "symmetric"):
        module = Resample(UNet(**SMALL, attention_resolutions=(), downsample_padding=padding), 2, "down")
        params = params or nnx.state(module)  # the same weights for both
        nnx.update(module, params)
        outputs[padding] = np.asarray(module(X, Embedded(0.0), None))
    assert outputs["bottom_right"].shape == outputs["symmetric"].shape == (3, 4, 4, 2)
    shifted = np.asarray(
        module(jnp.roll(X, -1, axis=(1, 2)), Embedded(0.0), None)
    )  # symmetric, reading one pixel down and right
    np.testing.assert_allclose(outputs["bottom_right"][:, 1:-1, 1:-1], shifted[:, 1:-1, 1:-1], atol=1e-5)
    assert abs(outputs["bottom_right"] - outputs["symmetric"]).max() > 0.1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention_resolutions": (5,)}, r"attention_resolutions=\[5\].*the levels have \[32, 16, 8, 4\]"),
        ({"image_size": 30}, "cannot be halved"),
        ({"width": 127}, "must be even"),
        ({"multipliers": (1, 0.3, 1, 1)}, "must be whole"),
        ({"heads": 3}, "256 channels.*heads=3"),
        ({"head_width": 100}, "head_width=100"),
        ({"dropout": 1.0}, r"in \[0, 1\)"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused_where_it_is_written(changes, message):
    with pytest.raises(ValueError, match=message):
        UNet(**changes)


def test_adm_of_another_size():
    with pytest.raises(ValueError, match="64, 128, 256, 512 pixels, got 96"):
        adm(96)  # type: ignore[arg-type]
