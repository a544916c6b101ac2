"""The transformer: the paper's twelve sizes, the scan over depth, patches and positions; PixArt's text."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxdiff.networks import DiT, FirstBlock, TaylorSeer, Tokens, dit, functional, pixart_alpha, pixart_sigma
from jaxdiff.networks.backend import UNROLLED, attention_form
from jaxdiff.networks.dit import DiTBlock, Told
from jaxdiff.networks.embeddings import position_embedding
from jaxdiff.networks.layers import layer_norm
from jaxdiff.networks.modulation import modulate
from tests.networks.padded import assert_padding_changes_no_bit

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
        tokens = block(tokens, Told(c), None if key is None else jax.random.split(key, 3)[depth])
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
        ({"modulation": "shared"}, "modulation='shared' must be one of block, single"),
        ({"span": 0.0}, "span=0.0 must be positive"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused_where_it_is_written(changes, message):
    with pytest.raises(ValueError, match=message):
        DiT(**changes)


def test_dit_of_another_size():
    with pytest.raises(ValueError, match="S, B, L, XL, got 'M'"):
        dit("M")  # type: ignore[arg-type]


def test_pixart_alpha_is_told_the_pictures_size():
    """Three numbers by perceptrons of a third of the width: 611,349,152 parameters, as diffusers' has."""
    net = functional(pixart_alpha())
    params = jax.eval_shape(net.init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 611_349_152
    assert pixart_alpha(conditions=()).conditions == ()


def test_pixart_sigma_has_its_published_size():
    """That of diffusers' PixArtTransformer2DModel, the projection of captions included; its positions are computed."""
    net = functional(pixart_sigma())
    params = jax.eval_shape(net.init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 610_856_096
    latents, t = jax.ShapeDtypeStruct((2, 128, 128, 4), jnp.float32), jax.ShapeDtypeStruct((2,), jnp.float32)
    shapes = {"tokens": (2, 300, 4096), "mask": (2, 300)}
    text = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    assert jax.eval_shape(net.apply, params, latents, t, {"text": text}).shape == (2, 128, 128, 8)


TEXT = {
    "tokens": RANDOM.standard_normal((2, 5, 6)).astype(np.float32),
    "mask": np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], np.float32),
}
TOLD: dict[str, Any] = {
    kind: dataclasses.replace(CONFIG, dropout=0.0, conditions=(Tokens("text", 6),), modulation=kind, span=4.0)
    for kind in ("block", "single")
}


def affine(layer, h):
    return h @ np.asarray(layer["kernel"], np.float64) + np.asarray(layer["bias"], np.float64)


def silu(h):
    return h / (1 + np.exp(-h))


def gelu(h):
    return h / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))


def normed(h, shift, scale):
    return (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-6) * (1 + scale) + shift


def attended(q, k, v):
    q, k, v = (y.reshape(len(y), 2, -1).transpose(1, 0, 2) for y in (q, k, v))
    weights = np.exp(np.einsum("hqd,hkd->hqk", q, k) / np.sqrt(q.shape[-1]))
    return np.einsum("hqk,hkd->hqd", weights / weights.sum(-1, keepdims=True), v).transpose(1, 0, 2).reshape(-1, 16)


