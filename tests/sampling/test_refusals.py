"""What a sampler cannot do is said before it runs; what it can do at the edges (no samples, tokens) it does."""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff.guidance import Clipped
from jaxdiff.sampling.base import promoted
from jaxdiff.sampling.checks import refuse_another_process
from tests.tables import PROCESSES, SAMPLERS, STOCHASTIC, gaussian, mixture

X, KEYS = jnp.ones((2, 2)), jd.sample_keys(jax.random.key(0), 0, 2)


class Net:
    """A network of no parameters."""

    cond: ClassVar[dict[str, Any]] = {}

    def apply(
        self, params: object, x: jax.Array, t: jax.Array, cond: object = None, *, key: object = None
    ) -> jax.Array:
        return 0.5 * x


def network(process: jd.Process, parameterization: jd.Parameterization) -> jd.NetworkDenoiser:
    return jd.NetworkDenoiser(Net(), (), process, parameterization)


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_only_methods_without_noise_take_rising_times(name: str) -> None:
    process, rising = jd.VP(), jnp.array([0.2, 0.3, 0.4])
    run = lambda: jd.integrate(SAMPLERS[name](process), gaussian(process), KEYS, X, rising)[0]  # noqa: E731
    if name in STOCHASTIC:
        with pytest.raises(ValueError, match=r"draws noise.*got 0\.2.* followed by 0\.3"):
            run()
    else:
        assert np.isfinite(run()).all()


@pytest.mark.parametrize(
    "sampler",
    [
        jd.DDIM(jd.VP(), 0.0),
        jd.EulerMaruyama(jd.VP(), 0.0),
        jd.ReverseDiffusion(jd.VP(), 0.0),
        jd.DPMpp2MSDE(jd.VP(), 0.0),
        jd.EulerAncestral(jd.VP(), 0.0),
        jd.EDMStochastic(jd.VP(), 0.0),
        jd.Restart(jd.DPMpp2M(jd.VP()), repeats=0),
    ],
    ids=lambda sampler: type(sampler).__name__,
)
def test_a_stochastic_method_without_its_noise_takes_rising_times(sampler: jd.Sampler) -> None:
    ts = jnp.linspace(0.2, 0.4, 401)
    exact = gaussian(jd.VP())
    reached, _ = jd.integrate(sampler, exact, KEYS, X, ts)
    np.testing.assert_allclose(reached, exact.flow(X, 0.2, 0.4), atol=0.02)


def test_encoding_from_clean_data() -> None:
    """At sigma = 0 a prediction of x0 says nothing of eps; others do, and go on."""
    process, ts = jd.VP(), jnp.array([0.0, 0.1, 0.2])
    with pytest.raises(ValueError, match=r"sigma\(0.0\) = 0 for VP: X0 predictions say nothing of eps"):
        jd.integrate(jd.DDIM(process), network(process, jd.X0()), None, X, ts)
    with pytest.raises(ValueError, match=r"velocity of VP is infinite at t = 0\.0"):
        jd.integrate(jd.DDIM(process), network(process, jd.Velocity()), None, X, ts)
    for other in (jd.Eps(), jd.V(), jd.Score(), jd.Karras()):
        assert np.isfinite(jd.integrate(jd.DDIM(process), network(process, other), None, X, ts)[0]).all()
    flow = jd.Flow()
    assert np.isfinite(jd.integrate(jd.DDIM(flow), network(flow, jd.Velocity()), None, X, ts)[0]).all()
    # at the last time too, for a method that evaluates there
    falling = ts[::-1]
    with pytest.raises(ValueError, match="X0 predictions say nothing of eps"):
        jd.integrate(jd.Heun(process), network(process, jd.X0()), None, X, falling)
    assert np.isfinite(jd.integrate(jd.DPMpp2M(process), network(process, jd.X0()), None, X, falling)[0]).all()
    # and where there is no signal
    with pytest.raises(ValueError, match="say nothing of x0"):
        jd.integrate(jd.Heun(flow, "angle"), network(flow, jd.Eps()), None, X, jnp.array([0.5, 0.8, 1.0]))


