"""The twisted diffusion sampler: exact laws of Gaussians in a few steps, of mixtures in many, and inpainting."""

from __future__ import annotations

import dataclasses
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.typing import ArrayLike

import jaxdiff as jd
from jaxdiff.broadcast import sum_features
from jaxdiff.denoiser import Cond
from jaxdiff.inverse import TDS, Gaussian, GaussianTwist, InpaintingTwist, LikelihoodTwist, Poisson, Problem, Twisted
from jaxdiff.inverse.operators import Box, Linear, Mask
from jaxdiff.inverse.twists import OfProblem, spread
from jaxdiff.networks import MLP, functional
from jaxdiff.noise import step_noise
from jaxdiff.prediction import from_x0, moved
from jaxdiff.reconstruction import reconstruct
from jaxdiff.sampling import Particles, particle_keys, sample_particles

PROCESS = jd.VP()
EXACT = jd.GaussianDenoiser(PROCESS, 0.0, 1.0)
TS = jd.log_snr_times(PROCESS, 8)
GAMMA = PROCESS.sigma(TS) ** 2 / (PROCESS.alpha(TS) ** 2 + PROCESS.sigma(TS) ** 2)
ANALYTIC = jd.AnalyticDDPM(PROCESS, TS, GAMMA)
"""The exact law of these data, N(0, 1), in 8 times."""
A = jnp.array([[1.0, 0.7]])

particles_of = jax.jit(sample_particles)


def applied(matrix: jax.Array, x: jax.Array) -> jax.Array:
    return x @ matrix.T


def given(y: float, std: float, tau: float = 1.0, matrix: jax.Array = A) -> GaussianTwist:
    """y = A x0 + std n."""
    return GaussianTwist(Problem(Linear((2,), applied, matrix), jnp.full((1, 1), y), Gaussian(std)), tau)


def started(n: int, k: int, ts: jax.Array = TS, d: int = 2) -> tuple[jax.Array, jax.Array]:
    keys = particle_keys(jd.sample_keys(jax.random.key(0), 0, n), k)
    return keys, PROCESS.prior_sample(keys, (d,), ts[0])


def moments(found: Particles) -> tuple[np.ndarray[Any, Any], ...]:
    """Mean and covariance of each group."""
    x0, weights = np.asarray(found.x0, float), np.asarray(found.weights, float)
    mean = np.einsum("nk,nkd->nd", weights, x0)
    off = x0 - mean[:, None]
    return mean, np.einsum("nk,nkd,nke->nde", weights, off, off)


def agrees(each: Any, exact: Any, bias: float = 0.0) -> None:
    """The mean over the groups is within four of its own standard errors."""
    each = np.asarray(each)
    error = each.std(axis=0, ddof=1) / np.sqrt(len(each))
    assert (np.abs(each.mean(axis=0) - exact) < 4 * error + bias).all(), (each.mean(axis=0), exact, error)


@pytest.mark.parametrize(
    ("tau", "threshold"),
    [
        (1.0, 0.5),
        pytest.param(0.3, 1.0, marks=pytest.mark.nightly),
        pytest.param(jnp.inf, 0.0, marks=pytest.mark.nightly),
    ],
)
def test_a_gaussian_given_a_linear_measurement(tau: float, threshold: float) -> None:
    """Mean, covariance and ln p(y) in closed form, for any twist and any resampling."""
    y, std = 1.2, 0.5
    total = float((A @ A.T)[0, 0]) + std**2
    gain = np.asarray(A)[0] / total
    keys, x = started(16, 1024)
    twisted = Twisted(ANALYTIC, given(y, std, tau), 1024, threshold)
    drawn, found = particles_of(twisted, EXACT, keys, x, TS)
    mean, covariance = moments(found)
    agrees(mean, gain * y)
    agrees(covariance, np.eye(2) - np.outer(gain, np.asarray(A)[0]))
    agrees(np.exp(found.log_evidence), np.exp(-0.5 * y**2 / total) / np.sqrt(2 * np.pi * total))
    assert mean.std(axis=0).max() < 0.15 and not found.stuck.any()
    residuals = (drawn @ A.T)[:, 0]  # rows are drawn by the weights: one law with them
    np.testing.assert_allclose(residuals.mean(), float((A @ (gain * y)).sum()), atol=0.1)


