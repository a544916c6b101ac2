"""`jaxdiff.networks.convolution`: Winograd's is the usual one, however it is derived, and where it is taken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from jaxdiff.networks import UNet, functional
from jaxdiff.networks.backend import Machine, attention_form
from jaxdiff.networks.convolution import EDGES, Pads, by_winograd, convolve, winograd
from jaxdiff.networks.layers import Conv3x3

Convolution = Callable[[Array, Array], Array]


def drawn(*shape: int, seed: int = 0) -> Array:
    return jax.random.normal(jax.random.key(seed), shape)


X, KERNEL, DX, DKERNEL = (
    drawn(2, 8, 6, 5),
    drawn(3, 3, 5, 7, seed=1),
    drawn(2, 8, 6, 5, seed=2),
    drawn(3, 3, 5, 7, seed=3),
)


def usual(x: Array, kernel: Array) -> Array:
    return convolve(x, kernel, 1, EDGES)


def in_order(x: Array, kernel: Array) -> Array:
    return convolve(x, kernel, 1, EDGES, in_order=True)


def exact(x: Array, kernel: Array) -> np.ndarray:
    """The sum over the nine taps, in float64."""
    padded = np.pad(np.asarray(x, np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    height, width = x.shape[1:3]
    taps = [(i, j) for i in range(3) for j in range(3)]
    return np.asarray(
        sum(padded[:, i : i + height, j : j + width] @ np.asarray(kernel[i, j], np.float64) for i, j in taps)
    )


def cubed(convolution: Convolution) -> Callable[[Array, Array], Array]:
    return lambda x, kernel: (convolution(x, kernel) ** 3).sum()


@pytest.mark.parametrize("shape", [(1, 2, 2, 1, 1), (2, 8, 6, 5, 7), (3, 16, 16, 64, 32)])
def test_it_is_the_convolution(shape: tuple[int, ...]) -> None:
    *image, outputs = shape
    x, kernel = drawn(*image), drawn(3, 3, image[-1], outputs, seed=1)
    found, xla = (np.asarray(f(x, kernel)) - exact(x, kernel) for f in (jax.jit(winograd), usual))
    assert np.sqrt((found**2).mean()) <= 3 * np.sqrt((xla**2).mean()) + 1e-6


@pytest.mark.parametrize("form", [winograd, in_order])
@pytest.mark.parametrize(
    "use",
    [
        lambda f: jax.vjp(f, X, KERNEL)[1](drawn(2, 8, 6, 7)),
        lambda f: jax.grad(lambda x: cubed(f)(x, KERNEL))(X),
        lambda f: jax.grad(lambda kernel: cubed(f)(X, kernel))(KERNEL),
        lambda f: jax.jvp(f, (X, KERNEL), (DX, DKERNEL)),
        lambda f: jax.jvp(lambda kernel: f(X, kernel), (KERNEL,), (DKERNEL,)),
        lambda f: jax.jvp(jax.grad(cubed(f), argnums=(0, 1)), (X, KERNEL), (DX, DKERNEL)),
        lambda f: jax.grad(lambda x: (jax.grad(cubed(f))(x, KERNEL) ** 2).sum())(X),
        lambda f: jax.grad(jax.checkpoint(cubed(f)), argnums=(0, 1))(X, KERNEL),
        lambda f: jax.vmap(f, (0, None))(jnp.stack([X, DX]), KERNEL),
        lambda f: jax.vmap(f, (None, 0))(X, jnp.stack([KERNEL, DKERNEL])),
        lambda f: jax.vmap(jax.grad(lambda x: cubed(f)(x[None], KERNEL)))(X),
        lambda f: jax.jacfwd(lambda kernel: f(X, kernel).sum((0, 1, 2)))(KERNEL),
    ],
)
def test_all_derivatives_and_batches(use: Any, form: Convolution) -> None:
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5 * abs(b).max()), use(form), use(usual)
    )


@pytest.mark.parametrize(
    ("height", "width", "side", "stride", "padding"),
    [
        (8, 6, 3, 2, ((0, 1), (0, 1))),
        (8, 6, 3, 2, ((1, 1), (1, 1))),
        (7, 5, 3, 2, ((1, 1), (1, 1))),
        (9, 8, 3, 3, ((0, 0), (2, 1))),
        (8, 6, 2, 1, ((1, 0), (0, 1))),
        (5, 6, 1, 1, ((0, 0), (0, 0))),
    ],
)
def test_gradients_in_order_for_any_stride_and_padding(
    height: int, width: int, side: int, stride: int, padding: Pads
) -> None:
    """Against JAX's own, first and second."""
    x, kernel = drawn(2, height, width, 3), drawn(side, side, 3, 4, seed=1)
    directions = drawn(2, height, width, 3, seed=2), drawn(side, side, 3, 4, seed=3)

    def first_and_second(in_order: bool) -> Any:
        def convolution(x: Array, kernel: Array) -> Array:
            return convolve(x, kernel, stride, padding, in_order=in_order)

        return jax.jvp(jax.grad(cubed(convolution), argnums=(0, 1)), (x, kernel), directions)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5 * abs(b).max()),
        first_and_second(True),
        first_and_second(False),
    )


