"""Under jax_numpy_dtype_promotion = "strict": every process, sampler, loss and likelihood, in float32."""

from __future__ import annotations

import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff.noise import brownian_noise
from jaxdiff.spec import Spec
from tests.tables import NEEDS_SIGNAL, PARAMETERIZATIONS, PROCESSES, SAMPLERS, gaussian, mixture

PLACES = sorted(PROCESSES)
METHODS = (
    "alpha",
    "sigma",
    "log_snr",
    "drift",
    "diffusion_squared",
    "snr_slope",
    "derivatives",
    "prior_std",
    "time_of_log_snr",
)
TIMES = (
    jd.Uniform(),
    jd.Stratified(),
    jd.LogitNormal(),
    jd.LogNormalSigma(),
    jd.UniformLogSNR(),
    jd.GeometricLevels(),
    jd.LossSecondMoment(bins=20),
    jd.ScoreNorm(bins=20),
)
WEIGHTS = (jd.Simple(), jd.SNR(), jd.MinSNR(), jd.P2(), jd.Likelihood(), jd.KarrasWeight(), jd.Sigmoid())


@pytest.fixture(autouse=True)
def strict() -> object:
    with jax.numpy_dtype_promotion("strict"):
        yield


class Net:
    """A network of no parameters."""

    cond: ClassVar[dict[str, Any]] = {"label": Spec((), "int32", 0, 6, null=7)}

    def apply(
        self, params: object, x: jax.Array, t: jax.Array, cond: object = None, *, key: object = None
    ) -> jax.Array:
        return 0.5 * x


@pytest.mark.parametrize("name", PLACES)
def test_processes(name: str) -> None:
    process, x = PROCESSES[name](), jnp.ones((3, 2))
    for t in (0.4, jnp.asarray(0.4), jnp.array([0.2, 0.4, 0.6])):
        for method in METHODS:
            for value in jax.tree.leaves(getattr(process, method)(t)):
                assert value.dtype == jnp.float32, method
        for value in (*process.transition(0.2, 0.6), *process.posterior(0.2, 0.6), process.min_time()):
            assert value.dtype == jnp.float32
        assert process.perturb(x, x, t).dtype == process.velocity(x, x, t).dtype == jnp.float32
        for exact in (gaussian(process), mixture(process)):
            assert exact(x, t).x0.dtype == exact.log_density(x, t).dtype == jnp.float32
    for grid in (jd.uniform_times, jd.log_snr_times, jd.karras_times, jd.quadratic_times, jd.trailing_times):
        assert grid(process, 7).dtype == jnp.float32
    assert jd.recommended_times(process, 7).dtype == jnp.float32


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_samplers(name: str) -> None:
    process = PROCESSES[PLACES[sorted(SAMPLERS).index(name) % len(PLACES)]]()
    keys, ts = jd.sample_keys(jax.random.key(0), 0, 3), jd.log_snr_times(process, 4)
    x = process.prior_sample(keys, (2,), ts[0])
    for noise in (jd.step_noise, brownian_noise):
        sample = functools.partial(jd.sample, SAMPLERS[name](process), gaussian(process), noise=noise)
        assert jax.eval_shape(sample, keys, x, ts).dtype == jnp.float32  # a wrong pair of types is refused in tracing
    if name not in NEEDS_SIGNAL:
        jax.eval_shape(functools.partial(jd.sample_path, SAMPLERS[name](process), mixture(process)), keys, x, ts)


@pytest.mark.parametrize("name", sorted(PARAMETERIZATIONS))
def test_losses(name: str) -> None:
    batch = {"x": jnp.ones((5, 4)), "label": jnp.arange(5)}
    processes = [PROCESSES[place]() for place in ("VP", "Flow", "VE", "DiscreteVP_cosine")]
    for i, (time, weight) in enumerate([*((time, jd.SNR()) for time in TIMES), *((TIMES[1], w) for w in WEIGHTS)]):
        loss = jd.denoising_loss(
            Net(),
            (),
            jax.random.key(i),
            batch,
            process=processes[i % len(processes)],
            parameterization=PARAMETERIZATIONS[name],
            weight=weight,
            time=time,
            dropout={"label": 0.1},
        )
        assert loss.shape == (5,) and loss.dtype == jnp.float32, (time, weight)
    learned = jd.LearnedVariance(PARAMETERIZATIONS[name])
    chain = jd.DenoisingLoss(processes[-1], learned, vlb_weight=0.001)
    draws = chain.draw(jax.random.key(0), {"x": jnp.ones((5, 4))})

    class Double(Net):
        def apply(self, *args: Any, **options: Any) -> jax.Array:
            return jnp.concatenate([Net.apply(self, *args, **options)] * 2, axis=-1)

    assert chain.terms(Double(), (), draws).loss.dtype == jnp.float32


@pytest.mark.parametrize("place", ["VP", "Flow", "VE", "DiscreteVP_linear"])
def test_likelihoods(place: str) -> None:
    process = PROCESSES[place]()
    exact, x, keys = gaussian(process), jnp.ones((3, 2)), jd.sample_keys(jax.random.key(0), 0, 3)
    assert jd.log_likelihood(exact, process, x, keys).log_density.dtype == jnp.float32
    assert jd.log_likelihood(exact, process, x, divergence="exact").log_density.dtype == jnp.float32
    assert jd.continuous_elbo(exact, process, x, keys).total.dtype == jnp.float32
    assert jd.discrete_vlb(exact, process, x, keys, ts=jd.log_snr_times(process, 5)).total.dtype == jnp.float32
    sampler, wide, ts = jd.recommended(process, exact, 8)
    x0, _ = jd.integrate(sampler, wide, None, process.prior_sample(keys, (2,), ts[0]), ts)
    assert x0.dtype == jnp.float32 and np.isfinite(x0).all()


def test_a_data_set() -> None:
    data, process = jax.random.normal(jax.random.key(0), (20, 4)), jd.VP()
    exact = jd.EmpiricalDenoiser(process, data, 0.1, labels=jnp.arange(20) % 3)
    x, cond = data[:5] + 0.1, {"label": jnp.arange(5)}
    assert exact(x, 0.3, cond).x0.dtype == exact.weights(x, 0.3).dtype == exact.log_density(x, 0.3).dtype == jnp.float32
    full = jd.FullGaussianDenoiser.from_data(process, data, 2)
    assert full(x, 0.3).x0.dtype == full.log_density(x, 0.3).dtype == full.flow(x, 0.3, 0.2).dtype == jnp.float32
