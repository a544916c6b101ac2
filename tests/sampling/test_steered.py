"""Steering in models, rewards by name, and the law of a mixture in full."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff.broadcast import sum_features
from jaxdiff.denoiser import Cond
from jaxdiff.methods.steer import parse_steered
from jaxdiff.networks import MLP, functional
from jaxdiff.record import record
from jaxdiff.sampling import Steered, particle_keys, sample_particles

PROCESS = jd.VP()


@record
class Towards:
    """A reward with one target a sample."""

    target: jax.Array

    def __call__(self, x0: jax.Array, cond: Cond | None) -> jax.Array:
        assert cond is not None
        return -sum_features(jnp.square(x0 - self.target)) + 0.0 * cond["label"]

    def rows(self, cut: Any) -> Towards:
        return Towards(cut(self.target))


def test_the_model_draws_one_sample_a_group() -> None:
    """n samples, whatever the batch; a reward's target, and the condition, with its sample; all particles on demand."""
    net = functional(MLP(width=8, depth=1, num_classes=3))
    model = jd.Model(
        jd.NetworkDenoiser(net, net.init(jax.random.key(0)), PROCESS, jd.V()),
        jd.codecs.Points((2,)),
        jd.model.Defaults(guide=(), clip=False),
    )
    far = 5.0 * jnp.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
    steered = Steered(jd.DDPM(PROCESS), Towards(far), 1.0, 8)
    options: dict[str, Any] = {"cond": {"label": np.array([0, 1, 2])}, "steps": 4, "decode": False}
    whole, found = model.sample(0, 3, sampler=steered, keep="particles", **options)
    assert whole.shape == (3, 2) and found.x0.shape == (3, 8, 2) and found.log_weights.shape == (3, 8)
    assert all((group == row).all(axis=1).any() for group, row in zip(found.x0, whole, strict=True))
    np.testing.assert_allclose(model.sample(0, 3, sampler=steered, batch_size=16, **options), whole, rtol=1e-5)
    plain = model.sample(0, 3, sampler=jd.DDPM(PROCESS), **options)
    errors = [np.square(each - far).sum(axis=1).mean() for each in (whole, plain)]
    assert errors[0] < errors[1]
    for keep, message in (
        (jd.sampling.Keep((0,)), "resampled particles have no way of their own to keep"),
        ("all", "keep is a jaxdiff.sampling.Keep, such as Keep"),
    ):
        with pytest.raises(ValueError, match=message):
            model.sample(0, 3, sampler=steered, keep=keep, **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="keep='particles' is of a sampler of particles, such as Steered"):
        model.sample(0, 3, keep="particles", **options)
    with pytest.raises(ValueError, match="particles get their last weights at its end: leave denoising_end out"):
        model.sample(0, 3, sampler=steered, denoising_end=0.5, **options)


def test_rewards_by_name() -> None:
    """Of pixels by hand; around the sampler that was chosen; through the model's decoder."""
    pixels = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, 4, 1)), jnp.float32)
    one = np.asarray(pixels[0, ..., 0])
    for name, by_hand in (
        ("brightness", one.mean()),
        ("contrast", one.std()),
        ("smoothness", -(np.diff(one, axis=0) ** 2).mean() - (np.diff(one, axis=1) ** 2).mean()),
    ):
        steered = parse_steered(
            f"{name}:3,particles=4,every=2,potential=max", jd.DDPM(PROCESS), jd.codecs.Images((3, 4, 1))
        )
        np.testing.assert_allclose(steered.reward(pixels, None)[0], by_hand, rtol=1e-5)
        assert (steered.scale, steered.particles, steered.every, steered.potential) == (3.0, 4, 2, "max")
    model = jd.Model(
        jd.NetworkDenoiser(functional(MLP(width=8, depth=1)), None, PROCESS, jd.V()), jd.codecs.Points((2,))
    )
    plan = model.plan(2, sampler="ddpm", steps=3, steer="brightness:5,particles=3")
    assert isinstance(plan.sampler, Steered) and plan.particles == 3 and isinstance(plan.sampler.sampler, jd.DDPM)
    for wrong, message in (
        ("bright:5", "there is no reward 'bright'; did you mean 'brightness'"),
        ("brightness:5,particels=3", "brightness has no number 'particels'; did you mean 'particles'"),
        ("brightness:5", "brightness:5: DDIM draws no noise, so particles that were resampled would stay copies"),
    ):
        with pytest.raises(ValueError, match=message):
            model.plan(2, steps=3, steer=wrong)


