"""The names that the authors of latent diffusion gave: of Stable Diffusion 1, 2 and XL in one file.

    model.diffusion_model.input_blocks.4.1.proj_in.weight          the U-Net
    first_stage_model.encoder.down.0.block.0.norm1.weight          the autoencoder
    cond_stage_model.transformer.text_model.*                      Stable Diffusion 1's CLIP, as transformers has it
    cond_stage_model.model.transformer.resblocks.*                 Stable Diffusion 2's, as open_clip has it
    conditioner.embedders.0.transformer.text_model.*               XL's first
    conditioner.embedders.1.model.*                                XL's second, as open_clip has it
    conditioner.embedders.0.model.*                                the refiner's
    model_ema.diffusion_modelinput_blocks41proj_inweight           the U-Net's averaged weights

The U-Net's blocks are numbered from its input on: with n residual blocks a level, block j of level i is
``input_blocks.(1 + i (n + 1) + j)``, and the convolution that halves its size ``input_blocks.((i + 1)(n + 1)).0.op``.
Parts of a block are numbers too: 0 the residual block, 1 the transformer, the last one what doubles the size. The
levels of the autoencoder's decoder are numbered from its output on. open_clip holds queries, keys and values in one
tensor, and multiplies by its projection from the right.
"""

from __future__ import annotations

import dataclasses

from jaxdiff.networks import KLAutoencoder, UNet
from jaxdiff.pretrained.fields import Fields
from jaxdiff.pretrained.files.naming import Naming
from jaxdiff.pretrained.layouts.text import clip_naming
from jaxdiff.pretrained.layouts.unet import LAYERS

UNET, VAE, EMA = "model.diffusion_model.", "first_stage_model.", "model_ema."

_RESIDUAL = [
    (r"(block|middle_out)/norm1/", r"\1/in_layers/0/"),
    (r"(block|middle_out)/conv1/", r"\1/in_layers/2/"),
    (r"(block|middle_out)/embed/", r"\1/emb_layers/1/"),
    (r"(block|middle_out)/norm2/", r"\1/out_layers/0/"),
    (r"(block|middle_out)/conv2/", r"\1/out_layers/3/"),
    (r"(block|middle_out)/skip/", r"\1/skip_connection/"),
]
_OUTER = [
    (r"^middle_in/block/", "middle_block/0/"),
    (r"^middle_in/attention/", "middle_block/1/"),
    (r"^middle_out/", "middle_block/2/"),
    (r"^(input|output)_blocks/(\d+)/block/", r"\1_blocks/\2/0/"),
    (r"^(input|output)_blocks/(\d+)/attention/", r"\1_blocks/\2/1/"),
    (r"^time/hidden/", "time_embed/0/"),
    (r"^time/out/", "time_embed/2/"),
    (r"^told/together/hidden/", "label_emb/0/0/"),
    (r"^told/together/out/", "label_emb/0/2/"),
    (r"^conv_in/", "input_blocks/0/0/"),
    (r"^norm_out/", "out/0/"),
    (r"^conv_out/", "out/2/"),
]
_TRANSFORMER = [
    (r"/1/enter/", "/1/proj_in/"),
    (r"/1/leave/", "/1/proj_out/"),
    (r"/1/layers/(\d+)/", r"/1/transformer_blocks/\1/"),
    *LAYERS,
]
_OPEN_CLIP = [
    (r"^tokens/", "token_embedding/"),
    (r"^positions$", "positional_embedding"),
    (r"^blocks/norm1/", "transformer/resblocks/{}/ln_1/"),
    (r"^blocks/norm2/", "transformer/resblocks/{}/ln_2/"),
    (r"^blocks/attention/qkv/kernel$", "transformer/resblocks/{}/attn/in_proj_weight"),
    (r"^blocks/attention/qkv/bias$", "transformer/resblocks/{}/attn/in_proj_bias"),
    (r"^blocks/attention/out/", "transformer/resblocks/{}/attn/out_proj/"),
    (r"^blocks/expand/", "transformer/resblocks/{}/mlp/c_fc/"),
    (r"^blocks/contract/", "transformer/resblocks/{}/mlp/c_proj/"),
    (r"^norm/", "ln_final/"),
    (r"^projection/kernel$", "text_projection"),
]


