"""Random networks of papers' own repositories: a function for each published layout, which draws a configuration, and
says how the network is called.

The folder that ``JAXDIFF_ORIGINALS`` names holds clones of them, under their own names: ``guided-diffusion``,
``consistency_models`` and ``improved-diffusion`` of openai, ``edm`` and ``edm2`` of NVlabs. What is not there is
skipped.
"""

from __future__ import annotations

import importlib
import os
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from tests.parity.originals import Rng, pick, pixels, planes, torch

FOLDER = os.environ.get("JAXDIFF_ORIGINALS")
_TOP = ("training", "torch_utils", "dnnlib", "guided_diffusion", "improved_diffusion", "cm")


class Repository(NamedTuple):
    """A random original.

    Attributes:
      network: theirs.
      call: ``(x, t, cond) -> output`` of torch tensors, x ``(B, H, W, C)``.
      name: in `jaxdiff.pretrained.layouts.originals.ORIGINALS`.
      changes: fields of our configuration.
      sizes: two (height, width) of x.
      times: four that it is told.
      channels: of x.
      classes: None: it is told none.
      low: side of the small picture; None: it is told none.
    """

    network: Any
    call: Callable[[Any, Any, Any], Any]
    name: str
    changes: dict[str, Any]
    sizes: tuple[tuple[int, int], tuple[int, int]]
    times: tuple[float, ...] = (0.0, 3.0, 421.0, 999.0)
    channels: int = 3
    classes: int | None = None
    low: int | None = None
    augment: int = 0

    def cond(self, rng: Rng, batch: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if self.classes is not None:
            found["label"] = rng.integers(0, self.classes, batch)
        if self.low is not None:
            found["low"] = rng.normal(size=(batch, self.low, self.low, self.channels)).astype(np.float32)
        if self.augment:
            found["augment"] = rng.normal(size=(batch, self.augment)).astype(np.float32)
        return found


def module(repository: str, name: str) -> Any:
    """A module of a clone. Two clones have packages of one name, so each import is made afresh."""
    folder = None if FOLDER is None else Path(FOLDER) / repository
    if folder is None or not folder.is_dir():
        pytest.skip(f"no clone of {repository}: JAXDIFF_ORIGINALS names the folder that holds it")
    for each in [each for each in sys.modules if each.split(".")[0] in _TOP]:
        del sys.modules[each]
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(folder))


def _labelled(network: Any, key: str = "y") -> Callable[[Any, Any, Any], Any]:
    def call(x: Any, t: Any, cond: Any) -> Any:
        told = {key: cond["label"]} if "label" in cond else {}
        if "low" in cond:
            told["low_res"] = planes(cond["low"])
        return pixels(network(planes(x), t, **told))

    return call


def _openai(rng: Rng) -> dict[str, Any]:
    """What all of them have."""
    return {
        "image_size": 8,
        "in_channels": 3,
        "model_channels": 32,
        "num_res_blocks": pick(rng, 1, 1, 2),
        "channel_mult": pick(rng, (1, 2), (1, 1)),
        "attention_resolutions": pick(rng, (1, 2), (2,), (1,)),
        "num_classes": pick(rng, None, 7),
    }


