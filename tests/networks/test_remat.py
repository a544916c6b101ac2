"""Recomputation: the gradient stays, what the backward pass keeps shrinks, and other derivatives still pass."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.networks import DiT, UNet, functional

RANDOM = np.random.default_rng(0)
UNETS: dict[str, Any] = {"image_size": 8, "in_channels": 2, "width": 8, "multipliers": (1, 2), "blocks": 1}
NETWORKS: dict[str, Any] = {
    "ddpm": UNet(**UNETS, attention_resolutions=(4,), num_classes=3, dropout=0.5),
    "adm": UNet(**UNETS, attention_resolutions=(4,), head_width=4, scale_shift=True, residual_resampling=True),
    "dit": DiT(in_channels=2, width=16, depth=3, heads=2, num_classes=3, dropout=0.5, frequencies=16),
}
X = jnp.asarray(RANDOM.standard_normal((3, 8, 8, 2)), jnp.float32)
T = jnp.array([0.0, 0.4, 250.0])


def gradient(config: Any, policy: str) -> Any:
    """The gradient of a loss, not compiled."""
    net = functional(dataclasses.replace(config, remat=policy))

    def loss(params: Any) -> jax.Array:
        return (net.apply(params, X, T, key=jax.random.key(5)) ** 2).mean()

    return jax.grad(loss)


@pytest.mark.parametrize("name", ["ddpm", "dit"])
def test_the_gradient_stays(name: str) -> None:
    config = NETWORKS[name]
    params = jax.jit(functional(config).init)(jax.random.key(0))
    params = jax.tree.map(lambda p: p + 0.2 * RANDOM.standard_normal(p.shape).astype(np.float32), params)
    plain, dots, full = jax.jit(lambda p: [gradient(config, policy)(p) for policy in ("none", "dots", "full")])(params)
    for other in (dots, full):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), other, plain)


def kept(config: Any, policy: str) -> int:
    """Values that the backward pass receives from the forward pass, parameters not counted."""
    net = functional(dataclasses.replace(config, remat=policy))
    params = jax.eval_shape(net.init, jax.random.key(0))
    _, pull = jax.eval_shape(lambda p: jax.vjp(lambda p: net.apply(p, X, T), p), params)
    return sum(leaf.size for leaf in jax.tree.leaves(pull)) - sum(leaf.size for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize("name", list(NETWORKS))
def test_less_is_kept(name: str) -> None:
    plain, dots, full = (kept(NETWORKS[name], policy) for policy in ("none", "dots", "full"))
    assert full < 0.7 * dots and dots < 0.7 * plain, (plain, dots, full)


def test_the_full_policy_keeps_what_enters_the_blocks() -> None:
    """With one block more a level, `full` keeps its input and its output's place in the skips, nothing from within."""
    config = NETWORKS["adm"]
    more = dataclasses.replace(config, blocks=2)
    inputs = 3 * (8 * 8 * 8 + 4 * 4 * 16)  # a sample's values entering a block at each level, times the batch
    grown = kept(more, "full") - kept(config, "full")
    assert inputs <= grown <= 5 * inputs, (grown, inputs)


def test_forward_derivatives_pass() -> None:
    net = functional(dataclasses.replace(NETWORKS["ddpm"], remat="full"))
    params = jax.eval_shape(net.init, jax.random.key(0))
    value, tangent = jax.eval_shape(lambda p, x: jax.jvp(lambda x: net.apply(p, x, T), (x,), (x,)), params, X)
    assert value.shape == tangent.shape == X.shape


@pytest.mark.parametrize("kind", [UNet, DiT])
def test_another_policy_is_refused(kind: Any) -> None:
    with pytest.raises(ValueError, match="remat='all' must be one of none, full, dots"):
        kind(remat="all")
