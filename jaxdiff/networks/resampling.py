"""Twice or half the resolution by a separable filter (Zhang 2019, "Making Convolutional Networks Shift-Invariant
Again", https://arxiv.org/abs/1904.11486; as Karras et al. have it in EDM and EDM2).

With f an even number L of taps, normalised to sum 1, p = L/2 - 1, and x = 0 outside of the image, along each axis

    half:   y_i = sum_k f_k x_{2i + k - p}                                                               (1)
    twice:  y_j = 2 sum_i f_{j + p - 2i} x_i                                                             (2)

(1, 1) is the mean of each 2x2 square, and nearest neighbour.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import jax.numpy as jnp
from jax import Array

from jaxdiff.networks.layers import downsample, upsample

Taps = tuple[int, ...]
Direction = Literal["up", "down"]


def halved(image_size: int, multipliers: Sequence[int], attention_resolutions: Sequence[int]) -> list[int]:
    """The resolutions of a network's levels, each half of the one before.

    Raises:
      ValueError: a size that cannot be halved so often, a multiplier below 1, or attention at no level's resolution.

    >>> halved(32, (1, 2, 2), (16,))
    [32, 16, 8]
    """
    levels = [image_size // 2**level for level in range(len(multipliers))]
    if not levels or image_size % 2 ** (len(levels) - 1) or min(multipliers) < 1:
        raise ValueError(
            f"image_size={image_size} must be divisible by 2^(levels - 1), and multipliers={multipliers} at least 1"
        )
    if unknown := set(attention_resolutions) - set(levels):
        raise ValueError(f"attention_resolutions={sorted(unknown)} are no level's; the levels have {levels}")
    return levels


def check_taps(taps: Taps) -> None:
    """Refuses a filter that is none.

    >>> check_taps((1, 2, 1))
    Traceback (most recent call last):
    ...
    ValueError: taps=(1, 2, 1) must be an even number of numbers whose sum is not 0
    """
    if not taps or len(taps) % 2 or not sum(taps):
        raise ValueError(f"taps={taps} must be an even number of numbers whose sum is not 0")


def resample(x: Array, taps: Taps, direction: Direction | None) -> Array:
    """Equation (1) or (2) along height and width.

    Args:
      x: ``(B, H, W, C)``.
      taps: f, before it is normalised; an even number of them.
      direction: None: x itself.

    Returns:
      ``(B, H/2, W/2, C)`` or ``(B, 2H, 2W, C)``.

    >>> resample(jnp.ones((1, 4, 4, 1)), (1, 3, 3, 1), "down")[0, :, :, 0].tolist()  # zeros lie around the image
    [[0.765625, 0.765625], [0.765625, 0.765625]]
    """
    if direction is None:
        return x
    if taps == (1, 1):
        return upsample(x) if direction == "up" else downsample(x)
    along = _twice if direction == "up" else half
    pad = len(taps) // 2 - 1 if direction == "down" else len(taps) // 2
    for axis in (1, 2):
        edges = [(pad, pad) if each == axis else (0, 0) for each in range(4)]
        x = along(jnp.pad(x, edges), taps, axis)
    return x


def half(x: Array, taps: Taps, axis: int) -> Array:
    """Equation (1) along one axis, of x with its border: p more on either side.

    >>> half(jnp.array([0.0, 1, 2, 3, 0, 0]), (1, 1, 1, 1), 0).tolist()
    [1.5, 1.25]
    """
    size = (x.shape[axis] - len(taps)) // 2 + 1
    parts = [_every(x, axis, k, 2, size) * (tap / sum(taps)) for k, tap in enumerate(taps)]
    return sum(parts[1:], start=parts[0])


def _twice(x: Array, taps: Taps, axis: int) -> Array:
    """Equation (2) along one axis, of x with p + 1 zeros on either side."""
    reach = len(taps) // 2
    size, p = x.shape[axis] - 2 * reach, reach - 1
    phases = []
    for phase in (0, 1):  # j = 2m + phase: tap k = phase + p - 2d for the neighbour i = m + d
        pairs = [(d, phase + p - 2 * d) for d in range(-reach, reach + 1) if 0 <= phase + p - 2 * d < len(taps)]
        parts = [_every(x, axis, reach + d, 1, size) * (2 * taps[k] / sum(taps)) for d, k in pairs]
        phases.append(sum(parts[1:], start=parts[0]))
    both = jnp.stack(phases, axis=axis + 1)
    return both.reshape(*x.shape[:axis], 2 * size, *x.shape[axis + 1 :])


def _every(x: Array, axis: int, start: int, step: int, size: int) -> Array:
    index = [slice(None)] * x.ndim
    index[axis] = slice(start, start + step * (size - 1) + 1, step)
    return x[tuple(index)]
