"""Groups of weighted particles, and steering by a reward: exact weights, exact laws, and keys by group."""

from __future__ import annotations

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.typing import ArrayLike

import jaxdiff as jd
from jaxdiff.denoiser import Cond
from jaxdiff.guidance import SquaredError
from jaxdiff.noise import step_noise
from jaxdiff.record import record
from jaxdiff.sampling import Particles, Recurrent, Steered, particle_keys, particles, sample_particles
from jaxdiff.sampling.particles import group_keys, points, taken_of_state

PROCESS = jd.VP()
EXACT = jd.GaussianDenoiser(PROCESS, 0.0, 1.0)
TS = jd.log_snr_times(PROCESS, 8)
ANALYTIC = jd.AnalyticDDPM(PROCESS, TS, PROCESS.sigma(TS) ** 2 / (PROCESS.alpha(TS) ** 2 + PROCESS.sigma(TS) ** 2))
"""The exact law of these data, N(0, 1), in 8 times."""
WEIGHTS = jnp.log(jnp.array([[0.1, 0.0, 0.33, 0.07, 0.5], [0.2, 0.2, 0.2, 0.2, 0.2]]))

particles_of, sampled = jax.jit(sample_particles), jax.jit(jd.sample)
ancestors, effective_size, normalised = (
    jax.jit(f) for f in (particles.ancestors, particles.effective_size, particles.normalised)
)
resample = jax.jit(particles.resample, static_argnames=("particles", "scheme"))


def first(x0: jax.Array, cond: Cond | None = None) -> jax.Array:
    """A reward: the first coordinate. It tilts N(0, 1) to N(lambda, 1), with Z = exp(lambda^2/2)."""
    return x0[:, 0]


def started(n: int, k: int, seed: int = 0, d: int = 2) -> tuple[jax.Array, jax.Array]:
    keys = particle_keys(jd.sample_keys(jax.random.key(seed), 0, n), k)
    return keys, PROCESS.prior_sample(keys, (d,), TS[0])


# --- resampling


def test_systematic_takes_each_particle_as_often_as_its_weight_says() -> None:
    """k W_i rounded up or down, exactly k W_i on average over u, and never one of weight 0."""
    u, k = jnp.linspace(0.0, 1.0, 1001)[:-1], 5
    heights = (jnp.arange(k)[None] + u[:, None]) / k
    for weights in np.asarray(WEIGHTS):
        chosen = np.asarray(ancestors(np.broadcast_to(weights, (len(u), k)), heights))
        counts = np.stack([(chosen == i).sum(axis=1) for i in range(k)], axis=1)
        expected = k * np.exp(weights)
        assert (counts >= np.floor(expected - 1e-5)).all() and (counts <= np.ceil(expected + 1e-5)).all()
        np.testing.assert_allclose(counts.mean(axis=0), expected, atol=2e-3)
    assert counts[:, 1].sum() > 0 and not (np.asarray(ancestors(WEIGHTS[:1], jnp.zeros((1, 1)))) == 1).any()


def test_multinomial_is_the_inverse_of_the_distribution_function() -> None:
    u = jnp.array([[0.0, 0.0999, 0.1001, 0.4299, 0.4301, 0.4999, 0.5001, 1.0]])
    np.testing.assert_array_equal(ancestors(WEIGHTS[:1], u), [[0, 0, 2, 2, 3, 3, 4, 4]])
    keys = jax.random.split(jax.random.key(0), 4000)
    chosen = ancestors(jnp.broadcast_to(WEIGHTS[0], (4000, 5)), points(keys, 5, "multinomial"))
    shares = np.bincount(np.asarray(chosen).ravel(), minlength=5) / 20000
    np.testing.assert_allclose(shares, np.exp(WEIGHTS[0]), atol=4 * 0.5 / np.sqrt(20000))


def test_effective_size_and_weights_that_overflow() -> None:
    np.testing.assert_array_equal(effective_size(jnp.full((1, 7), -1e4)), [7.0])
    np.testing.assert_allclose(effective_size(WEIGHTS + 1e3), 1 / (np.exp(WEIGHTS) ** 2).sum(axis=1), rtol=1e-3)
    np.testing.assert_allclose(normalised(WEIGHTS - 5e4), np.exp(WEIGHTS), atol=1e-3)