def test_a_refusal_says_what_its_own_caller_can_do() -> None:
    """A parameterization names others, a sampler other grids and samplers, a blur neither."""
    flow, smoothed = jd.Flow(), jd.Smoothed(jd.VP(), 0.1)
    ts = jd.uniform_times(flow, 4)
    with pytest.raises(ValueError, match=r"no finite step .* grids log_snr and karras do.* Or use DDIM or DPMpp2M$"):
        jd.integrate(jd.Heun(flow), network(flow, jd.Velocity()), None, X, ts)
    for better in (jd.log_snr_times(flow, 4), jd.karras_times(flow, 4), jd.uniform_times(flow, 4, t_max=0.99)):
        assert np.isfinite(jd.integrate(jd.Heun(flow), network(flow, jd.Velocity()), None, X, better)[0]).all()
    for other in (jd.DDIM(flow), jd.DPMpp2M(flow)):
        assert np.isfinite(jd.integrate(other, network(flow, jd.Velocity()), None, X, ts)[0]).all()
    with pytest.raises(ValueError, match=r"say nothing of x0 .* Or use X0, V, Velocity or Karras$"):
        network(flow, jd.Eps())(X, 1.0)
    with pytest.raises(ValueError, match=r"not told by x .* takes t_min$"):
        jd.SmoothedDenoiser(gaussian(jd.VP()), smoothed)(X, 0.0)
    with pytest.raises(ValueError, match=r"no end .* Give it a t_max below 1, or None$"):
        jd.LikelihoodTime(t_max=1.0).sample(flow, None, KEYS[0], 4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: jd.DDIM(p, 1.5), r"from 0 \(the flow\) to 1 \(DDPM's noise\), got eta = 1.5"),
        (lambda p: jd.DDIM(p, -0.1), "got eta = -0.1"),
        (lambda p: jd.AnalyticDDPM(p, jnp.array([0.5, 0.1]), jnp.array([0.9, 0.8]), eta=2.0), "got eta = 2.0"),
        (lambda p: jd.EulerAncestral(p, -1.0), "0 or more, got eta = -1.0"),
        (lambda p: jd.EulerMaruyama(p, -1.0), "got tau = -1.0"),
        (lambda p: jd.ReverseDiffusion(p, -1.0), "got tau = -1.0"),
        (lambda p: jd.DPMppSDE(p, -1.0), "got tau = -1.0"),
        (lambda p: jd.DPMpp2MSDE(p, -1.0), "got tau = -1.0"),
        (lambda p: jd.DPMpp3MSDE(p, -1.0), "got tau = -1.0"),
        (lambda p: jd.SASolver(p, tau=-1.0), "got tau = -1.0"),
        (lambda p: jd.EDMStochastic(p, gamma=-0.1), "got gamma = -0.1"),
        (lambda p: jd.Smoothed(p, -0.1), "got width = -0.1"),
    ],
)
def test_levels_of_noise_out_of_range(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match=message):
        make(jd.VP())


def test_a_sampler_and_a_denoiser_of_different_processes() -> None:
    ts = jnp.array([0.9, 0.5])
    for ours, theirs in ((jd.VP(), jd.Flow()), (jd.VP(), jd.VP(0.1, 10.0)), (jd.Shifted(jd.Flow(), 3.0), jd.Flow())):
        other = gaussian(theirs)
        guided = jd.ClassifierFree(other, 2.0, {"label": jnp.zeros(())})
        for denoise in (other, Clipped(other, theirs), network(theirs, jd.V()), guided):
            for call in (jd.sample, jd.integrate, jd.sample_path):
                with pytest.raises(ValueError, match=r"the sampler is on .* and the denoiser on"):
                    call(jd.DDIM(ours), denoise, None, X, ts)
        silent = lambda x, t, cond=None, ours=ours: gaussian(ours)(x, t)  # noqa: E731
        jd.sample(jd.DDIM(ours), silent, None, X, ts)  # which says nothing of itself
    # the same numbers, however they are held
    again = jax.tree.map(jnp.float32, jd.VP())
    jd.sample(jd.DDIM(jd.VP()), gaussian(again), None, X, ts)
    betas = jd.linear_betas(100)
    jd.sample(jd.DDIM(jd.DiscreteVP(betas)), gaussian(jd.DiscreteVP(jnp.asarray(betas))), None, X, ts)
    jax.jit(lambda p, q: jd.sample(jd.DDIM(p), gaussian(q), None, X, ts))(jd.VP(), jd.VP())
    with pytest.raises(ValueError, match="the sampler is on"):  # even where the numbers are not known
        jax.jit(lambda p, q: jd.sample(jd.DDIM(p), gaussian(q), None, X, ts))(jd.VP(), jd.Flow())


