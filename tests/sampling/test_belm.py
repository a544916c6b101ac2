"""O-BELM: exact where the paper says that its error is none, and rising times that undo falling ones."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff.prediction import from_eps
from jaxdiff.sampling import BELM
from jaxdiff.sampling.belm import Before
from tests.sampling.test_edict import there_and_back
from tests.tables import PROCESSES, mixture


def test_it_is_exact_on_parabolas_in_rho() -> None:
    """Its local error is of the third derivative of x/alpha in rho: with eps linear in rho there is none."""
    with jax.enable_x64(True):
        process, a, b = jd.VP(), 0.7, -0.3
        ts = jnp.array([0.9, 0.7, 0.65, 0.4, 0.38, 0.1])  # of no regular kind
        rho = process.sigma(ts) / process.alpha(ts)
        path = process.alpha(ts)[:, None, None] * (1.5 + a * rho + 0.5 * b * jnp.square(rho))[:, None, None]

        def denoise(x: Any, t: Any, cond: Any = None) -> Any:
            eps = jnp.full_like(x, a + b * process.sigma(t) / process.alpha(t))
            return from_eps(process, x, t, eps)

        begin = Before(path[0], ts[0])
        for end in (2, 4, 5):
            found, _ = jd.integrate(BELM(process), denoise, None, path[1], ts[1 : end + 1], state=begin)
            np.testing.assert_allclose(found, path[end], atol=1e-12)
        cold, _ = jd.integrate(BELM(process), denoise, None, path[1], ts[1:3])
        assert np.abs(cold - path[2]).max() > 1e-3  # DDIM's first step is of first order


def test_its_first_step_is_ddims_and_equal_steps_are_the_midpoint_rule() -> None:
    process = jd.KarrasVE()
    exact, x = mixture(process), jnp.array([[0.4, -1.3]])
    rho = jnp.array([0.9, 0.7, 0.5])
    ts = process.time_of_log_snr(-2 * jnp.log(rho))
    first, state = jd.integrate(BELM(process), exact, None, x, ts[:2])
    ddim, _ = jd.integrate(jd.DDIM(process), exact, None, x, ts[:2])
    np.testing.assert_allclose(first, ddim, rtol=1e-6)
    found, _ = jd.integrate(BELM(process), exact, None, first, ts[1:], state=state)
    np.testing.assert_allclose(found, x - 0.4 * exact(first, ts[1]).eps, rtol=1e-4)


@pytest.mark.parametrize("name", ["VP", "KarrasVE", "Flow", "DiscreteVP_cosine"])
@pytest.mark.parametrize("steps", [20, 50])
def test_rising_times_undo_falling_ones(name: str, steps: int) -> None:
    process = PROCESSES[name]()
    exact, ts = mixture(process), jd.karras_times(process, steps)
    x = process.alpha(ts[-1]) * exact.sample_data(jax.random.key(0), 16)
    back, _ = there_and_back(BELM(process), exact, x, ts)
    np.testing.assert_allclose(back, x, atol=1e-4)
    assert np.abs(there_and_back(jd.DDIM(process), exact, x, ts)[0] - x).max() > 0.05


def test_one_way_may_turn() -> None:
    """Down and up again in one integration, the last place being the first step's own."""
    process = jd.VP()
    down = jd.log_snr_times(process, 12, t_min=0.05)
    x = jax.random.normal(jax.random.key(0), (4, 2))
    with jax.enable_x64(True):
        wide = jnp.asarray(x, jnp.float64)
        ts = jnp.asarray(jnp.concatenate([down, down[-2::-1]]), jnp.float64)
        back, before = jd.integrate(BELM(jd.VP()), mixture(jd.VP()), None, wide, ts)
        np.testing.assert_allclose(back, wide, atol=1e-8)
        np.testing.assert_allclose(before.time, ts[1])


def test_what_it_refuses() -> None:
    with pytest.raises(ValueError, match="BELM has no finite step"):
        jd.integrate(BELM(jd.Flow()), mixture(jd.Flow()), None, jnp.ones((1, 2)), jnp.array([1.0, 0.5]))
