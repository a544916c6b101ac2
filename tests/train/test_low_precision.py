"""Adam's moments in 16 and 8 bits: rounding without bias, the stall that it prevents, sizes, what training loses."""

from __future__ import annotations

import json
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiff.train import decays, make_optimizer, scale_by_short_adam
from jaxdiff.train.low_precision import (
    SIGNED,
    UNSIGNED,
    block_of,
    from_blocks,
    in_blocks,
    rounding_bits,
    to_bfloat16,
    to_blocks,
)
from tests.train.runs import go

RANDOM = np.random.default_rng(0)
SHORT = ("bfloat16", "int8")


def test_bits_are_uniform_and_unlike_each_other() -> None:
    """Each of the 32 bits is fair, and no two of step, leaf and neighbouring place agree more than by chance."""
    n, shape = 2**16, (256, 256)
    draw = jax.jit(lambda step, leaf: rounding_bits(shape, step, leaf), static_argnums=1)
    a, next_step, next_leaf = draw(1, 0), draw(2, 0), draw(1, 1)
    for other in (jnp.zeros(shape, jnp.uint32), next_step, next_leaf, jnp.roll(a, 1, 0), jnp.roll(a, 1, 1), a >> 16):
        differ = np.unpackbits(np.asarray(a ^ other).view(np.uint8).reshape(n, 4), axis=1, bitorder="little")
        differ = differ[:, :16]  # the bits that rounding uses
        assert (abs(differ.mean(0) - 0.5) < 5 * 0.5 / np.sqrt(n)).all()
    assert (draw(1, 0) == a).all()


def test_rounding_to_bfloat16_is_to_a_neighbour_without_bias() -> None:
    x = jnp.asarray(np.exp(RANDOM.uniform(-60, 60, 4096)) * RANDOM.choice([-1, 1], 4096), jnp.float32)
    spacing = 2.0 ** (np.floor(np.log2(abs(np.asarray(x)))) - 7)
    rounds = jax.jit(jax.vmap(lambda n: to_bfloat16(x, rounding_bits(x.shape, n, 0)).astype(jnp.float32)))
    error = (np.asarray(rounds(jnp.arange(256)), np.float64) - np.asarray(x, np.float64)) / spacing
    assert abs(error).max() < 1
    assert abs(error.mean(0)).max() < 5 * 0.5 / 16  # 256 draws, each of standard deviation at most a half
    assert abs(error.mean()) < 5 * 0.5 / np.sqrt(error.size)
    exact = x.astype(jnp.bfloat16).astype(jnp.float32)
    np.testing.assert_array_equal(to_bfloat16(exact, rounding_bits(x.shape, 3, 0)).astype(jnp.float32), exact)
    odd = jnp.array([jnp.nan, jnp.inf, -jnp.inf, 0.0])
    np.testing.assert_array_equal(to_bfloat16(odd, jnp.full(4, 0xFFFF, jnp.uint32)).astype(jnp.float32), odd)


@pytest.mark.parametrize("signed", [True, False])
def test_rounding_to_8_bits_is_to_a_neighbour_without_bias(signed: bool) -> None:
    sizes = np.exp(RANDOM.uniform(np.log(1e-4), 0, (16, 256))) * np.logspace(-20, 20, 16)[:, None]
    x = jnp.asarray(sizes * (RANDOM.choice([-1, 1], sizes.shape) if signed else 1), jnp.float32)
    spacing = np.expm1((SIGNED if signed else UNSIGNED).spacing)
    store = lambda n: from_blocks(to_blocks(x, rounding_bits(x.shape, n, 0), signed=signed))  # noqa: E731
    error = np.asarray(jax.jit(jax.vmap(store))(jnp.arange(256)), np.float64) / np.asarray(x, np.float64) - 1
    assert abs(error).max() < spacing * 1.001
    assert abs(error.mean(0)).max() < 5 * 0.5 * spacing / 16
    assert abs(error.mean()) < 5 * 0.5 * spacing / np.sqrt(error.size)
    largest = abs(x) == abs(x).max(1, keepdims=True)
    assert abs(error[:, np.asarray(largest)]).max() < 1e-6  # a block's largest value is exact


