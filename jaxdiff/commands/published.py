"""What a command line asks of a published model: how it is loaded, and what its call is given."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from jaxdiff.commands.pictures import read_mask, read_picture
from jaxdiff.config import ConfigError
from jaxdiff.networks.control import PICTURE
from jaxdiff.plan import stored_shape
from jaxdiff.pretrained import Pretrained, load_embeddings, load_lora
from jaxdiff.runs.reading import load_published
from jaxdiff.runs.run import Run

OF_CONTROL = ("control_scale", "control_start", "control_end", "guess_mode")
"""Options of a ControlNet's picture."""
CALL = ("prompt_weights", "size", "strict", "clip_skip", *OF_CONTROL)
"""Options that a published model's `sample` has and a run's has not, by the same names."""
CONTROL = ("control", "control_scale")
"""Options of what has a ControlNet, a run or a published model."""
PUBLISHED = (*CALL, "control", "controlnet", "lora", "embeddings", "tokenizer")
"""Options of published models; of runs too are those in `CONTROL` and the size alone."""
OF_RUNS = ("step", "average", "trust", "compiled", "tiles")
"""Options of runs alone."""

Options = Any
"""`jaxdiff.commands.sample.Options`."""


def given(options: Options, names: tuple[str, ...]) -> dict[str, Any]:
    """The options of some names that differ from what they are by default."""
    usual = {each.name: each.default for each in dataclasses.fields(options)}
    return {name: value for name in names if (value := getattr(options, name)) != usual[name]}


def load_model(options: Options, path: Path, mesh: Mesh) -> Pretrained:
    """The published model, with the LoRAs, the embeddings and the ControlNet that the options name.

    Raises:
      ConfigError: an option that is of runs, or a weight that is no number.
    """
    if taken := list(given(options, OF_RUNS)):
        raise ConfigError(f"--{taken[0]} is of runs, and {path} is a published model: leave it out")
    if options.control is None and (said := list(given(options, OF_CONTROL))):
        raise ConfigError(f"--{said[0]} is of the picture in --control: give it too")
    weighted, named = map(_weighted, options.lora), map(_named, options.embeddings)
    loras = [(load_lora(file), weight) for file, weight in weighted]
    words = [load_embeddings(file, word) for file, word in named]
    loaded = {} if options.tokenizer is None else {"tokenizer": options.tokenizer}
    model = load_published(path, mesh=mesh, dtype=options.dtype or "float32", control=options.controlnet, **loaded)
    if options.control is not None and PICTURE not in model.model.conditions:
        raise ConfigError("--control: this model has no ControlNet: name the folder of one, --controlnet FOLDER")
    for lora, weight in loras:
        model = model.with_lora(lora, weight)
    for embeddings in words:
        model = model.with_embeddings(embeddings)
    return model


def _weighted(text: str) -> tuple[Path, float]:
    """The file and the weight of ``FILE`` or ``FILE:WEIGHT``.

    >>> _weighted("hearts.safetensors:0.8")
    (PosixPath('hearts.safetensors'), 0.8)
    """
    if Path(text).expanduser().exists() or ":" not in text:
        return Path(text), 1.0
    file, _, weight = text.rpartition(":")
    try:
        number = float(weight)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ConfigError(f"--lora: {text!r} is FILE or FILE:WEIGHT, and {weight!r} is no number such as 0.8")
    return Path(file), number


def _named(text: str) -> tuple[Path, str | None]:
    """The file and the word of ``FILE`` or ``FILE:WORD``; None: the file says it.

    >>> _named("cat.safetensors:<cat-toy>")
    (PosixPath('cat.safetensors'), '<cat-toy>')
    """
    if Path(text).expanduser().exists() or ":" not in text:
        return Path(text), None
    file, _, word = text.rpartition(":")
    if not word:
        raise ConfigError(f"--embeddings: {text!r} is FILE or FILE:WORD, and has no word after its colon")
    return Path(file), word


def pictures(run: Run | Pretrained, options: Options) -> dict[str, Any]:
    """The pictures that the options name, at the model's size: what samples begin as, its mask, and a published
    ControlNet's; a run's is a condition (`jaxdiff.commands.conditions`)."""
    shape = stored_shape(run.codec, run.shape)
    if options.size is not None:
        shape = (*options.size, *shape[2:])
    found: dict[str, Any] = {}
    if options.image is not None:
        found["image"] = read_picture(options.image, shape, "--image")
    if options.mask is not None:
        found["mask"] = read_mask(options.mask, shape, "--mask")
    if options.control is not None and isinstance(run, Pretrained):
        found["control"] = read_picture(options.control, shape, "--control")
    return found
