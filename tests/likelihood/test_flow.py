"""The likelihood of the probability flow against closed forms."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.typing import ArrayLike

import jaxdiff as jd
from jaxdiff.denoiser import Cond
from jaxdiff.likelihood import (
    AdaptiveSteps,
    FixedSteps,
    ProposeTime,
    bits_per_dim,
    continuous_elbo,
    discrete_vlb,
    log_likelihood,
)
from jaxdiff.likelihood.angle import angle, time_of_angle
from jaxdiff.prediction import Prediction
from jaxdiff.sampling.tableau import BOGACKI_SHAMPINE, CLASSIC4, HEUN2, TABLEAUX, Tableau
from tests.likelihood.problems import POINTS, keys_of, noisy_log_density
from tests.tables import NO_SIGNAL_AT_END, PROCESSES, every_process, gaussian, mixture


@pytest.mark.parametrize("name", every_process())
def test_flow_has_the_closed_form_on_gaussian_data(name: str) -> None:
    """To 1e-3 bits a dimension: fixed and adaptive steps, exact and random divergence, the process's prior and the
    data's own, up to alpha = 0."""
    with jax.enable_x64(True):
        process = PROCESSES[name]()
        exact, x, keys = gaussian(process), jnp.asarray(POINTS), keys_of(4)

        @jax.jit
        def run(x: jax.Array) -> tuple[jax.Array, ...]:
            whole = log_likelihood(
                exact, process, x, solver=FixedSteps(32), divergence="exact", prior=exact.log_density, t_max=1.0
            )
            found = log_likelihood(exact, process, x, keys, solver=AdaptiveSteps(1e-5, 1e-5))
            return whole.log_density, found.log_density, found.latent

        fixed, adaptive, latent = run(x)
        t, end = process.min_time(), time_of_angle(process, jnp.minimum(angle(process, 1.0), jnp.arctan(200.0)))
        np.testing.assert_allclose(bits_per_dim(fixed - noisy_log_density(exact, x, t), x), 0.0, atol=1e-4)
        # the model with the process's own prior: the flow of a Gaussian is affine, x_1 = a + b x
        image = functools.partial(exact.flow, t=t, s=end)
        arrived = image(process.alpha(t) * x)
        slope = jnp.diagonal(jax.vmap(jax.jacfwd(lambda x: image(process.alpha(t) * x[None])[0]))(x), axis1=1, axis2=2)
        model = process.prior_log_density(arrived, end) + jnp.log(slope).sum(axis=1)
        np.testing.assert_allclose(bits_per_dim(adaptive - model, x), 0.0, atol=5e-4)
        np.testing.assert_allclose(latent / process.sigma(end), arrived / process.sigma(end), atol=1e-3)
        # and its mean over the data is their cross-entropy, nearly their entropy
        ratio2 = jnp.square(process.sigma(t) / process.alpha(t))
        entropy = 0.5 * jnp.log(2 * math.pi * math.e * (jnp.square(exact.std) + ratio2)).sum()
        nodes, weights = np.polynomial.hermite_e.hermegauss(4)  # exact: the logarithm is a quadratic
        spread = jnp.sqrt(jnp.square(exact.std) + ratio2)[None]
        data = jnp.asarray(exact.mean)[None] + spread * jnp.asarray(nodes[np.indices((4, 4)).reshape(2, -1).T])
        of_model = process.prior_log_density(image(process.alpha(t) * data), end) + jnp.log(slope[0]).sum()
        cross_entropy = -(of_model * (np.outer(weights, weights).ravel() / weights.sum() ** 2)).sum()
        assert -1e-9 < (cross_entropy - entropy) / (2 * math.log(2)) < 1e-3


@pytest.mark.parametrize("name", ["SubVP", "VE", "Flow"])
def test_flow_of_a_mixture_and_its_random_divergence(name: str) -> None:
    """Exact trace: the density. Random: unbiased within its error; signs vary less than normal directions, more probes
    less than one."""
    with jax.enable_x64(True):
        process = PROCESSES[name]()
        exact, x = mixture(process), jnp.asarray([[0.9, 0.4], [-0.7, 0.2], [0.1, -0.8], [0.3, 0.0]])
        find = functools.partial(log_likelihood, exact, process, solver=FixedSteps(40), prior=exact.log_density)
        truth = noisy_log_density(exact, x, process.min_time())
        whole = jax.jit(lambda x: find(x, divergence="exact").log_density)(x)
        np.testing.assert_allclose(bits_per_dim(whole - truth, x), 0.0, atol=1e-3)

        n = 256
        many, keys = jnp.repeat(x, n, axis=0), keys_of(4 * n)

        @jax.jit
        def estimates(keys: jax.Array) -> tuple[jax.Array, ...]:
            signs = find(many, keys).log_density
            normal = find(many, keys, divergence="gaussian").log_density
            return signs, normal, find(many, keys, probes=4).log_density

        spreads = []
        for found in estimates(keys):
            found = found.reshape(4, n)
            error = found.std(axis=1) / math.sqrt(n)
            assert (jnp.abs(found.mean(axis=1) - whole) < 4.5 * error + 1e-9).all()
            spreads.append(float(found.std(axis=1).mean()))
        assert spreads[0] < spreads[1] and spreads[2] == pytest.approx(spreads[0] / 2, rel=0.2)


