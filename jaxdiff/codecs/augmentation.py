"""What is done to the small picture that a super-resolution network is conditioned on: conditioning augmentation.

Ho et al. 2021, "Cascaded Diffusion Models for High Fidelity Image Generation", https://arxiv.org/abs/2106.15282,
section 4. In a cascade the small picture is a sample of another network, not the small copy of a real one, and each
stage repeats the errors of the one before. A network that was trained on small copies c with something done to them
does not trust their last detail. With s the noise level, eps ~ N(0, I), and G_b a filter of 3 x 3 pixels,

    c' = sqrt(1 - s^2) c + s eps,                s ~ U(0, s_max) in training, and told                (1)
    c' = G_b c,   g_i ~ exp(-i^2/(2 b^2)),       b ~ U(b_min, b_max), for half of the samples         (2)

(1) is a forward process at its noise level s: of VP, sigma = s. The network is told s, so that a number found after the
training is enough, and costs none (their non-truncated augmentation, section 4.2): c' at s of a finished sample has the
law that the training's has, if c has. Imagen has it in all its stages (Saharia et al. 2022,
https://arxiv.org/abs/2205.11487, section 2.4). (2), with b from 0.4 to 0.6, is of the stages to 128 pixels and more,
is not told, and is left out in sampling.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.broadcast import expand
from jaxdiff.noise import salted_keys, white_noise

LOW, LEVEL = "low", "low_level"
"""The conditions: the small picture, and the level of its noise."""
AUGMENT = 0x61756720  # "aug "
_LEVEL, _NOISE, _WHICH, _WIDTH = 0, 1, 2, 3  # what a sample's key is salted with


def drawn_levels(keys: Array, most: ArrayLike) -> Array:
    """s of (1) for each sample, ``(B,)``, uniform below ``most``.

    >>> from jaxdiff.noise import sample_keys
    >>> s = drawn_levels(sample_keys(jax.random.key(0), 0, 100), 0.5)
    >>> s.shape, bool((s >= 0).all() and (s < 0.5).all())
    ((100,), True)
    """
    levels: Array = jnp.asarray(most) * jax.vmap(jax.random.uniform)(salted_keys(keys, AUGMENT, _LEVEL))
    return levels


def noised_copy(low: Array, level: ArrayLike, keys: Array) -> Array:
    """Equation (1).

    Args:
      low: c ``(B, h, w, C)``.
      level: s, from 0 to 1, ``()`` or ``(B,)``; data. 0 gives c itself.
      keys: ``(B,)``, one a sample.

    >>> from jaxdiff.noise import sample_keys
    >>> low = jnp.ones((2, 4, 4, 1))
    >>> bool((noised_copy(low, 0.0, sample_keys(jax.random.key(0), 0, 2)) == low).all())
    True
    """
    s = expand(jnp.asarray(level, low.dtype), low)
    return jnp.sqrt(1 - jnp.square(s)) * low + s * white_noise(salted_keys(keys, AUGMENT, _NOISE), low.shape[1:])


def blurred_half(low: Array, widths: tuple[float, float], keys: Array) -> Array:
    """Equation (2): half of the samples, each by a filter of its own.

    Args:
      low: c ``(B, h, w, C)``.
      widths: b_min and b_max, pixels of c.
      keys: ``(B,)``, one a sample.

    >>> from jaxdiff.noise import sample_keys
    >>> low = jnp.ones((2, 4, 4, 1))  # which a filter leaves as it is
    >>> bool(jnp.allclose(blurred_half(low, (0.4, 0.6), sample_keys(jax.random.key(0), 0, 2)), low))
    True
    """
    which = jax.vmap(jax.random.bernoulli)(salted_keys(keys, AUGMENT, _WHICH))
    share = jax.vmap(jax.random.uniform)(salted_keys(keys, AUGMENT, _WIDTH))
    b = widths[0] + (widths[1] - widths[0]) * share
    return jnp.where(expand(which, low), blurred(low, b), low)


def blurred(low: Array, width: ArrayLike) -> Array:
    """G_b c: a Gaussian filter of 3 x 3 pixels; beyond its border the picture is its mirror image.

    Args:
      low: c ``(B, h, w, C)``.
      width: b, pixels, positive, ``()`` or ``(B,)``.

    >>> line = jnp.array([0.0, 0.0, 1.0, 0.0, 0.0]).reshape(1, 1, 5, 1)
    >>> [round(x, 4) for x in blurred(line, 0.5).ravel().tolist()]
    [0.0, 0.1065, 0.787, 0.1065, 0.0]
    """
    beside = jnp.exp(-0.5 / jnp.square(jnp.asarray(width, low.dtype)))  # g_1/g_0
    g = expand(beside / (1 + 2 * beside), low)
    for axis in (1, 2):
        if low.shape[axis] > 1:  # a line has no neighbours
            wide = jnp.pad(low, [(1, 1) if each == axis else (0, 0) for each in range(4)], mode="reflect")
            n = low.shape[axis]
            before, after = (jax.lax.slice_in_dim(wide, start, start + n, axis=axis) for start in (0, 2))
            low = (1 - 2 * g) * low + g * (before + after)
    return low
