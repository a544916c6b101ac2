"""What one published file of a paper's own repository holds, as a value."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from jaxdiff.model import Defaults
from jaxdiff.parameterization import Parameterization
from jaxdiff.pretrained.files.naming import Naming
from jaxdiff.process import Process


@dataclasses.dataclass(frozen=True)
class Original:
    """How the file of one published model is read.

    Args:
      network: the configuration of its network, with changes: ``(**changes) -> configuration``.
      naming: the names of its tensors, of that configuration.
      process: makes the process that it was trained on.
      parameterization: what its network is told and returns.
      defaults: how its authors sample.
      licence: of the weights.
      enlarges: how much wider its pictures are than the small ones, ``"low"``, that it is told; None: it is told none.
      mean, std: of each channel of an autoencoder's latents, where it is a model of latents: x0 = (z - mean)/std.
      pixels: of such an autoencoder, the one of pixels in [-1, 1]; None: itself.
    """

    network: Callable[..., Any]
    naming: Callable[[Any], Naming]
    process: Callable[[], Process]
    parameterization: Parameterization
    defaults: Defaults
    licence: str
    enlarges: int | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    pixels: Callable[[Any], Any] | None = None
