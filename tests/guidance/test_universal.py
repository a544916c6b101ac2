"""Guidance by a loss on x0: closed forms, limits, finite differences, and what it composes with."""

from __future__ import annotations

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.typing import ArrayLike

import jaxdiff as jd
from jaxdiff.broadcast import expand, sum_features
from jaxdiff.denoiser import Cond, Memory, begin, recall
from jaxdiff.guidance import ClassifierFree, Interval, Reuse, SquaredError, Universal, apply, on_pixels
from jaxdiff.networks import MLP, functional
from jaxdiff.prediction import from_x0
from jaxdiff.record import record

PROCESSES = {"VP": jd.VP(), "Flow": jd.Flow(), "VE": jd.VE()}
X = jax.random.normal(jax.random.key(0), (3, 2))
TARGET = jnp.array([[1.0, -0.5], [0.0, 2.0], [0.3, 0.3]])


@jax.jit
def evaluated(denoise: Any, x: jax.Array, t: ArrayLike, cond: Cond | None = None) -> jd.Prediction:
    found: jd.Prediction = denoise(x, t, cond)
    return found


def guided(denoise: Any, *elements: Any, process: jd.Process, nulls: Any = None) -> Any:
    return jax.tree_util.Partial(evaluated, apply(elements, denoise, process, nulls or {}))


@pytest.mark.parametrize("name", PROCESSES)
def test_a_quadratic_loss_on_gaussian_data(name: str) -> None:
    """x0(x) = m + g (x - alpha m), so grad l(x0(x)) = g (x0 - y)/std^2 and the score moves by -s times it."""
    process, mean, deviation, std = PROCESSES[name], 0.4, 0.7, 0.5
    exact = jd.GaussianDenoiser(process, mean, deviation)
    for t in (0.2, 0.7):
        alpha, sigma = process.alpha(t), process.sigma(t)
        gain = alpha * deviation**2 / (alpha**2 * deviation**2 + sigma**2)
        for scale in (1.0, jnp.array([0.0, 0.5, 3.0])):
            found = guided(exact, Universal(SquaredError(TARGET, std), scale), process=process)(X, t)
            plain = exact(X, t)
            gradient = gain * (plain.x0 - TARGET) / std**2
            score = plain.score(process, t) - expand(jnp.asarray(scale), X) * gradient
            np.testing.assert_allclose(found.score(process, t), score, rtol=2e-4, atol=2e-4)
            np.testing.assert_allclose(process.perturb(found.x0, found.eps, t), X, rtol=1e-3, atol=1e-3)


def test_scale_one_is_the_score_of_the_tilted_density() -> None:
    """ln p_t(x) - l(x0(x)), differentiated on its own."""
    process = jd.VP()
    exact = jd.MixtureDenoiser(process, jnp.array([[-1.0, 0.0], [1.0, 0.5]]), jnp.array([0.3, 0.6]))
    loss, t = SquaredError(TARGET, 0.8), 0.4

    def tilted(x: jax.Array) -> jax.Array:
        return (exact.log_density(x, t) - loss(exact(x, t).x0)).sum()

    found = guided(exact, Universal(loss), process=process)(X, t)
    np.testing.assert_allclose(found.score(process, t), jax.jit(jax.grad(tilted))(X), rtol=1e-4, atol=1e-4)


def test_scale_zero_is_the_plain_model_bit_for_bit() -> None:
    process = jd.VP()
    exact = jd.GaussianDenoiser(process, 0.4, 0.7)
    found = guided(exact, Universal(SquaredError(TARGET), 0.0), process=process)(X, 0.5)
    chex.assert_trees_all_equal(found, exact(X, 0.5))


def test_where_there_is_no_signal_forward_guidance_is_none() -> None:
    """Flow at t = 1: x0(x) does not depend on x, and alpha divides."""
    process = jd.Flow()
    exact = jd.GaussianDenoiser(process, 0.4, 0.7)
    found = guided(exact, Universal(SquaredError(TARGET), 5.0), process=process)(X, 1.0)
    chex.assert_trees_all_equal(found, exact(X, 1.0))
    near = guided(exact, Universal(SquaredError(TARGET), 5.0), process=process)(X, 1.0 - 1e-4)
    assert bool(jnp.isfinite(near.x0).all())


def by_network() -> tuple[Any, jd.VP]:
    process, net = jd.VP(), functional(MLP(width=16, depth=2))
    begun = net.init(jax.random.key(1))
    params = jax.tree.map(lambda p: p + 0.3 * jax.random.normal(jax.random.key(p.size), p.shape), begun)  # no zeros
    return jd.NetworkDenoiser(net, params, process, jd.V()), process


