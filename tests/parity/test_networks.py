"""Random networks of diffusers and transformers, read here and written back: outputs and gradients are the originals'.

Where torch, diffusers and transformers are installed: `python -m pytest -m nightly tests/parity`. Other configurations
are drawn, by a seed, by `benchmarks/parity.py`.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from jaxdiff.pretrained import load_network
from tests.parity.comparison import NAMES, compare
from tests.parity.originals import ORIGINALS, quiet

pytestmark = pytest.mark.nightly
SEEDS = range(3)
BOUNDS = {"output": 1e-4, "gradient": 1e-3, "written": 2e-6}  # 0 but for SD3, whose positions are computed


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", NAMES)
def test_a_network_is_the_original(name: str, seed: int, tmp_path: Path) -> None:
    found = compare(name, seed, tmp_path)
    assert all(difference <= BOUNDS[what] for what, difference in found.items()), found


def test_a_field_that_is_not_followed_is_refused_by_name(tmp_path: Path) -> None:
    with quiet():
        ORIGINALS["UNet2DConditionModel"](np.random.default_rng(0)).network.save_pretrained(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    for name, value in (("act_fn", "gelu"), ("encoder_hid_dim_type", "text_proj"), ("a_new_field", 3)):
        (tmp_path / "config.json").write_text(json.dumps({**fields, name: value}))
        with pytest.raises(ValueError, match=rf"config.json: {name} is ") as error:
            load_network(tmp_path)
        assert "\n" not in str(error.value)
