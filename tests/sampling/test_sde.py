"""The stochastic samplers: what they are at the ends of their parameters, the laws they sample, where they refuse."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.typing import ArrayLike

import jaxdiff as jd
from jaxdiff.noise import step_noise
from jaxdiff.sampling.ancestral import AnalyticDDPM, estimate_gamma
from jaxdiff.sampling.exponential_sde import DPMpp2MSDE, DPMpp3MSDE, DPMppSDE, SASolver
from jaxdiff.sampling.karras import EDMStochastic, EulerAncestral, Restart
from jaxdiff.sampling.langevin import AnnealedLangevin, AnnealedLangevinDynamics, PredictorCorrector
from jaxdiff.sampling.multistep import DPMpp3M
from jaxdiff.sampling.sde import EulerMaruyama, ReverseDiffusion
from jaxdiff.sampling.singlestep import DPMpp2S
from jaxdiff.sampling.unipc import UniPC
from tests.sampling.propagation import propagate
from tests.tables import LOG_WEIGHTS, MEANS, PROCESSES, SAMPLERS, STDS, gaussian, mixture


def analytic(process: jd.Process) -> AnalyticDDPM:
    exact, ts = mixture(process), jd.log_snr_times(process, 40)
    data = exact.sample_data(jax.random.key(5), 2000)
    return AnalyticDDPM(process, ts, estimate_gamma(process, exact, data, ts, jax.random.key(6)))


NEW: dict[str, Callable[[jd.Process], jd.Sampler]] = {
    "AnalyticDDPM": analytic,
    "EulerMaruyama_double": lambda process: EulerMaruyama(process, np.sqrt(2.0)),
    "ReverseDiffusion": ReverseDiffusion,
    "DPMppSDE": DPMppSDE,
    "DPMpp2MSDE": DPMpp2MSDE,
    "DPMpp2MSDE_heun": lambda process: DPMpp2MSDE(process, 0.5, "heun"),
    "DPMpp3MSDE": DPMpp3MSDE,
    "SASolver": SASolver,
    "EulerAncestral": EulerAncestral,
    "EDMStochastic": EDMStochastic,
    "Restart": lambda process: Restart(jd.Heun(process, "rho")),
    "Restart_DPMpp2M": lambda process: Restart(jd.DPMpp2M(process), repeats=3, steps=10),
    "PredictorCorrector": lambda process: PredictorCorrector(ReverseDiffusion(process), AnnealedLangevin()),
    "AnnealedLangevinDynamics": lambda process: AnnealedLangevinDynamics(process, 0.1, 5),
}
NEEDS_SIGNAL = {"EulerMaruyama_double", "EDMStochastic", "Restart", "AnnealedLangevinDynamics"}


def heun(process: jd.Process) -> jd.Heun:
    return jd.Heun(process, "rho")


# At these parameters two methods are one. Times are those of `problem`.
SAME: dict[str, tuple[Callable[[jd.Process], jd.Sampler], Callable[[jd.Process], jd.Sampler]]] = {
    "EulerMaruyama(0)": (lambda p: EulerMaruyama(p, 0.0), jd.Euler),
    "DPMppSDE(0)": (lambda p: DPMppSDE(p, 0.0), DPMpp2S),
    "DPMpp2MSDE(0)": (lambda p: DPMpp2MSDE(p, 0.0), jd.DPMpp2M),
    "DPMpp3MSDE(0)": (lambda p: DPMpp3MSDE(p, 0.0), DPMpp3M),
    "SASolver(1, 0, 0)": (lambda p: SASolver(p, 1, 0, 0.0), jd.DDIM),
    "SASolver(3, 0, 0)": (lambda p: SASolver(p, 3, 0, 0.0), lambda p: UniPC(p, 3, "B2", False)),
    "SASolver(3, 4, 0)": (lambda p: SASolver(p, 3, 4, 0.0), lambda p: UniPC(p, 3, "B2", True)),
    "SASolver nowhere": (lambda p: SASolver(p, 3, 4, 1.0, 100.0), lambda p: SASolver(p, 3, 4, 0.0)),
    "SASolver(1, 0, 1)": (lambda p: SASolver(p, 1, 0, 1.0), jd.DDPM),
    "SASolver(2, 0, 0.6)": (lambda p: SASolver(p, 2, 0, 0.6), lambda p: DPMpp2MSDE(p, 0.6)),
    "SASolver(3, 0, 0.6)": (lambda p: SASolver(p, 3, 0, 0.6), lambda p: DPMpp3MSDE(p, 0.6)),
    "EulerAncestral(0)": (lambda p: EulerAncestral(p, 0.0), jd.DDIM),
    "EulerAncestral(0.5)": (lambda p: EulerAncestral(p, 0.5), lambda p: jd.DDIM(p, 0.5)),
    "EDMStochastic(0)": (lambda p: EDMStochastic(p, 0.0), heun),
    "EDMStochastic nowhere": (lambda p: EDMStochastic(p, 0.1, 900.0, 999.0), heun),
    "Restart(repeats=0)": (lambda p: Restart(jd.DPMpp2M(p), repeats=0), jd.DPMpp2M),
    "Restart nowhere": (lambda p: Restart(jd.DPMpp2M(p), 1e-4, 1e-3), jd.DPMpp2M),
    "PredictorCorrector(steps=0)": (lambda p: PredictorCorrector(jd.DDPM(p), AnnealedLangevin(0.2, 0)), jd.DDPM),
    "PredictorCorrector(snr=0)": (lambda p: PredictorCorrector(jd.DDPM(p), AnnealedLangevin(0.0, 1)), jd.DDPM),
    "AnalyticDDPM without spread": (
        lambda p: AnalyticDDPM(p, jnp.array([0.9, 0.1]), jnp.array([0.9, 0.2]), 0.7, half_range=0.0),
        lambda p: jd.DDIM(p, 0.7),
    ),
}


@pytest.mark.nightly
def test_two_names_of_one_method() -> None:
    """At the ends of its parameters each method is another: the flow's at tau 0, DDPM at first order and tau 1, ..."""
    with jax.enable_x64(True):
        process = jd.VP()
        exact, ts = mixture(process), jd.log_snr_times(process, 8, t_max=0.95)
        keys = jd.sample_keys(jax.random.key(0), 0, 5)
        x = process.prior_sample(keys, (2,), ts[0])
        samplers = {make: make(process) for pair in SAME.values() for make in pair}
        run = jax.jit(lambda samplers: [jd.sample(sampler, exact, keys, x, ts) for sampler in samplers])
        samples = dict(zip(samplers, run(list(samplers.values())), strict=True))
        for name, (left, right) in SAME.items():
            np.testing.assert_allclose(samples[left], samples[right], rtol=1e-9, atol=1e-9, err_msg=name)


