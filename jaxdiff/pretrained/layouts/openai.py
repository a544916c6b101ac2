"""OpenAI's U-Nets by the names of their own files: improved-diffusion, guided-diffusion (ADM), and consistency models.

The network is `jaxdiff.networks.UNet` (its presets: `jaxdiff.networks.published_unets`). In these files all blocks of a
direction stand in one row, ``input_blocks.N`` and ``output_blocks.N``; a block's members have numbers, the residual
block first, attention after it where the level has it, and on the way up the change of resolution last.

Query, key and value are the rows of one kernel, in one of two orders. With the axis of heads n, that of one head's
channels c, and t = query, key, value,

    "legacy"   (n t c)     improved-diffusion, and guided-diffusion but for its 64 pixels
    "new"      (t n c)     guided-diffusion at 64 pixels (``use_new_attention_order``), consistency models

Both make networks of the same shapes, so which one a file has cannot be seen from it: it is a part of each preset.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal

from jaxdiff.discrete import DiscreteVP, cosine_betas, linear_betas
from jaxdiff.model import Defaults
from jaxdiff.networks import (
    UNet,
    adm,
    adm_256_uncond,
    adm_upsampler,
    cm_imagenet64,
    cm_lsun256,
    iddpm_cifar10,
    iddpm_imagenet64,
    iddpm_lsun256,
)
from jaxdiff.parameterization import Consistency, Eps, Karras, LearnedVariance, LogSigma, TimeIndex
from jaxdiff.pretrained.files.naming import Naming
from jaxdiff.pretrained.layouts.presets import Original
from jaxdiff.pretrained.schedulers.processes import RENOISING, ConsistencyTimes
from jaxdiff.process import Process
from jaxdiff.schedule import KarrasVE

Order = Literal["legacy", "new"]
_BLOCK = [
    (r"/norm1/", "/in_layers/0/"),
    (r"/conv1/", "/in_layers/2/"),
    (r"/embed/", "/emb_layers/1/"),
    (r"/norm2/", "/out_layers/0/"),
    (r"/conv2/", "/out_layers/3/"),
    (r"/skip/", "/skip_connection/"),
    (r"/attention/qkv/", "/qkv/"),
    (r"/attention/out/", "/proj_out/"),
]
_OUTSIDE = [
    (r"^time/hidden/", "time_embed/0/"),
    (r"^time/out/", "time_embed/2/"),
    (r"^label/", "label_emb/"),
    (r"^conv_in/", "input_blocks/0/0/"),
    (r"^middle_in/block/", "middle_block/0/"),
    (r"^middle_in/attention/", "middle_block/1/"),
    (r"^middle_out/", "middle_block/2/"),
    (r"^norm_out/", "out/0/"),
    (r"^conv_out/", "out/2/"),
]


def naming(net: UNet, *, order: Order = "legacy", planes: bool = False) -> Naming:
    """The names of a network's tensors.

    Args:
      net: its configuration.
      order: of query, key and value: see the top of the module.
      planes: whether attention's maps are convolutions of images, as in consistency models, rather than of rows.

    >>> naming(UNet()).leaf("up/0/resample/conv/kernel", (3, 3, 256, 256)).names
    ('output_blocks.2.1.conv.weight',)
    """
    ones = "1 1" if planes else "1"
    packed = "(t n c)" if order == "new" else "(n t c)"
    return Naming(
        renames=[*_OUTSIDE, *_rows(net), *_BLOCK],
        axes=[
            (r"/skip/kernel$", "o i 1 1 -> i o"),
            (r"/attention/out/kernel$", f"o i {ones} -> i o"),
            (r"/qkv/kernel$", f"{packed} i {ones} -> i t (n c)"),
            (r"/qkv/bias$", f"{packed} -> t (n c)"),
        ],
        sizes={"c": net.head_width} if net.head_width else {"n": net.heads},
    )


def _rows(net: UNet) -> list[tuple[str, str]]:
    """Where each block stands in its row."""
    renames, levels = [], range(len(net.multipliers))
    attends = [net.image_size // 2**level in net.attention_resolutions for level in levels]
    conv = "" if net.residual_resampling else "op/"
    number = 1
    for level in levels:
        for stage in range(net.blocks):
            renames.append((rf"^down/{level}/stages/{stage}/block/", f"input_blocks/{number}/0/"))
            renames.append((rf"^down/{level}/stages/{stage}/attention/", f"input_blocks/{number}/1/"))
            number += 1
        place = rf"^down/{level}/resample/" if net.residual_resampling else rf"^down/{level}/resample/conv/"
        renames.append((place, f"input_blocks/{number}/0/{conv}"))
        number += 1
    number = 0
    for step, level in enumerate(reversed(levels)):
        for stage in range(net.blocks + 1):
            renames.append((rf"^up/{step}/stages/{stage}/block/", f"output_blocks/{number}/0/"))
            renames.append((rf"^up/{step}/stages/{stage}/attention/", f"output_blocks/{number}/1/"))
            number += 1
        renames.append((rf"^up/{step}/resample/", f"output_blocks/{number - 1}/{1 + attends[level]}/"))
    return renames


def _chain(network: Callable[..., UNet], betas: Callable[[int], Any], steps: int, **options: Any) -> Original:
    """A model of DDPM's chain with a learned variance."""
    order: Order = options.pop("order", "legacy")
    scale = options.pop("scale", 1.0)

    def process() -> Process:
        return DiscreteVP(betas(steps))

    return Original(
        functools.partial(network, null_class=False),
        functools.partial(naming, order=order),
        process,
        LearnedVariance(Eps(time=TimeIndex(float(steps), scale))),
        Defaults("ddpm:variance=learned", 250, "uniform"),
        "MIT",
        **options,
    )


