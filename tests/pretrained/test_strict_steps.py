"""Strict steps from a picture, with a part of one kept, and in two parts.

That they are diffusers' own is for `tests/parity/test_parts.py`.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest

from jaxdiff.launch.errors import ConfigError
from jaxdiff.pretrained import load_pipeline
from jaxdiff.pretrained.fields import Fields
from jaxdiff.pretrained.pipeline import Pretrained
from jaxdiff.pretrained.schedulers import table
from jaxdiff.pretrained.strict_steps import from_index, from_strength
from tests.pretrained.test_pipeline import SD, write_pipeline

CAT = {"text": "a cat"}
PICTURE = np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype(np.uint8)
MASK = np.zeros((16, 16), int)
MASK[:, 8:] = 1
OPTIONS: dict[str, Any] = {"steps": 5, "strict": True, "decode": False, "guide": ()}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Pretrained:
    folder = tmp_path_factory.mktemp("published")
    return load_pipeline(write_pipeline(folder, {"_class_name": "EulerAncestralDiscreteScheduler", **SD}))


def latents(model: Pretrained) -> Any:
    return np.asarray(model.codec.encode({"x": PICTURE[None]})["x"])


@pytest.mark.parametrize(
    ("kind", "strength", "left"),
    [
        ("StableDiffusionPipeline", 0.6, 12),
        ("StableDiffusionPipeline", 0.33, 6),  # 6.6 of 20
        ("StableDiffusionXLImg2ImgPipeline", 1, 20),
        ("FluxPipeline", 0.33, 7),
        ("StableDiffusion3Pipeline", 0.6, 12),
    ],
)
def test_how_many_steps_a_strength_leaves(kind: str, strength: float, left: int) -> None:
    euler = functools.partial(table, Fields({"_class_name": "EulerDiscreteScheduler", **SD}), 20)
    steps = from_strength(euler, kind, 20, strength)
    assert len(steps.told) == left
    np.testing.assert_array_equal(steps.told, euler().told[20 - left :])


def test_a_distilled_model_takes_all_of_its_steps_in_what_a_strength_leaves() -> None:
    student = functools.partial(table, Fields({"_class_name": "LCMScheduler"}), 4)
    told = from_strength(student, "LatentConsistencyModelPipeline", 4, 0.5).told
    assert told.tolist() == [499, 379, 259, 139]  # 25 indices to 499, each sixth


def test_a_second_part_begins_with_a_whole_step() -> None:
    for name, begin in (("EulerDiscreteScheduler", 5), ("HeunDiscreteScheduler", 4)):  # Heun's fifth is told it twice
        fields = Fields({"_class_name": name, **SD, "timestep_spacing": "leading", "steps_offset": 1})
        made = functools.partial(table, fields, 10)
        steps = from_index(made, fields, 10, 0.5)  # told less than 500: 401, 301, ...
        np.testing.assert_array_equal(steps.told, made(begin=begin).told)
        assert steps.told[-1] == 1 and made(begin=5).told[0] == 401


def test_less_noise_is_nearer_to_the_picture(model: Pretrained) -> None:
    options: dict[str, Any] = {**OPTIONS, "image": PICTURE}
    near, far = (np.abs(model.sample(0, 2, CAT, strength=s, **options) - latents(model)).mean() for s in (0.2, 1.0))
    assert near < far


def test_a_part_is_kept(model: Pretrained) -> None:
    """Where nothing is kept, samples are those of a call without."""
    found = model.sample(0, 2, CAT, image=PICTURE, mask=MASK, **{**OPTIONS, "guide": "cfg:3"})
    np.testing.assert_allclose(found[:, :, :4], np.repeat(latents(model)[:, :, :4], 2, 0), atol=1e-7)
    assert np.abs(found[:, :, 4:] - latents(model)[:, :, 4:]).max() > 0.1
    anew = model.sample(0, 2, CAT, image=PICTURE, mask=np.ones_like(MASK), **OPTIONS)
    np.testing.assert_allclose(anew, model.sample(0, 2, CAT, **OPTIONS), rtol=1e-5, atol=1e-5)


def test_two_parts_are_the_whole_way(model: Pretrained) -> None:
    """The noise of a step is its own, whichever call takes it."""
    x = model.sample(0, 2, CAT, denoising_end=0.45, **OPTIONS)
    rest = model.sample(0, 2, CAT, x=x, denoising_start=0.45, **OPTIONS)
    whole = model.sample(0, 2, CAT, **OPTIONS)
    np.testing.assert_allclose(rest, whole, rtol=1e-4, atol=1e-4 * np.abs(whole).max())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timesteps": [22, 0], "steps": None}, "timesteps is of consistency models: of others say steps=..., or ts="),
        ({"strength": 0.5}, "strength is of an image: give image=... too"),
        ({"mask": MASK}, "mask is of an image: give image=... too"),
        ({"image": PICTURE, "strength": 0.1}, "strength 0.1 of 5 steps leaves none: raise it, or the steps"),
        ({"image": PICTURE, "strength": 1.5}, "strength is above 0 (the picture as it is) and at most 1"),
        ({"image": PICTURE[:8]}, "image is uint8 16x16x3, or 1 of them, got uint8 (8, 16, 3)"),
        ({"image": PICTURE, "x": np.zeros((1, 8, 8, 4))}, "image and x are both what samples begin as"),
        ({"image": PICTURE, "mask": MASK, "denoising_end": 0.5}, "mask: strict steps keep a part of a picture on the"),
        ({"denoising_start": 0.5}, "denoising_start goes on from what a call with denoising_end=0.5 gave"),
        ({"denoising_end": 0.0001}, "denoising_end=0.0001 leaves none of 5 steps: raise it, or the steps"),
        ({"denoising_start": 0.9999, "x": np.zeros((1, 8, 8, 4))}, "denoising_start=0.9999 leaves none of 5 steps"),
    ],
)
def test_what_does_not_fit_is_one_line(model: Pretrained, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        model.sample(0, 1, CAT, **{**OPTIONS, **options})
    assert message in str(error.value) and "\n" not in str(error.value)


def test_steps_that_are_told_no_index_have_no_parts() -> None:
    fields = Fields({"_class_name": "EDMEulerScheduler"})
    with pytest.raises(ValueError, match="denoising_start is of steps that are told an index, and those of EDMEuler"):
        from_index(functools.partial(table, fields, 5), fields, 5, 0.5)
