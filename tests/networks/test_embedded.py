"""Conditions of every kind in one network: each tells it something, each is dropped alone, padding tells nothing."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxdiff.networks import MLP, DeepCache, DiT, Image, Level, Map, Text, Tokens, UNet, Vector, functional
from jaxdiff.networks.backend import attention_form
from jaxdiff.networks.conditions import nearest
from jaxdiff.networks.embedded import ConditionEmbeddings, LevelEmbedding, TextTransformer
from jaxdiff.networks.embeddings import timestep_embedding
from jaxdiff.networks.layers import draw, fan_average
from jaxdiff.spec import drop, null_of
from jaxdiff.train.flops import products
from jaxdiff.train.sharding import leaf_spec
from tests.networks.padded import assert_padding_changes_no_bit
from tests.test_readme import blocks, run_block

CONDITIONS = (
    Vector("age", 1, std=(0.1,), fourier=8),
    Vector("place", 2, into="tokens"),
    Level("low_level", null=True),
    Text("text", vocabulary=9, length=5, width=8, depth=1, heads=2),
    Tokens("read", 6, pooled=4),
    Image("low", (4, 4), 1, null=True),
    Map("parts", (4, 4), 3),
)
RECIPE = UNet(
    8,
    in_channels=1,
    width=8,
    multipliers=(1,),
    blocks=1,
    groups=2,
    attention_resolutions=(),
    transformer_layers=(1,),
    heads=2,
    num_classes=3,
    conditions=CONDITIONS,
)
X = jax.random.normal(jax.random.key(2), (2, 8, 8, 1))
COND: dict[str, Any] = {
    "label": jnp.array([0, 2]),
    "age": jnp.array([[0.1], [0.7]]),
    "place": jnp.array([[0.3, -1.0], [1.0, 2.0]]),
    "low_level": jnp.array([0.1, 0.6]),
    "text": jnp.array([[2, 5, 3, 0, 0], [2, 8, 7, 4, 3]]),
    "read": {
        "tokens": jax.random.normal(jax.random.key(3), (2, 4, 6)),
        "mask": jnp.array([[1.0, 1, 0, 0], [1, 1, 1, 1]]),
        "pooled": jax.random.normal(jax.random.key(4), (2, 4)),
    },
    "low": jax.random.normal(jax.random.key(5), (2, 4, 4, 1)),
    "parts": jnp.arange(32).reshape(2, 4, 4) % 3,
}


@functools.cache
def made():
    """The network, parameters of which none is 0, and its jitted functions."""
    net = functional(RECIPE)
    leaves, tree = jax.tree.flatten(jax.eval_shape(net.init, jax.random.key(0)))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    params = [0.3 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)]
    return net, jax.tree.unflatten(tree, params), jax.jit(net.apply)


def test_each_kind_changes_the_output_and_its_null_is_its_absence_and_dropping_it_leaves_the_others():
    net, params, apply = made()
    assert list(net.cond) == list(COND)
    whole = apply(params, X, 0.5, COND)
    for name, spec in net.cond.items():
        null = jax.tree.map(lambda null, like: jnp.broadcast_to(null, like.shape), null_of(spec, 2), COND[name])
        absent = apply(params, X, 0.5, {**COND, name: null})
        assert float(abs(absent - whole).max((1, 2, 3)).min()) > 1e-4, name
        dropped = drop(net.cond, COND, {name: jnp.array([True, False])})
        others = {each: COND[each] for each in COND if each != name}
        assert jax.tree.all(jax.tree.map(np.array_equal, {each: dropped[each] for each in others}, others))
        mixed = apply(params, X, 0.5, dropped)
        np.testing.assert_allclose(mixed[0], absent[0], atol=1e-5, err_msg=name)
        np.testing.assert_allclose(mixed[1], whole[1], atol=1e-5, err_msg=name)
    without = {name: value for name, value in COND.items() if name != "read"}
    null = {name: jnp.zeros_like(value) for name, value in COND["read"].items()}
    np.testing.assert_array_equal(apply(params, X, 0.5, without), apply(params, X, 0.5, {**without, "read": null}))


def test_the_gradient_reaches_every_parameter_and_every_number():
    net, params, _ = made()
    learned = ("age", "place", "low_level")  # whose nulls are learned: the second sample has none of them
    second = drop(net.cond, COND, {name: jnp.array([False, True]) for name in learned})
    numbers = {name: second[name] for name in (*learned, "read", "low")}

    def loss(params, numbers):
        return (net.apply(params, X, jnp.array([1.0, 2.0]), {**second, **numbers}) ** 2).mean()

    of_params, of_numbers = jax.jit(jax.grad(loss, (0, 1)))(params, numbers)
    for path, gradient in jax.tree.leaves_with_path({"params": of_params, "cond": of_numbers}):
        name = jax.tree_util.keystr(path)
        assert bool(jnp.isfinite(gradient).all()), name
        if not name.endswith("['mask']"):
            assert float(abs(gradient).max()) > 0, name
    padding = np.asarray(COND["read"]["mask"]) == 0
    assert not np.asarray(of_numbers["read"]["tokens"])[padding].any()


def test_padding_changes_no_bit_of_the_network_at_any_length():
    _, params, apply = made()
    whole = apply(params, X, 0.5, COND)
    read = COND["read"]
    padding = read["mask"] == 0
    garbage = {**read, "tokens": jnp.where(padding[..., None], 1e30, read["tokens"])}
    np.testing.assert_array_equal(apply(params, X, 0.5, {**COND, "read": garbage}), whole)
    only = {"text": COND["text"]}  # tokens of variable length come last
    assert_padding_changes_no_bit(lambda text: apply(params, X, 0.5, {**only, "read": text}), read)


def test_a_captions_padding_is_not_read_and_its_last_word_is_pooled():
    short, long = (Text("text", 9, length, width=8, depth=2, heads=2) for length in (3, 6))
    reader = draw(TextTransformer(long), jax.random.key(0))
    reader.positions[...] = jax.random.normal(jax.random.key(1), (6, 8))
    cut = draw(TextTransformer(short), jax.random.key(0))
    cut.positions[...] = reader.positions[:3]
    ids = jnp.array([[2, 5, 3], [2, 3, 0], [0, 0, 0]])
    given, wanted = nnx.jit(reader)(jnp.pad(ids, ((0, 0), (0, 3)))), nnx.jit(cut)(ids)
    np.testing.assert_allclose(given["tokens"][:, :3], wanted["tokens"], atol=1e-5)
    for row, last in enumerate((2, 1, 0)):
        np.testing.assert_allclose(given["pooled"][row], given["tokens"][row, last], atol=1e-6)
    assert given["mask"].sum(axis=1).tolist() == [3, 2, 0]
    wrong = nnx.jit(reader)(jnp.array([[2, 9, 3, 0, 0, 0]] * 3))  # an id that is none
    assert bool(jnp.isnan(wrong["pooled"]).all())


def test_levels_are_embedded_as_times_and_joined_vectors_share_a_perceptron():
    level = draw(LevelEmbedding(Level("s"), 8, init=fan_average), jax.random.key(0))
    told: Any = level(jnp.array([0.25])).vector
    np.testing.assert_allclose(told, level.time(250.0, 1), atol=1e-6)
    conditions = (Tokens("text", 4, pooled=3), Vector("ids", 2, fourier=4, null=False))  # as SDXL's
    embed: Any = draw(ConditionEmbeddings(conditions, 8, tokens=4, joined=True), jax.random.key(0))
    value = {"tokens": jnp.ones((1, 2, 4)), "mask": jnp.ones((1, 2)), "pooled": jnp.array([[0.3, -1.0, 2.0]])}
    vector, tokens, _ = embed({"text": value, "ids": jnp.array([[512.0, 64.0]])})
    waves = np.concatenate([np.asarray(timestep_embedding(jnp.array([n]), 4))[0] for n in (512.0, 64.0)])
    features = np.concatenate([[0.3, -1.0, 2.0], waves])
    hidden = features @ embed.together.hidden.kernel[...]
    expected = (hidden / (1 + np.exp(-hidden))) @ embed.together.out.kernel[...]
    np.testing.assert_allclose(vector, expected[None], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(tokens, value["tokens"])  # of the common width: as they are


def test_cross_attention_costs_its_own_flops():
    """Of four transformers, one on the way down, one in the middle, two up: queries and output, keys and values, both
    products of attention."""
    plain = functional(dataclasses.replace(RECIPE, conditions=()))
    told = functional(dataclasses.replace(RECIPE, conditions=(Tokens("read", 6),)))
    with attention_form("plain"):
        counts = [
            products(jax.make_jaxpr(each.apply)(each_params, X, 0.5, cond).jaxpr).flops
            for each, cond in ((plain, None), (told, {"read": {k: COND["read"][k] for k in ("tokens", "mask")}}))
            for each_params in [jax.eval_shape(each.init, jax.random.key(0))]
        ]
    pixels, width, length, context = 2 * 64, 8, 4, 6
    own = 2 * (2 * pixels * width**2 + 2 * 2 * length * context * width + 2 * pixels * length * width)
    assert counts[1] - counts[0] == 4 * own


@pytest.mark.nightly
def test_a_cache_and_recomputation_change_nothing():
    net, params, apply = made()
    whole = apply(params, X, 0.5, COND)
    cache, t = DeepCache(every=2), jnp.full(2, 0.5)
    run = jax.jit(lambda memory: cache.apply(net, params, X, t, COND, memory))
    first, memory = run(cache.begin(net, params, X, t, COND))
    second, memory = run(memory)
    assert int(memory.full) == 1
    np.testing.assert_allclose(first, whole, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(second, whole, rtol=1e-4, atol=1e-4)  # the same input again

    def gradient(remat):
        other = functional(dataclasses.replace(RECIPE, remat=remat))
        return jax.jit(jax.grad(lambda params: (other.apply(params, X, 0.5, COND) ** 2).mean()))(params)

    expected = gradient("none")
    for remat in ("full", "dots"):
        for ours, theirs in zip(jax.tree.leaves(gradient(remat)), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4 * float(abs(theirs).max()))


def test_heads_and_hidden_layers_of_transformers_are_split_over_the_tensor_axis():
    net, _, _ = made()
    shapes = jax.eval_shape(net.init, jax.random.key(0))["middle_in"]["attention"]["layers"]["0"]

    def split(path, leaf):
        names = "middle_in/attention/layers/0/" + jax.tree_util.keystr(path, simple=True, separator="/")
        return tuple(leaf_spec(leaf.shape, 1, tensor=2, path=names))

    found = jax.tree_util.tree_map_with_path(split, shapes)
    assert found["cross_attention"] == {
        **{name: {"kernel": (None, "tensor")} for name in ("query", "key", "value")},
        "out": {"kernel": ("tensor",), "bias": ()},
    }
    assert found["attention"] == {"qkv": {"kernel": (None, None, "tensor")}, "out": {"kernel": ("tensor",), "bias": ()}}
    assert found["expand"] == {"kernel": (None, None, "tensor"), "bias": (None, "tensor")}
    assert found["contract"] == {"kernel": ("tensor",), "bias": ()}


def test_a_map_is_enlarged_by_the_nearest_pixel_and_never_mixed():
    classes = jax.random.randint(jax.random.key(0), (2, 3, 4), 0, 5)
    for size in [(3, 4), (6, 8), (7, 9)]:
        expected = jax.image.resize(classes, (2, *size), "nearest")
        np.testing.assert_array_equal(nearest(classes, size), expected)
    with pytest.raises(ValueError, match="must not be larger"):
        nearest(classes, (2, 4))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: UNet(conditions=(Tokens("text", 8),)), r"conditions \['text'\] are tokens.*set transformer_layers"),
        (lambda: UNet(transformer_layers=(1, 1)), r"one number a level, 4"),
        (lambda: UNet(transformer_layers=(0, 0, 0, 0)), "not all of them 0"),
        (lambda: UNet(transformer_layers=(1, 0, 0, 0), heads=3), "128 channels.*heads=3"),
        (lambda: MLP(conditions=(Level("s"),)), "Vectors"),  # type: ignore[arg-type]
        (
            lambda: functional(MLP(conditions=(Vector("a", 1, into="tokens"),))).init(jax.random.key(0)),
            r"\['a'\] are tok",
        ),
        (lambda: Text("t", 9, 4, width=8, heads=3), "divisible by heads=3"),
        (lambda: Text("t", 9, 1), "null has 2 ids, a caption has 1"),
        (lambda: Text("t", 3, 4), r"below vocabulary=3, got \[3\]"),
        (lambda: Tokens("t", 0), "at least 1"),
        (lambda: Map("m", (4, 4), 0), "at least 1"),
        (lambda: Vector("v", 1, fourier=3), "even and at least 4, got 3"),
        (lambda: Vector("v", 2, channels=(0, 3)), "as many for each of 2 numbers"),
        (lambda: Vector("v", 2, channels=(0, 4), into="tokens"), "of the embedding of time"),
        (
            lambda: functional(DiT(width=8, depth=1, heads=2, conditions=(Vector("v", 1, channels=(4, 9)),))).init(
                jax.random.key(0)
            ),
            "of an embedding of width 8",
        ),
        (lambda: Vector("v", 1, into="x"), "'time' or 'tokens', got 'x'"),  # type: ignore[arg-type]
    ],
)
def test_conditions_that_make_no_sense_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_transformer_is_told_by_vectors_and_pooled_texts_alone():
    recipe = DiT(in_channels=1, width=8, depth=1, heads=1, frequencies=8, conditions=(CONDITIONS[0], CONDITIONS[2]))
    params = jax.eval_shape(functional(recipe).init, jax.random.key(0))
    assert set(params["told"]["by_name"]) == {"age", "low_level"}


PAGE = Path(__file__).resolve().parents[2] / "docs" / "conditions.md"


@pytest.mark.parametrize("number", range(2))
def test_the_pages_snippets_run(number: int) -> None:
    run_block(blocks(PAGE, "python")[number], f"conditions_{number}")


@pytest.mark.parametrize("joined", [False, True])
def test_numbers_with_channels_share_a_perceptron_and_stand_side_by_side(joined: bool) -> None:
    vector = Vector("sizes", 2, fourier=8, null=False, channels=(3, 9))
    embed = draw(ConditionEmbeddings((vector,), 12, joined=joined), jax.random.key(0))
    found = np.asarray(embed({"sizes": jnp.array([[5.0, 7.0], [7.0, 7.0]])}).vector)
    assert found.shape == (2, 12) and not found[:, :3].any() and not found[:, 9:].any()
    np.testing.assert_allclose(found[1, 3:6], found[1, 6:9], rtol=1e-5)
    np.testing.assert_allclose(found[0, 6:9], found[1, 6:9], rtol=1e-5)
    assert np.abs(found[0, 3:6] - found[0, 6:9]).max() > 1e-2
    one = embed.by_name["sizes"]
    waves = timestep_embedding(jnp.array([5.0]), 8)
    np.testing.assert_allclose(found[0, 3:6], one.out(jax.nn.silu(one.hidden(waves)))[0], rtol=1e-4, atol=1e-6)
