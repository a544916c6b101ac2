"""DPM-Solver and DPM-Solver++(2S): orders, the paper's own forms, exact cases, ends."""

from __future__ import annotations

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.typing import ArrayLike

import jaxdiff as jd
from jaxdiff.prediction import Prediction, from_eps
from jaxdiff.sampling.base import pad_times
from jaxdiff.sampling.singlestep import DPMpp2S, DPMSolver
from tests.sampling.reference import reference_path
from tests.tables import PROCESSES, gaussian, mixture

METHODS = {
    "DPMSolver2": (DPMSolver, 2),
    "DPMSolver3": (lambda process: DPMSolver(process, 3), 3),
    "DPMpp2S": (DPMpp2S, 2),
}
path = jax.jit(reference_path, static_argnums=4)


@jax.jit
def finish(samplers: dict, exact: jd.Denoiser, x: jax.Array, ts: jax.Array, n: int) -> dict:
    return {name: jd.integrate(s, exact, None, x, ts, num_steps=n)[0] for name, s in samplers.items()}


@pytest.mark.parametrize("process_name", ["VP", "VE", "Flow"])
def test_orders_on_a_mixture(process_name: str) -> None:
    """Down from sigma/alpha = 2 to 0.1 on a graded grid, and back up."""
    with jax.enable_x64(True):
        process = PROCESSES[process_name]()
        exact, samplers = mixture(process), {name: make(process) for name, (make, _) in METHODS.items()}

        def grid(n: int) -> jax.Array:
            u = jnp.arange(n + 1) / n
            return process.time_of_log_snr(-2.0 * math.log(2.0) + 2.0 * math.log(20.0) * (u + 0.5 * u * u) / 1.5)

        ends = grid(1)
        x0 = jnp.array([[0.9, 0.4], [-0.7, 0.2], [0.1, -0.8]])
        x = process.perturb(x0, jax.random.normal(jax.random.key(0), (3, 2)), ends[0])
        truth = path(process, exact, x, ends, 5000)[-1]
        down: dict = {name: [] for name in METHODS}
        up: dict = {name: [] for name in METHODS}
        for n in (160, 320):
            for errors, begin, ts, end in ((down, x, grid(n), truth), (up, truth, grid(n)[::-1], x)):
                for name, there in finish(samplers, exact, begin, pad_times(ts, 321), n).items():
                    errors[name].append(float(jnp.sqrt(jnp.square(there - end).mean())))
        for name, (_, order) in METHODS.items():
            for errors in (down, up):
                assert math.log2(errors[name][0] / errors[name][1]) >= order - 0.15, (name, errors)
                assert errors[name][1] < 1e-3, (name, errors)


def printed_step(exact: jd.GaussianDenoiser, name: str, x: np.ndarray, t: ArrayLike, s: ArrayLike) -> np.ndarray:
    """The papers' boxes in their own words."""
    process = exact.process
    lam, e, ln = lambda t: 0.5 * float(process.log_snr(t)), math.expm1, process.time_of_log_snr
    alpha, sigma = (lambda t: float(process.alpha(t))), (lambda t: float(process.sigma(t)))
    eps = lambda x, t: np.asarray(exact(jnp.asarray(x), t).eps)  # noqa: E731
    h = lam(s) - lam(t)
    if name == "DPMpp2S":  # Lu et al. 2022b, algorithm 1, r = 1/2
        middle = ln(2.0 * (lam(t) + 0.5 * h))
        x0 = lambda x, t: np.asarray(exact(jnp.asarray(x), t).x0)  # noqa: E731
        u = sigma(middle) / sigma(t) * x - alpha(middle) * e(-0.5 * h) * x0(x, t)
        return sigma(s) / sigma(t) * x - alpha(s) * e(-h) * x0(u, middle)
    if name == "DPMSolver2":  # Lu et al. 2022a, algorithm 1
        middle = ln(2.0 * (lam(t) + 0.5 * h))
        u = alpha(middle) / alpha(t) * x - sigma(middle) * e(0.5 * h) * eps(x, t)
        return alpha(s) / alpha(t) * x - sigma(s) * e(h) * eps(u, middle)
    r1, r2 = 1 / 3, 2 / 3  # Lu et al. 2022a, algorithm 2
    s1, s2 = ln(2.0 * (lam(t) + r1 * h)), ln(2.0 * (lam(t) + r2 * h))
    u1 = alpha(s1) / alpha(t) * x - sigma(s1) * e(r1 * h) * eps(x, t)
    d1 = eps(u1, s1) - eps(x, t)
    u2 = (
        alpha(s2) / alpha(t) * x
        - sigma(s2) * e(r2 * h) * eps(x, t)
        - sigma(s2) * r2 / r1 * (e(r2 * h) / (r2 * h) - 1) * d1
    )
    d2 = eps(u2, s2) - eps(x, t)
    return alpha(s) / alpha(t) * x - sigma(s) * e(h) * eps(x, t) - sigma(s) / r2 * (e(h) / h - 1) * d2


