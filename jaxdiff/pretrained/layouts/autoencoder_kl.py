"""diffusers' `AutoencoderKL` as `jaxdiff.networks.KLAutoencoder`: of Stable Diffusion 1, 2, XL and 3, FLUX.1, PixArt.

Its latents are scaled by one number, and shifted by another where there is one; a sampler's x0 is

    x0 = (z - shift_factor) scaling_factor                                                        (1)

All its normalisations have eps 1e-6, attention has one head, and the convolutions of the encoder that halve the size
pad at the bottom and the right only.
"""

from __future__ import annotations

from typing import NamedTuple

from jaxdiff.networks import KLAutoencoder
from jaxdiff.pretrained.fields import Fields, short
from jaxdiff.pretrained.files.naming import Naming
from jaxdiff.pretrained.layouts.unet import ATTENTION, OLDER


class Scale(NamedTuple):
    """Equation (1).

    Attributes:
      factor: scaling_factor.
      shift: shift_factor, 0 where there is none.
    """

    factor: float
    shift: float


def naming(_: Fields) -> Naming:
    """The names of an autoencoder's tensors."""
    return Naming(
        renames=[
            (r"^encoder/levels/(\d+)/blocks/(\d+)/", r"encoder/down_blocks/\1/resnets/\2/"),
            (r"^encoder/levels/(\d+)/resample/", r"encoder/down_blocks/\1/downsamplers/0/conv/"),
            (r"^decoder/levels/(\d+)/blocks/(\d+)/", r"decoder/up_blocks/\1/resnets/\2/"),
            (r"^decoder/levels/(\d+)/resample/", r"decoder/up_blocks/\1/upsamplers/0/conv/"),
            (r"/middle/first/", "/mid_block/resnets/0/"),
            (r"/middle/second/", "/mid_block/resnets/1/"),
            (r"/middle/attend/", "/mid_block/attentions/0/attention/"),
            (r"/skip/", "/conv_shortcut/"),
            (r"/norm_out/", "/conv_norm_out/"),
            (r"^project_in/", "quant_conv/"),
            (r"^project_out/", "post_quant_conv/"),
            *ATTENTION,
        ],
        parts={"qkv": ("to_q", "to_k", "to_v")},
        axes=[(r"(/skip|^project_in|^project_out)/kernel$", "o i 1 1 -> i o")],
        aliases=OLDER,
    )


def autoencoder_kl(fields: Fields) -> KLAutoencoder:
    """The configuration of an `AutoencoderKL`.

    Raises:
      PretrainedError: a field that jaxdiff does not follow.
    """
    fields.only(act_fn="silu")
    fields.ignore("sample_size", "force_upcast")
    scale(fields)
    widths = fields.get("block_out_channels", (64,))
    for name, kind in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
        if fields.get(name, (kind,)) != (kind,) * len(widths):
            said = fields.values.get(name, [kind])
            fields.refuse(name, f"is {short(said)}; jaxdiff has {kind!r} alone, one for each of block_out_channels")
    if any(width % widths[0] for width in widths):
        fields.refuse("block_out_channels", f"is {widths}, expected multiples of the first")
    channels = fields.get("in_channels", 3)
    if fields.get("out_channels", 3) != channels:
        fields.refuse("out_channels", f"is not in_channels, {channels}")
    projections = fields.get("use_quant_conv", True)
    if fields.get("use_post_quant_conv", True) != projections:
        fields.refuse("use_post_quant_conv", "is not use_quant_conv")
    groups = fields.get("norm_num_groups", 32)
    if any(width % groups for width in widths):
        fields.refuse("norm_num_groups", f"is {groups}, which does not divide {widths}")
    made = KLAutoencoder(
        in_channels=channels,
        channels=fields.get("latent_channels", 4),
        width=widths[0],
        multipliers=tuple(width // widths[0] for width in widths),
        blocks=fields.get("layers_per_block", 1),
        middle_attention=fields.get("mid_block_add_attention", True),
        projections=projections,
        groups=groups,
        least_group=1,
    )
    fields.done()
    return made


def scale(fields: Fields) -> Scale:
    """Equation (1)'s numbers.

    Raises:
      PretrainedError: statistics of each channel, which equation (1) does not have.
    """
    fields.only(latents_mean=None, latents_std=None)
    return Scale(fields.get("scaling_factor", 0.18215), fields.get("shift_factor", None, like=0.0) or 0.0)
