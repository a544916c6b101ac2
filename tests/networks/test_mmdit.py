"""The transformers over two streams: published sizes, and the equations beside a transcription in NumPy."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.networks import DeepCache, FirstBlock, Level, MMDiT, TaylorSeer, Tokens, flux, functional, sd3
from jaxdiff.networks.backend import UNROLLED
from jaxdiff.networks.embeddings import rotary_angles, rotated
from jaxdiff.train import leaf_spec
from tests.networks.padded import assert_padding_changes_no_bit

SIZES = {  # of diffusers' SD3Transformer2DModel and FluxTransformer2DModel; the tables of positions are no parameters
    "sd3-medium": (sd3(), 2_028_328_000),
    "sd3.5-medium": (sd3("3.5-medium"), 2_243_171_520),
    "sd3.5-large": (sd3("3.5-large"), 8_056_627_520),
    "flux-dev": (flux("dev"), 11_901_408_320),
    "flux-schnell": (flux("schnell"), 11_891_178_560),
}


def count(params: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize("name", SIZES)
def test_published_sizes(name):
    config, size = SIZES[name]
    assert count(jax.eval_shape(functional(config).init, jax.random.key(0))) == size


@pytest.mark.parametrize("size", ["small", "S"])
def test_another_size_is_refused(size):
    with pytest.raises(ValueError, match="SD3 sizes are medium"):
        sd3(size)
    with pytest.raises(ValueError, match=r"FLUX.1 is dev or schnell"):
        flux(size)


TEXT = Tokens("text", 6, pooled=5)
SMALL: dict[str, Any] = {"in_channels": 2, "width": 24, "heads": 2, "frequencies": 8, "conditions": (TEXT,)}
NETS = {
    "sd3": MMDiT(depth=2, grid=10, span=4.0, **SMALL),
    "sd3.5": MMDiT(depth=3, dual=1, qk_norm=True, grid=10, span=4.0, **SMALL),
    "flux": MMDiT(depth=1, single_blocks=2, qk_norm=True, rope=(4, 4, 4), **SMALL),
}
RANDOM = np.random.default_rng(0)
X = RANDOM.standard_normal((2, 4, 6, 2)).astype(np.float32)
T = np.array([0.3, 40.0], np.float32)
GIVEN = {
    "tokens": RANDOM.standard_normal((2, 5, 6)).astype(np.float32),
    "mask": np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], np.float32),
    "pooled": RANDOM.standard_normal((2, 5)).astype(np.float32),
}


def disturbed(config: Any, scale: float = 0.3) -> Any:
    """Every parameter drawn: the last layers start at zero."""
    noise = np.random.default_rng(1)
    params = jax.jit(functional(config).init)(jax.random.key(0))
    return jax.tree.map(lambda leaf: leaf + np.float32(scale) * noise.standard_normal(leaf.shape).astype("f"), params)


# --- the paper's equations, one sample at a time, in float64


def affine(p: Any, h: np.ndarray) -> np.ndarray:
    return h @ np.asarray(p["kernel"], np.float64) + np.asarray(p.get("bias", 0.0), np.float64)


def silu(h: np.ndarray) -> np.ndarray:
    return h / (1 + np.exp(-h))


def perceptron(p: Any, h: np.ndarray) -> np.ndarray:
    h = affine(p["expand"], h)
    return affine(p["contract"], h / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3))))


def modulated(h: np.ndarray, shift: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-6) * (1 + scale) + shift


def told_times(p: Any, t: float) -> np.ndarray:
    angle = t * 10_000.0 ** (-np.arange(4) / 4)
    return affine(p["out"], silu(affine(p["hidden"], np.concatenate([np.cos(angle), np.sin(angle)]))))


def projected(p: Any, h: np.ndarray, heads: int, turn: np.ndarray | None) -> list[np.ndarray]:
    """Equation (2): queries, keys and values, each (heads, L, depth); positions as complex numbers."""
    kernel, bias = (np.asarray(p["qkv"][name], np.float64) for name in ("kernel", "bias"))
    made = []
    for part, name in enumerate(("query_norm", "key_norm", None)):
        y = (h @ kernel[:, part] + bias[part]).reshape(len(h), heads, -1).transpose(1, 0, 2)
        if name in p:
            y = y / np.sqrt((y**2).mean(-1, keepdims=True) + 1e-6) * np.asarray(p[name]["scale"], np.float64)
        if turn is not None and name is not None:
            turned = (y[..., 0::2] + 1j * y[..., 1::2]) * turn
            y = np.stack([turned.real, turned.imag], -1).reshape(y.shape)
        made.append(y)
    return made


def attended(q: np.ndarray, k: np.ndarray, v: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """Equation (3), over the keys to keep: (L, heads depth)."""
    weights = np.exp(np.einsum("hqd,hkd->hqk", q, k[:, keep]) / np.sqrt(q.shape[-1]))
    mixed = np.einsum("hqk,hkd->hqd", weights / weights.sum(-1, keepdims=True), v[:, keep])
    return mixed.transpose(1, 0, 2).reshape(q.shape[1], -1)


def double_block(p: Any, x: np.ndarray, y: np.ndarray, c: np.ndarray, keep: np.ndarray, turn: Any) -> Any:
    n = len(x)
    x_parts = np.split(affine(p["image"]["modulation"], c), 9 if "own_attention" in p["image"] else 6)
    y_parts = np.split(affine(p["text"]["modulation"], c), 6 if "mlp" in p["text"] else 2)
    of_x = projected(p["image"]["attention"], modulated(x, *x_parts[:2]), 2, turn)
    of_y = projected(p["text"]["attention"], modulated(y, *y_parts[:2]), 2, None)
    # [text, image]: the order makes no difference
    q, k, v = (np.concatenate(both, 1) for both in zip(of_y, of_x, strict=True))
    mixed = attended(q, k, v, np.concatenate([keep, np.ones(n, bool)]))
    own = None
    if "own_attention" in p["image"]:
        q, k, v = projected(p["image"]["own_attention"], modulated(x, *x_parts[6:8]), 2, turn)
        own = x_parts[8] * affine(p["image"]["own_attention"]["out"], attended(q, k, v, np.ones(n, bool)))
    x = x + x_parts[2] * affine(p["image"]["attention"]["out"], mixed[len(y) :])
    x = x if own is None else x + own
    x = x + x_parts[5] * perceptron(p["image"]["mlp"], modulated(x, *x_parts[3:5]))
    if "mlp" not in p["text"]:
        return x, None
    y = y + y_parts[2] * affine(p["text"]["attention"]["out"], mixed[: len(y)])
    return x, y + y_parts[5] * perceptron(p["text"]["mlp"], modulated(y, *y_parts[3:5]))


def single_block(p: Any, z: np.ndarray, c: np.ndarray, keep: np.ndarray, turn: Any) -> np.ndarray:
    shift, scale, gate = np.split(affine(p["modulation"], c), 3)
    h = modulated(z, shift, scale)
    fused = np.concatenate([np.asarray(p["attention"]["out"]["kernel"]), np.asarray(p["mlp"]["contract"]["kernel"])])
    inner = affine(p["mlp"]["expand"], h)
    inner = inner / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (inner + 0.044715 * inner**3)))
    q, k, v = projected(p["attention"], h, 2, turn)
    mixed = attended(q, k, v, keep)
    return z + gate * (np.concatenate([mixed, inner], -1) @ fused + np.asarray(p["mlp"]["contract"]["bias"]))


def transcribed(config: MMDiT, params: Any, sample: int) -> np.ndarray:
    x, y = X[sample].astype(np.float64), GIVEN["tokens"][sample].astype(np.float64)
    keep = GIVEN["mask"][sample] != 0
    told = params["told"]["by_name"]["text"]
    pooled = told["pooled"]
    e = told_times(params["time"], T[sample])
    e = e + affine(pooled["out"], silu(affine(pooled["hidden"], GIVEN["pooled"][sample].astype(np.float64))))
    c, y = silu(e), affine(told["map"], y)
    patches = np.stack([x[r : r + 2, s : s + 2].ravel() for r in (0, 2) for s in (0, 2, 4)])
    x, turn = affine(params["patches"], patches), None
    if config.rope is None:  # the whole table, then its middle
        where = np.arange(10) * 4.0 / 10
        rate = 10_000.0 ** (-np.arange(6) / 6)
        table = np.zeros((10, 10, 24))
        for r in range(10):
            for s in range(10):
                across, down = where[s] * rate, where[r] * rate
                table[r, s] = np.concatenate([np.sin(across), np.cos(across), np.sin(down), np.cos(down)])
        x = x + table[4:6, 3:6].reshape(6, 24)
    else:
        rate = 10_000.0 ** (-np.arange(2) / 2)
        turn = np.exp(1j * np.array([[0, 0, *(r * rate), *(s * rate)] for r in range(2) for s in range(3)]))
    for name in ("dual", "double", "last"):
        for i in range(len(params[name]["image"]["modulation"]["bias"]) if name in params else 0):
            block = jax.tree.map(lambda leaf, i=i: np.asarray(leaf[i]), params[name])
            x, y = double_block(block, x, y, c, keep, turn)
    if config.single_blocks:
        z, keep = np.concatenate([y, x]), np.concatenate([keep, np.ones(len(x), bool)])
        turn = np.concatenate([np.ones((len(y), 6)), turn])
        for i in range(config.single_blocks):
            z = single_block(jax.tree.map(lambda leaf, i=i: np.asarray(leaf[i]), params["single"]), z, c, keep, turn)
        x = z[len(y) :]
    out = affine(params["out"], modulated(x, *np.split(affine(params["modulation"], c), 2)))
    image = np.zeros((4, 6, 2))
    for i, token in enumerate(out):
        image[i // 3 * 2 : i // 3 * 2 + 2, i % 3 * 2 : i % 3 * 2 + 2] = token.reshape(2, 2, 2)
    return image


@pytest.mark.parametrize("name", NETS)
def test_the_network_is_the_papers_equations(name):
    config = NETS[name]
    params = disturbed(config)
    output = jax.jit(functional(config).apply)(params, X, T, {"text": GIVEN})
    for sample in range(2):
        expected = transcribed(config, params, sample)
        assert np.abs(expected).max() > 0.3
        np.testing.assert_allclose(output[sample], expected, atol=2e-4, rtol=2e-4)


def test_turned_products_depend_on_the_difference_of_positions_alone():
    widths, shift = (4, 6, 6), np.array([5, -2, 30])
    places = RANDOM.integers(-9, 9, (7, 3))
    q, k = (jnp.asarray(RANDOM.standard_normal((2, 7, 16)), jnp.float32) for _ in range(2))

    def products(places: np.ndarray) -> Any:
        angles = rotary_angles(places, widths)
        return jnp.einsum("hqd,hkd->hqk", rotated(q, angles), rotated(k, angles), precision="highest")

    np.testing.assert_allclose(products(places), products(places + shift), atol=1e-4)
    assert float(jnp.abs(products(places) - products(2 * places)).max()) > 0.1
    np.testing.assert_array_equal(rotated(q, rotary_angles(np.zeros((7, 3)), widths)), q)
    for axis in range(3):  # each turns its own part of a head
        alone = np.zeros((7, 3))
        alone[:, axis] = 1 + np.arange(7)
        changed = np.abs(np.asarray(rotated(q, rotary_angles(alone, widths)) - q)).max((0, 1)) > 1e-6
        edges = np.cumsum([0, *widths])
        assert changed[edges[axis]] and changed.nonzero()[0].min() >= edges[axis]
        assert changed.nonzero()[0].max() < edges[axis + 1]


def test_far_positions_turn_as_exactly_as_near_ones():
    """Angles in float32 would be off by 2e-4 at position 4095."""
    rate = [10_000 ** (-2 * i / 8) for i in range(4)]
    expected = [wave(4095 * r) for r in rate for wave in (math.cos, math.sin)]
    turned = rotated(jnp.tile(jnp.array([[1.0, 0.0]]), (1, 4)), rotary_angles(np.array([[4095]]), (8,)))
    np.testing.assert_allclose(turned[0], expected, atol=1e-6)


@pytest.mark.parametrize("name", NETS)
def test_it_starts_at_zero_and_each_block_as_the_identity(name):
    """So with a last projection that is not zero the blocks' own weights make no difference."""
    net = functional(NETS[name])
    fresh = jax.jit(net.init)(jax.random.key(0))
    assert not np.any(net.apply(fresh, X, T, {"text": GIVEN}))
    blocks = {"dual", "double", "single", "last"} & set(fresh)
    others = jax.jit(net.init)(jax.random.key(1))
    seen = {**fresh, "out": jax.tree.map(jnp.ones_like, fresh["out"])}
    outputs = [
        net.apply({**seen, **{part: p[part] for part in blocks}}, X, T, {"text": GIVEN}) for p in (fresh, others)
    ]
    assert np.abs(outputs[0]).max() > 0.5
    np.testing.assert_array_equal(*outputs)


