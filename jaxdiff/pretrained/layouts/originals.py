"""The models that papers published from repositories of their own, each in one file: read as models that sample.

    model = load_original("64x64_diffusion.safetensors", "adm-64")
    pictures = model.sample(0, 4, {"label": 207})["x"]

Such a file holds tensors and nothing that describes them; so each published model is here by name, with its network,
its process, and how its authors sample. What was trained anew with such a repository is read by the same name and the
fields that differ, ``network={"width": 64}``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxdiff.codecs import Images
from jaxdiff.codecs.arrays import Arrays
from jaxdiff.codecs.latents import LatentImages
from jaxdiff.denoiser import NetworkDenoiser
from jaxdiff.model import Model
from jaxdiff.networks import functional
from jaxdiff.pretrained.errors import PretrainedError, as_pretrained_error, path_of
from jaxdiff.pretrained.files.reading import load_params
from jaxdiff.pretrained.files.safetensors import SafeTensors, write_safetensors
from jaxdiff.pretrained.files.writing import Published
from jaxdiff.pretrained.layouts import edm, edm2, openai
from jaxdiff.pretrained.layouts.families import Loaded, loaded_of
from jaxdiff.pretrained.layouts.presets import Original

ORIGINALS: dict[str, Original] = {**openai.MODELS, **edm.MODELS, **edm2.MODELS}
"""Published models by name."""


def load_original(
    file: str | os.PathLike[str],
    name: str,
    *,
    network: Mapping[str, Any] | None = None,
    autoencoder: Loaded | None = None,
    dtype: str | None = "float32",
    shardings: Callable[[Any], Any] | None = None,
) -> Model:
    """A published model, from the file of its weights.

    Args:
      file: of safetensors.
      name: of `ORIGINALS`.
      network: fields of the network's configuration that differ.
      autoencoder: for a model of latents, from `load_network`: samples are then pictures; None: samples are its
        latents.
      dtype: of the parameters; None: as they are stored.
      shardings: ``(shapes of the parameters) -> shardings`` of the same tree; None: the first device.

    Raises:
      PretrainedError: an unknown name or field, or weights that are missing, are damaged or do not fit; one line.
    """
    original = original_of(name)
    net = functional(configured(name, network))
    file = path_of(file, "file")
    with as_pretrained_error(name):
        shapes = jax.eval_shape(net.init, jax.random.key(0))
    spread = None if shardings is None else shardings(shapes)
    codec = _codec(original, net.build, autoencoder, name)
    params = load_params(
        shapes, original.naming(net.build), SafeTensors(file), dtype=dtype, shardings=spread, where=f"{file} as {name}"
    )
    return Model(NetworkDenoiser(net, params, original.process(), original.parameterization), codec, original.defaults)


def write_original(
    file: str | os.PathLike[str],
    name: str,
    params: Mapping[str, Any],
    *,
    network: Mapping[str, Any] | None = None,
    dtype: str | None = None,
) -> None:
    """Writes weights as that repository names them: its own code reads the file back.

    Args:
      file: to write, of safetensors.
      name: of `ORIGINALS`.
      params: of the network, as ``load_original(...).denoise.params``.
      network: as in `load_original`.
      dtype: of the tensors; None: as the parameters have it.

    Raises:
      PretrainedError: an unknown name or field, or a file that cannot be written.
    """
    naming = original_of(name).naming(configured(name, network))
    try:
        write_safetensors(Path(file).expanduser(), Published(params, naming, dtype=dtype))
    except OSError as error:
        raise PretrainedError(f"{file}: cannot be written ({error.strerror})") from error


def original_of(name: str) -> Original:
    """A published model by name.

    Raises:
      PretrainedError: an unknown name.

    >>> original_of("adm-256").licence
    'MIT'
    """
    if not isinstance(name, str) or name not in ORIGINALS:
        raise PretrainedError(f"{name!r} is no published model that is known here; there are {', '.join(ORIGINALS)}")
    return ORIGINALS[name]


def configured(name: str, network: Mapping[str, Any] | None = None) -> Any:
    """The configuration of a published network.

    Args:
      name: of `ORIGINALS`.
      network: fields that differ.

    Raises:
      PretrainedError: an unknown name or field, or fields that do not fit each other.

    >>> configured("iddpm-cifar10", {"width": 64}).width
    64
    """
    if not isinstance(network, Mapping | None):
        raise PretrainedError(f"{name}: network is fields by name, such as {{'width': 64}}, got {network!r}")
    with as_pretrained_error(name):
        return original_of(name).network(**(network or {}))


def _codec(original: Original, config: Any, autoencoder: Loaded | None, name: str) -> Any:
    size, channels = config.image_size, config.in_channels
    if not original.std:
        if autoencoder is not None:
            raise PretrainedError(f"{name} is a model of pixels: leave autoencoder out")
        return Images((size, size, channels), low_resolution=original.enlarges and size // original.enlarges)
    mean, std = (np.asarray(each, np.float32) for each in (original.mean, original.std))
    if autoencoder is None:
        return Arrays((size, size, channels), mean, std)
    found = loaded_of(autoencoder, "autoencoder").net.build
    if getattr(found, "channels", None) != channels:
        raise PretrainedError(f"{name} is of latents of {channels} channels: give the autoencoder that makes them")
    side = size * autoencoder.net.factor
    images = Images((side, side, found.in_channels))
    net = autoencoder.net if original.pixels is None else original.pixels(autoencoder.net)
    return LatentImages(autoencoder.params, mean, std, images, net=net, shape=(size, size, channels))