def test_inpainting_without_noise() -> None:
    """Two coordinates of correlation 0.8, the first known: the second given it is N(0.8 y, 0.36). What is known comes
    back bit for bit."""
    y = 1.1
    values, vectors = (jnp.asarray(each) for each in np.linalg.eigh(np.array([[1.0, 0.8], [0.8, 1.0]], np.float32)))

    def exact(x: jax.Array, t: ArrayLike, cond: Cond | None = None) -> jd.Prediction:
        alpha, sigma = PROCESS.alpha(t), PROCESS.sigma(t)
        gain = (vectors * (alpha * values / (alpha**2 * values + sigma**2))[None]) @ vectors.T
        return from_x0(PROCESS, x, t, x @ gain.T)

    ts = jd.log_snr_times(PROCESS, 100)
    keys, x = started(8, 256, ts)
    problem = Problem(Mask((2,), jnp.array([1.0, 0.0])), jnp.array([[y, 9.0]]))
    _, twisted = TDS(256).of(problem, PROCESS, jd.DDPM(PROCESS, "fixed_large"))
    assert isinstance(twisted, Twisted) and isinstance(twisted.twist, InpaintingTwist)
    drawn, found = jax.jit(lambda t: sample_particles(t, exact, keys, x, ts))(twisted)
    np.testing.assert_array_equal(found.x0[..., 0], jnp.full((8, 256), y))
    np.testing.assert_array_equal(drawn[:, 0], jnp.full(8 * 256, y))
    mean, spread_of = moments(found)
    agrees(mean[:, 1], 0.8 * y, 0.03)
    agrees(spread_of[:, 1, 1], 0.36, 0.04)
    agrees(found.log_evidence, -0.5 * y**2 - 0.5 * np.log(2 * np.pi), 0.05)


def test_a_class_given_by_a_likelihood() -> None:
    """Data N(0, 1), classes p(1 | x0) = 1/(1 + exp(-3 x0)): the posterior's mean by quadrature; the label is data."""
    keys, x = started(16, 1024)

    def log_likelihood(x0: jax.Array, cond: Cond | None) -> jax.Array:
        assert cond is not None
        return jax.nn.log_sigmoid(jnp.where(cond["label"] == 1, 3.0, -3.0) * x0[:, 0])

    cond = {"label": jnp.repeat(jnp.arange(16) % 2, 1024)}
    twisted = Twisted(ANALYTIC, LikelihoodTwist(log_likelihood), 1024)
    _, found = particles_of(twisted, EXACT, keys, x, TS, cond)
    at = np.linspace(-8, 8, 4001)
    density = np.exp(-0.5 * at**2) / (1 + np.exp(-3 * at))
    signs = np.where(np.arange(16) % 2 == 1, 1.0, -1.0)[:, None]
    agrees(moments(found)[0] * signs, [(at * density).sum() / density.sum(), 0.0])
    agrees(np.exp(found.log_evidence), 0.5)


def test_a_step_is_the_papers() -> None:
    """VE, fixed large: the proposal's mean is m + v grad ln p~ with v = sigma_t^2 - sigma_s^2, and the weight that of
    equation (3), its densities written out."""
    process = jd.VE()
    exact = jd.GaussianDenoiser(process, 0.3, 1.0)
    keys = jd.sample_keys(jax.random.key(1), 0, 4)
    t, s = jnp.asarray(0.6), jnp.asarray(0.5)
    x = process.sigma(t) * jax.random.normal(jax.random.key(2), (4, 2))
    twist, inner = given(1.2, 0.5), jd.DDPM(process, "fixed_large")
    twisted, noise = Twisted(inner, twist, 4, threshold=0.0), step_noise(keys, x)

    def log_twist(x: jax.Array, t: jax.Array) -> jax.Array:
        return twist(exact(x, t).x0, None, process.sigma(t))

    found, state = jax.jit(lambda x: twisted.step(exact, noise, twisted.init(x), x, t, s))(x)
    v = process.sigma(t) ** 2 - process.sigma(s) ** 2
    gradient, plain = jax.jit(
        lambda x: (
            jax.grad(lambda x: log_twist(x, t).sum())(x),
            inner.step(exact, lambda *_: jnp.zeros_like(x), (), x, t, s)[0],
        )
    )(x)
    np.testing.assert_allclose(found, plain + v * gradient + jnp.sqrt(v) * noise(t, s), rtol=1e-4, atol=1e-5)
    ratio = sum_features(jnp.square(found - plain - v * gradient) - jnp.square(found - plain)) / (2 * v)
    np.testing.assert_allclose(state.carried, ratio, rtol=1e-3, atol=1e-4)
    weights = twisted.weigh(None, state, exact(found, s).x0, s)[0]
    by_hand = ratio + twist(exact(found, s).x0, None, 0.0)  # the last twist is the likelihood
    np.testing.assert_allclose(weights, by_hand, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "inner",
    [
        jd.DDIM(PROCESS, 1.0),
        jd.EulerMaruyama(PROCESS),
        pytest.param(jd.ReverseDiffusion(PROCESS), marks=pytest.mark.nightly),
        pytest.param(jd.DPMpp2MSDE(PROCESS), marks=pytest.mark.nightly),
        pytest.param(jd.EulerAncestral(PROCESS), marks=pytest.mark.nightly),
    ],
    ids=lambda sampler: type(sampler).__name__,
)
def test_any_sampler_whose_step_is_one_gaussian(inner: jd.Sampler) -> None:
    """The density ratio is of the mean that it has with the moved prediction, and of its deviation."""
    keys, t, s = jd.sample_keys(jax.random.key(1), 0, 4), jnp.asarray(0.5), jnp.asarray(0.4)
    x = jax.random.normal(jax.random.key(2), (4, 2))
    twist, noise = given(1.2, 0.5), step_noise(keys, x)
    twisted = Twisted(inner, twist, 4, threshold=0.0)

    @jax.jit
    def both(x: jax.Array) -> tuple[Any, ...]:
        found = EXACT(x, t)
        rho = PROCESS.sigma(t) / PROCESS.alpha(t)
        gradient = jax.grad(lambda x: twist(EXACT(x, t).x0, None, rho).sum())(x)
        towards = moved(PROCESS, t, found, PROCESS.sigma(t) ** 2 / PROCESS.alpha(t) * gradient)

        def mean(prediction: jd.Prediction, z: float) -> jax.Array:
            made = inner.step(lambda *_: prediction, lambda *_: jnp.full_like(x, z), inner.init(x), x, t, s)
            return made[0]

        return (
            twisted.step(EXACT, noise, twisted.init(x), x, t, s),
            mean(found, 0.0),
            mean(towards, 0.0),
            mean(found, 1.0),
        )

    (x_s, state), plain, towards, one = both(x)
    std = one - plain
    np.testing.assert_allclose(x_s, towards + std * noise(t, s), rtol=1e-4, atol=1e-5)
    ratio = sum_features(jnp.square((x_s - towards) / std) - jnp.square((x_s - plain) / std)) / 2
    np.testing.assert_allclose(state.carried, ratio, rtol=1e-3, atol=1e-3)


