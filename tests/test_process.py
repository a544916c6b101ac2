"""Processes: closed forms against what follows from alpha and sigma alone, and float32 against float64."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.typing import ArrayLike

import jaxdiff as jd
from jaxdiff.process import Process
from tests.tables import DISCRETE, NO_SIGNAL_AT_END, PROCESSES


@pytest.fixture(params=sorted(PROCESSES))
def named(request: pytest.FixtureRequest) -> tuple[str, jd.Process]:
    return request.param, PROCESSES[request.param]()


def dense_times(process: jd.Process, name: str) -> np.ndarray:
    """Float32 times over [0, 1], dense at both ends; for chains its own times and places between them."""
    ends = np.geomspace(1e-6, 0.1, 60)
    times = np.concatenate([ends, np.linspace(0.1, 0.9, 60), 1 - ends[::-1]]).astype(np.float32)
    if process.steps is not None:
        chain = (np.arange(1, process.steps + 1) / process.steps).astype(np.float32)
        times = np.concatenate([chain, (chain - 0.37 / process.steps).astype(np.float32)])
    return np.unique(times[(times > 0) & (times < 1)])


def in_float64(method: str, name: str, times: np.ndarray) -> np.ndarray:
    with jax.enable_x64(True):
        return np.asarray(getattr(PROCESSES[name](), method)(jnp.asarray(times, jnp.float64)))


def test_float32_is_as_good_as_float64(named: tuple[str, jd.Process]) -> None:
    name, process = named
    times = dense_times(process, name)
    # A shifted time is rounded before the process sees it: by so much of what is left to t = 1, where alpha falls to 0
    rounded = 1.2e-7 if name.startswith("Shifted") else 0.0
    alpha = in_float64("alpha", name, times)
    for method in ("alpha", "sigma"):
        single, double = np.asarray(getattr(process, method)(times)), in_float64(method, name, times)
        # A chain's time k/T is the table's entry; between two entries the place is known to T ulp
        tolerance = 2e-4 if name in DISCRETE else 4e-6
        np.testing.assert_allclose(single, double, rtol=tolerance, atol=rounded, err_msg=method)
    if rounded:  # beyond this log-SNR, as alpha, is the rounding's
        times = times[alpha > 2 * rounded / 4e-4]
    np.testing.assert_allclose(process.log_snr(times), in_float64("log_snr", name, times), rtol=2e-6, atol=4e-4)
    if process.steps is not None:  # off the corners of the interpolation, where the derivative jumps
        times = times[np.abs(times * 1000 - np.round(times * 1000)) > 0.1]
    g2 = process.diffusion_squared(times)
    assert np.isfinite(g2).all()
    np.testing.assert_allclose(
        g2,
        in_float64("diffusion_squared", name, times),
        rtol=2e-3 if name == "DiscreteVP_zero_snr" else 2e-4 if rounded else 1e-5,  # of alpha, as above
    )


@pytest.mark.parametrize("name", sorted(DISCRETE))
def test_chain_at_its_own_times_is_its_table(name: str) -> None:
    process = PROCESSES[name]()
    assert isinstance(process, jd.DiscreteVP) and process.steps == 1000
    abar = np.cumprod(1.0 - np.asarray(process.betas, np.float64), dtype=np.float64)
    k = np.arange(1, process.steps + 1)
    for t in (k / process.steps, (k / process.steps).astype(np.float32), k.astype(np.float32) * np.float32(0.001)):
        np.testing.assert_allclose(process.alpha(t), np.sqrt(abar), rtol=3e-6, atol=1e-12)
        np.testing.assert_allclose(process.sigma(t), np.sqrt(1 - abar), rtol=1e-6)


def test_ends(named: tuple[str, jd.Process]) -> None:
    name, process = named
    assert float(process.alpha(0.0)) == 1.0
    noise_at_start = {"VE": 0.01, "KarrasVE": 0.002}.get(name, 0.0)
    assert float(process.sigma(0.0)) == pytest.approx(noise_at_start, rel=1e-5)
    assert (float(process.alpha(1.0)) == 0.0) == (name in NO_SIGNAL_AT_END)
    expected_prior = {"VE": 50.0, "KarrasVE": 80.0}.get(name, 1.0)
    assert float(process.prior_std()) == pytest.approx(expected_prior, rel=1e-5 if expected_prior > 1 else 1e-12)
    if name not in NO_SIGNAL_AT_END:
        assert np.isfinite(process.drift(1.0)) and np.isfinite(process.diffusion_squared(1.0))
    if name not in DISCRETE:
        assert np.isfinite(process.drift(0.0)) and np.isfinite(process.diffusion_squared(0.0))
    assert 0 < float(process.min_time()) < 0.05 or name in ("VE", "KarrasVE")
    assert float(process.sigma(process.min_time())) > 0


@pytest.mark.parametrize(
    ("process", "ratio"),
    [
        (jd.VE(0.01, 50.0), 50.0),
        (jd.VE(0.01, 1500.0), 1500.0),
        (jd.KarrasVE(), 80.0),
        (jd.Flow(), 200.0),
        (jd.CosineVP(), 200.0),
        (jd.Shifted(jd.Flow(), 3.0), 200.0),
    ],
)
def test_a_process_is_taken_to_its_own_end(process: jd.Process, ratio: float) -> None:
    """Its largest noise-to-signal ratio, or 200 times sigma(1) where alpha(1) = 0."""
    t = process.max_time()
    assert float(process.sigma(t) / process.alpha(t)) == pytest.approx(ratio, rel=1e-3)
    assert (float(t) == 1.0) == (float(process.alpha(1.0)) > 0)


def test_ends_do_not_depend_on_the_units_of_the_data() -> None:
    """Noise c times as large, for data c times as large, ends at the same time."""

    @jd.record
    class Scaled(jd.Process):
        scale: float

        def alpha(self, t: ArrayLike) -> jax.Array:
            return jd.Flow().alpha(t)

        def sigma(self, t: ArrayLike) -> jax.Array:
            return self.scale * jd.Flow().sigma(t)

    times = [float(Scaled(scale).max_time()) for scale in (1.0, 300.0, 1e-3)]
    np.testing.assert_allclose(times, float(jd.Flow().max_time()), rtol=1e-5)
    assert float(jd.VE(1e-5, 1.0).min_time()) == 0.0  # sigma_min is its own end, however small


def test_sigmoid_derivatives_at_its_ends() -> None:
    """alpha'(1) = -inf and sigma'(0) = inf, and no NaN; (sigma^2)' is finite throughout."""
    process = jd.SigmoidVP()
    (start_alpha, start_sigma), (end_alpha, end_sigma) = process.derivatives(0.0), process.derivatives(1.0)
    assert end_alpha == -jnp.inf and start_sigma == jnp.inf and np.isfinite([start_alpha, end_sigma]).all()
    t = 1.0 - 1e-4
    slope = (process.alpha(t) / process.sigma(t)) ** 2 / 1e-4
    assert float(process.snr_slope(1.0)) == pytest.approx(float(slope), rel=1e-2)


