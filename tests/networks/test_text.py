"""Frozen text encoders without the originals: the equations by NumPy, published counts, causality, padding, masks.

`tests/parity/test_text_encoders.py` compares them with `transformers`.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from jaxdiff.networks.attention import plain_attention
from jaxdiff.networks.text import CLIPText, TextEncoder, clip_bigg, clip_h, clip_l, t5_xxl
from jaxdiff.networks.text.stack import causal
from jaxdiff.networks.text.t5 import distance_buckets
from tests.networks.text_encoders import CLIP, CLIP_TINY, END, IDS, T5_TINY, WEIGHTS, disturbed, states

RANDOM = np.random.default_rng(0)


# --- what is published


@pytest.mark.parametrize(
    ("config", "count"),
    [
        (clip_l(), 123_060_480),
        (clip_h(), 340_387_840),
        (clip_bigg(), 694_659_840),
        (t5_xxl(), 4_762_310_656),
    ],
    ids=["CLIP-L", "SD2's H", "bigG", "T5-XXL"],
)
def test_published_sizes(config: Any, count: int) -> None:
    encoder = TextEncoder(config)
    params = jax.eval_shape(encoder.init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count
    found = jax.eval_shape(encoder.apply, params, jax.ShapeDtypeStruct((2, 77), jnp.int32))
    assert found["tokens"].shape == (2, 77, config.width)


def test_buckets_are_the_papers_by_brute_force() -> None:
    buckets, distance, length = 32, 128, 400
    expected = []
    for difference in range(1 - length, length):
        d = abs(difference)
        bucket = d if d < 8 else min(8 + math.floor(8 * math.log(d / 8) / math.log(distance / 8) + 1e-9), 15)
        expected.append(bucket + 16 * (difference > 0))
    np.testing.assert_array_equal(distance_buckets(length, buckets, distance), expected)
    assert distance_buckets(129)[[0, 128 - 128, 128 - 91, 128 - 90, 256]].tolist() == [15, 15, 15, 14, 31]
    assert distance_buckets(1).tolist() == [0]


# --- the equations by NumPy in float64, a block after the other


def softmax_mixture(q: Any, k: Any, v: Any, bias: Any, mask: Any) -> np.ndarray:
    logits = q @ np.swapaxes(k, -1, -2) + bias
    logits = np.where(mask[:, None, None, :], logits, -np.inf)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True) @ v


def attended(config: Any, w: Any, n: np.ndarray, bias: Any, mask: Any, scale: float) -> np.ndarray:
    q, k, v = (
        (n @ w["qkv"]["kernel"][:, i] + (w["qkv"]["bias"][i] if "bias" in w["qkv"] else 0))
        .reshape(*n.shape[:2], config.heads, -1)
        .swapaxes(1, 2)
        for i in range(3)
    )
    mixed = softmax_mixture(q * scale, k, v, bias, mask).swapaxes(1, 2).reshape(*n.shape[:2], -1)
    return mixed @ w["out"]["kernel"] + w["out"].get("bias", 0)


def by_hand(config: Any, ids: np.ndarray, mask: np.ndarray, weights: Any = None) -> list[np.ndarray]:
    """h_0 .. h_depth, and the last one normalised."""
    w = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), weights or WEIGHTS[config])
    x, clip = w["tokens"]["embedding"][ids], isinstance(config, CLIPText)
    length = ids.shape[1]
    if clip:
        x, bias = x + w["positions"][:length], np.where(np.tri(length) > 0, 0, -np.inf)
    else:
        bucket = distance_buckets(length, config.buckets, config.distance)
        bias = np.array([[w["distances"][bucket[j - i + length - 1]] for j in range(length)] for i in range(length)])
        bias = bias.transpose(2, 0, 1)

    def norm(y: np.ndarray, weight: Any) -> np.ndarray:
        y = y - y.mean(-1, keepdims=True) if clip else y
        return y / np.sqrt((y**2).mean(-1, keepdims=True) + config.eps) * weight["scale"] + weight.get("bias", 0)

    def perceptron(n: np.ndarray, b: Any) -> np.ndarray:
        if not clip:
            gate = n @ b["gate"]["kernel"]
            tanh = np.tanh(math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3))
            return (0.5 * gate * (1 + tanh) * (n @ b["expand"]["kernel"])) @ b["contract"]["kernel"]
        h = n @ b["expand"]["kernel"] + b["expand"]["bias"]
        exact = config.activation == "gelu"
        h = h * (0.5 * (1 + erf(h / math.sqrt(2))) if exact else 1 / (1 + np.exp(-1.702 * h)))
        return h @ b["contract"]["kernel"] + b["contract"]["bias"]

    found = [x]
    for depth in range(config.depth):
        b = jax.tree.map(lambda leaf, depth=depth: leaf[depth], w["blocks"])
        scale = (config.width // config.heads) ** -0.5 if clip else 1.0
        x = x + attended(config, b["attention"], norm(x, b["norm1"]), bias, mask, scale)
        x = x + perceptron(norm(x, b["norm2"]), b)
        found.append(x)
    return [*found, norm(x, w["norm"])]


@pytest.mark.parametrize("config", [CLIP, T5_TINY], ids=["CLIP", "T5"])
@pytest.mark.parametrize("masked", [False, True], ids=["no mask", "mask"])
def test_states_are_the_equations(config: Any, masked: bool) -> None:
    mask = np.arange(8)[None] < np.array([4, 3])[:, None] if masked else np.ones((2, 8), bool)
    expected = by_hand(config, IDS, mask)[-1]
    found = states(config, IDS, mask.astype(np.int32) if masked else None)
    np.testing.assert_allclose(found["tokens"], expected, atol=2e-5)
    if config is CLIP:
        pooled = expected[[0, 1], [3, 2]]  # the first of several ends
        np.testing.assert_allclose(found["pooled"], pooled, atol=2e-5)
        np.testing.assert_allclose(found["projected"], pooled @ WEIGHTS[CLIP]["projection"]["kernel"], atol=5e-5)


def test_clips_other_states_and_activation() -> None:
    config = CLIPText(**CLIP_TINY, projection=6, activation="gelu", skip=1, final_norm=False)
    by_layer = by_hand(config, IDS, np.ones((2, 8), bool), WEIGHTS[CLIP])
    found = states(config, weights=WEIGHTS[CLIP])
    np.testing.assert_allclose(found["tokens"], by_layer[2], atol=2e-5)
    np.testing.assert_allclose(found["pooled"], by_layer[-1][[0, 1], [3, 2]], atol=2e-5)


def loops(config: CLIPText) -> int:
    """How many blocks a call runs through."""
    params = jax.eval_shape(TextEncoder(config).init, jax.random.key(0))
    program = jax.make_jaxpr(TextEncoder(config).apply)(params, jax.ShapeDtypeStruct((1, 8), jnp.int32))
    return sum(each.params["length"] for each in program.jaxpr.eqns if each.primitive.name == "scan")


def test_blocks_that_no_state_needs_do_not_run() -> None:
    assert loops(CLIPText(**CLIP_TINY, skip=2)) == 3
    assert loops(CLIPText(**CLIP_TINY, skip=2, pooled=False)) == 1
    assert loops(CLIPText(**CLIP_TINY, pooled=False)) == loops(CLIPText(**CLIP_TINY)) == 3
    assert set(states(CLIPText(**CLIP_TINY, skip=2, pooled=False), weights=disturbed(CLIPText(**CLIP_TINY)))) == {
        "tokens"
    }


# --- what depends on what


def test_clip_sees_nothing_later_and_t5_does() -> None:
    changed = IDS.copy()
    changed[:, 5] = 11
    for config, sees in ((CLIP, False), (T5_TINY, True)):
        before, after = states(config)["tokens"], states(config, changed)["tokens"]
        assert np.array_equal(before[:, :5], after[:, :5]) != sees
        assert (before[:, 5:] != after[:, 5:]).any(axis=(0, 2)).all()


def test_clip_is_pooled_at_the_first_end_or_at_the_largest_id() -> None:
    found = states(CLIP)
    np.testing.assert_array_equal(found["pooled"], found["tokens"][[0, 1], [3, 2]])
    np.testing.assert_allclose(found["pooled"], states(CLIP, IDS[:, :4])["pooled"], atol=1e-5)
    largest = CLIPText(**{**CLIP_TINY, "end": None}, projection=6)
    np.testing.assert_array_equal(states(largest, weights=WEIGHTS[CLIP])["pooled"], found["pooled"])
    added = np.where(IDS == END, 2, IDS)  # 18 is the largest now, and first
    np.testing.assert_array_equal(
        states(largest, added, weights=WEIGHTS[CLIP])["pooled"],
        states(CLIPText(**{**CLIP_TINY, "end": 18}, projection=6), added, weights=WEIGHTS[CLIP])["pooled"],
    )


@pytest.mark.parametrize("config", [CLIP, T5_TINY], ids=["CLIP", "T5"])
def test_a_masked_token_changes_nothing(config: Any) -> None:
    mask = np.array([[1, 1, 1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0, 0, 0]])
    other = np.where(mask == 1, IDS, 9)
    before, after = (states(config, ids, mask)["tokens"] for ids in (IDS, other))
    np.testing.assert_array_equal(before[mask == 1], after[mask == 1])
    assert (states(config)["tokens"][0, 2] != states(config, other)["tokens"][0, 2]).any() == (config is T5_TINY)
    short = states(config, IDS[:1, :4])["tokens"]
    np.testing.assert_allclose(before[:1, :4], short, atol=1e-5)
    np.testing.assert_array_equal(states(config, IDS, mask.astype(bool))["tokens"], before)


def test_attention_to_nothing_is_zero_and_has_no_gradient() -> None:
    q, k, v = (jnp.asarray(RANDOM.standard_normal((2, 2, 3, 4)), jnp.float32) for _ in range(3))
    mask = jnp.array([[False, False, True], [True, True, True]])

    def attend(q: Any, k: Any, v: Any) -> Any:
        return plain_attention(q, k, v, mask, bias=causal(3), scale=0.5)

    found = attend(q, k, v)
    assert (found[0, :, :2] == 0).all()
    np.testing.assert_allclose(found[0, :, 2], v[0, :, 2], rtol=1e-6)
    wide = [np.asarray(x, np.float64)[1:] for x in (q / 2, k, v)]
    expected = softmax_mixture(wide[0], wide[1], wide[2], np.where(np.tri(3) > 0, 0, -np.inf), np.asarray(mask)[1:])
    np.testing.assert_allclose(found[1:], expected, atol=1e-6)
    gradient = jax.jit(jax.grad(lambda *x: (attend(*x) ** 2).sum(), argnums=(0, 1, 2)))(q, k, v)
    assert all(jnp.isfinite(each).all() for each in gradient)
    assert all((each[0, :, :2] == 0).all() for each in gradient)


def test_an_id_outside_of_the_vocabulary_is_seen() -> None:
    for config in WEIGHTS:
        for wrong in (20, -1):
            assert np.isnan(states(config, np.where(IDS == 4, wrong, IDS))["tokens"][0, -1]).all()
    assert not np.isnan(states(CLIP, np.where(IDS == 4, 20, IDS))["tokens"][1]).any()
