"""ControlNets in a published pipeline: the network with them, and the pictures that they are given.

Guidance leads from and to answers that both know the picture, as diffusers has it: a picture stands on either side. In
guess mode the conditional side alone knows it.

From a start s to an end e, shares of the way from noise to data, a ControlNet counts

    at the times t with  1 - e <= t <= 1 - s,                    with our samplers                   (1)
    in evaluation i of n with  s <= i/n  and  (i + 1)/n <= e,    in strict steps, as in diffusers    (2)

t is 1 at the noise end; of a chain of T steps the network is told T t - 1 of it.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike, NDArray

from jaxdiff.data.decoding import decode
from jaxdiff.model import Model
from jaxdiff.networks import UNet, functional
from jaxdiff.networks.control import (
    ALWAYS,
    DECAY,
    NO_PICTURE,
    PICTURE,
    SCALE,
    TIMES,
    Controlled,
    ControlNet,
)
from jaxdiff.pretrained.errors import PretrainedError
from jaxdiff.pretrained.layouts.families import Loaded
from jaxdiff.pretrained.origin import found

FOLDER, CONTROLNET = "controlnet", "ControlNetModel"
"""The folder of a pipeline's ControlNet; others are ``controlnet_1``, ``controlnet_2``, ..."""
Folders = str | os.PathLike[str] | Mapping[str, str | os.PathLike[str]] | None


def control_folders(folder: Path, index: Mapping[str, Any], control: Folders) -> dict[str, Path]:
    """The folders of a pipeline's ControlNets by their names: its own, or those that are added to it.

    Args:
      folder: of the pipeline.
      index: the fields of its `model_index.json`.
      control: added ones.

    Raises:
      PretrainedError: added ones, and the pipeline has its own.
    """
    own = index.get(FOLDER)
    if own and own[0] is not None:
        if control is not None:
            raise PretrainedError(f"{folder}: this pipeline has a {own[1]} of its own: leave control out")
        several = own[1] == "MultiControlNetModel"
        names = [FOLDER, *(f"{FOLDER}_{i}" for i in range(1, 32))]
        return {name: folder / name for name in names[: None if several else 1] if (folder / name).is_dir()} or {
            FOLDER: folder / FOLDER
        }
    if control is None:
        return {}
    named = control if isinstance(control, Mapping) else {FOLDER: control}
    return {name: found(each, what="control") for name, each in named.items()}


def with_controls(network: Loaded, controls: Mapping[str, Loaded], where: str) -> Loaded:
    """A U-Net with ControlNets, for sampling.

    Args:
      network: the U-Net.
      controls: by name; none: the U-Net as it is.
      where: the pipeline, for messages.

    Raises:
      PretrainedError: a network that is no U-Net, or ControlNets that do not fit it.
    """
    if not controls:
        return network
    base = network.net.build
    for name, each in controls.items():
        if each.fields.get("_class_name") != CONTROLNET:
            raise PretrainedError(f"{where}: control {name} is a {each.fields.get('_class_name')}, no {CONTROLNET}")
    if not isinstance(base, UNet):
        raise PretrainedError(
            f"{where}: a ControlNet is of a U-Net, and this pipeline's network is {type(base).__name__}"
        )
    named = tuple(dataclasses.replace(each.net.build, name=name) for name, each in controls.items())
    try:
        net = functional(Controlled(base, named))
    except ValueError as error:
        raise PretrainedError(f"{where}: control does not fit its U-Net: {error}") from error
    params = {"base": network.params, "controls": {name: each.params for name, each in controls.items()}}
    return Loaded(net, params, network.fields)


def told(model: Model, control: Any, scale: Any = None, *, guess: bool = False) -> dict[str, Any]:
    """The conditions of ControlNets.

    Args:
      model: which has them.
      control: a picture, or several; of several ControlNets a dict by their names, of which some may be left out.
      scale: w; of several ControlNets one for all, or a dict; None: 1.
      guess: whether the first residuals count a tenth.

    Raises:
      ValueError: no ControlNet, an unknown name, or pictures that are none or of another size.
    """
    specs = {each.name: each.picture for each in _controls(model)}
    codec: Any = model.codec
    size = getattr(codec, "images", codec).shape[:2]
    if len(specs) > 1 and not isinstance(control, Mapping):
        raise ValueError(f"control: of several ControlNets a dict by name, of {', '.join(specs)}")
    given, scales = _by_name("control", control, specs), _by_name("control_scale", scale, specs)
    pictures: dict[str, Any] = {
        name: pictures_of(f"control {name}" if len(specs) > 1 else "control", given[name], (*size, spec.shape[-1]))
        if name in given
        else np.full((1, 1, spec.shape[-1] or 1), NO_PICTURE, np.float32)
        for name, spec in specs.items()
    }
    weights = {name: np.asarray(1.0 if scales.get(name) is None else scales[name], np.float32) for name in specs}
    return {PICTURE: _alone(pictures), SCALE: _alone(weights), DECAY: np.float32(guess)}


