"""Kinds of published pipelines beside Stable Diffusion's: classes, pixels, the refiner; our samplers and strict steps.

That strict steps are diffusers' own is for `tests/parity/test_pipelines.py`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxdiff.pretrained import write_network
from jaxdiff.pretrained.pipeline import Pretrained, load_pipeline
from tests.pretrained.test_pipeline import SD, write_tokenizer
from tests.pretrained.tiny import tiny

VAE: dict[str, tuple[str, dict[str, Any]]] = {"vae": ("AutoencoderKL", {})}
BIGG = {"vocab_size": 514, "eos_token_id": 513, "hidden_size": 24, "projection_dim": 24}
REFINER = {"sample_size": 8, "in_channels": 4, "time_cond_proj_dim": None, "projection_class_embeddings_input_dim": 64}
KINDS: dict[str, dict[str, tuple[str, dict[str, Any]]]] = {
    "DiTPipeline": {"transformer": ("DiTTransformer2DModel", {}), **VAE},
    "DDPMPipeline": {"unet": ("UNet2DModel", {"num_class_embeds": None})},
    "StableDiffusionXLImg2ImgPipeline": {
        "unet": ("UNet2DConditionModel", REFINER),
        "text_encoder_2": ("CLIPTextModelWithProjection", BIGG),
        **VAE,
    },
}


def load(kind: str, folder: Path, **scheduler: Any) -> Pretrained:
    for name, (network, changes) in KINDS[kind].items():
        made = tiny(network, **changes)
        write_network(folder / name, made._replace(params=jax.tree.map(lambda leaf: 0.05 * leaf, made.params)))
    if "text_encoder_2" in KINDS[kind]:
        write_tokenizer(folder / "tokenizer_2", "!")
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    index = {"_class_name": kind, **{name: ["library", network] for name, (network, _) in KINDS[kind].items()}}
    (folder / "model_index.json").write_text(json.dumps({**index, "text_encoder": [None, None]}))
    return load_pipeline(folder)


@pytest.mark.parametrize(
    ("kind", "cond"),
    [
        ("DiTPipeline", {"label": [1, 4]}),
        ("DDPMPipeline", None),
        pytest.param("StableDiffusionXLImg2ImgPipeline", {"text": "a cat"}, marks=pytest.mark.nightly),
    ],
)
def test_our_samplers_and_strict_steps_come_to_the_same(kind: str, cond: Any, tmp_path: Path) -> None:
    model = load(kind, tmp_path, _class_name="DDIMScheduler", **SD, set_alpha_to_one=False, clip_sample=False)
    x = np.random.default_rng(0).normal(size=(2, *model.model.shape)).astype(np.float32)
    strict = model.sample(0, 2, cond, x=x, decode=False, strict=True, steps=250)
    ours = model.sample(0, 2, cond, x=x, decode=False, steps=100)
    assert np.abs(ours - strict).max() < 0.03 * np.abs(strict).max()
    pictures = model.sample(0, 2, cond, steps=100)["x"]
    assert pictures.dtype == np.uint8 and pictures.shape[1:] == ((8, 8, 3) if kind == "DDPMPipeline" else (16, 16, 3))


def test_pixels_are_limited_where_the_scheduler_limits_them(tmp_path: Path) -> None:
    for clips in (True, False):
        (tmp_path / str(clips)).mkdir()
        model = load("DDPMPipeline", tmp_path / str(clips), _class_name="DDPMScheduler", clip_sample=clips)
        x = 100 * np.ones((1, *model.model.shape), np.float32)
        assert (np.abs(model.sample(0, 1, x=x, decode=False, steps=2)).max() <= 1) == clips


def test_guidance_of_classes_leads_away_from_the_tables_last_row(tmp_path: Path) -> None:
    model = load("DiTPipeline", tmp_path, _class_name="DDIMScheduler")
    options: dict[str, Any] = {"steps": 3, "strict": True, "decode": False}
    guided = model.sample(0, 1, {"label": 2}, **options)
    one, null = (model.sample(0, 1, {"label": i}, **options | {"guide": ()}) for i in (2, 5))
    assert np.abs(guided - one).max() > 1e-3 and np.abs(one - null).max() > 1e-4
    np.testing.assert_allclose(model.sample(0, 1, {"label": 5}, **options), null, atol=1e-5)


def test_the_refiner_is_led_away_from_a_low_aesthetic_score(tmp_path: Path) -> None:
    model = load("StableDiffusionXLImg2ImgPipeline", tmp_path, _class_name="EulerDiscreteScheduler", **SD)
    options: dict[str, Any] = {"steps": 3, "strict": True, "decode": False}
    published = model.sample(0, 1, {"text": "a cat"}, **options)
    ids = [16.0, 16.0, 0.0, 0.0]
    told = {"text": "a cat", "time_ids": [*ids, 6.0]}
    bad = {"text": "", "time_ids": [*ids, 2.5]}
    np.testing.assert_array_equal(model.sample(0, 1, told, **options), published)
    np.testing.assert_array_equal(model.sample(0, 1, told, negative=bad, **options), published)
    other = {**bad, "time_ids": [*ids, 6.0]}
    assert (model.sample(0, 1, told, negative=other, **options) != published).any()
