"""Schedules against their formulas, clipping, and what weight decay leaves alone."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiff.train import decays, make_optimizer, make_schedule

STEPS = np.array([0, 1, 49, 50, 51, 100, 500, 999, 1000])


def _expected(name: str, n: np.ndarray) -> np.ndarray:
    if name == "cosine":
        body = 0.1 + 0.9 * (1 + np.cos(np.pi * (n - 50) / 950)) / 2
    elif name == "inverse_sqrt":
        body = 1 / np.sqrt(np.maximum(n / 50, 1))
    else:
        body = np.ones(n.shape)
    return 1e-3 * np.where(n < 50, n / 50, body)


@pytest.mark.parametrize("name", ["constant", "cosine", "inverse_sqrt"])
def test_schedules(name: Any) -> None:
    rate = make_schedule(1e-3, steps=1000, schedule=name, warmup=50, final_fraction=0.1)
    np.testing.assert_allclose([rate(n) for n in STEPS], _expected(name, STEPS), rtol=2e-5)
    np.testing.assert_allclose([jax.jit(rate)(n) for n in STEPS], _expected(name, STEPS), rtol=2e-5)


def test_inverse_sqrt_can_hold_before_it_falls() -> None:
    rate = make_schedule(1.0, steps=1000, schedule="inverse_sqrt", warmup=10, decay_start=100)
    np.testing.assert_allclose([rate(5), rate(10), rate(100), rate(400)], [0.5, 1.0, 1.0, 0.5], rtol=1e-6)


@pytest.mark.parametrize("name", ["constant", "cosine", "inverse_sqrt"])
def test_a_run_may_end_within_its_warm_up(name: Any) -> None:
    rate = make_schedule(1.0, steps=5, schedule=name, warmup=10)
    np.testing.assert_allclose([rate(n) for n in range(5)], np.arange(5) / 10, rtol=1e-6)


def test_no_decay_on_biases_scales_and_vectors_even_when_stacked() -> None:
    blocks = {"norm": {"scale": jnp.ones((4, 8))}, "dense": {"kernel": jnp.ones((4, 8, 8)), "bias": jnp.ones((4, 8))}}
    params = {"blocks": blocks, "embedding": jnp.ones((10, 8)), "gain": jnp.ones(8), "temperature": jnp.ones(())}
    expected = {
        "blocks": {"norm": {"scale": False}, "dense": {"kernel": True, "bias": False}},
        "embedding": True,
        "gain": False,
        "temperature": False,
    }
    assert decays(params) == expected
    optimizer, _ = make_optimizer(lr=0.1, steps=10, weight_decay=0.5)

    @jax.jit
    def step(params: Any) -> Any:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return optax.apply_updates(params, optimizer.update(zeros, optimizer.init(params), params)[0])

    after = step(params)
    jax.tree.map(lambda a, decayed: np.testing.assert_allclose(a, 0.95 if decayed else 1.0, rtol=1e-6), after, expected)


def test_clipping_is_by_global_norm() -> None:
    grads = {"a": jnp.full((2, 2), 30.0), "b": jnp.full(3, 40.0)}
    norm = float(optax.tree.norm(grads))
    params = jax.tree.map(jnp.zeros_like, grads)

    def first_moment(clip_norm: float | None, grads: Any) -> Any:
        optimizer, _ = make_optimizer(lr=0.1, steps=10, clip_norm=clip_norm)
        state = jax.jit(lambda g, p: optimizer.update(g, optimizer.init(p), p)[1])(grads, params)
        return optax.tree.get(state, "mu")

    scaled = jax.tree.map(lambda g: g / norm, grads)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), first_moment(1.0, grads), first_moment(None, scaled)
    )


@pytest.mark.parametrize(
    "wrong",
    [
        {"lr": 0.0},
        {"warmup": -1},
        {"final_fraction": 1.5},
        {"decay_start": 0},
        {"schedule": "linear"},
        {"b1": 1.0},
        {"eps": 0.0},
        {"weight_decay": -1.0},
        {"clip_norm": 0.0},
        {"state_dtype": "float16"},
    ],
)
def test_out_of_range_is_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        make_optimizer(**({"lr": 1e-3, "steps": 10} | wrong))
