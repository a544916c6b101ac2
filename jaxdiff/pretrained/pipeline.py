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
from jaxdiff.data.clip_files import padding_token
from jaxdiff.data.tokenizers import TokenizerFile
from jaxdiff.denoiser import NetworkDenoiser
from jaxdiff.model import Model
from jaxdiff.networks.text import T5, TextEncoder
from jaxdiff.parameterization import LearnedVariance
from jaxdiff.pretrained import autoencoder_kl, prompts
from jaxdiff.pretrained.control import Folders, control_folders, with_controls
from jaxdiff.pretrained.errors import PretrainedError
from jaxdiff.pretrained.families import Loaded, load_network
from jaxdiff.pretrained.fields import Fields, read_fields
from jaxdiff.pretrained.model import SCHEDULER, Pretrained, sized
from jaxdiff.pretrained.origin import INDEX, Origin, found, licence_of
from jaxdiff.pretrained.processes import process_of
from jaxdiff.pretrained.prompts import Branch, Prompts


@dataclasses.dataclass(frozen=True)
class Kind:
    """How the pipelines of one class are put together.

    Args:
      network: the folder of the denoiser.
      text: the folders of text encoders, each with that of its tokenizer.
      join: makes what the network is told of their states; None: no text.
      states: changes of the encoders' configurations: which state is taken.
      length: ids of T5's texts.
      guide: guidance where nothing else is said.
      even: whether a flow's scheduler is given noise levels evenly from 1 to 1/n.
    """

    network: str = "unet"
    text: tuple[tuple[str, str], ...] = ()
    join: Callable[..., dict[str, Any]] | None = None
    states: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    length: int = 77
    guide: tuple[str, ...] = ()
    even: bool = False


_FIRST, _SECOND, _THIRD = (
    ("text_encoder", "tokenizer"),
    ("text_encoder_2", "tokenizer_2"),
    ("text_encoder_3", "tokenizer_3"),
)
_BEFORE_LAST = {"skip": 1, "final_norm": False}
_SD = Kind(text=(_FIRST,), join=prompts.stable_diffusion, states={"pooled": False}, guide=("cfg:7.5",))
_XL = Kind(text=(_FIRST, _SECOND), join=prompts.stable_diffusion_xl, states=_BEFORE_LAST, guide=("cfg:5",))
_SD3 = Kind(
    network="transformer",
    text=(_FIRST, _SECOND, _THIRD),
    join=prompts.stable_diffusion_3,
    states=_BEFORE_LAST,
    length=256,
    guide=("cfg:7",),
)
_FLUX = Kind(network="transformer", text=(_FIRST, _SECOND), join=prompts.flux, length=512, even=True)
_PIXART = Kind(network="transformer", text=(_FIRST,), join=prompts.pixart, length=300, guide=("cfg:4.5",))
KINDS: dict[str, Kind] = {
    "StableDiffusionPipeline": _SD,
    "StableDiffusionInpaintPipeline": _SD,
    "LatentConsistencyModelPipeline": dataclasses.replace(_SD, guide=()),
    "StableDiffusionXLPipeline": _XL,
    "StableDiffusionXLImg2ImgPipeline": _XL,
    "StableDiffusion3Pipeline": _SD3,
    "FluxPipeline": _FLUX,
    "PixArtSigmaPipeline": _PIXART,
    "PixArtAlphaPipeline": dataclasses.replace(_PIXART, length=120),
    "StableDiffusionControlNetPipeline": _SD,
    "StableDiffusionXLControlNetPipeline": _XL,
    "DiTPipeline": Kind(network="transformer", guide=("cfg:4",)),
    "DDPMPipeline": Kind(),
    "DDIMPipeline": Kind(),
}
"""Classes of pipelines that are read."""


def _class_of(index: Mapping[str, Any]) -> str:
    return str(index.get("_class_name")).removeprefix("Flax")


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
    name = _class_of(index.values)
    if name not in KINDS:
        raise PretrainedError(f"{folder / INDEX}: {name} is not known; jaxdiff reads {', '.join(KINDS)}")
    kind = KINDS[name]
    load = functools.partial(load_network, variant=variant, dtype=dtype, shardings=shardings)
    there = {part for part, value in index.values.items() if isinstance(value, list) and value and value[0] is not None}
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
        encoders["text"] = Prompts(_branches(folder, kind, text, parts, length), _join(kind, network, length))
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


def _join(kind: Kind, network: Loaded, length: int | None) -> Any:
    if kind.join is not prompts.stable_diffusion_3:
        return kind.join
    text = network.net.cond["text"]
    width = int(text["tokens"].shape[-1])
    return functools.partial(prompts.stable_diffusion_3, width=width, length=length or kind.length)


def _branches(
    folder: Path, kind: Kind, text: list[tuple[str, str]], parts: Mapping[str, Loaded], length: int | None
) -> tuple[Branch, ...]:
    made = []
    for encoder, tokenizer in text:
        loaded = parts[encoder]
        config = loaded.net.config
        if isinstance(config, T5):
            ids, padding, masked = length or kind.length, 0, kind.join is prompts.pixart
        else:
            config = dataclasses.replace(config, **kind.states)
            ids, masked = config.length, False
            padding = _id_of(folder / tokenizer, padding_token(folder / tokenizer), ids)
        file = TokenizerFile(str(folder / tokenizer), ids, padding)
        file.encode([""])  # reads it
        made.append(Branch(file, TextEncoder(config), loaded.params, masked, tokenizer))
    return tuple(made)


def _id_of(folder: Path, token: str, length: int) -> int:
    """The id of a special token: what stands between begin and end."""
    ids = TokenizerFile(str(folder), length).ids(token)
    return ids[1] if len(ids) > 2 else ids[-1]


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
