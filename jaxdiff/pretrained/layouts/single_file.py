"""A whole Stable Diffusion in one file of safetensors, in the layout of its authors: read and written.

    model = load_pipeline("model.safetensors", tokenizer="folder")    # vocab.json and merges.txt of CLIP
    write_single_file("mine.safetensors", model.parts)

Its configurations are those that diffusers publishes, made of the tensors' shapes
(`jaxdiff.pretrained.layouts.ldm_fields`); its names stand in `jaxdiff.pretrained.layouts.ldm_names`. A file has neither
a tokenizer nor a scheduler, and does not say what the network predicts. It may have the U-Net's weights twice: the last
ones, and their moving averages.
"""

from __future__ import annotations

import dataclasses
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxdiff.data.clip_files import END
from jaxdiff.pretrained.errors import PretrainedError, as_pretrained_error, path_of
from jaxdiff.pretrained.fields import Fields
from jaxdiff.pretrained.files.naming import Naming
from jaxdiff.pretrained.files.npz import open_tensors
from jaxdiff.pretrained.files.safetensors import write_safetensors
from jaxdiff.pretrained.files.tensors import Part, Renamed, Tensors
from jaxdiff.pretrained.files.writing import Published
from jaxdiff.pretrained.layouts import ldm_fields, ldm_names
from jaxdiff.pretrained.layouts.families import Loaded, configured, network_of
from jaxdiff.pretrained.layouts.ldm_fields import RELEASES, Release, Shapes

PREDICTIONS = ("epsilon", "v_prediction")
AVERAGED = "ema"
"""The variant of a file that is the averages of the U-Net's weights."""
_UNUSED = re.compile(
    r"model_ema\.|(alphas_cumprod(_prev)?|betas|sqrt_\w+|log_one_minus_alphas_cumprod|posterior_\w+|logvar|lvlb_weights"
    r"|global_step|epoch|v_pred|ztsnr|denoiser\.sigmas)$"
)
"""Tensors of no network: averages of the weights, the schedule's tables, marks."""


@dataclasses.dataclass(frozen=True)
class SingleFile:
    """What a file holds, as a folder of diffusers would.

    Args:
      index: the fields of `model_index.json`.
      scheduler: the fields of `scheduler_config.json`.
      parts: the networks by their folders.
      padding: by the folder of a text encoder, the token that pads its texts.
    """

    index: Mapping[str, Any]
    scheduler: Mapping[str, Any]
    parts: Mapping[str, Loaded]
    padding: Mapping[str, str]


class _Named(NamedTuple):
    """One network within a file: its configuration, its prefix and the names of its tensors."""

    fields: Fields
    prefix: str
    naming: Naming


