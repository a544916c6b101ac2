"""FLUX.1's and Stable Diffusion 3's modules by the names of their authors' code, as files of a LoRA spell them.

kohya           lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight, lora_unet_joint_blocks_0_x_block_mlp_fc1.alpha
ComfyUI, fal    diffusion_model.double_blocks.0.img_mlp.2.lora_A.weight, base_model.model.single_blocks.0.linear1...
XLabs           double_blocks.0.processor.qkv_lora1.down.weight, of the image; 2 is of the text

One map of that code may be several of diffusers', with the same inputs and their outputs one after another: queries,
keys and values, and in FLUX.1's single blocks the perceptron after them. Its change B A is then theirs with the rows of
B shared out and the whole of A (equation (1) of `jaxdiff.pretrained.adapters.lora`),

    [W_q; W_k; W_v] + B A  =  [W_q + B_q A; W_k + B_k A; W_v + B_v A]

Where a modulation has a shift and a scale alone, that code has the shift first and diffusers the scale: the halves of B
change places.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple


class Place(NamedTuple):
    """The published modules that one map of the authors' code is.

    Attributes:
      names: of them, in the order of the map's outputs.
      swapped: whether the two halves of the outputs stand in the other order there.
    """

    names: tuple[str, ...]
    swapped: bool = False


_IMAGE = ("attn.to_q", "attn.to_k", "attn.to_v")
_TEXT = ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")
_DOUBLE = {
    "img_mod.lin": ("norm1.linear",),
    "img_attn.qkv": _IMAGE,
    "img_attn.proj": ("attn.to_out.0",),
    "img_mlp.0": ("ff.net.0.proj",),
    "img_mlp.2": ("ff.net.2",),
    "txt_mod.lin": ("norm1_context.linear",),
    "txt_attn.qkv": _TEXT,
    "txt_attn.proj": ("attn.to_add_out",),
    "txt_mlp.0": ("ff_context.net.0.proj",),
    "txt_mlp.2": ("ff_context.net.2",),
    "processor.qkv_lora1": _IMAGE,
    "processor.proj_lora1": ("attn.to_out.0",),
    "processor.qkv_lora2": _TEXT,
    "processor.proj_lora2": ("attn.to_add_out",),
}
_SINGLE = {
    "modulation.lin": ("norm.linear",),
    "linear1": (*_IMAGE, "proj_mlp"),
    "linear2": ("proj_out",),
    "processor.qkv_lora": _IMAGE,
    "processor.proj_lora": ("proj_out",),
}
_JOINT = {
    "x_block.adaLN_modulation.1": ("norm1.linear",),
    "x_block.attn.qkv": _IMAGE,
    "x_block.attn.proj": ("attn.to_out.0",),
    "x_block.attn2.qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
    "x_block.attn2.proj": ("attn2.to_out.0",),
    "x_block.mlp.fc1": ("ff.net.0.proj",),
    "x_block.mlp.fc2": ("ff.net.2",),
    "context_block.adaLN_modulation.1": ("norm1_context.linear",),
    "context_block.attn.qkv": _TEXT,
    "context_block.attn.proj": ("attn.to_add_out",),
    "context_block.mlp.fc1": ("ff_context.net.0.proj",),
    "context_block.mlp.fc2": ("ff_context.net.2",),
}
_TIME, _POOLED, _GUIDANCE = (f"time_text_embed.{name}_embedder.linear_" for name in ("timestep", "text", "guidance"))
_END = {"final_layer.adaLN_modulation.1": "norm_out.linear", "final_layer.linear": "proj_out"}
_FLUX = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": f"{_TIME}1",
    "time_in.out_layer": f"{_TIME}2",
    "vector_in.in_layer": f"{_POOLED}1",
    "vector_in.out_layer": f"{_POOLED}2",
    "guidance_in.in_layer": f"{_GUIDANCE}1",
    "guidance_in.out_layer": f"{_GUIDANCE}2",
    **_END,
}
_SD3 = {
    "x_embedder.proj": "pos_embed.proj",
    "context_embedder": "context_embedder",
    "t_embedder.mlp.0": f"{_TIME}1",
    "t_embedder.mlp.2": f"{_TIME}2",
    "y_embedder.mlp.0": f"{_POOLED}1",
    "y_embedder.mlp.2": f"{_POOLED}2",
    **_END,
}
_CLASSES = {
    "FluxTransformer2DModel": (
        _FLUX,
        (("double_blocks", "transformer_blocks", _DOUBLE), ("single_blocks", "single_transformer_blocks", _SINGLE)),
    ),
    "SD3Transformer2DModel": (_SD3, (("joint_blocks", "transformer_blocks", _JOINT),)),
}
"""By the class in diffusers: the names of single modules, and of rows of blocks those within a block."""

FIRST_NAMES = tuple(
    sorted({name.split(".")[0] for top, rows in _CLASSES.values() for name in (*top, *(row[0] for row in rows))})
)
"""With one of which each of these names begins."""


def places(kind: str, modules: Collection[str]) -> dict[str, Place]:
    """The modules of a network by their names in the authors' code; none of a class that has no such names.

    Args:
      kind: its class in diffusers.
      modules: all that it has, by their published names.

    >>> places("FluxTransformer2DModel", ["transformer_blocks.0.attn.to_out.0", "x_embedder", "norm_out.linear"])
    ... # doctest: +NORMALIZE_WHITESPACE
    {'img_in': Place(names=('x_embedder',), swapped=False),
     'final_layer.adaLN_modulation.1': Place(names=('norm_out.linear',), swapped=True),
     'double_blocks.0.img_attn.proj': Place(names=('transformer_blocks.0.attn.to_out.0',), swapped=False),
     'double_blocks.0.processor.proj_lora1': Place(names=('transformer_blocks.0.attn.to_out.0',), swapped=False)}
    """
    if kind not in _CLASSES:
        return {}
    single, rows = _CLASSES[kind]
    found = {theirs: Place((name,), name == "norm_out.linear") for theirs, name in single.items()}
    for theirs, ours, parts in rows:
        numbers = {name.split(".")[1] for name in modules if name.startswith(f"{ours}.")}
        for number in sorted(numbers, key=int):
            for part, names in parts.items():
                found[f"{theirs}.{number}.{part}"] = Place(tuple(f"{ours}.{number}.{name}" for name in names))
            last = f"{theirs}.{number}.context_block.adaLN_modulation.1"  # of a block whose text goes no further
            if last in found and f"{ours}.{number}.attn.to_add_out" not in modules:
                found[last] = found[last]._replace(swapped=True)
    there = {*modules}
    return {name: place for name, place in found.items() if there.issuperset(place.names)}
