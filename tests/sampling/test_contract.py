"""Every sampler keeps the contract, on any grid and from the very end."""

from __future__ import annotations

import itertools
import random
from typing import Any, ClassVar

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.typing import ArrayLike

import jaxdiff as jd
from jaxdiff.noise import step_noise
from tests.covers import cover
from tests.tables import (
    NEEDS_SIGNAL,
    NO_SIGNAL_AT_END,
    PROCESSES,
    SAMPLERS,
    STOCHASTIC,
    daily,
    family,
    gaussian,
    kind,
    meetings,
    mixture,
)

GRIDS = {
    make.__name__: make
    for make in (jd.uniform_times, jd.log_snr_times, jd.karras_times, jd.quadratic_times, jd.trailing_times)
}


# The loops do not look into a process: each sampler keeps the contract on one, each kind of sampler on each family.
@pytest.mark.parametrize(
    ("process_name", "name"),
    meetings(facts=lambda process, name: (process, name, (family(process), kind(name)))),
)
def test_contract(process_name: str, name: str) -> None:
    """Steps by hand, batch independence, vmap, path, integrate and float64 agree with `sample`, all under one jit."""
    process = PROCESSES[process_name]()
    ts = jd.log_snr_times(process, 4)
    keys = jd.sample_keys(jax.random.key(0), 0, 5)
    x = process.prior_sample(keys, (2,), ts[0])

    @jax.jit
    def all_forms(
        sampler: jd.Sampler, exact: jd.GaussianDenoiser, keys: jax.Array, x: jax.Array, ts: jax.Array
    ) -> dict:
        by_hand, state, noise = x, sampler.init(x), step_noise(keys, x)
        for t, s in itertools.pairwise(ts):
            by_hand, state = sampler.step(lambda x, t: exact(x, t), noise, state, by_hand, t, s)
        path, x0 = jd.sample_path(sampler, exact, keys, x, ts)
        return {
            "whole": jd.sample(sampler, exact, keys, x, ts),
            "by hand": exact(by_hand, ts[-1]).x0,
            "integrate": exact(jd.integrate(sampler, exact, keys, x, ts)[0], ts[-1]).x0,
            "path": x0,
            "part": jd.sample(sampler, exact, keys[2:4], x[2:4], ts),
            "vmap": jax.vmap(lambda key, x: jd.sample(sampler, exact, key[None], x[None], ts)[0])(keys, x),
            "first": path[0],
            "last": exact(path[-1], ts[-1]).x0,
        }

    forms = all_forms(SAMPLERS[name](process), gaussian(process), keys, x, ts)
    whole = forms["whole"]
    assert whole.shape == x.shape and whole.dtype == x.dtype and np.isfinite(whole).all()
    np.testing.assert_array_equal(forms["first"], x)
    for form in ("by hand", "integrate", "path", "vmap", "last"):
        np.testing.assert_allclose(forms[form], whole, rtol=1e-3, atol=1e-3, err_msg=form)
    np.testing.assert_allclose(forms["part"], whole[2:4], rtol=1e-3, atol=1e-3)
    # on a chain the derivative jumps at its own times, so which side a rounded time falls on decides a step in t
    if name not in STOCHASTIC and not (process.steps is not None and name in ("Euler", "Heun")):
        x64, ts64 = np.asarray(x, np.float64), np.asarray(ts, np.float64)
        with jax.enable_x64(True):
            process = PROCESSES[process_name]()
            double = jax.jit(jd.sample)(SAMPLERS[name](process), gaussian(process), None, jnp.asarray(x64), ts64)
            assert double.dtype == jnp.float64
        np.testing.assert_allclose(whole, double, rtol=2e-3, atol=2e-3)


def steep(process_name: str) -> str:
    """Whether dalpha/dt is infinite at the end, which is all that tells these processes apart there."""
    return "infinite slope" if process_name.startswith("SigmoidVP") else "finite slope"


