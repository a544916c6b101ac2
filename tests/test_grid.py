"""Grids: that they fall, reach their ends, and are spaced as their names say."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxdiff as jd
from tests.tables import DISCRETE, NO_SIGNAL_AT_END, PROCESSES

GRIDS = {
    "uniform": jd.uniform_times,
    "quadratic": jd.quadratic_times,
    "trailing": jd.trailing_times,
    "log_snr": jd.log_snr_times,
    "karras": jd.karras_times,
    "shifted": jd.shifted_times,
}


@pytest.mark.parametrize("grid", sorted(GRIDS))
@pytest.mark.parametrize("name", sorted(PROCESSES))
def test_every_grid_is_one_that_can_be_sampled_at(name: str, grid: str) -> None:
    process = PROCESSES[name]()
    for n in (1, 2, 3, 7, 18, 50, 100):
        ts = GRIDS[grid](process, n)
        assert ts.shape == (n,) and ts.dtype == jnp.float32
        jd.check_times(process, ts)
        capped = grid in ("log_snr", "karras") and name in NO_SIGNAL_AT_END | {"DiscreteVP_cosine"}
        if capped:
            assert float(process.sigma(ts[0]) / process.alpha(ts[0])) == pytest.approx(200, rel=2e-2)
        else:
            assert float(ts[0]) == 1.0
        if grid != "trailing" and n > 1:
            assert float(ts[-1]) == pytest.approx(float(process.min_time()), rel=1e-5)


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(sorted(PROCESSES)), st.sampled_from(sorted(GRIDS)), st.integers(1, 130))
def test_any_number_of_times(name: str, grid: str, n: int) -> None:
    jd.check_times(PROCESSES[name](), GRIDS[grid](PROCESSES[name](), n))


def test_spacings() -> None:
    process = jd.VP()
    np.testing.assert_allclose(np.diff(jd.uniform_times(process, 9), 2), 0, atol=1e-6)
    np.testing.assert_allclose(np.diff(jnp.sqrt(jd.quadratic_times(process, 9)), 2), 0, atol=1e-6)
    np.testing.assert_allclose(np.diff(process.log_snr(jd.log_snr_times(process, 9)), 2), 0, atol=1e-3)
    np.testing.assert_allclose(jd.trailing_times(process, 4), [1.0, 0.75, 0.5, 0.25])
    flow, u = jd.Flow(), np.linspace(1.0, 0.1, 9)  # Esser et al. 2024, equation 23
    shifted = jd.shifted_times(flow, 9, shift=3.0, t_min=3 * 0.1 / (1 + 2 * 0.1))
    np.testing.assert_allclose(shifted, 3 * u / (1 + 2 * u), rtol=1e-5)
    np.testing.assert_allclose(jd.shifted_times(flow, 9, shift=1.0), jd.uniform_times(flow, 9), rtol=1e-5)
    # Karras et al. 2022, equation 5, at their numbers
    edm = jd.KarrasVE()
    i = np.arange(18) / 17
    sigmas = (80 ** (1 / 7) + i * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(edm.sigma(jd.karras_times(edm, 18)), sigmas, rtol=1e-4)
    np.testing.assert_allclose(edm.sigma(jd.uniform_times(edm, 18)), sigmas, rtol=1e-4)


@pytest.mark.parametrize("name", sorted(DISCRETE))
@pytest.mark.parametrize("n", [3, 7, 30, 999, 1000])
def test_chains_keep_to_their_own_times(name: str, n: int) -> None:
    """No step count that does not divide T leaves the chain, repeats a time, or misses T."""
    process = PROCESSES[name]()
    for grid in (jd.uniform_times, jd.trailing_times):
        k = np.asarray(grid(process, n)) * 1000
        np.testing.assert_allclose(k, np.round(k), atol=1e-3)
        assert k[0] == 1000 and (np.diff(k) < -0.5).all() and k[-1] >= 0.999


def test_wide_data_are_sampled_from_the_process_own_end() -> None:
    """The README's pattern on VE(0.01, 1500) and data of standard deviation 300: the flow of the Gaussian gives
    300 x 1500/sqrt(1500^2 + 300^2) = 294.2, whichever grid."""
    process = jd.VE(0.01, 1500.0)
    keys = jd.sample_keys(jax.random.key(0), 0, 4000)
    exact, x = jd.GaussianDenoiser(process, 0.0, 300.0), process.prior_sample(keys, (2,))
    expected = 300 * 1500 / np.hypot(1500, 300) * float(x.std()) / 1500
    for grid in (jd.log_snr_times, jd.karras_times):
        ts = grid(process, 60)
        assert float(ts[0]) == 1.0
        samples = jax.jit(jd.sample)(jd.Heun(process), exact, None, x, ts)
        assert float(samples.std()) == pytest.approx(expected, rel=1e-2)  # the steps' own error


@pytest.mark.parametrize(
    ("n", "t_max", "t_min"),
    [(5, 0.003, 0.001), (4, 0.0025, None), (3, 0.0025, 0.0005), (1200, None, None), (2500, None, None), (7, 0.5, 0.49)],
)
def test_no_grid_repeats_a_time_of_a_chain(n: int, t_max: float | None, t_min: float | None) -> None:
    """Also where the chain has fewer times than are asked for between the ends."""
    process = PROCESSES["DiscreteVP_linear"]()
    for name, grid in GRIDS.items():
        ts = np.asarray(grid(process, n, t_max=t_max, t_min=t_min))
        assert ts.shape == (n,) and (np.diff(ts) < 0).all(), name
        assert ts[0] == np.float32(1.0 if t_max is None else t_max)
        assert ts[-1] >= np.float32(0.001 if t_min is None else t_min)


def test_ends_can_be_chosen() -> None:
    process = jd.Flow()
    for grid in GRIDS.values():
        ts = grid(process, 5, t_max=0.9, t_min=0.2)
        assert float(ts[0]) == pytest.approx(0.9)
        assert float(ts[-1]) == pytest.approx(0.2, abs=0.021)  # trailing: 0.9/5 = 0.18, bounded by t_min
        assert float(ts[-1]) >= 0.2 - 1e-6
    with pytest.raises(ValueError, match="at least one time"):
        jd.uniform_times(process, 0)
