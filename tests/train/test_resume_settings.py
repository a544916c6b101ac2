"""What JAX is set to when a run goes on: 64-bit numbers and the kind of keys are told from another model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.commands.test_cli import TINY


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"JAX_ENABLE_X64": "1"}, "numbers of 32 bits (JAX_ENABLE_X64"),
        pytest.param(
            {"JAX_DEFAULT_PRNG_IMPL": "rbg"},
            "random keys of another kind (jax_default_prng_impl",
            marks=pytest.mark.nightly,
        ),
    ],
)
def test_another_setting_is_named(
    setting: dict[str, str], said: str, run_python: Callable[..., Any], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    options = ("--workdir", folder, *TINY, "--train.sample_every", "0", "--train.steps")
    run_python("train.py", *options, "1")
    refused = run_python("train.py", *options, "2", env=setting, check=False)
    assert refused.returncode == 2 and "Traceback" not in refused.stderr, refused.stderr
    (line,) = [line for line in refused.stderr.splitlines() if "error: " in line]
    assert said in line and "another model" not in line
    run_python("train.py", *options, "2")