def test_signs_are_exact_where_the_jacobian_is_diagonal() -> None:
    process = jd.CosineVP()
    exact, x = gaussian(process), jnp.asarray(POINTS, jnp.float32)
    find = jax.jit(lambda keys: log_likelihood(exact, process, x, keys, solver=FixedSteps(16)).log_density)
    np.testing.assert_allclose(find(keys_of(4, 1)), find(keys_of(4, 2)), atol=1e-5)


@pytest.mark.parametrize(("tableau", "order"), [(HEUN2, 2), (CLASSIC4, 4)])
def test_fixed_steps_have_their_order(tableau: Tableau, order: int) -> None:
    with jax.enable_x64(True):
        process = jd.VP()
        exact, x = mixture(process), jnp.asarray([[0.9, 0.4], [-0.7, 0.2], [0.1, -0.8]])
        truth = noisy_log_density(exact, x, jnp.asarray(0.01))

        def error(steps: int) -> float:
            find = functools.partial(log_likelihood, exact, process, t_min=0.01, prior=exact.log_density)
            found = jax.jit(lambda x: find(x, solver=FixedSteps(steps, tableau), divergence="exact").log_density)(x)
            return float(jnp.abs(found - truth).max())

        errors = [error(n) for n in (64, 128, 256)]
        assert np.mean(-np.diff(np.log2(errors))) > order - 0.25, errors


def test_adaptive_steps() -> None:
    """A tighter tolerance costs more and errs less; a sample's answer is its own; the bound on evaluations holds."""
    process = jd.VP()
    exact, x = mixture(process), jnp.asarray([[0.9, 0.4], [-0.7, 0.2], [0.1, -0.8], [0.6, -0.4]])
    truth = noisy_log_density(exact, x, process.min_time())

    @functools.partial(jax.jit, static_argnames="pair")
    def find(x: jax.Array, rtol: float, bound: int, pair: Tableau | None = None) -> tuple[jax.Array, ...]:
        solver = AdaptiveSteps(rtol, rtol, bound, **({} if pair is None else {"tableau": pair}))
        found = log_likelihood(exact, process, x, solver=solver, divergence="exact", prior=exact.log_density)
        return found.log_density, found.evaluations

    loose, tight = find(x, 1e-2, 10_000), find(x, 1e-4, 10_000)
    assert (tight[1] > loose[1]).all() and len(set(tight[1].tolist())) > 1
    assert jnp.abs(tight[0] - truth).max() < jnp.abs(loose[0] - truth).max()
    np.testing.assert_allclose(bits_per_dim(tight[0] - truth, x), 0.0, atol=1e-3)
    alone = find(x[1:2], 1e-4, 10_000)
    np.testing.assert_allclose(alone[0][0], tight[0][1], atol=2e-4)
    assert abs(int(alone[1][0]) - int(tight[1][1])) <= 6  # another batch rounds otherwise
    few, spent = find(x, 1e-4, 40)
    assert jnp.isnan(few).all() and (spent <= 40).all() and (spent > 30).all()
    other = find(x, 1e-4, 10_000, BOGACKI_SHAMPINE)
    np.testing.assert_allclose(bits_per_dim(other[0] - truth, x), 0.0, atol=2e-3)


@pytest.mark.parametrize("name", ["VP", "KarrasVE", "CosineVP", "DiscreteVP_zero_snr"])
def test_float32_and_one_sample(name: str) -> None:
    process = PROCESSES[name]()
    exact, x = gaussian(process), jnp.asarray(POINTS, jnp.float32)
    find = jax.jit(
        lambda x: log_likelihood(exact, process, x, divergence="exact", t_max=1.0, prior=exact.log_density).log_density
    )
    found = find(x)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(bits_per_dim(found - noisy_log_density(exact, x, process.min_time()), x), 0, atol=1e-3)
    np.testing.assert_allclose(find(x[2:3]), found[2:3], atol=1e-4)


