"""Closed-form denoisers against the score of their own densities and against integration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array
from jax.typing import ArrayLike
from scipy import integrate as quadrature
from scipy.special import logsumexp
from scipy.stats import multivariate_normal, norm

import jaxdiff as jd
from jaxdiff.data import open_digits
from jaxdiff.exact import EmpiricalDenoiser, FullGaussianDenoiser
from tests.tables import LOG_WEIGHTS, MEANS, PROCESSES, gaussian, mixture


@pytest.mark.parametrize("make", [gaussian, mixture])
@pytest.mark.parametrize("name", sorted(PROCESSES))
def test_prediction_is_the_score_of_the_density(name: str, make: object) -> None:
    """eps = -sigma grad ln p_t (Tweedie), and x = alpha x0 + sigma eps."""
    assert callable(make)
    with jax.enable_x64(True):
        process = PROCESSES[name]()
        exact = make(process)
        for t in jd.log_snr_times(process, 5):
            x0 = jnp.array([[0.5, 0.1]] * 6)
            x = process.perturb(x0, jax.random.normal(jax.random.key(1), x0.shape), t)
            prediction = exact(x, t)
            score = jax.grad(lambda x, t=t: exact.log_density(x, t).sum())(x)
            np.testing.assert_allclose(prediction.score(process, t), score, rtol=1e-8, atol=1e-10)
            np.testing.assert_allclose(process.perturb(prediction.x0, prediction.eps, t), x, rtol=1e-9, atol=1e-12)
            np.testing.assert_allclose(exact(x, jnp.full(6, t)).x0, prediction.x0, rtol=1e-12)


def test_mixture_in_one_dimension_by_quadrature() -> None:
    process, t = jd.Flow(), 0.4
    means, stds, weights = np.array([-0.8, 0.5]), np.array([0.1, 0.3]), np.array([0.25, 0.75])
    exact = jd.MixtureDenoiser(process, jnp.array(means)[:, None], jnp.array(stds), jnp.log(jnp.array(weights)))
    for x in (-0.9, 0.0, 0.7):
        joint = lambda x0, x=x: (weights * norm.pdf(x0, means, stds)).sum() * norm.pdf(x, 0.6 * x0, 0.4)  # noqa: E731
        mass = quadrature.quad(joint, -4, 4, points=[-0.8, 0.5])[0]
        mean = quadrature.quad(lambda x0: x0 * joint(x0), -4, 4, points=[-0.8, 0.5])[0] / mass  # noqa: B023
        point = jnp.array([[x]])
        assert exact(point, t).x0.item() == pytest.approx(mean, rel=1e-4, abs=1e-5)
        assert exact.log_density(point, t).item() == pytest.approx(np.log(mass), rel=1e-4)


def test_gaussian_flow_solves_the_probability_flow() -> None:
    with jax.enable_x64(True):
        process = jd.VP()
        exact = gaussian(process)
        x = jnp.array([[0.3, -1.0], [2.0, 0.5]])
        t = jnp.asarray(0.6)
        dx = jax.jacfwd(lambda s: exact.flow(x, t, s))(t)
        np.testing.assert_allclose(dx, exact(x, t).velocity(process, t), rtol=1e-10)
        np.testing.assert_allclose(exact.flow(exact.flow(x, t, 0.2), 0.2, t), x, rtol=1e-10)


def test_one_component_is_the_gaussian_and_data_have_their_moments() -> None:
    process = jd.CosineVP()
    single = jd.MixtureDenoiser(process, jnp.array([[0.7, -0.4]]), 0.3)
    x = jax.random.normal(jax.random.key(0), (5, 2))
    reference = jd.GaussianDenoiser(process, jnp.array([0.7, -0.4]), 0.3)
    np.testing.assert_allclose(single(x, 0.5).x0, reference(x, 0.5).x0, rtol=1e-5)
    np.testing.assert_allclose(single.log_density(x, 0.5), reference.log_density(x, 0.5), rtol=1e-5)
    data = mixture(process).sample_data(jax.random.key(0), 20_000)
    np.testing.assert_allclose(data.mean(0), jnp.array([0.24, 0.1]), atol=0.03)


COVARIANCE = np.array([[0.5, 0.2, -0.1], [0.2, 0.3, 0.05], [-0.1, 0.05, 0.2]])
CENTRE = np.array([0.4, -0.7, 0.1])


@pytest.mark.parametrize("name", ["VP", "Flow", "KarrasVE"])
def test_full_gaussian_is_the_score_of_its_density(name: str) -> None:
    """At every rank; the density is scipy's, the flow solves its equation, and a diagonal covariance is the plain
    denoiser's."""
    with jax.enable_x64(True):
        process = PROCESSES[name]()
        data = np.random.default_rng(0).multivariate_normal(CENTRE, COVARIANCE, 40)
        whole = FullGaussianDenoiser.from_covariance(process, CENTRE, COVARIANCE)
        part = FullGaussianDenoiser.from_data(process, data, rank=1)
        spectrum = np.linalg.eigvalsh(np.cov(data.T, bias=True))[::-1]
        axis = np.asarray(part.directions)[0]
        principal = (spectrum[0] - spectrum[1:].mean()) * np.outer(axis, axis) + spectrum[1:].mean() * np.eye(3)
        x = jax.random.normal(jax.random.key(1), (4, 3))
        for exact, covariance in ((whole, COVARIANCE), (part, principal)):
            both = jax.jit(lambda exact, x, t: (exact(x, t), exact.log_density(x, t), exact.flow(x, t, 0.5 * t)))
            for t in jnp.array([0.02, 0.6]):
                alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
                prediction, density, moved = both(exact, x, t)
                truth = multivariate_normal(
                    alpha * np.asarray(exact.mean), alpha**2 * covariance + sigma**2 * np.eye(3)
                )
                np.testing.assert_allclose(density, truth.logpdf(np.asarray(x)), rtol=1e-9)
                score = jax.vmap(jax.grad(lambda x, t=t, e=exact: e.log_density(x[None], t)[0]))(x)
                np.testing.assert_allclose(prediction.score(process, t), score, rtol=1e-8, atol=1e-10)
                np.testing.assert_allclose(process.perturb(prediction.x0, prediction.eps, t), x, rtol=1e-9, atol=1e-12)
                dx = jax.jacfwd(lambda s, t=t, e=exact: e.flow(x, t, s))(t)
                np.testing.assert_allclose(dx, prediction.velocity(process, t), rtol=1e-8, atol=1e-10)
                np.testing.assert_allclose(exact.flow(moved, 0.5 * t, t), x, rtol=1e-9, atol=1e-12)
        plain = jd.GaussianDenoiser(process, jnp.asarray(CENTRE), jnp.array([0.5, 0.2, 0.3]))
        same = FullGaussianDenoiser.from_covariance(process, CENTRE, np.diag([0.25, 0.04, 0.09]))
        times = jnp.array([0.1, 0.3, 0.5, 0.9])  # one a sample
        np.testing.assert_allclose(same(x, times).x0, plain(x, times).x0, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(same(x, times).eps, plain(x, times).eps, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(same.flow(x, 0.6, 0.1), plain.flow(x, 0.6, 0.1), rtol=1e-10, atol=1e-12)


def test_full_gaussian_of_few_data_stays_in_their_plane() -> None:
    """Fewer data than coordinates: x0 lies in the span of the data, at t = 0.02 and where alpha = 0, and samples have
    the covariance."""
    process, data = jd.Flow(), np.random.default_rng(1).normal(size=(4, 3, 2))
    exact = FullGaussianDenoiser.from_data(process, data)
    assert exact.directions.shape == (3, 6)
    x = jax.random.normal(jax.random.key(0), (5, 3, 2))
    span = (data[1:] - data[:1]).reshape(3, 6).T
    for t in (0.02, 1.0):
        away = np.asarray(exact(x, t).x0 - data.mean(axis=0, dtype=np.float32)[None]).reshape(5, 6).T
        left = away - span @ np.linalg.lstsq(span, away, rcond=None)[0]
        np.testing.assert_allclose(left, 0.0, atol=1e-5)
    draws = np.asarray(exact.sample_data(jax.random.key(1), 20_000)).reshape(-1, 6)
    np.testing.assert_allclose(np.cov(draws.T), np.cov(data.reshape(4, 6).T, bias=True), atol=0.06)
    ppca = FullGaussianDenoiser.from_data(process, np.random.default_rng(2).normal(size=(50, 3)) * [1, 2, 3], rank=2)
    draws = np.asarray(ppca.sample_data(jax.random.key(1), 20_000))
    truth = ppca.directions.T @ np.diag(ppca.variances - ppca.variance_beside) @ ppca.directions
    np.testing.assert_allclose(np.cov(draws.T), truth + ppca.variance_beside * np.eye(3), atol=0.2)


@pytest.mark.parametrize(
    ("covariance", "problem"),
    [
        (np.eye(3), "a mean of 2 numbers"),
        ([[1.0, 0.5], [0.0, 1.0]], "not symmetric"),
        ([[1.0, 2.0], [2.0, 1.0]], "no eigenvalue below 0"),
    ],
)
def test_what_is_no_covariance_is_refused(covariance: object, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        FullGaussianDenoiser.from_covariance(jd.VP(), np.zeros(2), covariance)
    with pytest.raises(ValueError, match="have 1 to 1 components, got rank=2"):
        FullGaussianDenoiser.from_data(jd.VP(), np.eye(2), rank=2)


def test_mixture_of_unlike_coordinates() -> None:
    """One component is the Gaussian with the same widths; of several, eps is the score of the density."""
    with jax.enable_x64(True):
        process, x, t = jd.VP(), jax.random.normal(jax.random.key(0), (5, 2)), jnp.asarray(0.4)
        widths = jnp.array([[0.5, 0.1], [0.2, 0.3], [0.4, 0.05]])
        single = jd.MixtureDenoiser(process, jnp.array([[0.7, -0.4]]), widths[:1])
        plain = jd.GaussianDenoiser(process, jnp.array([0.7, -0.4]), widths[0])
        np.testing.assert_allclose(single(x, t).x0, plain(x, t).x0, rtol=1e-10)
        np.testing.assert_allclose(single.log_density(x, t), plain.log_density(x, t), rtol=1e-10)
        several = jd.MixtureDenoiser(process, MEANS.astype(float), widths, LOG_WEIGHTS.astype(float))
        score = jax.vmap(jax.grad(lambda x: several.log_density(x[None], t)[0]))(x)
        np.testing.assert_allclose(several(x, t).score(process, t), score, rtol=1e-8)
        data = several.sample_data(jax.random.key(0), 20_000)
        weights = np.array([0.5, 0.3, 0.2])
        variance = weights @ (np.square(MEANS) + np.square(widths)) - np.square(weights @ MEANS)
        np.testing.assert_allclose(data.var(axis=0), variance, atol=0.03)


# --- the empirical distribution


def brute_force(
    x: Array, process: jd.Process, t: ArrayLike, data: Array | np.ndarray, std: float
) -> tuple[np.ndarray, ...]:
    """Equations (1) to (4) of `jaxdiff.exact.empirical` in float64, one array of all differences."""
    flat, members = (np.asarray(part, np.float64).reshape(len(part), -1) for part in (x, data))
    alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
    total = alpha**2 * std**2 + sigma**2
    logits = -np.square(flat[:, None] - alpha * members[None]).sum(axis=2) / (2 * total)
    log_sum = logsumexp(logits, axis=1)
    weights = np.exp(logits - log_sum[:, None])
    centred = (flat - alpha * weights @ members) / total
    density = log_sum - np.log(len(members)) - 0.5 * flat.shape[1] * np.log(2 * np.pi * total)
    return weights @ members + alpha * std**2 * centred, sigma * centred, density, weights


everything = jax.jit(lambda exact, x, t: (*exact(x, t)[:2], exact.log_density(x, t), exact.weights(x, t)))


def pictures(n: int) -> np.ndarray:
    """Digits in [-1, 1]."""
    source = open_digits()
    return source.take(np.arange(n))["x"].astype(np.float32) / 127.5 - 1.0


@pytest.mark.parametrize("std", [0.0, 0.15])
def test_empirical_against_brute_force(std: float) -> None:
    """In float32 on digits, from sigma/alpha = 0.002 to alpha = 0; in one chunk and in chunks that do not divide."""
    process, data = jd.Flow(), pictures(300)
    noise = jax.random.normal(jax.random.key(0), (8, 8, 8, 1))
    for ratio in (0.002, 0.05, 0.3, 1.0, 10.0, np.inf):
        t = ratio / (1 + ratio) if np.isfinite(ratio) else 1.0
        x = process.perturb(jnp.asarray(data[:8]), noise, t)
        truth = brute_force(x, process, np.float32(t), data, std)
        for chunk in (300, 128):
            exact = EmpiricalDenoiser(process, jnp.asarray(data), std, chunk=chunk)
            x0, eps, density, weights = everything(exact, x, jnp.asarray(t))
            np.testing.assert_allclose(x0.reshape(8, -1), truth[0], atol=1e-5)
            np.testing.assert_allclose(eps.reshape(8, -1), truth[1], atol=3e-5)
            np.testing.assert_allclose(density, truth[2], rtol=2e-5, atol=1e-3)
            np.testing.assert_allclose(weights, truth[3], atol=1e-5)


def test_empirical_between_near_neighbours_is_accurate() -> None:
    """Members 0.008 apart in 768 coordinates, at sigma = 0.004: |x|^2/(2 sigma^2) is 6e6, of which float32 holds units,
    and the softmax still has four digits."""
    process, generator = jd.KarrasVE(), np.random.default_rng(0)
    centre = generator.uniform(-1, 1, 768)
    near = generator.normal(size=(6, 768))
    data = centre + 0.006 * near / np.linalg.norm(near, axis=1, keepdims=True)
    data = np.concatenate([data, generator.uniform(-1, 1, (50, 768))]).astype(np.float32)
    t = np.float32(process.time_of_log_snr(-2 * np.log(0.004)))
    x = jnp.asarray(data[:4] + 0.004 * generator.normal(size=(4, 768)), jnp.float32)
    truth = brute_force(x, process, t, data, 0.0)
    assert truth[3].max() < 0.999999
    _, eps, _, weights = everything(EmpiricalDenoiser(process, jnp.asarray(data), chunk=20), x, t)
    np.testing.assert_allclose(weights, truth[3], atol=1e-4)
    np.testing.assert_allclose(eps, truth[1], atol=3e-4)


def test_empirical_is_the_score_of_its_density() -> None:
    """With one time a sample, smoothed and bare; derivatives pass through the chunks, in both modes and by vmap."""

    @jax.jit
    def views(exact: EmpiricalDenoiser, x: Array, times: Array, direction: Array) -> tuple[Array, ...]:
        prediction, slope = jax.jvp(lambda x: exact(x, times), (x,), (direction,))
        alone = jax.vmap(lambda x, t: exact(x[None], t).x0[0])(x, times)
        steps = [exact(x + sign * 1e-6 * direction, times).eps for sign in (1, -1)]
        score = jax.grad(lambda x: exact.log_density(x, times).sum())(x)
        again = exact.process.perturb(prediction.x0, prediction.eps, times)
        tweedie = prediction.score(exact.process, times)
        return tweedie, score, again, slope.eps, (steps[0] - steps[1]) / 2e-6, prediction.x0, alone

    with jax.enable_x64(True):
        data, x = (jax.random.normal(jax.random.key(i), (n, 3, 2)) for i, n in ((1, 25), (0, 4)))
        direction, times = jax.random.normal(jax.random.key(2), x.shape), jnp.array([0.05, 0.3, 0.6, 1.0])
        for std in (0.0, 0.2):
            exact = EmpiricalDenoiser(jd.VP(), data, std, chunk=10)
            tweedie, score, again, slope, numeric, x0, alone = views(exact, x, times, direction)
            np.testing.assert_allclose(tweedie, score, rtol=1e-8)
            np.testing.assert_allclose(again, x, rtol=1e-9, atol=1e-12)
            np.testing.assert_allclose(slope, numeric, rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(alone, x0, rtol=1e-10)


def test_smoothed_empirical_is_a_mixture_and_the_bare_one_ends_in_its_members() -> None:
    both = jax.jit(lambda exact, x, t: (*exact(x, t)[:2], exact.log_density(x, t)))
    with jax.enable_x64(True):
        process, data = jd.CosineVP(), jax.random.normal(jax.random.key(1), (25, 4))
        x = jax.random.normal(jax.random.key(0), (6, 4))
        smooth, same = EmpiricalDenoiser(process, data, 0.3, chunk=7), jd.MixtureDenoiser(process, data, 0.3)
        for t in jnp.array([0.0, 0.2, 1.0]):
            for part, reference in zip(both(smooth, x, t), both(same, x, t), strict=True):
                np.testing.assert_allclose(part, reference, rtol=1e-9, atol=1e-12)
        nearest = data[np.square(x[:, None] - data[None]).sum(axis=2).argmin(axis=1)]
        bare = EmpiricalDenoiser(process, data, 0.0, chunk=7)
        np.testing.assert_allclose(both(bare, x, jnp.asarray(1e-3))[0], nearest, atol=1e-12)
        drawn = smooth.sample_data(jax.random.key(3), 20_000)
        np.testing.assert_allclose(drawn.var(axis=0), data.var(axis=0) + 0.09, atol=0.06)
        members = set(map(tuple, np.asarray(data)))
        assert {tuple(row) for row in np.asarray(bare.sample_data(jax.random.key(3), 50))} <= members


def test_labels_restrict_to_a_class_and_the_null_label_does_not() -> None:
    process, data = jd.VP(), jax.random.normal(jax.random.key(1), (40, 5))
    labels = np.arange(40) % 3
    exact = EmpiricalDenoiser(process, data, 0.1, jnp.asarray(labels), chunk=16)
    x, asked = jax.random.normal(jax.random.key(0), (4, 5)), np.array([0, 2, 3, 1])  # 3: the null label
    ask = jax.jit(lambda e, x, t, c: (*e(x, t, c)[:2], e.log_density(x, t, c), e.weights(x, t, c)))
    given = ask(exact, x, jnp.float32(0.5), {"label": jnp.asarray(asked)})
    for i, label in enumerate(asked):
        counts = labels == label if label < 3 else np.ones(40, bool)
        *truth, weights = brute_force(x[i : i + 1], process, 0.5, data[counts], 0.1)
        for part, reference in zip(given, truth, strict=False):
            np.testing.assert_allclose(part[i : i + 1], reference, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(given[3][i, counts], weights[0], atol=1e-5)
        assert float(given[3][i, ~counts].sum()) == 0.0


def test_empirical_of_a_whole_data_set_fits_in_memory() -> None:
    """50,000 images of 32 x 32 x 3 and 64 samples: temporary memory is some chunks, not (B, N, D)."""
    data = jax.ShapeDtypeStruct((50_000, 32, 32, 3), jnp.float32)
    shapes = jax.eval_shape(lambda data: EmpiricalDenoiser(jd.VP(), data, 0.15), data)
    x = jax.ShapeDtypeStruct((64, 32, 32, 3), jnp.float32)
    compiled = jax.jit(lambda exact, x, t: exact(x, t)).lower(shapes, x, jnp.float32(0.5)).compile()
    memory = compiled.memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < 150e6


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: EmpiricalDenoiser(jd.VP(), jnp.zeros((4, 2), jnp.uint8)), "x / 127.5 - 1"),
        (lambda: EmpiricalDenoiser(jd.VP(), jnp.zeros((0, 2))), "at least one member"),
        (lambda: EmpiricalDenoiser(jd.VP(), jnp.zeros((4, 2)), labels=jnp.zeros(3)), "one label a member"),
        (lambda: EmpiricalDenoiser(jd.VP(), jnp.zeros((4, 2)), chunk=0), "chunk is to be a positive number"),
        (lambda: EmpiricalDenoiser(jd.VP(), jnp.zeros((4, 2)))(jnp.zeros((1, 3)), 0.5), "do not fit data"),
    ],
)
def test_what_is_no_data_set_is_refused(make: Callable[[], object], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        make()


def products(jaxpr: Any) -> list[Any]:
    """The precision of each matrix product, wherever it stands."""
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            found.append(equation.params["precision"])
        for value in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda v: hasattr(v, "eqns") or hasattr(v, "jaxpr")
        ):
            inner = getattr(value, "jaxpr", value)
            found += products(inner) if hasattr(inner, "eqns") else []
    return found


def test_products_are_not_left_to_the_devices_default() -> None:
    """On TPU the default is bfloat16, on GPU tf32: every product of a closed form asks for full precision."""
    process, data = jd.VP(), jax.random.normal(jax.random.key(0), (20, 4))
    x, cond = data[:5], {"label": jnp.arange(5) % 3}
    forms = [
        jd.GaussianDenoiser(process, 0.3, 0.5),
        jd.FullGaussianDenoiser.from_data(process, data, 2),
        jd.MixtureDenoiser(process, data[:3], 0.5),
        jd.EmpiricalDenoiser(process, data, 0.1, jnp.arange(20) % 3, chunk=7),
    ]
    counts = {}
    for exact in forms:
        calls = [lambda e, x: e(x, 0.3, cond), lambda e, x: e.log_density(x, 0.3)]
        calls += [lambda e, x: e.flow(x, 0.3, 0.2)] if hasattr(exact, "flow") else []
        calls += [lambda e, x: e.weights(x, 0.3)] if hasattr(exact, "weights") else []
        calls += [lambda e, x: e.sample_data(jax.random.key(0), 3)] if hasattr(exact, "sample_data") else []
        calls += [lambda e, x: jax.vjp(lambda x: e(x, 0.3).x0, x)[1](x)]
        found = [precision for call in calls for precision in products(jax.make_jaxpr(call)(exact, x).jaxpr)]
        highest = jax.lax.Precision.HIGHEST
        assert all(precision == (highest, highest) for precision in found), type(exact)
        counts[type(exact).__name__] = len(found)
    assert counts["MixtureDenoiser"] and counts["FullGaussianDenoiser"] and counts["EmpiricalDenoiser"]
