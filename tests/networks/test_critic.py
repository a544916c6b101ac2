"""The patch critic: published counts, the square that it sees, and the spectral norm."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.networks import PatchCritic, functional
from jaxdiff.networks.critic import spectral_norm


def count(build: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(functional(build).init, jax.random.key(0))))


def test_counts() -> None:
    """pix2pix prints 2.769 M for its critic of two images, six channels; group normalisation has as many parameters."""
    assert round(count(PatchCritic(in_channels=6)) / 1e6, 3) == 2.769
    assert count(PatchCritic(in_channels=6)) - count(PatchCritic()) == 3 * 16 * 64


def test_a_number_depends_on_a_square_of_70_pixels() -> None:
    net = functional(PatchCritic(in_channels=1, width=1, norm="spectral"))
    params = jax.jit(net.init)(jax.random.key(0))
    params = jax.tree.map(lambda leaf: jnp.abs(leaf) + 0.01, params)  # so that nothing cancels

    def middle(x: Any) -> Any:
        judged = net.module(params)(x)[0]
        return judged[judged.shape[0] // 2, judged.shape[1] // 2]

    seen = np.asarray(jax.jit(jax.grad(middle))(jnp.ones((1, 160, 160, 1))))[0, :, :, 0] != 0
    rows = np.flatnonzero(seen.any(1))
    assert seen.sum() == 70 * 70 and rows[-1] - rows[0] == 69


@pytest.mark.parametrize("norm", ["group", "spectral"])
def test_samples_do_not_know_each_other(norm: Any) -> None:
    net = functional(PatchCritic(in_channels=1, width=8, layers=1, norm=norm))
    params = jax.jit(net.init)(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (3, 8, 8, 1))
    judge = jax.jit(lambda params, x: net.module(params)(x))
    judged = judge(params, x)
    assert judged.shape == (3, 2, 2)
    np.testing.assert_allclose(judge(params, x[1:2]), judged[1:2], atol=1e-6)


@pytest.mark.parametrize("shape", [(48, 6), (6, 48), (144, 32)])
def test_spectral_norm_is_the_largest_singular_value(shape: tuple[int, int]) -> None:
    matrix = np.random.default_rng(0).normal(size=shape)
    u, values, v = np.linalg.svd(matrix, full_matrices=False)
    found, gradient = jax.value_and_grad(spectral_norm)(jnp.asarray(matrix, jnp.float32))
    np.testing.assert_allclose(found, values[0], rtol=1e-4)
    np.testing.assert_allclose(gradient, np.outer(u[:, 0], v[0]), atol=2e-3)


def test_spectral_normalisation_makes_each_layer_short() -> None:
    """Scaling a kernel changes nothing."""
    net = functional(PatchCritic(in_channels=1, width=8, layers=1, norm="spectral"))
    params = jax.jit(net.init)(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (1, 8, 8, 1))
    first = params["first"]
    scaled = {**params, "first": {**first, "kernel": 7 * first["kernel"]}}
    judge = jax.jit(lambda params: net.module(params)(x))
    np.testing.assert_allclose(judge(scaled), judge(params), rtol=1e-4)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="norm='batch' must be one of group, spectral"):
        PatchCritic(norm="batch")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least 1"):
        PatchCritic(layers=0)
    net = functional(PatchCritic())
    params = jax.eval_shape(net.init, jax.random.key(0))
    with pytest.raises(ValueError, match=r"of at least 24 pixels a side, got .* with fewer layers"):
        jax.eval_shape(lambda params, x: net.module(params)(x), params, jnp.zeros((1, 16, 16, 3)))