@pytest.mark.parametrize("kind", TOLD)
def test_text_enters_as_in_pixart(kind):
    """Equations (1) to (5) one sample at a time, in float64; the text without its padding."""
    config, params = TOLD[kind], disturbed(TOLD[kind])
    label = np.array([2, 0])
    output = jax.jit(functional(config).apply)(params, X, T, {"text": TEXT, "label": label})
    wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    for sample in range(2):
        angle = float(T[sample]) * 10_000.0 ** (-np.arange(8) / 8)
        e = affine(wide["time"]["out"], silu(affine(wide["time"]["hidden"], np.r_[np.cos(angle), np.sin(angle)])))
        e = e + wide["label"]["embedding"][label[sample]]
        real = TEXT["tokens"][sample][TEXT["mask"][sample] != 0]
        y = affine(wide["text"], gelu(affine(wide["told"]["by_name"]["text"]["map"], real)))
        x = np.asarray(X[sample], np.float64)
        h = np.stack([x[r : r + 2, s : s + 2].ravel() for r in (0, 2) for s in (0, 2, 4)])
        places = np.array([[r * 4 / 2, s * 4 / 3] for r in range(2) for s in range(3)])  # span 4 over 2 rows, 3 columns
        rate = 10_000.0 ** (-np.arange(4) / 4)
        across, down = places[:, 1:] * rate, places[:, :1] * rate
        h = affine(wide["patches"], h) + np.concatenate(
            [np.sin(across), np.cos(across), np.sin(down), np.cos(down)], axis=1
        )
        for depth in range(3):
            p = jax.tree.map(lambda leaf, depth=depth: leaf[depth], wide["blocks"])
            if kind == "single":
                parts = (affine(wide["modulation"], silu(e)).reshape(6, 16) + p["table"])[:, None]
            else:
                parts = affine(p["modulation"], silu(e)).reshape(6, 1, 16)
            q, k, v = (
                normed(h, *parts[:2]) @ p["attention"]["qkv"]["kernel"][:, i] + p["attention"]["qkv"]["bias"][i]
                for i in range(3)
            )
            h = h + parts[2] * affine(p["attention"]["out"], attended(q, k, v))
            cross = p["cross_attention"]
            mixed = attended(affine(cross["query"], h), affine(cross["key"], y), affine(cross["value"], y))
            h = h + affine(cross["out"], mixed)
            h = h + parts[5] * affine(p["contract"], gelu(affine(p["expand"], normed(h, *parts[3:5]))))
        if kind == "single":
            h = normed(h, *(e + wide["table"])[:, None])
        else:
            h = normed(h, *np.split(affine(wide["modulation"], silu(e)), 2))
        expected = np.concatenate(
            [np.concatenate(list(affine(wide["out"], row).reshape(3, 2, 2, 2)), axis=1) for row in np.split(h, 2)]
        )
        np.testing.assert_allclose(output[sample], expected, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("kind", TOLD)
def test_with_text_it_starts_at_zero_and_blocks_of_their_own_modulation_as_the_identity(kind):
    net = functional(TOLD[kind])
    fresh, other = (jax.jit(net.init)(jax.random.key(seed)) for seed in (0, 1))
    assert not np.any(net.apply(fresh, X, T, {"text": TEXT}))
    assert not fresh["blocks"]["cross_attention"]["out"]["kernel"].any()
    seen = {**fresh, "out": jax.tree.map(jnp.ones_like, fresh["out"])}
    outputs = [net.apply({**seen, "blocks": each["blocks"]}, X, T, {"text": TEXT}) for each in (fresh, other)]
    assert np.array_equal(*outputs) == (kind == "block")  # adaLN-single's tables start at random, as in PixArt


@pytest.mark.parametrize("kind", TOLD)
def test_text_reaches_the_output_and_every_weight_counts(kind):
    net, params = functional(TOLD[kind]), disturbed(TOLD[kind])
    apply = jax.jit(net.apply)
    whole, without = apply(params, X, T, {"text": TEXT}), apply(params, X, T)
    assert float(jnp.abs(whole - without).max()) > 1e-3
    np.testing.assert_array_equal(without, apply(params, X, T, {"text": jax.tree.map(np.zeros_like, TEXT)}))
    gradient = jax.jit(jax.grad(lambda p: (net.apply(p, X, T, {"text": TEXT, "label": [0, 3]}) ** 2).sum()))(params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.isfinite(leaf).all() and leaf.any(), jax.tree_util.keystr(path)


@pytest.mark.parametrize("kind", TOLD)
@pytest.mark.parametrize("cache", [TaylorSeer(2), TaylorSeer(2, whole=True), FirstBlock(0.05)], ids=str)
def test_caches_hold_with_text(kind, cache):
    """Of the same inputs again a cache gives the network's own output: parts that do not change are forecast so."""
    net, params = functional(TOLD[kind]), disturbed(TOLD[kind])
    cond = {"text": TEXT}
    expected, memory = net.apply(params, X, T, cond), cache.begin(net, params, X, T, cond)
    evaluate = jax.jit(lambda memory: cache.apply(net, params, X, T, cond, memory))
    for _ in range(4):
        output, memory = evaluate(memory)
        np.testing.assert_allclose(output, expected, atol=1e-4, rtol=1e-4)
    assert int(memory.full) < 4


@pytest.mark.nightly
def test_remat_with_text_changes_no_gradient():
    def gradient(remat):
        net = functional(dataclasses.replace(TOLD["single"], remat=remat))
        return jax.jit(jax.grad(lambda p: (net.apply(p, X, T, {"text": TEXT}) ** 2).mean()))(params)

    params = disturbed(TOLD["single"])
    expected = gradient("none")
    for remat in ("full", "dots"):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-4), gradient(remat), expected)


@pytest.mark.parametrize("kind", TOLD)
@pytest.mark.parametrize("width", [16, 256])
def test_padding_changes_no_bit(kind, width):
    """Wide ones too, whose sums XLA takes in another order by the number of rows."""
    config = dataclasses.replace(TOLD[kind], width=width)
    apply, params = jax.jit(functional(config).apply), disturbed(config)
    assert_padding_changes_no_bit(lambda text: apply(params, X, T, {"text": text}), TEXT)
    large = np.tile(X, (1, 4, 3, 1))
    assert_padding_changes_no_bit(lambda text: apply(params, large, T, {"text": text}), TEXT)
