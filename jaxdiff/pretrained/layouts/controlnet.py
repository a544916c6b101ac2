"""diffusers' `ControlNetModel` as `jaxdiff.networks.ControlNet`: of Stable Diffusion 1 and XL.

Its fields are those of the U-Net's encoder, and a few of its own. A picture has eight pixels for each latent along a
side and numbers from 0 to 1; some networks were trained with its channels the other way round ("bgr").
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxdiff.networks.control import ControlNet
from jaxdiff.pretrained.fields import Fields
from jaxdiff.pretrained.files.naming import Naming
from jaxdiff.pretrained.layouts import unet

_OWN = [
    (r"^picture/first/", "controlnet_cond_embedding/conv_in/"),
    (r"^picture/steps/(\d+)/", r"controlnet_cond_embedding/blocks/\1/"),
    (r"^picture/last/", "controlnet_cond_embedding/conv_out/"),
    (r"^out/(\d+)/", r"controlnet_down_blocks/\1/"),
    (r"^middle/", "controlnet_mid_block/"),
    (r"^encoder/", ""),
]
_UP = {"DownBlock2D": "UpBlock2D", "CrossAttnDownBlock2D": "CrossAttnUpBlock2D"}


def naming(fields: Fields) -> Naming:
    """The names of a ControlNet's tensors.

    Args:
      fields: of its configuration.
    """
    encoder = unet.naming(_as_unet(fields.values, fields.where))
    axes = [(r"^(out/\d+|middle)/kernel$", "o i 1 1 -> i o"), *encoder.axes]
    return dataclasses.replace(encoder, renames=[*_OWN, *encoder.renames], axes=axes)


def controlnet(fields: Fields) -> ControlNet:
    """The configuration of a `ControlNetModel`.

    Raises:
      PretrainedError: a field that jaxdiff does not follow.
    """
    fields.only(global_pool_conditions=(False, None))
    order = fields.get("controlnet_conditioning_channel_order", "rgb")
    if order not in ("rgb", "bgr"):
        fields.refuse("controlnet_conditioning_channel_order", f"is {order!r}; jaxdiff has 'rgb' or 'bgr' alone")
    channels = fields.get("conditioning_channels", 3)
    widths = fields.get("conditioning_embedding_out_channels", None, like=(1,)) or (16, 32, 96, 256)
    values = {name: value for name, value in fields.values.items() if name not in fields.used}
    encoder = unet.unet_2d_condition(_as_unet(values, fields.where))
    fields.ignore(*values)
    fields.done()
    return ControlNet(encoder, channels=channels, widths=widths, order=order)


def _as_unet(values: Mapping[str, Any], where: str) -> Fields:
    """The fields of a U-Net with this encoder."""
    down = Fields(values, where).get("down_block_types", (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"))
    up = [_UP.get(kind, kind) for kind in reversed(down)]
    whole = {"up_block_types": up, "out_channels": values.get("in_channels", 4)}
    return Fields({**values, "_class_name": "UNet2DConditionModel", **whole}, where)