def read_single_file(
    file: str | os.PathLike[str],
    *,
    prediction: str | None = None,
    variant: str | None = None,
    dtype: str | None = "float32",
    shardings: Callable[[Any], Any] | None = None,
) -> SingleFile:
    """The networks of a Stable Diffusion 1, 2, XL or XL's refiner that lies in one file.

    Args:
      file: of safetensors, or an archive ``.npz``.
      prediction: what the network predicts, ``"epsilon"`` or ``"v_prediction"``; None: what the file says, or what was
        published: v of Stable Diffusion 2 with four channels, at 768 pixels; else eps.
      variant: ``"ema"``: the moving averages of the U-Net's weights; None: the last weights.
      dtype, shardings: see `jaxdiff.pretrained.load_network`.

    Raises:
      PretrainedError: another file, or tensors that are missing, left over or of another shape; one line.
    """
    file = path_of(file, "file")
    if variant not in (None, AVERAGED):
        raise PretrainedError(
            f"{file}: variant is {variant!r}; a single file has {AVERAGED!r} alone, its averaged weights"
        )
    tensors = open_tensors(file)
    release = ldm_fields.release_of(tensors, str(file))
    prediction = _prediction(release, tensors, prediction, str(file))
    size = 96 if release.name == "Stable Diffusion 2" and prediction == "v_prediction" else release.size
    named = _named(release, tensors, size, str(file))
    prefixes = tuple(each.prefix for each in named.values())
    left = [name for name in tensors if not name.startswith(prefixes) and not _UNUSED.match(name)]
    if left:
        more = f", and {len(left) - 1} more" if len(left) > 1 else ""
        raise PretrainedError(f"{file}: {left[0]}{more}: tensors that {release.name} does not have")
    sets: dict[str, Tensors] = {
        part: Part(tensors, lambda name, prefix=each.prefix: name.startswith(prefix))  # type: ignore[misc]
        for part, each in named.items()
    }
    if variant == AVERAGED:
        sets["unet"] = _averaged(sets["unet"], tensors, str(file))
    parts = {
        part: network_of(
            fields,
            sets[part],
            naming,
            dtype=dtype,
            shardings=shardings,
            where=str(file),
        )
        for part, (fields, _, naming) in named.items()
    }
    inpaints = parts["unet"].fields["in_channels"] == 9
    index = {
        "_class_name": release.inpainting if inpaints else release.pipeline,
        **{part: ["diffusers", loaded.fields.get("_class_name", "CLIP")] for part, loaded in parts.items()},
        **release.index,
    }
    for encoder in release.encoders:
        index[encoder.part] = ["transformers", parts[encoder.part].fields["architectures"][0]]
    padding = {each.part: "!" if each.open_clip else END for each in release.encoders}
    return SingleFile(index, ldm_fields.scheduler_fields(release, tensors, prediction), parts, padding)


def write_single_file(file: str | os.PathLike[str], parts: Mapping[str, Loaded], *, dtype: str | None = None) -> None:
    """Writes the networks of a Stable Diffusion 1, 2, XL or XL's refiner into one file, in the layout of its authors.

    Args:
      file: to write, ``NAME.safetensors``.
      parts: the networks by their folders in diffusers, as `Pretrained.parts` has them.
      dtype: of the tensors; None: as the parameters have it.

    Raises:
      PretrainedError: networks that are none of the four's, or a file that cannot be written.
    """
    file = path_of(file, "file")
    release = _release_of_parts(parts, str(file))
    encoders = {encoder.part: encoder for encoder in release.encoders}
    whole: dict[str, Published] = {}
    for part, loaded in parts.items():
        naming = _naming(part, configured(Fields(loaded.fields)), loaded.fields, encoders)
        whole[part] = Published(loaded.params, naming, dtype=dtype)
    tensors = _Joined(list(whole.values()))
    shapes = {name: _Described(*each) for name, each in tensors.described().items()}
    again = _named(release, shapes, release.size, str(file))
    for part, loaded in parts.items():
        ours, read = (_sizes(configured(Fields(each))) for each in (loaded.fields, again[part].fields.values))
        if ours != read:
            differing = next(name for name in ours if ours[name] != read[name])
            raise PretrainedError(
                f"{file}: {part} has {differing}={ours[differing]!r}, and read from one file it would have "
                f"{read[differing]!r}: write it as a folder"
            )
    try:
        write_safetensors(file, tensors)
    except OSError as error:
        raise PretrainedError(f"{file}: cannot be written ({error.strerror})") from error


def _averaged(unet: Tensors, whole: Tensors, where: str) -> Tensors:
    """The averages of a U-Net's weights, by the names of these."""
    names = {name: ldm_names.averaged_name(name) for name in unet}
    missing = [average for average in names.values() if average not in whole]
    if len(missing) == len(names):
        raise PretrainedError(f"{where}: has no averaged weights ({ldm_names.EMA}): leave variant={AVERAGED!r} out")
    if missing:
        more = f", and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise PretrainedError(f"{where}: {missing[0]}{more}: missing of its averaged weights")
    return Renamed(whole, names)