def _fields(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Our configuration of theirs."""
    named = {
        "image_size": "image_size",
        "model_channels": "width",
        "num_res_blocks": "blocks",
        "channel_mult": "multipliers",
        "num_classes": "num_classes",
        "out_channels": "out_channels",
        "use_scale_shift_norm": "scale_shift",
        "resblock_updown": "residual_resampling",
    }
    found = {ours: kwargs[theirs] for theirs, ours in named.items() if theirs in kwargs}
    heads = kwargs.get("num_head_channels", -1)
    found |= {"heads": kwargs.get("num_heads", 1), "head_width": None if heads == -1 else heads}
    return found | {"attention_resolutions": tuple(8 // factor for factor in kwargs["attention_resolutions"])}


def guided_diffusion(rng: Rng) -> Repository:
    """ADM, both orders of attention, with and without residual resampling."""
    unet = module("guided-diffusion", "guided_diffusion.unet")
    new = bool(rng.integers(2))
    kwargs = _openai(rng) | {
        "out_channels": pick(rng, 3, 6),
        "use_scale_shift_norm": bool(rng.integers(2)),
        "resblock_updown": bool(rng.integers(2)),
        **pick(rng, {"num_heads": 4}, {"num_head_channels": 16}),
    }
    network = unet.UNetModel(**kwargs, use_new_attention_order=new)
    name = "adm-64" if new else "adm-256"
    return Repository(
        network, _labelled(network), name, _fields(kwargs), ((8, 8), (16, 8)), classes=kwargs["num_classes"]
    )


def super_resolution(rng: Rng) -> Repository:
    """ADM's upsamplers."""
    unet = module("guided-diffusion", "guided_diffusion.unet")
    kwargs = _openai(rng) | {
        "out_channels": 6,
        "use_scale_shift_norm": True,
        "resblock_updown": True,
        "num_heads": 2,
        "num_classes": 7,
    }
    network = unet.SuperResModel(**kwargs)
    return Repository(network, _labelled(network), "adm-64-256", _fields(kwargs), ((8, 8), (16, 16)), classes=7, low=2)


def improved_diffusion(rng: Rng) -> Repository:
    """iDDPM."""
    unet = module("improved-diffusion", "improved_diffusion.unet")
    kwargs = _openai(rng) | {
        "out_channels": 6,
        "use_scale_shift_norm": bool(rng.integers(2)),
        "num_heads": pick(rng, 1, 4),
    }
    network = unet.UNetModel(**{name: value for name, value in kwargs.items() if name != "image_size"})
    return Repository(
        network, _labelled(network), "iddpm-cifar10", _fields(kwargs), ((8, 8), (16, 8)), classes=kwargs["num_classes"]
    )


class _Softmax(torch.nn.Module):
    """What the kernel that consistency_models imports computes, on any machine."""

    def __init__(self, **_: Any) -> None:
        super().__init__()

    def forward(self, qkv: Any, **_: Any) -> tuple[Any, None]:
        query, key, value = qkv.unbind(2)  # (B, L, heads, depth) each
        weights = torch.einsum("bqhd,bkhd->bhqk", query, key / query.shape[-1] ** 0.5).softmax(-1)
        return torch.einsum("bhqk,bkhd->bqhd", weights, value), None


def _rearrange(x: Any, pattern: str, **sizes: int) -> Any:
    """The two patterns that consistency_models asks of einops."""
    if "three" in sizes:
        batch, _, length = x.shape
        return x.reshape(batch, 3, sizes["h"], -1, length).permute(0, 4, 1, 2, 3)
    return x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, x.shape[1])


def consistency_models(rng: Rng) -> Repository:
    """The consistency models, and the teachers that were trained with them."""
    flash = types.ModuleType("flash_attn.flash_attention")
    flash.FlashAttention = _Softmax  # type: ignore[attr-defined]
    einops = types.ModuleType("einops")
    einops.rearrange = _rearrange  # type: ignore[attr-defined]
    stand_ins = {"flash_attn": types.ModuleType("flash_attn"), "flash_attn.flash_attention": flash, "einops": einops}
    kwargs = _openai(rng) | {
        "out_channels": 3,
        "use_scale_shift_norm": bool(rng.integers(2)),
        "resblock_updown": bool(rng.integers(2)),
        "num_head_channels": pick(rng, 16, 32),
    }
    unet = module("consistency_models", "cm.unet")
    before = {name: sys.modules.get(name) for name in stand_ins}
    sys.modules.update(stand_ins)
    try:
        network = unet.UNetModel(**kwargs)
    finally:
        for name, each in before.items():
            if each is None:
                del sys.modules[name]
            else:
                sys.modules[name] = each
    name = pick(rng, "cm-imagenet64", "openai-edm-imagenet64")
    times = (-1553.0, -203.5, 17.25, 1095.5)  # 250 ln(sigma)
    return Repository(
        network, _labelled(network), name, _fields(kwargs), ((8, 8), (16, 8)), times, classes=kwargs["num_classes"]
    )


def _one_hot(network: Any, classes: int | None) -> Callable[[Any, Any, Any], Any]:
    """A call of NVlabs' networks."""

    def call(x: Any, t: Any, cond: Any) -> Any:
        label = torch.nn.functional.one_hot(cond["label"], classes).float() if classes else None
        told = {"augment_labels": cond["augment"]} if "augment" in cond else {}
        return pixels(network(planes(x), t, label, **told))

    return call


_SIGMAS = (0.002, 0.3, 5.0, 80.0)
_TOLD = tuple(float(np.log(sigma) / 4) for sigma in _SIGMAS)


