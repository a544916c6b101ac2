"""Frozen text encoders without the originals: the equations by NumPy, published counts, causality, padding, masks.

`tests/parity/test_text_encoders.py` compares them with `transformers`.
"""

from __future__ import annotations

import functools
import json
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from jaxdiff.networks.text import T5, CLIPText, TextEncoder, clip_bigg, clip_h, clip_l, t5_xxl
from jaxdiff.networks.text.names import CLIP_PROJECTION_NAMES, T5_NAMES, renamed
from jaxdiff.networks.text.stack import biased_attention, causal
from jaxdiff.networks.text.t5 import distance_buckets
from jaxdiff.train import check_heads, leaf_spec

RANDOM = np.random.default_rng(0)
END = 19
CLIP_TINY: Any = {"vocabulary": 20, "length": 8, "width": 8, "depth": 3, "heads": 2, "hidden": 16, "end": END}
CLIP = CLIPText(**CLIP_TINY, projection=6)
T5_TINY = T5(vocabulary=20, width=8, depth=3, heads=3, head_depth=4, hidden=16, buckets=8, distance=6)
IDS = np.array([[18, 3, 4, END, END, END, END, END], [18, 5, END, 0, 0, 7, END, 0]])


def disturbed(config: Any) -> Any:
    """Random weights of which none is small, nor a gain 1 or a bias 0."""
    noise = np.random.default_rng(0)
    shapes = jax.eval_shape(TextEncoder(config).init, jax.random.key(0))
    return jax.tree.map(lambda leaf: (0.5 * noise.standard_normal(leaf.shape)).astype(np.float32), shapes)


WEIGHTS = {config: disturbed(config) for config in (CLIP, T5_TINY)}


@functools.partial(jax.jit, static_argnums=0)
def run(encoder: TextEncoder, *given: Any) -> dict[str, Any]:
    return encoder.apply(*given)


def states(config: Any, ids: Any = IDS, mask: Any = None, weights: Any = None) -> dict[str, np.ndarray]:
    found = run(TextEncoder(config), WEIGHTS[config] if weights is None else weights, ids, mask)
    return {name: np.asarray(state) for name, state in found.items()}


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


def by_hand(config: Any, ids: np.ndarray, mask: np.ndarray) -> list[np.ndarray]:
    """h_0 .. h_depth, and the last one normalised."""
    w = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), WEIGHTS[config])
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
    WEIGHTS[config] = WEIGHTS[CLIP]
    by_layer = by_hand(config, IDS, np.ones((2, 8), bool))
    found = states(config)
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
        return biased_attention(q, k, v, causal(3), mask, scale=0.5)

    found = attend(q, k, v)
    assert (found[0, :, :2] == 0).all()
    np.testing.assert_allclose(found[0, :, 2], v[0, :, 2], rtol=1e-6)
    given = (np.asarray(x, np.float64)[1:] for x in (q / 2, k, v))
    expected = softmax_mixture(*given, np.where(np.tri(3) > 0, 0, -np.inf), np.asarray(mask)[1:])
    np.testing.assert_allclose(found[1:], expected, atol=1e-6)
    gradient = jax.grad(lambda *x: (attend(*x) ** 2).sum(), argnums=(0, 1, 2))(q, k, v)
    assert all(jnp.isfinite(each).all() for each in gradient)
    assert all((each[0, :, :2] == 0).all() for each in gradient)


def test_an_id_outside_of_the_vocabulary_is_seen() -> None:
    for config in WEIGHTS:
        for wrong in (20, -1):
            assert np.isnan(states(config, np.where(IDS == 4, wrong, IDS))["tokens"][0, -1]).all()
    assert not np.isnan(states(CLIP, np.where(IDS == 4, 20, IDS))["tokens"][1]).any()


# --- programs


