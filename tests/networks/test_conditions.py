"""Conditions of every network: their specs, their nulls, and that each one tells the network something."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from jaxdiff.networks import MLP, DeepCache, DiT, Image, TaylorSeer, UNet, Vector, functional
from jaxdiff.networks.conditions import ABSENT, enlarge
from jaxdiff.spec import Spec

STYLE = Vector("style", 2, mean=(5.0, 0.0), std=(2.0, 0.5))
LOW = Image("low", (4, 4), 1, null=True)
NETWORKS: dict[str, Any] = {
    "unet": UNet(
        8,
        in_channels=1,
        width=8,
        multipliers=(1, 1),
        blocks=1,
        attention_resolutions=(),
        num_classes=3,
        groups=4,
        conditions=(STYLE, LOW),
    ),
    "dit": DiT(in_channels=1, width=16, depth=2, heads=2, num_classes=3, conditions=(STYLE, LOW), frequencies=8),
    "mlp": MLP(width=8, depth=1, frequencies=8, num_classes=3, conditions=(STYLE,)),
}


def randomised(params):
    """The last layers start at zero: a network with every parameter drawn, so that its inputs reach its output."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    drawn = [0.3 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(tree, drawn)


def setting(name):
    net = functional(NETWORKS[name])
    x = jax.random.normal(jax.random.key(2), (2, 2) if name == "mlp" else (2, 8, 8, 1))
    cond = {"label": jnp.array([0, 2]), "style": jnp.array([[5.0, 0.1], [7.0, -0.5]])}
    if name != "mlp":
        cond["low"] = jax.random.normal(jax.random.key(3), (2, 4, 4, 1))
    return net, randomised(jax.jit(net.init)(jax.random.key(0))), x, cond


@pytest.mark.parametrize("name", NETWORKS)
def test_every_condition_reaches_the_output_and_its_absence_is_its_null(name):
    net, params, x, cond = setting(name)
    apply = jax.jit(net.apply)
    whole = apply(params, x, 0.5, cond)
    for left in cond:
        rest = {key: value for key, value in cond.items() if key != left}
        without = apply(params, x, 0.5, rest)
        assert float(jnp.abs(without - whole).max()) > 1e-4
        spec = net.cond[left]
        null = jnp.broadcast_to(jnp.asarray(spec.null, spec.dtype), cond[left].shape)
        np.testing.assert_array_equal(without, apply(params, x, 0.5, {**rest, left: null}))
    np.testing.assert_array_equal(apply(params, x, 0.5), apply(params, x, 0.5, {}))


def test_a_condition_of_one_sample_changes_no_other():
    net, params, x, cond = setting("dit")
    other = {**cond, "style": cond["style"].at[1].set(ABSENT)}
    a, b = net.apply(params, x, 0.5, cond), net.apply(params, x, 0.5, other)
    np.testing.assert_allclose(a[0], b[0], atol=1e-6)
    assert float(jnp.abs(a[1] - b[1]).max()) > 1e-4


@pytest.mark.parametrize(
    ("mean", "std"), [((5.0, 0.0), (2.0, 0.5)), ((), (2.0, 0.5)), ((5.0, 0.0), ())], ids=["both", "std", "mean"]
)
def test_a_vector_is_standardised(mean, std):
    plain, told = (
        functional(dataclasses.replace(NETWORKS["mlp"], conditions=(each,)))
        for each in (Vector("style", 2), Vector("style", 2, mean, std))
    )
    _, params, x, cond = setting("mlp")
    shifted = (cond["style"] - jnp.asarray([mean or (0.0, 0.0)])) / jnp.asarray([std or (1.0, 1.0)])
    np.testing.assert_allclose(
        told.apply(params, x, 0.5, cond), plain.apply(params, x, 0.5, {**cond, "style": shifted}), rtol=1e-5, atol=1e-5
    )


def test_conditions_add_nothing_where_there_are_none():
    plain = dataclasses.replace(NETWORKS["unet"], conditions=())
    assert "told" not in functional(plain).init(jax.random.key(0))