@pytest.mark.parametrize("name", NETS)
def test_text_time_and_every_weight_count(name):
    config = NETS[name]
    net, params = functional(config), disturbed(NETS[name])
    apply = jax.jit(net.apply)
    whole = apply(params, X, T, {"text": GIVEN})
    others = [{**GIVEN, "tokens": GIVEN["tokens"][:, ::-1] * 2}, {**GIVEN, "pooled": -GIVEN["pooled"]}]
    for given in others:
        assert float(jnp.abs(apply(params, X, T, {"text": given}) - whole).max()) > 1e-3
    np.testing.assert_array_equal(
        apply(params, X, T), apply(params, X, T, {"text": jax.tree.map(np.zeros_like, GIVEN)})
    )

    gradient = jax.jit(jax.grad(lambda p: (net.apply(p, X, T, {"text": GIVEN}) ** 2).sum()))(params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        where = jax.tree_util.keystr(path, simple=True, separator="/")
        assert np.isfinite(leaf).all(), where
        if where == "last/text/attention/qkv/kernel":
            assert not leaf[:, :, 0].any() and leaf[:, :, 1:].any(axis=(0, 1, 3)).all()  # nothing reads its queries
        elif where == "last/text/attention/query_norm/scale":
            assert not leaf.any()
        else:
            assert leaf.any(), where


WIDE = MMDiT(depth=1, single_blocks=1, dual=1, qk_norm=True, **{**SMALL, "width": 256})  # sums of 256 numbers


@pytest.mark.parametrize("config", [*NETS.values(), WIDE], ids=[*NETS, "wide"])
def test_padding_changes_no_bit(config):
    """Of an image of 64 tokens or more at any length; below, XLA's products on a CPU take another order by length."""
    net, params = functional(dataclasses.replace(config, grid=16)), disturbed(config)
    x = np.tile(X, (1, 4, 3, 1))[:, :, :16]
    apply = jax.jit(net.apply)
    assert_padding_changes_no_bit(lambda text: apply(params, x, T, {"text": text}), GIVEN)


def test_no_sample_sees_another():
    net, params = functional(NETS["flux"]), disturbed(NETS["flux"])
    both = net.apply(params, X, T, {"text": GIVEN})
    for i in range(2):
        given = jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], GIVEN)
        alone = net.apply(params, X[i : i + 1], T[i : i + 1], {"text": given})
        np.testing.assert_allclose(alone[0], both[i], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_positions_tell_rows_apart(name):
    """Without positions the network commutes with a swap of patches; with them it must not."""
    net, params = functional(NETS[name]), disturbed(NETS[name])
    swap = lambda x: np.concatenate([x[:, 2:], x[:, :2]], axis=1)  # noqa: E731
    output = swap(net.apply(params, swap(X), T, {"text": GIVEN}))
    assert np.abs(output - net.apply(params, X, T, {"text": GIVEN})).max() > 1e-3


@pytest.mark.nightly
def test_recomputation_changes_no_gradient():
    config, params = NETS["flux"], disturbed(NETS["flux"], 0.1)

    def gradient(remat: Any) -> Any:
        net = functional(dataclasses.replace(config, remat=remat))
        return jax.jit(jax.grad(lambda p: (net.apply(p, X, T, {"text": GIVEN}) ** 2).mean()))(params)

    expected = gradient("none")
    for remat in ("full", "dots"):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-4), gradient(remat), expected)