SAMPLED = [  # not those of tests/tables.py, which test_conformance.py and test_contract.py sample
    ("VP", sorted(set(NEW) - set(SAMPLERS) | {"PredictorCorrector", "Restart"})),
    ("VE", ["AnnealedLangevinDynamics", "PredictorCorrector"]),
    ("Flow", ["AnalyticDDPM", "Restart_DPMpp2M"]),
]


@pytest.mark.parametrize(("process_name", "names"), SAMPLED)
def test_samples_the_mixture(process_name: str, names: list[str]) -> None:
    """2,000 samples of each have the mixture's weights, means and widths; 1 and 2 steps are finite."""
    process = PROCESSES[process_name]()
    keys = jd.sample_keys(jax.random.key(1), 0, 2000)

    @jax.jit
    def run(samplers: dict[str, jd.Sampler], exact: jd.MixtureDenoiser, ts: jax.Array, n: int) -> dict[str, jax.Array]:
        x = exact.process.prior_sample(keys, (2,), ts[0])
        return {name: jd.sample(sampler, exact, keys, x, ts, num_steps=n) for name, sampler in samplers.items()}

    samplers = {name: NEW[name](process) for name in names}
    ts = jd.log_snr_times(process, 150)
    for n in (1, 2):
        few = jnp.where(jnp.arange(150) < n, ts[jnp.arange(150) * 75], ts[-1])
        for name, samples in run(samplers, mixture(process), few, n).items():
            assert np.isfinite(samples).all(), name
    for name, samples in run(samplers, mixture(process), ts, 149).items():
        distance = jnp.square(samples[:, None] - MEANS[None]).sum(-1)
        component = np.asarray(jnp.argmin(distance / jnp.square(STDS)[None], axis=1))
        slack = 2.0 if name == "AnnealedLangevinDynamics" else 1.0  # its start and its steps are both a little off
        for k in range(3):
            mine = np.asarray(samples)[component == k]
            assert len(mine) / 2000 == pytest.approx(float(jnp.exp(LOG_WEIGHTS[k])), abs=0.04 * slack), name
            np.testing.assert_allclose(mine.mean(0), MEANS[k], atol=0.06 * slack, err_msg=name)
            np.testing.assert_allclose(mine.std(0), STDS[k], rtol=0.15 * slack, err_msg=name)


