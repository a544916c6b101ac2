"""Autoguidance by the name of a run, a step or an average."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxdiff import VP, Run
from jaxdiff.codecs import Points
from jaxdiff.commands import sample
from jaxdiff.config import ConfigError, check, dumps
from jaxdiff.guidance import Autoguidance, resolved
from jaxdiff.methods import guidance_of

LABELS = {"label": [1, 2]}


def with_worse(run: Run, guide: Any) -> list[Any]:
    return resolved(guidance_of(guide), run.model.read)


@pytest.fixture(scope="module")
def run(tiny_run: Path) -> Run:
    return Run.load(tiny_run)


def test_what_is_named_is_read_once(run: Run, tiny_run: Path) -> None:
    """The last step's weights instead of their average; of this run and by the folder's name the same."""
    (element,) = with_worse(run, "autoguidance:3,average=none")
    last: Any = Run.load(tiny_run, ema=False).denoise
    forms: list[Any] = [jax.tree.structure(each) for each in (element.denoise, last)]
    assert element.average == "" and forms[0] == forms[1]
    for got, wanted in zip(jax.tree.leaves(element.denoise), jax.tree.leaves(last), strict=True):
        np.testing.assert_array_equal(got, wanted)
    assert with_worse(run, ["cfg:2", "autoguidance:5,average=none"])[1].denoise is element.denoise
    (decided,) = run.named_by(["cfg:2", "autoguidance:5,average=none"])
    assert decided == {**run.decided_by(), "average": "none"} and run.named_by("cfg:2") == []
    (far,) = with_worse(run, f"autoguidance:3,run={tiny_run},average=none")
    options: dict[str, Any] = {"decode": False, "steps": 3}
    guides: tuple[Any, ...] = ("autoguidance:3,average=none", far, Autoguidance(3.0, last), ())
    named, other, by_object, plain = (run.sample(0, 2, LABELS, guide=guide, **options) for guide in guides)
    np.testing.assert_array_equal(named, by_object)
    np.testing.assert_array_equal(named, other)
    assert np.abs(named - plain).max() > 0


def test_on_the_command_line(tiny_run: Path, tmp_path: Path) -> None:
    """Without labels' absence, and behind cfg; the step of a checkpoint."""
    out = tmp_path / "samples.npz"
    asked = ["--num", "2", "--label", "1", "--steps", "2", "--out", str(out)]
    sample.main([str(tiny_run), *asked, "--guide", "cfg:2", "autoguidance:2,step=2,average=none"])
    with np.load(out) as arrays:
        assert arrays["x"].shape == (2, 8, 8, 1)


def test_what_cannot_be_read_says_so(run: Run, tiny_run: Path, tmp_path: Path) -> None:
    """One line, in the option's words."""
    copy = Path(shutil.copytree(tiny_run, tmp_path / "other"))
    (copy / "config.json").write_text(dumps(dataclasses.replace(run.config, process=VP())))
    assert json.loads((copy / "config.json").read_text()) != json.loads((tiny_run / "config.json").read_text())
    cases = (
        ("autoguidance:2,step=7", "autoguidance:step=7: .*7"),
        ("autoguidance:2,average=short", "autoguidance:average=short: .*short"),
        (f"autoguidance:2,run={tmp_path}/none", f"autoguidance:run={re.escape(str(tmp_path))}/none: "),
        (f"autoguidance:2,run={copy}", r"its process is VP\(.*, and that of the run that samples CosineVP"),
    )
    for guide, message in cases:
        with pytest.raises(ConfigError, match=message) as error:
            run.sample(0, 2, LABELS, guide=guide)
        assert "\n" not in str(error.value)
    net = run.denoise.net
    points = Run.of(
        dataclasses.replace(run.config, codec=Points((3,))), run.denoise.params, 2, run.mesh, folder=run.folder
    )
    assert points.denoise.net == net
    with pytest.raises(ConfigError, match=r"its shape of the data is \(8, 8, 1\), and that of .* \(3,"):
        with_worse(points, "autoguidance:2,average=none")
    nowhere = Run.of(run.config, run.denoise.params, 2, run.mesh)
    with pytest.raises(ConfigError, match="this run lies in no folder that could be read from"):
        with_worse(nowhere, "autoguidance:2,step=2")
    with pytest.raises(ConfigError, match=r"sample\.guide: autoguidance reads a second network when samples are drawn"):
        guided = dataclasses.replace(run.config.sample, guide=("autoguidance:2,run=runs/small",))
        check(dataclasses.replace(run.config, sample=guided))
