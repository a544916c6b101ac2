"""Every sampler that has a name draws of a published pipeline."""

from __future__ import annotations

import numpy as np
import pytest

from jaxdiff.methods import SAMPLERS
from jaxdiff.pretrained import Pretrained, load_pipeline
from tests.pretrained.test_pipeline import write_pixels

EVERY_DAY = ("ddim", "dpmpp_2m")  # of one step, and of several


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Pretrained:
    return load_pipeline(write_pixels(tmp_path_factory.mktemp("pixels") / "model"))


@pytest.mark.parametrize(
    "name", [name if name in EVERY_DAY else pytest.param(name, marks=pytest.mark.nightly) for name in SAMPLERS]
)
def test_it_draws(name: str, model: Pretrained) -> None:
    x0 = np.asarray(model.sample(0, 2, sampler=name, steps=4, decode=False))
    assert x0.shape == (2, 4, 4, 3) and np.isfinite(x0).all() and np.abs(x0[0] - x0[1]).max() > 1e-3
