"""A published pipeline as one model: `model_index.json`, and a folder for each of its parts.

The scheduler's configuration says the process and what the network predicts, for our samplers
(`jaxdiff.pretrained.schedulers.processes`), and the steps of diffusers (`jaxdiff.pretrained.schedulers.classes`).
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxdiff.codecs import Images
from jaxdiff.codecs.latents import LatentImages
from jaxdiff.data.clip_files import END, MERGES, VOCABULARY, padding_token
from jaxdiff.denoiser import NetworkDenoiser
from jaxdiff.model import Model
from jaxdiff.networks.text import T5
from jaxdiff.parameterization import LearnedVariance
from jaxdiff.pretrained.control import Folders, control_folders, with_controls
from jaxdiff.pretrained.errors import PretrainedError, path_of
from jaxdiff.pretrained.fields import Fields
from jaxdiff.pretrained.kinds import (
    KINDS,
    branch_of,
    class_of,
    index_of,
    join_of,
    negative_of,
    part_of,
    parts_of,
    scheduler_of,
)
from jaxdiff.pretrained.layouts import autoencoder_kl
from jaxdiff.pretrained.layouts.families import Loaded, load_network
from jaxdiff.pretrained.layouts.single_file import read_single_file
from jaxdiff.pretrained.model import Pretrained, sized
from jaxdiff.pretrained.origin import Origin, found, licence_of
from jaxdiff.pretrained.prompts import Branch, Prompts
from jaxdiff.pretrained.schedulers.processes import process_of


def load_pipeline(
    folder: str | os.PathLike[str],
    *,
    variant: str | None = None,
    dtype: str | None = "float32",
    shardings: Callable[[Any], Any] | None = None,
    length: int | None = None,
    control: Folders = None,
    tokenizer: str | os.PathLike[str] | None = None,
    prediction: str | None = None,
    flax_numerics: bool = False,
) -> Pretrained:
    """A model from a folder of diffusers, or from one file of Stable Diffusion 1, 2 or XL in its authors' layout.

    Args:
      folder: that holds `model_index.json`; the Hub's repository ``hf:OWNER/NAME``; or a file of safetensors.
      variant: which weights: of a folder which files, see `load_network`; of one file ``"ema"``, the averaged ones.
      dtype, shardings: of all networks: see `load_network`.
      length: ids of T5's texts; None: as published.
      control: the folder of a ControlNet that is added to the pipeline, or folders by name. A pipeline's own are there.
      tokenizer: of one file, which has none: the folder of CLIP's `vocab.json` and `merges.txt`.
      prediction: of one file: see `jaxdiff.pretrained.read_single_file`.
      flax_numerics: of all networks: see `load_network`.

    Raises:
      PretrainedError: a folder, a class or a part that cannot be read.
    """
    folder = found(folder, variant)
    load = functools.partial(
        load_network, variant=variant, dtype=dtype, shardings=shardings, flax_numerics=flax_numerics
    )
    if folder.is_file():
        if flax_numerics:
            raise PretrainedError(f"{folder}: a single file was never Flax's: leave flax_numerics out")
        words = _words(folder, tokenizer)
        one = read_single_file(folder, prediction=prediction, variant=variant, dtype=dtype, shardings=shardings)
        if END in one.padding.values() and (token := padding_token(words)) != END:
            raise PretrainedError(
                f"tokenizer: {words} pads with {token!r}, expected {END!r}: give Stable Diffusion 1's"
            )
        tokenizers: dict[str, tuple[Path, str | None]] = {each: (words, pad) for each, pad in one.padding.items()}
        index, scheduler, parts = one.index, Fields(one.scheduler, str(folder)), dict(one.parts)
    else:
        for option, value in (("tokenizer", tokenizer), ("prediction", prediction)):
            if value is not None:
                raise PretrainedError(f"{folder}: {option}={value!r} is for a single file; a folder has its own")
        index = index_of(folder)
        kind, there = KINDS[class_of(index)], parts_of(index)
        # What can be refused before weights are read
        part_of(folder / kind.network, text=kind.join is not None)
        if "vae" in there:
            part_of(folder / "vae")
        scheduler = scheduler_of(folder)
        process_of(Fields(scheduler.values, scheduler.where))
        text = [each for each in kind.text if each[0] in there]
        there_is_t5 = any(isinstance(part_of(folder / encoder)[2].config, T5) for encoder, _ in text)
        if length is not None and (type(length) is not int or not 2 <= length <= 4096 or not there_is_t5):
            why = "expected a whole number from 2 to 4096" if there_is_t5 else "which is of T5's texts: leave it out"
            raise PretrainedError(f"{folder}: length is {length!r}, {why}")
        for encoder, tokens in text:
            branch_of(folder / tokens, class_of(index), part_of(folder / encoder)[2].config, length)
        parts = {kind.network: load(folder / kind.network)}
        parts |= {encoder: load(folder / encoder) for encoder, _ in text}
        if "vae" in there:
            parts["vae"] = load(folder / "vae")
        tokenizers = {encoder: (folder / each, None) for encoder, each in text}
    controls = {each: load(place) for each, place in control_folders(folder, index, control).items()}
    return _assembled(index, scheduler, parts, controls, tokenizers, folder, length)


def _assembled(
    index: Mapping[str, Any],
    scheduler: Fields,
    parts: dict[str, Loaded],
    controls: Mapping[str, Loaded],
    tokenizers: Mapping[str, tuple[Path, str | None]],
    folder: Path,
    length: int | None,
) -> Pretrained:
    """The model of its parts, and of each text encoder's tokenizer: its folder and the token that pads."""
    name = class_of(index)
    kind, network = KINDS[name], parts[KINDS[name].network]
    whole = with_controls(network, controls, str(folder))
    process, parameterization, defaults = process_of(scheduler)
    if network.net.build.out_channels == 2 * network.net.build.in_channels:  # strict steps leave the variance out
        parameterization = LearnedVariance(base=parameterization)
    encoders: dict[str, Any] = {}
    if kind.join is not None:
        tokens: Any = network.net.cond["text"]
        join = join_of(name, width=int(tokens["tokens"].shape[-1]), length=length or kind.length)
        branches = _branches(name, tokenizers, parts, length)
        _check_states(network, branches, join, str(folder))
        encoders["text"] = Prompts(branches, join)
    model = Model(
        NetworkDenoiser(whole.net, whole.params, process, parameterization),
        _codec(network, parts.get("vae"), str(folder)),
        dataclasses.replace(defaults, guide=kind.guide, negative=negative_of(kind, index)),
        encoders=encoders,
    )
    origin = Origin(folder, name, licence_of(folder if folder.is_dir() else folder.parent))
    return Pretrained(sized(model), scheduler.values, {**parts, **controls}, index, origin, kind.even, kind.told)


