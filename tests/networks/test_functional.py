"""The pure boundary: plain parameters, one trace for equal recipes, refusals."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxdiff.networks import DiT, UNet, functional

TINY = UNet(image_size=8, in_channels=1, width=8, multipliers=(1, 2), blocks=1, attention_resolutions=(4,))


class Tower(nnx.Module):
    """Twelve layers in a list: more than ten, so that keys sorted as strings and as numbers differ."""

    def __init__(self, depth, rngs):
        self.layers = nnx.List([nnx.Linear(2, 2, rngs=rngs) for _ in range(depth)])

    def __call__(self, x, t, cond, key):
        for layer in self.layers:
            x = layer(x)
        return x


@dataclass(frozen=True)
class TowerConfig:
    depth: int = 12

    def __call__(self, rngs):
        return Tower(self.depth, rngs)


def test_parameters_are_a_plain_nested_dict_with_string_keys():
    def check(tree):
        if isinstance(tree, dict):
            assert type(tree) is dict
            for name, branch in tree.items():
                assert type(name) is str
                check(branch)
        else:
            assert tree.dtype == jnp.float32

    check(jax.eval_shape(functional(TINY).init, jax.random.key(0)))
    check(functional(TowerConfig()).init(jax.random.key(0)))


def test_members_of_a_list_keep_their_order():
    net = functional(TowerConfig())
    params = net.init(jax.random.key(0))
    x = jnp.ones((1, 1, 1, 2))
    expected = x
    for index in range(12):
        layer = params["layers"][str(index)]
        expected = expected @ layer["kernel"] + layer["bias"][None, None, None]
    np.testing.assert_allclose(net.apply(params, x, 0.0), expected, rtol=1e-4)


def test_equal_recipes_share_a_trace_and_unequal_ones_do_not():
    traces = []

    def run(net, params, x):
        traces.append(net)
        return net.apply(params, x, 0.5)

    jitted = jax.jit(run, static_argnums=0)
    params = functional(TowerConfig()).init(jax.random.key(0))
    x = jnp.ones((1, 1, 1, 2))
    jitted(functional(TowerConfig()), params, x)
    jitted(functional(TowerConfig(12)), params, x + 1)
    assert len(traces) == 1
    jitted(functional(TowerConfig(1)), functional(TowerConfig(1)).init(jax.random.key(0)), x)
    assert len(traces) == 2
    assert functional(UNet(width=64)) == functional(UNet(width=64)) != functional(UNet(width=32))
    assert hash(functional(UNet(width=64))) == hash(functional(UNet(width=64)))
    assert functional(DiT()) != functional(UNet())


def test_init_is_the_same_function_under_jit_vmap_and_eval_shape():
    net = functional(DiT(in_channels=1, width=8, depth=2, heads=2, num_classes=3))
    keys = jax.random.split(jax.random.key(0), 2)
    params = jax.jit(net.init)(keys[1])
    many = jax.jit(jax.vmap(net.init))(keys)
    jax.tree.map(lambda one, stack: np.testing.assert_allclose(one, stack[1], atol=1e-6), params, many)
    shapes = jax.eval_shape(net.init, keys[0])
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), shapes) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), params
    )
    different = [bool((stack[0] != stack[1]).any()) for stack in jax.tree.leaves(many) if stack.ndim > 2]
    assert any(different)


def test_a_raw_key_is_a_key():
    net = functional(TowerConfig(1))
    jax.tree.map(np.testing.assert_array_equal, net.init(jax.random.PRNGKey(3)), net.init(jax.random.key(3)))


def test_output_is_float32_and_an_ensemble_is_a_vmap_over_parameters():
    net = functional(TowerConfig(2))
    many = jax.vmap(net.init)(jax.random.split(jax.random.key(0), 3))
    x = jnp.ones((1, 1, 1, 2), jnp.bfloat16)
    together = jax.vmap(net.apply, in_axes=(0, None, None))(many, x, 0.0)
    assert together.dtype == jnp.float32
    alone = net.apply(jax.tree.map(lambda leaf: leaf[2], many), x, 0.0)
    np.testing.assert_allclose(together[2], alone, rtol=1e-6)


class Stateful(nnx.Module):
    def __init__(self, rngs):
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.weight = nnx.Param(jnp.ones(()))

    def __call__(self, x, t, cond, key):
        return self.drop(x) * self.weight


def test_refusals_name_the_fault():
    with pytest.raises(ValueError, match=r"Stateful holds state that is not a parameter: drop\.rngs"):
        functional(Stateful).init(jax.random.key(0))
    with pytest.raises(TypeError, match="got a built Tower"):
        functional(Tower(1, nnx.Rngs(0)))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"unhashable type: 'list'.*tuples for lists"):
        functional(UNet(multipliers=[1, 2, 2, 2]))  # type: ignore[arg-type]
    net = functional(TowerConfig(2))
    params = net.init(jax.random.key(0))
    x = jnp.ones((1, 1, 1, 2))
    with pytest.raises(ValueError, match=r"another network: \['1'\] at layers"):
        net.apply({"layers": {"0": params["layers"]["0"]}}, x, 0.0)
    with pytest.raises(ValueError, match=r"layers/0/kernel has shape \(2, 1\), expected \(2, 2\)"):
        bad = {"kernel": jnp.ones((2, 1)), "bias": jnp.ones(2)}
        net.apply({"layers": {"0": bad, "1": bad}}, x, 0.0)
