"""Training times at the ends of a process: where they are drawn, and what is refused. (Their laws: test_loss.py.)"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import kstest

import jaxdiff as jd
from tests.tables import PROCESSES


@pytest.mark.parametrize("process_name", ["Flow", "CosineVP", "SigmoidVP", "Shifted_flow"])
def test_likelihood_times_of_processes_that_reach_alpha_0(process_name: str) -> None:
    """Uniform in log-SNR between the process' own ends, not all at t = 1; weights leave expectations as they are."""
    process = PROCESSES[process_name]()
    first, last = process.min_time(), process.max_time()
    t, weight = jax.jit(lambda key: jd.LikelihoodTime().sample(process, (), key, 40_000))(jax.random.key(0))
    high, low = float(process.log_snr(first)), float(process.log_snr(last))
    assert kstest((np.asarray(process.log_snr(t)) - low) / (high - low), "uniform").pvalue > 1e-3
    f = lambda t: jnp.cos(3 * t)  # noqa: E731
    values = np.asarray(f(t) * weight, np.float64)
    expected = float((jnp.sin(3 * last) - jnp.sin(3 * first)) / (3 * (last - first)))
    assert values.mean() == pytest.approx(expected, abs=5 * values.std() / 200)
    with pytest.raises(ValueError, match=r"alpha\(1.0\) = 0"):
        jd.LikelihoodTime(t_max=1.0).sample(process, (), jax.random.key(0), 4)


@pytest.mark.parametrize("time", [jd.UniformLogSNR(), jd.GeometricLevels()])
def test_times_reach_the_process_own_noise(time: jd.UniformLogSNR | jd.GeometricLevels) -> None:
    """VE(1e-4, 1500) is trained from end to end, not up to sigma = e^6 and down to e^-6."""
    process = jd.VE(1e-4, 1500.0)
    sigma = process.sigma(time.sample(process, (), jax.random.key(0), 2000)[0])
    assert float(sigma.min()) < 1.1e-4 and float(sigma.max()) > 1450
    sigma = jd.VE().sigma(dataclasses.replace(time, low=-2.0, high=2.0).sample(jd.VE(), (), jax.random.key(0), 2000)[0])
    assert 0.99 * np.exp(-1) < float(sigma.min()) and float(sigma.max()) < 1.01 * np.exp(1)


@pytest.mark.parametrize("make", [jd.LossSecondMoment, jd.ScoreNorm])
def test_more_bins_than_steps_are_refused(make: Any) -> None:
    process, time = jd.DiscreteVP(jd.linear_betas(50)), make(bins=100)
    with pytest.raises(ValueError, match=r"100 bins for a chain of 50 steps.*Take bins=50"):
        time.sample(process, time.init(), jax.random.key(0), 4)
    time = make(bins=50)
    time.sample(process, time.init(), jax.random.key(0), 4)