@pytest.mark.parametrize(
    ("process_name", "name"),
    meetings(NO_SIGNAL_AT_END, lambda process, name: ((steep(process), name), (process, kind(name)))),
)
def test_from_the_very_end(process_name: str, name: str) -> None:
    """From t = 1, where alpha = 0: finite where the method allows it, a clear refusal where its step is infinite."""
    process = PROCESSES[process_name]()
    sampler, exact = SAMPLERS[name](process), gaussian(process)
    ts = jd.uniform_times(process, 4)
    keys = jd.sample_keys(jax.random.key(0), 0, 3)
    x = process.prior_sample(keys, (2,))
    if name in NEEDS_SIGNAL:
        with pytest.raises(ValueError, match=r"alpha\(1.0\) = 0"):
            jd.sample(sampler, exact, keys, x, ts)
    elif process_name.startswith("SigmoidVP") and name in ("Euler", "Heun"):
        assert not np.isfinite(process.derivatives(1.0)[0])  # dalpha/dt itself is infinite there
        with pytest.raises(ValueError, match="velocity is infinite"):
            jd.sample(sampler, exact, keys, x, ts)
    else:
        assert np.isfinite(jd.sample(sampler, exact, keys, x, ts)).all()


def pairwise_rows() -> list[tuple[Any, ...]]:
    """Each sampler with either denoiser, and with few and many times; each kind of sampler and each process with every
    grid, denoiser and length. (`meetings` covers the pairs of process and sampler.)"""

    def facts(row: tuple[Any, ...]) -> set[Any]:
        process, name, grid, make, n = row
        others = {grid, make, n}
        return {*itertools.product((process, kind(name)), others), (name, make), *({(name, n)} if n in (3, 7) else ())}

    places, names, grids = sorted(PROCESSES), sorted(SAMPLERS), list(GRIDS)
    rows = list(itertools.product(places, names, grids, (gaussian, mixture), (1, 2, 3, 7)))
    random.Random(0).shuffle(rows)  # so that of rows that show as much each process has its share
    return cover(rows, facts)


@pytest.mark.parametrize(
    ("process_name", "name", "grid", "make", "n"), daily(pairwise_rows(), lambda *row: (*row[:3], row[4]))
)
def test_pairwise(process_name: str, name: str, grid: str, make: object, n: int) -> None:
    """A pairwise-covering set: any grid of any length samples finite values near the data."""
    assert callable(make)
    process = PROCESSES[process_name]()
    awkward = process_name in NO_SIGNAL_AT_END
    ts = GRIDS[grid](process, n, t_max=0.97 if awkward else None)
    keys = jd.sample_keys(jax.random.key(0), 0, 4)
    x = process.prior_sample(keys, (2,), ts[0])
    samples = jd.sample(SAMPLERS[name](process), make(process), keys, x, ts)
    assert samples.shape == (4, 2) and np.isfinite(samples).all()
    if n == 1:
        np.testing.assert_allclose(samples, make(process)(x, ts[0]).x0, rtol=1e-5)


