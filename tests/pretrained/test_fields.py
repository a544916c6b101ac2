"""Fields of published configurations that are damaged: each is refused by its name, by one table for all classes."""

from __future__ import annotations

import math
from typing import Any

import pytest

from jaxdiff.pretrained.fields import Fields
from jaxdiff.pretrained.layouts.families import configured
from jaxdiff.pretrained.schedulers.classes import table
from jaxdiff.pretrained.schedulers.processes import process_of
from tests.pretrained.test_bad_inputs import refused
from tests.pretrained.tiny import TINY


@pytest.mark.parametrize(
    ("kind", "name", "value", "message"),
    [
        ("UNet2DModel", "block_out_channels", [16], "down_block_types has 2 blocks, and block_out_channels 1"),
        ("UNet2DModel", "num_class_embeds", 0, "num_class_embeds is 0, expected at least 1"),
        ("UNet2DModel", "attention_head_dim", [8, 8], "attention_head_dim is [8, 8], expected a whole number"),
        ("UNet2DConditionModel", "addition_time_embed_dim", None, "addition_time_embed_dim is missing, which"),
        ("UNet2DConditionModel", "projection_class_embeddings_input_dim", 8, "is 8, expected more than 48, 6 times"),
        (
            "UNet2DConditionModel",
            "cross_attention_dim",
            [],
            "cross_attention_dim is [], expected a list of at least one",
        ),
        ("ControlNetModel", "down_block_types", 3, "down_block_types is 3, expected a list"),
        ("ControlNetModel", "conditioning_embedding_out_channels", ["x"], "expected a list, each a whole number"),
        ("AutoencoderKL", "layers_per_block", [1, 1], "layers_per_block is [1, 1], expected a whole number"),
        ("DiTTransformer2DModel", "num_layers", 10**9, "num_layers is 1000000000, expected at most 256"),
        ("PixArtTransformer2DModel", "interpolation_scale", 0, "interpolation_scale is 0, expected a number above 0"),
        ("SD3Transformer2DModel", "dual_attention_layers", [[0]], "expected a list, each a whole number"),
        ("SD3Transformer2DModel", "pos_embed_max_size", 10**6, "pos_embed_max_size is 1000000, expected at most 1024"),
        ("FluxTransformer2DModel", "axes_dims_rope", None, "axes_dims_rope is None, expected a list"),
        ("T5EncoderModel", "layer_norm_epsilon", None, "layer_norm_epsilon is None, expected a number"),
    ],
)
def test_fields_of_each_class(kind: str, name: str, value: Any, message: str) -> None:
    refused(lambda: configured(Fields({"_class_name": kind, **TINY[kind], name: value})), message)


@pytest.mark.parametrize(
    ("kind", "name", "value", "message"),
    [
        ("FlowMatchEuler", "shift", -1, "shift is -1, expected a number above 0"),
        ("FlowMatchEuler", "shift_terminal", 1, "shift_terminal is 1, expected at most 0.99"),
        ("FlowMatchEuler", "base_shift", "x", "base_shift is 'x', expected a number"),
        ("EDMEuler", "sigma_min", 0, "sigma_min is 0, expected a number above 0"),
        ("EDMEuler", "sigma_max", 1e-3, "scheduler_config.json: "),
        ("LCM", "original_inference_steps", 0, "original_inference_steps is 0, expected at least 1"),
        ("Euler", "num_train_timesteps", 1, "num_train_timesteps is 1, expected at least 2"),
    ],
)
def test_fields_of_schedulers(kind: str, name: str, value: Any, message: str) -> None:
    whole = f"{kind}{'' if kind in ('LCM', 'EDMEuler') else 'Discrete'}Scheduler"
    refused(lambda: process_of(Fields({"_class_name": whole, name: value}, "scheduler_config.json")), message)


def test_values_that_diffusers_takes_too() -> None:
    """Null of what is true or false, of one head, of a shift; and an empty list of blocks with a second attention."""
    assert configured(Fields({"_class_name": "UNet2DModel", **TINY["UNet2DModel"], "attention_head_dim": None}))
    assert configured(Fields({"_class_name": "AutoencoderKL", **TINY["AutoencoderKL"], "shift_factor": None}))
    sd3 = {"_class_name": "SD3Transformer2DModel", **TINY["SD3Transformer2DModel"], "dual_attention_layers": []}
    assert configured(Fields(sd3)).dual == 0
    solver = {"_class_name": "DPMSolverMultistepScheduler", "lambda_min_clipped": -math.inf, "use_karras_sigmas": None}
    assert table(Fields(solver), 4).told.shape == (4,)
