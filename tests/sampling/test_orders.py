"""Orders of convergence on exact problems, and stochastic samplers' laws propagated exactly on Gaussian data."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.typing import ArrayLike

import jaxdiff as jd
from jaxdiff.prediction import Prediction
from tests.tables import PROCESSES, SAMPLERS, each_meets_a_family, every_process, gaussian, meetings, mixture

ORDERS = {"DDIM": 1, "Euler": 1, "Heun": 2, "Heun_rho": 2, "DPMpp2M": 2, "EDICT": 1, "BELM": 2}
SMOOTH = sorted(set(PROCESSES) - {"DiscreteVP_linear", "DiscreteVP_cosine", "DiscreteVP_zero_snr"})


def slopes(errors: list[float]) -> np.ndarray:
    return -np.diff(np.log2(errors))


def path_problem(process_name: str) -> tuple[jd.Process, jax.Array, Callable[[int], jax.Array], Callable]:
    """A mixture's flow from sigma/alpha = 2 to 0.1: where it starts, its grids, and the integrator."""
    process = PROCESSES[process_name]()
    exact = mixture(process)
    t_max, t_min = (process.time_of_log_snr(-2 * jnp.log(ratio)) for ratio in (2.0, 0.1))
    x0 = jnp.array([[0.9, 0.4], [-0.7, 0.2], [0.1, -0.8]])
    x = process.perturb(x0, jax.random.normal(jax.random.key(0), (3, 2)), t_max)
    run = jax.jit(lambda sampler, x, ts: jd.integrate(sampler, exact, None, x, ts)[0])
    return process, x, lambda n: jd.log_snr_times(process, n + 1, t_max=t_max, t_min=t_min), run


@functools.cache
def reference(process_name: str) -> np.ndarray:
    process, x, grid, run = path_problem(process_name)
    return np.asarray(run(SAMPLERS["Heun_rho"](process), x, grid(6000)))


@pytest.mark.parametrize(("process_name", "name"), meetings(SMOOTH, each_meets_a_family, ORDERS))
def test_order_on_a_mixture(process_name: str, name: str) -> None:
    """The global error against a fine solution halves (quarters) with each doubling of the steps."""
    with jax.enable_x64(True):
        process, x, grid, run = path_problem(process_name)
        truth = reference(process_name)
        errors = [
            float(jnp.sqrt(jnp.square(run(SAMPLERS[name](process), x, grid(n)) - truth).mean()))
            for n in (80, 160, 320, 640)
        ]
        assert np.mean(slopes(errors)) >= ORDERS[name] - 0.15, errors
        assert errors[-1] < 0.02


@pytest.mark.parametrize("process_name", every_process())
def test_gaussian_paths_are_followed_both_ways(process_name: str) -> None:
    """Deterministic samplers follow the closed-form flow of Gaussian data down, and encode it back up."""
    with jax.enable_x64(True):
        process = PROCESSES[process_name]()
        exact = gaussian(process)
        ts = jd.log_snr_times(process, 400, t_max=process.time_of_log_snr(-6.0), t_min=process.time_of_log_snr(5.0))
        x = jnp.array([[0.5, -1.0], [-1.2, 0.3]]) * process.sigma(ts[0])
        truth = exact.flow(x, ts[0], ts[-1])
        for name in set(ORDERS) - {"EDICT"}:  # whose error is several times DDIM's
            sampler = SAMPLERS[name](process)
            down, _ = jd.integrate(sampler, exact, None, x, ts)
            np.testing.assert_allclose(down, truth, atol=0.02 if ORDERS[name] == 1 else 2e-3, err_msg=name)
            up, _ = jd.integrate(sampler, exact, None, truth, ts[::-1])
            scale = float(process.sigma(ts[0]))
            np.testing.assert_allclose(up / scale, x / scale, atol=0.05 if ORDERS[name] == 1 else 5e-3, err_msg=name)


def affine(sampler: jd.Sampler, exact: jd.GaussianDenoiser, t: jax.Array, s: jax.Array) -> tuple[jax.Array, ...]:
    """A step x -> A x + b + c z on one coordinate, read off from the step itself."""

    def step(x: float, z: float) -> jax.Array:
        noise = lambda t, s, salt=0: jnp.full((1, 1), z)  # noqa: E731
        start = jnp.full((1, 1), x)
        return sampler.step(lambda x, t: exact(x, t), noise, sampler.init(start), start, t, s)[0][0, 0]

    b = step(0.0, 0.0)
    return step(1.0, 0.0) - b, b, step(0.0, 1.0) - b


def propagate(sampler: jd.Sampler, exact: jd.GaussianDenoiser, ts: jax.Array) -> tuple[float, float]:
    """Mean and variance at ts[-1] of samples that start from the exact law at ts[0]: no Monte Carlo."""
    process = sampler.process
    mean = process.alpha(ts[0]) * exact.mean
    variance = jnp.square(process.alpha(ts[0]) * exact.std) + jnp.square(process.sigma(ts[0]))

    def body(carry: tuple, times: tuple) -> tuple:
        mean, variance = carry
        a, b, c = affine(sampler, exact, *times)
        return (a * mean + b, a * a * variance + c * c), None

    (mean, variance), _ = jax.lax.scan(body, (mean, variance), (ts[:-1], ts[1:]))
    return float(mean), float(variance)