@pytest.mark.parametrize("config", [CLIP, T5_TINY], ids=["CLIP", "T5"])
def test_vmap_gradients_and_16_bits(config: Any) -> None:
    encoder, weights = TextEncoder(config), WEIGHTS[config]
    mask = np.ones(IDS.shape)
    mask[:, 4:] = 0
    whole = states(config, IDS, mask)["tokens"]
    each = jax.jit(jax.vmap(encoder.apply, in_axes=(None, 0, 0)))(weights, IDS[:, None], mask[:, None])["tokens"]
    np.testing.assert_allclose(each[:, 0], whole, atol=1e-5)

    half = TextEncoder(type(config)(**{**vars(config), "dtype": "bfloat16"}))
    stored = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), weights)
    rough = jax.jit(half.apply)(stored, IDS, mask)["tokens"]
    assert rough.dtype == jnp.float32
    assert 0 < np.abs(rough - whole).max() < 0.1 * np.abs(whole).max()

    for one, params in ((encoder, weights), (half, weights)):
        loss = lambda params, one=one: sum((state**2).sum() for state in one.apply(params, IDS, mask).values())  # noqa: E731
        gradient = jax.jit(jax.grad(loss))(params)
        assert all(np.isfinite(leaf).all() and np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient))


def test_the_gradient_through_a_part_of_the_stack_is_that_through_all() -> None:
    def gradient(**fields: Any) -> Any:
        encoder = TextEncoder(CLIPText(**CLIP_TINY, projection=6, **fields))
        return jax.jit(jax.grad(lambda params: (encoder.apply(params, IDS)["projected"] ** 2).sum()))(WEIGHTS[CLIP])

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), gradient(), gradient(skip=1))


@pytest.mark.parametrize("config", [CLIP, T5_TINY], ids=["CLIP", "T5"])
def test_the_program_does_not_grow_with_depth(config: Any) -> None:
    def lines(depth: int) -> int:
        encoder = TextEncoder(type(config)(**{**vars(config), "depth": depth}))
        params = jax.eval_shape(encoder.init, jax.random.key(0))
        return jax.jit(encoder.apply).lower(params, IDS).as_text().count("\n")

    assert lines(2) == lines(40)


def test_weights_start_as_published() -> None:
    """T5's logits and both encoders' states are of order one, without a division by sqrt(depth)."""
    params = jax.jit(TextEncoder(T5(20, 64, 2, 4, 32, 128)).init)(jax.random.key(0))
    kernel = np.asarray(params["blocks"]["attention"]["qkv"]["kernel"])  # (2, 64, 3, 128)
    np.testing.assert_allclose(kernel.std(axis=(0, 1, 3)), [64**-0.5 * 32**-0.5, 64**-0.5, 64**-0.5], rtol=0.05)
    assert np.abs(kernel[0] - kernel[1]).max() > 0.1
    params = jax.jit(TextEncoder(CLIP).init)(jax.random.key(0))
    np.testing.assert_allclose(np.asarray(params["positions"]).std(), 0.02, rtol=0.3)


# --- where weights lie


def test_heads_and_hidden_layers_are_split_over_tensor() -> None:
    expected = {
        "blocks/attention/qkv/kernel": (None, None, None, "tensor"),
        "blocks/attention/out/kernel": (None, "tensor"),
        "blocks/expand/kernel": (None, None, "tensor"),
        "blocks/contract/kernel": (None, "tensor"),
    }
    biases = {"blocks/attention/qkv/bias": (None, None, "tensor"), "blocks/expand/bias": (None, "tensor")}
    for config, more in ((clip_l(), biases), (t5_xxl(), {"blocks/gate/kernel": (None, None, "tensor")})):
        shapes = jax.eval_shape(TextEncoder(config).init, jax.random.key(0))
        leaves = jax.tree_util.tree_leaves_with_path(shapes)
        names = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape for path, leaf in leaves}
        specs = {name: tuple(leaf_spec(shape, 1, tensor=4, path=name)) for name, shape in names.items()}
        assert {name: spec for name, spec in specs.items() if "tensor" in spec} == expected | more
        mesh = jax.sharding.AbstractMesh((1, 1, 8), ("data", "fsdp", "tensor"))
        with pytest.raises(ValueError, match="tensor=8 does not divide the 6 heads"):
            check_heads(type(config)(**{**vars(config), "heads": 6, "width": 768}), mesh)


