"""The count of products against closed forms, and against XLA where nothing is a loop."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from jax import lax
from jax.experimental import pallas

from jaxdiff.networks import DiT, functional
from jaxdiff.networks.attention import attention
from jaxdiff.networks.backend import attention_form
from jaxdiff.train import Ema, create_state, loop, peak_flops, step_flops, train_step
from jaxdiff.train.flops import PEAKS, products
from tests.train.runs import go
from tests.train.standins import Data, Loss, Net
from tests.train.test_guard import _lines


def count(f: Any, *arguments: Any) -> float:
    return products(jax.make_jaxpr(f)(*arguments).jaxpr).flops


def zeros(*shape: int) -> jax.Array:
    return jnp.zeros(shape)


def convolve(x: jax.Array, w: jax.Array, stride: int = 1, groups: int = 1) -> jax.Array:
    names = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, w, (stride, stride), "SAME", dimension_numbers=names, feature_group_count=groups)


def test_a_dense_layer() -> None:
    layer = lambda w, x: jax.nn.silu(x @ w)  # noqa: E731
    forward = 2.0 * 5 * 7 * 11
    assert count(layer, zeros(7, 11), zeros(5, 7)) == forward
    both = jax.grad(lambda w, x: layer(w, x).sum(), argnums=(0, 1))
    assert count(both, zeros(7, 11), zeros(5, 7)) == 3 * forward
    assert count(jax.jit(jax.vmap(layer, (None, 0))), zeros(7, 11), zeros(3, 5, 7)) == 3 * forward


@pytest.mark.parametrize(("stride", "groups"), [(1, 1), (2, 1), (1, 3), (2, 3)])
def test_a_convolution(stride: int, groups: int) -> None:
    x, w = zeros(4, 8, 8, 6), zeros(3, 3, 6 // groups, 12)
    forward = 2.0 * 4 * (8 // stride) ** 2 * 12 * 9 * 6 / groups
    assert count(lambda x, w: convolve(x, w, stride, groups), x, w) == forward
    for argument in (0, 1):  # each cotangent is as much work again
        loss = jax.grad(lambda x, w: (convolve(x, w, stride, groups) ** 2).sum(), argument)
        assert count(loss, x, w) == 2 * forward


def test_attention_in_any_form() -> None:
    q, k = zeros(2, 3, 32, 8), zeros(2, 3, 64, 8)
    logits = 2.0 * 2 * 3 * 32 * 64 * 8
    gradient = jax.grad(lambda q, k, v: attention(q, k, v).sum(), argnums=(0, 1, 2))
    with attention_form("plain"):
        assert count(attention, q, k, k) == 2 * logits
    with attention_form("chunked"):
        assert step_flops(jax.jit(gradient), q, k, k) == 6 * logits
        assert count(gradient, q, k, k) > 6 * logits  # as it runs: what is computed again too


def test_loops_and_branches() -> None:
    a = zeros(3, 3)
    one = 2.0 * 27
    assert count(lambda a: lax.scan(lambda a, _: (a @ a, None), a, length=10)[0], a) == 10 * one
    twice = lambda a, _: lax.scan(lambda a, _: (a @ a @ a, None), a, length=5)  # noqa: E731
    assert count(lambda a: lax.scan(lambda a, _: (twice(a, None)[0], None), a, length=4)[0], a) == 40 * one
    assert count(lambda a: lax.fori_loop(0, 6, lambda i, a: a @ a, a), a) == 6 * one
    assert count(lambda a: lax.while_loop(lambda a: a.sum() < 3, lambda a: a + 1, a) @ a, a) == one
    assert count(lambda a: lax.cond(a.sum() > 0, lambda: a @ a @ a, lambda: a @ a), a) == 2 * one
    unknown = lambda a: lax.while_loop(lambda a: a.sum() < 3, lambda a: a @ a, a)  # noqa: E731
    assert math.isnan(count(lambda a: lax.cond(a.sum() > 0, lambda: a @ a, lambda: unknown(a)), a))


def test_custom_derivatives_kernels_and_shards() -> None:
    a = zeros(4, 4)
    one = 2.0 * 64

    @jax.custom_vjp
    def product(a: jax.Array) -> jax.Array:
        return a @ a

    product.defvjp(lambda a: (a @ a, a), lambda a, g: (g @ a.T + a.T @ g,))
    assert count(product, a) == one
    assert count(jax.grad(lambda a: product(a).sum()), a) == 3 * one

    @jax.custom_jvp
    def other(a: jax.Array) -> jax.Array:
        return a @ a

    other.defjvp(lambda p, t: (other(p[0]), t[0] @ p[0]))
    assert count(other, a) == one

    def kernel(x: Any, y: Any, out: Any) -> None:
        out[...] = x[...] @ y[...]

    block = pallas.BlockSpec((4, 4), lambda i: (i, 0))
    whole = pallas.BlockSpec((4, 4), lambda i: (0, 0))
    shape = jax.ShapeDtypeStruct((24, 4), jnp.float32)
    made = pallas.pallas_call(kernel, shape, grid=(6,), in_specs=[block, whole], out_specs=block)
    assert count(made, zeros(24, 4), a) == 6 * one

    mesh = jax.sharding.AbstractMesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.sharding.PartitionSpec("data")
    shared = jax.shard_map(lambda x, w: x @ w, mesh=mesh, in_specs=(spread, None), out_specs=spread)
    assert count(shared, zeros(32, 4), a) == 8 * one

    solve = lambda b: lax.custom_linear_solve(lambda x: a @ x, b, lambda _, b: a @ b, lambda _, b: a.T @ b)  # noqa: E731
    assert count(solve, a) == one


def test_what_is_computed_again_is_not_counted() -> None:
    config = DiT(in_channels=1, patch=2, width=16, depth=3, heads=2)
    x, t = zeros(2, 8, 8, 1), zeros(2)

    def gradient(remat: Any) -> Any:
        net = functional(dataclasses.replace(config, remat=remat))
        return jax.grad(lambda params: (net.apply(params, x, t) ** 2).sum())

    params = jax.eval_shape(functional(config).init, jax.random.key(0))
    plain = count(gradient("none"), params)
    for remat in ("full", "dots"):
        assert step_flops(gradient(remat), params) == plain
        assert count(gradient(remat), params) > plain


def test_it_is_xlas_count_where_nothing_is_a_loop() -> None:
    """XLA counts additions and the like too, which are few in a wide network."""
    net = functional(DiT(in_channels=1, patch=2, width=256, depth=1, heads=4))
    params = jax.eval_shape(net.init, jax.random.key(0))
    x, t = jax.ShapeDtypeStruct((8, 8, 8, 1), jnp.float32), jax.ShapeDtypeStruct((8,), jnp.float32)
    analysis: Any = jax.jit(net.apply).lower(params, x, t).compile().cost_analysis()
    assert count(net.apply, params, x, t) == pytest.approx(analysis["flops"], rel=0.03)


@pytest.mark.parametrize("accumulate", [1, 4])
def test_a_training_step(accumulate: int) -> None:
    net, loss, width, optimizer = Net(), Loss(), 16, optax.sgd(0.1)
    state = jax.eval_shape(lambda: create_state(net, optimizer, loss, jax.random.key(0)))
    parts = {"net": net, "loss": loss, "optimizer": optimizer, "ema": Ema(), "accumulate": accumulate}
    found = step_flops(lambda s, b: train_step(s, b, **parts), state, dict(next(Data())))
    assert found == 2.0 * 16 * (2 * 17 * width + 3 * width * 16)  # no cotangent of the image


def test_utilisation_is_of_the_devices_peak(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    go(tmp_path / "cpu", 4, log_every=2)
    assert [line["mfu"] for line in _lines(tmp_path / "cpu")] == [None, None]
    monkeypatch.setattr(loop, "peak_of", lambda devices: 1e9 * len(devices))
    for steps_per_call in (1, 2):
        folder = tmp_path / str(steps_per_call)
        go(folder, 4, log_every=2, steps_per_call=steps_per_call)
        for line in _lines(folder):
            steps_per_second = line["images_per_second"] / 16
            flops = 2.0 * 16 * (2 * 17 * 16 + 3 * 16 * 16)
            assert line["mfu"] == pytest.approx(steps_per_second * flops / 1e9, rel=1e-9)


def test_peaks_by_the_names_that_devices_have() -> None:
    kinds = {
        "NVIDIA H100 80GB HBM3": 989.4e12,
        "NVIDIA H100 PCIe": 756e12,
        "NVIDIA A100-SXM4-40GB": 312e12,
        "NVIDIA L4": 121e12,
        "NVIDIA L40S": 362e12,
        "Tesla T4": 65e12,
        "TPU v5 lite": 197e12,
        "TPU v5": 459e12,
        "TPU v6 lite": 918e12,
        "cpu": None,
        "NVIDIA GeForce RTX 4090": None,
    }
    assert {kind: peak_flops(kind) for kind in kinds} == kinds
    for n, (name, _) in enumerate(PEAKS):  # no row hides a later one
        assert not any(earlier in name for earlier, _ in PEAKS[:n]), name
