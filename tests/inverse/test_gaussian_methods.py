"""Methods on Gaussian data, where the posterior is known: what is exact, and what is known to be biased."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff.guidance import apply
from jaxdiff.inverse import Gaussian, Problem
from jaxdiff.inverse.operators import Linear
from jaxdiff.methods.inverse import parse_method
from tests.inverse.exact_models import (
    MEAN,
    PROCESSES,
    ROWS,
    VARIANCE,
    drawn,
    posterior,
    problem_of,
    separable,
    step_of,
)

Y = np.array([1.0, -0.5])
PRIOR = np.full(4, MEAN), VARIANCE * np.eye(4)


def exact_of(name: str) -> Any:
    return jd.GaussianDenoiser(PROCESSES[name], MEAN, VARIANCE**0.5)


@pytest.mark.parametrize(("name", "t"), [("vp", 0.4), ("vp", 1.0), ("flow", 1.0), ("flow", 0.2), ("ve", 0.7)])
@pytest.mark.parametrize("std", [0.0, 0.3])
def test_pigdm_predicts_the_mean_given_x_and_y(name: str, t: float, std: float) -> None:
    """E[x0 | x, y] of the joint Gaussian of (x0, x, y), by its singular values and by conjugate gradients."""
    exact, x = exact_of(name), jax.random.normal(jax.random.key(0), (3, 4, 1, 1))
    alpha, sigma = (float(part) for part in (exact.process.alpha(t), exact.process.sigma(t)))
    both = np.concatenate([alpha / sigma * np.eye(4), ROWS])
    noise = np.diag([1.0] * 4 + [max(std, 1e-6)] * 2) ** 2
    gain = PRIOR[1] @ both.T @ np.linalg.inv(both @ PRIOR[1] @ both.T + noise)
    told = np.concatenate([np.asarray(x).reshape(3, 4) / sigma, np.tile(Y, (3, 1))], axis=1)
    wanted = PRIOR[0] + (told - both @ PRIOR[0]) @ gain.T
    matrix = jnp.asarray(ROWS, jnp.float32)
    by_gradients = Linear((4, 1, 1), lambda m, x: jnp.einsum("yx,bxij->byij", m, x), matrix)
    for operator in (separable(), by_gradients):
        (element,), _ = parse_method(f"pigdm:{VARIANCE}").of(
            problem_of(operator, Y, std, 3), exact.process, jd.DDIM(exact.process)
        )
        found = apply([element], exact, exact.process, {})(x, jnp.asarray(t))
        np.testing.assert_allclose(np.asarray(found.x0).reshape(3, 4), wanted, atol=2e-4)
        np.testing.assert_allclose(exact.process.perturb(found.x0, found.eps, t), x, rtol=1e-4, atol=1e-4)


def test_pigdm_draws_from_the_posterior() -> None:
    """The flow is deterministic: what it makes of x at the first time is compared in law."""
    exact = exact_of("flow")
    ts = jd.log_snr_times(exact.process, 24)
    for std in (0.0, 0.3):
        found = drawn("pigdm:0.49", problem_of(separable(), Y, std, 4000), exact, ts, sampler="dpmpp_2m")
        mean, covariance = posterior(ROWS, Y, std, *PRIOR)
        np.testing.assert_allclose(found.reshape(-1, 4).mean(axis=0), mean, atol=0.03)
        np.testing.assert_allclose(np.cov(found.reshape(-1, 4).T), covariance, atol=0.03)


def test_daps_is_exact_on_a_coarse_grid() -> None:
    """Each level draws x0 from its law given x and y, so five levels do."""
    exact = exact_of("vp")
    ts = jnp.array([1.0, 0.8, 0.5, 0.2, 0.01])
    found = drawn("daps:solve=1,variance=0.49", problem_of(separable(), Y, 0.3, 4000), exact, ts).reshape(-1, 4)
    mean, covariance = posterior(ROWS, Y, 0.3, *PRIOR)
    np.testing.assert_allclose(found.mean(axis=0), mean, atol=0.03)
    np.testing.assert_allclose(np.cov(found.T), covariance, atol=0.03)
    dps = drawn("dps:1", problem_of(separable(), Y, 0.3, 4000), exact, ts).reshape(-1, 4)
    assert np.abs(np.cov(dps.T) - covariance).max() > 0.1  # DPS' known bias


def test_daps_by_langevin_is_the_same_law_as_at_once() -> None:
    exact, n = exact_of("vp"), 2000
    matrix = jnp.asarray(ROWS, jnp.float32)
    operator = Linear((4, 1, 1), lambda m, x: jnp.einsum("yx,bxij->byij", m, x), matrix)
    x = exact.process.perturb(jnp.zeros((n, 4, 1, 1)), jax.random.normal(jax.random.key(3), (n, 4, 1, 1)), 0.3)
    walked, at_once = (
        np.asarray(step_of("daps:solve=1,variance=0.49,steps=150", problem_of(each, Y, 0.3, n), exact, x, 0.3, 0.01))
        for each in (operator, separable())
    )
    np.testing.assert_allclose(walked.mean(axis=0), at_once.mean(axis=0), atol=0.05)
    covariances = [np.cov(each.reshape(n, 4).T) for each in (walked, at_once)]
    np.testing.assert_allclose(covariances[0], covariances[1], atol=0.03)


@pytest.mark.parametrize(
    ("method", "name", "std", "times"),
    [
        ("ddrm", "vp", 0.3, (0.5, 0.3)),
        ("ddrm:eta=0.4,eta_b=0.7", "flow", 0.3, (0.4, 0.1)),  # all three kinds of direction
        ("ddrm:eta=1,eta_b=1", "ve", 0.0, (0.5, 0.3)),
        ("ddnm_plus", "vp", 0.3, (0.5, 0.3)),
        ("ddnm_plus:0.5", "flow", 0.5, (0.4, 0.1)),
        ("ddnm_plus", "ve", 0.0, (0.5, 0.3)),
    ],
)
def test_steps_keep_the_noise_of_their_time(method: str, name: str, std: float, times: tuple[float, float]) -> None:
    """With the true x0 in the place of the predicted, x_s ~ N(alpha_s x0, sigma_s^2 I) over y, x_t and z."""
    process, n = PROCESSES[name], 20_000
    (t, s), truth = times, jnp.asarray([0.4, -0.2, 0.1, 0.6]).reshape(4, 1, 1)
    draws = jax.random.normal(jax.random.key(5), (2, n, 4, 1, 1))
    rows = np.diag([1.0, 0.4, 0.1, 0.0])  # directions measured well, less well, badly and not
    operator = separable(rows)
    problem = Problem(operator, operator(truth[None]) + std * draws[0], Gaussian(std))
    exact = jd.GaussianDenoiser(process, truth, 0.0)
    x = process.perturb(jnp.broadcast_to(truth[None], draws[1].shape), draws[1], t)
    found = np.asarray(step_of(method, problem, exact, x, t, s)).reshape(n, 4)
    alpha, sigma = float(process.alpha(s)), float(process.sigma(s))
    np.testing.assert_allclose(found.mean(axis=0), alpha * truth.ravel(), atol=4 * sigma / n**0.5)
    np.testing.assert_allclose(np.cov(found.T) / sigma**2, np.eye(4), atol=5 * (2 / n) ** 0.5)


def test_ddrm_with_nothing_measured_is_ddim_and_with_all_the_measurement() -> None:
    exact = exact_of("vp")
    ts = jd.log_snr_times(exact.process, 8)
    nothing = drawn("ddrm:eta=0", problem_of(separable(np.zeros((2, 4))), Y, 0.0, 3), exact, ts)
    keys = jd.sample_keys(jax.random.key(0), 0, 3)
    x = exact.process.prior_sample(keys, (4, 1, 1), ts[0])
    np.testing.assert_allclose(nothing, jd.sample(jd.DDIM(exact.process), exact, None, x, ts), atol=1e-4)
    y = np.array([0.1, 0.2, -0.3, 0.4])
    whole = drawn("ddrm", problem_of(separable(np.eye(4)), y, 0.0, 3), exact, ts)
    np.testing.assert_allclose(whole.reshape(3, 4), np.tile(y, (3, 1)), atol=1e-5)


def test_repainting_brings_the_parts_together() -> None:
    """Two numbers of correlation 0.9, one known: replacement alone hardly tells the other of it."""
    process = jd.VP()
    covariance = np.array([[1.0, 0.9], [0.9, 1.0]])
    exact = jd.FullGaussianDenoiser.from_covariance(process, jnp.zeros((2, 1, 1)), covariance)
    problem = problem_of(separable(np.array([[1.0, 0.0]])), [1.5], 0.0, 1500)
    ts = jd.log_snr_times(process, 16)
    other = {r: drawn(f"repaint:{r}", problem, exact, ts).reshape(-1, 2) for r in (1, 10)}
    mean, spread = posterior(np.array([[1.0, 0.0]]), np.array([1.5]), 0.0, np.zeros(2), covariance)
    errors = {r: (abs(x[:, 1].mean() - mean[1]), abs(x[:, 1].var() - spread[1, 1])) for r, x in other.items()}
    for r, x in other.items():
        np.testing.assert_allclose(x[:, 0], 1.5, atol=1e-5, err_msg=str(r))
    assert errors[10][0] < 0.5 * errors[1][0] and errors[1][0] > 0.1, errors
