"""Text encoders as programs: derivatives, 16 bits, growth with depth, where weights lie, refusals."""

from __future__ import annotations

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.networks.text import T5, CLIPText, TextEncoder, clip_l, t5_xxl
from jaxdiff.train import check_heads, leaf_spec
from tests.networks.text_encoders import CLIP, CLIP_TINY, IDS, T5_TINY, WEIGHTS, states


@pytest.mark.parametrize("config", [CLIP, T5_TINY], ids=["CLIP", "T5"])
def test_vmap_gradients_and_16_bits(config: Any) -> None:
    encoder, weights = TextEncoder(config), WEIGHTS[config]
    mask = np.ones(IDS.shape)
    mask[:, 4:] = 0
    whole = states(config, IDS, mask)["tokens"]
    each = jax.jit(jax.vmap(encoder.apply, in_axes=(None, 0, 0)))(weights, IDS[:, None], mask[:, None])["tokens"]
    np.testing.assert_allclose(each[:, 0], whole, atol=1e-5)

    half = TextEncoder(type(config)(**{**vars(config), "dtype": "bfloat16"}))

    def loss(params: Any) -> Any:
        found = half.apply(params, IDS, mask)
        return sum((state**2).sum() for state in found.values()), found["tokens"]

    rounded = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), weights)
    gradient, rough = jax.jit(jax.grad(loss, has_aux=True))(rounded)
    assert rough.dtype == jnp.float32
    assert 0 < np.abs(rough - whole).max() < 0.1 * np.abs(whole).max()
    assert all(np.isfinite(leaf).all() and np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient))


def test_the_gradient_through_a_part_of_the_stack_is_that_through_all() -> None:
    def gradient(**fields: Any) -> Any:
        encoder = TextEncoder(CLIPText(**CLIP_TINY, projection=6, **fields))
        return jax.jit(jax.grad(lambda params: (encoder.apply(params, IDS)["projected"] ** 2).sum()))(WEIGHTS[CLIP])

    whole = gradient()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(whole))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), whole, gradient(skip=1))


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


# --- refusals


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
        (lambda: T5(heads=0), "heads=0 must be at least 1"),
        (lambda: states(CLIP, np.zeros((1, 9), int)), "8 positions, got texts of 9 tokens: cut them"),
        (lambda: states(CLIP, np.zeros((2, 8))), r"integer ids \(batch, length\), got float32 \(2, 8\)"),
        (lambda: states(CLIP, np.zeros(8, int)), r"integer ids \(batch, length\)"),
        (lambda: states(T5_TINY, IDS, np.ones((2, 7))), r"the shape of its ids, \(2, 8\); got \(2, 7\)"),
    ],
)
def test_what_does_not_fit_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