@pytest.mark.parametrize("process_name", ["Flow", "CosineVP"])
def test_from_the_very_end(process_name: str) -> None:
    """From alpha = 0: finite where the method allows it, a clear refusal where it does not."""
    process = PROCESSES[process_name]()
    keys, ts = jd.sample_keys(jax.random.key(0), 0, 3), jd.uniform_times(process, 5)
    exact, x = mixture(process), process.prior_sample(keys, (2,))
    samplers = {name: make(process) for name, make in NEW.items()}
    for name in NEEDS_SIGNAL:
        with pytest.raises(ValueError, match=r"alpha\(1.0\) = 0"):
            jd.sample(samplers.pop(name), exact, keys, x, ts)
    samplers["DPMppSDE_ode"], samplers["SASolver_ode"] = DPMppSDE(process, 0.0), SASolver(process, tau=0.0)
    run = jax.jit(lambda samplers: {name: jd.sample(each, exact, keys, x, ts) for name, each in samplers.items()})
    for name, samples in run(samplers).items():
        assert np.isfinite(samples).all(), name


@pytest.mark.parametrize("process_name", ["VP", "VE", "Flow"])
def test_the_analytic_variance_is_exact_for_an_isotropic_gaussian(process_name: str) -> None:
    """However few the steps and whatever eta: DDPM's fixed variances are far off there."""
    with jax.enable_x64(True):
        process = PROCESSES[process_name]()
        exact = jd.GaussianDenoiser(process, jnp.asarray(0.7), jnp.asarray(0.5))
        for n in (2, 4):
            ts = jd.log_snr_times(process, n, t_max=process.time_of_log_snr(-5.0))
            alpha, sigma = process.alpha(ts), process.sigma(ts)
            gamma = sigma**2 / ((0.5 * alpha) ** 2 + sigma**2)
            samplers = [AnalyticDDPM(process, ts, gamma, eta) for eta in (0.0, 0.5, 1.0)]
            found = jax.jit(lambda samplers, ts: [propagate(each, exact, ts) for each in samplers])(samplers, ts)
            for mean, variance in found:
                assert float(mean) == pytest.approx(float(0.7 * alpha[-1]), rel=1e-9)
                assert float(variance) == pytest.approx(float((0.5 * alpha[-1]) ** 2 + sigma[-1] ** 2), rel=1e-9)
        assert abs(float(propagate(jd.DDPM(process), exact, ts)[1]) / float(variance) - 1.0) > 0.1


def test_gamma_is_estimated() -> None:
    """From 20,000 numbers, 1 - Gamma to a few per cent at any noise, single precision, Gamma near 1 included."""
    process = jd.VP()
    exact, ts = jd.GaussianDenoiser(process, 0.7, 0.5), jd.log_snr_times(process, 12)
    data = 0.7 + 0.5 * jax.random.normal(jax.random.key(0), (5000, 4))
    gamma = estimate_gamma(process, exact, data, ts, jax.random.key(1))
    ratio = np.asarray(process.sigma(ts) / process.alpha(ts))
    np.testing.assert_allclose(1.0 - gamma, 0.25 / (0.25 + ratio**2), rtol=0.05)
    between = 0.5 * (ts[5] + ts[6])
    spread = AnalyticDDPM(process, ts, gamma)._spread(between)
    rho2 = float(jnp.exp(-process.log_snr(between)))
    np.testing.assert_allclose(spread, 0.25 * rho2 / (0.25 + rho2), rtol=0.15)


def test_reverse_diffusion_is_the_papers_on_a_chain() -> None:
    """x_i = (2 - sqrt(1 - beta)) x + beta score + sqrt(beta) z (Song et al. 2021, appendix E, VP)."""
    betas = jd.linear_betas(1000)
    process = jd.DiscreteVP(betas)
    exact, keys = gaussian(process), jd.sample_keys(jax.random.key(0), 0, 3)
    x, t, s = jax.random.normal(jax.random.key(1), (3, 2)), jnp.asarray(0.4), jnp.asarray(0.399)
    noise, beta = step_noise(keys, x), float(betas[399])
    mine, _ = ReverseDiffusion(process).step(lambda x, t: exact(x, t), noise, (), x, t, s)
    papers = (2.0 - np.sqrt(1.0 - beta)) * x + beta * exact(x, t).score(process, t) + np.sqrt(beta) * noise(t, s)
    np.testing.assert_allclose(mine, papers, rtol=1e-4, atol=1e-4)


