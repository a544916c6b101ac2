"""The transformers of diffusers as `jaxdiff.networks.DiT` and `MMDiT`: DiT and PixArt, SD3 and FLUX.1; and the layout
of the DiT and SiT authors.

Traps, each tested beside the original:

- diffusers' DiT is told its time by frequencies that end at 1/10,000, and its second norm of a block has an eps of its
  own, 1e-5; the authors' has neither. Each block holds a copy of the embeddings of time and label.
- where a modulation has a scale and a shift alone, diffusers has the scale first, the authors and we the shift.
- FLUX.1's tokens are four pixels channel after channel, ours pixel after pixel; the last map of a single block is one
  tensor over attention and perceptron, side by side.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jaxdiff.networks import DiT, MMDiT
from jaxdiff.networks.conditions import Level, NetCondition, Tokens
from jaxdiff.networks.dit import sizes_told
from jaxdiff.networks.embeddings import position_embedding
from jaxdiff.pretrained.fields import Fields
from jaxdiff.pretrained.files.naming import Cut, Naming

_PATCHES = [(r"^patches/kernel$", "o c p q -> (p q c) o")]
_SWAPPED = "(~s o) i -> i (s o)", "(~s o) -> (s o)"  # scale|shift for shift|scale
_QKV = {"qkv": ("to_q", "to_k", "to_v")}


# --- DiT


def dit(fields: Fields) -> DiT:
    """The configuration of a `DiTTransformer2DModel`; its last class means "no class", as published.

    Raises:
      PretrainedError: a field that jaxdiff does not follow.
    """
    fields.only(activation_fn="gelu-approximate", norm_type="ada_norm_zero", attention_bias=True)
    fields.only(norm_elementwise_affine=False)
    made = DiT(
        **_common(fields, size=32, out=None),
        time_shift=1.0,
        num_classes=fields.get("num_embeds_ada_norm", 1000),
        mlp_norm_eps=fields.get("norm_eps", 1e-5),
    )
    fields.done()
    return made


def dit_naming(fields: Fields) -> Naming:
    """The names of a `DiTTransformer2DModel`'s tensors."""
    first, depth = "transformer_blocks.0.norm1.emb.", fields.get("num_layers", 28)
    told = [f"timestep_embedder.linear_{n}.{part}" for n in (1, 2) for part in ("weight", "bias")]
    told.append("class_embedder.embedding_table.weight")
    return Naming(
        renames=[
            (r"^patches/", "pos_embed/proj/"),
            (r"^time/hidden/", first + "timestep_embedder/linear_1/"),
            (r"^time/out/", first + "timestep_embedder/linear_2/"),
            (r"^label/", first + "class_embedder/embedding_table/"),
            (r"^modulation/", "proj_out_1/"),
            (r"^out/", "proj_out_2/"),
            (r"^blocks/modulation/", "transformer_blocks/{}/norm1/linear/"),
            *_BLOCK,
        ],
        parts=_QKV,
        axes=_PATCHES,
        sizes=_pixels(fields),
        copies={f"transformer_blocks.{i}.norm1.emb.{name}": first + name for i in range(1, depth) for name in told},
        unused=[r"^pos_embed\.pos_embed$"],
    )


_BLOCK = [
    (r"^blocks/attention/qkv/", "transformer_blocks/{}/attn1/qkv/"),
    (r"^blocks/attention/out/", "transformer_blocks/{}/attn1/to_out/0/"),
    (r"^blocks/cross_attention/query/", "transformer_blocks/{}/attn2/to_q/"),
    (r"^blocks/cross_attention/key/", "transformer_blocks/{}/attn2/to_k/"),
    (r"^blocks/cross_attention/value/", "transformer_blocks/{}/attn2/to_v/"),
    (r"^blocks/cross_attention/out/", "transformer_blocks/{}/attn2/to_out/0/"),
    (r"^blocks/expand/", "transformer_blocks/{}/ff/net/0/proj/"),
    (r"^blocks/contract/", "transformer_blocks/{}/ff/net/2/"),
]