def test_numbers_are_data_and_rows_go_with_their_samples() -> None:
    keys, x = started(2, 4)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def run(twisted: Twisted) -> Particles:
        return sample_particles(twisted, EXACT, keys, x, TS)[1]

    found = [
        run(Twisted(ANALYTIC, given(y, std, tau, scale * A), 4, threshold))
        for scale, y, std, tau, threshold in ((1.0, 0.0, 0.5, 1.0, 0.5), (2.0, 1.0, 0.1, 0.0, 1.0))
    ]
    assert not np.allclose(found[0].x0, found[1].x0)
    problem = Problem(Mask((2,), jnp.ones((3, 2))), jnp.arange(6.0).reshape(3, 2))
    for twist in (InpaintingTwist(problem), GaussianTwist(dataclasses.replace(problem, noise=Gaussian(0.5)))):
        cut = Twisted(ANALYTIC, twist).rows(lambda leaf: leaf[1:])
        assert isinstance(cut.twist, type(twist))
        assert cut.twist.problem.y.tolist() == [[2.0, 3.0], [4.0, 5.0]]
    light = TDS().of(dataclasses.replace(problem, noise=Poisson(100.0)), PROCESS, ANALYTIC)[1]
    assert isinstance(light, Twisted) and isinstance(light.twist, LikelihoodTwist)
    cut = light.rows(lambda leaf: leaf[1:])
    assert isinstance(cut.twist, LikelihoodTwist) and isinstance(cut.twist.log_likelihood, OfProblem)
    each = problem.y[1:] / 10
    expected = dataclasses.replace(problem, noise=Poisson(100.0)).rows(lambda leaf: leaf[1:]).log_likelihood(each)
    np.testing.assert_array_equal(cut.twist(each, None, 0.3), expected)
    np.testing.assert_allclose(
        spread(jnp.array([0.0, 2.0, jnp.inf]), 1.5), [0.0, 1 / (1 / 4 + 1 / 2.25), 2.25], rtol=1e-6
    )


@pytest.mark.nightly
def test_a_model_reconstructs_by_its_name() -> None:
    """Each sample with its own measurement, in whatever batch; nearer to it than samples without one."""
    net = functional(MLP(width=8, depth=1))
    denoise = jd.NetworkDenoiser(net, net.init(jax.random.key(0)), PROCESS, jd.V())
    model = jd.Model(denoise, jd.codecs.Points((2,)), jd.model.Defaults(clip=False))
    y = jnp.array([[-2.0], [0.0], [2.0]])
    operator = Linear((2,), applied, A)
    options: dict[str, Any] = {"noise": 0.2, "steps": 30, "decode": False}
    whole = reconstruct("tds:8,tau=0.7", operator, y, model, **options)
    part = reconstruct("tds:8,tau=0.7", operator, y, model, batch_size=8, **options)
    np.testing.assert_allclose(part, whole, rtol=1e-4, atol=1e-5)
    assert np.abs(applied(A, whole) - y).max() < 1.0 < np.abs(y).max()
    with pytest.raises(ValueError, match="DDIM draws no noise"):
        reconstruct("tds:8", operator, y, model, sampler="ddim", **options)


