"""Code of one's own: a run that needs it is trained, and sampled by the very command that training has printed."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import sample
from jaxdiff.config import ConfigError, load_config_file, read_config, to_json, trust_options
from jaxdiff.config.trust import code_of, load_file, module_name
from tests.commands.test_cli import TINY, one_line

EXPERIMENT = """
import dataclasses
import jax.numpy as jnp
import numpy as np
from configs.digits_unet import config as digits
from jaxdiff import Sampler, Weight, record
from jaxdiff.config import SOURCES
from jaxdiff.data import from_arrays
from jaxdiff.methods import GRIDS, SAMPLERS

@record
class Midpoint(Sampler):
    def step(self, denoise, noise, state, x, t, s):
        middle = 0.5 * (t + s)
        there = x + (middle - t) * denoise(x, t).velocity(self.process, t)
        return x + (s - t) * denoise(there, middle).velocity(self.process, middle), state

@record
class SqrtSNR(Weight):
    def on_x0(self, process, t):
        return jnp.exp(0.5 * process.log_snr(t))

def squares(process, n, power=2.0):
    return jnp.linspace(1.0, process.min_time() ** (1 / power), n) ** power

def discs(**options):
    y, x = np.mgrid[:8, :8] - 3.5
    radii = np.random.default_rng(0).uniform(1, 4, 100)
    images = (np.hypot(x, y) < radii[:, None, None])[..., None].astype(np.uint8) * 255
    return from_arrays(images, np.zeros(100, np.int32))

SAMPLERS["midpoint"], GRIDS["squares"], SOURCES["discs"] = Midpoint, squares, discs
config = dataclasses.replace(
    digits,
    name="discs",
    data=dataclasses.replace(digits.data, name="discs"),
    loss=dataclasses.replace(digits.loss, weight=SqrtSNR()),
    sample=dataclasses.replace(digits.sample, sampler="midpoint", grid="squares:power=3"),
)
"""


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    path = tmp_path / "my-project" / "first try.py"  # no name of a module
    path.parent.mkdir()
    path.write_text(EXPERIMENT)
    return path


@pytest.mark.nightly
def test_the_printed_commands_run_as_they_are(
    experiment: Path, tmp_path: Path, run_python: Callable[..., Any], repository: Path, capsys: Any
) -> None:
    folder = tmp_path / "run"
    options = ("--workdir", folder, *TINY, "--train.sample_every", "0")
    done = run_python("train.py", experiment, *options, "--train.steps", "1")
    assert json.loads((folder / "config.json").read_text())["code"] == [str(experiment)]
    (printed,) = [line.removeprefix("to sample  ") for line in done.stdout.splitlines() if line.startswith("to sample")]
    for more in ((), ("--out", str(tmp_path / "many"))):
        command = [*shlex.split(printed), "--num", "2", *more]
        again = subprocess.run(command, cwd=repository, capture_output=True, text=True)
        assert again.returncode == 0 and "2 samples from step 1" in again.stdout, again.stderr
    done = run_python("train.py", experiment, *options, "--train.steps", "2")  # and the same file goes on
    assert "going on after step 1" in done.stdout

    refused = run_python("sample.py", folder, check=False)
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1
    assert f"needs --trust '{experiment}'" in refused.stderr
    said = one_line(sample.main, [str(folder), "--trust", str(tmp_path / "nothing.py")], capsys)
    assert "there is no file" in said and "nothing.py" in said


def test_names_alone_are_noted_and_missed(experiment: Path, tmp_path: Path) -> None:
    """A configuration whose classes are all jaxdiff's, and whose sampler is not: as read where nothing has it."""
    config = load_config_file(experiment)
    assert code_of(config) == [str(experiment)] and trust_options(config)[0] == "--trust"
    assert module_name(experiment) == "my_project.first_try" == type(config.loss.weight).__module__
    base = load_config_file(Path(__file__).parents[2] / "configs" / "digits_unet.py")
    assert code_of(base) == [] == trust_options(base)
    plain, stored = to_json(base), {"code": ["my.py"]}
    (tmp_path / "config.json").write_text(json.dumps(plain | stored))
    assert read_config(tmp_path) == base  # the note alone refuses nothing
    plain["sample"]["sampler"] = "nowhere"
    (tmp_path / "config.json").write_text(json.dumps(plain | stored))
    with pytest.raises(ConfigError, match=r"nowhere.*; the run needs --trust my\.py"):
        read_config(tmp_path)


def test_a_module_that_is_not_there_is_one_line(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "config.json").write_text("{}")
    said = one_line(sample.main, [str(tmp_path), "--trust", "no_such_module"], capsys)
    assert "--trust: 'no_such_module' cannot be imported (No module named 'no_such_module')" in said
    (tmp_path / "bad.py").write_text("x = 1\nx.y\n")
    with pytest.raises(ConfigError, match=r"bad\.py, line 2: AttributeError"):
        load_file(tmp_path / "bad.py")