def unet_naming(network: UNet, *, linear: bool) -> Naming:
    """The names of a U-Net's tensors.

    Args:
      network: its configuration here.
      linear: whether a transformer begins and ends with linear maps; else they are 1x1 convolutions.
    """
    row, levels = network.blocks + 1, len(network.multipliers)
    blocks = []
    for level in range(levels):
        for stage in range(network.blocks):
            blocks.append((f"^down/{level}/stages/{stage}/", f"input_blocks/{1 + level * row + stage}/"))
        blocks.append((f"^down/{level}/resample/conv/", f"input_blocks/{(level + 1) * row}/0/op/"))
    for step, level in enumerate(reversed(range(levels))):
        for stage in range(row):
            blocks.append((f"^up/{step}/stages/{stage}/", f"output_blocks/{step * row + stage}/"))
        last = 2 if network.layers(level) else 1
        blocks.append((f"^up/{step}/resample/conv/", f"output_blocks/{step * row + network.blocks}/{last}/conv/"))
    axes = [
        (r"/skip/kernel$", "o i 1 1 -> i o"),
        (r"/expand/kernel$", "(t o) i -> i t o"),
        (r"/expand/bias$", "(t o) -> t o"),
    ]
    return Naming(
        renames=[*_RESIDUAL, *blocks, *_OUTER, *_TRANSFORMER, ("^", UNET)],
        parts={"qkv": ("to_q", "to_k", "to_v")},
        axes=axes if linear else [*axes, (r"attention/(enter|leave)/kernel$", "o i 1 1 -> i o")],
    )


def averaged_name(name: str) -> str:
    """The name of the average of a weight of the U-Net: without its dots, so that it cannot be read back.

    >>> averaged_name("model.diffusion_model.out.2.bias")
    'model_ema.diffusion_modelout2bias'
    """
    return EMA + name.removeprefix("model.").replace(".", "")


def vae_naming(network: KLAutoencoder) -> Naming:
    """The names of an autoencoder's tensors.

    Args:
      network: its configuration here.
    """
    last = len(network.multipliers) - 1
    return Naming(
        renames=[
            *((f"^decoder/levels/{level}/", f"decoder/up/{last - level}/") for level in range(last + 1)),
            (r"^encoder/levels/(\d+)/", r"encoder/down/\1/"),
            (r"/blocks/", "/block/"),
            (r"^encoder/(.*)/resample/", r"encoder/\1/downsample/conv/"),
            (r"^decoder/(.*)/resample/", r"decoder/\1/upsample/conv/"),
            (r"/middle/first/", "/mid/block_1/"),
            (r"/middle/second/", "/mid/block_2/"),
            (r"/middle/attend/", "/mid/attn_1/"),
            (r"/attention/qkv/", "/qkv/"),
            (r"/attention/out/", "/proj_out/"),
            (r"/skip/", "/nin_shortcut/"),
            (r"^project_in/", "quant_conv/"),
            (r"^project_out/", "post_quant_conv/"),
            ("^", VAE),
        ],
        parts={"qkv": ("q", "k", "v")},
        axes=[
            (r"(/skip|^project_in|^project_out|attention/out)/kernel$", "o i 1 1 -> i o"),
            (r"attention/qkv/kernel$", "t o i 1 1 -> i t o"),
        ],
        unused=[rf"^{VAE}(loss|model_ema)\."],
    )


def clip_in_a_file(prefix: str) -> Naming:
    """The names of a CLIP encoder that transformers wrote, within a file.

    Args:
      prefix: before them.
    """
    plain = clip_naming(Fields({}))
    before = prefix.replace(".", r"\.")
    return dataclasses.replace(
        plain,
        renames=[*plain.renames, (r"^(?!text_projection)", "text_model."), ("^", prefix)],
        aliases=[(rf"^{before}(?=embeddings|encoder|final_layer_norm)", f"{prefix}text_model.")],
        unused=[rf"^{before}(text_model\.embeddings\.position_ids|text_projection\.weight|logit_scale)$"],
    )


def open_clip_naming(prefix: str, *, blocks: int) -> Naming:
    """The names of a CLIP encoder of open_clip.

    Args:
      prefix: before them.
      blocks: of the encoder; a block after them is not used.
    """
    before = prefix.replace(".", r"\.")
    return Naming(
        renames=[*_OPEN_CLIP, ("^", prefix)],
        axes=[
            (r"/qkv/kernel$", "(t o) i -> i t o"),
            (r"/qkv/bias$", "(t o) -> t o"),
            (r"^projection/kernel$", "i o -> i o"),
        ],
        unused=[
            rf"^{before}(logit_scale|attn_mask|text_projection)$",
            rf"^{before}transformer\.resblocks\.{blocks}\.",
        ],
    )
