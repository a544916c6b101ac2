"""The transformer: the paper's twelve sizes, the scan over depth, patches and positions."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxdiff.networks import DiT, dit, functional
from jaxdiff.networks.backend import UNROLLED, attention_form
from jaxdiff.networks.dit import DiTBlock, modulate
from jaxdiff.networks.embeddings import position_embedding
from jaxdiff.networks.layers import layer_norm

RANDOM = np.random.default_rng(0)
SIZES = {
    ("S", 2): 32_865_056, ("B", 2): 130_315_808, ("L", 2): 457_840_672, ("XL", 2): 674_834_720,
    ("S", 4): 32_920_448, ("B", 4): 130_426_496, ("L", 4): 457_988_224, ("XL", 4): 675_000_704,
    ("S", 8): 33_142_016, ("B", 8): 130_869_248, ("L", 8): 458_578_432, ("XL", 8): 675_664_640,
}  # fmt: skip


@pytest.mark.parametrize(("size", "patch"), list(SIZES))
def test_published_sizes(size, patch):
    net = functional(dit(size, patch))
    params = jax.eval_shape(net.init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == SIZES[size, patch]
    latents = jax.ShapeDtypeStruct((2, 32, 32, 4), jnp.float32)
    assert jax.eval_shape(net.apply, params, latents, 0.0).shape == (2, 32, 32, 8)


CONFIG = DiT(in_channels=2, width=16, depth=3, heads=2, num_classes=3, frequencies=16, dropout=0.2)


def disturbed(config, seed=0):
    params = jax.jit(functional(config).init)(jax.random.key(seed))
    noise = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: leaf + 0.2 * noise.standard_normal(leaf.shape).astype(np.float32), params)


PARAMS = disturbed(CONFIG)
X = jnp.asarray(RANDOM.standard_normal((2, 4, 6, 2)), jnp.float32)
T = jnp.array([0.3, 40.0])


@pytest.mark.parametrize("key", [None, jax.random.key(5)], ids=["plain", "dropout"])
def test_the_scan_is_the_loop_over_blocks(key):
    """The forward pass written out with an ordinary loop, each block on its slice of the stacked parameters."""
    params, net = PARAMS, functional(CONFIG)
    c = jnp.concatenate([f(T[:, None] * 10_000 ** (-jnp.arange(8) / 8)[None]) for f in (jnp.cos, jnp.sin)], 1)
    for name in ("hidden", "out"):
        layer = params["time"][name]
        c = c @ layer["kernel"] + layer["bias"][None]
        c = jax.nn.silu(c) if name == "hidden" else c
    c = jax.nn.silu(c + params["label"]["embedding"][jnp.array([3, 3])])
    patches = [X[:, r : r + 2, s : s + 2].reshape(2, 1, 8) for r in (0, 2) for s in (0, 2, 4)]
    tokens = jnp.concatenate(patches, 1) @ params["patches"]["kernel"] + params["patches"]["bias"][None, None]
    tokens = tokens + jnp.asarray(position_embedding(2, 3, 16))[None]
    graphdef = nnx.graphdef(DiTBlock(CONFIG))
    for depth in range(3):
        block = nnx.merge(graphdef, jax.tree.map(lambda leaf, depth=depth: leaf[depth], params["blocks"]))
        tokens = block(tokens, c, None if key is None else jax.random.split(key, 3)[depth])
    shift, scale = jnp.split(c @ params["modulation"]["kernel"] + params["modulation"]["bias"][None], 2, axis=-1)
    tokens = (
        modulate(layer_norm(tokens, 1e-6), shift, scale) @ params["out"]["kernel"] + params["out"]["bias"][None, None]
    )
    squares = np.asarray(tokens).reshape(2, 2, 3, 2, 2, 2)
    rows = [np.concatenate([squares[:, r, s] for s in range(3)], axis=2) for r in range(2)]
    expected = np.concatenate(rows, axis=1)
    np.testing.assert_allclose(jax.jit(net.apply)(params, X, T, key=key), expected, atol=1e-4, rtol=1e-4)


def test_recomputation_changes_no_gradient():
    def gradient(remat):
        config = DiT(**{**vars(CONFIG), "remat": remat})
        net = functional(config)
        loss = lambda params: (net.apply(params, X, T, key=jax.random.key(0)) ** 2).mean()  # noqa: E731
        return jax.jit(jax.grad(loss))(PARAMS)

    expected = gradient("none")
    for remat in ("full", "dots"):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-4), gradient(remat), expected)


def test_the_program_does_not_grow_with_depth_but_for_few_blocks_on_a_cpu():
    def program(depth, **fields):
        net = functional(DiT(**{**vars(CONFIG), "depth": depth, **fields}))
        params = jax.eval_shape(net.init, jax.random.key(0))
        loss = lambda params: net.apply(params, X, T).sum()  # noqa: E731
        return jax.jit(jax.grad(loss)).lower(params).as_text()

    assert program(UNROLLED + 1).count("\n") == program(30).count("\n")
    assert "while" not in program(UNROLLED)
    for remat in ("full", "dots"):  # a loop keeps XLA from merging the second computation with the first
        assert "while" in program(3, remat=remat)
    with attention_form("portable"):
        assert program(3).count("\n") == program(30).count("\n")


def test_blocks_start_unlike_each_other():
    kernels = jax.jit(functional(CONFIG).init)(jax.random.key(0))["blocks"]["expand"]["kernel"]
    assert float(abs(kernels[0] - kernels[1]).max()) > 0.1


@pytest.mark.parametrize(
    ("shape", "patch"), [((1, 8, 8, 1), 1), ((2, 4, 12, 3), 4), ((1, 9, 6, 5), 3), ((1, 8, 8, 1), 8)]
)
def test_any_size_and_channel_count(shape, patch):
    net = functional(DiT(in_channels=shape[-1], patch=patch, width=16, depth=1, heads=2))
    params = jax.eval_shape(net.init, jax.random.key(0))
    assert jax.eval_shape(net.apply, params, jnp.zeros(shape), 0.0).shape == shape


def test_positions_tell_rows_from_columns():
    """Without positions the network commutes with a swap of patches; with them it must not."""
    apply = jax.jit(functional(CONFIG).apply)
    swapped = jnp.concatenate([X[:, 2:], X[:, :2]], axis=1)
    output = apply(PARAMS, swapped, T)
    back = jnp.concatenate([output[:, 2:], output[:, :2]], axis=1)
    assert float(abs(back - apply(PARAMS, X, T)).max()) > 1e-3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 5}, "width=384 must be divisible by 4 and by heads=5"),
        ({"depth": 0}, "at least 1"),
        ({"dropout": -0.1}, r"in \[0, 1\)"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused_where_it_is_written(changes, message):
    with pytest.raises(ValueError, match=message):
        DiT(**changes)


def test_dit_of_another_size():
    with pytest.raises(ValueError, match="S, B, L, XL, got 'M'"):
        dit("M")  # type: ignore[arg-type]
