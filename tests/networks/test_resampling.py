"""Resampling by a filter: its equations, summed one by one; and the two directions are each other's transpose."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.networks.resampling import Taps, resample

X = np.random.default_rng(0).normal(size=(2, 6, 4, 3)).astype(np.float32)


def matrix(taps: Taps, size: int) -> np.ndarray:
    """Equation (1) along one axis: ``(size/2, size)``."""
    p, found = len(taps) // 2 - 1, np.zeros((size // 2, size))
    for i in range(size // 2):
        for k, tap in enumerate(taps):
            if 0 <= 2 * i + k - p < size:
                found[i, 2 * i + k - p] += tap / sum(taps)
    return found


@pytest.mark.parametrize("taps", [(1, 1), (1, 3, 3, 1), (1, 2, 5, 7, 2, 1), (3, 1)])
def test_both_directions(taps: Taps) -> None:
    rows, columns = matrix(taps, 6), matrix(taps, 4)
    halved = np.einsum("Hh,Ww,bhwc->bHWc", rows, columns, X)
    np.testing.assert_allclose(resample(jnp.asarray(X), taps, "down"), halved, atol=1e-6)
    rows, columns = matrix(taps, 12), matrix(taps, 8)
    doubled = 4 * np.einsum("hH,wW,bhwc->bHWc", rows, columns, X)  # (2) is twice the transpose of (1), along each axis
    np.testing.assert_allclose(resample(jnp.asarray(X), taps, "up"), doubled, atol=1e-5)
    assert resample(jnp.asarray(X), taps, "down").shape == (2, 3, 2, 3)


def test_a_constant_stays_inside() -> None:
    one = jnp.ones((1, 8, 8, 1))
    for direction in ("up", "down"):
        np.testing.assert_allclose(resample(one, (1, 3, 3, 1), direction)[:, 1:-1, 1:-1], 1, atol=1e-6)
    assert resample(one, (1, 3, 3, 1), None) is one