def _prediction(release: Release, shapes: Shapes, asked: str | None, where: str) -> str:
    if asked is not None:
        if asked not in PREDICTIONS:
            raise PretrainedError(f"prediction is {asked!r}, expected {' or '.join(map(repr, PREDICTIONS))}")
        return asked
    if "v_pred" in shapes:
        return "v_prediction"
    if release.name != "Stable Diffusion 2" or shapes[f"{ldm_names.UNET}input_blocks.0.0.weight"].shape[1:2] != (4,):
        return "epsilon"
    print(
        f"WARNING: {where}: Stable Diffusion 2 was published with v, at 768 pixels, and with eps, at 512: v is taken; "
        "say prediction='epsilon' for the other",
        file=sys.stderr,
        flush=True,
    )
    return "v_prediction"


def _named(release: Release, shapes: Shapes, size: int, where: str) -> dict[str, _Named]:
    """The networks of a file, by the shapes of its tensors."""
    try:
        with as_pretrained_error(where):
            values = {
                "unet": ldm_fields.unet_fields(release, shapes, size, where),
                "vae": ldm_fields.vae_fields(release, shapes, size),
                **{each.part: ldm_fields.clip_fields(each, shapes, where) for each in release.encoders},
            }
    except KeyError as error:
        raise PretrainedError(f"{where}: {error.args[0]} is missing: the file is not whole") from error
    encoders = {encoder.part: encoder for encoder in release.encoders}
    prefixes = {"unet": ldm_names.UNET, "vae": ldm_names.VAE, **{part: e.prefix for part, e in encoders.items()}}
    found = {}
    for part, each in values.items():
        fields = Fields(each, where)
        network = configured(Fields(each, where))
        found[part] = _Named(fields, prefixes[part], _naming(part, network, each, encoders))
    return found


def _naming(part: str, network: Any, fields: Mapping[str, Any], encoders: Mapping[str, ldm_fields.Encoder]) -> Naming:
    if part == "unet":
        return ldm_names.unet_naming(network, linear=bool(fields.get("use_linear_projection", False)))
    if part == "vae":
        return ldm_names.vae_naming(network)
    encoder = encoders[part]
    if encoder.open_clip:
        return ldm_names.open_clip_naming(encoder.prefix, blocks=network.depth)
    return ldm_names.clip_in_a_file(encoder.prefix)


def _release_of_parts(parts: Mapping[str, Loaded], where: str) -> Release:
    """The release whose encoders these are: the activation tells CLIP L from H, whose parts have one name."""
    given = {part: loaded.net.config.activation == "gelu" for part, loaded in parts.items() if "text_encoder" in part}
    for release in RELEASES:
        if given == {encoder.part: encoder.open_clip for encoder in release.encoders} and {*parts} - {*given} == {
            "unet",
            "vae",
        }:
            return release
    raise PretrainedError(
        f"{where}: {', '.join(parts)} are the networks of no {', '.join(each.name for each in reversed(RELEASES))}: "
        "write them as folders"
    )


def _sizes(config: Any) -> dict[str, Any]:
    """A configuration as far as a file decides it."""
    return {
        each.name: getattr(config, each.name)
        for each in dataclasses.fields(config)
        if each.name not in ("image_size", "dtype", "remat", "dropout", "skip", "final_norm", "pooled", "end")
    }


class _Described(NamedTuple):
    dtype: np.dtype
    shape: tuple[int, ...]


class _Joined(Mapping[str, NDArray[Any]]):
    """Several networks' tensors, each made when it is asked for."""

    def __init__(self, sets: list[Published]) -> None:
        self._sets = {name: each for each in sets for name in each}
        self._all = sets

    def described(self) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
        """Dtype and shape of each tensor, without making it."""
        return {name: each for one in self._all for name, each in one.described().items()}

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self._sets[name][name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._sets)

    def __len__(self) -> int:
        return len(self._sets)