# --- in full


def tilted_mixture(means: Any, stds: Any, log_weights: Any, a: Any, c: float) -> tuple[Any, Any, float]:
    """Mean, covariance and ln Z of a mixture tilted by exp(a.x - c |x|^2/2), each component a Gaussian again."""
    d, parts = means.shape[1], []
    for m, s, w in zip(means, stds, np.exp(log_weights), strict=True):
        v = 1 / (1 / s**2 + c)
        m2 = v * (m / s**2 + a)
        log_z = 0.5 * (m2 @ m2 / v - m @ m / s**2) + 0.5 * d * np.log(v / s**2)
        parts.append((np.log(w) + log_z, m2, v))
    log_z = np.logaddexp.reduce([p[0] for p in parts])
    shares = np.exp([p[0] - log_z for p in parts])
    mean = sum(r * p[1] for r, p in zip(shares, parts, strict=True))
    covariance = sum(
        r * (p[2] * np.eye(d) + np.outer(p[1] - mean, p[1] - mean)) for r, p in zip(shares, parts, strict=True)
    )
    return mean, covariance, float(log_z)


@pytest.mark.nightly
@pytest.mark.parametrize("d", [1, 2])
def test_a_mixture_is_tilted_as_particles_grow(d: int) -> None:
    """By a linear and a quadratic reward together, with 1,024 particles and fine steps: mean, covariance and Z within
    the Monte-Carlo error; and the error of the mean falls as the root of their number."""
    means, stds = np.array([[-1.0, 0.5], [1.0, -0.5]])[:, :d], np.array([0.4, 0.6])
    log_weights, a, c = np.log([0.3, 0.7]), np.array([0.9, -0.6])[:d], 0.8
    exact = jd.MixtureDenoiser(PROCESS, jnp.asarray(means), jnp.asarray(stds), jnp.asarray(log_weights))
    mean, covariance, log_z = tilted_mixture(means, stds, log_weights, a, c)
    ts = jd.log_snr_times(PROCESS, 400)
    of = jax.jit(sample_particles)
    errors = []
    for k, n in ((16, 256), (128, 64), (1024, 16)):
        keys = particle_keys(jd.sample_keys(jax.random.key(0), 0, n), k)
        x = PROCESS.prior_sample(keys, (d,), ts[0])
        steered = Steered(
            jd.DDPM(PROCESS, "fixed_large"),
            lambda x0, cond: x0 @ jnp.asarray(a, x0.dtype) - 0.5 * c * sum_features(jnp.square(x0)),
            1.0,
            k,
        )
        _, found = of(steered, exact, keys, x, ts)
        x0, weights = np.asarray(found.x0, float), np.asarray(found.weights, float)
        each = np.einsum("nk,nkd->nd", weights, x0)
        errors.append(np.sqrt(np.square(each - mean).sum(axis=1).mean()))
    error = each.std(axis=0, ddof=1) / np.sqrt(n)
    assert (np.abs(each.mean(axis=0) - mean) < 4 * error + 0.01).all(), (each.mean(axis=0), mean, error)
    found_covariance = np.array(
        [np.cov(g.T, aweights=w, ddof=0).reshape(d, d) for g, w in zip(x0, weights, strict=True)]
    )
    spread = found_covariance.std(axis=0, ddof=1) / np.sqrt(n)
    assert (np.abs(found_covariance.mean(axis=0) - covariance) < 4 * spread + 0.01).all()
    assert abs(np.log(np.exp(np.asarray(found.log_evidence)).mean()) - log_z) < 0.03
    assert errors[0] > 2 * errors[1] > 4 * errors[2], errors  # sqrt(8) = 2.8 a factor