ONE_DRAW = ["DDIM_half", "DDPM_large", "DDPM_small", "EulerMaruyama"]  # of the others: test_stochastic_orders.py


@pytest.mark.parametrize(("process_name", "name"), meetings(SMOOTH, each_meets_a_family, ONE_DRAW))
def test_weak_order_of_stochastic_samplers(process_name: str, name: str) -> None:
    """Mean and variance, propagated exactly through the affine steps on Gaussian data, converge with order 1."""
    with jax.enable_x64(True):
        process = PROCESSES[process_name]()
        exact, sampler = jd.GaussianDenoiser(process, jnp.asarray(0.7), jnp.asarray(0.5)), SAMPLERS[name](process)
        t_max, t_min = process.time_of_log_snr(-4.0), process.time_of_log_snr(4.0)
        alpha, sigma = process.alpha(t_min), process.sigma(t_min)
        truth = np.array([0.7 * alpha, (0.5 * alpha) ** 2 + sigma**2])
        errors = []
        for n in (100, 200, 400, 800):
            ts = jd.log_snr_times(process, n + 1, t_max=t_max, t_min=t_min)
            errors.append(np.abs(np.array(propagate(sampler, exact, ts)) - truth))
        errors_of = np.array(errors)
        for which in range(2):
            if errors_of[-1, which] > 1e-12:  # some methods have the mean exactly
                assert np.mean(-np.diff(np.log2(errors_of[:, which]))) > 0.85, errors_of
        assert errors_of[-1].max() < 0.02


def test_ddpm_with_the_true_posterior_variance_is_exact_at_a_point() -> None:
    """Data at one point: the posterior is the reverse kernel, so DDPM has the exact law at any step count."""
    with jax.enable_x64(True):
        for process_name in SMOOTH:
            process = PROCESSES[process_name]()
            exact = jd.GaussianDenoiser(process, jnp.asarray(0.7), jnp.asarray(0.0))
            ts = jd.log_snr_times(process, 4, t_max=process.time_of_log_snr(-5.0))
            mean, variance = propagate(jd.DDPM(process), exact, ts)
            assert mean == pytest.approx(0.7 * float(process.alpha(ts[-1])), rel=1e-9)
            assert variance == pytest.approx(float(process.sigma(ts[-1])) ** 2, rel=1e-9)


def test_limits() -> None:
    """DDIM(eta = 1) is DDPM; Euler in rho is DDIM; a learned variance at its bounds is fixed-small and -large."""
    process = jd.VP()
    exact, ts = gaussian(process), jd.uniform_times(process, 9, t_min=0.01)
    keys = jd.sample_keys(jax.random.key(0), 0, 6)
    x = process.prior_sample(keys, (2,))
    run = lambda sampler, denoise=exact: jd.sample(sampler, denoise, keys, x, ts)  # noqa: E731
    np.testing.assert_allclose(run(jd.DDIM(process, 1.0)), run(jd.DDPM(process)), rtol=1e-4, atol=1e-5)

    def with_variance(output: float) -> jd.Denoiser:
        def denoise(x: jax.Array, t: ArrayLike, cond: object = None) -> Prediction:
            return exact(x, t)._replace(variance=jnp.full_like(x, output))

        return denoise

    learned = jd.DDPM(process, "learned")
    np.testing.assert_allclose(run(learned, with_variance(-1.0)), run(jd.DDPM(process)), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(
        run(learned, with_variance(1.0)), run(jd.DDPM(process, "fixed_large")), rtol=1e-3, atol=1e-4
    )
    # Euler in rho: y_s = y + (rho_s - rho) eps
    t, s = jnp.asarray(0.8), jnp.asarray(0.6)
    ratio = lambda t: process.sigma(t) / process.alpha(t)  # noqa: E731
    y = x / process.alpha(t) + (ratio(s) - ratio(t)) * exact(x, t).eps
    ddim, _ = jd.integrate(jd.DDIM(process), exact, None, x, jnp.array([t, s]))
    np.testing.assert_allclose(ddim, process.alpha(s) * y, rtol=1e-4, atol=1e-5)


def test_flow_euler_is_the_straight_line() -> None:
    """On Flow, Euler in t, DDIM and the last denoising of a trailing grid are one method."""
    process = jd.Flow()
    exact, ts = gaussian(process), jd.trailing_times(jd.Flow(), 10)
    x = process.prior_sample(jd.sample_keys(jax.random.key(0), 0, 4), (2,))
    euler = x
    for i in range(10):
        euler = euler - 0.1 * exact(euler, 1.0 - 0.1 * i).velocity(process, 1.0 - 0.1 * i)
    np.testing.assert_allclose(jd.sample(jd.Euler(process), exact, None, x, ts), euler, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(jd.sample(jd.DDIM(process), exact, None, x, ts), euler, rtol=1e-3, atol=1e-4)
