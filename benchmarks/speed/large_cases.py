"""What is timed on an accelerator: networks of the papers, their batches, and PyTorch's forms. Plain values."""

from __future__ import annotations

import dataclasses
from typing import Any

from benchmarks.speed.cases import CASES, Case

_SMALL_DIT = {"width": 32, "depth": 2, "heads": 2, "num_classes": 10}
_ADM_64 = {  # jaxdiff.networks.adm(64), written out, with eps alone for its output
    "image_size": 64,
    "in_channels": 3,
    "width": 192,
    "multipliers": (1, 2, 3, 4),
    "blocks": 3,
    "attention_resolutions": (32, 16, 8),
    "head_width": 64,
    "num_classes": 1000,
    "null_class": False,
    "dropout": 0.1,
    "scale_shift": True,
    "residual_resampling": True,
    "downsample_padding": "symmetric",
    "time_order": "cos_sin",
    "time_shift": 0.0,
    "norm_eps": 1e-5,
}
_SMALL_ADM = {"image_size": 16, "width": 16, "multipliers": (1, 2), "blocks": 1, "attention_resolutions": (8,)}
_SMALL_ADM |= {"head_width": 8, "num_classes": 10}


def _dit(width: int, depth: int, heads: int) -> Case:
    fields: dict[str, Any] = {"in_channels": 4, "patch": 2, "width": width, "depth": depth, "heads": heads}
    return Case("dit", fields | {"num_classes": 1000}, (32, 32, 4), _SMALL_DIT, 8)


@dataclasses.dataclass(frozen=True)
class Large:
    """A network and how it is run on an accelerator.

    Args:
      case: the network.
      batch: images a training step; halved as long as they do not fit.
      throughput: images a call of the sampler.
      forms: of PyTorch to try, best known first (`benchmarks.speed.torch_side`, `device_torch`).
      utilization: least share of the measured peak in training that the project asks for.
    """

    case: Case
    batch: int
    throughput: int
    forms: tuple[str, ...]
    utilization: float | None = None


DIT_FORMS, UNET_FORMS = ("compile",), ("compile channels_last",)
LARGE = {  # in the order of importance
    "dit_xl2": Large(_dit(1152, 28, 16), 64, 64, DIT_FORMS, utilization=0.55),
    "unet": Large(CASES["unet"], 256, 256, UNET_FORMS),
    "dit_s2": Large(CASES["dit_s2"], 256, 256, DIT_FORMS),
    "adm_64": Large(Case("unet", _ADM_64, (64, 64, 3), _SMALL_ADM, 16), 32, 32, UNET_FORMS),
    "dit_b2": Large(_dit(768, 12, 12), 128, 128, DIT_FORMS),
    "dit_l2": Large(_dit(1024, 24, 16), 64, 64, DIT_FORMS),
}
PARITY = ("dit_s2", "unet_quarter")  # of `CASES`: checked against PyTorch, parameter for parameter
EVERY = CASES | {name: large.case for name, large in LARGE.items()}