def test_the_gradient_through_a_network_is_that_of_finite_differences() -> None:
    denoise, process = by_network()
    t, loss, step = 0.5, SquaredError(TARGET, 0.5), 0.01
    of = jax.jit(lambda x: loss(denoise(x, t).x0))
    differences = [
        (of(X + step * jnp.eye(2)[i : i + 1]) - of(X - step * jnp.eye(2)[i : i + 1])) / (2 * step) for i in (0, 1)
    ]
    found, plain = guided(denoise, Universal(loss, 2.0), process=process)(X, t), evaluated(denoise, X, t)
    moved = (found.score(process, t) - plain.score(process, t)) / -2.0
    np.testing.assert_allclose(moved, jnp.stack(differences, axis=1), rtol=5e-3, atol=5e-3)
    assert not np.allclose(moved, process.alpha(t) * (plain.x0 - TARGET) / 0.25, rtol=0.1)  # V's own part of it alone


def test_backward_steps_descend_to_the_least_loss() -> None:
    """After m steps of rate r a quadratic loss' error is (1 - r/std^2)^m of it; eps moves so that x stays."""
    process, t, std = jd.VP(), 0.4, 0.5
    exact = jd.GaussianDenoiser(process, 0.4, 0.7)
    for steps, rate in ((3, 0.05), (200, 0.02)):
        found = guided(exact, Universal(SquaredError(TARGET, std), 0.0, steps, rate), process=process)(X, t)
        left = (1 - rate / std**2) ** steps
        np.testing.assert_allclose(found.x0, TARGET + left * (exact(X, t).x0 - TARGET), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(process.perturb(found.x0, found.eps, t), X, rtol=1e-5, atol=1e-5)
    assert left < 1e-7


@record
class Read:
    """An exact denoiser as a parameterization reads it: of the output that a perfect network would have."""

    exact: jd.GaussianDenoiser
    process: jd.Process
    parameterization: jd.Parameterization

    def __call__(self, x: jax.Array, t: ArrayLike, cond: Cond | None = None) -> jd.Prediction:
        found = self.exact(x, t)
        output = self.parameterization.target(self.process, found.x0, found.eps, jnp.asarray(t))
        return self.parameterization.read(self.process, x, t, output)


def test_the_same_under_every_parameterization() -> None:
    process = jd.VP()
    exact, element = jd.GaussianDenoiser(process, 0.4, 0.7), Universal(SquaredError(TARGET, 0.5), 1.5, 4, 0.05)
    expected = guided(exact, element, process=process)(X, 0.4)
    for parameterization in (jd.V(), jd.Eps(), jd.X0()):
        found = guided(Read(exact, process, parameterization), element, process=process)(X, 0.4)
        np.testing.assert_allclose(found.x0, expected.x0, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found.eps, expected.eps, rtol=1e-4, atol=1e-5)


@record
class Labelled:
    """Gaussian data about the label, of deviation 1/2; about 0 for label 10. It counts, and adds what it counted."""

    process: jd.Process

    def __call__(self, x: jax.Array, t: ArrayLike, cond: Cond | None = None) -> jd.Prediction:
        return self.recall(x, t, cond, jnp.zeros(()))[0]

    def begin(self, x: jax.Array, cond: Cond | None = None) -> Memory:
        return jnp.zeros(())

    def recall(self, x: jax.Array, t: ArrayLike, cond: Cond | None, memory: Memory) -> tuple[jd.Prediction, Memory]:
        assert cond is not None
        label = cond["label"].reshape(-1, 1)
        mean = jnp.where(label == 10, 0.0, 0.2 * label) + memory
        found = jd.GaussianDenoiser(self.process, 0.0, 0.5)(x - self.process.alpha(t) * mean, t)
        return from_x0(self.process, x, t, found.x0 + mean), memory + 1.0


def test_it_composes_with_cfg_interval_every_and_memory() -> None:
    """Behind cfg it takes the loss of the guided x0; outside of an interval the plain denoiser is all that is left."""
    process, t, cond = jd.VP(), 0.5, {"label": jnp.array([1, 2, 3])}
    plain, element = Labelled(process), Universal(SquaredError(TARGET, 0.5), 1.5)
    by_hand = evaluated(element(ClassifierFree(plain, 3.0, {"label": 10}), plain, process, {}), X, t, cond)
    both = guided(plain, jd.CFG(3.0), element, process=process, nulls={"label": 10})
    np.testing.assert_array_equal(both(X, t, cond).x0, by_hand.x0)
    outside, inside = (
        guided(plain, jd.CFG(3.0), element, Interval(0.0, high), process=process, nulls={"label": 10})
        for high in (1e-6, 1e6)
    )
    np.testing.assert_allclose(outside(X, t, cond).x0, plain(X, t, cond).x0, rtol=1e-6)
    np.testing.assert_allclose(inside(X, t, cond).x0, by_hand.x0, rtol=1e-5, atol=1e-6)
    alone = apply([element], plain, process, {})
    memory = begin(alone, X, cond)
    for _ in range(2):
        _, memory = recall(alone, X, t, cond, memory)
    assert float(memory) == 2.0
    reused = guided(plain, element, Reuse(2), process=process)
    np.testing.assert_allclose(reused(X, t, cond).x0, alone(X, t, cond).x0, rtol=1e-5)


def test_the_loss_sees_the_condition_and_pixels() -> None:
    process, cond = jd.VP(), {"label": jnp.array([0, 1, 2])}
    exact = jd.GaussianDenoiser(process, 0.0, 1.0)
    found = guided(exact, Universal(lambda x0, cond: -sum_features(x0) * cond["label"]), process=process)(X, 0.5, cond)
    up = (found.x0 - exact(X, 0.5).x0)[:, 0]
    np.testing.assert_allclose(up, up[1] * jnp.array([0.0, 1.0, 2.0]), rtol=1e-4, atol=1e-6)

    @record
    class Doubled:
        factor: float

        def pixels(self, x0: jax.Array) -> jax.Array:
            return self.factor * x0

    value = on_pixels(Doubled(2.0), lambda pixels, cond: sum_features(pixels))
    np.testing.assert_allclose(value(X, None), 2 * X.sum(axis=1), rtol=1e-6)
    same = on_pixels(jd.Model(by_network()[0], jd.codecs.Points((2,))), lambda x0, cond: sum_features(x0))
    np.testing.assert_allclose(same(X, None), X.sum(axis=1), rtol=1e-6)


def test_numbers_and_targets_are_data_and_rows_are_cut_with_the_batch() -> None:
    process = jd.VP()
    exact = jd.GaussianDenoiser(process, 0.0, 1.0)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def run(element: Universal) -> jax.Array:
        return apply([element], exact, process, {})(X, 0.5).x0

    found = [run(Universal(SquaredError(TARGET + i, 0.5 + i), 1.0 + i, 2, 0.1 / (i + 1))) for i in range(3)]
    assert not np.allclose(found[0], found[1])
    each = Universal(SquaredError(TARGET, 0.5), jnp.arange(3.0)).rows(lambda leaf: leaf[1:])
    np.testing.assert_array_equal(each.loss.target, TARGET[1:])
    np.testing.assert_array_equal(each.scale, jnp.array([1.0, 2.0]))
    for_all = Universal(SquaredError(TARGET[:1], 0.5), 2.0)
    assert for_all.rows(lambda leaf: leaf[1:]).loss.target.shape == (1, 2)


def test_the_model_takes_it_in_batches() -> None:
    """One target a sample, whatever the batch."""
    denoise, _ = by_network()
    model = jd.Model(denoise, jd.codecs.Points((2,)), jd.model.Defaults(clip=False))
    options: dict[str, Any] = {"guide": Universal(SquaredError(TARGET, 0.5), 1.0), "steps": 3, "decode": False}
    whole = model.sample(0, 3, **options)
    np.testing.assert_allclose(model.sample(0, 3, batch_size=2, **options), whole, rtol=1e-5, atol=1e-6)
    other = model.sample(0, 3, **{**options, "guide": Universal(SquaredError(TARGET + 1.0, 0.5), 1.0)})
    assert (np.abs(other - whole).max(axis=1) > 1e-3).all()


def test_what_means_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a loss is a function \(x0, cond\) -> one number a sample, got 3"):
        Universal(3)
    with pytest.raises(ValueError, match=r"backward_steps is to be a whole number, 0 \(none\) or more, got -1"):
        Universal(SquaredError(TARGET), backward_steps=-1)
    with pytest.raises(ValueError, match="backward_rate is to be positive, got backward_rate = 0"):
        Universal(SquaredError(TARGET), backward_rate=0)
    with pytest.raises(ValueError, match="std is to be positive, got std = -1"):
        SquaredError(TARGET, -1)
    exact, process = jd.GaussianDenoiser(jd.VP(), 0.0, 1.0), jd.VP()
    with pytest.raises(ValueError, match=r"a loss gives one number a sample, \(3,\), got shape \(3, 2\)"):
        guided(exact, Universal(lambda x0, cond: x0), process=process)(X, 0.5)
    with pytest.raises(ValueError, match=r"a target is \(3, 2\), or the same for all \(1, 2\), got \(2, 2\)"):
        guided(exact, Universal(SquaredError(TARGET[:2])), process=process)(X, 0.5)
