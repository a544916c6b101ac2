"""A perturbed network for guidance to lead away from: the element's words, made into a denoiser.

The methods are `PAG`, `SEG` and `SLG`; what they do inside of a network is `jaxdiff.networks.perturbed`.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from jaxdiff.denoiser import Denoiser, NetworkDenoiser

Layers = str | int | tuple[int, ...] | None
"""``"mid"``, ``"all"``, a number, several (``"7+8+9"``, ``"7-9"``, ``(7, 8, 9)``), or None: the usual ones."""


def perturbed(plain: Denoiser, name: str, kind: str, layers: Layers, sigma: float = math.inf) -> Denoiser:
    """The plain denoiser with some layers of its network perturbed (`jaxdiff.networks.perturbed`).

    A cache of features stays with the plain network: this one is evaluated in full.

    Args:
      plain: a `jaxdiff.NetworkDenoiser`.
      name: of the element, for messages.
      kind, sigma: what is done to the layers.
      layers: see `chosen`.

    Raises:
      ValueError: no network, or one of which nothing is known.
    """
    change: Any = getattr(getattr(plain, "net", None), "perturbed", None)
    if not isinstance(plain, NetworkDenoiser) or change is None:
        of = plain.net if isinstance(plain, NetworkDenoiser) else plain
        raise ValueError(
            f"{name} perturbs the self-attention of a network made by jaxdiff.networks.functional, got a "
            f"{type(of).__name__}: leave it out"
        )
    return dataclasses.replace(plain, net=change(kind, chosen(layers), sigma), cache=None)


def chosen(layers: Layers) -> tuple[int, ...] | str | None:
    """Layers as `jaxdiff.networks.perturbed.Perturbed` takes them, of what a person writes.

    Args:
      layers: see `Layers`.

    Raises:
      ValueError: anything else.

    >>> chosen("7-9"), chosen("1+5"), chosen(3), chosen("mid")
    ((7, 8, 9), (1, 5), (3,), 'mid')
    >>> chosen("middle")
    Traceback (most recent call last):
    ...
    ValueError: layers are mid, all, or numbers from 0 such as 7+8+9 or 7-9, got 'middle'
    """
    if layers is None or layers in ("mid", "all"):
        return layers
    if isinstance(layers, tuple):
        found = list(layers)
    else:
        found = []
        for part in str(layers).split("+"):
            first, dash, last = part.strip().partition("-")
            if not first.isdecimal() or (dash and not last.isdecimal()):
                raise ValueError(f"layers are mid, all, or numbers from 0 such as 7+8+9 or 7-9, got {layers!r}")
            found += range(int(first), int(last if dash else first) + 1)
    if any(isinstance(layer, bool) or not isinstance(layer, int) or layer < 0 for layer in found) or not found:
        raise ValueError(f"layers are mid, all, or numbers from 0 such as 7+8+9 or 7-9, got {layers!r}")
    return tuple(found)