def axes_in_loop(gradient: Callable[..., Any], *inputs: Any) -> set[str]:
    """How the axes of the compiled convolutions stand, when the gradient is taken in a loop."""
    looped = jax.jit(lambda *inputs: jax.lax.map(lambda _: gradient(*inputs), jnp.arange(2)))
    program = looped.lower(*inputs).compile().as_text()
    assert program is not None
    lines = [line for line in program.splitlines() if " convolution(" in line]
    assert lines and all("/while/" in line for line in lines)
    return {line.split("dim_labels=")[1].split(",")[0] for line in lines}


def test_in_a_loop_only_axes_in_order_are_fast() -> None:
    """XLA on a CPU has its fast convolution for this order alone, and makes it itself only outside of loops."""
    order = {"b01f_01io->b01f"}
    assert axes_in_loop(jax.grad(cubed(usual), argnums=(0, 1)), X, KERNEL) > order
    assert axes_in_loop(jax.grad(cubed(in_order), argnums=(0, 1)), X, KERNEL) == order
    images, weights = drawn(4, 16, 16, 64), drawn(3, 3, 64, 64)
    assert axes_in_loop(jax.grad(cubed(winograd), argnums=(0, 1)), images, weights) == order


def test_a_whole_networks_gradient_is_in_order_in_a_loop() -> None:
    """Of a training step in micro-batches, which took 20 times as long, or of several steps at a call."""
    net = functional(UNet(in_channels=3, width=8, multipliers=(1, 2), blocks=1, image_size=8, attention_resolutions=()))
    params = jax.jit(net.init)(jax.random.key(0))
    x = drawn(2, 8, 8, 3)
    gradient = jax.grad(lambda params: (net.apply(params, x, 0.5) ** 2).sum())
    assert axes_in_loop(gradient, params) == {"b01f_01io->b01f"}


def test_derivatives_are_of_the_usual_convolution_and_of_no_zeros() -> None:
    """One convolution for the result and one for what moves: none of an unmoved kernel's zeros."""
    assert str(jax.make_jaxpr(jax.grad(lambda x: cubed(winograd)(x, KERNEL)))(X)).count("conv_general_dilated[") == 2
    assert (
        str(jax.make_jaxpr(lambda v: jax.jvp(lambda x: winograd(x, KERNEL), (X,), (v,)))(DX)).count("conv_general") == 2
    )
    assert "conv_general_dilated" not in str(jax.make_jaxpr(winograd)(X, KERNEL))


def test_odd_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"height and width are to be even, got \(7, 6\)"):
        winograd(drawn(1, 7, 6, 2), drawn(3, 3, 2, 2))


@pytest.mark.parametrize(
    ("taken", "platform", "shape", "outputs", "dtype"),
    [
        (True, "cpu", (16, 8, 8, 64), 64, "float32"),
        (True, "cpu", (1, 32, 32, 256), 128, "float32"),
        (False, "cuda", (16, 8, 8, 64), 64, "float32"),
        (False, "cpu", (16, 8, 8, 64), 64, "bfloat16"),
        (False, "cpu", (16, 8, 8, 63), 64, "float32"),
        (False, "cpu", (16, 8, 8, 64), 3, "float32"),
        (False, "cpu", (15, 8, 8, 64), 64, "float32"),
        (False, "cpu", (64, 7, 8, 64), 64, "float32"),
        (False, "cpu", (64, 8, 7, 64), 64, "float32"),
    ],
)
def test_where_it_is_taken(taken: bool, platform: str, shape: tuple[int, ...], outputs: int, dtype: Any) -> None:
    x = jax.ShapeDtypeStruct(shape, dtype)
    kernel = jax.ShapeDtypeStruct((3, 3, shape[-1], outputs), dtype)
    assert by_winograd(Machine(platform), x, kernel) == taken
    with attention_form("portable"):
        assert not by_winograd(Machine(platform), x, kernel)


def test_a_layer_takes_it_for_images_alone_and_not_for_gradients() -> None:
    conv, strided = Conv3x3(64, 64), Conv3x3(64, 64, stride=2)
    x = drawn(4, 16, 16, 64)
    assert "conv_general" not in str(jax.make_jaxpr(conv)(x)) and "dot_general" in str(jax.make_jaxpr(conv)(x))
    assert "conv_general" in str(jax.make_jaxpr(strided)(x)) and "conv_general" in str(
        jax.make_jaxpr(conv)(x[:, :2, :2])
    )
    assert "dot_general" not in str(jax.make_jaxpr(jax.grad(lambda x: conv(x).sum()))(x))
    with attention_form("plain"):
        np.testing.assert_allclose(jax.jit(conv)(x), usual(x, conv.kernel[...]), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(jax.jit(conv)(x), usual(x, conv.kernel[...]), rtol=1e-4, atol=1e-5)
