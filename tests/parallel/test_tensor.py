"""Tensor parallelism: what is split, that heads stay whole, and what is communicated."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import AbstractMesh

from jaxdiff.networks import DiT, UNet, functional
from jaxdiff.train import check_heads, leaf_spec, make_optimizer

SMALL = DiT(in_channels=1, width=64, depth=3, heads=4, frequencies=16)

COLLECTIVES = """
import json, re
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jaxdiff.networks import DiT, functional
from jaxdiff.train import batch_sharding, make_mesh, split_sharding

def counted(text):
    names = ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter")
    return {name: len(re.findall(rf" {name}(?:-start)?\\(", text)) for name in names}

def of(data, fsdp, tensor, depth=3):
    mesh = make_mesh(data, fsdp, tensor)
    net = functional(DiT(in_channels=1, width=64, depth=depth, heads=4, frequencies=16))
    shapes = jax.eval_shape(net.init, jax.random.key(0))
    placed = lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
    params = jax.tree.map(placed, shapes, split_sharding(shapes, mesh))
    x = jax.ShapeDtypeStruct((8, 8, 8, 1), jnp.float32, sharding=batch_sharding(mesh))
    t = jax.ShapeDtypeStruct((8,), jnp.float32, sharding=batch_sharding(mesh))
    grad = jax.grad(lambda p, x, t: (net.apply(p, x, t) ** 2).sum(), argnums=0)
    whole = jax.tree.map(lambda leaf: leaf.sharding, params)
    compiled = jax.jit(net.apply, out_shardings=batch_sharding(mesh)).lower(params, x, t).compile()
    back = jax.jit(grad, out_shardings=whole).lower(params, x, t).compile()
    return {"forward": counted(compiled.as_text()), "backward": counted(back.as_text())}

print(json.dumps({"tensor": of(1, 1, 4), "data x tensor": of(2, 1, 2), "plain": of(1, 1, 1)}))
"""


def test_a_block_adds_up_twice_and_no_weight_is_gathered(run_python: Callable[..., Any]) -> None:
    found = json.loads(run_python("-c", COLLECTIVES, devices=4).stdout.splitlines()[-1])
    none = {"all-reduce": 0, "all-gather": 0, "all-to-all": 0, "collective-permute": 0, "reduce-scatter": 0}
    assert found["plain"] == {"forward": none, "backward": none}
    for mesh in ("tensor", "data x tensor"):
        # The blocks are one scan, whose body stands once in the program.
        assert found[mesh]["forward"] == none | {"all-reduce": 2}, mesh
        assert {**found[mesh]["backward"], "all-reduce": 0} == none, mesh
    assert found["tensor"]["backward"]["all-reduce"] == 4  # two forward, two for the gradient of a block's input


def _specs(tree: Any, **sizes: int) -> dict[str, tuple[Any, ...]]:
    names = jax.tree_util.tree_leaves_with_path(jax.eval_shape(lambda: tree))
    keys = ((jax.tree_util.keystr(path, simple=True, separator="/"), leaf.shape) for path, leaf in names)
    return {name: tuple(leaf_spec(shape, path=name, **sizes)) for name, shape in keys}


def test_the_rules_meet_the_weights_of_a_block() -> None:
    params = jax.eval_shape(functional(SMALL).init, jax.random.key(0))
    specs = _specs(jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), params), fsdp=1, tensor=2)
    split = {name: spec for name, spec in specs.items() if "tensor" in spec}
    assert split == {
        "blocks/attention/qkv/kernel": (None, None, None, "tensor"),
        "blocks/attention/qkv/bias": (None, None, "tensor"),
        "blocks/attention/out/kernel": (None, "tensor"),
        "blocks/expand/kernel": (None, None, "tensor"),
        "blocks/expand/bias": (None, "tensor"),
        "blocks/contract/kernel": (None, "tensor"),
    }
    both = _specs(jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), params), fsdp=2, tensor=2)
    assert both["blocks/attention/qkv/kernel"] == (None, "fsdp", None, "tensor")
    assert both["blocks/attention/out/kernel"] == (None, "tensor", "fsdp")
    assert both["patches/kernel"] == (None, "fsdp")


@pytest.mark.parametrize("state_dtype", ["float32", "bfloat16", "int8"])
def test_moments_are_split_like_their_parameters(state_dtype: Any) -> None:
    optimizer, _ = make_optimizer(lr=1e-3, steps=10, state_dtype=state_dtype)
    params = jax.eval_shape(functional(SMALL).init, jax.random.key(0))
    state = jax.eval_shape(optimizer.init, params)
    adam = next(
        part
        for part in jax.tree.leaves(state, is_leaf=lambda part: isinstance(part, optax.ScaleByAdamState))
        if isinstance(part, optax.ScaleByAdamState)
    )
    sizes = {"fsdp": 2, "tensor": 2}
    weights = _specs(jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), params), **sizes)
    for moment in (adam.mu, adam.nu):
        found = _specs(jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), moment), **sizes)
        for name, spec in found.items():
            if not name.endswith("scales"):
                assert spec == weights[name.removesuffix("/codes")], name


def test_heads_are_not_cut() -> None:
    mesh = AbstractMesh((1, 1, 4), ("data", "fsdp", "tensor"))
    check_heads(DiT(heads=8), mesh)
    check_heads(UNet(image_size=32, width=64, in_channels=1, head_width=16), mesh)
    check_heads(object(), mesh)
    with pytest.raises(ValueError, match="tensor=4 does not divide the 6 heads of attention: use a divisor, such as 3"):
        check_heads(DiT(heads=6), mesh)
    with pytest.raises(ValueError, match="does not divide the 1 heads"):
        check_heads(UNet(image_size=32, width=64, in_channels=1), mesh)


def test_what_cannot_be_split_stays_whole() -> None:
    assert tuple(leaf_spec((3, 6), 4, tensor=4, path="blocks/expand/kernel")) == ()
    assert tuple(leaf_spec((8,), 1, tensor=4, path="blocks/attention/qkv/kernel")) == ()
    assert tuple(leaf_spec((4, 8), 1, tensor=4, path="blocks/modulation/kernel")) == ()
