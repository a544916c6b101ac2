"""The adaptive sampler: errors that follow the tolerance, samples that do not know each other, honest counts."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.typing import ArrayLike

import jaxdiff as jd
from jaxdiff.sampling.adaptive import Adaptive, Progress
from jaxdiff.sampling.ode import RK4
from jaxdiff.sampling.tableau import BOGACKI_SHAMPINE, DORMAND_PRINCE, HEUN2, MIDPOINT, Tableau
from tests.tables import PROCESSES, gaussian, mixture

PAIRS = {"heun2": HEUN2, "bogacki_shampine": BOGACKI_SHAMPINE, "dormand_prince": DORMAND_PRINCE}


def ends(process: jd.Process) -> jax.Array:
    return jnp.stack([process.time_of_log_snr(-2 * jnp.log(ratio)) for ratio in (80.0, 0.01)])


@pytest.mark.parametrize(
    ("process_name", "name"),
    [
        ("VP", "heun2"),
        ("VP", "bogacki_shampine"),
        ("KarrasVE", "dormand_prince"),
        ("DiscreteVP_linear", "dormand_prince"),
    ],
)
def test_error_follows_the_tolerance_both_ways(process_name: str, name: str) -> None:
    """On Gaussian data down and up again: the error falls as the tolerance, and is of its size. One trace for all."""
    with jax.enable_x64(True):
        process = PROCESSES[process_name]()
        exact, ts = gaussian(process), ends(process)
        x = process.sigma(ts[0]) * jax.random.normal(jax.random.key(0), (6, 2))
        truth = exact.flow(x, ts[0], ts[1])

        @jax.jit
        def both(sampler: jd.Sampler, x: jax.Array, truth: jax.Array) -> tuple[jax.Array, jax.Array, Progress]:
            traces.append(1)
            down, progress = jd.integrate(sampler, exact, None, x, ts)
            return down, jd.integrate(sampler, exact, None, truth, ts[::-1])[0], progress

        tolerances, errors, counts = [1e-3, 1e-4, 1e-5], [], []
        traces: list[int] = []
        for tolerance in tolerances:
            down, up, progress = both(Adaptive(process, PAIRS[name], tolerance, tolerance), x, truth)
            errors.append([jnp.abs(down - truth).max(), jnp.abs((up - x) / process.sigma(ts[0])).max()])
            counts.append(progress.evaluations.max())
        found: np.ndarray = np.array(errors)
        assert (found < 20 * np.array(tolerances)[:, None]).all(), found
        assert (found[0] / found[-1] > 20).all(), found  # of 100, if proportional
        assert counts[0] < counts[1] < counts[2]
        assert len(traces) == 1


@pytest.mark.parametrize("variable", ["t", "rho", "log_rho", "angle"])
def test_mixture_in_every_variable(variable: str) -> None:
    with jax.enable_x64(True):
        process = jd.VP()
        exact, ts = mixture(process), ends(process)
        x = process.sigma(ts[0]) * jax.random.normal(jax.random.key(0), (8, 2))
        fine = jd.log_snr_times(process, 800, t_max=ts[0], t_min=ts[1])
        truth, _ = jd.integrate(RK4(process), exact, None, x, fine)
        sampler = Adaptive(process, DORMAND_PRINCE, 1e-6, 1e-6, variable)  # type: ignore[arg-type]
        reached, progress = jax.jit(lambda s, x: jd.integrate(s, exact, None, x, ts))(sampler, x)
        np.testing.assert_allclose(reached, truth, atol=2e-5)
        assert (progress.accepted >= 5).all()


def test_a_sample_does_not_know_its_batch() -> None:
    """A part of a batch, one sample, and a batch under vmap give what the whole gives: the counts too."""
    process = jd.VP()
    exact, ts = mixture(process), jnp.array([1.0, 0.4, 1e-3])
    x = jax.random.normal(jax.random.key(3), (7, 2))

    @jax.jit
    def run(x: jax.Array) -> tuple[jax.Array, Progress]:
        return jd.integrate(Adaptive(process, rtol=1e-4, atol=1e-4), exact, None, x, ts)

    whole, counts = run(x)
    assert len(set(counts.evaluations.tolist())) > 1  # or the test says nothing
    for part in (slice(0, 3), slice(5, 6)):
        mine, progress = run(x[part])
        np.testing.assert_allclose(mine, whole[part], rtol=1e-6, atol=1e-6)
        for counted, of_all in zip(progress, counts, strict=True):
            np.testing.assert_allclose(counted, of_all[part], rtol=1e-3)
    one_by_one = jax.vmap(lambda x: run(x[None])[0][0])(x)
    np.testing.assert_allclose(one_by_one, whole, rtol=1e-5, atol=1e-5)


def frozen_problem(process: jd.Process) -> Callable[..., jd.Prediction]:
    """Samples of unlike stiffness: a Gaussian whose width is told by the sample's sign, the narrow one late to turn."""

    def denoise(x: jax.Array, t: ArrayLike, cond: jd.denoiser.Cond | None = None) -> jd.Prediction:
        wide, narrow = (jd.GaussianDenoiser(process, 0.0, std)(x, t) for std in (1.0, 0.003))
        stiff = jnp.zeros(x.shape[0]).at[-1].set(1.0)[:, None] > 0
        return jd.Prediction(*(jnp.where(stiff, n, w) for n, w in zip(narrow[:2], wide[:2], strict=True)))

    return denoise