def shares(model: Model, start: Any, end: Any) -> dict[str, tuple[float, float]]:
    """From when to when ControlNets count, by their names: shares of the way from noise to data.

    Args:
      model: which has them.
      start, end: from 0 to 1; of several ControlNets one for all, or a dict; None: 0 and 1.

    Raises:
      ValueError: no ControlNet, an unknown name, or shares out of range.
    """
    names = [each.name for each in _controls(model)]
    limits = {"control_start": (start, 0.0), "control_end": (end, 1.0)}
    found: dict[str, list[float]] = {name: [] for name in names}
    for what, (asked, usual) in limits.items():
        given = _by_name(what, asked, names)
        for name in names:
            share = usual if given.get(name) is None else given[name]
            if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
                raise ValueError(f"{what} is a share of the way from noise to data, from 0 to 1, got {share!r}")
            found[name].append(float(share))
    for first, last in found.values():
        if first >= last:
            raise ValueError(f"control_start={first:g} is not below control_end={last:g}: the picture would not count")
    return {name: (first, last) for name, (first, last) in found.items()}


def told_times(model: Model, counting: Mapping[str, tuple[float, float]]) -> dict[str, Any]:
    """Equation (1) as a condition: the ends in what the network is told."""

    def ends(first: float, last: float) -> NDArray[np.float32]:
        t = np.array([1 - last - 1e-6, 1 - first + 1e-6], np.float32).clip(0, 1)  # the ends are within
        found = model.denoise.parameterization.condition(model.process, jnp.zeros(2), t)[1]
        return np.where([last == 1, first == 0], ALWAYS, np.asarray(found)).astype(np.float32)

    return {TIMES: _alone({name: ends(*share) for name, share in counting.items()})}


def counted(counting: Mapping[str, tuple[float, float]], n: int) -> Any:
    """Equation (2): 1 or 0 at each of n evaluations, ``(n,)``; of several ControlNets by name.

    >>> counted({"control": (0.25, 0.8)}, 5).tolist()
    [0.0, 0.0, 1.0, 1.0, 0.0]
    """
    return _alone(
        {
            name: np.array([first <= i / n and (i + 1) / n <= last for i in range(n)], np.float32)
            for name, (first, last) in counting.items()
        }
    )


def _controls(model: Model) -> tuple[ControlNet, ...]:
    recipe = getattr(model.denoise.net, "build", None)
    if not isinstance(recipe, Controlled):
        raise ValueError("control: this model has no ControlNet: jaxdiff.load(MODEL, control=FOLDER) adds one")
    return recipe.controls


def _by_name(what: str, value: Any, names: Iterable[str]) -> Mapping[str, Any]:
    """What is said of each ControlNet: one for all, or a dict."""
    known = list(names)
    named: Mapping[str, Any] = value if isinstance(value, Mapping) else dict.fromkeys(known, value)
    if unknown := sorted({*named} - {*known}):
        raise ValueError(f"{what}: there is no ControlNet {unknown[0]!r}; they are {', '.join(known)}")
    return named


def _alone(named: dict[str, Any]) -> Any:
    """Of one ControlNet what is said of it."""
    return named if len(named) > 1 else next(iter(named.values()))


def pictures_of(name: str, value: Any, shape: tuple[int | None, ...]) -> NDArray[np.float32]:
    """Pictures from 0 to 1, of bytes or of files.

    Args:
      name: for messages.
      value: ``(H, W, C)`` or ``(n, H, W, C)`` uint8; or the path of one, or a list of paths. Grey ones are repeated.
      shape: ``(H, W, C)``.

    Raises:
      ValueError: other numbers, another size, or a file that is no picture.

    >>> pictures_of("control", np.full((2, 2, 1), 51, np.uint8), (2, 2, 3))[0, 0].tolist()
    [0.20000000298023224, 0.20000000298023224, 0.20000000298023224]
    """
    if isinstance(value, str | os.PathLike):
        array: Any = _read(name, value)
    elif isinstance(value, list | tuple) and value and all(isinstance(each, str | os.PathLike) for each in value):
        read = [_read(name, each)[..., :3] for each in value]
        if len({each.shape for each in read}) > 1:
            raise ValueError(
                f"{name}: pictures of sizes {sorted({each.shape for each in read})}: bring them to {shape}"
            )
        array = np.stack(read)
    else:
        array = _array(name, value)
    if array.dtype != np.uint8:
        raise ValueError(f"{name} is pictures as uint8, from 0 to 255, or their paths, got {array.dtype}")
    if array.ndim not in (3, 4) or array.shape[-3:-1] != shape[:2]:
        found = " x ".join(map(str, array.shape[-3:-1])) if array.ndim in (3, 4) else f"an array {array.shape}"
        raise ValueError(f"{name} is of the samples' size, {shape[0]} x {shape[1]} pixels, got {found}: size=(H, W)")
    if array.shape[-1] == 1 and shape[2] != 1:
        array = np.repeat(array, shape[2] or 1, axis=-1)
    if array.shape[-1] != shape[2]:
        raise ValueError(f"{name} has {array.shape[-1]} channels, expected {shape[2]}, or 1 for grey")
    return array.astype(np.float32) / 255


def _read(name: str, path: str | os.PathLike[str]) -> NDArray[np.uint8]:
    try:
        pixels = decode(Path(path).expanduser().read_bytes(), str(path))
    except OSError as error:
        raise ValueError(f"{name}: {path} cannot be read ({error.strerror})") from error
    return pixels[..., :1] if pixels.shape[-1] == 2 else pixels[..., :3]  # without its opacity


def _array(name: str, value: ArrayLike) -> NDArray[Any]:
    try:
        return np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{name} is pictures of one size, (n, H, W, C) uint8, or their paths") from error
