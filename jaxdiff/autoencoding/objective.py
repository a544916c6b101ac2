"""The objective of an autoencoder, with a critic where one is asked for (Rombach et al. 2022, appendix G).

    nll   = r exp(-s) + s,   r = pixels + perceptual                s a learned log-variance, or 0               (1)
    L     = nll + beta KL/D  (or the codebook's loss)  + a lambda generator                                      (2)
    L_C   = a critic                                                a: 0 before the step `critic_start`          (3)

The terms are those of `jaxdiff.autoencoding.losses`. LDM sums (1) and KL over an image and here everything is divided
by its number of values D, so that figures do not depend on the size; the minimum is the same, and so is Adam's path.

L + L_C is differentiated at once, in one forward pass. In (2) the critic's weights are constants, in (3) the
reconstruction is: so each network has the gradient of its own loss alone. lambda needs the gradient of (2)'s last term
at the reconstruction; that gradient itself then stands for the term, and the critic is walked back once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff.autoencoding.losses import (
    Distance,
    Features,
    adaptive_weight,
    codebook_loss,
    critic_loss,
    generator_loss,
    kl_divergence,
    perceptual,
    perplexity,
    pixels,
)
from jaxdiff.broadcast import mean_features, sum_features
from jaxdiff.loss import Context
from jaxdiff.networks.autoencoder import Autoencoder
from jaxdiff.networks.functional import Networks, functional
from jaxdiff.noise import sample_keys, white_noise
from jaxdiff.record import record
from jaxdiff.spec import Specs

AUTOENCODER, CRITIC, SCALE = "autoencoder", "critic", "scale"
"""Names of the networks that are trained together."""


@record
class Draws:
    """What is random in a batch, and the batch.

    Attributes:
      x: images ``(B, H, W, C)`` in [-1, 1].
      keys: of the latents' noise, one a sample ``(B,)``.
    """

    x: Array
    keys: Array


class Terms(NamedTuple):
    """What the objective says of each sample.

    Attributes:
      loss: L + L_C, ``(B,)``.
      parts: what is logged, ``(B,)`` each by name.
      usage: how often each entry of the codebook was taken, ``(B, entries)``; None without one.
    """

    loss: Array
    parts: dict[str, Array]
    usage: Array | None = None


@dataclass(frozen=True)
class LogVariance:
    """The network of one number: s of equation (1)."""

    @property
    def cond(self) -> Specs:
        """It is conditioned on nothing."""
        return {}

    def init(self, key: Array) -> dict[str, Array]:
        """It starts at 0."""
        del key
        return {"log_variance": jnp.zeros(())}


@dataclass(frozen=True)
class AutoencoderLoss:
    """What an autoencoder is trained by; the defaults are L1 and a slight KL.

    Args:
      distance: between pixels: "l1" or "l2".
      kl: beta, weight of the KL divergence of an image; without effect on a codebook.
      commitment: weight of the latents' pull to their entries; without effect on a KL autoencoder.
      perceptual: weight of the perceptual term, where there are features.
      features: images in [-1, 1] -> a list of features ``(B, h, w, c)``: a frozen dataclass with a ``__call__``, or
        weights among `Context.frozen` by the name "features"; None: no such term.
      log_variance: learn s of equation (1).
      adversarial: weight of the generator's term, times the adaptive one; needs a critic.
      critic_start: step from which the critic learns and is heard.

    Raises:
      ValueError: a number out of its range.

    >>> AutoencoderLoss(kl=-1.0)
    Traceback (most recent call last):
    ...
    ValueError: kl is -1.0; it must be finite and at least 0
    """

    distance: Distance = "l1"
    kl: float = 1e-6
    commitment: float = 0.25
    perceptual: float = 1.0
    features: Any = None
    log_variance: bool = False
    adversarial: float = 0.5
    critic_start: int = 0

    def __post_init__(self) -> None:
        if self.distance not in get_args(Distance):
            raise ValueError(f"distance is {self.distance!r}; it must be one of {', '.join(get_args(Distance))}")
        for name in ("kl", "commitment", "perceptual", "adversarial", "critic_start"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} is {value}; it must be finite and at least 0")
        if self.features is not None and not callable(self.features):
            raise ValueError(f"features is a function of images, got {self.features!r}")

    def networks(self, autoencoder: Any, critic: Any = None) -> Networks:
        """The networks that are trained together, of their configurations."""
        nets: list[tuple[str, Any]] = [(AUTOENCODER, Autoencoder(autoencoder))]
        if critic is not None:
            nets.append((CRITIC, functional(critic)))
        if self.log_variance:
            nets.append((SCALE, LogVariance()))
        return Networks(tuple(nets))

    def init(self) -> tuple[()]:
        """Nothing is remembered of earlier batches."""
        return ()

    def draw(self, key: Array, batch: Mapping[str, Array], history: Any = (), context: Context = Context()) -> Draws:
        """A key for each sample's latents; noise is drawn where their shape is known."""
        del history, context
        return Draws(batch["x"], sample_keys(key, 0, batch["x"].shape[0]))

    def terms(
        self, net: Networks, params: Mapping[str, Any], draws: Draws, context: Context = Context(), key: Any = None
    ) -> Terms:
        """Equations (1) to (3) for each sample of a batch."""
        del key  # there is no dropout
        autoencoder: Any = net[AUTOENCODER]
        weights, x = params[AUTOENCODER], draws.x
        mean, log_variance = autoencoder.moments(weights, x)
        usage, parts = None, dict[str, Array]()
        if log_variance is None:
            found = autoencoder.quantise(weights, mean)
            z, latent = found.z, codebook_loss(mean, found.entry, self.commitment)
            count = autoencoder.build.entries
            usage = jax.vmap(lambda code: jnp.bincount(code.ravel(), length=count))(found.code).astype(jnp.float32)
            parts["codebook"] = latent
        else:
            noise = white_noise(draws.keys, mean.shape[1:], mean.dtype)
            z, divergence = mean + jnp.exp(0.5 * log_variance) * noise, kl_divergence(mean, log_variance)
            latent = self.kl * divergence / math.prod(x.shape[1:])
            parts["kl"] = divergence
        features = autoencoder.features(weights, z)
        image = autoencoder.finish(weights, features)

        scale = params[SCALE]["log_variance"] if self.log_variance else jnp.zeros(())
        seen: Features | None = context.frozen.get("features", self.features)

        def nll(image: Array) -> Array:  # (1)
            distance = pixels(x, image, self.distance)
            if seen is not None:
                distance = distance + self.perceptual * perceptual(x, image, seen)
            return distance * jnp.exp(-scale) + scale

        own = nll(image)
        loss = own + latent  # (2)
        mse = mean_features(jnp.square(x - image))
        parts |= {"nll": own, "psnr": 10 * jnp.log10(4.0 / jnp.maximum(mse, 1e-10))}
        if CRITIC in dict(net.nets):
            judge, held = net[CRITIC].module(params[CRITIC]), net[CRITIC].module(jax.lax.stop_gradient(params[CRITIC]))
            generator, back = jax.vjp(lambda image: jnp.mean(generator_loss(held(image))), image)
            pull = back(jnp.ones_like(generator))[0]  # its gradient at the image; the mean's 1/B is within
            pull_of_nll = jax.grad(lambda image: jnp.mean(nll(image)))(image)
            _, at_last = jax.vjp(lambda kernel: autoencoder.finish(with_last(weights, kernel), features), last(weights))
            balance = adaptive_weight(at_last(pull_of_nll)[0], at_last(pull)[0])
            active = (jnp.asarray(context.step) >= self.critic_start).astype(jnp.float32)
            weight = active * self.adversarial * balance
            # The mean over samples has the gradient weight * pull at the image, and the value of the generator's term.
            stand_in = x.shape[0] * sum_features(jax.lax.stop_gradient(weight * pull) * image)
            value = jax.lax.stop_gradient(weight * generator - stand_in)
            judged = critic_loss(judge(x), judge(jax.lax.stop_gradient(image)))
            loss = loss + stand_in + value + active * judged  # (3)
            alike = jnp.ones_like(judged)
            parts |= {"critic": judged, "generator": generator * alike, "adaptive_weight": balance * alike}
        return Terms(loss, parts, usage)

    def update(self, history: Any, draws: Any, terms: Any) -> Any:
        """Nothing is remembered."""
        del draws, terms
        return history

    def figures(self, draws: Draws, terms: Terms) -> dict[str, Array]:
        """What is logged of a step, means over the batch; of a codebook also how it is used by the batch."""
        del draws
        made = {name: jnp.mean(part) for name, part in terms.parts.items()}
        if terms.usage is not None:
            used = terms.usage.sum(0)
            made |= {"perplexity": perplexity(used), "entries_used": jnp.mean((used > 0).astype(jnp.float32))}
        return made


def last(params: Mapping[str, Any]) -> Array:
    """The kernel of an autoencoder's last convolution."""
    kernel: Array = params["decoder"]["conv_out"]["kernel"]
    return kernel


def with_last(params: Mapping[str, Any], kernel: Array) -> dict[str, Any]:
    """An autoencoder's parameters with another kernel of the last convolution."""
    decoder = params["decoder"]
    return {**params, "decoder": {**decoder, "conv_out": {**decoder["conv_out"], "kernel": kernel}}}
