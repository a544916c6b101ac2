"""What an autoencoder is trained by, each as a pure function of a batch with one number a sample.

For an image x of D values, its reconstruction x^, latents of mean m and variance v, and entries e of a codebook:

    pixels       mean |x - x^|,  or of squares                                                                  (1)
    KL           1/2 sum (m^2 + v - 1 - log v)                        Kingma & Welling 2014, appendix B          (2)
    codebook     mean (sg(m) - e)^2 + beta mean (m - sg(e))^2         van den Oord et al. 2017, equation 3       (3)
    perceptual   sum over layers of mean over pixels of sum over channels (f(x)/|f(x)| - f(x^)/|f(x^)|)^2
                                                                      Zhang et al. 2018, equation 1, weights 1   (4)
    generator    -mean C(x^)                                                                                     (5)
    critic       1/2 mean max(0, 1 - C(x)) + 1/2 mean max(0, 1 + C(x^))   Lim & Ye 2017; hinge                   (6)

sg is a constant to the derivative. (5) and the rest are weighed by their pull at the decoder's last layer W (Esser et
al. 2021, equation 7), with G the gradient with respect to W,

    lambda = min(|G nll| / (|G generator| + 1e-4), 1e4)                                                          (7)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from jaxdiff.broadcast import mean_features, sum_features

Distance = Literal["l1", "l2"]
Features = Callable[[Array], Sequence[Array]]
"""Images ``(B, H, W, C)`` in [-1, 1] -> features ``(B, h, w, c)`` of several layers: any pure function."""

Batch = Float[Array, " batch"]


def pixels(x: Float[Array, "batch ..."], reconstruction: Float[Array, "batch ..."], distance: Distance) -> Batch:
    """Equation (1), mean over the values of each image.

    >>> pixels(jnp.zeros((1, 2)), jnp.array([[1.0, 3.0]]), "l1").tolist()
    [2.0]
    """
    error = x - reconstruction
    return mean_features(jnp.abs(error) if distance == "l1" else jnp.square(error))


def kl_divergence(mean: Float[Array, "batch ..."], log_variance: Float[Array, "batch ..."]) -> Batch:
    """Equation (2): from N(mean, exp(log_variance)) to N(0, 1), in nats, summed over the latents of each image.

    >>> kl_divergence(jnp.ones((1, 2)), jnp.zeros((1, 2))).tolist()
    [1.0]
    """
    return 0.5 * sum_features(jnp.square(mean) + jnp.exp(log_variance) - 1.0 - log_variance)


def codebook_loss(latents: Float[Array, "batch ..."], entries: Float[Array, "batch ..."], beta: float) -> Batch:
    """Equation (3): the entries are pulled to the latents, and the latents, by beta, to the entries.

    >>> codebook_loss(jnp.zeros((1, 2)), jnp.ones((1, 2)), 0.25).tolist()
    [1.25]
    """
    pulled = mean_features(jnp.square(jax.lax.stop_gradient(latents) - entries))
    return pulled + beta * mean_features(jnp.square(latents - jax.lax.stop_gradient(entries)))


def perceptual(x: Array, reconstruction: Array, features: Features) -> Batch:
    """Equation (4).

    >>> perceptual(jnp.ones((1, 2, 2, 1)), -jnp.ones((1, 2, 2, 1)), lambda x: [x]).tolist()
    [4.0]
    """

    def unit(f: Array) -> Array:
        return f / (jnp.sqrt(jnp.square(f).sum(-1, keepdims=True) + 1e-20) + 1e-10)

    pairs = zip(features(x), features(reconstruction), strict=True)
    return sum(
        (jnp.square(unit(a) - unit(b)).sum(-1).mean((1, 2)) for a, b in pairs), start=jnp.zeros(x.shape[0], x.dtype)
    )


def generator_loss(fake: Float[Array, "batch h w"]) -> Batch:
    """Equation (5), of the critic's judgement of reconstructions."""
    return -mean_features(fake)


def critic_loss(real: Float[Array, "batch h w"], fake: Float[Array, "batch h w"]) -> Batch:
    """Equation (6).

    >>> critic_loss(jnp.array([[[3.0]], [[0.0]]]), jnp.array([[[-3.0]], [[0.5]]])).tolist()
    [0.0, 1.25]
    """
    return 0.5 * (mean_features(jax.nn.relu(1.0 - real)) + mean_features(jax.nn.relu(1.0 + fake)))


def adaptive_weight(of_nll: Array, of_generator: Array) -> Float[Array, ""]:
    """Equation (7), of two gradients with respect to the same weights; a constant to the derivative.

    >>> adaptive_weight(jnp.array([3.0, 4.0]), jnp.array([0.0, 2.0])).round(3).item()
    2.5
    """
    ratio = jnp.linalg.norm(of_nll.ravel()) / (jnp.linalg.norm(of_generator.ravel()) + 1e-4)
    return jax.lax.stop_gradient(jnp.clip(ratio, 0.0, 1e4))


def perplexity(usage: Float[Array, " entries"]) -> Float[Array, ""]:
    """exp of the entropy of how often entries are used: their number where all are used alike, 1 where one is.

    Args:
      usage: counts or shares.

    >>> perplexity(jnp.array([2.0, 2.0, 0.0])).round(4).item()
    2.0
    """
    share = usage / usage.sum()
    return jnp.exp(-jnp.where(share > 0, share * jnp.log(jnp.where(share > 0, share, 1.0)), 0.0).sum())