@pytest.mark.parametrize("s", [0.5, 1.0, 3.0])
def test_shifted_flow(s: float) -> None:
    """Esser et al. 2024, equation 23: SNR(t) is 1/s^2 of the flow's; shifts compose and invert."""
    with jax.enable_x64(True):
        flow, process, t = jd.Flow(), jd.Shifted(jd.Flow(), s), jnp.linspace(0.01, 0.99, 23)
        np.testing.assert_allclose(process.sigma(t), s * t / (1 + (s - 1) * t), rtol=1e-13)
        np.testing.assert_allclose(process.sigma(t) / process.alpha(t), s * t / (1 - t), rtol=1e-12)
        np.testing.assert_allclose(process.log_snr(t), flow.log_snr(t) - 2 * np.log(s), rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(process.unwarp(process.warp(t)), t, rtol=1e-13)
        twice, once = jd.Shifted(process, 2.0), jd.Shifted(flow, 2.0 * s)
        np.testing.assert_allclose(twice.sigma(t), once.sigma(t), rtol=1e-12)
        np.testing.assert_allclose(twice.velocity(t, -t, t), once.velocity(t, -t, t), rtol=1e-10)
        np.testing.assert_allclose(jd.Shifted(process, 1.0 / s).alpha(t), flow.alpha(t), rtol=1e-12)
        # the exact flow of Gaussian data ends at the same point, whatever the pace
        x = jnp.array([[0.3, -1.2]])
        here, there = jd.GaussianDenoiser(process, 0.5, 0.3), jd.GaussianDenoiser(flow, 0.5, 0.3)
        np.testing.assert_allclose(
            here.flow(x, 0.9, 0.2), there.flow(x, process.warp(0.9), process.warp(0.2)), rtol=1e-12
        )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: jd.VE(sigma_min=0.0), "0 < sigma_min < sigma_max"),
        (lambda: jd.VE(2.0, 1.0), "0 < sigma_min < sigma_max"),
        (lambda: jd.KarrasVE(sigma_min=0.0), "0 < sigma_min < sigma_max"),
        (lambda: jd.VP(beta_min=-0.1), "are to be positive"),
        (lambda: jd.SubVP(beta_max=0.0), "are to be positive"),
        (lambda: jd.SigmoidVP(3.0, -3.0), "start < end"),
        (lambda: jd.SigmoidVP(tau=0.0), "tau > 0"),
        (lambda: jd.Shifted(jd.Flow(), 0.0), "shift is to be positive"),
        (lambda: jd.Shifted(jd.DiscreteVP(jd.linear_betas(100)), 2.0), "has the 100 times k/T"),
    ],
)
def test_schedules_that_are_none_are_refused(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match=message):
        make()


