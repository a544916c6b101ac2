"""Decays against the formulas, and the average against a loop in float64."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.train import Ema, HalfLifeEma, update_ema


def test_warm_up_is_tensorflows() -> None:
    steps = np.arange(0, 100_000, 997)
    expected = np.minimum(0.9999, (2 + steps) / (11 + steps))
    np.testing.assert_allclose([Ema(0.9999).decay(int(n), 8) for n in steps], expected, rtol=1e-6)
    assert float(Ema(0.99, warmup=False).decay(0, 8)) == pytest.approx(0.99)


def test_half_life_is_edms() -> None:
    for step in (0, 1, 10, 1000, 10**6):
        seen = step * 512
        expected = 0.5 ** (512 / max(min(500_000, seen * 0.05), 1e-8))
        assert float(HalfLifeEma(500_000, 0.05).decay(step, 512)) == pytest.approx(expected, rel=1e-5)


def test_half_life_halves_at_any_batch_size() -> None:
    for batch_size in (10, 50, 100):
        decay = HalfLifeEma(1000, None).decay(0, batch_size)
        assert float(decay) ** (1000 / batch_size) == pytest.approx(0.5, rel=1e-5)


def test_average_is_float32_and_moves_under_bfloat16_parameters() -> None:
    ema, exact = {"w": jnp.zeros(())}, 0.0
    params = {"w": jnp.asarray(1.0, jnp.bfloat16)}
    for _ in range(200):
        ema, exact = update_ema(ema, params, 0.9999), 0.9999 * exact + 0.0001
    assert ema["w"].dtype == jnp.float32
    assert float(ema["w"]) == pytest.approx(exact, rel=1e-4)


@pytest.mark.parametrize(
    "make", [lambda: Ema(1.0), lambda: Ema(-0.1), lambda: HalfLifeEma(0), lambda: HalfLifeEma(1, 0)]
)
def test_out_of_range_is_refused(make) -> None:
    with pytest.raises(ValueError):
        make()