def song(rng: Rng) -> Repository:
    """DDPM++ and NCSN++."""
    networks = module("edm", "training.networks")
    exploding, classes, augment = bool(rng.integers(2)), pick(rng, None, 5), pick(rng, 0, 9)
    kwargs: dict[str, Any] = {
        "model_channels": pick(rng, 16, 32),
        "channel_mult": pick(rng, [1, 2], [2, 2]),
        "num_blocks": pick(rng, 1, 1, 2),
        "attn_resolutions": pick(rng, [8], [4], [8, 4]),
        "label_dim": classes or 0,
        "augment_dim": augment,
    }
    changes = {
        "image_size": 8,
        "width": kwargs["model_channels"],
        "multipliers": tuple(kwargs["channel_mult"]),
        "blocks": kwargs["num_blocks"],
        "attention_resolutions": tuple(kwargs["attn_resolutions"]),
        "num_classes": classes,
        "augment": augment,
    }
    if exploding:
        kwargs |= {
            "embedding_type": "fourier",
            "channel_mult_noise": 2,
            "encoder_type": "residual",
            "resample_filter": [1, 3, 3, 1],
        }
    network = networks.EDMPrecond(8, 3, classes or 0, model_type="SongUNet", **_without(kwargs, "label_dim"))
    return Repository(
        network,
        _one_hot(network.model, classes),
        f"edm-cifar10-32x32-cond-{'ve' if exploding else 'vp'}",
        changes,
        ((8, 8), (16, 8)),
        _TOLD,
        classes=classes,
        augment=augment,
    )


def dhariwal(rng: Rng) -> Repository:
    """ADM's network as EDM has it."""
    networks = module("edm", "training.networks")
    classes, factors = pick(rng, None, 5), pick(rng, [1, 2], [2, 1])
    attention = pick(rng, [8], [4], [8, 4])
    network = networks.EDMPrecond(
        8, 3, classes or 0, model_channels=64, channel_mult=factors, num_blocks=1, attn_resolutions=attention
    )
    changes = {
        "image_size": 8,
        "width": 64,
        "multipliers": tuple(factors),
        "blocks": 1,
        "attention_resolutions": tuple(attention),
        "num_classes": classes,
    }
    name = "edm-imagenet-64x64-cond-adm"
    call = _one_hot(network.model, classes)
    return Repository(network, call, name, changes, ((8, 8), (16, 8)), _TOLD, classes=classes)


def magnitude_preserving(rng: Rng) -> Repository:
    """EDM2."""
    networks = module("edm2", "training.networks_edm2")
    classes, factors, attention = pick(rng, 0, 5), pick(rng, [1, 2], [2, 1]), pick(rng, [8], [4], [8, 4])
    channels, blocks, level = pick(rng, 3, 4), pick(rng, 1, 1, 2), 12
    network = networks.Precond(
        8,
        channels,
        classes,
        logvar_channels=level,
        model_channels=32,
        channel_mult=factors,
        num_blocks=blocks,
        attn_resolutions=attention,
        channels_per_head=16,
    )
    for each in network.modules():  # gains of 0 are moved by noise, which is too little to see
        if isinstance(each, networks.Block):
            torch.nn.init.constant_(each.emb_gain, 0.4)
    torch.nn.init.constant_(network.unet.out_gain, 0.7)
    changes = {
        "image_size": 8,
        "in_channels": channels,
        "width": 32,
        "multipliers": tuple(factors),
        "blocks": blocks,
        "attention_resolutions": tuple(attention),
        "head_width": 16,
        "num_classes": classes or None,
        "level_features": level,
    }
    name = "edm2-img64-s" if channels == 3 else "edm2-img512-xs"
    call = _one_hot(network.unet, classes)
    return Repository(
        network, call, name, changes, ((8, 8), (16, 8)), _TOLD, channels=channels, classes=classes or None
    )


def _without(kwargs: dict[str, Any], name: str) -> dict[str, Any]:
    return {each: value for each, value in kwargs.items() if each != name}


REPOSITORIES: dict[str, Callable[[Rng], Repository]] = {
    "guided-diffusion": guided_diffusion,
    "guided-diffusion, upsamplers": super_resolution,
    "improved-diffusion": improved_diffusion,
    "consistency_models": consistency_models,
    "edm, DDPM++ and NCSN++": song,
    "edm, ADM": dhariwal,
    "edm2": magnitude_preserving,
}