def test_a_stiff_sample_does_not_slow_the_counts_of_others() -> None:
    process = jd.Flow()
    x, ts = jnp.ones((3, 2)), jnp.array([0.99, 0.001])
    with jax.enable_x64(False):
        _, mixed = jd.integrate(Adaptive(process, rtol=1e-5, atol=1e-5), frozen_problem(process), None, x, ts)
        _, calm = jd.integrate(
            Adaptive(process, rtol=1e-5, atol=1e-5), jd.GaussianDenoiser(process, 0.0, 1.0), None, x, ts
        )
    np.testing.assert_array_equal(mixed.evaluations[:2], calm.evaluations[:2])
    assert mixed.evaluations[2] > 3 * mixed.evaluations[0]


@pytest.mark.parametrize("name", sorted(PAIRS))
def test_counts_are_the_calls(name: str) -> None:
    """For one sample the denoiser is called just as often as the state says; arithmetic gives the same number."""
    process, calls = jd.VP(), []
    exact = mixture(process)

    def counted(x: jax.Array, t: ArrayLike, cond: jd.denoiser.Cond | None = None) -> jd.Prediction:
        jax.debug.callback(lambda: calls.append(1))
        return exact(x, t)

    sampler, x = Adaptive(process, PAIRS[name], 1e-2, 1e-2), jnp.array([[1.3, -0.4]])
    _, progress = jax.jit(lambda x: jd.integrate(sampler, counted, None, x, jnp.array([1.0, 0.5, 1e-3])))(x)
    jax.effects_barrier()
    assert int(progress.evaluations[0]) == len(calls)
    attempts = int(progress.accepted[0] + progress.rejected[0])
    entry = 1 + 2  # the first slope of each of the two intervals, and the one that chooses the first length
    if PAIRS[name].first_same_as_last:
        assert len(calls) == entry + attempts * (len(PAIRS[name].c) - 1)
    else:  # a new first slope after each accepted step but an interval's last
        assert len(calls) == entry + attempts * (len(PAIRS[name].c) - 1) + int(progress.accepted[0]) - 2


def test_rejections_are_counted() -> None:
    """A sudden turn on the way down cannot be foreseen: steps are rejected, and the result is right all the same."""
    process = jd.Flow()
    exact = jd.GaussianDenoiser(process, 1.0, 1e-2)
    x = jnp.array([[0.5], [-2.0]])
    reached, progress = jd.integrate(
        Adaptive(process, rtol=1e-4, atol=1e-4, variable="rho"), exact, None, x, jnp.array([0.99, 1e-4])
    )
    assert (progress.rejected > 0).all() and (progress.accepted > progress.rejected).all()
    np.testing.assert_allclose(reached, exact.flow(x, 0.99, 1e-4), atol=1e-3)


def test_the_bound_is_hard_and_not_silent() -> None:
    """A sample that would pass the bound is NaN and has not passed it; its neighbours are untouched."""
    process = jd.Flow()
    denoise, ts = frozen_problem(process), jnp.array([0.99, 0.5, 0.001])
    x = jnp.ones((3, 2))
    run = jax.jit(lambda sampler: jd.integrate(sampler, denoise, None, x, ts))
    free, count = run(Adaptive(process, rtol=1e-5, atol=1e-5))
    enough = int(count.evaluations[0])
    for bound in (1, 2, 5, enough - 1, enough, enough + 1, int(count.evaluations[2]) - 1, int(count.evaluations[2])):
        reached, progress = run(Adaptive(process, rtol=1e-5, atol=1e-5, max_evaluations=bound))
        within = np.asarray(count.evaluations) <= bound
        assert (progress.evaluations <= bound).all()
        np.testing.assert_array_equal(np.isnan(reached).all(axis=1), ~within)
        np.testing.assert_array_equal(reached[within], free[within])  # bit for bit


