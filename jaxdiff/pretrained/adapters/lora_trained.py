"""A LoRA that was trained here, as the factors of published modules.

Here a weight lies with its axes in another order, with query, key and value in one array, or as a part of one tensor
(`jaxdiff.pretrained.files.naming`), so the two thin matrices D and U of `jaxdiff.networks.lora` lie otherwise too.
Which input and which output each number of a published weight belongs to is asked of the naming itself, by an array of
numbers in the place of the weight's. Then

    A[k, i] = D[input(i), k],       B[o, k] = U[k, output(o)],       alpha / r as it is

Where a published weight is of several arrays here, such as the last map of FLUX.1's single blocks, which is over
attention and perceptron, their factors stand side by side: r is the sum of theirs, and alpha grows with it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util
from numpy.typing import NDArray

from jaxdiff.networks.lora import ADDED, BASE, Form, LoRA
from jaxdiff.pretrained.adapters.lora import Factors, Lora
from jaxdiff.pretrained.errors import PretrainedError
from jaxdiff.pretrained.fields import Fields, read_fields
from jaxdiff.pretrained.files.naming import Leaf
from jaxdiff.pretrained.layouts.families import CONFIG, family_of
from jaxdiff.pretrained.parts import DENOISERS, part_folder

Pair = tuple[NDArray[Any], NDArray[Any]]


def trained_lora(run: Any, folder: str | os.PathLike[str] | None = None) -> Lora:
    """The LoRA that a run has trained on a published model, for `jaxdiff.pretrained.write_lora`.

    Args:
      run: from `jaxdiff.load`, or from `jaxdiff.fit`.
      folder: of the published model; None: where the run began.

    Raises:
      PretrainedError: a run without a LoRA, or on no published model.
    """
    net = getattr(getattr(run, "denoise", None), "net", None)
    if not isinstance(net, LoRA):
        raise PretrainedError(f"expected a run that was trained with lora.rank, got a {type(run).__name__} without one")
    named = [each.path for each in run.config.frozen if each.name == BASE]
    whole = Path(named[0] if folder is None else folder).expanduser()
    place = part_folder(whole, *DENOISERS)
    fields = read_fields(place / CONFIG).values
    if "_class_name" not in fields:
        raise PretrainedError(
            f"{whole} is no published model, so its modules have no published names: the LoRA stays with its run"
        )
    part = "unet" if str(fields["_class_name"]).startswith("UNet") else "transformer"
    return Lora({part: published_factors(net, run.denoise.params, fields)}, str(whole))


def published_factors(net: LoRA, params: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Factors]:
    """The factors of each published module.

    Args:
      net: around the network.
      params: of it, both parts.
      fields: of the network's `config.json`.

    Raises:
      PretrainedError: a weight that is stored several times, which a LoRA would have to change everywhere.
    """
    told = Fields(fields)
    naming = family_of(told).naming(told)
    base: dict[str, Any] = traverse_util.flatten_dict(dict(params[BASE]), sep="/")
    added: dict[str, Any] = traverse_util.flatten_dict(dict(params[ADDED]), sep="/")
    pieces: dict[str, list[Pair]] = {}
    for path, form in net.forms().items():
        leaf = naming.leaf(path, base[path].shape)
        if repeated := [name for name in leaf.names if name in naming.copies.values()]:
            raise PretrainedError(f"{path}: {repeated[0]} is stored once a block: leave it out of lora.targets")
        down, up = (np.asarray(added[f"{path}/{side}"], np.float32) for side in ("down", "up"))
        for number, names in enumerate(leaf.groups()):
            of_block = (down, up) if leaf.blocks is None else (down[number], up[number])
            for name, found in zip(names, _published(leaf, form, *of_block), strict=True):
                pieces.setdefault(name.removesuffix(".weight"), []).extend(found)
    made = {}
    for name, several in pieces.items():
        rank = sum(len(down) for down, _ in several)
        alpha = (net.rank if net.alpha is None else net.alpha) if rank == net.rank else net.scale * rank
        made[name] = Factors(
            np.concatenate([down for down, _ in several]), np.concatenate([up for _, up in several], axis=1), alpha
        )
    return made


def _published(leaf: Leaf, form: Form, down: NDArray[Any], up: NDArray[Any]) -> Iterator[list[Pair]]:
    """A and B of each tensor of one block, in pieces that add up."""
    lead, inputs, outputs = form.split(leaf.shape)
    ranks = down.shape[-1]
    downs = down.reshape(-1, int(np.prod(inputs)), ranks)
    ups = up.reshape(-1, ranks, int(np.prod(outputs)))
    of_part, of_input, of_output = _numbers(leaf, form, lead, inputs, outputs)
    for tensor in range(leaf.parts or 1):
        part, i, o = (each if leaf.parts is None else each[tensor] for each in (of_part, of_input, of_output))
        rows, columns, of_row = o.reshape(len(o), -1)[:, 0], i[0], part.reshape(len(part), -1)[:, 0]
        assert (i == columns).all() and (o.reshape(len(o), -1) == rows[:, None]).all()
        found = []
        for which in np.unique(part):
            mine = of_row == which
            a = np.moveaxis(downs[which][columns], -1, 0)
            b = np.where(mine[:, None], ups[which].T[rows], 0)
            found.append(_widened(leaf, np.ascontiguousarray(a), b.reshape(*b.shape, *(1,) * (a.ndim - 2))))
        yield found


def _numbers(
    leaf: Leaf, form: Form, lead: tuple[int, ...], inputs: tuple[int, ...], outputs: tuple[int, ...]
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Of each number of the published tensors: which of our parts, inputs and outputs it belongs to."""
    sizes = [int(np.prod(each)) for each in (lead, inputs, outputs)]
    numbers = np.unravel_index(np.arange(int(np.prod(sizes))), sizes)
    made = []
    for each in numbers:
        ours = each.reshape(*lead, *inputs, *outputs)
        if form.parts:
            ours = np.moveaxis(ours, 0, len(inputs))
        made.append(leaf.axes.to_theirs(ours))
    return made[0], made[1], made[2]


def _widened(leaf: Leaf, a: NDArray[Any], b: NDArray[Any]) -> Pair:
    """A and B of the whole tensor, of which the leaf may be a part."""
    if (cut := leaf.cut) is None:
        return a, b
    whole = [a, b][1 - cut.axis]  # the outputs are B's first axis, the inputs A's second
    fill = [(0, 0)] * whole.ndim
    fill[cut.axis] = cut.start, cut.whole - cut.stop
    padded = np.pad(whole, fill)
    return (padded, b) if cut.axis == 1 else (a, padded)