def test_alpha_falls_and_sigma_rises(named: tuple[str, jd.Process]) -> None:
    _, process = named
    times = jnp.linspace(0, 1, 400)
    assert (jnp.diff(process.alpha(times)) <= 0).all()
    assert (jnp.diff(process.sigma(times)) > 0).all()


@pytest.mark.parametrize("name", sorted(PROCESSES))
def test_refinements_agree_with_the_defaults(name: str) -> None:
    """Every method a subclass overrides equals what `Process` derives from alpha and sigma."""
    with jax.enable_x64(True):
        process = PROCESSES[name]()
        t = jnp.linspace(0.02, 0.97, 41) + 1e-4  # off a chain's corners, where the derivative jumps
        for method in ("log_snr", "drift", "diffusion_squared", "snr_slope"):
            np.testing.assert_allclose(
                getattr(process, method)(t), getattr(Process, method)(process, t), rtol=1e-7, atol=1e-12, err_msg=method
            )
        for ours, default in zip(process.derivatives(t), Process.derivatives(process, t), strict=True):
            np.testing.assert_allclose(ours, default, rtol=1e-7, atol=1e-12)
        levels = process.log_snr(t)
        np.testing.assert_allclose(process.time_of_log_snr(levels), t, atol=1e-9)
        np.testing.assert_allclose(Process.time_of_log_snr(process, levels), t, atol=1e-9)
        for s_shift in (0.01, 0.3):
            both = process.transition(t * (1 - s_shift), t)
            for a, b in zip(both, Process.transition(process, t * (1 - s_shift), t), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-6)


def test_inverse_of_log_snr_in_float32(named: tuple[str, jd.Process]) -> None:
    name, process = named
    times = dense_times(process, name)
    np.testing.assert_allclose(process.time_of_log_snr(process.log_snr(times)), times, rtol=3e-5, atol=2e-6)
    extreme = process.time_of_log_snr(jnp.array([-200.0, 200.0]))
    np.testing.assert_allclose(extreme, [1.0, 0.0], atol=1e-6)


def test_inverse_is_differentiable(named: tuple[str, jd.Process]) -> None:
    _, process = named
    for inverse in (process.time_of_log_snr, lambda level: Process.time_of_log_snr(process, level)):
        t = inverse(jnp.asarray(0.3))
        slope = jax.grad(process.log_snr)(t)
        assert float(jax.grad(inverse)(jnp.asarray(0.3))) == pytest.approx(1 / float(slope), rel=2e-3)


@pytest.mark.parametrize("name", sorted(PROCESSES))
def test_transition_composes_and_posterior_is_bayes(name: str) -> None:
    """q(x_t|x_s) q(x_s) has the marginals of q(x_t), and q(x_s|x_t, x0) is Bayes' rule on them."""
    with jax.enable_x64(True):
        process = PROCESSES[name]()
        s, t = jnp.array([0.11, 0.3, 0.62]), jnp.array([0.31, 0.95, 0.63])
        scale, variance = process.transition(s, t)
        alpha_s, sigma_s, alpha_t, sigma_t = process.alpha(s), process.sigma(s), process.alpha(t), process.sigma(t)
        np.testing.assert_allclose(scale * alpha_s, alpha_t, rtol=1e-10)
        np.testing.assert_allclose(scale**2 * sigma_s**2 + variance, sigma_t**2, rtol=1e-9)
        a, b, w = process.posterior(s, t)
        # precision of x_s is that of its prior N(alpha_s x0, sigma_s^2) plus that of the likelihood
        precision = 1 / sigma_s**2 + scale**2 / variance
        np.testing.assert_allclose(w, 1 / precision, rtol=1e-8)
        x0, eps = 0.8, -1.3
        x_t = alpha_t * x0 + sigma_t * eps
        mean = (alpha_s * x0 / sigma_s**2 + scale * x_t / variance) / precision
        np.testing.assert_allclose(a * x0 + b * eps, mean, rtol=1e-8)


