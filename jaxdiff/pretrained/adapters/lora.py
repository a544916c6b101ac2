"""LoRA of published networks: read from files of safetensors, merged into weights, and written.

Hu et al. 2021 (https://arxiv.org/abs/2106.09685), equation (3), with the scale of its section 4.1: a weight W of a
linear map, (out, in), becomes

    W' = W + w (alpha / r) B A,      A (r, in),  B (out, r)                                                     (1)

with w = 1, or the weight that a person gives. Several LoRAs add up. Of a convolution A is (r, in, k, k), which maps to
r channels, and B is (out, r, 1, 1), so that (1) holds with the last three axes of W as one.

alpha is a tensor of kohya's files; in PEFT's layout the header says it (`jaxdiff.pretrained.adapters.lora_header`).
Where nothing does it is r. The names of modules are in `jaxdiff.pretrained.adapters.lora_names`.

    model = load_pipeline("stable-diffusion-v1-5").with_lora("hearts.safetensors", 0.8)
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax import Array
from numpy.typing import NDArray

from jaxdiff.networks.text import T5
from jaxdiff.pretrained.adapters.lora_header import METADATA, alpha_of, header_of
from jaxdiff.pretrained.adapters.lora_names import WHOLE_CHANGES, Key, other_method, parsed, spellings, written
from jaxdiff.pretrained.adapters.lora_originals import Place, places
from jaxdiff.pretrained.errors import PretrainedError, path_of
from jaxdiff.pretrained.fields import Fields
from jaxdiff.pretrained.files.naming import Leaf, Naming
from jaxdiff.pretrained.files.safetensors import SafeTensors, write_safetensors
from jaxdiff.pretrained.layouts.families import Loaded, family_of

WEIGHTS = "pytorch_lora_weights.safetensors"
"""The name that diffusers looks for in a folder."""
_LISTED = 6  # names of a list in a message
_MOST_WEIGHT = 1000


class Factors(NamedTuple):
    """The change of one weight: equation (1).

    Attributes:
      down: A, ``(r, in)`` or ``(r, in, k, k)``.
      up: B, ``(out, r)`` or ``(out, r, 1, 1)``.
      alpha: of the scale alpha / r.
    """

    down: NDArray[Any]
    up: NDArray[Any]
    alpha: float

    @property
    def rank(self) -> int:
        """r."""
        return int(self.down.shape[0])

    def change(self, weight: float = 1.0) -> NDArray[np.float32]:
        """w (alpha / r) B A, ``(out, in)`` or ``(out, in, k, k)``, float32.

        >>> Factors(np.ones((2, 3)), np.ones((4, 2)), 1.0).change().tolist()[0]
        [1.0, 1.0, 1.0]
        """
        up, down = (np.asarray(each, np.float32) for each in (self.up, self.down))
        with np.errstate(over="ignore", invalid="ignore"):  # which is refused in words
            flat = up.reshape(len(up), -1) @ down.reshape(len(down), -1)
            scaled: NDArray[np.float32] = np.float32(weight * self.alpha / self.rank) * flat
        return scaled.reshape(len(up), *down.shape[1:])


@dataclass(frozen=True, eq=False)
class Lora(Mapping[str, Mapping[str, Factors]]):
    """The factors of a file, by network and module: ``lora["unet"]["mid_block.attentions.0.proj_in"]``.

    Args:
      parts: by the names of the networks' folders, and of their modules as the file spells them.
      where: the file, for messages.
    """

    parts: Mapping[str, Mapping[str, Factors]]
    where: str = "lora"

    def __getitem__(self, part: str) -> Mapping[str, Factors]:
        return self.parts[part]

    def __iter__(self) -> Iterator[str]:
        return iter(self.parts)

    def __len__(self) -> int:
        return len(self.parts)


def load_lora(path: str | os.PathLike[str]) -> Lora:
    """The factors of a LoRA, from a file of PEFT's, older diffusers', kohya's, XLabs' or ComfyUI's layout.

    Args:
      path: of the file, or of a folder with `pytorch_lora_weights.safetensors`.

    Raises:
      PretrainedError: a file that is missing or damaged, that holds another method (LoHa, LoKr, DoRA, changes without
        factors that are not 0), or tensors that are not known or lack their partner; by name.
    """
    file = path_of(path, "lora")
    file = file / WEIGHTS if file.is_dir() else file
    if not file.is_file():
        raise PretrainedError(f"{file}: there is no such file; a LoRA is one file of safetensors")
    tensors = SafeTensors(file)
    names = [name for name in tensors if not (name.endswith(WHOLE_CHANGES) and not tensors.read(name).any())]
    for name in names:
        if kind := other_method(name):
            raise PretrainedError(f"{file}: {name} is of {kind}, which jaxdiff does not read; it reads LoRA alone")
    keys = {name: parsed(name) for name in names}
    _refuse(file, "are not known", [name for name, key in keys.items() if key is None])
    found: dict[tuple[str, str], dict[str, str]] = {}
    for name, key in keys.items():
        assert isinstance(key, Key)
        sides = found.setdefault((key.part, key.module), {})
        if key.what in sides:
            raise PretrainedError(f"{file}: {name} and {sides[key.what]} are the same factor: one is too many")
        sides[key.what] = name
    alone = [next(iter(sides.values())) for sides in found.values() if not {"down", "up"} <= {*sides}]
    _refuse(file, "lack their partner", alone)
    told = alpha_of(tensors.metadata.get(METADATA), str(file))
    parts: dict[str, dict[str, Factors]] = {}
    for (part, module), sides in found.items():
        down, up = tensors.read(sides["down"]), tensors.read(sides["up"])
        if (
            not down.size
            or not up.size
            or down.ndim < 2
            or up.ndim < 2
            or down.shape[0] != up.shape[1]
            or {*up.shape[2:]} - {1}
        ):
            raise PretrainedError(
                f"{file}: {sides['up']} is {up.shape} and {sides['down']} {down.shape}, expected (out, r) and (r, in), "
                "of convolutions (out, r, 1, 1) and (r, in, k, k)"
            )
        rank = len(down)
        said = tensors.read(sides["alpha"]).reshape(-1) if "alpha" in sides else np.asarray([told(part, module, rank)])
        for side, numbers in ((sides["down"], down), (sides["up"], up), (sides.get("alpha", "alpha"), said)):
            _check_numbers(file, side, numbers)
        alpha = float(said[0])
        parts.setdefault(part, {})[module] = Factors(down, up, alpha)
    if not parts:
        raise PretrainedError(f"{file}: holds no tensor")
    return Lora(parts, str(file))


def _check_numbers(file: Path, name: str, numbers: NDArray[Any]) -> None:
    if not jnp.issubdtype(numbers.dtype, jnp.floating) and not name.endswith("alpha"):
        raise PretrainedError(f"{file}: {name} is {numbers.dtype}, expected floating numbers")
    if not numbers.size or not np.isfinite(numbers.astype(np.float32)).all():
        raise PretrainedError(f"{file}: {name} is empty, or holds numbers that are not finite: fetch the file again")


def write_lora(path: str | os.PathLike[str], lora: Mapping[str, Mapping[str, Factors]]) -> None:
    """Writes a LoRA in PEFT's layout, with its alphas in the header: diffusers' ``load_lora_weights`` reads it.

    Args:
      path: of the file; its folder is made where it is not there.
      lora: by network and module; names of modules are the published ones (`resolved` makes them of kohya's).

    Raises:
      PretrainedError: nothing to write, or a file that cannot be written.
    """
    file = Path(path).expanduser()
    if not any(lora.values()):
        raise PretrainedError(f"{file}: there is nothing to write: the LoRA holds no factors")
    tensors: dict[str, NDArray[Any]] = {}
    for part, modules in lora.items():
        for module, factors in modules.items():
            name = written(part, module)
            tensors |= {f"{name}.lora_A.weight": factors.down, f"{name}.lora_B.weight": factors.up}
    told = {part: {name: (each.rank, each.alpha) for name, each in modules.items()} for part, modules in lora.items()}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_safetensors(file, tensors, {METADATA: header_of(told)})
    except OSError as error:
        raise PretrainedError(f"{file}: cannot be written ({error.strerror})") from error


def merged(parts: Mapping[str, Loaded], lora: Lora, weight: float = 1.0) -> dict[str, Loaded]:
    """Networks with a LoRA in their weights.

    Args:
      parts: by the names of their folders.
      lora: its factors; those of kohya's ``lora_unet_`` are of the denoiser, whatever its folder is called, and
        those of its ``lora_te3_`` of T5.
      weight: w of equation (1); with 0 the weights are as they were, bit for bit.

    Raises:
      PretrainedError: networks or modules that are not there, or that have other shapes; by name.
    """
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not abs(weight) <= _MOST_WEIGHT:
        raise PretrainedError(
            f"the weight of a LoRA is a number from -{_MOST_WEIGHT} to {_MOST_WEIGHT}, such as 0.8, got {weight!r}"
        )
    found = dict(parts)
    for part, modules in resolved(parts, lora).items():
        loaded = parts[part]
        if weight != 0:
            found[part] = loaded._replace(params=_with_changes(loaded, modules, weight, lora.where))
    return found


def resolved(parts: Mapping[str, Loaded], lora: Lora) -> Lora:
    """A LoRA with the published names of networks and modules, checked against these networks.

    Args, Raises: as `merged`.
    """
    whole: dict[str, dict[str, Factors]] = {}
    for part, modules in lora.items():
        name = _folder(parts, part)
        if name not in parts:
            raise PretrainedError(f"{lora.where}: changes {part}, which this model has not; it has {', '.join(parts)}")
        known = modules_of(parts[name])
        spelled = {each: Place((its,)) for each, its in spellings(known, text=name.startswith("text_encoder")).items()}
        for each, place in places(str(parts[name].fields.get("_class_name")), known).items():
            spelled |= {each: place, each.replace(".", "_"): place}
        unknown = [module for module in modules if module not in spelled]
        _refuse(Path(lora.where), f"are no modules of {name}", unknown, "modules")
        for module, factors in modules.items():
            place = spelled[module]
            shapes = [known[each] for each in place.names]
            rows, inputs = [shape[0] for shape in shapes], shapes[0][1:]
            theirs = (len(factors.up), *factors.down.shape[1:])
            if theirs[:2] != (sum(rows), inputs[0]) or math.prod(theirs[1:]) != math.prod(inputs):
                of = module if len(rows) > 1 else place.names[0]
                raise PretrainedError(
                    f"{lora.where}: the change of {name}.{of} is {theirs}, and the weight {(sum(rows), *inputs)}: it "
                    "is of another model"
                )
            for target, its in zip(place.names, _shared_out(factors, place, rows), strict=True):
                if target in whole.get(name, {}):
                    raise PretrainedError(f"{lora.where}: changes {target} of {name} twice, by two spellings")
                whole.setdefault(name, {})[target] = its
    return Lora(whole, lora.where)


def _folder(parts: Mapping[str, Loaded], part: str) -> str:
    """The folder of a network that a file may call otherwise: any denoiser a U-Net, T5 the third encoder."""
    if part == "unet" and part not in parts:
        return "transformer"
    if part == "text_encoder_3" and part not in parts:
        text = [name for name in parts if name.startswith("text_encoder")]
        return next((name for name in text if isinstance(parts[name].net.config, T5)), part)
    return part


def _shared_out(factors: Factors, place: Place, rows: list[int]) -> Iterator[Factors]:
    """The factors of the published modules that one map is: the rows of B one after another, the whole of A."""
    up = factors.up
    if place.swapped:
        up = np.concatenate([up[len(up) // 2 :], up[: len(up) // 2]])
    for stop, count in zip(itertools.accumulate(rows), rows, strict=True):
        yield factors._replace(up=up[stop - count : stop])


def modules_of(loaded: Loaded) -> dict[str, tuple[int, ...]]:
    """The linear maps and convolutions of a network by their published names, and the shapes of their weights."""
    naming = _naming(loaded)
    return {
        name.removesuffix(".weight"): leaf.tensor
        for path, leaf in _leaves(loaded.params, naming).items()
        if path.endswith("kernel")
        for name in leaf.names
    }


def _with_changes(loaded: Loaded, modules: Mapping[str, Factors], weight: float, where: str) -> dict[str, Any]:
    """Parameters with the changes of some modules; a leaf that none of them changes is the same array."""
    flat: dict[str, Any] = traverse_util.flatten_dict(dict(loaded.params), sep="/")
    for path, leaf in _leaves(loaded.params, _naming(loaded)).items():
        if not path.endswith("kernel"):
            continue
        found = [_change(leaf, names, modules, weight) for names in leaf.groups()]
        changes = {number: change for number, change in enumerate(found) if change is not None}
        if changes:
            flat[path] = _plus(flat[path], changes, stacked=leaf.blocks is not None, where=where)
    return dict(traverse_util.unflatten_dict(flat, sep="/"))


def _change(
    leaf: Leaf, names: tuple[str, ...], modules: Mapping[str, Factors], weight: float
) -> NDArray[np.float32] | None:
    """What is added to one block of a leaf, as it lies here; None: nothing."""
    of = [modules.get(name.removesuffix(".weight")) for name in names]
    if not any(of):
        return None
    parts = [
        np.zeros(leaf.tensor, np.float32) if each is None else each.change(weight).reshape(leaf.tensor) for each in of
    ]
    if (cut := leaf.cut) is not None:
        parts = [part.take(range(cut.start, cut.stop), axis=cut.axis) for part in parts]
    return leaf.axes.to_ours(parts[0] if leaf.parts is None else np.stack(parts), leaf.shape)


def _plus(array: Any, changes: Mapping[int, NDArray[np.float32]], *, stacked: bool, where: str) -> Array:
    """An array with changes of its blocks (of one that is no row: with the change 0), each device's part by itself, so
    that nothing is compiled for each shape and no host needs more than its devices hold."""
    array = jnp.asarray(array)
    made = []
    for shard in array.addressable_shards:
        part = np.array(shard.data)
        first, *rest = shard.index if stacked else (slice(0, 1), *shard.index)
        start, stop, _ = first.indices(array.shape[0] if stacked else 1)
        for number in range(start, stop):
            if (change := changes.get(number)) is not None:
                old = part[number - start] if stacked else part
                with np.errstate(over="ignore", invalid="ignore"):
                    new = (old.astype(np.float32) + change[tuple(rest)]).astype(part.dtype)
                if not np.isfinite(new).all():
                    raise PretrainedError(f"{where}: its change is not finite in {part.dtype}: take a smaller weight")
                if stacked:
                    part[number - start] = new
                else:
                    part = new
        made.append(jax.device_put(part, shard.device))
    return jax.make_array_from_single_device_arrays(array.shape, array.sharding, made)


def _leaves(params: Mapping[str, Any], naming: Naming) -> dict[str, Leaf]:
    flat = traverse_util.flatten_dict(dict(params), sep="/")
    return {path: naming.leaf(path, array.shape) for path, array in flat.items()}


def _naming(loaded: Loaded) -> Naming:
    fields = Fields(loaded.fields)
    return family_of(fields).naming(fields)


def _refuse(file: Path, why: str, names: list[str], what: str = "tensors") -> None:
    if names:
        listed = f"{', '.join(names[:_LISTED])}{', ...' if len(names) > _LISTED else ''}"
        raise PretrainedError(f"{file}: {len(names)} {what} {why}: {listed}")
