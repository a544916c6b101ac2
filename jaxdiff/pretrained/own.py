"""A network and a process of our own by the fields of diffusers: the inverse of reading, for what has such fields.

What comes back is compared with what went in, field by field: a network that diffusers has no fields for is refused by
the name of the field.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from jaxdiff.networks import UNet
from jaxdiff.networks.layers import group_count
from jaxdiff.parameterization import X0, Eps, Parameterization, TimeIndex, V
from jaxdiff.pretrained.errors import PretrainedError
from jaxdiff.pretrained.fields import Fields
from jaxdiff.pretrained.layouts.unet import unet_2d
from jaxdiff.process import Process

_UNSEEN = ("remat", "dtype")  # of how it is computed


def unet_fields(network: UNet) -> dict[str, Any]:
    """The fields of a `UNet2DModel`.

    Raises:
      PretrainedError: a network that `UNet2DModel` has no fields for.

    >>> from jaxdiff.networks import ddpm_cifar10
    >>> unet_fields(ddpm_cifar10())["block_out_channels"]
    [128, 256, 256, 256]
    """
    levels = range(len(network.multipliers))
    widths = [network.channels(level) for level in levels]
    joined = {a + b for a in widths for b in widths}  # with skips beside them
    counts = {group_count(width, network.groups, network.least_group) for width in {*widths, *joined}}
    if len(counts) > 1:
        raise PretrainedError(
            f"network.groups: diffusers has one number of groups for all, and this network has {sorted(counts)} at its "
            f"widths {widths} and where two of them are joined"
        )
    groups = counts.pop()
    attends = [network.image_size // 2**level in network.attention_resolutions for level in levels]
    plain = ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D")
    plain = plain if network.residual_resampling else ("DownBlock2D", "UpBlock2D")
    resample = "resnet" if network.residual_resampling else "conv"
    rows = None if network.num_classes is None else network.num_classes + network.null_class
    fields = {
        "_class_name": "UNet2DModel",
        "sample_size": network.image_size,
        "in_channels": network.in_channels,
        "out_channels": network.out_channels or network.in_channels,
        "block_out_channels": widths,
        "layers_per_block": network.blocks,
        "down_block_types": ["AttnDownBlock2D" if each else plain[0] for each in attends],
        "up_block_types": ["AttnUpBlock2D" if each else plain[1] for each in reversed(attends)],
        "downsample_type": resample,
        "upsample_type": resample,
        "downsample_padding": 1 if network.downsample_padding == "symmetric" else 0,
        "flip_sin_to_cos": network.time_order == "cos_sin",
        "freq_shift": int(network.time_shift),
        "norm_num_groups": groups,
        "attn_norm_num_groups": groups if network.scale_shift else None,
        "norm_eps": network.norm_eps,
        "attention_head_dim": network.head_width,
        "resnet_time_scale_shift": "scale_shift" if network.scale_shift else "default",
        "num_class_embeds": rows,
        "dropout": network.dropout,
        "act_fn": "silu",
    }
    again = unet_2d(Fields(fields))
    ours = dataclasses.replace(
        network,
        out_channels=network.out_channels or network.in_channels,
        num_classes=rows,
        null_class=False,
        groups=groups,
        least_group=1,
        head_width=network.head_width,
        heads=1 if network.head_width else network.heads,
    )
    for each in dataclasses.fields(ours):
        mine, theirs = getattr(ours, each.name), getattr(again, each.name)
        if each.name not in _UNSEEN and mine != theirs:
            raise PretrainedError(
                f"network.{each.name} is {mine!r}, for which a UNet2DModel of diffusers has no field (it has "
                f"{theirs!r})"
            )
    return fields


def scheduler_fields(process: Process, parameterization: Parameterization) -> dict[str, Any]:
    """The fields of a `DDPMScheduler`, whose chain is a process.

    Raises:
      PretrainedError: another process than a `DiscreteVP`, or what no scheduler of it knows.

    >>> from jaxdiff import DiscreteVP, linear_betas
    >>> scheduler_fields(DiscreteVP(linear_betas(1000)), Eps(time=TimeIndex(1000)))["prediction_type"]
    'epsilon'
    """
    betas = getattr(process, "betas", None)
    if betas is None:
        raise PretrainedError(
            f"process: a scheduler of diffusers has a chain of betas, DiscreteVP, and this is {type(process).__name__}"
        )
    betas = np.asarray(betas, np.float32)
    names: dict[type, str] = {Eps: "epsilon", X0: "sample", V: "v_prediction"}
    if type(parameterization) not in names:
        raise PretrainedError(
            f"parameterization: a scheduler of diffusers reads Eps, X0 or V, and this is "
            f"{type(parameterization).__name__}"
        )
    if parameterization.time != TimeIndex(len(betas)):
        raise PretrainedError(
            f"parameterization.time: a network of diffusers is told TimeIndex({len(betas)}), and this one "
            f"{parameterization.time}"
        )
    return {
        "_class_name": "DDPMScheduler",
        "num_train_timesteps": len(betas),
        "trained_betas": betas.tolist(),
        "prediction_type": names[type(parameterization)],
        "clip_sample": True,
        "variance_type": "fixed_small",
    }