def test_a_slope_that_is_not_finite_ends_its_sample_at_once() -> None:
    process = jd.VP()

    def broken(x: jax.Array, t: ArrayLike, cond: jd.denoiser.Cond | None = None) -> jd.Prediction:
        return jax.tree.map(lambda part: part.at[1].set(jnp.nan), gaussian(process)(x, t))

    reached, progress = jd.integrate(Adaptive(process), broken, None, jnp.ones((3, 2)), jnp.array([1.0, 0.1]))
    assert np.isnan(reached).all(axis=1).tolist() == [False, True, False]
    assert progress.evaluations[1] == 0 and progress.accepted[1] == 0


def test_a_wall_on_the_way_does_not_hang() -> None:
    """Where no step is short enough, lengths vanish in rounding, and that ends the sample long before its bound."""
    process = jd.VP()

    def wall(x: jax.Array, t: ArrayLike, cond: jd.denoiser.Cond | None = None) -> jd.Prediction:
        given, beyond = gaussian(process)(x, t), jnp.broadcast_to(t, x.shape[:1])[:, None] < 0.6
        return given._replace(x0=jnp.where(beyond, jnp.nan, given.x0))

    sampler = Adaptive(process, max_evaluations=10**6)
    reached, progress = jd.integrate(sampler, wall, None, jnp.ones((1, 2)), jnp.array([1.0, 0.1]))
    assert np.isnan(reached).all() and progress.evaluations[0] < 1000 and progress.accepted[0] > 0


def test_step_lengths_are_kept_across_the_grid() -> None:
    """Times to look at cost a step each at most, not a new search for the length; and going on equals one run."""
    process = jd.VP()
    exact, x = mixture(process), jnp.array([[1.3, -0.4], [0.2, 2.0]])
    sampler = Adaptive(process, rtol=1e-4, atol=1e-4)
    ts = jnp.linspace(1.0, 0.1, 11)
    direct, alone = jd.integrate(sampler, exact, None, x, ts[jnp.array([0, 10])])
    reached, looked = jd.integrate(sampler, exact, None, x, ts)
    np.testing.assert_allclose(reached, direct, atol=1e-3)
    assert (looked.accepted <= alone.accepted + 10).all()
    half, state = jd.integrate(sampler, exact, None, x, ts[:6])
    whole, last = jd.integrate(sampler, exact, None, half, ts[5:], state=state)
    np.testing.assert_allclose(whole, reached, rtol=1e-5, atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3), last, looked)
    same, still = jd.integrate(sampler, exact, None, x, jnp.array([0.5, 0.5]))
    np.testing.assert_allclose(same, x, rtol=1e-6)
    assert (still.evaluations == 0).all()


@pytest.mark.parametrize("process_name", ["VP", "VE", "Flow", "CosineVP"])
def test_encoding_round_trip(process_name: str) -> None:
    """Data to noise and back to within a few tolerances, for Flow and CosineVP all the way to alpha = 0."""
    process = PROCESSES[process_name]()
    exact = mixture(process)
    x = jnp.array([[0.9, 0.4], [-0.7, 0.2], [0.1, -0.8]]) * process.alpha(0.05)
    for tolerance in (1e-3, 1e-5):
        sampler = Adaptive(process, rtol=tolerance, atol=tolerance)
        code, _ = jd.integrate(sampler, exact, None, x, jnp.array([0.05, 1.0]))
        back, _ = jd.integrate(sampler, exact, None, code, jnp.array([1.0, 0.05]))
        assert np.isfinite(code).all()
        np.testing.assert_allclose(back, x, atol=20 * tolerance + 2e-4)


def test_fields_are_checked() -> None:
    process = jd.VP()
    with pytest.raises(ValueError, match="embedded weights"):
        Adaptive(process, MIDPOINT)
    for name in ("rtol", "atol", "max_evaluations"):
        with pytest.raises(ValueError, match=f"{name} is to be positive, got 0"):
            Adaptive(process, **{name: 0})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="variable is to be"):
        Adaptive(process, variable="x")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Adaptive in rho has no finite step"):
        Adaptive(jd.Flow(), variable="rho").check(jnp.array([1.0, 0.5]))
    mine = Tableau(((1.0,),), (0.5, 0.5), (0.0, 1.0), 2, (1.0, 0.0), 1)  # a pair of one's own
    reached, _ = jd.integrate(Adaptive(process, mine), gaussian(process), None, jnp.ones((1, 2)), jnp.array([1.0, 0.1]))
    np.testing.assert_allclose(reached, gaussian(process).flow(jnp.ones((1, 2)), 1.0, 0.1), atol=1e-2)
