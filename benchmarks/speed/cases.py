"""What is timed: networks by their fields, and one training's numbers. Plain values, for both processes."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

CHAIN = 1000  # steps of the discrete chain, betas from 1e-4 to 0.02 (Ho et al. 2020)
LR, CLIP, DECAY = 2e-4, 1.0, 0.9999  # of AdamW, of the gradient's global norm, of the running average
EVALUATIONS = 10  # of the DDIM sampler
PARITY_BATCH, PARITY_STEPS = 4, 3
AS_IT_COMES = "JAXDIFF_BENCHMARK_AS_IT_COMES"
"""Environment variable of a JAX process that is not to be set up as jaxdiff's programs are."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A network and its images.

    Args:
      network: which of jaxdiff's.
      fields: of its configuration, but ``dtype``.
      shape: of one image, (H, W, C).
      small: what ``--quick`` changes of the fields.
      small_side: the images' side then.
    """

    network: Literal["unet", "dit"]
    fields: dict[str, Any]
    shape: tuple[int, int, int]
    small: dict[str, Any]
    small_side: int

    def of(self, quick: bool, dropout: float | None) -> Case:
        """The case as it is run: small or not, and at another rate of dropout where one is given."""
        fields = self.fields | (self.small if quick else {})
        fields |= {} if dropout is None else {"dropout": dropout}
        side = self.small_side if quick else self.shape[0]
        return dataclasses.replace(self, fields=fields, shape=(side, side, self.shape[2]))


_DDPM = {  # jaxdiff.networks.ddpm_cifar10, written out
    "image_size": 32,
    "in_channels": 3,
    "width": 128,
    "multipliers": (1, 2, 2, 2),
    "blocks": 2,
    "attention_resolutions": (16,),
    "dropout": 0.1,
}
_SMALL_UNET = {"image_size": 16, "width": 16, "multipliers": (1, 2), "blocks": 1, "attention_resolutions": (8,)}

CASES = {
    "unet": Case("unet", _DDPM, (32, 32, 3), _SMALL_UNET, 16),
    "unet_quarter": Case("unet", _DDPM | {"width": 32}, (32, 32, 3), _SMALL_UNET | {"width": 8}, 16),
    "dit_s2": Case(
        "dit",
        {"in_channels": 4, "patch": 2, "width": 384, "depth": 12, "heads": 6, "num_classes": 1000},
        (32, 32, 4),
        {"width": 32, "depth": 2, "heads": 2, "num_classes": 10},
        8,
    ),
}