@pytest.mark.parametrize("key", [jax.random.key(0), jax.random.PRNGKey(0)], ids=["typed", "raw"])
def test_a_single_key_is_named(key: jax.Array) -> None:
    process, message = jd.VP(), r"a single key came: pass sample_keys\(key, 0, B\)"
    exact = gaussian(process)
    for call in (
        lambda: process.prior_sample(key, (2,)),
        lambda: jd.white_noise(key, (2,)),
        lambda: jd.salted_keys(key, 1),
        lambda: jd.sample(jd.DDPM(process), exact, key, X, jnp.array([0.9, 0.5])),
        lambda: jd.sample(jd.DDPM(process), exact, key, X, jnp.array([0.9, 0.5]), noise=jd.brownian_noise),
        lambda: jd.log_likelihood(exact, process, X, key),
        lambda: jd.continuous_elbo(exact, process, X, key),
        lambda: jd.discrete_vlb(exact, process, X, key, ts=jnp.array([0.9, 0.5])),
    ):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_no_samples_are_samples_too(name: str) -> None:
    process = jd.VP()
    ts, keys = jd.log_snr_times(process, 4), jd.sample_keys(jax.random.key(0), 0, 0)
    x = process.prior_sample(keys, (2,), ts[0])
    assert x.shape == (0, 2)
    for make in (gaussian, mixture):
        assert jd.sample(SAMPLERS[name](process), make(process), keys, x, ts).shape == (0, 2)


def test_no_samples_have_likelihoods_too() -> None:
    process = jd.VP()
    exact, x, keys = gaussian(process), jnp.zeros((0, 2)), jd.sample_keys(jax.random.key(0), 0, 0)
    assert jd.log_likelihood(exact, process, x, keys).log_density.shape == (0,)
    assert jd.log_likelihood(exact, process, x, divergence="exact").log_density.shape == (0,)
    assert jd.continuous_elbo(exact, process, x, keys).total.shape == (0,)
    assert jd.discrete_vlb(exact, process, x, keys, ts=jnp.array([0.9, 0.5])).total.shape == (0,)


@jd.record
class Unmasking(jd.Sampler):
    """Tokens of a toy: each step shows those whose number falls below the share that is to be shown."""

    def step(
        self, denoise: object, noise: jd.noise.Noise, state: object, x: jax.Array, t: jax.Array, s: jax.Array
    ) -> tuple[jax.Array, object]:
        assert callable(denoise)
        shown = jax.scipy.stats.norm.cdf(noise(0.0, 1.0)) >= s  # one number a token, the same at every step
        return jnp.where((x < 0) & shown, denoise(x, t).x0, x), state


def test_the_loops_leave_integers_alone() -> None:
    process, mask = jd.VP(), jnp.full((2, 300), -1, jnp.int32)
    words = jnp.arange(300, dtype=jnp.int32) % 7

    def denoise(x: jax.Array, t: object, cond: object = None) -> jd.Prediction:
        assert x.dtype == jnp.int32
        return jd.Prediction(jnp.broadcast_to(words, x.shape), x)

    ts = jnp.array([1.0, 0.75, 0.5, 0.25])
    sampler = Unmasking(process)
    last, _ = jd.integrate(sampler, denoise, KEYS, mask, ts)
    assert last.dtype == jnp.int32
    assert float((last >= 0).mean()) == pytest.approx(0.75, abs=0.06)
    np.testing.assert_array_equal(jnp.where(last >= 0, last, words), jnp.broadcast_to(words, last.shape))
    path, x0 = jd.sample_path(sampler, denoise, KEYS, mask, ts)
    assert path.dtype == x0.dtype == jnp.int32
    np.testing.assert_array_equal(path[-1], last)
    np.testing.assert_array_equal(jd.sample(sampler, denoise, KEYS, mask, ts), jnp.broadcast_to(words, last.shape))


def test_what_is_promoted() -> None:
    x = {
        "half": jnp.ones(2, jnp.bfloat16),
        "single": jnp.ones(2),
        "token": jnp.ones(2, jnp.uint8),
        "mask": jnp.ones(2, bool),
    }
    found, grid = promoted(x, jnp.array([1.0, 0.5]))
    assert {name: str(value.dtype) for name, value in found.items()} == {
        "half": "float32",
        "single": "float32",
        "token": "uint8",
        "mask": "bool",
    }
    assert grid.dtype == jnp.float32


def test_the_processes_of_the_tables_meet_themselves() -> None:
    """No process of the table is taken for another, nor for itself made anew."""
    for name, make in PROCESSES.items():
        for other, make_other in PROCESSES.items():
            call = lambda ours, theirs: refuse_another_process(ours, gaussian(theirs))  # noqa: E731
            if name == other:
                call(make(), make_other())
            else:
                with pytest.raises(ValueError, match="the sampler is on"):
                    call(make(), make_other())