def test_one_compilation_for_all_numbers() -> None:
    """Another eta, schedule, grid of the same length, or denoiser's numbers: no new trace."""

    @jax.jit
    @chex.assert_max_traces(n=1)
    def run(sampler: jd.Sampler, denoise: jd.GaussianDenoiser, keys: jax.Array, ts: jax.Array) -> jax.Array:
        x = sampler.process.prior_sample(keys, (2,), ts[0])
        return jd.sample(sampler, denoise, keys, x, ts)

    keys, results = jd.sample_keys(jax.random.key(0), 0, 3), []
    for process, eta in ((jd.VP(), 0.0), (jd.VP(0.2, 15.0), 0.5), (jd.VP(0.1, 20.0), 1.0)):
        ts = jd.uniform_times(process, 8, t_min=1e-3)
        results.append(run(jd.DDIM(process, eta), jd.GaussianDenoiser(process, 0.1, 0.3), keys, ts))
    assert all(np.isfinite(result).all() for result in results)
    np.testing.assert_allclose(
        results[0],
        jd.sample(
            jd.DDIM(jd.VP()),
            jd.GaussianDenoiser(jd.VP(), 0.1, 0.3),
            None,
            jd.VP().prior_sample(keys, (2,)),
            jd.uniform_times(jd.VP(), 8, t_min=1e-3),
        ),
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize(
    ("ts", "message"),
    [
        ([0.5, 0.75, 0.1], "fall from noise to data, got 0.5 followed by 0.75"),
        ([0.9, 0.5, 0.5], "got 0.5 followed by 0.5"),
        ([1.2, 0.5], r"in \[0, 1\].*got 1.2"),
        ([1.0, -0.1], r"in \[0, 1\].*got -0.1"),
        ([1.0, 0.0], "sigma = 0 for VP"),
        ([float("nan"), 0.5], "got nan"),
        ([], "at least one"),
        ([[1.0, 0.5]], "vector"),
    ],
)
def test_bad_times_are_named(ts: list, message: str) -> None:
    process = jd.VP()
    with pytest.raises(ValueError, match=message):
        jd.sample(jd.DDIM(process), gaussian(process), None, jnp.zeros((1, 2)), jnp.asarray(ts))


def test_eps_network_cannot_start_without_signal() -> None:
    """Zero terminal SNR with eps-prediction: refused before anything runs, not NaN."""

    class Net:
        cond: ClassVar[dict[str, Any]] = {}

        def apply(
            self, params: object, x: jax.Array, t: jax.Array, cond: object = None, *, key: object = None
        ) -> jax.Array:
            return x

    process = PROCESSES["DiscreteVP_zero_snr"]()
    ts, x = jd.uniform_times(process, 5), jnp.zeros((1, 2))
    with pytest.raises(ValueError, match="say nothing of x0"):
        jd.sample(jd.DDIM(process), jd.NetworkDenoiser(Net(), (), process, jd.Eps()), None, x, ts)
    assert np.isfinite(jd.sample(jd.DDIM(process), jd.NetworkDenoiser(Net(), (), process, jd.V()), None, x, ts)).all()


def test_fields_are_checked() -> None:
    with pytest.raises(ValueError, match="got 'huge'"):
        jd.DDPM(jd.VP(), "huge")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="this denoiser gives none"):
        process = jd.VP()
        keys = jd.sample_keys(jax.random.key(0), 0, 1)
        jd.sample(jd.DDPM(process, "learned"), gaussian(process), keys, jnp.zeros((1, 2)), jnp.array([1.0, 0.5]))
    with pytest.raises(ValueError, match='"t", "rho", "log_rho" or "angle"'):
        jd.Heun(jd.VP(), "sigma")  # type: ignore[arg-type]


@pytest.mark.nightly
def test_bfloat16_samples_keep_float32_coefficients() -> None:
    """Coefficients come from float32 times whatever the dtype of x."""
    process = jd.VP()
    exact, ts = gaussian(process), jd.log_snr_times(process, 12)
    keys = jd.sample_keys(jax.random.key(0), 0, 64)
    x = process.prior_sample(keys, (2,), ts[0])

    def rough(x: jax.Array, t: ArrayLike, cond: object = None) -> jd.Prediction:
        given = exact(x, t)  # a network that computes in bfloat16 and returns float32
        x0 = given.x0.astype(jnp.bfloat16).astype(jnp.float32)
        return jd.prediction.from_x0(process, x, t, x0)

    for name in SAMPLERS:
        fine, coarse = jax.jit(lambda sampler: [jd.sample(sampler, d, keys, x, ts) for d in (exact, rough)])(
            SAMPLERS[name](process)
        )
        assert float(jnp.abs(fine - coarse).max()) < 0.05, name
