"""U-ViT: published sizes, and the paper's equations transcribed in NumPy."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from jaxdiff.networks import Tokens, UViT, functional, u_vit
from jaxdiff.networks.backend import UNROLLED


def formula(size: int, channels: int, patch: int, width: int, depth: int, classes: int, convolution: bool) -> int:
    """Parameters of the published code: blocks with a bias-free qkv, skips, positions, decoder."""
    block = (3 * width**2) + (width**2 + width) + (8 * width**2 + 5 * width) + 4 * width
    skip = depth // 2 * (2 * width**2 + width)
    pixels = patch**2 * channels
    positions = ((size // patch) ** 2 + 1 + (classes > 0)) * width
    ends = (pixels * width + width) + 2 * width + (width * pixels + pixels)
    return depth * block + skip + positions + ends + classes * width + convolution * (9 * channels**2 + channels)


@pytest.mark.parametrize(
    ("size", "millions", "arguments"),
    [  # table 1 of the paper
        ("S", 44, (32, 3, 2, 512, 13, 0, True)),
        ("S-deep", 58, (32, 3, 2, 512, 17, 0, True)),
        ("M", 131, (64, 3, 4, 768, 17, 1001, True)),
        ("L", 287, (32, 4, 2, 1024, 21, 1001, False)),
        ("H", 501, (32, 4, 2, 1152, 29, 1001, False)),
    ],
)
def test_published_sizes(size, millions, arguments):
    params = jax.eval_shape(functional(u_vit(size)).init, jax.random.key(0))
    number = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert number == formula(*arguments)
    assert round(number / 1e6) == millions


CONFIG = UViT(
    (4, 6), in_channels=2, width=16, depth=5, heads=2, num_classes=3, conditions=(Tokens("text", 6, length=4),)
)
RANDOM = np.random.default_rng(0)
X = RANDOM.standard_normal((2, 4, 6, 2)).astype(np.float32)
T = np.array([0.3, 40.0], np.float32)
LABEL = np.array([2, 0])
TEXT = {
    "tokens": RANDOM.standard_normal((2, 4, 6)).astype(np.float32),
    "mask": np.array([[1, 1, 0, 0], [1, 1, 1, 1]], np.float32),
}
COND = {"label": LABEL, "text": TEXT}


def disturbed(config: UViT) -> Any:
    noise = np.random.default_rng(1)
    params = jax.jit(functional(config).init)(jax.random.key(0))
    return jax.tree.map(lambda leaf: leaf + 0.3 * noise.standard_normal(leaf.shape).astype(np.float32), params)


def affine(p: Any, h: np.ndarray) -> np.ndarray:
    return h @ p["kernel"] + p["bias"]


def norm(p: Any, h: np.ndarray) -> np.ndarray:
    h = (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-5)
    return h * p["scale"] + p["bias"]


def block(p: Any, h: np.ndarray, keep: np.ndarray) -> np.ndarray:
    q, k, v = np.einsum("lc,cte->tle", norm(p["norm1"], h), p["attention"]["qkv"]["kernel"]).reshape(3, len(h), 2, 8)
    weights = np.exp(np.einsum("qhd,khd->hqk", q, k[keep]) / np.sqrt(8))
    mixed = np.einsum("hqk,khd->qhd", weights / weights.sum(-1, keepdims=True), v[keep]).reshape(len(h), 16)
    h = h + affine(p["attention"]["out"], mixed)
    inner = affine(p["mlp"]["expand"], norm(p["norm2"], h))
    return h + affine(p["mlp"]["contract"], inner * (1 + erf(inner / np.sqrt(2))) / 2)


def transcribed(params: Any, skips: bool, sample: int) -> np.ndarray:
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    x = X[sample].astype(np.float64)
    patches = np.stack([x[r : r + 2, s : s + 2].ravel() for r in (0, 2) for s in (0, 2, 4)])
    angle = float(T[sample]) * 10_000.0 ** (-np.arange(8) / 8)
    time = np.concatenate([np.cos(angle), np.sin(angle)])
    text = affine(p["told"]["by_name"]["text"]["map"], TEXT["tokens"][sample].astype(np.float64))
    rows = affine(p["patches"], patches), time[None], p["label"]["embedding"][LABEL[sample]][None], text
    h = np.concatenate(rows) + p["position"]
    keep = np.concatenate([np.ones(8, bool), TEXT["mask"][sample] != 0])
    pick = lambda name, i: jax.tree.map(lambda leaf: leaf[i], p[name])  # noqa: E731
    kept = []
    for i in range(2):
        h = block(pick("first", i), h, keep)
        kept.append(h)
    h = block(pick("middle", 0), h, keep)
    for i in range(2):
        each = pick("second", i)
        if skips:
            h = affine(each["join"], np.concatenate([h, kept.pop()], axis=-1))
        h = block(each, h, keep)
    out = affine(p["out"], norm(p["norm"], h)[:6])
    image = np.zeros((6, 8, 2))  # with its border of zeros
    for i, token in enumerate(out):
        image[1 + i // 3 * 2 : 3 + i // 3 * 2, 1 + i % 3 * 2 : 3 + i % 3 * 2] = token.reshape(2, 2, 2)
    kernel = p["convolution"]["kernel"]
    moved = [[image[r : r + 4, s : s + 6] @ kernel[r, s] for s in range(3)] for r in range(3)]
    return np.sum(moved, axis=(0, 1)) + p["convolution"]["bias"]


@pytest.mark.parametrize("skips", [True, False])
def test_the_network_is_the_papers_equations(skips):
    config = dataclasses.replace(CONFIG, skips=skips)
    params = disturbed(config)
    output = jax.jit(functional(config).apply)(params, X, T, COND)
    for sample in range(2):
        np.testing.assert_allclose(output[sample], transcribed(params, skips, sample), atol=2e-4, rtol=2e-4)


def test_conditions_reach_the_output_and_padding_does_not():
    net, params = functional(CONFIG), disturbed(CONFIG)
    apply = jax.jit(net.apply)
    whole = apply(params, X, T, COND)
    for name in COND:
        without = apply(params, X, T, {key: value for key, value in COND.items() if key != name})
        assert float(jnp.abs(without - whole).max()) > 1e-3
    rubbish = {**TEXT, "tokens": np.where(TEXT["mask"][..., None] == 0, np.float32(1e4), TEXT["tokens"])}
    np.testing.assert_array_equal(whole, apply(params, X, T, {**COND, "text": rubbish}))
    gradient = jax.jit(jax.grad(lambda p: (net.apply(p, X, T, COND) ** 2).sum()))(params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.isfinite(leaf).all() and leaf.any(), jax.tree_util.keystr(path)


@pytest.mark.nightly
def test_recomputation_changes_no_gradient():
    def gradient(remat: Any) -> Any:
        net = functional(dataclasses.replace(CONFIG, remat=remat))
        return jax.jit(jax.grad(lambda p: (net.apply(p, X, T, COND) ** 2).mean()))(params)

    params = disturbed(CONFIG)
    expected = gradient("none")
    for remat in ("full", "dots"):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-3), gradient(remat), expected)


def test_the_program_does_not_grow_with_depth():
    def lines(depth: int) -> int:
        net = functional(dataclasses.replace(CONFIG, depth=depth))
        return jax.jit(net.apply).lower(jax.eval_shape(net.init, jax.random.key(0)), X, T, COND).as_text().count("\n")

    assert lines(UNROLLED + 3) == lines(41)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth": 4}, "depth=4 must be odd"),
        ({"heads": 3}, "divisible by heads=3"),
        ({"size": (5, 6)}, "must be divisible by patch=2"),
        ({"conditions": (Tokens("text", 6),)}, "length"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused_where_it_is_written(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **changes)


def test_images_of_another_size_and_unknown_names_are_refused():
    net = functional(CONFIG)
    with pytest.raises(ValueError, match=r"size=\(4, 6\), got 4x4"):
        net.apply(disturbed(CONFIG), X[:, :, :4], T, COND)
    with pytest.raises(ValueError, match="U-ViT sizes are S, S-deep"):
        u_vit("XL")  # type: ignore[arg-type]