def authors_naming(network: DiT) -> Naming:
    """The names that DiT's and SiT's authors gave (facebookresearch/DiT, willisma/SiT).

    Args:
      network: `jaxdiff.networks.dit` of a size.
    """
    return Naming(
        renames=[
            (r"^patches/", "x_embedder/proj/"),
            (r"^time/hidden/", "t_embedder/mlp/0/"),
            (r"^time/out/", "t_embedder/mlp/2/"),
            (r"^label/", "y_embedder/embedding_table/"),
            (r"^modulation/", "final_layer/adaLN_modulation/1/"),
            (r"^out/", "final_layer/linear/"),
            (r"^blocks/modulation/", "blocks/{}/adaLN_modulation/1/"),
            (r"^blocks/attention/qkv/", "blocks/{}/attn/qkv/"),
            (r"^blocks/attention/out/", "blocks/{}/attn/proj/"),
            (r"^blocks/expand/", "blocks/{}/mlp/fc1/"),
            (r"^blocks/contract/", "blocks/{}/mlp/fc2/"),
        ],
        axes=[*_PATCHES, (r"qkv/kernel$", "(t o) i -> i t o"), (r"qkv/bias$", "(t o) -> t o")],
        sizes={"p": network.patch, "q": network.patch},
        unused=[r"^pos_embed$"],
    )


# --- PixArt


