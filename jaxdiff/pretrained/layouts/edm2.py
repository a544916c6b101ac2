"""EDM2's published models by the names of NVlabs' own network, whose blocks are named as EDM's are
(`jaxdiff.pretrained.layouts.edm`). The network stands within its preconditioning, ``unet.``, beside the head
of the log-variance.

At 512 pixels they are models of latents. Their autoencoder (sd-vae-ft-mse) was given pixels in [0, 1], not in [-1, 1],
and their latents z are x0 = 0.5 (z - mean)/std with the numbers below.

The files are Python objects, and their weights float16: docs/pretrained.md says how their tensors are brought into a
file of safetensors.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from jax import Array

from jaxdiff.model import Defaults
from jaxdiff.networks import EDM2, edm2_img64, edm2_img512
from jaxdiff.networks.autoencoder import Autoencoder
from jaxdiff.parameterization import Karras
from jaxdiff.pretrained.files.naming import Naming
from jaxdiff.pretrained.layouts.presets import Original
from jaxdiff.schedule import KarrasVE

MEAN, STD = (5.81, 3.25, 0.12, -2.15), (4.17, 4.62, 3.71, 3.28)
_NAMES = [
    (r"^level_fourier/", "logvar_fourier/"),
    (r"^level/", "logvar_linear/"),
    (r"^(?!logvar)", "unet/"),
    (r"^unet/fourier/", "unet/emb_fourier/"),
    (r"^unet/noise/", "unet/emb_noise/"),
    (r"^unet/label/", "unet/emb_label/"),
    (r"^unet/gain_out$", "unet/out_gain"),
    (r"^unet/conv_out/", "unet/out_conv/"),
    (r"/frequencies$", "/freqs"),
    (r"/gain$", "/emb_gain"),
    (r"/embed/", "/emb_linear/"),
    (r"/conv1/", "/conv_res0/"),
    (r"/conv2/", "/conv_res1/"),
    (r"/skip/", "/conv_skip/"),
    (r"/qkv/", "/attn_qkv/"),
    (r"/mixed/", "/attn_proj/"),
]


def naming(net: EDM2) -> Naming:
    """The names of a network's tensors.

    Args:
      net: its configuration.

    >>> naming(EDM2()).leaf("up/1/resample/gain", ()).names
    ('unet.dec.16x16_up.emb_gain',)
    """
    sides = [f"{size}x{size}" for size in (net.image_size >> level for level in range(len(net.multipliers)))]
    places = [
        (r"^unet/conv_in/", f"unet/enc/{sides[0]}_conv/"),
        (r"^unet/middle_in/", f"unet/dec/{sides[-1]}_in0/"),
        (r"^unet/middle_out/", f"unet/dec/{sides[-1]}_in1/"),
    ]
    for level, side in enumerate(sides):
        up = len(sides) - 1 - level
        places.append((rf"^unet/down/{level}/resample/", f"unet/enc/{side}_down/"))
        places.append((rf"^unet/down/{level}/blocks/(\d+)/", rf"unet/enc/{side}_block\1/"))
        places.append((rf"^unet/up/{up}/resample/", f"unet/dec/{side}_up/"))
        places.append((rf"^unet/up/{up}/blocks/(\d+)/", rf"unet/dec/{side}_block\1/"))
    return Naming(
        renames=[*_NAMES, *places],
        axes=[(r"/qkv/kernel$", "(n t) i 1 1 -> i t n"), (r"/(skip|mixed)/kernel$", "o i 1 1 -> i o")],
    )


@dataclasses.dataclass(frozen=True)
class UnitPixels:
    """An autoencoder of pixels in [0, 1] as one of pixels in [-1, 1], as `jaxdiff.codecs.latents` takes it.

    Args:
      net: the autoencoder's pure functions.
    """

    net: Autoencoder

    @property
    def build(self) -> Any:
        """Its configuration."""
        return self.net.build

    @property
    def factor(self) -> int:
        """Pixels along one side of a latent."""
        return self.net.factor

    def moments(self, params: Any, x: Array) -> Any:
        """Of images ``(B, H, W, C)`` in [-1, 1]."""
        return self.net.moments(params, 0.5 * (x + 1))

    def decode(self, params: Any, z: Array) -> Array:
        """Images in [-1, 1] of latents."""
        return 2 * self.net.decode(params, z) - 1


def _model(network: Callable[..., EDM2], size: str, **fixed: Any) -> Original:
    def changed(**changes: Any) -> EDM2:
        return network(size, **{**fixed, **changes})

    latents = network is edm2_img512
    return Original(
        changed,
        naming,
        KarrasVE,
        Karras(0.5),
        Defaults("heun", 32, "karras", clip=False),
        "CC BY-NC-SA 4.0",
        mean=MEAN if latents else (),
        std=tuple(2 * each for each in STD) if latents else (),
        pixels=UnitPixels if latents else None,
    )


MODELS: dict[str, Original] = {
    **{f"edm2-img512-{size}": _model(edm2_img512, size) for size in ("xs", "s", "m", "l", "xl", "xxl")},
    **{f"edm2-img512-{size}-uncond": _model(edm2_img512, size, num_classes=None) for size in ("xs", "s")},
    **{f"edm2-img64-{size}": _model(edm2_img64, size) for size in ("xs", "s", "m", "l", "xl")},
}
"""NVlabs' published models by the names of their files, without the length of the training and of the average."""
