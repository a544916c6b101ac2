"""What a noisy classifier says, and the cross-entropy it is trained by, against a mixture's exact label."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm

import jaxdiff as jd
from jaxdiff.classifier import ClassificationLoss, NetworkClassifier
from jaxdiff.denoiser import NetworkDenoiser
from jaxdiff.times import LossSecondMoment, ScoreNorm

MEANS, STDS = jnp.array([[-1.0], [0.5], [2.0]]), jnp.array([0.3, 0.6, 0.2])


@dataclasses.dataclass(frozen=True)
class Exact:
    """The exact logits of a mixture under VP, told 1000 t, times a number; up to a constant that no softmax sees."""

    times: float = 1.0
    cond: Any = dataclasses.field(default_factory=dict, compare=False, hash=False)

    def apply(self, params: Any, x: jax.Array, t: jax.Array, cond: Any = None, *, key: Any = None) -> jax.Array:
        assert cond is None, "a classifier is told the label by nobody"
        exact = jd.MixtureDenoiser(jd.VP(), MEANS, STDS)
        return self.times * exact.log_prob(x, t / 1000.0) + 7.0


def batch(n: int) -> dict[str, jax.Array]:
    label = jnp.arange(n) % 3
    noise = jax.random.normal(jax.random.key(1), (n, 1))
    return {"x": MEANS[label] + STDS[label][:, None] * noise, "label": label}


def test_the_loss_is_the_entropy_of_the_label() -> None:
    """Of the exact classifier at one t: the integral of -p(x_t, k) ln p(k | x_t); of another more."""
    process, t, n = jd.VP(), 0.35, 60_000
    loss = ClassificationLoss(process, jd.V(), jd.Uniform(t, t))
    x = jnp.linspace(-8, 8, 4001)
    alpha, sigma = process.alpha(t), process.sigma(t)
    joint = norm.pdf(x[:, None], alpha * MEANS[:, 0][None], jnp.hypot(alpha * STDS, sigma)[None]) / 3
    given = joint / joint.sum(1, keepdims=True)

    @jax.jit
    def measured(key: jax.Array) -> Any:
        draws = loss.draw(key, batch(n), loss.init())
        return [loss.terms(Exact(times), {}, draws) for times in (1.0, 2.0)]

    exact, sharper = measured(jax.random.key(0))
    for terms, times in ((exact, 1.0), (sharper, 2.0)):
        said = given**times / (given**times).sum(1, keepdims=True)
        expected = float(-jnp.where(joint > 1e-30, joint * jnp.log(said), 0.0).sum() * (x[1] - x[0]))
        error = float(terms.loss.std()) / n**0.5
        assert abs(float(terms.loss.mean()) - expected) < 4 * error + 1e-4, (float(terms.loss.mean()), expected)
    assert float(sharper.loss.mean()) > float(exact.loss.mean()) + 0.01
    right = float((joint.max(1)).sum() * (x[1] - x[0]))
    assert abs(float(exact.right.mean()) - right) < 4 * (right * (1 - right) / n) ** 0.5


def test_it_is_told_what_a_denoiser_is_told() -> None:
    """x and t as the parameterization makes them, in training and afterwards."""
    seen: list[Any] = []

    @dataclasses.dataclass(frozen=True)
    class Watching:
        outputs: int
        cond: Any = dataclasses.field(default_factory=dict, compare=False, hash=False)

        def apply(self, params: Any, x: jax.Array, t: jax.Array, cond: Any = None, *, key: Any = None) -> jax.Array:
            seen.append((x, t))
            return jnp.zeros((x.shape[0], self.outputs))

    process, parameterization = jd.VE(), jd.Karras(0.5)
    loss = ClassificationLoss(process, parameterization)
    draws = loss.draw(jax.random.key(0), batch(6), loss.init())
    loss.terms(Watching(3), {}, draws)
    x = process.perturb(draws.x0, draws.eps, draws.t)
    NetworkClassifier(Watching(3), {}, process, parameterization, 3).log_prob(x, draws.t)
    NetworkDenoiser(Watching(1), {}, process, parameterization)(x, draws.t)
    for each in seen[:2]:
        for mine, denoiser in zip(each, seen[2], strict=True):
            np.testing.assert_array_equal(mine, denoiser)
    assert float(jnp.abs(seen[0][0] - x).max()) > 0.1  # which a parameterization without scales would give


def test_log_prob_is_a_law_of_its_own_shape() -> None:
    process = jd.VP()
    classifier = NetworkClassifier(Exact(), {}, process, jd.V(), 3, shape=(1,))
    x = batch(6)["x"]
    for t in (0.3, jnp.linspace(0.1, 0.9, 6)):
        found = classifier.log_prob(x, t)
        np.testing.assert_allclose(jnp.exp(found).sum(1), 1.0, rtol=1e-5)
        np.testing.assert_allclose(found, jd.MixtureDenoiser(process, MEANS, STDS).log_prob(x, t), atol=1e-5)
    with pytest.raises(ValueError, match=r"trained on data of shape \(1,\), got \(2,\): take one of this data"):
        classifier.log_prob(jnp.zeros((6, 2)), 0.3)


def test_figures_by_noise_level() -> None:
    loss = ClassificationLoss(jd.VP(), jd.V())
    draws = dataclasses.replace(loss.draw(jax.random.key(0), batch(5)), t=jnp.array([0.1, 0.26, 0.3, 0.9, 1.0]))
    terms = loss.terms(Exact(), {}, draws)._replace(right=jnp.array([1.0, 1.0, 0.0, 1.0, 0.0]))
    figures = loss.figures(draws, terms)
    assert float(figures["accuracy"]) == pytest.approx(0.6)
    assert figures["accuracy_by_noise"].tolist() == [[1.0, 1.0, 0.0, 1.0], [1.0, 2.0, 0.0, 2.0]]


def test_times_by_importance() -> None:
    """A loss is divided by p(t), and the history has it undivided; a norm of the score there is none."""
    loss = ClassificationLoss(jd.VP(), jd.V(), LossSecondMoment(bins=1, length=8))
    draws = loss.draw(jax.random.key(0), batch(8), loss.init())
    plain = loss.terms(Exact(), {}, draws).loss
    weight = jnp.linspace(0.5, 3.0, 8)
    weighted = dataclasses.replace(draws, weight=weight)
    terms = loss.terms(Exact(), {}, weighted)
    np.testing.assert_allclose(terms.loss, weight * plain, rtol=1e-6)
    history = loss.update(loss.init(), weighted, terms)
    np.testing.assert_allclose(np.sort(history.losses[0]), np.sort(plain), rtol=1e-5)
    with pytest.raises(ValueError, match="a classifier has none: use LossSecondMoment"):
        ClassificationLoss(jd.VP(), jd.V(), ScoreNorm())