def pixart(fields: Fields) -> DiT:
    """The configuration of a `PixArtTransformer2DModel`: PixArt-Sigma and Alpha; the latter's of 1024 pixels is told
    the picture's height and width, and their ratio.

    Raises:
      PretrainedError: a field that jaxdiff does not follow.
    """
    fields.only(activation_fn="gelu-approximate", norm_type="ada_norm_single", attention_bias=True)
    fields.only(norm_elementwise_affine=False, attention_type="default", num_embeds_ada_norm=1000)
    common = _common(fields, size=128, out=8)
    size = fields.get("sample_size", 128)
    told: tuple[NetCondition, ...] = ()
    if _told_of_size(fields):
        if common["width"] % 3:
            fields.refuse("use_additional_conditions", f"is true, and the width {common['width']} is no multiple of 3")
        told = sizes_told(common["width"])
    if fields.get("cross_attention_dim", 1152) != common["width"]:
        fields.refuse("cross_attention_dim", f"is not {common['width']}, heads times their width")
    channels = fields.get("caption_channels", None, like=1)
    if channels is None:
        fields.refuse("caption_channels", "is missing")
    scale = fields.get("interpolation_scale", None, like=1.0) or max(size // 64, 1)
    common["span"] /= scale
    made = DiT(
        **common,
        norm_eps=fields.get("norm_eps", 1e-6),
        modulation="single",
        conditions=(Tokens("text", channels), *told),
    )
    fields.done()
    return made


def _told_of_size(fields: Fields) -> bool:
    """Whether a PixArt is told resolution and aspect ratio: where nothing is said, at 128 latents a side."""
    said = fields.get("use_additional_conditions", None, like=False)
    return fields.get("sample_size", 128) == 128 if said is None else bool(said)


def pixart_naming(fields: Fields) -> Naming:
    """The names of a `PixArtTransformer2DModel`'s tensors."""
    return Naming(
        renames=[
            (r"^patches/", "pos_embed/proj/"),
            (r"^time/hidden/", "adaln_single/emb/timestep_embedder/linear_1/"),
            (r"^time/out/", "adaln_single/emb/timestep_embedder/linear_2/"),
            (r"^told/by_name/(resolution|aspect_ratio)/hidden/", r"adaln_single/emb/\1_embedder/linear_1/"),
            (r"^told/by_name/(resolution|aspect_ratio)/out/", r"adaln_single/emb/\1_embedder/linear_2/"),
            (r"^told/by_name/text/map/", "caption_projection/linear_1/"),
            (r"^text/", "caption_projection/linear_2/"),
            (r"^modulation/", "adaln_single/linear/"),
            (r"^table$", "scale_shift_table"),
            (r"^out/", "proj_out/"),
            (r"^blocks/table$", "transformer_blocks/{}/scale_shift_table"),
            *_BLOCK,
        ],
        parts=_QKV,
        axes=_PATCHES,
        sizes=_pixels(fields),
        unused=[r"^pos_embed\.pos_embed$", r"^caption_projection\.y_embedding$"],
    )


# --- SD3 and FLUX.1


def sd3(fields: Fields) -> MMDiT:
    """The configuration of an `SD3Transformer2DModel`: Stable Diffusion 3 and 3.5.

    Raises:
      PretrainedError: a field that jaxdiff does not follow.
    """
    heads, depth = fields.get("num_attention_heads", 18), fields.get("num_layers", 18)
    width = heads * fields.get("attention_head_dim", 64)
    if fields.get("caption_projection_dim", 1152) != width:
        fields.refuse("caption_projection_dim", f"is not {width}, heads times their width")
    dual = _dual(fields)
    if dual != tuple(range(len(dual))):
        fields.refuse("dual_attention_layers", f"is {dual}, expected the first blocks")
    fields.only(qk_norm=(None, "rms_norm"))
    patch = fields.get("patch_size", 2)
    made = MMDiT(
        in_channels=fields.get("in_channels", 16),
        out_channels=fields.get("out_channels", 16),
        patch=patch,
        width=width,
        depth=depth,
        heads=heads,
        qk_norm=fields.get("qk_norm", None, like="") is not None,
        dual=len(dual),
        grid=fields.get("pos_embed_max_size", 96),
        span=float(fields.get("sample_size", 128) // patch),
        conditions=(
            Tokens("text", fields.get("joint_attention_dim", 4096), pooled=fields.get("pooled_projection_dim", 2048)),
        ),
    )
    fields.done()
    return made


def _dual(fields: Fields) -> tuple[int, ...]:
    """The blocks whose image stream has attention of its own."""
    return fields.get("dual_attention_layers", (), like=(0,)) or ()


def sd3_naming(fields: Fields) -> Naming:
    """The names of an `SD3Transformer2DModel`'s tensors."""
    depth, dual = fields.get("num_layers", 18), len(_dual(fields))
    return Naming(
        renames=[
            (r"^patches/", "pos_embed/proj/"),
            (r"^dual/", "transformer_blocks/{}/"),
            (r"^double/", f"transformer_blocks/{{{dual}}}/"),
            (r"^last/", f"transformer_blocks/{{{depth - 1}}}/"),
            *_STREAMS,
        ],
        parts=_JOINT_QKV,
        axes=[
            *_PATCHES,
            (r"^modulation/kernel$|^last/text/modulation/kernel$", _SWAPPED[0]),
            (r"^modulation/bias$|^last/text/modulation/bias$", _SWAPPED[1]),
        ],
        sizes={**_pixels(fields), "s": 2},
        tables={"pos_embed.pos_embed": functools.partial(_positions, sd3(Fields(fields.values, fields.where)))},
    )


def _positions(network: MMDiT) -> NDArray[np.float32]:
    """The table that an image's positions are the middle of, ``(1, grid^2, width)``."""
    places = np.arange(network.grid) * (network.span / network.grid)
    return position_embedding(places, places, network.width)[None]


def flux(fields: Fields) -> MMDiT:
    """The configuration of a `FluxTransformer2DModel`: FLUX.1 dev and schnell.

    Raises:
      PretrainedError: a field that jaxdiff does not follow.
    """
    fields.only(patch_size=1)
    heads = fields.get("num_attention_heads", 24)
    inputs, outputs = fields.get("in_channels", 64), fields.get("out_channels", None, like=1)
    if inputs % 4 or (outputs or inputs) % 4:
        fields.refuse("in_channels", f"is {inputs}, expected four pixels of latents, a multiple of 4")
    text = Tokens("text", fields.get("joint_attention_dim", 4096), pooled=fields.get("pooled_projection_dim", 768))
    told: tuple[NetCondition, ...] = (Level("guidance", high=None),) if fields.get("guidance_embeds", False) else ()
    made = MMDiT(
        in_channels=inputs // 4,
        out_channels=(outputs or inputs) // 4,
        patch=2,
        width=heads * fields.get("attention_head_dim", 128),
        depth=fields.get("num_layers", 19),
        single_blocks=fields.get("num_single_layers", 38),
        heads=heads,
        qk_norm=True,
        rope=tuple(fields.get("axes_dims_rope", (16, 56, 56))),
        conditions=(text, *told),
    )
    fields.done()
    return made


def flux_naming(fields: Fields) -> Naming:
    """The names of a `FluxTransformer2DModel`'s tensors."""
    width = fields.get("num_attention_heads", 24) * fields.get("attention_head_dim", 128)
    return Naming(
        renames=[
            (r"^patches/", "x_embedder/"),
            (r"^double/", "transformer_blocks/{}/"),
            (r"^single/modulation/", "single_transformer_blocks/{}/norm/linear/"),
            (r"^single/mlp/expand/", "single_transformer_blocks/{}/proj_mlp/"),
            (r"^single/(attention/out|mlp/contract)/", "single_transformer_blocks/{}/proj_out/"),
            (r"^single/attention/", "single_transformer_blocks/{}/image/attention/"),
            *_STREAMS,
        ],
        parts=_JOINT_QKV,
        axes=[
            (r"^patches/kernel$", "o (c p q) -> (p q c) o"),
            (r"^out/kernel$", "(c p q) i -> i (p q c)"),
            (r"^out/bias$", "(c p q) -> (p q c)"),
            (r"^modulation/kernel$", _SWAPPED[0]),
            (r"^modulation/bias$", _SWAPPED[1]),
        ],
        sizes={"p": 2, "q": 2, "s": 2},
        cuts=[
            (r"^single/attention/out/kernel$", Cut(1, 0, width, 5 * width)),
            (r"^single/mlp/contract/kernel$", Cut(1, width, 5 * width, 5 * width)),
        ],
    )


_STREAMS = [
    (r"^time/hidden/", "time_text_embed/timestep_embedder/linear_1/"),
    (r"^time/out/", "time_text_embed/timestep_embedder/linear_2/"),
    (r"^told/by_name/guidance/time/hidden/", "time_text_embed/guidance_embedder/linear_1/"),
    (r"^told/by_name/guidance/time/out/", "time_text_embed/guidance_embedder/linear_2/"),
    (r"^told/by_name/text/pooled/hidden/", "time_text_embed/text_embedder/linear_1/"),
    (r"^told/by_name/text/pooled/out/", "time_text_embed/text_embedder/linear_2/"),
    (r"^told/by_name/text/map/", "context_embedder/"),
    (r"^modulation/", "norm_out/linear/"),
    (r"^out/", "proj_out/"),
    (r"/image/modulation/", "/norm1/linear/"),
    (r"/text/modulation/", "/norm1_context/linear/"),
    (r"/image/attention/qkv/", "/attn/qkv/"),
    (r"/image/attention/out/", "/attn/to_out/0/"),
    (r"/image/attention/query_norm/", "/attn/norm_q/"),
    (r"/image/attention/key_norm/", "/attn/norm_k/"),
    (r"/image/own_attention/qkv/", "/attn2/qkv/"),
    (r"/image/own_attention/out/", "/attn2/to_out/0/"),
    (r"/image/own_attention/query_norm/", "/attn2/norm_q/"),
    (r"/image/own_attention/key_norm/", "/attn2/norm_k/"),
    (r"/text/attention/qkv/", "/attn/added_qkv/"),
    (r"/text/attention/out/", "/attn/to_add_out/"),
    (r"/text/attention/query_norm/", "/attn/norm_added_q/"),
    (r"/text/attention/key_norm/", "/attn/norm_added_k/"),
    (r"/image/mlp/expand/", "/ff/net/0/proj/"),
    (r"/image/mlp/contract/", "/ff/net/2/"),
    (r"/text/mlp/expand/", "/ff_context/net/0/proj/"),
    (r"/text/mlp/contract/", "/ff_context/net/2/"),
]
_JOINT_QKV = {"added_qkv": ("add_q_proj", "add_k_proj", "add_v_proj"), **_QKV}


def _common(fields: Fields, *, size: int, out: int | None) -> dict[str, Any]:
    """What DiT and PixArt have."""
    heads, patch = fields.get("num_attention_heads", 16), fields.get("patch_size", 2)
    channels = fields.get("in_channels", 4)
    fields.ignore("norm_num_groups", "upcast_attention")
    return {
        "in_channels": channels,
        "out_channels": fields.get("out_channels", out, like=1) or channels,
        "patch": patch,
        "width": heads * fields.get("attention_head_dim", 72),
        "depth": fields.get("num_layers", 28),
        "heads": heads,
        "dropout": fields.get("dropout", 0.0),
        "span": float(fields.get("sample_size", size) // patch),
    }


def _pixels(fields: Fields) -> dict[str, int]:
    patch = fields.get("patch_size", 2)
    return {"p": patch, "q": patch}
