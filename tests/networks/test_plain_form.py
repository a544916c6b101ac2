"""The networks beside the forms that the benchmarks time them against: one function, one gradient, the same parameters.

The plain form is written with Flax's own layers (`benchmarks.speed.plain_flax`), so it checks ours independently; the
PyTorch twins are checked where torch is installed.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.speed.parameters import named, nested
from benchmarks.speed.plain_flax import load
from jaxdiff.networks import DiT, UNet, functional

RANDOM = np.random.default_rng(0)
X = RANDOM.standard_normal((3, 8, 8, 2)).astype(np.float32)
T = np.array([0.0, 17.0, 999.0], np.float32)
LABEL = np.array([0, 2, 3], np.int32)  # the last is "no class"

CONFIGS: dict[str, UNet | DiT] = {
    "ddpm": UNet(image_size=8, in_channels=2, width=16, multipliers=(1, 2), blocks=1, attention_resolutions=(4,)),
    "adm": UNet(
        image_size=8,
        in_channels=2,
        out_channels=4,
        width=16,
        multipliers=(1, 2),
        blocks=1,
        attention_resolutions=(8,),
        head_width=8,
        num_classes=3,
        scale_shift=True,
        residual_resampling=True,
        time_order="cos_sin",
        time_shift=0.0,
        norm_eps=1e-5,
    ),
    "padded": UNet(
        image_size=8,
        in_channels=2,
        width=16,
        multipliers=(1, 2),
        blocks=1,
        attention_resolutions=(),
        heads=2,
        downsample_padding="symmetric",
    ),
    "dit": DiT(in_channels=2, out_channels=4, width=16, depth=2, heads=2, num_classes=3, frequencies=16),
}
each = pytest.mark.parametrize("name", list(CONFIGS))


@functools.cache
def made(name):
    """Parameters of which none is zero, the output, and the gradient of its product with a fixed array."""
    net = functional(CONFIGS[name])
    noise = np.random.default_rng(1)
    fresh = jax.jit(net.init)(jax.random.key(0))
    params = jax.tree.map(lambda leaf: leaf + 0.1 * noise.standard_normal(leaf.shape).astype(np.float32), fresh)
    cond = {"label": jnp.asarray(LABEL)} if CONFIGS[name].num_classes else None
    return params, *both(lambda params: net.apply(params, jnp.asarray(X), T, cond), params)


def weights(shape):
    return np.random.default_rng(2).standard_normal(shape).astype(np.float32)


def both(call, params):
    def product(params):
        output = call(params)
        return (output * weights(output.shape)).sum(), output

    (_, output), gradient = jax.jit(jax.value_and_grad(product, has_aux=True))(params)
    return output, gradient


def assert_close(ours, theirs):
    difference = np.linalg.norm(np.asarray(ours, np.float64) - np.asarray(theirs, np.float64))
    assert difference <= 1e-4 * np.linalg.norm(theirs)


@each
def test_ours_is_the_plain_form(name):
    params, output, gradient = made(name)
    apply, plain = load(CONFIGS[name], params)
    label = jnp.asarray(LABEL) if CONFIGS[name].num_classes else None
    plain_output, plain_gradient = both(lambda p: apply(p, jnp.asarray(X), jnp.asarray(T), label), plain)
    assert output.shape == plain_output.shape
    assert_close(output, plain_output)
    jax.tree.map(assert_close, load(CONFIGS[name], gradient)[1], plain_gradient)


@each
def test_ours_is_the_torch_twin(name):
    torch = pytest.importorskip("torch")
    from benchmarks.speed.torch_dit import DiTFields, TorchDiT
    from benchmarks.speed.torch_layers import load
    from benchmarks.speed.torch_unet import TorchUNet, UNetFields

    params, output, gradient = made(name)
    fields = {key: value for key, value in vars(CONFIGS[name]).items() if key not in ("dtype", "remat")}

    def twin(values):
        is_unet = isinstance(CONFIGS[name], UNet)
        module = TorchUNet(UNetFields(**fields)) if is_unet else TorchDiT(DiTFields(**fields, image_size=8))
        load(module, values)
        return module

    module = twin(params)
    label = torch.from_numpy(LABEL).long() if CONFIGS[name].num_classes else None
    theirs = module(torch.from_numpy(X).permute(0, 3, 1, 2), torch.from_numpy(T), label).permute(0, 2, 3, 1)
    assert_close(output, theirs.detach().numpy())
    (theirs * torch.from_numpy(weights(theirs.shape))).sum().backward()
    laid_out = twin(gradient)
    for ours, parameter in zip(laid_out.parameters(), module.parameters(), strict=True):
        assert_close(ours.detach().numpy(), parameter.grad.numpy())


def test_another_network_is_refused():
    params, _, _ = made("ddpm")
    with pytest.raises(ValueError, match=r"middle_in.attention.attention.out.bias is in the other form only"):
        load(CONFIGS["ddpm"], {**params, "middle_in": {"block": params["middle_in"]["block"]}})
    arrays = named(params)
    with pytest.raises(ValueError, match=r"conv_in.bias has 17 values here and 16 there"):
        load(CONFIGS["ddpm"], nested(arrays | {"conv_in.bias": np.zeros(17, np.float32)}))
