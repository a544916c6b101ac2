"""A published pipeline as one model: `model_index.json`, and a folder for each of its parts.

The scheduler's configuration says the process and what the network predicts, for our samplers
(`jaxdiff.pretrained.processes`), and the steps of diffusers (`jaxdiff.pretrained.schedulers`).
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxdiff.codecs import Images
from jaxdiff.codecs.latents import LatentImages
from jaxdiff.denoiser import NetworkDenoiser
from jaxdiff.model import Model
from jaxdiff.parameterization import LearnedVariance
from jaxdiff.pretrained import autoencoder_kl
from jaxdiff.pretrained.control import Folders, control_folders, with_controls
from jaxdiff.pretrained.errors import PretrainedError
from jaxdiff.pretrained.families import Loaded, load_network
from jaxdiff.pretrained.fields import Fields, read_fields
from jaxdiff.pretrained.kinds import KINDS, Kind, branch_of, class_of, join_of, parts_of
from jaxdiff.pretrained.model import SCHEDULER, Pretrained, sized
from jaxdiff.pretrained.origin import INDEX, Origin, found, licence_of
from jaxdiff.pretrained.processes import process_of
from jaxdiff.pretrained.prompts import Branch, Prompts


def load_pipeline(
    folder: str | os.PathLike[str],
    *,
    variant: str | None = None,
    dtype: str | None = "float32",
    shardings: Callable[[Any], Any] | None = None,
    length: int | None = None,
    control: Folders = None,
) -> Pretrained:
    """A model from a folder of diffusers.

    Args:
      folder: that holds `model_index.json`; or the Hub's repository ``hf:OWNER/NAME``.
      variant, dtype, shardings: of all networks: see `load_network`.
      length: ids of T5's texts; None: as published.
      control: the folder of a ControlNet that is added to the pipeline, or folders by name. A pipeline's own are there.

    Raises:
      PretrainedError: a folder, a class or a part that cannot be read.
    """
    folder = found(folder, variant)
    if not (folder / INDEX).is_file():
        raise PretrainedError(f"{folder}: there is no {INDEX}")
    index = read_fields(folder / INDEX)
    name = class_of(index.values)
    if name not in KINDS:
        raise PretrainedError(f"{folder / INDEX}: {name} is not known; jaxdiff reads {', '.join(KINDS)}")
    kind = KINDS[name]
    load = functools.partial(load_network, variant=variant, dtype=dtype, shardings=shardings)
    there = parts_of(index.values)
    parts = {kind.network: load(folder / kind.network)}
    text = [each for each in kind.text if each[0] in there]
    parts |= {encoder: load(folder / encoder) for encoder, _ in text}
    if "vae" in there:
        parts["vae"] = load(folder / "vae")
    controls = {each: load(place) for each, place in control_folders(folder, index.values, control).items()}
    parts |= controls
    scheduler = read_fields(folder / SCHEDULER / "scheduler_config.json")
    network = parts[kind.network]
    whole = with_controls(network, controls, str(folder))
    process, parameterization, defaults = process_of(scheduler)
    if network.net.build.out_channels == 2 * network.net.build.in_channels:  # strict steps leave the variance out
        parameterization = LearnedVariance(base=parameterization)
    encoders: dict[str, Any] = {}
    if kind.join is not None:
        tokens: Any = network.net.cond["text"]
        join = join_of(name, width=int(tokens["tokens"].shape[-1]), length=length or kind.length)
        encoders["text"] = Prompts(_branches(folder, name, text, parts, length), join)
    model = Model(
        NetworkDenoiser(whole.net, whole.params, process, parameterization),
        _codec(network, parts.get("vae")),
        dataclasses.replace(defaults, guide=kind.guide, negative=_negative(kind, index.values)),
        encoders=encoders,
    )
    origin = Origin(folder, name, licence_of(folder))
    return Pretrained(sized(model), scheduler.values, parts, index.values, origin, kind.even)


def _negative(kind: Kind, index: Mapping[str, Any]) -> dict[str, Any]:
    """What guidance leads away from: the empty text, and where the pipeline says so zeros in its place."""
    return {} if kind.join is None or index.get("force_zeros_for_empty_prompt", False) else {"text": ""}


def _branches(
    folder: Path, kind: str, text: list[tuple[str, str]], parts: Mapping[str, Loaded], length: int | None
) -> tuple[Branch, ...]:
    made = []
    for encoder, tokenizer in text:
        loaded = parts[encoder]
        file, net, masked = branch_of(folder / tokenizer, kind, loaded.net.config, length)
        made.append(Branch(file, net, loaded.params, masked, tokenizer))
    return tuple(made)


def _codec(network: Loaded, vae: Loaded | None) -> Any:
    config = network.net.build
    size = network.fields.get("sample_size") or (config.image_size if vae is None else 64)
    height, width = (size, size) if isinstance(size, int) else size
    if vae is None:
        return Images((height, width, config.in_channels))
    channels, factor = config.in_channels, vae.net.factor
    found = autoencoder_kl.scale(Fields(vae.fields))
    mean, std = (np.full(channels, each, np.float32) for each in (found.shift, 1 / found.factor))
    images = Images((height * factor, width * factor, vae.net.build.in_channels))
    return LatentImages(vae.params, mean, std, images, net=vae.net, shape=(height, width, channels))
