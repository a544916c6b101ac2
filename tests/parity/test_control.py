"""ControlNets that count for a part of the steps, and in guess mode: latents are those of diffusers' pipelines."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxdiff.pretrained.pipeline import load_pipeline
from tests.parity import controlnets, published
from tests.parity.comparison import apart
from tests.parity.originals import quiet, torch
from tests.parity.test_pipelines import noise_of

pytestmark = [pytest.mark.nightly, pytest.mark.filterwarnings("ignore::jaxdiff.pretrained.LongPrompt")]
N = 10
CASES: dict[str, tuple[Callable[[], published.Case], dict[str, Any], dict[str, Any]]] = {
    "a part of the steps": (
        functools.partial(controlnets.controlled, "DDIM"),
        {"control_guidance_start": 0.2, "control_guidance_end": 0.55},
        {"control_start": 0.2, "control_end": 0.55},
    ),
    "half of Heun's evaluations": (
        functools.partial(controlnets.controlled, "HeunDiscrete"),
        {"control_guidance_end": 0.5},
        {"control_end": 0.5},
    ),
    "each of two its own": (
        functools.partial(controlnets.controlled, "DDIM", 2),
        {"control_guidance_start": [0.0, 0.3], "control_guidance_end": [0.4, 1.0]},
        {"control_start": {"controlnet_1": 0.3}, "control_end": {"controlnet": 0.4}},
    ),
    "guess mode": (controlnets.controlled, {"guess_mode": True}, {"guess_mode": True}),
    "guess mode of two": (
        functools.partial(controlnets.controlled, "DDIM", 2),
        {"guess_mode": True, "control_guidance_end": 0.8},
        {"guess_mode": True, "control_end": 0.8},
    ),
    "XL": (
        controlnets.controlled_xl,
        {"guess_mode": True, "control_guidance_start": 0.1, "control_guidance_end": 0.7},
        {"guess_mode": True, "control_start": 0.1, "control_end": 0.7},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_latents_are_diffusers(name: str, tmp_path: Path) -> None:
    make, theirs, ours = CASES[name]
    with quiet():
        case = make()
        case.pipe.set_progress_bar_config(disable=True)
        case.pipe.save_pretrained(tmp_path)
    model = load_pipeline(tmp_path)
    first = noise_of(0, 2, model.shape, [-1])[-1]
    given = {"strict": True, "steps": N, "decode": False, **case.options}
    found = model.sample(0, 2, case.cond, **given, **ours)
    with quiet(), torch.no_grad():
        latents = torch.from_numpy(np.ascontiguousarray(first.transpose(0, 3, 1, 2)))
        asked = functools.partial(type(case.pipe).__call__, case.pipe, **theirs)
        expected = published.channels_last(case.call(_Called(case.pipe, asked), latents, N))
    assert apart(found, expected) < 1e-3
    assert apart(model.sample(0, 2, case.cond, **given), expected) > 1e-2


class _Called:
    """A pipeline that is called with more options."""

    def __init__(self, pipe: Any, call: Callable[..., Any]) -> None:
        self._pipe, self._call = pipe, call

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pipe, name)

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self._call(*args, **options)