def _words(file: Path, tokenizer: str | os.PathLike[str] | None) -> Path:
    """The folder of a tokenizer that is given beside a single file."""
    what = f"a folder with CLIP's {VOCABULARY} and {MERGES}, as the folder tokenizer of Stable Diffusion 1"
    if tokenizer is None:
        raise PretrainedError(f"{file}: a single file has no tokenizer: say tokenizer=FOLDER, {what}")
    folder = path_of(tokenizer, "tokenizer")
    missing = [name for name in (VOCABULARY, MERGES) if not (folder / name).is_file()]
    if missing and not (folder / "tokenizer.json").is_file():
        raise PretrainedError(f"tokenizer: {folder} has no {missing[0]}, expected {what}")
    return folder


def _branches(
    kind: str,
    tokenizers: Mapping[str, tuple[Path, str | None]],
    parts: Mapping[str, Loaded],
    length: int | None,
) -> tuple[Branch, ...]:
    made = []
    for encoder, (folder, padding) in tokenizers.items():
        loaded = parts[encoder]
        file, net, masked = branch_of(folder, kind, loaded.net.config, length, padding)
        made.append(Branch(file, net, loaded.params, masked, encoder.replace("text_encoder", "tokenizer")))
    return tuple(made)


def _check_states(network: Loaded, branches: tuple[Branch, ...], join: Any, where: str) -> None:
    """Refuses text encoders whose states are not what the network takes."""

    def made(params: list[Any]) -> Any:
        ids = [np.zeros((1, each.tokenizer.length), np.int32) for each in branches]
        mask = np.ones((1, 1), np.float32)
        told = zip(branches, params, ids, strict=True)
        states = [
            each.net.apply(one, two, np.ones(two.shape, np.float32) if each.masked else None) for each, one, two in told
        ]
        return join([{**state, "mask": mask} for state in states])

    wanted: Any = network.net.cond["text"]
    try:
        found = jax.eval_shape(made, [each.params for each in branches])
        widths = {
            name: (found[name].shape[-1], spec.shape[-1])
            for name, spec in wanted.items()
            if name in found and name != "mask"
        }
        lacking = [name for name in wanted if name not in found]
    except (KeyError, IndexError, ValueError, TypeError):  # of fewer encoders than the kind joins, or of other ones
        widths, lacking = {}, ["text"]
    if lacking:
        there = ", ".join(each.name.replace("tokenizer", "text_encoder") for each in branches) or "none"
        raise PretrainedError(
            f"{where}: its text encoders ({there}) do not make the {lacking[0]} that its network takes"
        )
    for name, (has, width) in widths.items():
        if width not in (None, has):
            raise PretrainedError(
                f"{where}: its text encoders make {name} of {has} channels, and its network takes {width}: they are of "
                "different models"
            )


def _codec(network: Loaded, vae: Loaded | None, where: str) -> Any:
    config = network.net.build
    size = config.image_size if vae is None else 64
    height, width = Fields(network.fields).sides() or (size, size)
    if vae is None:
        return Images((height, width, config.in_channels))
    channels, factor = config.in_channels, vae.net.factor
    if channels != vae.net.build.channels:
        raise PretrainedError(
            f"{where}: its network is of {channels} channels, and its vae of {vae.net.build.channels}: they are of "
            "different models"
        )
    found = autoencoder_kl.scale(Fields(vae.fields))
    mean, std = (np.full(channels, each, np.float32) for each in (found.shift, 1 / found.factor))
    images = Images((height * factor, width * factor, vae.net.build.in_channels))
    return LatentImages(vae.params, mean, std, images, net=vae.net, shape=(height, width, channels))
