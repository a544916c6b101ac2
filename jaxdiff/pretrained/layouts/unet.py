"""The U-Nets of diffusers, `UNet2DModel` and `UNet2DConditionModel`, as `jaxdiff.networks.UNet`.

Their configurations have some sixty fields. Those in which published checkpoints differ are followed; each of the
others has the one value that is known here, or is refused by its name. Traps, each tested beside the original:

- `attention_head_dim` is the width of a head in a `UNet2DModel` (null: one head), and the number of heads, of each
  level, in a `UNet2DConditionModel`.
- `downsample_padding` 0 pads at the bottom and the right only.
- the transformers' group normalisations have eps 1e-6, whatever `norm_eps` is.
- `num_class_embeds` counts all rows of the table: which of them means "no class", if any, is not said.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxdiff.networks import UNet
from jaxdiff.networks.conditions import Image, NetCondition, Tokens, Vector
from jaxdiff.pretrained.fields import Fields, short
from jaxdiff.pretrained.files.naming import Naming

ATTENTION = [
    (r"attention/norm/", "group_norm/"),
    (r"attention/attention/qkv/", "qkv/"),
    (r"attention/attention/out/", "to_out/0/"),
]
LAYERS = [  # of a transformer; the authors' names too
    (r"/attention/qkv/", "/attn1/qkv/"),
    (r"/attention/out/", "/attn1/to_out/0/"),
    (r"/cross_attention/query/", "/attn2/to_q/"),
    (r"/cross_attention/key/", "/attn2/to_k/"),
    (r"/cross_attention/value/", "/attn2/to_v/"),
    (r"/cross_attention/out/", "/attn2/to_out/0/"),
    (r"/expand/", "/ff/net/0/proj/"),
    (r"/contract/", "/ff/net/2/"),
]
_TRANSFORMER = [
    (r"attention/enter/", "proj_in/"),
    (r"attention/leave/", "proj_out/"),
    (r"attention/norm/", "norm/"),
    (r"attention/layers/(\d+)/", r"transformer_blocks/\1/"),
    *LAYERS,
]
_PLACES = [
    (r"^down/(\d+)/stages/(\d+)/block/", r"down_blocks/\1/resnets/\2/"),
    (r"^down/(\d+)/stages/(\d+)/attention/", r"down_blocks/\1/attentions/\2/attention/"),
    (r"^down/(\d+)/resample/", r"down_blocks/\1/downsamplers/0/"),
    (r"^middle_in/block/", "mid_block/resnets/0/"),
    (r"^middle_in/attention/", "mid_block/attentions/0/attention/"),
    (r"^middle_out/", "mid_block/resnets/1/"),
    (r"^up/(\d+)/stages/(\d+)/block/", r"up_blocks/\1/resnets/\2/"),
    (r"^up/(\d+)/stages/(\d+)/attention/", r"up_blocks/\1/attentions/\2/attention/"),
    (r"^up/(\d+)/resample/", r"up_blocks/\1/upsamplers/0/"),
    (r"(resnets|samplers)/(\d+)/embed/", r"\1/\2/time_emb_proj/"),
    (r"(resnets|samplers)/(\d+)/skip/", r"\1/\2/conv_shortcut/"),
    (r"^time/hidden/", "time_embedding/linear_1/"),
    (r"^time/out/", "time_embedding/linear_2/"),
    (r"^time/told/", "time_embedding/cond_proj/"),
    (r"^label/", "class_embedding/"),
    (r"^told/together/hidden/", "add_embedding/linear_1/"),
    (r"^told/together/out/", "add_embedding/linear_2/"),
    (r"^norm_out/", "conv_norm_out/"),
]
OLDER = [  # checkpoints from before diffusers 0.13
    (r"\.query\.", ".to_q."),
    (r"\.key\.", ".to_k."),
    (r"\.value\.", ".to_v."),
    (r"\.proj_attn\.", ".to_out.0."),
]


def naming(fields: Fields) -> Naming:
    """The names of a U-Net's tensors.

    Args:
      fields: of its configuration.
    """
    conditioned = fields.values.get("_class_name") != "UNet2DModel"
    axes = [(r"/skip/kernel$", "o i 1 1 -> i o")]
    if conditioned:
        axes += [(r"/expand/kernel$", "(t o) i -> i t o"), (r"/expand/bias$", "(t o) -> t o")]
        if not fields.get("use_linear_projection", False):
            axes.append((r"attention/(enter|leave)/kernel$", "o i 1 1 -> i o"))
    return Naming(
        renames=[*_PLACES, *(_TRANSFORMER if conditioned else ATTENTION)],
        parts={"qkv": ("to_q", "to_k", "to_v")},
        axes=axes,
        aliases=OLDER,
    )


def unet_2d(fields: Fields) -> UNet:
    """The configuration of a `UNet2DModel`: DDPM's, and the consistency models'.

    Raises:
      PretrainedError: a field that jaxdiff does not follow.
    """
    fields.only(
        center_input_sample=False,
        time_embedding_type="positional",
        mid_block_type="UNetMidBlock2D",
        mid_block_scale_factor=1,
        act_fn="silu",
        add_attention=True,
        class_embed_type=None,
    )
    fields.ignore("num_train_timesteps")
    common = _common(fields, freq_shift=0, norm_eps=1e-5)
    levels = len(common["multipliers"])
    down = fields.get("down_block_types", ("DownBlock2D", *("AttnDownBlock2D",) * 3))
    kinds = {"DownBlock2D": False, "ResnetDownsampleBlock2D": False, "AttnDownBlock2D": True}
    attends = _kinds(fields, "down_block_types", down, kinds, levels)
    up = fields.get("up_block_types", (*("AttnUpBlock2D",) * 3, "UpBlock2D"))
    kinds = {"UpBlock2D": False, "ResnetUpsampleBlock2D": False, "AttnUpBlock2D": True}
    _mirrored(fields, attends, _kinds(fields, "up_block_types", up, kinds, levels))
    halve = {_resamples(fields, kind, "downsample_type", "Resnet") for kind in down[:-1]}
    double = {_resamples(fields, kind, "upsample_type", "Resnet") for kind in up[:-1]}
    if len(halve | double) > 1:
        fields.refuse(
            "down_block_types", f"is {down!r}: jaxdiff resamples by convolutions, or by residual blocks, everywhere"
        )
    scale_shift = common["scale_shift"]
    if fields.get("attn_norm_num_groups", None, like=1) not in (
        (common["groups"],) if scale_shift else (None, common["groups"])
    ):
        fields.refuse("attn_norm_num_groups", f"is not norm_num_groups, {common['groups']}, in the middle as elsewhere")
    head = fields.get("attention_head_dim", 8, like=8)
    size = common["image_size"]
    made = UNet(
        **common,
        attention_resolutions=tuple(size // 2**level for level in range(levels) if attends[level]),
        head_width=head,
        heads=1,
        residual_resampling=(halve | double) == {True},
        null_class=False,
    )
    fields.done()
    return made


def unet_2d_condition(fields: Fields) -> UNet:
    """The configuration of a `UNet2DConditionModel`: Stable Diffusion 1 and 2, XL and its refiner, inpainting, LCM.

    Channels beyond those of the output are images of the condition: ``mask`` and ``masked`` (inpainting), or ``image``.

    Raises:
      PretrainedError: a field that jaxdiff does not follow.
    """
    fields.only(
        center_input_sample=False,
        mid_block_type="UNetMidBlock2DCrossAttn",
        only_cross_attention=False,
        mid_block_scale_factor=1,
        act_fn="silu",
        reverse_transformer_layers_per_block=None,
        encoder_hid_dim=None,
        encoder_hid_dim_type=None,
        num_attention_heads=None,
        dual_cross_attention=False,
        class_embed_type=None,
        resnet_skip_time_act=False,
        resnet_out_scale_factor=1.0,
        time_embedding_type="positional",
        time_embedding_act_fn=None,
        timestep_post_act=None,
        conv_in_kernel=3,
        conv_out_kernel=3,
        attention_type="default",
        class_embeddings_concat=False,
        mid_block_only_cross_attention=(None, False),
        cross_attention_norm=None,
    )
    fields.ignore("upcast_attention", "addition_embed_type_num_heads", "use_linear_projection")
    common = _common(fields, freq_shift=0, norm_eps=1e-5, channels=(320, 640, 1280, 1280), in_channels=4)
    levels = len(common["multipliers"])
    down = fields.get("down_block_types", (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"))
    kinds = {"DownBlock2D": False, "CrossAttnDownBlock2D": True}
    attends = _kinds(fields, "down_block_types", down, kinds, levels)
    up = fields.get("up_block_types", ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3))
    kinds = {"UpBlock2D": False, "CrossAttnUpBlock2D": True}
    _mirrored(fields, attends, _kinds(fields, "up_block_types", up, kinds, levels))
    each = _each(fields, "transformer_layers_per_block", 1, levels)
    layers = tuple(number if there else 0 for number, there in zip(each, attends, strict=True))
    if each[-1] != next((number for number in reversed(layers) if number), None):
        fields.refuse(
            "transformer_layers_per_block", f"is {each}: the middle has as many as the last level that has any"
        )
    told = _conditions(fields, common)
    made = UNet(
        **{**common, **told},
        attention_resolutions=(),
        transformer_layers=layers,
        **_heads(fields, common, levels),
        null_class=False,
        flax_numerics=bool(fields.values.get("_flax_numerics")),
    )
    fields.done()
    return made


def _common(
    fields: Fields,
    *,
    freq_shift: int,
    norm_eps: float,
    channels: tuple[int, ...] = (224, 448, 672, 896),
    in_channels: int = 3,
) -> dict[str, Any]:
    """What both kinds have."""
    widths = tuple(fields.get("block_out_channels", channels))
    levels = len(widths)
    if fields.get("time_embedding_dim", None, like=1) not in (None, 4 * widths[0]):
        fields.refuse("time_embedding_dim", f"is not {4 * widths[0]}, four times the first of block_out_channels")
    each = _each(fields, "layers_per_block", 2, levels)
    if len({*each}) > 1:
        fields.refuse("layers_per_block", f"is {each}, expected one number for all levels")
    groups = fields.get("norm_num_groups", 32)
    if any(width % groups for width in widths):
        fields.refuse("norm_num_groups", f"is {groups!r}, which does not divide {widths}")
    scale_shift = fields.get("resnet_time_scale_shift", "default")
    if scale_shift not in ("default", "scale_shift"):
        fields.refuse("resnet_time_scale_shift", f"is {scale_shift!r}; jaxdiff has 'default' or 'scale_shift' alone")
    padding = fields.get("downsample_padding", 1)
    if padding not in (0, 1):
        fields.refuse("downsample_padding", f"is {padding!r}; jaxdiff has 0 or 1 alone")
    sides = fields.sides()
    size = None if sides is None else max(sides)
    unit = 2 ** (levels - 1)
    return {
        "image_size": size if size and size % unit == 0 else unit,
        "in_channels": fields.get("in_channels", in_channels),
        "out_channels": fields.get("out_channels", in_channels),
        "width": widths[0],
        "multipliers": tuple(width / widths[0] for width in widths),
        "blocks": each[0],
        "num_classes": fields.get("num_class_embeds", None, like=1),
        "dropout": fields.get("dropout", 0.0),
        "scale_shift": scale_shift == "scale_shift",
        "downsample_padding": "symmetric" if padding else "bottom_right",
        "time_order": "cos_sin" if fields.get("flip_sin_to_cos", True) else "sin_cos",
        "time_shift": float(fields.get("freq_shift", freq_shift)),
        "groups": groups,
        "least_group": 1,
        "norm_eps": fields.get("norm_eps", norm_eps),
    }


def _each(fields: Fields, name: str, default: int, levels: int) -> tuple[int, ...]:
    """A field with one number for all levels, or one for each."""
    value = fields.get(name, default, several=True)
    each = value if isinstance(value, tuple) else (value,) * levels
    if len(each) != levels or not all(isinstance(number, int) for number in each):
        fields.refuse(name, f"is {value!r}, expected one number, or {levels}")
    return each


def _kinds(fields: Fields, name: str, kinds: Sequence[str], known: dict[str, bool], levels: int) -> tuple[bool, ...]:
    if unknown := [kind for kind in kinds if kind not in known]:
        fields.refuse(name, f"has {short(unknown[0])}; jaxdiff has {', '.join(known)}")
    if len(kinds) != levels:
        fields.refuse(name, f"has {len(kinds)} blocks, and block_out_channels {levels}")
    return tuple(known[kind] for kind in kinds)


def _mirrored(fields: Fields, down: Sequence[bool], up: Sequence[bool]) -> None:
    if tuple(reversed(up)) != tuple(down):
        fields.refuse(
            "up_block_types", f"is {fields.values.get('up_block_types')!r}: no mirror image of down_block_types"
        )


def _resamples(fields: Fields, kind: str, name: str, residual: str) -> bool:
    """Whether a block changes the resolution by a residual block."""
    chosen = fields.get(name, "conv")
    if chosen not in ("conv", "resnet"):
        fields.refuse(name, f"is {chosen!r}; jaxdiff has 'conv' or 'resnet' alone")
    return kind.startswith(residual) or (kind.startswith("Attn") and chosen == "resnet")


def _heads(fields: Fields, common: dict[str, Any], levels: int) -> dict[str, Any]:
    heads = _each(fields, "attention_head_dim", 8, levels)
    widths = [int(common["width"] * factor) for factor in common["multipliers"]]
    if len({*heads}) == 1:
        return {"heads": heads[0]}
    head_widths = {width / number for width, number in zip(widths, heads, strict=True)}
    if len(head_widths) > 1:
        fields.refuse("attention_head_dim", f"is {heads}: neither the number of heads nor their width is one for all")
    return {"head_width": int(head_widths.pop())}


def _conditions(fields: Fields, common: dict[str, Any]) -> dict[str, Any]:
    """Text, sizes, images, and the weight of guidance."""
    context = fields.get("cross_attention_dim", 1280, several=True)
    if isinstance(context, tuple):
        if len({*context}) > 1:
            fields.refuse("cross_attention_dim", f"is {context}, expected one number for all levels")
        context = context[0]
    pooled, conditions = None, []
    kind = fields.get("addition_embed_type", None, like="")
    frequencies = fields.get("addition_time_embed_dim", None, like=1)
    inputs = fields.get("projection_class_embeddings_input_dim", None, like=1)
    if kind not in (None, "text_time"):
        fields.refuse("addition_embed_type", f"is {kind!r}; jaxdiff has None or 'text_time' alone")
    if kind == "text_time":
        if common["time_order"] != "cos_sin" or common["time_shift"]:
            fields.refuse(
                "addition_embed_type", "is 'text_time', of which jaxdiff has cosines first and no shift alone"
            )
        if frequencies is None or inputs is None:
            missing = "addition_time_embed_dim" if frequencies is None else "projection_class_embeddings_input_dim"
            fields.refuse(missing, "is missing, which addition_embed_type 'text_time' needs")
        ids = 5 if inputs - 5 * frequencies == context else 6  # the refiner has five, and the second encoder alone
        pooled = inputs - ids * frequencies
        if pooled < 1:
            name, least = "projection_class_embeddings_input_dim", ids * frequencies
            fields.refuse(name, f"is {inputs}, expected more than {least}, {ids} times addition_time_embed_dim")
        conditions = [Vector("time_ids", ids, fourier=frequencies, null=False)]
    more = common["in_channels"] - common["out_channels"]
    images: list[NetCondition] = []
    if more == common["out_channels"] + 1:
        images = [
            Image("mask", (None, None), 1, low=0.0, high=1.0),
            Image("masked", (None, None), more - 1, low=None, high=None),
        ]
    elif more > 0:
        images = [Image("image", (None, None), more, low=None, high=None)]
    told = fields.get("time_cond_proj_dim", None, like=1)
    return {
        "in_channels": common["in_channels"] - max(more, 0),
        "conditions": (Tokens("text", context, pooled=pooled), *conditions, *images),
        "joined_conditions": kind is not None,
        "guidance_frequencies": told or 0,
    }
