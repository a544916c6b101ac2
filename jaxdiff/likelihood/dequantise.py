"""From grey levels to real numbers, and from densities to bits per dimension.

Images are stored as b in 0..255 and a network sees x = b/127.5 - 1 (`jaxdiff.codecs.Images`): 256
values, a step of 2/255 apart. A density p of real numbers says something of them through a dequantisation q(y | x)
and a decoder P(x | y) (Theis et al. 2016; Ho et al. 2019, "Flow++", equation 12):

    ln P(x) >= E_{y ~ q(. | x)}[ln p(y) + ln P(x | y) - ln q(y | x)].                                (1)

With y in x's own interval, y = x + step (u - 1/2) and u in [0, 1)^D of density q(u | x), the decoder is 1 there and
dy/du = step, so that in bits per dimension

    bpd = -(ln p(y) - ln q(u | x))/(D ln 2) - log2(step),   -log2(2/255) = log2(127.5) = 6.994.      (2)

u uniform has ln q = 0. The interval is centred on x, the value the network was trained on. Song et al. 2021's code
takes y = 2 (b + u)/256 - 1 instead (step 2/256, 7 bits), which moves a black pixel up and a white one down by half a
step against what a network that learned from b/127.5 - 1 has seen.

A process that ends at t_min, where sigma/alpha = rho > 0, models x + rho eps. Equation (1) with q(y | x) = N(x, rho^2)
and the decoder that is its Bayes inverse under equal odds,

    P(x | y) = N(y; x, rho^2) / sum_v N(y; v, rho^2)   over the 256 values v, pixel by pixel,        (3)

is then the bound of Kingma et al. 2021 (equation 8, with their decoder), in which nothing is taken for x_0 that is not.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.broadcast import expand, sum_features
from jaxdiff.noise import salted_keys, white_noise
from jaxdiff.record import field, record

DEQUANTISE = 0x64657175  # "dequ"; see `jaxdiff.noise`


def bits_per_dim(log_likelihood: Array, x: Array) -> Array:
    """Bits per dimension from natural logarithms: -log_likelihood/(D ln 2), D the number of values in one sample of x.

    >>> print(bits_per_dim(jnp.array([-4 * 2.0794415]), jnp.zeros((1, 2, 2))))
    [3.]
    """
    return -log_likelihood / (math.prod(x.shape[1:]) * math.log(2.0))


def grey_step(levels: int = 256) -> float:
    """The distance of neighbouring values in [-1, 1]: 2/(levels - 1)."""
    if levels < 2:
        raise ValueError(f"levels is at least 2, got {levels}")
    return 2.0 / (levels - 1)


def decoder_log_probability(x: Array, y: Array, ratio: ArrayLike, levels: int = 256) -> Array:
    """ln P(x | y) in nats, elementwise: equation (3).

    Args:
      x: data on ``levels`` equally spaced values in [-1, 1].
      y: like x, about x + ratio eps.
      ratio: sigma/alpha, positive; ``()`` or one a sample ``(B,)``.
      levels: number of values.
    """
    step, precision = grey_step(levels), expand(0.5 / jnp.square(jnp.asarray(ratio, x.dtype)), x)
    nearest = jnp.clip(jnp.round((y + 1.0) / step), 0, levels - 1) * step - 1.0

    def exponent(value: Array) -> Array:
        """Of a value's Gaussian over the nearest value's, without cancellation; at most 0 but for rounding."""
        return -precision * (nearest - value) * (2.0 * y - value - nearest)

    def add(k: Array, total: Array) -> Array:
        return total + jnp.exp(exponent((k * step - 1.0).astype(x.dtype)))

    return exponent(x) - jnp.log(jax.lax.fori_loop(0, levels, add, jnp.zeros_like(y)))


@record
class Dequantiser(abc.ABC):
    """q(y | x) and P(x | y) of equation (1); abstract. A learned one is a subclass whose parameters are fields."""

    @abc.abstractmethod
    def draw(self, keys: Array, x: Array, ratio: ArrayLike) -> tuple[Array, Array]:
        """A draw, and what it is worth.

        Args:
          keys: ``(B,)``, one a sample.
          x: grey levels in [-1, 1], ``(B, ...)``.
          ratio: sigma/alpha where the model's process ends.

        Returns:
          y like x, and ln P(x | y) - ln q(y | x), ``(B,)`` in nats.
        """


@record
class UniformDequantiser(Dequantiser):
    """u uniform on [0, 1), equation (2).

    Args:
      levels: number of grey levels; static.

    >>> from jaxdiff.noise import sample_keys
    >>> x = jnp.full((1, 2), -1.0)
    >>> y, worth = UniformDequantiser().draw(sample_keys(jax.random.key(0), 0, 1), x, 0.0)
    >>> bool((jnp.abs(y - x) <= 1 / 255).all()), f"{bits_per_dim(worth, x)[0]:.3f}"
    (True, '6.994')
    """

    levels: int = field(default=256, pytree_node=False)

    def draw(self, keys: Array, x: Array, ratio: ArrayLike) -> tuple[Array, Array]:
        return VariationalDequantiser(_uniform, self.levels).draw(keys, x, ratio)


def _uniform(keys: Array, x: Array) -> tuple[Array, Array]:
    u = jax.vmap(lambda key: jax.random.uniform(key, x.shape[1:], x.dtype))(keys)
    return u, jnp.zeros(x.shape[:1], x.dtype)


@record
class VariationalDequantiser(Dequantiser):
    """u from a density q(u | x) of your own on [0, 1)^D, equation (2) (Ho et al. 2019, Flow++, section 3.1).

    Args:
      density: ``(keys, x) -> (u, ln q(u | x))``, u like x in [0, 1) and the logarithm ``(B,)`` in nats. A record with
        parameters as fields is data of a `jax.jit`; a plain function belongs into a static place.
      levels: number of grey levels; static.
    """

    density: Callable[[Array, Array], tuple[Array, Array]]
    levels: int = field(default=256, pytree_node=False)

    def draw(self, keys: Array, x: Array, ratio: ArrayLike) -> tuple[Array, Array]:
        step = grey_step(self.levels)
        u, log_density = self.density(salted_keys(keys, DEQUANTISE), x)
        return x + step * (u - 0.5), math.prod(x.shape[1:]) * math.log(step) - log_density


@record
class GaussianDequantiser(Dequantiser):
    """y = x + ratio eps with the decoder (3): the noise that the process itself ends with, and no other.

    Args:
      levels: number of grey levels; static.
    """

    levels: int = field(default=256, pytree_node=False)

    def draw(self, keys: Array, x: Array, ratio: ArrayLike) -> tuple[Array, Array]:
        scale = jnp.asarray(ratio, x.dtype)
        eps = white_noise(salted_keys(keys, DEQUANTISE), x.shape[1:], x.dtype)
        y = x + expand(scale, x) * eps
        normaliser = expand(jnp.log(scale) + 0.5 * math.log(2.0 * math.pi), x)
        log_density = -0.5 * jnp.square(eps) - normaliser
        return y, sum_features(decoder_log_probability(x, y, ratio, self.levels) - log_density)
