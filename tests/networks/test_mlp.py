from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.networks import MLP, functional

X = jnp.asarray(np.random.default_rng(0).standard_normal((3, 2)), jnp.float32)
T = jnp.array([0.0, 0.4, 250.0])
LABEL = {"label": jnp.array([0, 2, 1])}
NET = functional(MLP(out_channels=5, width=8, depth=2, frequencies=4, fourier=3, num_classes=3))


def disturbed(net, seed=0):
    """Parameters of which none is zero."""
    fresh = jax.jit(net.init)(jax.random.key(seed))
    leaves, tree = jax.tree.flatten(fresh)
    noise = np.random.default_rng(seed)
    moved = [leaf + 0.3 * noise.standard_normal(leaf.shape).astype(np.float32) for leaf in leaves]
    return fresh, jax.tree.unflatten(tree, moved)


def test_output_starts_at_zero_and_every_input_matters():
    fresh, params = disturbed(NET)
    apply = jax.jit(NET.apply)
    assert bool((apply(fresh, X, T, LABEL) == 0).all())
    y = apply(params, X, T, LABEL)
    assert y.shape == (3, 5) and y.dtype == jnp.float32
    for changed in ((X + 0.1, T, LABEL), (X, T + 0.1, LABEL), (X, T, {"label": jnp.array([1, 0, 2])}), (X, T, None)):
        assert bool((jnp.abs(apply(params, *changed) - y) > 1e-6).any(axis=1).all())
    gradient = jax.jit(jax.grad(lambda p: (NET.apply(p, X, T, LABEL) ** 2).sum()))(params)
    unmoved = [jax.tree_util.keystr(path) for path, g in jax.tree_util.tree_leaves_with_path(gradient) if not g.any()]
    assert unmoved == []


def test_points_do_not_mix():
    _, params = disturbed(NET)
    whole = NET.apply(params, X, T, LABEL)
    alone = NET.apply(params, X[1:2], T[1:2], {"label": LABEL["label"][1:2]})
    assert np.allclose(whole[1:2], alone, rtol=1e-5, atol=1e-6)


def test_scalar_times_and_fourier_features():
    plain = functional(MLP(in_channels=3, width=8, depth=1, frequencies=4))
    params = disturbed(plain)[1]
    x = jnp.ones((2, 3))
    assert plain.apply(params, x, 0.5).shape == (2, 3)
    assert np.allclose(plain.apply(params, x, 0.5), plain.apply(params, x, jnp.full(2, 0.5)))
    assert "fourier" not in params and disturbed(NET)[0]["fourier"].shape == (2, 3)


def test_third_derivatives_are_right():
    """Score matching with the Fokker-Planck regulariser differentiates three times; in the direction of a point."""
    _, params = disturbed(NET)

    def along(s):
        return NET.apply(params, X[:1] + s, T[:1], None)[0, 0]

    third = jax.jit(jax.jacfwd(jax.jacfwd(jax.jacfwd(along))))
    second = jax.jit(jax.jacfwd(jax.jacfwd(along)))
    assert float(third(0.0)) == pytest.approx(float(second(0.01) - second(-0.01)) / 0.02, rel=0.05, abs=0.05)


def test_what_does_not_fit_is_refused():
    for options, message in (
        ({"width": 0}, "width=0 must be at least 1"),
        ({"frequencies": 5}, "even"),
        ({"fourier": -1}, "fourier is at least 0"),
    ):
        with pytest.raises(ValueError, match=message):
            MLP(**options)  # type: ignore[arg-type]
    params = disturbed(NET)[0]
    with pytest.raises(ValueError, match="points"):
        NET.apply(params, jnp.zeros((3, 4)), T)
    with pytest.raises(ValueError, match="points"):
        NET.apply(params, jnp.zeros((3, 4, 2)), T)
    with pytest.raises(ValueError, match="unconditional"):
        functional(MLP(width=8)).apply(functional(MLP(width=8)).init(jax.random.key(0)), X, T, LABEL)