def test_angles_and_times() -> None:
    with jax.enable_x64(True):
        for name, make in PROCESSES.items():
            process = make()
            t = process.min_time() + jnp.linspace(0.0, 0.98, 7) * (1.0 - process.min_time())
            np.testing.assert_allclose(time_of_angle(process, angle(process, t)), t, atol=1e-9, err_msg=name)
            if name in NO_SIGNAL_AT_END:
                assert time_of_angle(process, angle(process, 1.0)) == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"t_min": 0.0}, "where sigma = 0 for CosineVP"),
        ({"t_min": 0.5, "t_max": 0.4}, "0 <= t_min < t_max <= 1, got 0.5 and 0.4"),
        ({"t_max": 1.5}, "t_max <= 1"),
        ({"divergence": "hutch"}, "divergence is to be"),
        ({"probes": 0}, "probes is at least 1"),
        ({"divergence": "rademacher", "keys": None}, "needs keys"),
    ],
)
def test_log_likelihood_refuses(keywords: dict, message: str) -> None:
    process, x = jd.CosineVP(), jnp.zeros((1, 2))
    with pytest.raises(ValueError, match=message):
        log_likelihood(gaussian(process), process, x, **({"keys": keys_of(1)} | keywords))


def test_eps_is_refused_where_there_is_no_signal() -> None:
    process, x, keys = jd.CosineVP(), jnp.zeros((1, 2)), keys_of(1)

    def made_of_eps(x: jax.Array, t: ArrayLike, cond: Cond | None = None) -> Prediction:
        return jd.Eps().read(process, x, t, 0.1 * x)

    with pytest.raises(ValueError, match="no signal"):
        log_likelihood(made_of_eps, process, x, keys, t_max=1.0)
    with pytest.raises(ValueError, match="no signal"):
        discrete_vlb(made_of_eps, process, x, keys, ts=jnp.array([1.0, 0.5]))
    with pytest.raises(ValueError, match="no signal"):
        continuous_elbo(made_of_eps, process, x, keys, time=ProposeTime(), t_max=1.0)
    assert jnp.isfinite(log_likelihood(made_of_eps, process, x, keys).log_density).all()  # sigma/alpha = 200
    with pytest.raises(ValueError, match="steps is at least 1"):
        FixedSteps(0)
    with pytest.raises(ValueError, match="embedded pair"):
        AdaptiveSteps(tableau=CLASSIC4)


def test_wide_data_take_the_steps_that_they_need() -> None:
    """By default steps follow the error: on data of standard deviation 300, from end to end of VE(0.01, 1500), and far
    from VP's unit scale, the answer is exact; 64 fixed steps were 19 nats off."""
    for process, std in ((jd.VE(0.01, 1500.0), 300.0), (jd.VP(), 30.0), (jd.Flow(), 0.01)):
        exact, x = jd.GaussianDenoiser(process, 0.2 * std, std), std * jnp.array(POINTS, jnp.float32)
        found = jax.jit(functools.partial(log_likelihood, exact, process, divergence="exact", prior=exact.log_density))(
            x
        )
        expected = noisy_log_density(exact, x, process.min_time())
        np.testing.assert_allclose(found.log_density, expected, atol=2e-2)


def test_a_sample_that_is_not_finite_stops_by_itself() -> None:
    """It has no likelihood, costs a step, and leaves the others alone; so does one whose denoiser fails on the way."""
    process = jd.VP()
    exact, x = gaussian(process), jnp.asarray(POINTS, jnp.float32)
    find = jax.jit(lambda x: log_likelihood(exact, process, x, divergence="exact"))
    good, bad = find(x), find(x.at[1, 0].set(jnp.nan))
    assert np.isnan(bad.log_density[1]) and bad.evaluations[1] <= 7
    others = np.array([0, 2, 3])
    np.testing.assert_allclose(bad.log_density[others], good.log_density[others], rtol=1e-5)
    np.testing.assert_array_equal(bad.evaluations[others], good.evaluations[others])

    def failing(x: jax.Array, t: ArrayLike, cond: object = None) -> jd.Prediction:
        late = jnp.asarray(t)[:, None] > 0.5
        return jd.Prediction(*(jnp.where(late, jnp.nan, part) for part in exact(x, t)[:2]))

    for tableau in (tableau for tableau in TABLEAUX.values() if tableau.embedded is not None):
        solver = AdaptiveSteps(1e-4, 1e-4, tableau=tableau)
        found = jax.jit(lambda x, s=solver: log_likelihood(failing, process, x, divergence="exact", solver=s))(x)
        assert np.isnan(found.log_density).all() and (found.evaluations < 1500).all()
