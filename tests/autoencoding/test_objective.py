"""The objective: each network by its own loss alone, the adaptive weight by its definition, and what is learned."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.autoencoding import AutoencoderLoss, perplexity
from jaxdiff.autoencoding.objective import last, with_last
from jaxdiff.loss import Context
from jaxdiff.networks import KLAutoencoder, PatchCritic, VQAutoencoder

SMALL: dict[str, Any] = {"in_channels": 1, "channels": 2, "width": 8, "multipliers": (1, 2), "blocks": 1}
KL = KLAutoencoder(**SMALL)
CRITIC = PatchCritic(in_channels=1, width=8, layers=1)
X = jax.random.uniform(jax.random.key(5), (4, 8, 8, 1), minval=-1, maxval=1)


def features(x: Any) -> list[Any]:
    return [x, jnp.square(x[:, ::2, ::2])]


def made(loss: AutoencoderLoss, build: Any = KL, critic: Any = None) -> Any:
    net = loss.networks(build, critic)

    @jax.jit
    def init(key: Any) -> Any:
        params = net.init(key)
        return jax.tree.map(lambda leaf: leaf + 0.05 * jax.random.normal(jax.random.key(leaf.size), leaf.shape), params)

    return net, init(jax.random.key(0)), loss.draw(jax.random.key(1), {"x": X})


def reconstruction(net: Any, params: Any, draws: Any) -> Any:
    """x^ of equation (1) of jaxdiff.networks.autoencoder, each sample's noise by its own key; and the moments."""
    mean, log_variance = net.moments(params, draws.x)
    noise = jnp.stack([jax.random.normal(key, mean.shape[1:]) for key in (draws.keys[n] for n in range(len(X)))])
    return net.decode(params, mean + jnp.exp(log_variance / 2) * noise), mean, log_variance


def test_two_networks_in_one_gradient_each_by_its_own_loss() -> None:
    loss = AutoencoderLoss(kl=0.3, features=features, perceptual=0.7, adversarial=0.8, critic_start=5)
    net, params, draws = made(loss, critic=CRITIC)
    autoencoder = net["autoencoder"]

    @jax.jit
    def found(params: Any, step: Any) -> Any:
        def total(params: Any) -> Any:
            terms = loss.terms(net, params, draws, Context(step))
            return jnp.mean(terms.loss), terms.parts["adaptive_weight"]

        return jax.value_and_grad(total, has_aux=True)(params)

    def nll(image: Any) -> Any:
        def unit(f: Any) -> Any:
            return f / (jnp.sqrt(jnp.square(f).sum(-1, keepdims=True) + 1e-20) + 1e-10)

        seen = zip(features(X), features(image), strict=True)
        return jnp.abs(X - image).mean() + 0.7 * sum(jnp.square(unit(a) - unit(b)).sum(-1).mean() for a, b in seen)

    @jax.jit
    def explicit(params: Any) -> Any:
        """The adaptive weight by two gradients through the whole decoder; then each network's loss by itself."""
        weights = params["autoencoder"]

        def generator(image: Any) -> Any:
            return -net["critic"].module(params["critic"])(image).mean()

        def pull(term: Any) -> Any:
            image = lambda kernel: reconstruction(autoencoder, with_last(weights, kernel), draws)[0]  # noqa: E731
            return jnp.linalg.norm(jax.grad(lambda kernel: term(image(kernel)))(last(weights)).ravel())

        balance = pull(nll) / (pull(generator) + 1e-4)

        def plain(weights: Any) -> Any:
            image, mean, log_variance = reconstruction(autoencoder, weights, draws)
            kl = 0.5 * (mean**2 + jnp.exp(log_variance) - 1 - log_variance).sum((1, 2, 3)).mean()
            return nll(image) + 0.3 * kl / 64

        def heard(weights: Any) -> Any:
            return plain(weights) + 0.8 * balance * generator(reconstruction(autoencoder, weights, draws)[0])

        def hinge(critic: Any) -> Any:
            judge, image = net["critic"].module(critic), reconstruction(autoencoder, weights, draws)[0]
            return 0.5 * (jax.nn.relu(1 - judge(X)).mean() + jax.nn.relu(1 + judge(image)).mean())

        both = jax.value_and_grad(heard)(weights), jax.value_and_grad(hinge)(params["critic"])
        return balance, jax.value_and_grad(plain)(weights), *both

    def same(a: Any, b: Any) -> None:
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-3, atol=2e-6), a, b)

    balance, (plain, by_plain), (heard, by_heard), (hinge, by_hinge) = explicit(params)
    (value, weight), gradient = found(params, 5)
    np.testing.assert_allclose(weight, np.full(4, balance), rtol=1e-4)
    np.testing.assert_allclose(value, heard + hinge, rtol=1e-5)
    same(gradient, {"autoencoder": by_heard, "critic": by_hinge})
    # Before its start the critic is neither heard nor trained
    (value, _), gradient = found(params, 4)
    np.testing.assert_allclose(value, plain, rtol=1e-5)
    same(gradient["autoencoder"], by_plain)
    assert not any(leaf.any() for leaf in jax.tree.leaves(gradient["critic"]))