def test_a_group_without_weight_keeps_its_particles_and_says_so() -> None:
    """Beside one that is resampled and one that is not; the mean weight of each stays."""
    target = jnp.array([[-jnp.inf] * 4, [0.0, -jnp.inf, -jnp.inf, -2.0], [0.0, 0.1, 0.0, -0.1]]).ravel()
    carried = jnp.arange(12.0) / 12
    keys = jax.random.split(jax.random.key(0), 3)
    for scheme in ("systematic", "multinomial"):
        found = resample(carried, target, keys, particles=4, threshold=0.5, scheme=scheme)
        np.testing.assert_array_equal(found.chosen[0], np.arange(4))
        np.testing.assert_array_equal(found.chosen[2], np.arange(4))
        assert set(np.asarray(found.chosen[1]).tolist()) <= {0, 3}
        np.testing.assert_array_equal(found.stuck, [True, False, False])
        np.testing.assert_array_equal(found.carried[:4], carried[:4])
        assert bool(jnp.isfinite(found.carried).all())
        after = found.carried[4:8] + target[4:8][found.chosen[1]]
        before = jax.scipy.special.logsumexp(carried[4:8] + target[4:8]) - jnp.log(4.0)
        np.testing.assert_allclose(after, jnp.full(4, before), rtol=1e-6)


def test_a_group_is_a_function_of_its_own_keys() -> None:
    """The same group in another batch: the same random numbers and, bit for bit, the same particles."""
    keys, x = started(3, 4)
    one, two = (
        jax.jit(lambda keys, x: group_keys(step_noise(keys, x), 0.5, 0.4, 7, 4))(keys[i:], x[i:]) for i in (0, 8)
    )
    chex.assert_trees_all_equal(jax.random.key_data(one[2:]), jax.random.key_data(two))
    assert len({tuple(row) for row in np.asarray(jax.random.key_data(one)).tolist()}) == 3
    steered = Steered(ANALYTIC, first, 2.0, 4, threshold=1.0)
    whole, part = (particles_of(steered, EXACT, keys[i:], x[i:], TS) for i in (0, 8))
    np.testing.assert_array_equal(whole[1].x0[2], part[1].x0[0])
    np.testing.assert_array_equal(whole[0][8:], part[0])


# --- steering


LATER = [pytest.param(name, marks=pytest.mark.nightly) for name in ("max", "sum")]


