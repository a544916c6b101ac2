"""The networks whose published folders are read and written, by the names of their classes.

folder/config.json                              the class and its fields
folder/diffusion_pytorch_model.safetensors      the weights; ``model.safetensors`` of transformers
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxdiff.networks import functional
from jaxdiff.networks.autoencoder import Autoencoder
from jaxdiff.networks.control import Residuals
from jaxdiff.networks.text import TextEncoder
from jaxdiff.pretrained.errors import PretrainedError, as_pretrained_error, path_of
from jaxdiff.pretrained.fields import Fields, read_fields, short
from jaxdiff.pretrained.files.naming import Naming
from jaxdiff.pretrained.files.npz import open_tensors
from jaxdiff.pretrained.files.reading import load_params
from jaxdiff.pretrained.files.safetensors import open_safetensors, write_safetensors
from jaxdiff.pretrained.files.tensors import Tensors
from jaxdiff.pretrained.files.writing import Published
from jaxdiff.pretrained.layouts import autoencoder_kl, controlnet, text, transformers, unet
from jaxdiff.pretrained.layouts.flax import flax_naming, open_flax, plain_fields
from jaxdiff.pretrained.origin import found

CONFIG = "config.json"
DIFFUSERS, TRANSFORMERS = "diffusion_pytorch_model", "model"


@dataclass(frozen=True)
class Family:
    """How the networks of one class are read.

    Args:
      network: the configuration here of a published one.
      naming: the names of its tensors.
      pure: makes pure functions of the configuration.
      stem: of the files of weights.
    """

    network: Callable[[Fields], Any]
    naming: Callable[[Fields], Naming]
    pure: Callable[[Any], Any] = functional
    stem: str = DIFFUSERS


FAMILIES: dict[str, Family] = {
    "UNet2DModel": Family(unet.unet_2d, unet.naming),
    "UNet2DConditionModel": Family(unet.unet_2d_condition, unet.naming),
    "ControlNetModel": Family(controlnet.controlnet, controlnet.naming, Residuals),
    "AutoencoderKL": Family(autoencoder_kl.autoencoder_kl, autoencoder_kl.naming, Autoencoder),
    "DiTTransformer2DModel": Family(transformers.dit, transformers.dit_naming),
    "PixArtTransformer2DModel": Family(transformers.pixart, transformers.pixart_naming),
    "SD3Transformer2DModel": Family(transformers.sd3, transformers.sd3_naming),
    "FluxTransformer2DModel": Family(transformers.flux, transformers.flux_naming),
    "CLIPTextModel": Family(text.clip_text, text.clip_naming, TextEncoder, TRANSFORMERS),
    "CLIPTextModelWithProjection": Family(text.clip_text, text.clip_naming, TextEncoder, TRANSFORMERS),
    "T5EncoderModel": Family(text.t5, text.t5_naming, TextEncoder, TRANSFORMERS),
}
"""Published classes by name."""


class Loaded(NamedTuple):
    """A published network.

    Attributes:
      net: its pure functions; ``net.build`` or ``net.config`` is its configuration.
      params: its parameters.
      fields: of its `config.json`, with which it is written back.
    """

    net: Any
    params: dict[str, Any]
    fields: Mapping[str, Any]


def load_network(
    folder: str | os.PathLike[str],
    *,
    variant: str | None = None,
    dtype: str | None = "float32",
    shardings: Callable[[Any], Any] | None = None,
    flax_numerics: bool = False,
) -> Loaded:
    """A network from a published folder: diffusers' or transformers', in torch's layout or in Flax's.

    Args:
      folder: that holds its `config.json` and its weights; or the Hub's repository of it, ``hf:OWNER/NAME``.
      variant: of the weights, ``"fp16"``; None: the plain ones, or the only variant there is.
      dtype: of the parameters; None: as they are stored. In bfloat16 all but an autoencoder computes in it too.
      shardings: ``(shapes of the parameters) -> shardings`` of the same tree; None: the first device.
      flax_numerics: compute as the Flax class of diffusers did, which differs a little from torch's (see
        `jaxdiff.pretrained.layouts.flax`).

    Raises:
      PretrainedError: a folder that holds none, a class or a field that jaxdiff does not know, or weights that are
        missing, are damaged or do not fit; one line.
    """
    folder = found(folder, variant)
    fields, family, _ = described(folder, flax_numerics)  # a field is refused before a file is opened
    tensors, naming = open_weights(folder, fields, family, variant)
    return network_of(fields, tensors, naming, dtype=dtype, shardings=shardings, where=str(folder))


def loaded_of(value: Any, what: str) -> Loaded:
    """A network that a person has given.

    Args:
      value: what was given.
      what: the argument, for the message.

    Raises:
      PretrainedError: something else.
    """
    if not isinstance(value, Loaded):
        raise PretrainedError(f"{what}: expected a network by jaxdiff.pretrained.load_network, got {short(value)}")
    return value


def open_weights(folder: Path, fields: Fields, family: Family, variant: str | None = None) -> tuple[Tensors, Naming]:
    """The tensors of a network's folder, and their names: of safetensors, else of Flax, else of NumPy.

    Raises:
      PretrainedError: there are none, or they are damaged.
    """
    naming = family.naming(fields)
    if (tensors := open_safetensors(folder, family.stem, variant)) is not None:
        return tensors, naming
    if variant is None:
        if (flax := open_flax(folder, family.stem)) is not None:
            return flax, flax_naming(naming, of_diffusers=family.stem == DIFFUSERS)
        if (folder / f"{family.stem}.npz").is_file():
            return open_tensors(folder / f"{family.stem}.npz"), naming
    raise PretrainedError(f"{folder}: there is no {family.stem}.safetensors{_other_weights(folder, family.stem)}")


def described(folder: Path, flax_numerics: bool = False) -> tuple[Fields, Family, Any]:
    """What a folder says of its network: the fields of its configuration, its family, and its pure functions.

    Raises:
      PretrainedError: as `load_network`, but for the weights.
    """
    if not (folder / CONFIG).is_file():
        why = f"there is no {CONFIG}" if folder.is_dir() else "there is no such folder"
        raise PretrainedError(f"{folder}: {'is a file, expected a folder' if folder.is_file() else why}")
    fields = plain_fields(read_fields(folder / CONFIG), flax_numerics)
    family = family_of(fields)
    with as_pretrained_error(fields.where):
        return fields, family, family.pure(configured(fields))


def network_of(
    fields: Fields,
    tensors: Tensors,
    naming: Naming | None = None,
    *,
    dtype: str | None = "float32",
    shardings: Callable[[Any], Any] | None = None,
    where: str = "",
) -> Loaded:
    """A network of its configuration and its tensors.

    Args:
      fields: of its configuration.
      tensors: its weights.
      naming: their names; None: those of its family.
      dtype, shardings: see `load_network`.
      where: the folder or file, for messages.

    Raises:
      PretrainedError: a class or a field that jaxdiff does not know, or weights that do not fit.
    """
    config = configured(fields)
    if dtype == "bfloat16" and hasattr(config, "dtype"):  # an autoencoder has none, and computes in float32
        config = dataclasses.replace(config, dtype=dtype)
    net = family_of(fields).pure(config)
    with as_pretrained_error(fields.where):
        shapes = jax.eval_shape(net.init, jax.random.key(0))
    spread = None if shardings is None else shardings(shapes)
    naming = family_of(fields).naming(fields) if naming is None else naming
    params = load_params(shapes, naming, tensors, dtype=dtype, shardings=spread, where=where)
    return Loaded(net, params, dict(fields.values))


def write_network(folder: str | os.PathLike[str], loaded: Loaded, *, dtype: str | None = None) -> None:
    """Writes a network as it was published: the folder opens in diffusers or transformers.

    Args:
      folder: is made where it is not there.
      loaded: the network.
      dtype: of the tensors; None: as the parameters have it.

    Raises:
      PretrainedError: a folder that cannot be written.
    """
    folder, fields = path_of(folder, "folder"), Fields(loaded.fields)
    family = family_of(fields)
    tensors = Published(loaded.params, family.naming(fields), dtype=dtype)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_safetensors(folder / f"{family.stem}.safetensors", tensors)
        (folder / CONFIG).write_text(json.dumps(dict(loaded.fields), indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise PretrainedError(f"{folder}: cannot be written ({error.strerror})") from error


def family_of(fields: Fields) -> Family:
    """The family of a configuration.

    Raises:
      PretrainedError: an unknown class.
    """
    name = fields.class_name
    if name is None or name not in FAMILIES:
        kind = "names no class" if name is None else f"is of {short(name)}, which jaxdiff does not know"
        raise PretrainedError(f"{fields.where}: {kind}; it reads {', '.join(FAMILIES)}")
    return FAMILIES[name]


def configured(fields: Fields) -> Any:
    """The configuration here of a published one.

    Raises:
      PretrainedError: a class or a field that jaxdiff does not know.
    """
    with as_pretrained_error(fields.where):  # of a configuration here
        return family_of(fields).network(Fields(fields.values, fields.where))  # which fields were used is noted there


def _other_weights(folder: Path, stem: str) -> str:
    """What else lies there, and what to do."""
    torch = "pytorch_model.bin" if stem == TRANSFORMERS else f"{stem}.bin"
    if (folder / torch).exists():
        return (
            f", but {torch}, a pickle of torch: save it as safetensors with the library that made it, or by "
            f"python -m jaxdiff.pretrained.convert {torch} {stem}.safetensors"
        )
    return ": fetch the weights beside the configuration"
