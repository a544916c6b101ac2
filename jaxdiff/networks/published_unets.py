"""The U-Nets that papers have published, by name, with their exact numbers of parameters.

Stable Diffusion's see latents of 1/8 of the image's side, and a text through `jaxdiff.networks.Tokens` of the name
``"text"``. Their time is told as an index from 0 to 999, their residual blocks' eps is 1e-5.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from jaxdiff.networks.classifier import Classifier
from jaxdiff.networks.conditions import Image, Tokens, Vector
from jaxdiff.networks.edm2 import EDM2
from jaxdiff.networks.song import SongUNet
from jaxdiff.networks.unet import UNet


def ddpm_cifar10(**changes: Any) -> UNet:
    """The CIFAR-10 network of Ho et al. 2020: 35,746,307 parameters. ``changes`` replace fields.

    >>> ddpm_cifar10().width
    128
    """
    return UNet(**{"dropout": 0.1, **changes})


def ddpm_256(**changes: Any) -> UNet:
    """The 256x256 network of Ho et al. 2020 (LSUN, CelebA-HQ): 113,673,219 parameters. ``changes`` replace fields.

    >>> ddpm_256().multipliers
    (1, 1, 2, 2, 4, 4)
    """
    return UNet(**{"image_size": 256, "multipliers": (1, 1, 2, 2, 4, 4), **changes})


_ADM: dict[str, Any] = {
    "scale_shift": True,
    "downsample_padding": "symmetric",
    "time_order": "cos_sin",
    "time_shift": 0.0,
    "least_group": 1,
    "norm_eps": 1e-5,
    "out_channels": 6,
}


def iddpm_cifar10(**changes: Any) -> UNet:
    """The CIFAR-10 network of Nichol & Dhariwal 2021: 52,546,438 parameters. ``changes`` replace fields.

    >>> iddpm_cifar10().out_channels
    6
    """
    fields: dict[str, Any] = {"blocks": 3, "attention_resolutions": (16, 8), "heads": 4, "dropout": 0.3}
    return UNet(**{**_ADM, **fields, **changes})


def adm(image_size: Literal[64, 128, 256, 512], /, **changes: Any) -> UNet:
    """The class-conditional ImageNet networks of Dhariwal & Nichol 2021, with learned variance, as published.

    They have 295,904,454 / 421,529,606 / 553,838,086 / 558,997,638 parameters at 64 / 128 / 256 / 512 pixels, and no
    null class: to train for classifier-free guidance, ask for ``null_class=True``.

    Args:
      image_size: 64, 128, 256 or 512.
      changes: fields of `UNet` to replace.

    Raises:
      ValueError: another size.

    >>> adm(64, null_class=True).attention_resolutions
    (32, 16, 8)
    """
    sizes: dict[int, dict[str, Any]] = {
        64: {"width": 192, "multipliers": (1, 2, 3, 4), "blocks": 3, "head_width": 64, "dropout": 0.1},
        128: {"width": 256, "multipliers": (1, 1, 2, 3, 4), "heads": 4},
        256: {"width": 256, "multipliers": (1, 1, 2, 2, 4, 4), "head_width": 64},
        512: {"width": 256, "multipliers": (0.5, 1, 1, 2, 2, 4, 4), "head_width": 64},
    }
    if image_size not in sizes:
        raise ValueError(f"ADM was published at {', '.join(map(str, sizes))} pixels, got {image_size}: use `UNet`")
    fields: dict[str, Any] = {
        "image_size": image_size,
        "attention_resolutions": (32, 16, 8),
        "residual_resampling": True,
        "num_classes": 1000,
        "null_class": False,
    }
    return UNet(**{**_ADM, **fields, **sizes[image_size], **changes})


def iddpm_imagenet64(**changes: Any) -> UNet:
    """The unconditional 64x64 network of Nichol & Dhariwal 2021: 121,063,942 parameters. ``changes`` replace fields.

    Their class-conditional one has ``width=192, num_classes=1000, null_class=False``: 273,049,350.

    >>> iddpm_imagenet64().multipliers
    (1, 2, 3, 4)
    """
    fields: dict[str, Any] = {"image_size": 64, "multipliers": (1, 2, 3, 4), "dropout": 0.0}
    return iddpm_cifar10(**{**fields, **changes})


def iddpm_lsun256(**changes: Any) -> UNet:
    """The 256x256 network of Nichol & Dhariwal 2021 (LSUN bedrooms): 113,676,678 parameters: DDPM's, with a learned
    variance. ``changes`` replace fields.

    >>> iddpm_lsun256().scale_shift
    False
    """
    fields: dict[str, Any] = {"image_size": 256, "multipliers": (1, 1, 2, 2, 4, 4), "scale_shift": False}
    return UNet(**{**_ADM, **fields, **changes})


def adm_256_uncond(**changes: Any) -> UNet:
    """The 256x256 networks of Dhariwal & Nichol 2021 without classes, of ImageNet and (``dropout=0.1``) of LSUN:
    552,814,086 parameters. ``changes`` replace fields.

    >>> adm_256_uncond().num_classes is None
    True
    """
    return adm(256, **{"num_classes": None, **changes})


def adm_upsampler(image_size: Literal[256, 512], /, **changes: Any) -> UNet:
    """The class-conditional networks of Dhariwal & Nichol 2021 that enlarge fourfold, from 64 and from 128 pixels: the
    small picture is the condition ``"low"``, enlarged bilinearly beside x. 311,795,910 / 308,835,270 parameters.

    Args:
      image_size: 256 or 512, of the large picture.
      changes: fields of `UNet` to replace.

    Raises:
      ValueError: another size.

    >>> list(adm_upsampler(256).cond)
    ['label', 'low']
    """
    if image_size not in (256, 512):
        raise ValueError(f"ADM's upsamplers were published at 256 and 512 pixels, got {image_size}: use `UNet`")
    fields: dict[str, Any] = {
        "image_size": image_size,
        "width": 192,
        "conditions": (Image("low", (None, None), 3),),
        **({"heads": 4, "head_width": None} if image_size == 256 else {"attention_resolutions": (32, 16)}),
    }
    return adm(256, **{**fields, **changes})


def adm_classifier(image_size: Literal[64, 128, 256, 512], /, **changes: Any) -> Classifier:
    """The noisy ImageNet classifiers of Dhariwal & Nichol 2021, as their published code builds them: width 128, two
    residual blocks a level (four at 64 pixels), attention in heads of 64 channels.

    They have 65,438,568 / 42,568,040 / 54,096,360 / 54,448,360 parameters at 64 / 128 / 256 / 512 pixels, and are told
    the time as an index from 0 to 999.

    Args:
      image_size: 64, 128, 256 or 512.
      changes: fields of their `UNet` to replace.

    Raises:
      ValueError: another size.

    >>> adm_classifier(64).unet.blocks, adm_classifier(64).classes
    (4, 1000)
    """
    whole = adm(image_size, num_classes=None, width=128, head_width=64, dropout=0.0, out_channels=None)
    return Classifier(replace(whole, **{"blocks": 4 if image_size == 64 else 2, **changes}), 1000)


def cm_imagenet64(**changes: Any) -> UNet:
    """The 64x64 network of Song et al. 2023, "Consistency Models", https://arxiv.org/abs/2303.01469: ADM's with three
    channels, 295,899,267 parameters, which is EDM's on ImageNet-64 (Karras et al. 2022) too. ``changes`` replace
    fields.

    >>> cm_imagenet64().out_channels
    3
    """
    return adm(64, **{"out_channels": 3, **changes})


def cm_lsun256(**changes: Any) -> UNet:
    """The 256x256 networks of Song et al. 2023 (LSUN): 526,304,771 parameters. ``changes`` replace fields.

    >>> cm_lsun256().scale_shift
    False
    """
    return adm_256_uncond(**{"out_channels": 3, "dropout": 0.1, "scale_shift": False, **changes})


def ddpmpp(**changes: Any) -> SongUNet:
    """DDPM++ as EDM trains it on CIFAR-10 (Karras et al. 2022, their "VP" network): 55,733,891 parameters, 55,735,299
    with ten classes; at 64 pixels, with ``image_size=64, multipliers=(1, 2, 2, 2)``, 61,805,571. ``changes`` replace
    fields.

    >>> ddpmpp().augment
    9
    """
    return SongUNet(**{"augment": 9, **changes})


def ncsnpp(**changes: Any) -> SongUNet:
    """NCSN++ as EDM trains it on CIFAR-10 (their "VE" network): 56,397,827 parameters, 56,400,643 with ten classes; at
    64 pixels, with ``image_size=64, multipliers=(1, 2, 2, 2)``, 62,761,091; and 128 fixed frequencies. ``changes``
    replace fields.

    >>> ncsnpp().taps
    (1, 3, 3, 1)
    """
    fields: dict[str, Any] = {"embedding": "fourier", "waves": 2, "residual_input": True, "taps": (1, 3, 3, 1)}
    return ddpmpp(**{**fields, **changes})


_EDM2_WIDTHS = {"xxs": 64, "xs": 128, "s": 192, "m": 256, "l": 320, "xl": 384, "xxl": 448}


def edm2_img512(size: str = "s", /, **changes: Any) -> EDM2:
    """EDM2 on the latents of ImageNet-512, conditional (Karras et al. 2024, https://arxiv.org/abs/2312.02696): sizes
    ``"xs"`` to ``"xxl"`` of 124,713,253 / 280,212,837 / 497,807,781 / 777,498,085 / 1,119,283,749 / 1,523,164,773
    parameters, and fixed frequencies and phases. Without classes, ``num_classes=None``: ``"xs"`` 124,201,253 and
    ``"s"`` 279,444,837.

    Args:
      size: ``"xxs"``, ``"xs"``, ``"s"``, ``"m"``, ``"l"``, ``"xl"`` or ``"xxl"``.
      changes: fields of `EDM2` to replace.

    Raises:
      ValueError: another size.

    >>> edm2_img512("xs").width
    128
    """
    if size not in _EDM2_WIDTHS:
        raise ValueError(f"EDM2 has the sizes {', '.join(_EDM2_WIDTHS)}, got {size!r}: use `EDM2`")
    width = _EDM2_WIDTHS[size]
    fields: dict[str, Any] = {"num_classes": 1000, "null_class": False, "dropout": 0.1 if width > 192 else 0.0}
    return EDM2(**{"width": width, **fields, **changes})


def edm2_img64(size: str = "s", /, **changes: Any) -> EDM2:
    """EDM2 on the pixels of ImageNet-64, conditional: sizes ``"xs"`` to ``"xl"`` of 124,710,949 / 280,209,381 /
    497,803,173 / 777,492,325 / 1,119,276,837 parameters, and fixed frequencies and phases. Arguments as `edm2_img512`.

    >>> edm2_img64().in_channels
    3
    """
    return edm2_img512(size, **{"in_channels": 3, **changes})


_LDM: dict[str, Any] = {
    "in_channels": 4,
    "width": 320,
    "attention_resolutions": (),
    "downsample_padding": "symmetric",
    "time_order": "cos_sin",
    "time_shift": 0.0,
    "norm_eps": 1e-5,
}


def sd15(**changes: Any) -> UNet:
    """Stable Diffusion 1.1 to 1.5 (Rombach et al. 2022): 859,520,964 parameters, told of CLIP-L's 768 numbers a token.

    The inpainting network, of nine channels, has the image conditions of a mask and the four channels that it leaves.

    Args:
      changes: fields of `UNet` to replace.

    >>> sd15().transformer_layers, sd15().heads
    ((1, 1, 1, 0), 8)
    """
    fields: dict[str, Any] = {
        "image_size": 64,
        "multipliers": (1, 2, 4, 4),
        "transformer_layers": (1, 1, 1, 0),
        "heads": 8,
        "conditions": (Tokens("text", 768),),
    }
    return UNet(**{**_LDM, **fields, **changes})


def sd21(**changes: Any) -> UNet:
    """Stable Diffusion 2.0 and 2.1: 865,910,724 parameters, heads of 64, told of OpenCLIP-H's 1,024 numbers a token.

    At 768 pixels (latents of 96) it was trained to predict v, at 512 eps.

    Args:
      changes: fields of `UNet` to replace.

    >>> sd21().head_width
    64
    """
    return sd15(**{"image_size": 96, "head_width": 64, "conditions": (Tokens("text", 1024),), **changes})


def sdxl(**changes: Any) -> UNet:
    """Stable Diffusion XL (Podell et al. 2023, https://arxiv.org/abs/2307.01952): 2,567,463,684 parameters.

    Beside the tokens of two encoders, side by side, it is told the second one's pooled vector and ``"time_ids"``:
    height and width of the original, top and left of the crop, height and width asked for, in pixels.

    Args:
      changes: fields of `UNet` to replace.

    >>> list(sdxl().cond), sdxl().transformer_layers
    (['text', 'time_ids'], (0, 2, 10))
    """
    fields: dict[str, Any] = {
        "image_size": 128,
        "multipliers": (1, 2, 4),
        "transformer_layers": (0, 2, 10),
        "head_width": 64,
        "conditions": (Tokens("text", 2048, pooled=1280), Vector("time_ids", 6, fourier=256, null=False)),
        "joined_conditions": True,
    }
    return UNet(**{**_LDM, **fields, **changes})


def sdxl_refiner(**changes: Any) -> UNet:
    """The refiner of Stable Diffusion XL: told of the second encoder alone, with five ``"time_ids"``, height and width
    of the original, top and left of the crop, and the aesthetic score. ``changes`` replace fields.

    >>> sdxl_refiner().width
    384
    """
    fields: dict[str, Any] = {
        "width": 384,
        "multipliers": (1, 2, 4, 4),
        "transformer_layers": (0, 4, 4, 0),
        "conditions": (Tokens("text", 1280, pooled=1280), Vector("time_ids", 5, fourier=256, null=False)),
    }
    return sdxl(**{**fields, **changes})
