"""`jaxdiff.save_pretrained`: a model as a folder of diffusers."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

from jaxdiff.codecs import Images
from jaxdiff.launch.errors import ConfigError
from jaxdiff.networks import UNet
from jaxdiff.networks.lora import LoRA
from jaxdiff.pretrained import Loaded, Origin, Pretrained, load_pipeline, save_pipeline
from jaxdiff.pretrained.own import scheduler_fields, unet_fields
from jaxdiff.pretrained.parts import is_published_part
from jaxdiff.runs.run import Run


def save_pretrained(model: Any, path: str | os.PathLike[str], *, dtype: str | None = None) -> None:
    """Writes a model as a folder that ``diffusers.DiffusionPipeline.from_pretrained`` opens and samples from.

    Args:
      model: a published one, from `jaxdiff.load`; or a `Run`: of a published model that was trained further, or of a
        `UNet` on pixels, a `DiscreteVP` and what `UNet2DModel` has fields for, which becomes a `DDPMPipeline`.
      path: a new folder, an empty one, or one that holds such a model, which is replaced.
      dtype: of the weights, ``"float16"``; None: as they are.

    Raises:
      ConfigError: a model that diffusers has no classes for, or a folder that cannot be written.
    """
    if not isinstance(model, Run | Pretrained):
        raise ConfigError(f"save_pretrained takes a model from jaxdiff.load, got {type(model).__name__}")
    save_pipeline(path, model if isinstance(model, Pretrained) else _published(model), dtype=dtype)


def _published(run: Run) -> Pretrained:
    """A run as a published model."""
    codec: Any = run.config.codec
    if getattr(codec, "vectors", 0):
        raise ConfigError(
            f"{run.config.name}: has trained the word {run.config.inversion.word!r} alone, which is a file of its own: "
            "write_embeddings(file, trained_embeddings(run))"
        )
    base = getattr(codec, "path", None)
    net: Any = run.denoise.net
    params = net.merged(run.denoise.params) if isinstance(net, LoRA) else run.denoise.params
    if base is not None and is_published_part(base):
        made = load_pipeline(base)
        network = next(iter(made.parts))
        parts = {**made.parts, network: made.parts[network]._replace(params=params)}
        return dataclasses.replace(made, parts=parts)
    network = run.config.network
    if not isinstance(network, UNet) or not isinstance(run.codec, Images):
        raise ConfigError(
            f"{run.config.name}: diffusers has no class for a run of {type(network).__name__} on "
            f"{type(run.codec).__name__}; a UNet on pixels, or a published model trained further, can be written"
        )
    fields = unet_fields(network)
    scheduler = scheduler_fields(run.process, run.config.parameterization)
    index = {
        "_class_name": "DDPMPipeline",
        "unet": ["diffusers", "UNet2DModel"],
        "scheduler": ["diffusers", "DDPMScheduler"],
    }
    origin = Origin(run.folder or Path(run.config.folder), "DDPMPipeline")
    return Pretrained(run.model, scheduler, {"unet": Loaded(net, params, fields)}, index, origin)