def test_steps_are_the_papers() -> None:
    with jax.enable_x64(True):
        process = jd.VP()
        exact, x, ts = gaussian(process), jnp.array([[0.5, -1.0], [-1.2, 0.3]]), jnp.array([0.9, 0.6, 0.45, 0.2])
        found = finish({name: make(process) for name, (make, _) in METHODS.items()}, exact, x, ts, 3)
        for name, there in found.items():
            by_hand = np.asarray(x)
            for t, s in itertools.pairwise(ts):
                by_hand = printed_step(exact, name, by_hand, t, s)
            np.testing.assert_allclose(there, by_hand, rtol=1e-11, err_msg=name)


def test_limits_and_exact_cases() -> None:
    """DPM-Solver-1 is DDIM; constant eps, and for 2S constant x0, cost no error at any step."""
    with jax.enable_x64(True):
        process = jd.Flow()
        point = jd.GaussianDenoiser(process, jnp.array([0.7, -0.4]), 0.0)
        x, ts = jnp.array([[0.5, -1.0], [-1.2, 0.3]]), jnp.array([0.95, 0.6, 0.1])

        def straight(x: jax.Array, t: ArrayLike, cond: object = None) -> Prediction:
            return from_eps(process, x, t, jnp.full_like(x, 0.3))

        @jax.jit
        def run() -> tuple[jax.Array, ...]:
            go = lambda sampler, denoise: jd.integrate(sampler, denoise, None, x, ts)[0]  # noqa: E731
            exact = mixture(process)
            return (
                go(DPMSolver(process, 1), exact),
                go(jd.DDIM(process), exact),
                go(DPMpp2S(process), point),
                *(go(DPMSolver(process, p), straight) for p in (2, 3)),
            )

        first, ddim, at_point, *lines = run()
        np.testing.assert_array_equal(first, ddim)
        np.testing.assert_allclose(at_point, point.flow(x, ts[0], ts[-1]), rtol=1e-12)
        rho = process.sigma(ts) / process.alpha(ts)
        line = process.alpha(ts[-1]) * (x / process.alpha(ts[0]) + 0.3 * (rho[-1] - rho[0]))
        for there in lines:
            np.testing.assert_allclose(there, line, rtol=1e-12)


@pytest.mark.parametrize("process_name", ["Flow", "DiscreteVP_zero_snr"])
def test_from_and_to_where_there_is_no_signal(process_name: str) -> None:
    """2S steps from alpha = 0, and up to it, as DDIM does; DPM-Solver refuses."""
    process = PROCESSES[process_name]()
    exact, x = mixture(process), process.prior_sample(jd.sample_keys(jax.random.key(0), 0, 3), (2,))
    ts = jnp.array([1.0, 0.7])
    both = {"2S": DPMpp2S(process), "DDIM": jd.DDIM(process)}
    for times in (ts, ts[::-1]):
        found = finish(both, exact, x, times, 1)
        assert np.isfinite(found["2S"]).all()
        np.testing.assert_allclose(found["2S"], found["DDIM"], rtol=1e-6)
    with pytest.raises(ValueError, match=r"alpha\(1.0\) = 0"):
        jd.sample(DPMSolver(process), exact, None, x, ts)


def test_float32_follows_float64() -> None:
    """Three hundred steps, where (e^h - 1)/h - 1 as printed would keep three digits."""
    ends = []
    for double in (False, True):
        with jax.enable_x64(double):
            process = jd.VP()
            exact, x = mixture(process), jnp.array([[0.5, -1.0], [-1.2, 0.3]])
            samplers = {name: make(process) for name, (make, _) in METHODS.items()}
            ends.append(finish(samplers, exact, x, jd.log_snr_times(process, 301), 300))
    for name, single in ends[0].items():
        np.testing.assert_allclose(single, ends[1][name], atol=2e-4, err_msg=name)


def test_order_is_checked() -> None:
    for order in (0, 4, True):
        with pytest.raises(ValueError, match="the order of DPMSolver is to be 1 to 3, got"):
            DPMSolver(jd.VP(), order)