def test_churn_really_raises_the_noise() -> None:
    """The denoiser is asked at the time where sigma/alpha is 1 + gamma times as large, and no later than t = 1."""
    process = jd.VE()
    exact, asked = gaussian(process), []
    x, noise = jnp.ones((1, 2)), lambda t, s, salt=0: jnp.ones((1, 2))

    def denoise(x: jax.Array, t: ArrayLike) -> jd.Prediction:
        asked.append((float(process.sigma(t)), np.asarray(x)))
        return exact(x, t)

    def ask(gamma: float, t: float) -> tuple[float, np.ndarray]:
        EDMStochastic(process, gamma).step(denoise, noise, (), x, jnp.asarray(t), jnp.asarray(0.3))
        return asked[-2]

    sigma = float(process.sigma(0.5))
    for gamma, share in ((0.2, 0.2), (7.0, np.sqrt(2.0) - 1.0)):
        raised, y = ask(gamma, 0.5)
        assert raised == pytest.approx((1 + share) * sigma, rel=1e-4)
        np.testing.assert_allclose(y, 1.0 + np.sqrt(raised**2 - sigma**2), rtol=1e-3)
    wide = dataclasses.replace(EDMStochastic(process, 0.2), rho_max=jnp.inf)
    wide.step(denoise, noise, (), x, jnp.asarray(1.0), jnp.asarray(0.9))
    assert asked[-2][0] == pytest.approx(float(process.sigma(1.0))) and np.isfinite(asked[-1][1]).all()


def test_restarts_draw_afresh_and_once() -> None:
    """One interval crossed, every draw's (t, s, salt) its own, and as many as the algorithm has."""
    process = jd.VP()
    exact, draws, ts = gaussian(process), [], jd.log_snr_times(process, 8)

    def noise(t: ArrayLike, s: ArrayLike, salt: ArrayLike = 0) -> jax.Array:
        draws.append((float(jnp.asarray(t)), float(jnp.asarray(s)), int(jnp.asarray(salt))))
        return jnp.zeros((1, 2))

    sampler, x = Restart(jd.DDPM(process), 0.06, 0.3, repeats=3, steps=2), jnp.ones((1, 2))
    state = sampler.init(x)
    with jax.disable_jit():
        for t, s in itertools.pairwise(ts):
            x, state = sampler.step(lambda x, t: exact(x, t), noise, state, x, t, s)
    assert len(draws) == len(set(draws)) == 7 + 3 * (1 + 2)
    top, bottom = process.time_of_log_snr(-2.0 * np.log(0.3)), ts[ts < process.time_of_log_snr(-2.0 * np.log(0.06))][0]
    assert [(t, s) for t, s, _ in draws].count((float(bottom), float(top))) == 3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: DPMpp2MSDE(p, 1.0, "trapezoid"), "got 'trapezoid'"),  # type: ignore[arg-type]
        (lambda p: SASolver(p, 5), "SASolver's predictor is to be 1 to 4, got 5"),
        (lambda p: SASolver(p, 3, 1), "0 .none. or 2 to 5, got 1"),
        (lambda p: Restart(jd.DDIM(p), 0.3, 0.1), "got 0.3 and 0.1"),
        (lambda p: Restart(jd.DDIM(p), steps=0), "0 steps"),
        (lambda p: AnnealedLangevin(0.1, -1), "got -1"),
        (lambda p: AnnealedLangevinDynamics(p, 0.1, 2.5), "got 2.5"),  # type: ignore[arg-type]
        (lambda p: AnalyticDDPM(p, jnp.array([0.9, 0.5]), jnp.ones(3)), r"got shapes \(2,\) and \(3,\)"),
        (lambda p: AnalyticDDPM(p, jnp.array([0.5, 0.9]), jnp.ones(2)), "are to fall"),
        (
            lambda p: estimate_gamma(
                jd.Flow(), gaussian(p), jnp.ones((2, 2)), jnp.array([1.0, 0.5]), jax.random.key(0)
            ),
            "no signal",
        ),
    ],
)
def test_bad_fields_are_named(make: Callable[[jd.Process], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(jd.VP())
