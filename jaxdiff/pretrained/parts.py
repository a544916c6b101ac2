"""Published networks as parts of a training: an autoencoder or a text encoder that stays frozen, weights to start with.

A path is a network's folder, or that of a whole model, in which each part has a folder by its name.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import jax
from flax import traverse_util

from jaxdiff.pretrained.errors import PretrainedError
from jaxdiff.pretrained.fields import Fields
from jaxdiff.pretrained.files.reading import load_params
from jaxdiff.pretrained.layouts import autoencoder_kl
from jaxdiff.pretrained.layouts.families import CONFIG, Loaded, described, load_network, open_weights
from jaxdiff.pretrained.origin import INDEX

DENOISERS = ("unet", "transformer")
"""Folders of the network that predicts."""
_FREE = ("image_size", "dropout", "dtype", "remat", "conditions", "null_class")
_MAY_DIFFER = ("in_channels", "out_channels", "num_classes")  # where weights are taken in part


@dataclasses.dataclass(frozen=True)
class Part:
    """What a published folder says of a network, in the place of a run's configuration.

    Args:
      network: its configuration; of a text encoder its pure functions.
      mean, std: of an autoencoder's latents, each of one channel.
    """

    network: Any
    mean: float = 0.0
    std: float = 1.0


def is_published_part(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder holds a published model, or a published network."""
    folder = Path(folder)
    if os.path.isfile(folder / INDEX):
        return True
    try:
        found = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # whoever reads it as a run's says what is wrong
        return False
    return isinstance(found, dict) and ("_class_name" in found or "architectures" in found)


def part_folder(folder: Path, *names: str) -> Path:
    """The folder of a part: in a whole model the first of some names, else the folder itself.

    Raises:
      PretrainedError: a model without such a part.
    """
    if not (folder / INDEX).is_file():
        return folder
    for name in names:
        if (folder / name).is_dir():
            return folder / name
    raise PretrainedError(f"{folder}: this model has no {' or '.join(names)}")


def read_part(folder: Path, *names: str) -> Part:
    """What a folder says of a part.

    Raises:
      PretrainedError: as `load_network`.
    """
    fields, _, net = described(part_folder(folder, *names))
    if fields.values.get("_class_name") == "AutoencoderKL":
        scale = autoencoder_kl.scale(Fields(fields.values, fields.where))
        return Part(net.build, scale.shift, 1 / scale.factor)
    return Part(net if hasattr(net, "config") else net.build)


def load_part(folder: Path, shardings: Any, *names: str) -> Loaded:
    """A part with its weights, float32.

    Args:
      folder: see `part_folder`.
      shardings: as `load_network`.
      names: see `part_folder`.
    """
    return load_network(part_folder(folder, *names), shardings=shardings)


def denoiser_params(folder: Path, template: Any, network: Any = None, *, partial: bool = False) -> Any:
    """The weights of the network that predicts, or those of its parts that a template names.

    Args:
      folder: of a model, or of the network.
      template: shapes and shardings of the parameters, or of some of them.
      network: the configuration that they are for; None: it is not looked at.
      partial: take the leaves that fit by name and shape; the others stay `jax.ShapeDtypeStruct`.

    Raises:
      PretrainedError: as `load_network`; or a network of another configuration.
    """
    folder = part_folder(folder, *DENOISERS)
    fields, family, net = described(folder)
    if network is not None:
        _refuse_other(folder, net.build, network, partial)
    flat = traverse_util.flatten_dict(template, sep="/")
    whole = {path: leaf.sharding or None for path, leaf in flat.items()}
    shardings = traverse_util.unflatten_dict(whole, sep="/") if all(whole.values()) else None
    some = partial or len(flat) < len(jax.tree.leaves(jax.eval_shape(net.init, jax.random.key(0))))
    tensors, naming = open_weights(folder, fields, family)
    return load_params(
        template,
        naming,
        tensors,
        shardings=shardings,
        where=str(folder),
        missing=partial,
        extra=some,
    )


def _refuse_other(folder: Path, published: Any, network: Any, partial: bool) -> None:
    """Refuses a configuration that computes something else of the same weights."""
    if type(network) is not type(published):
        raise PretrainedError(f"{folder} is a {type(published).__name__}, and the network a {type(network).__name__}")
    free = (*_FREE, *(_MAY_DIFFER if partial else ()))
    for each in dataclasses.fields(published):
        theirs, ours = getattr(published, each.name), getattr(network, each.name)
        if each.name not in free and theirs != ours and not (each.name in _MAY_DIFFER and None in (theirs, ours)):
            raise PretrainedError(f"{folder}: network.{each.name} is {theirs!r} there, and {ours!r} here")
