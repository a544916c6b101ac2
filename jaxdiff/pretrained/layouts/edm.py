"""EDM's published models by the names of NVlabs' own network: DDPM++, NCSN++, and ADM's network at 64 pixels.

    enc.32x32_conv, enc.32x32_block0, ..., enc.16x16_down, enc.16x16_aux_residual, enc.16x16_block0, ...
    dec.8x8_in0, dec.8x8_in1, dec.8x8_block0, ..., dec.16x16_up, ...

A block is named by its resolution, and a change of resolution by the one that it leads to. Query, key and value of all
channels n stand beside each other, (n t). The filters of the resampling are stored beside the weights: they are
compared with those of the configuration.

The files themselves are Python objects, which run code when they are read: docs/pretrained.md says how their tensors
are brought into a file of safetensors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jaxdiff.model import Defaults
from jaxdiff.networks import SongUNet, UNet, cm_imagenet64, ddpmpp, ncsnpp
from jaxdiff.networks.resampling import Taps
from jaxdiff.parameterization import Karras
from jaxdiff.pretrained.files.naming import Naming
from jaxdiff.pretrained.layouts.presets import Original
from jaxdiff.schedule import KarrasVE

_BLOCK = [
    (r"/norm1/", "/norm0/"),
    (r"/conv1/", "/conv0/"),
    (r"/embed/", "/affine/"),
    (r"/norm2/", "/norm1/"),
    (r"/conv2/", "/conv1/"),
    (r"/norm3/", "/norm2/"),
    (r"/mixed/", "/proj/"),
    (r"/attention/norm/", "/norm2/"),
    (r"/attention/attention/qkv/", "/qkv/"),
    (r"/attention/attention/out/", "/proj/"),
]
_WHOLE = [(r"^", "model/")]  # the network within its preconditioning
_AXES = [
    (r"/(skip|mixed|attention/out)/kernel$", "o i 1 1 -> i o"),
    (r"/qkv/kernel$", "(n t) i 1 1 -> i t n"),
    (r"/qkv/bias$", "(n t) -> t n"),
    (r"label(/embedding)?$", "o n -> n o"),
]


def song_naming(net: SongUNet) -> Naming:
    """The names of a DDPM++ or NCSN++.

    Args:
      net: its configuration.

    >>> song_naming(SongUNet()).leaf("up/1/resample/skip/kernel", (256, 256)).names
    ('model.dec.16x16_up.skip.weight',)
    """
    sides = _sides(net)
    outside = [
        (r"^embed/frequencies$", "map_noise/freqs"),
        (r"^embed/label$", "map_label/weight"),
        (r"^embed/label_bias$", "map_label/bias"),
        (r"^embed/augment/", "map_augment/"),
        (r"^embed/hidden/", "map_layer0/"),
        (r"^embed/out/", "map_layer1/"),
        (r"^norm_out/", f"dec/{sides[0]}_aux_norm/"),
        (r"^conv_out/", f"dec/{sides[0]}_aux_conv/"),
        *_ends(sides),
    ]
    for level, side in enumerate(sides):
        outside.append((rf"^down/{level}/resample/", f"enc/{side}_down/"))
        outside.append((rf"^down/{level}/entering/conv/", f"enc/{side}_aux_residual/"))
        outside.append((rf"^down/{level}/blocks/(\d+)/", rf"enc/{side}_block\1/"))
        up = len(sides) - 1 - level
        outside.append((rf"^up/{up}/resample/", f"dec/{side}_up/"))
        outside.append((rf"^up/{up}/blocks/(\d+)/", rf"dec/{side}_block\1/"))
    filtered = [*_resampled(sides, ("conv0", "skip"))]
    if net.residual_input:
        filtered += [f"model.enc.{side}_aux_residual.resample_filter" for side in sides[1:]]
    return _named(outside, filtered, net.taps)


def adm_naming(net: UNet) -> Naming:
    """The names of ADM's network as EDM has it.

    Args:
      net: its configuration.

    >>> adm_naming(cm_imagenet64()).leaf("up/0/resample/conv1/bias", (768,)).names
    ('model.dec.16x16_up.conv0.bias',)
    """
    sides = _sides(net)
    outside = [
        (r"^time/hidden/", "map_layer0/"),
        (r"^time/out/", "map_layer1/"),
        (r"^label/embedding$", "map_label/weight"),
        (r"^norm_out/", "out_norm/"),
        (r"^conv_out/", "out_conv/"),
        (r"^middle_in/block/", "middle_in/"),
        *_ends(sides),
        (r"/block/", "/"),
    ]
    for level, side in enumerate(sides):
        up, last = len(sides) - 1 - level, len(sides) - 1
        outside.append((rf"^down/{level}/stages/(\d+)/", rf"enc/{side}_block\1/"))
        outside.append((rf"^down/{level}/resample/", f"enc/{sides[min(level + 1, last)]}_down/"))
        outside.append((rf"^up/{up}/stages/(\d+)/", rf"dec/{side}_block\1/"))
        outside.append((rf"^up/{up}/resample/", f"dec/{sides[max(level - 1, 0)]}_up/"))
    return _named(outside, _resampled(sides, ("conv0", "skip")), (1, 1))


def _sides(net: Any) -> list[str]:
    """The resolutions, as blocks are named by them."""
    return [f"{size}x{size}" for size in (net.image_size >> level for level in range(len(net.multipliers)))]


def _ends(sides: list[str]) -> list[tuple[str, str]]:
    """The first convolution and the middle."""
    return [
        (r"^conv_in/", f"enc/{sides[0]}_conv/"),
        (r"^middle_in/", f"dec/{sides[-1]}_in0/"),
        (r"^middle_out/", f"dec/{sides[-1]}_in1/"),
    ]


def _resampled(sides: list[str], maps: tuple[str, ...]) -> list[str]:
    """The names of the stored filters of blocks that change the resolution."""
    blocks = [f"enc.{side}_down" for side in sides[1:]] + [f"dec.{side}_up" for side in sides[:-1]]
    return [f"model.{block}.{each}.resample_filter" for block in blocks for each in maps]


def _named(outside: list[tuple[str, str]], filtered: list[str], taps: Taps) -> Naming:
    def table() -> NDArray[Any]:
        f = np.asarray(taps, np.float32)
        return (np.outer(f, f) / np.square(f.sum()))[None, None]

    return Naming(
        renames=[*outside, *_BLOCK, *_WHOLE],
        axes=_AXES,
        aliases=[(r"^(?=enc\.|dec\.|map_|out_)", "model.")],  # of a file that holds the bare network
        tables=dict.fromkeys(filtered, table),
    )


def _model(network: Callable[..., Any], steps: int = 18, **fixed: Any) -> Original:
    def changed(**changes: Any) -> Any:
        return network(**{"null_class": False, **fixed, **changes})

    return Original(
        changed,
        adm_naming if network is cm_imagenet64 else song_naming,
        KarrasVE,
        Karras(0.5),
        Defaults("heun" if steps < 256 else "edm_stochastic:noise_scale=1.003", steps, "karras", clip=False),
        "CC BY-NC-SA 4.0",
    )


_CIFAR, _FACES = {"num_classes": 10}, {"image_size": 64, "multipliers": (1, 2, 2, 2)}
MODELS: dict[str, Original] = {
    "edm-cifar10-32x32-cond-vp": _model(ddpmpp, **_CIFAR),
    "edm-cifar10-32x32-cond-ve": _model(ncsnpp, **_CIFAR),
    "edm-cifar10-32x32-uncond-vp": _model(ddpmpp),
    "edm-cifar10-32x32-uncond-ve": _model(ncsnpp),
    "edm-ffhq-64x64-uncond-vp": _model(ddpmpp, 40, **_FACES, dropout=0.05),
    "edm-ffhq-64x64-uncond-ve": _model(ncsnpp, 40, **_FACES, dropout=0.05),
    "edm-afhqv2-64x64-uncond-vp": _model(ddpmpp, 40, **_FACES, dropout=0.25),
    "edm-afhqv2-64x64-uncond-ve": _model(ncsnpp, 40, **_FACES, dropout=0.25),
    "edm-imagenet-64x64-cond-adm": _model(cm_imagenet64, 256, least_group=4),
}
"""NVlabs' published models by the names of their files."""