def test_markov_kernel_and_posterior_of_the_chain() -> None:
    """DiscreteVP against Ho et al.'s formulas in float64, and against the continuous-time formulas at its own times."""
    betas = jd.linear_betas(1000)
    process = jd.DiscreteVP(betas)
    abar = np.cumprod(1 - betas)
    before = np.concatenate([[1.0], abar[:-1]])
    k = np.arange(1, 1001)
    scale, variance = process.kernel(k)
    np.testing.assert_allclose(scale, np.sqrt(1 - betas), rtol=1e-6)
    np.testing.assert_allclose(variance, betas, rtol=1e-6)
    c0, ck, w = process.kernel_posterior(k)
    np.testing.assert_allclose(c0, np.sqrt(before) * betas / (1 - abar), rtol=1e-5)
    np.testing.assert_allclose(ck, np.sqrt(1 - betas) * (1 - before) / (1 - abar), rtol=1e-5, atol=1e-12)
    np.testing.assert_allclose(w, betas * (1 - before) / (1 - abar), rtol=1e-5, atol=1e-12)
    a, b, general = process.posterior((k[1:] - 1) / 1000, k[1:] / 1000)
    np.testing.assert_allclose(general, w[1:], rtol=2e-3)
    sigma, alpha = process.sigma(k[1:] / 1000), process.alpha(k[1:] / 1000)
    np.testing.assert_allclose(b, ck[1:] * sigma, rtol=1e-4)
    np.testing.assert_allclose(a, c0[1:] + ck[1:] * alpha, rtol=1e-4)


def test_between_chain_times_log_alpha_is_linear_and_alpha_in_a_last_interval_to_zero() -> None:
    process = PROCESSES["DiscreteVP_zero_snr"]()
    quarter = process.alpha(jnp.array([0.5, 0.50025, 0.501]))
    np.testing.assert_allclose(jnp.log(quarter[1]), 0.75 * jnp.log(quarter[0]) + 0.25 * jnp.log(quarter[2]), rtol=1e-4)
    last = process.alpha(jnp.array([0.999, 0.99925, 1.0]))
    np.testing.assert_allclose(last[1], 0.75 * last[0], rtol=1e-3)
    assert last[2] == 0
    assert np.isfinite(process.derivatives(1.0)[0])


@pytest.mark.parametrize("make", [jd.linear_betas, jd.scaled_linear_betas, jd.cosine_betas, jd.sigmoid_betas])
def test_schedules_rise_and_do_not_depend_on_the_number_of_steps(make: object) -> None:
    assert callable(make)
    abar = {}
    for steps in (100, 1000, 4000):
        betas = make(steps)
        assert betas.dtype == np.float64 and betas.shape == (steps,) and (np.diff(betas) >= 0).all()
        abar[steps] = np.cumprod(1 - betas)[steps // 2 - 1]
    assert abar[100] == pytest.approx(abar[4000], rel=0.1)
    with pytest.raises(ValueError, match="too few steps"):
        jd.linear_betas(10)


def test_published_schedule_values() -> None:
    """The ends of the schedules as printed in the papers."""
    np.testing.assert_allclose(jd.linear_betas(1000)[[0, -1]], [1e-4, 0.02])
    np.testing.assert_allclose(jd.scaled_linear_betas(1000)[[0, -1]], [0.00085, 0.012])
    cosine = jd.cosine_betas(1000)
    assert cosine[-1] == 0.999
    abar = np.cumprod(1 - cosine)
    t = 500 / 1000
    f = lambda t: np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2  # noqa: E731
    assert abar[499] == pytest.approx(f(t) / f(0), rel=1e-9)


def test_zero_terminal_snr_keeps_the_first_step() -> None:
    betas = jd.linear_betas(1000)
    rescaled = jd.rescale_zero_terminal_snr(betas)
    assert rescaled[-1] == 1.0
    assert rescaled[0] == pytest.approx(betas[0], rel=1e-9)
    assert (np.diff(np.cumprod(1 - rescaled)) < 0).all()


@pytest.mark.parametrize(
    "betas", [[], [0.1, 1.0, 0.1], [0.0, 0.1], [-0.1], [1.5], [[0.1, 0.2]], [float("nan")]], ids=str
)
def test_bad_betas_are_refused(betas: list) -> None:
    with pytest.raises(ValueError, match="betas is to be a vector"):
        jd.DiscreteVP(betas)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.floats(1e-4, 0.4), min_size=1, max_size=30), st.floats(0.01, 1.0))