@pytest.mark.parametrize("potential", ["difference", "max", "sum"])
def test_the_potentials_multiply_to_the_tilt(potential: Any) -> None:
    """Never resampled, the weights are exp(lambda r(x0)) and the particles the inner sampler's."""
    keys, x = started(2, 8)
    plain = sampled(ANALYTIC, EXACT, keys, x, TS)
    for scale, every in ((1.7, 1), (-0.5, 3)):
        steered = Steered(ANALYTIC, first, scale, 8, potential, threshold=0.0, every=every)
        _, found = particles_of(steered, EXACT, keys, x, TS)
        np.testing.assert_allclose(found.x0.reshape(16, 2), plain, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found.log_weights.ravel(), scale * plain[:, 0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("potential", "every", "resampling"),
    [
        ("difference", 1, "systematic"),
        pytest.param("difference", 2, "multinomial", marks=pytest.mark.nightly),
        ("max", 3, "systematic"),
        pytest.param("sum", 4, "systematic", marks=pytest.mark.nightly),
    ],
)
def test_a_gaussian_is_tilted_exactly(potential: Any, every: int, resampling: Any) -> None:
    """N(0, 1) by exp(lambda x) is N(lambda, 1); the mean weight is exp(lambda^2/2)."""
    keys, x = started(16, 1024)
    steered = Steered(ANALYTIC, first, 0.8, 1024, potential, 0.7, resampling, every)
    drawn, found = particles_of(steered, EXACT, keys, x, TS)
    means = jnp.einsum("nk,nkd->nd", found.weights, found.x0)
    error = np.asarray(means).std(axis=0, ddof=1) / 4
    assert (error < 0.08).all()
    assert (np.abs(means.mean(axis=0) - jnp.array([0.8, 0.0])) < 4 * error).all()
    squares = np.asarray(jnp.einsum("nk,nkd->nd", found.weights, jnp.square(found.x0 - means[:, None])))
    np.testing.assert_array_less(np.abs(squares.mean(axis=0) - 1.0), 5 * squares.std(axis=0, ddof=1) / 4)
    evidence = np.exp(np.asarray(found.log_evidence))
    np.testing.assert_allclose(evidence.mean(), np.exp(0.32), atol=4 * evidence.std(ddof=1) / 4)
    assert not found.stuck.any()
    place = {tuple(row): i for i, row in enumerate(np.asarray(found.x0[0]).tolist())}
    at = [place[tuple(row)] for row in np.asarray(drawn[:1024]).tolist()]  # rows are draws of their own group
    counts, wanted = np.bincount(at, minlength=1024), 1024 * np.asarray(found.weights[0])
    assert (np.abs(counts - wanted) <= 6 * np.sqrt(wanted) + 1).all()


def test_lambda_zero_and_one_particle_are_the_inner_sampler() -> None:
    """Bit for bit, whatever the threshold: no group's effective size is below k."""
    keys, x = started(3, 4)
    plain = sampled(ANALYTIC, EXACT, keys, x, TS)
    drawn, found = particles_of(Steered(ANALYTIC, first, 0.0, 4, threshold=1.0), EXACT, keys, x, TS)
    np.testing.assert_array_equal(found.x0.reshape(12, 2), plain)
    np.testing.assert_array_equal(sampled(Steered(ANALYTIC, first, 0.0, 4, threshold=1.0), EXACT, keys, x, TS), drawn)
    np.testing.assert_array_equal(sampled(Steered(ANALYTIC, first, 3.0, 1), EXACT, keys, x, TS), plain)


@record
class Above:
    """A reward that is no number where the first coordinate is below the least."""

    least: ArrayLike

    def __call__(self, x0: jax.Array, cond: Cond | None) -> jax.Array:
        none = jnp.array([jnp.nan, jnp.inf, -jnp.inf])[jnp.arange(len(x0)) % 3]
        return jnp.where(x0[:, 0] > self.least, x0[:, 1], none)


@pytest.mark.parametrize("potential", ["difference", *LATER])
def test_rewards_that_are_no_numbers_have_no_weight(potential: Any) -> None:
    """Half of each group is NaN, infinite or forbidden: nothing of it is drawn. All of it: it is kept, and flagged."""
    keys, x = started(3, 64)

    def found_with(least: float) -> tuple[jax.Array, Particles]:
        return particles_of(Steered(ANALYTIC, Above(least), 1.0, 64, potential, every=4), EXACT, keys, x, TS)

    drawn, found = found_with(0.0)
    assert bool((drawn[:, 0] > 0).all()) and not bool(jnp.isnan(found.log_weights).any()) and not found.stuck.any()
    none, found = found_with(jnp.inf)
    assert bool(found.stuck.all()) and bool(jnp.isfinite(none).all()) and bool((found.weights == 1 / 64).all())


def test_numbers_are_data() -> None:
    keys, x = started(2, 4)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def run(steered: Steered) -> Particles:
        return sample_particles(steered, EXACT, keys, x, TS)[1]

    found = [
        run(Steered(ANALYTIC, SquaredError(jnp.full((1, 2), target)), scale, 4, threshold=threshold, every=every))
        for target, scale, threshold, every in ((0.0, -1.0, 0.5, 1), (1.0, 2.0, 0.0, 3), (2.0, 0.0, 1.0, 2))
    ]
    assert not np.allclose(found[0].log_weights, found[1].log_weights)


def test_no_evaluation_more_than_the_inner_sampler_and_its_past_goes_with_the_particles() -> None:
    calls: list[int] = []

    def counted(x: jax.Array, t: ArrayLike, cond: Cond | None = None) -> jd.Prediction:
        jax.debug.callback(lambda x: calls.append(len(x)), x)
        return EXACT(x, t)

    keys, x = started(2, 4)
    steered = Steered(jd.DPMpp2MSDE(PROCESS), first, 2.0, 4, threshold=1.0)
    jax.block_until_ready(jax.jit(lambda x: jd.sample(steered, counted, keys, x, TS))(x))
    jax.effects_barrier()
    assert calls == [8] * len(TS)
    inner = steered.sampler
    past = jax.tree.map(lambda leaf: jnp.arange(leaf.size, dtype=leaf.dtype).reshape(leaf.shape), inner.init(x))
    moved = taken_of_state(inner, x, past, jnp.array([[3, 3, 0, 1], [0, 1, 2, 2]]))
    before, after = jax.tree.leaves(past), jax.tree.leaves(moved)
    assert any(leaf.shape == x.shape for leaf in before)
    for old, new in zip(before, after, strict=True):
        np.testing.assert_array_equal(new, old[np.array([3, 3, 0, 1, 4, 5, 6, 6])] if old.shape == x.shape else old)


def test_what_means_nothing_is_refused() -> None:
    ddpm = jd.DDPM(PROCESS)
    for wrong, message in (
        (lambda: Steered(jd.DDIM(PROCESS), first), "DDIM draws no noise, so particles that were resampled would stay"),
        (lambda: Steered(Steered(ddpm, first), first), "a sampler of particles is to be around a plain one"),
        (lambda: Steered(ddpm, 3), r"a reward is a function \(x0, cond\) -> one number a sample, got 3"),
        (lambda: Steered(ddpm, first, particles=0), "particles is a whole number, 1 or more, got 0"),
        (
            lambda: Steered(ddpm, first, threshold=1.5),
            r"threshold is a share of the particles, .* got threshold = 1\.5",
        ),
        (
            lambda: Steered(ddpm, first, potential="best"),  # type: ignore[arg-type]
            'potential is to be "difference", "max" or "sum", got \'best\'',
        ),
        (lambda: Steered(ddpm, first, resampling="x"), 'resampling is to be "systematic" or "multinomial", got \'x\''),  # type: ignore[arg-type]
        (lambda: Steered(ddpm, first, every=0), "every is to be a whole number, 1 or more, got every = 0"),
    ):
        with pytest.raises(ValueError, match=message):
            wrong()
    keys, x = started(1, 6)
    for around in (
        Recurrent(Steered(ddpm, first, particles=6)),
        Recurrent(jd.Restart(Steered(ddpm, first, particles=6))),
    ):
        with pytest.raises(ValueError, match="Steered weighs its particles at the end: put Steered around Re"):
            jd.sample(around, EXACT, keys, x, TS)
    with pytest.raises(ValueError, match=r"6 samples are no whole groups of 4 particles: take n x 4 rows"):
        jd.sample(Steered(ddpm, first, particles=4), EXACT, keys, x, TS)
    with pytest.raises(ValueError, match=r"a reward gives one number a sample, \(6,\), got shape \(\)"):
        jd.sample(Steered(ddpm, lambda x0, cond: x0.sum(), particles=6), EXACT, keys, x, TS)


@record
class Remembering:
    """A denoiser with a memory."""

    process: jd.Process

    def __call__(self, x: jax.Array, t: ArrayLike, cond: Cond | None = None) -> jd.Prediction:
        return EXACT(x, t)

    def begin(self, x: jax.Array, cond: Cond | None = None) -> jax.Array:
        return jnp.zeros(())

    def recall(self, x: jax.Array, t: ArrayLike, cond: Any, memory: Any) -> tuple[jd.Prediction, Any]:
        return EXACT(x, t), memory


def test_a_denoiser_that_remembers_is_refused() -> None:
    keys, x = started(1, 4)
    with pytest.raises(ValueError, match="resampling exchanges the particles, and what the denoiser remembers of each"):
        jd.sample(Steered(jd.DDPM(PROCESS), first, particles=4), Remembering(PROCESS), keys, x, TS)
