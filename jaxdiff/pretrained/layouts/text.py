"""Text encoders of transformers, CLIP's and T5's, as `jaxdiff.networks.text.CLIPText` and `T5`.

A configuration of transformers has many fields that say how the model was made or is trained; those are not looked at.
"""

from __future__ import annotations

from typing import Any

from jaxdiff.networks.text import T5, CLIPText
from jaxdiff.pretrained.fields import Fields
from jaxdiff.pretrained.files.naming import Naming

_CLIP = Naming(
    renames=[
        (r"^tokens/", "embeddings/token_embedding/"),
        (r"^positions$", "embeddings/position_embedding/weight"),
        (r"^blocks/norm1/", "encoder/layers/{}/layer_norm1/"),
        (r"^blocks/norm2/", "encoder/layers/{}/layer_norm2/"),
        (r"^blocks/attention/qkv/", "encoder/layers/{}/self_attn/qkv/"),
        (r"^blocks/attention/out/", "encoder/layers/{}/self_attn/out_proj/"),
        (r"^blocks/expand/", "encoder/layers/{}/mlp/fc1/"),
        (r"^blocks/contract/", "encoder/layers/{}/mlp/fc2/"),
        (r"^norm/", "final_layer_norm/"),
        (r"^projection/", "text_projection/"),
    ],
    parts={"qkv": ("q_proj", "k_proj", "v_proj")},
    aliases=[(r"^text_model\.", "")],
    unused=[r"^embeddings\.position_ids$"],
)
_T5 = Naming(
    renames=[
        (r"^tokens/", "shared/"),
        (r"^distances$", "encoder/block/0/layer/0/SelfAttention/relative_attention_bias/weight"),
        (r"^blocks/norm1/", "encoder/block/{}/layer/0/layer_norm/"),
        (r"^blocks/norm2/", "encoder/block/{}/layer/1/layer_norm/"),
        (r"^blocks/attention/qkv/", "encoder/block/{}/layer/0/SelfAttention/qkv/"),
        (r"^blocks/attention/out/", "encoder/block/{}/layer/0/SelfAttention/o/"),
        (r"^blocks/gate/", "encoder/block/{}/layer/1/DenseReluDense/wi_0/"),
        (r"^blocks/expand/", "encoder/block/{}/layer/1/DenseReluDense/wi_1/"),
        (r"^blocks/contract/", "encoder/block/{}/layer/1/DenseReluDense/wo/"),
        (r"^norm/", "encoder/final_layer_norm/"),
    ],
    parts={"qkv": ("q", "k", "v")},
    unused=[r"^encoder\.embed_tokens\.weight$", r"^decoder\.", r"^lm_head\."],
)


def clip_naming(_: Fields) -> Naming:
    """The names of a CLIP encoder's tensors."""
    return _CLIP


def t5_naming(_: Fields) -> Naming:
    """The names of a T5 encoder's tensors."""
    return _T5


def clip_text(fields: Fields, **changes: Any) -> CLIPText:
    """The configuration of a `CLIPTextModel`, or of a `CLIPTextModelWithProjection`.

    Args:
      fields: of its configuration.
      changes: fields of `CLIPText` to replace: which state is taken, and whether it is normalised.

    Raises:
      PretrainedError: a field that jaxdiff does not follow.
    """
    activation = fields.get("hidden_act", "quick_gelu")
    if activation not in ("quick_gelu", "gelu"):
        fields.refuse("hidden_act", f"is {activation!r}; jaxdiff has 'quick_gelu' or 'gelu' alone")
    projected = fields.class_name == "CLIPTextModelWithProjection"
    end = fields.get("eos_token_id", 49_407)
    vocabulary = fields.get("vocab_size", 49_408)
    kept: dict[str, Any] = {
        "vocabulary": vocabulary,
        "length": fields.get("max_position_embeddings", 77),
        "width": fields.get("hidden_size", 512),
        "depth": fields.get("num_hidden_layers", 12),
        "heads": fields.get("num_attention_heads", 8),
        "hidden": fields.get("intermediate_size", 2048),
        "activation": activation,
        "projection": fields.get("projection_dim", 512) if projected else None,
        "end": None if end == 2 else end,  # of old configurations: the largest id is the end
        "eps": fields.get("layer_norm_eps", 1e-5),
    }
    return CLIPText(**{**kept, **changes})


def t5(fields: Fields, **changes: Any) -> T5:
    """The configuration of a `T5EncoderModel`: of version 1.1, whose perceptron is gated.

    Args:
      fields: of its configuration.
      changes: fields of `T5` to replace.

    Raises:
      PretrainedError: a field that jaxdiff does not follow.
    """
    if (kind := fields.get("feed_forward_proj", "relu")) != "gated-gelu":
        fields.refuse("feed_forward_proj", f"is {kind!r}; jaxdiff has 'gated-gelu', of version 1.1, alone")
    kept: dict[str, Any] = {
        "vocabulary": fields.get("vocab_size", 32_128),
        "width": fields.get("d_model", 512),
        "depth": fields.get("num_layers", 6),
        "heads": fields.get("num_heads", 8),
        "head_depth": fields.get("d_kv", 64),
        "hidden": fields.get("d_ff", 2048),
        "buckets": fields.get("relative_attention_num_buckets", 32),
        "distance": fields.get("relative_attention_max_distance", 128),
        "eps": fields.get("layer_norm_epsilon", 1e-6),
    }
    return T5(**{**kept, **changes})
