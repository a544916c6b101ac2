"""Folders of the Flax classes of diffusers (until 0.39) and transformers (until 4): names, axes, configurations.

Their names are torch's, but for three things:

    down_blocks.0.attentions.1.to_out.0.weight    torch
    down_blocks_0/attentions_1/to_out_0/kernel    Flax in diffusers
    encoder/layers/0/self_attn/q_proj/kernel      Flax in transformers

A kernel is (in, out), or (height, width, in, out); a gain is ``scale``, a table ``embedding``. Where one network was
saved as it lay on several devices, each tensor has their number before its axes.

The Flax classes computed a little differently, which ``flax_numerics`` follows (`jaxdiff.networks.UNet`): the gelu of
the transformers' GEGLU is the one by tanh, and their group normalisation has eps 1e-5, as the residual blocks have.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxdiff.pretrained.errors import PretrainedError
from jaxdiff.pretrained.fields import Fields
from jaxdiff.pretrained.files.msgpack import Msgpack, open_msgpack
from jaxdiff.pretrained.files.naming import Leaf, Naming

NUMERICS = "_flax_numerics"
"""A field of a configuration: whether the Flax classes' arithmetic is followed."""

_STEMS = {"diffusion_pytorch_model": "diffusion_flax_model", "model": "flax_model"}
_OWN = ("use_memory_efficient_attention", "split_head_dim", "dtype")  # how they computed, not what
_OLDER = [
    (r"^text_model/", ""),
    (r"/query/", "/to_q/"),
    (r"/key/", "/to_k/"),
    (r"/value/", "/to_v/"),
    (r"/proj_attn/", "/to_out_0/"),
]


def open_flax(folder: Path, stem: str) -> Msgpack | None:
    """The tensors of a folder of Flax; None: there are none.

    Args:
      folder: that holds them.
      stem: of the files in torch's layout.
    """
    return open_msgpack(folder, _STEMS[stem])


def flax_naming(naming: Naming, *, of_diffusers: bool) -> Naming:
    """The names of a network's tensors in Flax's layout.

    Args:
      naming: those in torch's.
      of_diffusers: whether a number is joined to the name before it.

    >>> naming = Naming(renames=[(r"^out/", "to_out.0.")])
    >>> made = flax_naming(naming, of_diffusers=True).leaf("out/kernel", (4, 6))
    >>> made.names, made.tensor
    (('to_out_0/kernel',), (4, 6))
    """

    def turned(path: str, leaf: Leaf) -> Leaf:
        last = path.rpartition("/")[2]
        names = tuple(_flax_name(name, last, of_diffusers) for name in leaf.names)
        if last != "kernel":
            return dataclasses.replace(leaf, names=names)
        left, right = leaf.axes.pattern.split("->")
        groups = re.findall(r"\([^)]*\)|\S+", left)
        parts, own = (groups[:1], groups[1:]) if leaf.parts is not None else ([], groups)
        own = own[::-1] if len(own) == 2 else [*own[2:], own[1], own[0]]  # o i, or o i h w
        axes = dataclasses.replace(leaf.axes, pattern=f"{' '.join([*parts, *own])} -> {right.strip()}")
        return dataclasses.replace(leaf, names=names, axes=axes)

    unused = [pattern.replace(r"\.", "/") for pattern in naming.unused]
    return dataclasses.replace(naming, last=turned, aliases=_OLDER, unused=unused, copies={}, tables={})


def _flax_name(name: str, last: str, of_diffusers: bool) -> str:
    *folders, end = name.split(".")
    if end == "weight":
        end = {"kernel": "kernel", "scale": "scale"}.get(last, "embedding")
    joined = "/".join([*folders, end])
    if of_diffusers:
        return re.sub(r"/(\d+)(?=/)", r"_\1", joined)
    t5_norm = r"((?:layer|encoder)/(?:\S+/)?(?:final_)?layer_norm)/scale$"  # whose gain T5 names as torch does
    return re.sub(t5_norm, r"\1/weight", joined) if "/layer/" in joined or "final_layer_norm" in joined else joined


def plain_fields(fields: Fields, numerics: bool) -> Fields:
    """A configuration without what Flax alone has in it.

    Args:
      fields: of a `config.json`.
      numerics: whether the Flax classes' arithmetic is followed.

    Raises:
      PretrainedError: arithmetic is asked for of a class that was not there in Flax.

    >>> plain_fields(Fields({"_class_name": "FlaxAutoencoderKL", "split_head_dim": True}), False).values
    {'_class_name': 'AutoencoderKL'}
    """
    name, values = fields.class_name, dict(fields.values)
    if str(values.get("_class_name")).startswith("Flax"):
        values = {key: value for key, value in values.items() if key not in _OWN} | {"_class_name": name}
    elif not values.get("_class_name") and name is not None:
        values["architectures"] = [name]
    if numerics:
        if values.get("_class_name") not in (None, "UNet2DConditionModel", "AutoencoderKL"):
            raise PretrainedError(f"{fields.where}: flax_numerics is of U-Nets with text and of AutoencoderKL")
        if values.get("_class_name") == "UNet2DConditionModel":
            _hard_coded(values, fields.where)
            values[NUMERICS] = True
    return Fields(values, fields.where)


def plain_classes(values: Mapping[str, Any]) -> dict[str, Any]:
    """A `model_index.json` or a scheduler's configuration, with the names of torch's classes.

    >>> plain_classes({"_class_name": "FlaxStableDiffusionPipeline", "unet": ["diffusers", "FlaxUNet2DConditionModel"]})
    {'_class_name': 'StableDiffusionPipeline', 'unet': ['diffusers', 'UNet2DConditionModel']}
    """

    def plain(value: Any) -> Any:
        if isinstance(value, list):
            return [plain(each) for each in value]
        return value.removeprefix("Flax") if isinstance(value, str) else value

    return {name: plain(value) for name, value in values.items()}


def _hard_coded(values: Mapping[str, Any], where: str) -> None:
    """Numbers that the Flax classes did not read from a configuration."""
    for name, value in (("norm_num_groups", 32), ("norm_eps", 1e-5)):
        if values.get(name, value) != value:
            raise PretrainedError(
                f"{where}: {name} is {values[name]!r}; the Flax class had {value} alone: leave flax_numerics out"
            )