def test_what_lies_under_the_smallest_level() -> None:
    """The mean goes to 0 or to the level, without bias; the square is raised to it, unless its block is nothing."""
    tiny = jnp.concatenate([jnp.ones((1, 1)), jnp.full((1, 255), 1e-9)], axis=1)
    bits = rounding_bits(tiny.shape, 0, 0)
    smallest = np.exp(-255 * UNSIGNED.spacing)
    np.testing.assert_allclose(from_blocks(to_blocks(tiny, bits, signed=False))[0, 1:], smallest, rtol=1e-4)
    level = np.exp(-126 * SIGNED.spacing)
    store = jax.jit(jax.vmap(lambda n: from_blocks(to_blocks(tiny * 1e4, rounding_bits((1, 256), n, 0), signed=True))))
    found = np.asarray(store(jnp.arange(512)))[:, 0, 1:] / 1e4
    assert set(np.unique(np.round(found / level, 3))) == {0.0, 1.0}
    np.testing.assert_allclose(found.mean(), 1e-9, rtol=5 / np.sqrt(found.size * 1e-9 / level))
    for signed in (True, False):
        nothing = from_blocks(to_blocks(jnp.zeros((2, 256)), jnp.zeros((2, 256), jnp.uint32), signed=signed))
        np.testing.assert_array_equal(nothing, 0)


@pytest.mark.parametrize("shape", [(3, 3, 64, 128), (3, 3, 256, 3), (28, 1152, 4608), (512, 6, 7), (64, 64), (4096,)])
def test_blocks_tile_the_array(shape: tuple[int, ...]) -> None:
    block = block_of(shape)
    assert 32 <= np.prod(block) <= 256 and all(size % side == 0 for size, side in zip(shape, block, strict=True))
    assert in_blocks(shape)
    stored = jax.eval_shape(lambda: to_blocks(jnp.zeros(shape), jnp.zeros(shape, jnp.uint32), signed=True))
    assert stored.codes.shape == shape and stored.scales.size * np.prod(block) == np.prod(shape)


# --- the stall


@pytest.mark.parametrize(("b2", "falls"), [(0.999, False), (0.995, True)])
def test_to_the_nearest_the_square_cannot_fall(b2: float, falls: bool) -> None:
    """Equation (3): with no gradient any more, bfloat16 to the nearest leaves v where it is unless 1 - b2 > 2^-8."""
    v = jnp.asarray(np.exp(RANDOM.uniform(-20, 0, 4096)), jnp.bfloat16)
    after = (b2 * v.astype(jnp.float32)).astype(jnp.bfloat16)
    assert bool((after < v).all()) if falls else bool((after == v).all())


@pytest.mark.parametrize("state_dtype", SHORT)
def test_with_random_rounding_the_square_falls_as_it_should(state_dtype: Any) -> None:
    """E[v_n] = b2^n v_0 when the gradient stops. One value a block keeps its v, so that the scale stays."""
    adam = scale_by_short_adam(state_dtype=state_dtype)
    first = jnp.full((64, 256), 1000**0.5)
    later = jnp.zeros((64, 256)).at[:, 0].set(1.0)

    @jax.jit
    def run(state: Any) -> Any:
        return jax.lax.fori_loop(0, 1000, lambda _, s: adam.update(later, s)[1], state)

    state = run(adam.update(first, adam.init(first))[1])
    v = state.nu if state_dtype == "bfloat16" else from_blocks(state.nu)
    fallen = np.asarray(v, np.float64)[:, 1:]
    # Each value has gone a random walk; the mean of 16,320 of them has not, within five of its standard deviations.
    np.testing.assert_allclose(fallen.mean(), 0.999**1000, rtol=5 * fallen.std() / fallen.mean() / np.sqrt(16320))
    assert fallen.std() / fallen.mean() < (0.1 if state_dtype == "bfloat16" else 0.4)


# --- the optimizer


@pytest.mark.parametrize("state_dtype", SHORT)
def test_the_first_update_is_adams(state_dtype: Any) -> None:
    grads = {"kernel": jnp.asarray(RANDOM.normal(size=(64, 128)), jnp.float32), "bias": jnp.ones(128)}
    ours, theirs = scale_by_short_adam(0.9, 0.99, 1e-6, state_dtype=state_dtype), optax.scale_by_adam(0.9, 0.99, 1e-6)
    a, b = (jax.jit(lambda g, o=o: o.update(g, o.init(g))[0])(grads) for o in (ours, theirs))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), a, b)


