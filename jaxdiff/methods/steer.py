"""Names of rewards that samples are steered by: `jaxdiff.sampling.Steered` around a sampler, by its numbers.

    brightness:40    smoothness:100,particles=8,every=2    contrast:-20,potential=max,every=10

A row takes the sampler and the model's codec, then the numbers; its reward is of pixels in [-1, 1], through the decoder
of a model in latents. To add one is to add a row, ``REWARDS["mine"] = steered_by(mine)``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxdiff.broadcast import flatten, mean_features
from jaxdiff.denoiser import Cond
from jaxdiff.guidance.universal import Loss, on_pixels
from jaxdiff.methods.parser import made
from jaxdiff.sampling import Steered
from jaxdiff.sampling.steered import Potential


def brightness(pixels: Array, cond: Cond | None = None) -> Array:
    """Bright pictures: the mean of all pixels, from -1 to 1."""
    return mean_features(pixels)


def contrast(pixels: Array, cond: Cond | None = None) -> Array:
    """Pictures of much contrast: the deviation of all pixels."""
    flat = flatten(pixels)
    return jnp.sqrt(jnp.square(flat - flat.mean(axis=1, keepdims=True)).mean(axis=1))


def smoothness(pixels: Array, cond: Cond | None = None) -> Array:
    """Smooth pictures: less the mean square of what neighbouring pixels differ by."""
    if pixels.ndim != 4 or min(pixels.shape[1:3]) < 2:
        raise ValueError(f"smoothness is of pictures (B, H, W, C), at least 2x2 pixels, got {pixels.shape}")
    rows, columns = (mean_features(jnp.square(jnp.diff(pixels, axis=axis))) for axis in (1, 2))
    return -rows - columns


def steered_by(reward: Loss) -> Callable[..., Steered]:
    """A row for a reward ``(pixels, cond) -> (B,)``. The first paragraph of its docstring is the row's."""

    def row(
        sampler: Any,
        codec: Any,
        scale: float = 1.0,
        particles: int = 16,
        potential: Potential = "difference",
        threshold: float = 0.5,
        every: int = 1,
    ) -> Steered:
        return Steered(
            sampler,
            on_pixels(codec, reward),
            scale,
            particles,
            potential=potential,
            threshold=threshold,
            every=every,
        )

    row.__doc__ = reward.__doc__
    return row


REWARDS: dict[str, Callable[..., Steered]] = {
    "brightness": steered_by(brightness),
    "contrast": steered_by(contrast),
    "smoothness": steered_by(smoothness),
}
"""Rewards: rows take the sampler and the codec, then the numbers of `Steered`."""


def parse_steered(text: str, sampler: Any, codec: Any) -> Steered:
    """A sampler steered by a reward by its name and numbers.

    Args:
      text: such as ``"brightness:40,particles=8"``.
      sampler: whose steps are taken; it draws noise.
      codec: of the data.

    Raises:
      ValueError: an unknown reward or number, one out of its range, or a sampler that draws no noise.

    >>> from jaxdiff import DDPM, VP
    >>> from jaxdiff.codecs import Images
    >>> steered = parse_steered("brightness:40,particles=8", DDPM(VP()), Images((8, 8, 1)))
    >>> steered.scale, steered.particles, steered.potential
    (40.0, 8, 'difference')
    >>> parse_steered("brigtness:40", DDPM(VP()), Images((8, 8, 1)))
    Traceback (most recent call last):
    ...
    ValueError: there is no reward 'brigtness'; did you mean 'brightness'? (known: brightness, contrast, smoothness)
    """
    if not isinstance(text, str):
        raise ValueError(
            f"steer is a reward by its name and numbers; for an object, sampler=Steered(...): got {text!r}"
        )
    return made(REWARDS, text, "reward", sampler=sampler, codec=codec)
