"""What the benchmark of the cascade counts."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from benchmarks.cascade import training_flops
from jaxdiff.codecs import Images
from jaxdiff.config import load_config_file


@pytest.mark.nightly
def test_the_cascade_is_trained_with_as_many_operations_as_one_run() -> None:
    def flops(name: str) -> float:
        config: Any = load_config_file(name)
        config = dataclasses.replace(config, codec=config.codec or Images((28, 28, 1)))
        return training_flops(config, config.train.steps)

    assert flops("mnist_cascade_8") + flops("mnist_cascade_28") == pytest.approx(flops("mnist_unet"), rel=0.01)
