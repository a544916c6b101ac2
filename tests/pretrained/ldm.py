"""Stable Diffusions of few channels and of the published sizes, by the fields that diffusers publishes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxdiff.pretrained.fields import Fields
from jaxdiff.pretrained.layouts.families import Loaded, configured, family_of

SCHEDULES = {"1": "PNDMScheduler", "2": "DDIMScheduler", "XL": "EulerDiscreteScheduler"}


def _blocks(kinds: str) -> dict[str, Any]:
    """Of each level whether it has a transformer, x or -."""
    named = {"x": "CrossAttn", "-": ""}
    return {
        "down_block_types": [f"{named[kind]}DownBlock2D" for kind in kinds],
        "up_block_types": [f"{named[kind]}UpBlock2D" for kind in reversed(kinds)],
    }


def _unet(kinds: str, widths: list[int], **fields: Any) -> dict[str, Any]:
    return {"_class_name": "UNet2DConditionModel", "block_out_channels": widths, **_blocks(kinds), **fields}


def _told(frequencies: int, pooled: int, ids: int) -> dict[str, Any]:
    return {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": frequencies,
        "projection_class_embeddings_input_dim": pooled + ids * frequencies,
        "use_linear_projection": True,
    }


def _clip(width: int, depth: int, gelu: bool, projected: bool, **fields: Any) -> dict[str, Any]:
    return {
        "architectures": ["CLIPTextModelWithProjection" if projected else "CLIPTextModel"],
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": depth,
        "num_attention_heads": width // 64,
        "hidden_act": "gelu" if gelu else "quick_gelu",
        "eos_token_id": 2,
        "projection_dim": width,
        **fields,
    }


def _vae(widths: list[int], blocks: int, scale: float) -> dict[str, Any]:
    return {
        "_class_name": "AutoencoderKL",
        "block_out_channels": widths,
        "down_block_types": ["DownEncoderBlock2D"] * len(widths),
        "up_block_types": ["UpDecoderBlock2D"] * len(widths),
        "layers_per_block": blocks,
        "scaling_factor": scale,
    }


_WIDE, _SMALL = [320, 640, 1280, 1280], {"vocab_size": 514, "max_position_embeddings": 24}
_VAE, _TINY_VAE = [128, 256, 512, 512], [32, 64]

PUBLISHED: dict[str, dict[str, dict[str, Any]]] = {
    "1": {
        "unet": _unet("xxx-", _WIDE, cross_attention_dim=768, attention_head_dim=8, sample_size=64),
        "vae": _vae(_VAE, 2, 0.18215),
        "text_encoder": _clip(768, 12, False, False),
    },
    "2": {
        "unet": _unet(
            "xxx-",
            _WIDE,
            cross_attention_dim=1024,
            attention_head_dim=[5, 10, 20, 20],
            use_linear_projection=True,
            sample_size=96,
        ),
        "vae": _vae(_VAE, 2, 0.18215),
        "text_encoder": _clip(1024, 23, True, False),
    },
    "XL": {
        "unet": _unet(
            "-xx",
            [320, 640, 1280],
            cross_attention_dim=2048,
            attention_head_dim=[5, 10, 20],
            transformer_layers_per_block=[1, 2, 10],
            sample_size=128,
            **_told(256, 1280, 6),
        ),
        "vae": _vae(_VAE, 2, 0.13025),
        "text_encoder": _clip(768, 12, False, False),
        "text_encoder_2": _clip(1280, 32, True, True),
    },
    "refiner": {
        "unet": _unet(
            "-xx-",
            [384, 768, 1536, 1536],
            cross_attention_dim=1280,
            attention_head_dim=[6, 12, 24, 24],
            transformer_layers_per_block=4,
            sample_size=128,
            **_told(256, 1280, 5),
        ),
        "vae": _vae(_VAE, 2, 0.13025),
        "text_encoder_2": _clip(1280, 32, True, True),
    },
}
"""Their `config.json`, as far as a network here depends on them."""

TINY: dict[str, dict[str, dict[str, Any]]] = {
    "1": {
        "unet": _unet("x-", [32, 64], cross_attention_dim=64, attention_head_dim=8, layers_per_block=1, sample_size=64),
        "vae": _vae(_TINY_VAE, 1, 0.18215),
        "text_encoder": _clip(64, 2, False, False, **_SMALL),
    },
    "2": {
        "unet": _unet(
            "x-",
            [64, 128],
            cross_attention_dim=64,
            attention_head_dim=[1, 2],
            use_linear_projection=True,
            layers_per_block=1,
            sample_size=96,
        ),
        "vae": _vae(_TINY_VAE, 1, 0.18215),
        "text_encoder": _clip(64, 2, True, False, **_SMALL),
    },
    "XL": {
        "unet": _unet(
            "-x",
            [64, 128],
            cross_attention_dim=192,
            attention_head_dim=[1, 2],
            transformer_layers_per_block=[1, 2],
            layers_per_block=2,
            sample_size=128,
            **_told(256, 128, 6),
        ),
        "vae": _vae(_TINY_VAE, 1, 0.13025),
        "text_encoder": _clip(64, 2, False, False, **_SMALL),
        "text_encoder_2": _clip(128, 2, True, True, **_SMALL),
    },
    "refiner": {
        "unet": _unet(
            "-x-",
            [64, 64, 64],
            cross_attention_dim=128,
            attention_head_dim=[1, 1, 1],
            transformer_layers_per_block=2,
            layers_per_block=1,
            sample_size=128,
            **_told(256, 128, 5),
        ),
        "vae": _vae(_TINY_VAE, 1, 0.13025),
        "text_encoder_2": _clip(128, 2, True, True, **_SMALL),
    },
}
TINY["1 inpainting"] = {**TINY["1"], "unet": {**TINY["1"]["unet"], "in_channels": 9}}
TINY["XL inpainting"] = {**TINY["XL"], "unet": {**TINY["XL"]["unet"], "in_channels": 9}}


def shapes_of(fields: Mapping[str, Any]) -> Any:
    """The parameters of a configuration, as shapes."""
    network = configured(Fields(fields))
    return jax.eval_shape(family_of(Fields(fields)).pure(network).init, jax.random.key(0))


def parts_of(name: str, seed: int = 0) -> dict[str, Loaded]:
    """A Stable Diffusion of `TINY` with random weights, as if it had been loaded."""
    rng = np.random.default_rng(seed)
    found = {}
    for part, fields in TINY[name].items():
        net = family_of(Fields(fields)).pure(configured(Fields(fields)))
        params = jax.tree.map(lambda leaf: 0.1 * rng.normal(size=leaf.shape).astype(np.float32), shapes_of(fields))
        found[part] = Loaded(net, params, fields)
    return found