def test_any_chain_is_a_process(betas: list[float], t: float) -> None:
    process = jd.DiscreteVP(np.array(betas))
    alpha, sigma = process.alpha(t), process.sigma(t)
    assert float(alpha) ** 2 + float(sigma) ** 2 == pytest.approx(1, abs=1e-5)
    assert float(process.time_of_log_snr(process.log_snr(t))) == pytest.approx(t, abs=2e-4)


def test_processes_are_data(named: tuple[str, jd.Process]) -> None:
    """A process passes through jit as an argument: another schedule of the same kind does not retrace."""
    _, process = named
    traces = []

    @jax.jit
    def alpha(process: jd.Process, t: jax.Array) -> jax.Array:
        traces.append(1)
        return process.alpha(t)

    t = jnp.asarray(0.4)
    first = alpha(process, t)
    other = jax.tree.map(lambda leaf: leaf * 0.9 - 0.001, process)
    second = alpha(other, t)
    np.testing.assert_allclose(first, process.alpha(t), rtol=1e-5)
    assert len(traces) == 1
    if jax.tree.leaves(process) and "VE" not in type(process).__name__:
        assert first != second


def test_a_schedule_is_differentiable() -> None:
    betas = jnp.asarray(jd.linear_betas(1000), jnp.float32)
    gradient = jax.grad(lambda b: jd.DiscreteVP(b).log_snr(0.25))(betas)
    assert (gradient[:250] < 0).all() and (gradient[250:] == 0).all()
    assert jax.grad(lambda b: jd.VP(0.1, b).log_snr(0.5))(20.0) < 0


def test_a_chain_has_one_source_of_truth() -> None:
    """The process' gradient is the derivative by betas, and other betas make another chain, however they come in."""
    with jax.enable_x64(True):
        betas = jd.linear_betas(100)
        process = jd.DiscreteVP(betas)
        assert [leaf.shape for leaf in jax.tree.leaves(process)] == [(100,)]
        say = lambda process: process.log_snr(0.25) + process.kernel_posterior(25)[2] + process.drift(0.3)  # noqa: E731
        found = jax.grad(say)(process).betas
        for k in (0, 11, 24, 29, 60):
            step = 1e-6 * betas[k] * np.eye(100)[k]
            slope = (say(jd.DiscreteVP(betas + step)) - say(jd.DiscreteVP(betas - step))) / (2 * step[k])
            assert float(found[k]) == pytest.approx(float(slope), rel=1e-5, abs=1e-7)
        other = jd.DiscreteVP(0.5 * betas)
        for again in (jax.tree.map(lambda leaf: 0.5 * leaf, process), dataclasses.replace(process, betas=0.5 * betas)):
            np.testing.assert_allclose(again.alpha(0.7), other.alpha(0.7), rtol=1e-12)
            np.testing.assert_allclose(jax.jit(lambda p: p.alpha(0.7))(again), other.alpha(0.7), rtol=1e-12)


def test_prior(named: tuple[str, jd.Process]) -> None:
    _, process = named
    x = process.prior_sample(jd.sample_keys(jax.random.key(0), 0, 2000), (4,))
    std = float(process.prior_std())
    assert float(x.std()) == pytest.approx(std, rel=0.03)
    from scipy.stats import norm

    np.testing.assert_allclose(
        process.prior_log_density(x[:5]), norm.logpdf(np.asarray(x[:5], np.float64), scale=std).sum(1), rtol=1e-5
    )
    t = 0.9
    assert float(process.prior_sample(jd.sample_keys(jax.random.key(0), 0, 500), (4,), t).std()) == pytest.approx(
        float(process.sigma(t)), rel=0.06
    )


def test_shapes_follow_t_and_samples_broadcast(named: tuple[str, jd.Process]) -> None:
    _, process = named
    x0 = jnp.ones((3, 4, 4, 2))
    for t in (jnp.asarray(0.5), jnp.array([0.2, 0.5, 0.9])):
        for method in ("alpha", "sigma", "log_snr", "drift", "diffusion_squared"):
            assert getattr(process, method)(t).shape == t.shape, method
        assert process.perturb(x0, x0, t).shape == x0.shape
        assert process.velocity(x0, x0, t).shape == x0.shape
    with pytest.raises(ValueError, match="one time a sample"):
        process.perturb(x0, x0, jnp.ones(2))