@pytest.mark.nightly
def test_the_learned_scale_is_least_at_the_logarithm_of_the_error() -> None:
    """d/ds of r exp(-s) + s is zero at s = ln r, the mean over the batch."""
    loss = AutoencoderLoss(kl=0.0, log_variance=True)
    net, params, draws = made(loss)
    error = jnp.mean(jax.jit(lambda p: AutoencoderLoss(kl=0.0).terms(net, p, draws).loss)(params))

    def total(s: Any) -> Any:
        return jnp.mean(loss.terms(net, params | {"scale": {"log_variance": s}}, draws).loss)

    slope_at = jax.jit(jax.value_and_grad(total))
    value, slope = slope_at(jnp.log(error))
    assert abs(float(slope)) < 1e-6 and float(value) == pytest.approx(1 + math.log(float(error)), rel=1e-5)
    assert float(slope_at(jnp.zeros(()))[1]) == pytest.approx(1 - float(error), rel=1e-5)


@pytest.mark.nightly
def test_a_codebook_is_trained_and_its_use_is_told() -> None:
    loss = AutoencoderLoss()
    net, params, draws = made(loss, VQAutoencoder(**SMALL, entries=16))
    autoencoder = net["autoencoder"]

    @jax.jit
    def found(params: Any) -> Any:
        def total(params: Any) -> Any:
            terms = loss.terms(net, params, draws)
            return jnp.mean(terms.loss), loss.figures(draws, terms)

        weights = params["autoencoder"]
        codes = autoencoder.quantise(weights, autoencoder.moments(weights, X)[0]).code
        return jax.value_and_grad(total, has_aux=True)(params), codes

    ((value, figures), gradient), codes = found(params)
    counts = np.bincount(np.asarray(codes).ravel(), minlength=16)
    assert float(figures["entries_used"]) == (counts > 0).mean()
    assert float(figures["perplexity"]) == pytest.approx(float(perplexity(jnp.asarray(counts))), rel=1e-5)
    moved = np.asarray(jnp.abs(gradient["autoencoder"]["codebook"]).sum(1) > 0)
    np.testing.assert_array_equal(moved, counts > 0)  # entries that nothing is near to stay
    assert np.isfinite(float(value)) and all(leaf.any() for leaf in jax.tree.leaves(gradient["autoencoder"]["encoder"]))


def test_a_feature_network_with_weights_is_given_and_not_closed_over() -> None:
    loss = AutoencoderLoss(kl=0.0)
    net, params, draws = made(loss)

    @jax.jit
    def losses(params: Any) -> Any:
        plain = loss.terms(net, params, draws).loss
        heard = loss.terms(net, params, draws, Context(frozen={"features": features})).loss
        return plain, heard, AutoencoderLoss(kl=0.0, features=features).terms(net, params, draws).loss

    plain, heard, own = losses(params)
    np.testing.assert_allclose(heard, own)
    assert (heard > plain).all()


def test_refusals() -> None:
    for change, message in (
        ({"distance": "l3"}, "distance is 'l3'"),
        ({"kl": math.nan}, "kl is nan"),
        ({"critic_start": -1}, "critic_start is -1"),
        ({"features": "vgg"}, "features is a function of images"),
    ):
        with pytest.raises(ValueError, match=message):
            AutoencoderLoss(**change)
