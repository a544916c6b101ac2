"""Orders of the stochastic samplers: weak by exact propagation on Gaussian data, strong along one Brownian path."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff.noise import brownian_noise
from jaxdiff.sampling.base import pad_times
from jaxdiff.sampling.exponential_sde import DPMpp2MSDE, DPMpp3MSDE, DPMppSDE, SASolver
from jaxdiff.sampling.karras import EDMStochastic, EulerAncestral
from jaxdiff.sampling.sde import EulerMaruyama, ReverseDiffusion
from tests.sampling.propagation import propagate
from tests.tables import PROCESSES, mixture

Make = Callable[[jd.Process, int], jd.Sampler]
"""A sampler for n steps."""

WEAK: dict[str, tuple[Make, int]] = {
    "EulerMaruyama": (lambda process, n: EulerMaruyama(process), 1),
    "EulerMaruyama_double": (lambda process, n: EulerMaruyama(process, np.sqrt(2.0)), 1),
    "ReverseDiffusion": (lambda process, n: ReverseDiffusion(process), 1),
    "ReverseDiffusion_half": (lambda process, n: ReverseDiffusion(process, 0.5), 1),
    "EulerAncestral": (lambda process, n: EulerAncestral(process), 1),
    "DPMppSDE": (lambda process, n: DPMppSDE(process), 2),
    "DPMppSDE_half": (lambda process, n: DPMppSDE(process, 0.5), 2),
    "DPMpp2MSDE": (lambda process, n: DPMpp2MSDE(process), 2),
    "DPMpp2MSDE_heun": (lambda process, n: DPMpp2MSDE(process, 1.0, "heun"), 2),
    "DPMpp3MSDE": (lambda process, n: DPMpp3MSDE(process), 2),
    "SASolver": (lambda process, n: SASolver(process), 2),
    "SASolver_1": (lambda process, n: SASolver(process, 1, 0), 1),
    "SASolver_1_2": (lambda process, n: SASolver(process, 1, 2, 0.7), 2),
    "EDMStochastic": (lambda process, n: EDMStochastic(process, 4.0 / n, 0.0, np.inf), 2),  # S_churn = 4
}
FEW = ["EulerMaruyama", "ReverseDiffusion", "DPMpp2MSDE", "SASolver"]
CASES = [("VP", sorted(WEAK)), ("VE", FEW), ("Flow", FEW), ("SubVP", ["DPMppSDE", "EDMStochastic"])]

run_weak = jax.jit(propagate)


@pytest.mark.parametrize(("process_name", "names"), CASES)
def test_weak_order(process_name: str, names: list[str]) -> None:
    """Mean and variance of Gaussian data, propagated exactly, tend to the true ones with the order stated."""
    with jax.enable_x64(True):
        process = PROCESSES[process_name]()
        exact = jd.GaussianDenoiser(process, jnp.asarray(0.7), jnp.asarray(0.5))
        t_max, t_min = process.time_of_log_snr(-4.0), process.time_of_log_snr(4.0)
        alpha, sigma = process.alpha(t_min), process.sigma(t_min)
        truth = np.array([0.7 * alpha, (0.5 * alpha) ** 2 + sigma**2])
        for name in names:
            make, order = WEAK[name]
            errors = []
            for n in (40, 80, 160):
                ts = pad_times(jd.log_snr_times(process, n + 1, t_max=t_max, t_min=t_min), 161)
                errors.append(np.abs(np.array(run_weak(make(process, n), exact, ts, n)) - truth))
            mean, variance = np.array(errors).T
            for found in (mean, variance):
                if found[-1] > 1e-12:  # exponential methods have the mean exactly
                    assert np.mean(-np.diff(np.log2(found))) >= order - 0.15, (name, found)
            assert variance[-1] < (0.02 if order == 1 else 1e-3), (name, variance)


def test_propagation_knows_a_closed_form() -> None:
    """Of DDPM on data at a point; and of a step's several draws, each by itself."""
    with jax.enable_x64(True):
        process = jd.VP()
        point = jd.GaussianDenoiser(process, jnp.asarray(0.7), jnp.asarray(0.0))
        ts = jd.log_snr_times(process, 4, t_max=0.9)
        for sampler in (jd.DDPM(process), DPMppSDE(process)):  # the posterior is the reverse kernel
            mean, variance = run_weak(sampler, point, ts)
            assert float(mean) == pytest.approx(0.7 * float(process.alpha(ts[-1])), rel=1e-9)
            assert float(variance) == pytest.approx(float(process.sigma(ts[-1])) ** 2, rel=1e-9)


STRONG: dict[str, Callable[[jd.Process], jd.Sampler]] = {
    "EulerMaruyama": EulerMaruyama,
    "ReverseDiffusion": ReverseDiffusion,
    "DDPM": jd.DDPM,
    "DPMppSDE": DPMppSDE,
    "DPMpp2MSDE": DPMpp2MSDE,
}


@pytest.mark.nightly
def test_strong_order() -> None:
    """Every method tends to one and the same solution along a sample's Brownian path, with order 1."""
    with jax.enable_x64(True):
        process = jd.VP()
        exact = mixture(process)
        t_max, t_min = (process.time_of_log_snr(-2.0 * np.log(ratio)) for ratio in (3.0, 0.5))
        keys = jd.sample_keys(jax.random.key(0), 0, 128)
        noise = jax.random.normal(jax.random.key(2), (128, 2))
        x = process.perturb(exact.sample_data(jax.random.key(1), 128), noise, t_max)
        path = functools.partial(brownian_noise, depth=13)

        @jax.jit
        def run(sampler: jd.Sampler, ts: jax.Array, n: int) -> jax.Array:
            return jd.integrate(sampler, exact, keys, x, ts, num_steps=n, noise=path)[0]

        def solution(name: str, n: int) -> np.ndarray:
            ts = jd.log_snr_times(process, n + 1, t_max=t_max, t_min=t_min)
            return np.asarray(run(STRONG[name](process), pad_times(ts, 513), n))

        truth = solution("DPMpp2MSDE", 512)
        for name in STRONG:
            errors = [np.sqrt(np.square(solution(name, n) - truth).mean()) for n in (16, 32, 64)]
            assert np.mean(-np.diff(np.log2(errors))) >= 0.85, (name, errors)
            assert errors[-1] < 0.02, (name, errors)