SHARDED = """
import json, re, sys
import jax, jax.numpy as jnp, numpy as np
from jaxdiff.networks.placement import samples_over
from jaxdiff.networks.text import CLIPText, T5, TextEncoder
from jaxdiff.train import batch_sharding, make_mesh, split_sharding

configs = [
    CLIPText(vocabulary=50, length=16, width=64, depth=3, heads=4, hidden=128, end=49, skip=1),
    T5(vocabulary=50, width=64, depth=3, heads=4, head_depth=8, hidden=128),
]
ids = np.random.default_rng(0).integers(0, 50, (8, 16))
names = ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter")
found = []
for config in configs:
    encoder = TextEncoder(config)
    params = jax.jit(encoder.init)(jax.random.key(0))
    expected = jax.jit(encoder.apply)(params, ids)
    for sizes in ((1, 1, 4), (2, 2, 1)):
        mesh = make_mesh(*sizes)
        split = jax.device_put(params, split_sharding(params, mesh))
        with samples_over(batch_sharding(mesh)):
            given = jax.device_put(ids, batch_sharding(mesh))
            compiled = jax.jit(encoder.apply, out_shardings=batch_sharding(mesh)).lower(split, given).compile()
        states = compiled(split, given)
        apart = max(float(abs(np.asarray(states[name]) - np.asarray(expected[name])).max()) for name in states)
        counts = {name: len(re.findall(rf" {name}(?:-start)?\\(", compiled.as_text())) for name in names}
        found.append({"mesh": sizes, "apart": apart, "counts": counts})
print(json.dumps(found))
"""


@pytest.mark.nightly
def test_a_split_encoder_gives_the_same_states(run_python: Any) -> None:
    """On a tensor mesh a block adds up twice, and nothing is gathered; CLIP's blocks stand in two loops here."""
    found = json.loads(run_python("-c", SHARDED, devices=4).stdout.splitlines()[-1])
    assert all(each["apart"] < 1e-5 for each in found)
    none = {"all-gather": 0, "all-to-all": 0, "collective-permute": 0, "reduce-scatter": 0}
    assert [each["counts"] for each in found if each["mesh"] == [1, 1, 4]] == [
        none | {"all-reduce": 4},
        none | {"all-reduce": 2},
    ]


# --- names and refusals


@pytest.mark.parametrize(("config", "names"), [(CLIP, CLIP_PROJECTION_NAMES), (T5_TINY, T5_NAMES)], ids=["CLIP", "T5"])
def test_published_names_make_all_parameters(config: Any, names: Any) -> None:
    """Tensors of `transformers`' shapes, taken out of our parameters by hand, and back."""
    params, tensors = WEIGHTS[config], {}
    for path, of in names.items():
        leaf = params
        for name in path.split("/"):
            leaf = leaf[name]
        for number in range(config.depth) if path.startswith("blocks") else [None]:
            one = leaf if number is None else leaf[number]
            parts = [one] if isinstance(of, str) else [one[..., i, :] for i in range(3)]
            for name, part in zip([of] if isinstance(of, str) else of, parts, strict=True):
                tensors[name.format(number)] = part.T if path.endswith("kernel") else part
    assert tensors[names["blocks/contract/kernel"].format(2)].shape == (8, 16)
    jax.tree.map(np.testing.assert_array_equal, renamed(names, tensors.__getitem__, config.depth), params)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CLIPText(heads=7), "width=768 must be divisible by heads=7"),
        (lambda: CLIPText(skip=12), "skip=12 must be 0 to 11"),
        (lambda: CLIPText(activation="relu"), "quick_gelu or gelu, got 'relu'"),  # type: ignore[arg-type]
        (lambda: CLIPText(vocabulary=100), "end=49407 is no id of vocabulary=100"),
        (lambda: CLIPText(dtype="float16"), "float32 or bfloat16, got 'float16'$"),  # type: ignore[arg-type]
        (lambda: T5(dtype="float16"), "got 'float16', in which T5 overflows"),  # type: ignore[arg-type]
        (lambda: T5(buckets=6), "buckets is a multiple of 4"),
        (lambda: T5(distance=8), "distance more than buckets/4"),
        (lambda: T5(heads=0), "sizes are at least 1"),
        (lambda: states(CLIP, np.zeros((1, 9), int)), "8 positions, got texts of 9 tokens: cut them"),
        (lambda: states(CLIP, np.zeros((2, 8))), r"integer ids \(batch, length\), got float32 \(2, 8\)"),
        (lambda: states(CLIP, np.zeros(8, int)), r"integer ids \(batch, length\)"),
        (lambda: states(T5_TINY, IDS, np.ones((2, 7))), r"the shape of its ids, \(2, 8\); got \(2, 7\)"),
    ],
)
def test_what_does_not_fit_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
