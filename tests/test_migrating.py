"""docs/migrating.md runs: its Python in the page's order, and every name of its tables exists."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import jaxdiff
from jaxdiff import loss, networks, pretrained, sampling
from jaxdiff.methods import GRIDS, SAMPLERS
from tests.pretrained.test_pipeline import SD, write_pipeline
from tests.test_readme import ROOT, blocks

PAGE = ROOT / "docs" / "migrating.md"
SNIPPETS = blocks(PAGE, "python")
WORDS = {"text", "label", "fp16", "bfloat16", "ncsn", "unet", "vae"}
OF_PUBLISHED = [
    number for number, snippet in enumerate(SNIPPETS) if "model" in snippet or "stable-diffusion" in snippet
]


def run(snippets: list[str]) -> dict[str, Any]:
    namespace: dict[str, Any] = {}
    for number, snippet in enumerate(snippets):
        exec(compile(snippet, f"migrating_{number}", "exec"), namespace)
    return namespace


@pytest.mark.nightly
def test_what_needs_no_published_weights_runs() -> None:
    imports = "import jax\nimport jax.numpy as jnp\nimport numpy as np\nimport jaxdiff\n"
    left = [snippet for number, snippet in enumerate(SNIPPETS) if number not in OF_PUBLISHED]
    found = run([imports, *left])
    assert len(left) >= 4 and found["x0"].shape == (4, 2) and found["nats"].log_density.shape == (4,)


@pytest.mark.nightly
def test_what_is_of_published_weights_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_pipeline(tmp_path / "stable-diffusion-v1-5", {"_class_name": "PNDMScheduler", **SD, "skip_prk_steps": True})
    found = run([SNIPPETS[number] for number in OF_PUBLISHED])
    assert (
        len(OF_PUBLISHED) == 4 and found["images"].shape == (2, 16, 16, 3) and found["varied"].shape == (1, 16, 16, 3)
    )
    assert (tmp_path / "mine" / "model_index.json").is_file() and (tmp_path / "hearts.png").is_file()


def test_the_tables_name_what_exists() -> None:
    """Of each row's right side: classes and functions, and names of samplers and grids."""
    ours = " ".join(row.rsplit(" | ", 1)[1] for row in PAGE.read_text().splitlines() if row.startswith("| "))
    places = (jaxdiff, loss, networks, pretrained, sampling)
    names = set(re.findall(r"\b([A-Z][A-Za-z0-9]+)\(", ours))
    absent = {name for name in names if not any(hasattr(place, name) for place in places)}
    assert absent <= {"LossConfig"} and len(names) > 15, absent
    assert set(re.findall(r'"([a-z_0-9]+)"', ours)) - WORDS <= {
        *SAMPLERS,
        *GRIDS,
    }