@pytest.mark.parametrize(("name", "cache"), [("unet", DeepCache(every=1)), ("dit", TaylorSeer(every=1))])
def test_caches_fill_in_what_is_left_out(name, cache):
    net, params, x, cond = setting(name)
    for given in (cond, {"label": cond["label"]}, None):
        memory = cache.begin(net, params, x, jnp.full(2, 0.5), given)
        output, _ = cache.apply(net, params, x, jnp.full(2, 0.5), given, memory)
        np.testing.assert_allclose(output, net.apply(params, x, 0.5, given), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [(8, 8), (12, 10), (4, 4)])
def test_enlarging_is_bilinear_between_pixels_centres(size):
    image = jax.random.normal(jax.random.key(0), (2, 4, 4, 3))
    expected = jax.image.resize(image, (2, *size, 3), "linear", antialias=False)
    np.testing.assert_allclose(enlarge(image, size), expected, atol=1e-5)
    with pytest.raises(ValueError, match="larger"):
        enlarge(image, (3, 8))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: dataclasses.replace(NETWORKS["unet"], conditions=(STYLE, STYLE)), "taken"),
        (lambda: dataclasses.replace(NETWORKS["dit"], conditions=(Vector("label", 1),)), "taken"),
        (lambda: dataclasses.replace(NETWORKS["dit"], conditions=(Vector("x", 1),)), "taken"),
        (lambda: dataclasses.replace(NETWORKS["mlp"], conditions=(LOW,)), "Vectors"),
        (lambda: Vector("style", 2, std=(1.0,)), "std has 1"),
        (lambda: Vector("style", 2, std=(1.0, 0.0)), "positive"),
        (lambda: Vector("style", 0), "at least 1"),
        (lambda: Image("low", (4, 0), 1), "at least 1"),
    ],
)
def test_conditions_that_make_no_sense_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


class Flat(linen.Module):
    """A Linen network with a condition and dropout."""

    rate: float = 0.5

    @property
    def cond(self):
        return {"style": Spec((2,), "float32", null=0.0)}

    @linen.compact
    def __call__(self, x, t, cond, train):
        told = linen.Dense(x.shape[-1])(cond["style"]) + t[:, None]
        return linen.Dropout(self.rate, deterministic=not train)(linen.Dense(x.shape[-1])(x) + told)


def test_a_linen_module_is_a_network():
    net = functional(Flat(), shape=(3,))
    assert net == functional(Flat(), shape=(3,)) and hash(net) == hash(functional(Flat(), shape=(3,)))
    params = jax.jit(net.init)(jax.random.key(0))
    x = jnp.ones((4, 3))
    plain = jax.jit(net.apply)(params, x, 0.5)
    np.testing.assert_array_equal(plain, net.apply(params, x, jnp.full(4, 0.5), {"style": jnp.zeros((4, 2))}))
    dropped = net.apply(params, x, 0.5, key=jax.random.key(1))
    assert bool((dropped == 0).any()) and not bool((plain == 0).any())
    with pytest.raises(TypeError, match="shape"):
        functional(Flat())
    with pytest.raises(ValueError, match="takes the conditions"):
        net.apply(params, x, 0.5, {"label": jnp.zeros(4, int)})


def test_a_linen_module_with_running_statistics_is_refused():
    class Normed(linen.Module):
        @linen.compact
        def __call__(self, x, t, cond, train):
            return linen.BatchNorm(use_running_average=not train)(x)

    with pytest.raises(ValueError, match="batch_stats"):
        functional(Normed(), shape=(3,)).init(jax.random.key(0))


def test_a_dropout_layer_that_captures_a_key_is_refused_with_the_way_out():
    class Captured(nnx.Module):
        def __init__(self, rngs):
            self.dropout = nnx.Dropout(0.5, rngs=rngs)

        def __call__(self, x, t, cond, key):
            return self.dropout(x)

    with pytest.raises(ValueError, match=r"nnx.Dropout\(rate\) without rngs"):
        functional(Captured).init(jax.random.key(0))

    class AtCallTime(nnx.Module):
        def __init__(self, rngs):
            self.dropout = nnx.Dropout(0.5)

        def __call__(self, x, t, cond, key):
            return self.dropout(x, deterministic=key is None, rngs=key)

    net = functional(AtCallTime)
    assert net.apply({}, jnp.ones((2, 2)), 0.5).tolist() == [[1, 1], [1, 1]]
    assert bool((net.apply({}, jnp.ones((8, 8)), 0.5, key=jax.random.key(0)) == 0).any())
