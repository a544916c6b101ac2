"""Searched grids: the search against enumeration, its costs against steps and closed forms, its grids against fixed
ones."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate as quadrature

import jaxdiff as jd
from jaxdiff.sampling.choose import GRIDS, choose, evaluations_a_step
from jaxdiff.sampling.grid_search import (
    TeacherPath,
    ays_costs,
    ays_times,
    cheapest_way,
    end_probes,
    error_of,
    gits_times,
    interpolate_times,
    noise_ratio,
    polish_times,
    step_costs,
    teacher_path,
)
from tests.tables import PROCESSES, mixture

measure = jax.jit(error_of)


def noise_at(process: jd.Process, seed: int, batch: int, t: jax.Array) -> jax.Array:
    return process.prior_sample(jd.sample_keys(jax.random.key(seed), 0, batch), (2,), t)


@pytest.mark.parametrize("steps", [1, 2, 4, 7])
@pytest.mark.parametrize("coefficient", [1.0, 1.15])
def test_cheapest_way_is_the_best_of_all(steps: int, coefficient: float) -> None:
    costs = np.random.default_rng(steps).uniform(size=(7, 8))
    costs[np.tril_indices(7, 0, 8)] = np.inf
    ways = [(0, *middle, 7) for middle in itertools.combinations(range(1, 7), steps - 1)]
    total = lambda way: sum(coefficient**k * costs[i, j] for k, (i, j) in enumerate(itertools.pairwise(way)))  # noqa: E731
    found = cheapest_way(jnp.asarray(costs), steps, coefficient).tolist()
    assert tuple(found) == min(ways, key=total)


def test_cheapest_way_refuses_too_many_steps() -> None:
    with pytest.raises(ValueError, match=r"allow 1 to P - 1 steps, got \(3, 4\) and 4"):
        cheapest_way(jnp.zeros((3, 4)), 4)


@pytest.mark.parametrize("name", ["Flow", "KarrasVE"])
def test_teacher_and_costs_on_a_gaussian(name: str) -> None:
    """The path is the closed form's, and equation (2) is the error of a step of DDIM in x/alpha."""
    with jax.enable_x64(True):
        process = PROCESSES[name]()
        exact = jd.GaussianDenoiser(process, jnp.array([0.7, -0.4]), jnp.array([0.5, 0.2]))
        ts = jd.log_snr_times(process, 12)
        x = noise_at(process, 0, 6, ts[0])
        path = teacher_path(exact, process, x, ts, substeps=40)
        alphas = process.alpha(ts)
        truth = jnp.stack([exact.flow(x, ts[0], t) / alpha for t, alpha in zip(ts, alphas, strict=True)])
        np.testing.assert_allclose(path.y, truth, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(path.eps[3], exact(alphas[3] * path.y[3], ts[3]).eps, rtol=1e-10)
        np.testing.assert_allclose(path.x0, exact(exact.flow(x, ts[0], ts[-1]), ts[-1]).x0, atol=1e-4)
        costs = step_costs(path)
        assert costs.shape == (12, 13)
        assert bool(jnp.isinf(costs[jnp.tril_indices(12)]).all())
        for i, j in ((0, 1), (2, 9), (5, 11)):
            stepped = jd.integrate(jd.DDIM(process), exact, None, alphas[i] * path.y[i], ts[jnp.array([i, j])])[0]
            error = jnp.sqrt(jnp.square(stepped / alphas[j] - path.y[j]).mean(axis=1)).mean()
            np.testing.assert_allclose(costs[i, j], error, rtol=1e-6)
        last = jnp.sqrt(jnp.square(exact(alphas[4] * path.y[4], ts[4]).x0 - path.x0).mean(axis=1)).mean()
        np.testing.assert_allclose(costs[4, 12], last, rtol=1e-6)


def test_errors_are_carried_to_the_end_as_the_flow_does() -> None:
    """On Gaussian data of width s and coordinates apart, w_j is u times s^2/(s^2 + rho_M^2) sqrt((s^2 + rho_M^2)/(s^2 +
    rho_j^2)), within the error of 300 Euler steps; equation (3) is the error so carried."""
    process, stds = jd.VP(), np.array([0.5, 0.2])
    exact, ts = jd.GaussianDenoiser(process, 0.0, jnp.asarray(stds)), jd.log_snr_times(process, 300)
    path = teacher_path(exact, process, noise_at(process, 0, 16, ts[0]), ts, substeps=1)
    probes = end_probes(exact, process, path, jax.random.key(0), n=1)
    rho = np.asarray(path.rho, float)[:, None]
    ends = stds**2 / np.sqrt((stds**2 + rho[-1] ** 2) * (stds**2 + rho**2))
    seen = np.asarray(probes[:-1] / probes[-1:])
    np.testing.assert_allclose(seen, np.broadcast_to(ends[:, None, None], seen.shape), rtol=0.04)
    few = TeacherPath(path.ts[::60], path.rho[::60], path.y[::60], path.eps[::60], path.x0)
    error = few.y[1] + (few.rho[3] - few.rho[1]) * few.eps[1] - few.y[3]
    carried = np.sqrt(np.pi / 4) * np.abs(np.asarray(probes[180][0] * error).sum(axis=1)).mean()
    thinned = jnp.concatenate([probes[:-1:60], probes[-1:]])
    np.testing.assert_allclose(step_costs(few, thinned)[1, 3], carried, rtol=1e-4)


def gaussian_bound(high: float, low: float, std: float) -> float:
    """Equation (4) a coordinate for data N(0, std^2): E |change of D|^2 is s^4/(s^2 + rho^2) - s^4/(s^2 + high^2)."""
    change = lambda rho: std**4 * (1 / (std**2 + rho**2) - 1 / (std**2 + high**2))  # noqa: E731
    return quadrature.quad(lambda u: change(np.exp(u)) * np.exp(-2 * u), np.log(low), np.log(high))[0]


def test_the_bound_of_align_your_steps_on_gaussian_data() -> None:
    """It is the closed form's within Monte Carlo error, for a process with alpha and one without, and its grid has a
    lesser one than the fixed grids."""
    std, data = 0.5, 0.5 * jax.random.normal(jax.random.key(0), (4000, 2))
    for process in (jd.VP(), jd.KarrasVE()):
        ts = jd.log_snr_times(process, 80, t_min=process.time_of_log_snr(-2 * np.log(0.03)))
        exact, keys = jd.GaussianDenoiser(process, 0.0, std), jd.sample_keys(jax.random.key(1), 0, 4000)
        costs, rho = ays_costs(exact, process, keys, data, ts), np.asarray(noise_ratio(process, ts), float)
        for i, j in ((0, 40), (20, 60), (50, 60), (60, 79)):
            assert float(costs[i, j]) == pytest.approx(2 * gaussian_bound(rho[i], rho[j], std), rel=0.06)
        found = ts[cheapest_way(costs, 7)]
        bound = lambda ts, p=process: sum(  # noqa: E731
            gaussian_bound(a, b, std) for a, b in itertools.pairwise(np.asarray(noise_ratio(p, ts), float))
        )
        fixed = [grid(process, 8, t_max=ts[0], t_min=ts[-1]) for grid in GRIDS.values() if grid != jd.trailing_times]
        assert bound(found) < 0.97 * min(bound(grid) for grid in fixed)
    np.testing.assert_array_equal(ays_times(exact, process, keys, data, 8, ts), found)


@pytest.fixture(scope="module")
def paths() -> dict[str, tuple[TeacherPath, jax.Array, jax.Array]]:
    """Of the mixture by process: the path that grids are searched on, held-out noise and where it leads."""
    made = {}
    for name in ("VP", "Flow"):
        process = PROCESSES[name]()
        ts = jd.log_snr_times(process, 48)
        path, held = (
            teacher_path(mixture(process), process, noise_at(process, seed, 128, ts[0]), ts, substeps=6)
            for seed in (0, 1)
        )
        made[name] = path, process.alpha(ts[0]) * held.y[0], held.x0
    return made


@pytest.mark.parametrize("name", ["VP", "Flow"])
def test_searched_grids_beat_fixed_ones_on_other_noise(
    name: str, paths: dict[str, tuple[TeacherPath, jax.Array, jax.Array]]
) -> None:
    """At 5 and 8 evaluations, than the best of five grids: DDIM by errors at the end, on VP; DDIM and DPMpp2M after
    polishing, on both."""
    process, (path, x, x0) = PROCESSES[name](), paths[name]
    exact, ends = mixture(process), {"t_max": path.ts[0], "t_min": path.ts[-1]}
    probes = end_probes(exact, process, path, jax.random.key(2))
    for n in (5, 8):
        fixed = [grid(process, n, **ends) for grid in GRIDS.values()]
        searched = gits_times(path, n, probes=probes)
        for sampler, share, share_polished in ((jd.DDIM(process), 0.8, 0.97), (jd.DPMpp2M(process), 1.0, 0.75)):
            polished = polish_times(sampler, exact, path, searched, rounds=6)
            jd.check_times(process, polished)
            least = min(float(measure(sampler, exact, x, ts, x0)) for ts in fixed)
            assert float(measure(sampler, exact, x, polished, x0)) < share_polished * least
            assert name != "VP" or float(measure(sampler, exact, x, searched, x0)) < share * least


@pytest.mark.parametrize("name", ["CosineVP", "VE", "DiscreteVP_linear"])
def test_searched_grids_are_valid_for_every_process(name: str) -> None:
    """They fall from the path's first time, end above sigma = 0, and at the path's end where that is asked."""
    process = PROCESSES[name]()
    ts = jd.log_snr_times(process, 24)
    path = teacher_path(mixture(process), process, noise_at(process, 0, 16, ts[0]), ts, substeps=1)
    for n in (1, 6, 24):
        free, fixed = gits_times(path, n), gits_times(path, n, free_end=False)
        for found in (free, fixed):
            assert found.shape == (n,)
            jd.check_times(process, found)
            assert found[0] == ts[0]
        assert n == 1 or fixed[-1] == ts[-1]
    longer = interpolate_times(process, gits_times(path, 6), 11)
    jd.check_times(process, longer)
    np.testing.assert_allclose(process.log_snr(longer[::2]), process.log_snr(gits_times(path, 6)), rtol=1e-3, atol=1e-3)


def test_interpolation_is_linear_in_log_snr() -> None:
    process = jd.VP()
    np.testing.assert_allclose(
        interpolate_times(process, jd.log_snr_times(process, 5), 17), jd.log_snr_times(process, 17), rtol=1e-4
    )
    with pytest.raises(ValueError, match="from two times or more"):
        interpolate_times(process, jnp.ones(1), 3)


def test_choose_keeps_to_the_budget_and_takes_the_least(
    paths: dict[str, tuple[TeacherPath, jax.Array, jax.Array]],
) -> None:
    """With a denoiser that is a plain function, and one that is a pytree."""
    process, (path, x, x0) = jd.VP(), paths["VP"]
    exact = mixture(process)
    samplers = {"DDIM": jd.DDIM(process), "Heun": jd.Heun(process, "rho"), "DPMpp2M": jd.DPMpp2M(process)}
    per_step = {name: evaluations_a_step(sampler, x, path.ts) for name, sampler in samplers.items()}
    assert per_step == {"DDIM": 1, "Heun": 2, "DPMpp2M": 1}
    start = process.alpha(path.ts[0]) * path.y[0]
    whole = choose(exact, process, start, 8, samplers=samplers, path=path, rounds=4)
    plain = choose(lambda x, t, cond=None: exact(x, t), process, start, 8, samplers=samplers, path=path, rounds=0)
    assert (len(whole.ts) - 1) * per_step[whole.names[0]] + 1 <= 8
    assert whole.error == min(whole.table.values()) == whole.table[whole.names]
    assert whole.sampler == samplers[whole.names[0]]
    assert float(measure(whole.sampler, exact, x, whole.ts, x0)) < 1.5 * whole.error  # on other noise
    assert len(whole.table) == 3 * (len(GRIDS) + 4)  # gits, gits_flat, gits_end, polished
    for names, error in plain.table.items():
        assert error == pytest.approx(whole.table[names], rel=1e-3)


def test_choose_refuses_what_it_cannot_judge() -> None:
    process, x = jd.VP(), jnp.zeros((1, 2))
    ts = jd.log_snr_times(process, 4)
    path = TeacherPath(ts, noise_ratio(process, ts), jnp.zeros((4, 1, 2)), jnp.zeros((4, 1, 2)), x)
    with pytest.raises(ValueError, match="a grid is searched for deterministic methods"):
        choose(mixture(process), process, x, 3, samplers={"DDPM": jd.DDPM(process)}, path=path)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        choose(mixture(process), process, x, 0, path=path)