def test_bytes_a_parameter() -> None:
    params = {"kernel": jnp.zeros((3, 3, 64, 128)), "bias": jnp.zeros(128)}
    shapes = {}
    state_dtype: Any
    for state_dtype in ("float32", *SHORT):
        optimizer, _ = make_optimizer(lr=1e-3, steps=10, state_dtype=state_dtype)
        leaves = jax.tree.leaves(jax.eval_shape(optimizer.init, params))
        shapes[state_dtype] = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
    size, counts = 3 * 3 * 64 * 128, 8
    assert shapes["float32"] == 8 * (size + 128) + counts
    assert shapes["bfloat16"] == 4 * (size + 128) + counts
    assert shapes["int8"] == 2 * (size + 4 * size // 256) + 8 * 128 + counts


def test_small_and_awkward_leaves_stay_float32() -> None:
    assert [in_blocks(shape) for shape in ((64, 63), (8192, 1), (512, 1009), ())] == [False, True, False, False]
    state = scale_by_short_adam(state_dtype="int8").init({"a": jnp.zeros((64, 64)), "b": jnp.zeros(64)})
    assert state.mu["a"].codes.dtype == jnp.int8 and state.mu["b"].dtype == jnp.float32


@pytest.mark.parametrize("state_dtype", SHORT)
def test_the_first_moments_are_zeros_as_rounding_would_store_them(state_dtype: Any) -> None:
    """And are written, not computed: XLA took minutes over a DiT-S/2's 8-bit zeros, while it compiled."""
    params = {"kernel": jnp.ones((3, 64, 65)), "bias": jnp.ones(64), "tall": jnp.ones((8192, 1))}
    optimizer = scale_by_short_adam(state_dtype=state_dtype)
    state = optimizer.init(params)
    for signed, moments in ((True, state.mu), (False, state.nu)):
        for name, p in params.items():
            zero, bits = jnp.zeros(p.shape), jnp.zeros(p.shape, jnp.uint32)
            short = to_bfloat16(zero, bits) if state_dtype == "bfloat16" else zero
            kept = to_blocks(zero, bits, signed=signed) if state_dtype == "int8" and in_blocks(p.shape) else short
            chex.assert_trees_all_equal(moments[name], kept)
            chex.assert_trees_all_equal_shapes_and_dtypes(moments[name], kept)
    assert {str(e.primitive) for e in jax.make_jaxpr(optimizer.init)(params).eqns} <= {
        "broadcast_in_dim",
        "pjit",
        "jit",
    }


@pytest.mark.parametrize("state_dtype", SHORT)
def test_decay_and_clipping_act_as_with_float32(state_dtype: Any) -> None:
    params = {"kernel": jnp.ones((64, 64)), "bias": jnp.ones(64)}
    grads = jax.tree.map(lambda p: 100 * p, params)
    options: dict[str, Any] = {"lr": 0.1, "steps": 10, "weight_decay": 0.5, "clip_norm": 1.0}
    assert decays(params) == {"kernel": True, "bias": False}
    ours, theirs = (make_optimizer(**options, state_dtype=d)[0] for d in (state_dtype, "float32"))
    a, b = (jax.jit(lambda g, o=o: o.update(g, o.init(params), params)[0])(grads) for o in (ours, theirs))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), a, b)


def _regression(state_dtype: Any, steps: int = 400) -> tuple[np.ndarray, Any]:
    """Losses of fitting a two-layer teacher with minibatches, and the last update."""
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = {"a": (64, 128), "b": (128, 64)}
    teacher = {n: jax.random.normal(k, s) / np.sqrt(s[0]) for (n, s), k in zip(shapes.items(), keys, strict=False)}
    start = {n: jax.random.normal(k, s) / np.sqrt(s[0]) for (n, s), k in zip(shapes.items(), keys[2:], strict=True)}
    optimizer, _ = make_optimizer(lr=3e-3, steps=steps, schedule="cosine", state_dtype=state_dtype)
    apply = lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"]  # noqa: E731

    def step(carry: Any, n: jax.Array) -> Any:
        params, state, _ = carry
        x = jax.random.normal(jax.random.fold_in(keys[0], n), (32, 64))
        loss, grads = jax.value_and_grad(lambda p: jnp.mean((apply(p, x) - apply(teacher, x)) ** 2))(params)
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state, updates), loss

    @jax.jit
    def run() -> Any:
        return jax.lax.scan(step, (start, optimizer.init(start), start), jnp.arange(steps))

    (_, _, updates), losses = run()
    return np.asarray(losses), np.concatenate([np.ravel(u) for u in jax.tree.leaves(updates)])


