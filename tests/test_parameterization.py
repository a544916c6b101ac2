"""Conformance of every parameterization on every process: (x0, eps) -> target -> (x0, eps), and its jacobian."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff.parameterization import Consistency
from jaxdiff.prediction import from_eps, from_score, from_v, from_velocity, from_x0, mix
from tests.tables import NO_SIGNAL_AT_END, PARAMETERIZATIONS, PROCESSES

PAIRS = [(process, name) for process in sorted(PROCESSES) for name in PARAMETERIZATIONS]


def draws(n: int = 48, key: int = 0) -> tuple[jax.Array, jax.Array]:
    first, second = jax.random.split(jax.random.key(key))
    return jax.random.uniform(first, (n, 2, 2, 3), minval=-1, maxval=1), jax.random.normal(second, (n, 2, 2, 3))


def times(process: jd.Process, n: int = 48) -> jax.Array:
    """From t_min to the largest time at which sigma/alpha is at most 200."""
    return jnp.sort(jd.log_snr_times(process, n))


@pytest.mark.parametrize(("process_name", "name"), PAIRS)
def test_cycle(process_name: str, name: str) -> None:
    """Reading the target gives back x0 and eps, over [t_min, t_max]; errors are those of the conditioning, no more."""
    process, parameterization = PROCESSES[process_name](), PARAMETERIZATIONS[name]
    x0, eps = draws()
    t = times(process)
    x = process.perturb(x0, eps, t)
    target = parameterization.target(process, x0, eps, t)
    got = parameterization.read(process, x, t, target)
    assert target.shape == got.x0.shape == got.eps.shape == x0.shape
    ratio = (process.sigma(t) / process.alpha(t)).reshape(-1, 1, 1, 1)
    # x0 from eps loses sigma/alpha, eps from x0 alpha/sigma: in units of float32 rounding of x
    assert (jnp.abs(got.x0 - x0) < 2e-5 * (1 + ratio)).all()
    assert (jnp.abs(got.eps - eps) < 2e-5 * (1 + 1 / ratio)).all()
    # and x is always put back together
    np.testing.assert_allclose(process.perturb(got.x0, got.eps, t), x, rtol=1e-4, atol=1e-4 * float(jnp.abs(x).max()))


@pytest.mark.parametrize(("process_name", "name"), PAIRS)
def test_cycle_in_float64_is_exact(process_name: str, name: str) -> None:
    with jax.enable_x64(True):
        process, parameterization = PROCESSES[process_name](), PARAMETERIZATIONS[name]
        x0, eps = (part.astype(jnp.float64) for part in draws())
        t = times(process)
        target = parameterization.target(process, x0, eps, t)
        got = parameterization.read(process, process.perturb(x0, eps, t), t, target)
        np.testing.assert_allclose(got.x0, x0, atol=1e-10)
        np.testing.assert_allclose(got.eps, eps, atol=1e-10)


@pytest.mark.parametrize(("process_name", "name"), PAIRS)
def test_jacobian_is_the_derivative_of_x0(process_name: str, name: str) -> None:
    with jax.enable_x64(True):
        process, parameterization = PROCESSES[process_name](), PARAMETERIZATIONS[name]
        for t in times(process, 7):
            x, output = jnp.full((1, 1), 0.4), jnp.full((1, 1), 0.3)
            slope = jax.jacfwd(lambda o, x=x, t=t: parameterization.read(process, x, t, o).x0)(output).item()
            np.testing.assert_allclose(parameterization.jacobian(process, t), abs(slope), rtol=1e-8)


@pytest.mark.parametrize(("process_name", "name"), PAIRS)
def test_jit_vmap_and_scalar_time_agree(process_name: str, name: str) -> None:
    process, parameterization = PROCESSES[process_name](), PARAMETERIZATIONS[name]
    x, output = draws(4)
    t = times(process, 6)[1:5]
    whole = parameterization.read(process, x, t, output)
    jitted = jax.jit(type(parameterization).read)(parameterization, process, x, t, output)
    mapped = jax.vmap(lambda x, t, o: parameterization.read(process, x[None], t, o[None]))(x, t, output)
    for ours, *others in zip(whole[:2], jitted[:2], (part[:, 0] for part in mapped[:2]), strict=True):
        for other in others:
            np.testing.assert_allclose(other, ours, rtol=2e-5, atol=2e-5 * float(jnp.abs(ours).max()))
    net_x, net_t = parameterization.condition(process, x, t)
    assert net_x.shape == x.shape and net_t.shape == t.shape
    assert np.isfinite(net_x).all() and np.isfinite(net_t).all()


@pytest.mark.parametrize("name", ["X0", "V", "Karras"])
@pytest.mark.parametrize("process_name", sorted(NO_SIGNAL_AT_END))
def test_no_signal_at_the_end_is_no_obstacle(process_name: str, name: str) -> None:
    """X0, V and Karras hold at t = 1 where alpha = 0 (Velocity where alpha' is finite)."""
    process, parameterization = PROCESSES[process_name](), PARAMETERIZATIONS[name]
    x0, eps = draws(3)
    x = process.perturb(x0, eps, 1.0)
    got = parameterization.read(process, x, 1.0, parameterization.target(process, x0, eps, 1.0))
    np.testing.assert_allclose(got.x0, x0, atol=1e-6)
    np.testing.assert_allclose(got.eps, eps, atol=1e-6)
    net_x, net_t = parameterization.condition(process, x, 1.0)
    assert np.isfinite(net_x).all() and np.isfinite(net_t).all()


@pytest.mark.parametrize("process_name", sorted(NO_SIGNAL_AT_END))
@pytest.mark.parametrize("name", ["Eps", "Score"])
def test_eps_and_score_refuse_times_without_signal(process_name: str, name: str) -> None:
    process = PROCESSES[process_name]()
    x, output = draws(2)
    with pytest.raises(ValueError, match=r"alpha\(1.0\) = 0 for .*no signal"):
        PARAMETERIZATIONS[name].read(process, x, 1.0, output)


def test_karras_is_the_papers_preconditioning() -> None:
    """On alpha = 1: c_skip, c_out, c_in, c_noise of Karras et al. 2022, table 1."""
    process, parameterization = jd.KarrasVE(), jd.Karras(0.5)
    t = jnp.linspace(0.05, 1, 9)
    sigma = process.sigma(t)
    x, output = jnp.full((9, 1), 1.7), jnp.full((9, 1), -0.6)
    net_x, net_t = parameterization.condition(process, x, t)
    np.testing.assert_allclose(net_x[:, 0], 1.7 / np.sqrt(sigma**2 + 0.25), rtol=1e-5)
    np.testing.assert_allclose(net_t, np.log(sigma) / 4, rtol=1e-5, atol=1e-6)
    x0 = 0.25 / (sigma**2 + 0.25) * 1.7 + sigma * 0.5 / np.sqrt(sigma**2 + 0.25) * -0.6
    np.testing.assert_allclose(parameterization.read(process, x, t, output).x0[:, 0], x0, rtol=1e-4, atol=1e-6)


def test_views_of_a_prediction_agree_with_each_other() -> None:
    process, t = jd.VP(), jnp.array([0.1, 0.5, 0.9])
    x0, eps = draws(3)
    x, truth = process.perturb(x0, eps, t), jd.Prediction(x0, eps)
    for back in (
        from_x0(process, x, t, truth.x0),
        from_eps(process, x, t, truth.eps),
        from_v(process, x, t, truth.v(process, t)),
        from_score(process, x, t, truth.score(process, t)),
        from_velocity(process, x, t, truth.velocity(process, t)),
    ):
        np.testing.assert_allclose(back.x0, x0, atol=1e-3)
        np.testing.assert_allclose(back.eps, eps, atol=1e-4)
    # the probability flow's velocity is f x - g^2 score / 2
    f, g2 = (v.reshape(-1, 1, 1, 1) for v in (process.drift(t), process.diffusion_squared(t)))
    np.testing.assert_allclose(
        truth.velocity(process, t), f * x - 0.5 * g2 * truth.score(process, t), rtol=1e-3, atol=1e-4
    )


def test_what_the_network_is_told_of_time() -> None:
    chain = jd.DiscreteVP(jd.linear_betas(1000))
    np.testing.assert_allclose(jd.TimeIndex(1000)(chain, jnp.arange(1, 1001) / 1000), jnp.arange(1000), atol=2e-4)
    np.testing.assert_allclose(jd.ScaledTime(999.0)(chain, 0.5), 499.5)
    assert float(jd.LogSigma()(jd.Flow(), 1.0)) == 3.0  # the limit 12, a quarter
    assert jd.Eps(time=jd.TimeIndex(10)).condition(chain, jnp.zeros((1, 2)), 1.0)[1] == 9.0


def test_scaled_input_has_unit_variance() -> None:
    process = jd.VE()
    x = process.perturb(*draws(4), jnp.array([0.0, 0.3, 0.7, 1.0]))
    scaled, _ = jd.Eps(scale_input=True).condition(process, x, jnp.array([0.0, 0.3, 0.7, 1.0]))
    assert (jnp.abs(scaled).max(axis=(1, 2, 3)) < 5).all()
    plain, _ = jd.Eps(scale_input=True).condition(jd.VP(), x, 0.5)
    np.testing.assert_allclose(plain, x, rtol=1e-6)


def test_learned_variance_splits_channels() -> None:
    parameterization = jd.LearnedVariance(jd.Eps())
    x, eps = draws(2)
    got = parameterization.read(jd.VP(), x, 0.5, jnp.concatenate([eps, 0.25 * eps], axis=-1))
    np.testing.assert_array_equal(got.eps, eps)
    assert got.variance is not None
    np.testing.assert_array_equal(got.variance, 0.25 * eps)
    with pytest.raises(ValueError, match="6 output channels"):
        parameterization.read(jd.VP(), x, 0.5, eps)


def test_eps_jacobian_is_the_derivative_of_eps() -> None:
    for make in PROCESSES.values():
        with jax.enable_x64(True):
            process, t, x = make(), jnp.asarray(0.43), jnp.array([[0.3, -0.8]])
            for parameterization in (*PARAMETERIZATIONS.values(), jd.LearnedVariance(jd.V())):
                plain = getattr(parameterization, "base", parameterization)
                slope = jax.jacfwd(lambda o, p=plain, at=(process, x, t): p.read(*at, o).eps)(x)[0, 0, 0, 0]
                assert float(parameterization.eps_jacobian(process, t)) == pytest.approx(abs(float(slope)), rel=1e-9)


def test_a_network_that_says_more_is_told_what_its_base_says() -> None:
    """Time is told in one place: beside the base another one is refused, not ignored."""
    told, process = jd.TimeIndex(1000), jd.VP()
    for make in (jd.LearnedVariance, jd.LearnedHessian):
        for good in (make(jd.Eps(time=told)), make(jd.Eps(time=told), time=told)):
            assert float(good.condition(process, jnp.ones((1, 2)), 0.25)[1]) == 249.0
        with pytest.raises(ValueError, match=r"write Learned\w+\(base=Eps\(time=...\)\)"):
            make(jd.Eps(), time=told)
        with pytest.raises(ValueError, match="scale_input = True"):
            make(jd.Eps(), scale_input=True)
        assert make(jd.Eps(scale_input=True)).condition(jd.VE(), jnp.ones((1, 2)), 1.0)[0].max() < 0.1


def test_mix_keeps_what_a_prediction_is() -> None:
    """x = alpha x0 + sigma eps holds for any weights; guidance is the case of two."""
    process, t = jd.Flow(), 0.4
    x = jax.random.normal(jax.random.key(0), (3, 5))
    first, second, third = (
        from_x0(process, x, t, jax.random.normal(jax.random.key(i), x.shape))._replace(variance=jnp.full_like(x, i))
        for i in range(3)
    )
    weights = jnp.array([0.0, 1.5, -2.0])
    mixed = mix(first, (weights, second), (0.25, third))
    np.testing.assert_allclose(process.perturb(mixed.x0, mixed.eps, t), x, atol=1e-5)
    rest = (1 - weights - 0.25)[:, None]
    np.testing.assert_allclose(
        mixed.x0, rest * first.x0 + weights[:, None] * second.x0 + 0.25 * third.x0, rtol=1e-5, atol=1e-5
    )
    np.testing.assert_array_equal(mixed.variance, first.variance)
    for one, other in zip(mix(first), first, strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_allclose(mix(first, (1.0, second)).eps, second.eps, atol=1e-6)
    assert mix(first._replace(variance=None), (1.0, second)).variance is None


def test_a_consistency_model_at_its_boundary() -> None:
    """Song et al. 2023, appendix C: c_skip and c_out as there, x itself at the least noise level, and (1) of Karras
    where that is 0."""
    process, parameterization = jd.KarrasVE(0.002, 80.0), Consistency(0.5, least=0.002)
    t = jnp.array([0.0, 0.1, 0.5, 1.0])
    x, output = (jax.random.normal(jax.random.key(seed), (4, 3)) for seed in range(2))
    sigma = np.asarray(process.sigma(t), np.float64)[:, None]
    skip, out = 0.25 / ((sigma - 0.002) ** 2 + 0.25), 0.5 * (sigma - 0.002) / np.sqrt(sigma**2 + 0.25)
    read = parameterization.read(process, x, t, output)
    np.testing.assert_allclose(read.x0, skip * x + out * output, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(read.x0[0], x[0], atol=1e-6)
    np.testing.assert_allclose(read.x0 + sigma * read.eps, x, rtol=1e-4, atol=1e-4)
    for mine, theirs in zip(
        parameterization.condition(process, x, t), jd.Karras(0.5).condition(process, x, t), strict=True
    ):
        np.testing.assert_allclose(mine, theirs)
    x0, eps, later = x[1:], output[1:], t[1:]
    target = parameterization.target(process, x0, eps, later)
    noisy = x0 + sigma[1:] * eps
    np.testing.assert_allclose(parameterization.read(process, noisy, later, target).x0, x0, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(parameterization.jacobian(process, later), out[1:, 0], rtol=1e-5)
    np.testing.assert_allclose(parameterization.eps_jacobian(process, later), (out / sigma)[1:, 0], rtol=1e-5)
    none = Consistency(0.5, least=0.0).read(process, x, t, output)
    for mine, theirs in zip(none[:2], jd.Karras(0.5).read(process, x, t, output)[:2], strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-5)
