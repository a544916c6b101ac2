"""Networks that attend to a text, on 8 devices and on one (tokens.py runs them in a process with 8)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.nightly  # each network is compiled seven times, whole


@pytest.mark.parametrize("network", ["unet", "dit", "mmdit", "uvit"])
def test_a_text_on_8_devices(network: str, run_python: Callable[..., Any]) -> None:
    """As on one, to 1e-5, output and gradient; tensor parallel no weight is gathered, with fsdp never all at once."""
    program = Path(__file__).with_name("tokens.py")
    found = json.loads(run_python(program, network, devices=8, timeout=900).stdout.splitlines()[-1])[network]
    for mesh in ("data", "fsdp", "tensor"):
        assert found[mesh]["furthest"] < 1e-5, mesh
    for mesh in ("data", "tensor"):
        assert (found[mesh]["forward"]["all-gather"], found[mesh]["backward"]["all-gather"]) == (0, 0), mesh
    assert found["tensor"]["forward"]["all-reduce"] > 0
    assert found["fsdp"]["forward"]["all-gather"] > 0
    assert found["fsdp"]["temporary"] < found["weights"] * (0.75 if network == "unet" else 0.25)