def test_what_means_nothing_is_refused() -> None:
    measured, box = given(0.0, 0.5), Box((2, 2, 1), 2)
    without = Problem(box, jnp.zeros((1, 1, 1, 1)))
    keys, x = started(1, 4)
    for wrong, message in (
        (lambda: Twisted(jd.DDIM(PROCESS), measured), "DDIM draws no noise"),
        (lambda: Twisted(ANALYTIC, abs), "a twist is GaussianTwist, InpaintingTwist or LikelihoodTwist, got"),  # type: ignore[arg-type]
        (lambda: given(0.0, 0.0), "a twist by noise needs it to be positive, got std = 0"),
        (lambda: given(0.0, 0.5, -1.0), "tau is to be 0 or more, got tau = -1"),
        (lambda: TDS().of(without, PROCESS, ANALYTIC), "a measurement without noise is to be of a mask, got Box"),
        (lambda: InpaintingTwist(Problem(Mask((2,), jnp.ones(2)), jnp.zeros((1, 2))), 0.0), "tau is to be positive"),
        (lambda: LikelihoodTwist(3), "a likelihood is a function"),
        (lambda: TDS(particles=0).of(measured.problem, PROCESS, ANALYTIC), "particles is a whole number, 1 or more"),
        (
            lambda: jd.sample(Twisted(jd.Restart(jd.DDPM(PROCESS)), measured, 4), EXACT, keys, x, TS),
            "a twisted step is of one evaluation and one draw, and Restart's is of",
        ),
        (
            lambda: jd.sample(Twisted(jd.EDMStochastic(PROCESS), measured, 4), EXACT, keys, x, TS),
            "a twisted step is of one evaluation and one draw, and EDMStochastic's is of",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            wrong()


# --- in full


def posterior(means: Any, stds: Any, shares: Any, y: float, std: float) -> tuple[Any, Any, float]:
    """Mean, covariance and p(y) of a mixture given y = A x0 + std n: a mixture again."""
    a, parts = np.asarray(A, float)[0], []
    for m, s, share in zip(means, stds, shares, strict=True):
        total = s**2 * (a @ a) + std**2
        gain = s**2 * a / total
        likelihood = share * np.exp(-0.5 * (y - a @ m) ** 2 / total) / np.sqrt(2 * np.pi * total)
        parts.append((likelihood, m + gain * (y - a @ m), s**2 * np.eye(2) - s**2 * np.outer(gain, a)))
    evidence = sum(p[0] for p in parts)
    mean = sum(p[0] * p[1] for p in parts) / evidence
    covariance = sum(p[0] * (p[2] + np.outer(p[1] - mean, p[1] - mean)) for p in parts) / evidence
    return mean, covariance, evidence


@pytest.mark.nightly
def test_a_mixture_given_a_linear_measurement_as_particles_grow() -> None:
    """1,024 particles in fine steps: mean, covariance and p(y) within the Monte-Carlo error; the error of the mean
    falls as the root of their number."""
    means, stds, shares = np.array([[-1.0, 0.5], [1.0, -0.5]]), np.array([0.4, 0.6]), np.array([0.3, 0.7])
    exact = jd.MixtureDenoiser(PROCESS, jnp.asarray(means), jnp.asarray(stds), jnp.log(jnp.asarray(shares)))
    ts, errors = jd.log_snr_times(PROCESS, 400), []
    mean, covariance, evidence = posterior(means, stds, shares, 0.4, 0.3)
    for k, n in ((16, 256), (128, 64), (1024, 16)):
        keys, x = started(n, k, ts)
        twisted = Twisted(jd.DDPM(PROCESS, "fixed_large"), given(0.4, 0.3), k)
        _, found = particles_of(twisted, exact, keys, x, ts)
        found_mean, found_covariance = moments(found)
        errors.append(float(np.sqrt(np.square(found_mean - mean).sum(axis=1).mean())))
    agrees(found_mean, mean, 0.005)
    agrees(found_covariance, covariance, 0.01)
    agrees(np.exp(found.log_evidence), evidence, 0.005)
    assert errors[0] > 2 * errors[1] > 4 * errors[2], errors
