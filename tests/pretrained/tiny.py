"""Published configurations of tiny networks, one of each class that is read, and their random weights."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from jaxdiff.pretrained.fields import Fields
from jaxdiff.pretrained.layouts.families import FAMILIES, Loaded, family_of

TINY: dict[str, dict[str, Any]] = {
    "UNet2DModel": {
        "block_out_channels": [16, 32],
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
        "norm_num_groups": 8,
        "layers_per_block": 1,
        "sample_size": 8,
        "num_class_embeds": 5,
        "_name_or_path": "x",
    },
    "UNet2DConditionModel": {
        "block_out_channels": [16, 32],
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
        "cross_attention_dim": 24,
        "attention_head_dim": 4,
        "norm_num_groups": 8,
        "layers_per_block": 1,
        "in_channels": 9,
        "time_cond_proj_dim": 8,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 68,
    },
    "ControlNetModel": {
        "block_out_channels": [16, 32],
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "cross_attention_dim": 24,
        "attention_head_dim": 4,
        "norm_num_groups": 8,
        "layers_per_block": 1,
        "conditioning_embedding_out_channels": [8, 16],
        "controlnet_conditioning_channel_order": "bgr",
    },
    "AutoencoderKL": {
        "block_out_channels": [16, 32],
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
        "norm_num_groups": 8,
    },
    "DiTTransformer2DModel": {
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "num_layers": 3,
        "sample_size": 8,
        "out_channels": 8,
        "num_embeds_ada_norm": 5,
    },
    "PixArtTransformer2DModel": {
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "num_layers": 2,
        "sample_size": 8,
        "cross_attention_dim": 16,
        "caption_channels": 20,
    },
    "SD3Transformer2DModel": {
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "num_layers": 4,
        "sample_size": 8,
        "joint_attention_dim": 24,
        "caption_projection_dim": 16,
        "pooled_projection_dim": 20,
        "pos_embed_max_size": 12,
        "dual_attention_layers": [0],
        "qk_norm": "rms_norm",
    },
    "FluxTransformer2DModel": {
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "num_layers": 2,
        "num_single_layers": 2,
        "in_channels": 16,
        "joint_attention_dim": 24,
        "pooled_projection_dim": 20,
        "axes_dims_rope": [2, 4, 2],
        "guidance_embeds": True,
    },
    "CLIPTextModelWithProjection": {
        "architectures": ["CLIPTextModelWithProjection"],
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "vocab_size": 50,
        "eos_token_id": 49,
        "projection_dim": 12,
    },
    "T5EncoderModel": {
        "architectures": ["T5EncoderModel"],
        "d_model": 16,
        "d_kv": 4,
        "d_ff": 32,
        "num_layers": 2,
        "num_heads": 3,
        "vocab_size": 50,
        "feed_forward_proj": "gated-gelu",
    },
}
assert {*TINY, "CLIPTextModel"} == {*FAMILIES}


def tiny(name: str, seed: int = 0, **changes: Any) -> Loaded:
    """A network with random weights, as if it had been loaded."""
    values = {"_class_name": name, **TINY[name], **changes}
    family = family_of(Fields(values))
    net = family.pure(family.network(Fields(values)))
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(net.init, jax.random.key(0))
    return Loaded(net, jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes), values)