_TOLD = LogSigma(250.0)


def _karras(network: Callable[..., UNet], *, consistent: bool = False) -> Original:
    """A model of consistency_models: its teachers, by EDM's recipe, and what was distilled of them."""
    return Original(
        functools.partial(network, null_class=False),
        functools.partial(naming, order="new", planes=True),
        KarrasVE,
        Consistency(0.5, least=0.002, time=_TOLD) if consistent else Karras(0.5, time=_TOLD),
        Defaults(RENOISING, 1, ConsistencyTimes(40)) if consistent else Defaults("heun", 40, "karras"),
        "MIT",
    )


MODELS: dict[str, Original] = {
    "iddpm-cifar10": _chain(iddpm_cifar10, cosine_betas, 4000, scale=0.25),
    "iddpm-imagenet64-uncond": _chain(iddpm_imagenet64, cosine_betas, 4000, scale=0.25),
    "iddpm-imagenet64": _chain(functools.partial(iddpm_imagenet64, width=192, num_classes=1000), cosine_betas, 4000),
    "iddpm-lsun256": _chain(iddpm_lsun256, linear_betas, 1000),
    "adm-64": _chain(functools.partial(adm, 64), cosine_betas, 1000, order="new"),
    "adm-128": _chain(functools.partial(adm, 128), linear_betas, 1000),
    "adm-256": _chain(functools.partial(adm, 256), linear_betas, 1000),
    "adm-512": _chain(functools.partial(adm, 512), linear_betas, 1000),
    "adm-256-uncond": _chain(adm_256_uncond, linear_betas, 1000),
    "adm-lsun256": _chain(functools.partial(adm_256_uncond, dropout=0.1), linear_betas, 1000),
    "adm-64-256": _chain(functools.partial(adm_upsampler, 256), linear_betas, 1000, enlarges=4),
    "adm-128-512": _chain(functools.partial(adm_upsampler, 512), linear_betas, 1000, enlarges=4),
    "openai-edm-imagenet64": _karras(cm_imagenet64),
    "openai-edm-lsun256": _karras(cm_lsun256),
    "cm-imagenet64": _karras(cm_imagenet64, consistent=True),
    "cm-lsun256": _karras(cm_lsun256, consistent=True),
}
"""OpenAI's published models by name."""