def test_training_ends_where_float32_ends() -> None:
    losses = {d: _regression(d)[0] for d in ("float32", *SHORT)}
    ends = {d: curve[-50:].mean() for d, curve in losses.items()}
    assert ends["float32"] < 0.05 * losses["float32"][0]
    assert abs(ends["bfloat16"] / ends["float32"] - 1) < 0.02
    assert abs(ends["int8"] / ends["float32"] - 1) < 0.05


@pytest.mark.parametrize(("state_dtype", "cosine"), [("bfloat16", 0.998), ("int8", 0.97)])
def test_updates_point_where_adams_do(state_dtype: Any, cosine: float) -> None:
    """Over the same gradients, whose sizes span three decades within a block and change with time."""
    sizes = jnp.asarray(np.exp(RANDOM.uniform(np.log(1e-3), 0, (64, 256))), jnp.float32)
    ours, theirs = scale_by_short_adam(state_dtype=state_dtype), optax.scale_by_adam()

    def step(carry: Any, n: jax.Array) -> Any:
        g = sizes * (0.3 + jax.random.normal(jax.random.fold_in(jax.random.key(1), n), sizes.shape))
        g = g * jnp.where(n < 300, 3.0, 1.0)
        a, first = ours.update(g, carry[0])
        b, second = theirs.update(g, carry[1])
        return (first, second), (
            jnp.vdot(a, b) / jnp.linalg.norm(a) / jnp.linalg.norm(b),
            jnp.vdot(a, b) / jnp.vdot(b, b),
        )

    found, length = jax.jit(lambda: jax.lax.scan(step, (ours.init(sizes), theirs.init(sizes)), jnp.arange(1500))[1])()
    assert float(found.min()) > cosine
    np.testing.assert_allclose(length[-100:].mean(), 1, atol=0.03)  # and no shorter, in the mean


# --- in a run


def test_a_run_goes_on_bit_for_bit(tmp_path: Any) -> None:
    for state_dtype in SHORT:
        options: dict[str, Any] = {"log_every": 1, "save_every": 1000, "width": 512, "state_dtype": state_dtype}
        whole = go(tmp_path / f"{state_dtype}_whole", 6, **options)
        go(tmp_path / state_dtype, 3, **options)
        parts = go(tmp_path / state_dtype, 6, **options)
        moments = jax.tree.leaves(parts.state.opt_state)
        assert state_dtype in {leaf.dtype.name for leaf in moments}
        pairs = zip(*(jax.tree.leaves((o.state.params, o.state.opt_state)) for o in (whole, parts)), strict=True)
        for a, b in pairs:
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)


SHARDED = """
import json, sys
import jax, numpy as np
jax.config.update("jax_numpy_rank_promotion", "raise")
from jaxdiff.train import *
from tests.train.standins import Data, Loss, Net

def run(data, fsdp, state_dtype):
    net, loss, (optimizer, _) = Net(width=512), Loss(), make_optimizer(lr=1e-3, steps=100, state_dtype=state_dtype)
    parts = net, optimizer, loss, jax.random.key(0), make_mesh(data=data, fsdp=fsdp)
    template, state = state_template(*parts), create_sharded_state(*parts)
    step = compile_step(net=net, loss=loss, optimizer=optimizer, ema=Ema(), template=template)
    stream, found = Data(), []
    for _ in range(10):
        state, metrics = step(state, put_batch(next(stream), batch_sharding(parts[-1])))
        found.append(float(metrics["loss"]))
    leaves = jax.tree.leaves(state.opt_state)
    return {"losses": found, "held": sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves)}

print(json.dumps([run(*case) for case in json.loads(sys.argv[1])]))
"""


def test_states_split_like_their_parameters(run_python: Any) -> None:
    cases = [(1, 1, "int8"), (1, 4, "int8")]
    one, four = json.loads(run_python("-c", SHARDED, json.dumps(cases), devices=4).stdout.splitlines()[-1])
    np.testing.assert_allclose(four["losses"], one["losses"], rtol=1e-3)
    assert four["held"] <= one["held"] / 4 + 300  # whole on each: the counts, and scales of 17 by 2 blocks