def test_the_program_does_not_grow_with_depth():
    def lines(**fields: Any) -> int:
        net = functional(dataclasses.replace(NETS["flux"], **fields))
        params = jax.eval_shape(net.init, jax.random.key(0))
        return jax.jit(net.apply).lower(params, X, T, {"text": GIVEN}).as_text().count("\n")

    deep = lines(depth=UNROLLED, single_blocks=UNROLLED + 1)
    assert deep == lines(depth=40, single_blocks=60) < lines(depth=6, single_blocks=6)


def test_guidance_is_told_like_the_time():
    config = dataclasses.replace(NETS["flux"], conditions=(TEXT, Level("guidance", high=None)))
    net, params = functional(config), disturbed(NETS["flux"])
    told = disturbed(config)
    outputs = [net.apply(told, X, T, {"text": GIVEN, "guidance": np.full(2, g, np.float32)}) for g in (1.0, 3.5)]
    assert float(jnp.abs(outputs[0] - outputs[1]).max()) > 1e-3
    assert count(told) - count(params) > 24 * 24


def test_heads_and_perceptrons_are_split_over_a_tensor_axis():
    shapes = jax.eval_shape(functional(NETS["sd3.5"]).init, jax.random.key(0))
    shapes["single"] = jax.eval_shape(functional(NETS["flux"]).init, jax.random.key(0))["single"]
    split = set()
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if "tensor" in leaf_spec(leaf.shape, 1, tensor=2, path=name):
            split.add(name)
    own = ("attention/qkv/kernel", "attention/qkv/bias", "attention/out/kernel")
    parts = (*own, "mlp/expand/kernel", "mlp/expand/bias", "mlp/contract/kernel")
    streams = [f"{block}/{stream}" for block in ("dual", "double", "last") for stream in ("image", "text")]
    expected = {f"{stream}/{part}" for stream in (*streams, "single") for part in parts}
    expected -= {name for name in expected if name.startswith("last/text/") and "qkv" not in name}
    assert split == expected | {f"dual/image/own_{part}" for part in own}


@pytest.mark.parametrize("cache", [DeepCache(2), FirstBlock(), TaylorSeer(2)])
def test_caches_of_other_networks_refuse_it_in_one_line(cache):
    net, params = functional(NETS["sd3"]), disturbed(NETS["sd3"])
    with pytest.raises(ValueError, match="got a MMDiTModule"):
        cache.begin(net, params, jnp.asarray(X), jnp.asarray(T), {"text": GIVEN})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 5}, "width=24 must be divisible by 4 and by heads=5"),
        ({"depth": 0}, "at least 1"),
        ({"dual": 3}, "dual=3 must be 0 to 2"),
        ({"rope": (4, 4)}, "that add up to the 12 of a head"),
        ({"rope": (3, 3, 6)}, "even widths"),
        ({"conditions": ()}, "needs a condition of tokens"),
        ({"remat": "some"}, "remat='some'"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused_where_it_is_written(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(NETS["sd3.5"], **changes)


def test_an_image_beyond_the_table_of_positions_is_refused():
    net = functional(dataclasses.replace(NETS["sd3"], grid=2))
    with pytest.raises(ValueError, match="2x3 tokens is beyond the positions of grid=2"):
        net.apply(disturbed(NETS["sd3"]), X, T, {"text": GIVEN})
