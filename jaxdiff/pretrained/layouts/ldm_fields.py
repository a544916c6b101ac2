"""Which Stable Diffusion a file in the authors' layout holds, and the configurations that diffusers publishes for it.

Which one it is, its text encoders say, by their names:

    conditioner.embedders.0.transformer. and conditioner.embedders.1.model.    XL
    conditioner.embedders.0.model.                                             XL's refiner
    cond_stage_model.model.                                                    2
    cond_stage_model.transformer.                                              1

The numbers of a configuration are read off the shapes, so that a fine-tune of other sizes loads too: widths, levels,
blocks of a level, layers of a transformer, channels. What shapes do not tell is the release's: eight heads (1) or heads
of 64 channels (2, XL), the scale of the latents, and the schedule. Four channels come in; nine are inpainting, the
latents, a mask and the masked picture. What the network predicts is not in a file: 2 was published with v at 768 pixels
and with eps at 512, the others with eps. A tensor ``v_pred`` says v, ``ztsnr`` a schedule that ends in noise alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxdiff.pretrained.errors import PretrainedError
from jaxdiff.pretrained.files.tensors import Described
from jaxdiff.pretrained.layouts.ldm_names import EMA, UNET, VAE

_SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "steps_offset": 1,
    "trained_betas": None,
}
_PNDM = {"_class_name": "PNDMScheduler", **_SCHEDULE, "set_alpha_to_one": False, "skip_prk_steps": True}
_DDIM = {"_class_name": "DDIMScheduler", **_SCHEDULE, "set_alpha_to_one": False, "clip_sample": False}
_EULER = {
    "_class_name": "EulerDiscreteScheduler",
    **_SCHEDULE,
    "interpolation_type": "linear",
    "timestep_spacing": "leading",
    "use_karras_sigmas": False,
}
_HEAD = 64  # channels of a head, in all that is not of Stable Diffusion 1's U-Net
_USED = 23  # blocks of Stable Diffusion 2's encoder that are used, of 24
Shapes = Mapping[str, Described]


@dataclass(frozen=True)
class Encoder:
    """A text encoder within a file.

    Args:
      part: its folder in diffusers.
      prefix: of its tensors.
      open_clip: whether its names are open_clip's; else they are transformers'.
      projected: whether its projection is used.
    """

    part: str
    prefix: str
    open_clip: bool
    projected: bool = False


@dataclass(frozen=True)
class Release:
    """What shapes do not tell of a Stable Diffusion.

    Args:
      name: of it.
      encoders: its text encoders.
      pipeline, inpainting: classes of diffusers, with four channels that come in and with nine.
      heads: of the U-Net's attention; None: as many as there are 64 channels.
      scale: of the latents.
      size: of the latents' sides.
      scheduler: its fields.
      index: more fields of `model_index.json`.
    """

    name: str
    encoders: tuple[Encoder, ...]
    pipeline: str
    inpainting: str | None
    heads: int | None = None
    scale: float = 0.18215
    size: int = 64
    scheduler: Mapping[str, Any] = field(default_factory=lambda: _PNDM)
    index: Mapping[str, Any] = field(default_factory=dict)


_SD, _INPAINT = "StableDiffusionPipeline", "StableDiffusionInpaintPipeline"
_XL: dict[str, Any] = {"scale": 0.13025, "size": 128, "scheduler": _EULER}
_FIRST, _SECOND = "conditioner.embedders.0.", "conditioner.embedders.1."
RELEASES = (
    Release(
        "Stable Diffusion XL",
        (
            Encoder("text_encoder", f"{_FIRST}transformer.", False),
            Encoder("text_encoder_2", f"{_SECOND}model.", True, True),
        ),
        "StableDiffusionXLPipeline",
        "StableDiffusionXLInpaintPipeline",
        index={"force_zeros_for_empty_prompt": True},
        **_XL,
    ),
    Release(
        "Stable Diffusion XL's refiner",
        (Encoder("text_encoder_2", f"{_FIRST}model.", True, True),),
        "StableDiffusionXLImg2ImgPipeline",
        None,
        index={"force_zeros_for_empty_prompt": False, "requires_aesthetics_score": True},
        **_XL,
    ),
    Release("Stable Diffusion 2", (Encoder("text_encoder", "cond_stage_model.model.", True),), _SD, _INPAINT),
    Release(
        "Stable Diffusion 1", (Encoder("text_encoder", "cond_stage_model.transformer.", False),), _SD, _INPAINT, heads=8
    ),
)
"""The first whose encoders a file has is it."""

_OTHERS = (
    (r"^(model\.diffusion_model\.)?joint_blocks\.", "Stable Diffusion 3 in its authors' layout"),
    (r"^(model\.diffusion_model\.)?double_blocks\.", "FLUX in its authors' layout"),
    (r"^control_model\.", "a ControlNet"),
    (r"^lora_(unet|te)|\.lora_(A|B|up|down)\.", "a LoRA, which changes another model"),
    (r"^(down_blocks|transformer_blocks|encoder\.down_blocks)\.", "one network of diffusers: give its folder"),
    (r"^(encoder|decoder)\.(down|up)\.", "an autoencoder alone"),
)


def release_of(names: Mapping[str, Any], where: str) -> Release:
    """Which Stable Diffusion it is.

    Args:
      names: of the file's tensors.
      where: the file, for messages.

    Raises:
      PretrainedError: it is none.
    """
    for release in RELEASES:
        whole = all(any(name.startswith(encoder.prefix) for name in names) for encoder in release.encoders)
        if whole and f"{UNET}input_blocks.0.0.weight" in names and f"{VAE}decoder.conv_in.weight" in names:
            return release
    what = next((f"is {kind}" for pattern, kind in _OTHERS if any(re.search(pattern, name) for name in names)), None)
    if what is None:
        beginnings = {"a U-Net": UNET, "an autoencoder": VAE, "a text encoder": "cond_stage_model. or conditioner."}
        lacks = [f"{part} ({it})" for part, it in beginnings.items() if not _has(names, it)]
        what = f"lacks {', '.join(lacks)}" if lacks else "has a text encoder that is not known"
        if _has(names, EMA) and not _has(names, UNET):
            what = f"has the averages ({EMA}) of its U-Net's weights without the weights, whose names say where they go"
    raise PretrainedError(
        f"{where}: {what}; a single file is read of {', '.join(each.name for each in reversed(RELEASES))}, each whole"
    )


def _has(names: Mapping[str, Any], prefixes: str) -> bool:
    return any(name.startswith(tuple(prefixes.split(" or "))) for name in names)


def unet_fields(release: Release, shapes: Shapes, size: int, where: str) -> dict[str, Any]:
    """The `config.json` of the U-Net."""
    blocks = 1 + max(map(int, _matches(rf"^{UNET}input_blocks\.(\d+)\.", shapes)))
    halves = sorted({int(each) for each in _matches(rf"^{UNET}input_blocks\.(\d+)\.0\.op\.", shapes)})
    row = halves[0] if halves else blocks - 1
    levels = len(halves) + 1
    starts = [1 + level * row for level in range(levels)]
    if row < 2 or halves != [row * (level + 1) for level in range(levels - 1)] or blocks != levels * row:
        raise PretrainedError(f"{where}: its U-Net's {blocks} input blocks are no levels of one length")
    widths = [_length(shapes, f"{UNET}input_blocks.{start}.0.out_layers.3.weight", 0) for start in starts]
    transformer = f"{UNET}input_blocks.{{}}.1."
    layers = [
        len(_matches(rf"^{re.escape(transformer.format(start))}transformer_blocks\.(\d+)\.attn1\.to_q\.", shapes))
        for start in starts
    ]
    attends = [level for level in range(levels) if layers[level]]
    if not attends:
        raise PretrainedError(f"{where}: its U-Net has no transformer")
    first = transformer.format(starts[attends[0]])
    inputs = _length(shapes, f"{UNET}input_blocks.0.0.weight", 1)
    if inputs not in (4, 9) or (inputs == 9 and release.inpainting is None):
        raise PretrainedError(f"{where}: {inputs} channels come into its U-Net; jaxdiff has 4, and 9 of inpainting")
    fields: dict[str, Any] = {
        "_class_name": "UNet2DConditionModel",
        "sample_size": size,
        "in_channels": inputs,
        "out_channels": _length(shapes, f"{UNET}out.2.weight", 0),
        "block_out_channels": widths,
        "layers_per_block": row - 1,
        "down_block_types": ["CrossAttnDownBlock2D" if number else "DownBlock2D" for number in layers],
        "up_block_types": ["CrossAttnUpBlock2D" if number else "UpBlock2D" for number in reversed(layers)],
        "cross_attention_dim": _length(shapes, f"{first}transformer_blocks.0.attn2.to_k.weight", 1),
        "attention_head_dim": release.heads or [_whole(width, where) for width in widths],
        "act_fn": "silu",
        "center_input_sample": False,
        "downsample_padding": 1,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-05,
        "norm_num_groups": 32,
    }
    if len(shapes[f"{first}proj_in.weight"].shape) == 2:
        fields["use_linear_projection"] = True
    several = {layers[level] for level in attends}
    if several != {1}:
        fields["transformer_layers_per_block"] = (
            several.pop() if len(several) == 1 else [number or 1 for number in layers]
        )
    if (label := f"{UNET}label_emb.0.0.weight") in shapes:
        fields |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": _FREQUENCIES,
            "projection_class_embeddings_input_dim": _length(shapes, label, 1),
        }
    return fields


_FREQUENCIES = 256  # of each number that XL is told


def vae_fields(release: Release, shapes: Shapes, size: int) -> dict[str, Any]:
    """The `config.json` of the autoencoder."""
    levels = 1 + max(map(int, _matches(rf"^{VAE}encoder\.down\.(\d+)\.", shapes)), default=0)
    blocks = _matches(rf"^{VAE}encoder\.down\.0\.block\.(\d+)\.conv1\.weight", shapes)
    fields = {
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "block_out_channels": [
            _length(shapes, f"{VAE}encoder.down.{level}.block.0.conv2.weight", 0) for level in range(levels)
        ],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "in_channels": _length(shapes, f"{VAE}encoder.conv_in.weight", 1),
        "out_channels": _length(shapes, f"{VAE}decoder.conv_out.weight", 0),
        "latent_channels": _length(shapes, f"{VAE}decoder.conv_in.weight", 1),
        "layers_per_block": len(blocks),
        "norm_num_groups": 32,
        "sample_size": size * 2 ** (levels - 1),
        "scaling_factor": release.scale,
    }
    return fields | ({"force_upcast": True} if release.scheduler is _EULER else {})


def clip_fields(encoder: Encoder, shapes: Shapes, where: str) -> dict[str, Any]:
    """The `config.json` of a text encoder."""
    prefix = re.escape(encoder.prefix)
    if encoder.open_clip:
        table, places, block, hidden = (
            "token_embedding.weight",
            "positional_embedding",
            r"transformer\.resblocks\.(\d+)\.ln_1\.",
            "transformer.resblocks.0.mlp.c_fc.weight",
        )
    else:
        inner = "text_model." if _has(shapes, f"{encoder.prefix}text_model.") else ""
        table, places, block, hidden = (
            f"{inner}embeddings.token_embedding.weight",
            f"{inner}embeddings.position_embedding.weight",
            rf"{re.escape(inner)}encoder\.layers\.(\d+)\.layer_norm1\.",
            f"{inner}encoder.layers.0.mlp.fc1.weight",
        )
    vocabulary, width = (_length(shapes, encoder.prefix + table, axis) for axis in (0, 1))
    depth = len(_matches(f"^{prefix}{block}", shapes))
    if encoder.open_clip and not encoder.projected:
        depth = min(depth, _USED)
    projection = f"{encoder.prefix}text_projection"
    return {
        "architectures": ["CLIPTextModelWithProjection" if encoder.projected else "CLIPTextModel"],
        "model_type": "clip_text_model",
        "hidden_size": width,
        "intermediate_size": _length(shapes, encoder.prefix + hidden, 0),
        "num_hidden_layers": depth,
        "num_attention_heads": _whole(width, where),
        "max_position_embeddings": _length(shapes, encoder.prefix + places, 0),
        "vocab_size": vocabulary,
        "hidden_act": "gelu" if encoder.open_clip else "quick_gelu",
        "layer_norm_eps": 1e-05,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 1,
        "projection_dim": _length(shapes, projection, 1) if projection in shapes else width,
    }


def scheduler_fields(release: Release, shapes: Shapes, prediction: str) -> dict[str, Any]:
    """The `scheduler_config.json`.

    Args:
      release: which Stable Diffusion it is.
      shapes: of the file's tensors.
      prediction: what the network predicts, in diffusers' words.
    """
    scheduler = release.scheduler
    if scheduler is _PNDM and (prediction == "v_prediction" or "ztsnr" in shapes):  # as published of 2.1
        scheduler = _DDIM
    ends = {"rescale_betas_zero_snr": True} if "ztsnr" in shapes else {}
    return {**scheduler, "prediction_type": prediction, **ends}


def _length(shapes: Shapes, name: str, axis: int) -> int:
    """The length of a weight along an axis.

    Raises:
      KeyError: there is none of this name.
      ValueError: it is no matrix and no convolution.
    """
    shape = shapes[name].shape
    if len(shape) not in (2, 4) or 0 in shape:
        raise ValueError(f"{name} is of shape {shape}, expected a matrix or a convolution")
    return shape[axis]


def _matches(pattern: str, names: Mapping[str, Any]) -> set[str]:
    return {found[1] for found in (re.search(pattern, name) for name in names) if found}


def _whole(width: int, where: str) -> int:
    if width % _HEAD:
        raise PretrainedError(f"{where}: {width} channels are no heads of {_HEAD}, which this release has")
    return width // _HEAD
