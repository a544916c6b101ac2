"""The installed wheel alone, in a folder without the repository: what it carries, a run from elsewhere reloaded
(`python wheel.py RUN`), and the command `jaxdiff` from training to a list of runs, as a person would type it."""

from __future__ import annotations

import shlex
import subprocess
import sys
from importlib import metadata
from importlib.resources import files
from pathlib import Path

import jax

import jaxdiff
from jaxdiff.config import RunConfig, load_config_file
from jaxdiff.config.command_line import shipped_configs

assert Path(jaxdiff.__file__).is_relative_to(sys.prefix), jaxdiff.__file__
assert metadata.metadata("jaxdiff")["License-Expression"] == "Apache-2.0"
for name in ("py.typed", "data/digits.npz"):
    assert (files("jaxdiff") / name).is_file(), name
licences = [p.name for p in metadata.files("jaxdiff") or [] if "licenses" in p.parts]
assert "LICENSE" in licences, licences
assert any("digits" in name.lower() for name in licences), licences

run = jaxdiff.Run.load(sys.argv[1])
images = run.sample(jax.random.key(0), 4, cond={"label": jax.numpy.arange(4)})["x"]
assert images.shape == (4, 8, 8, 1) and images.dtype == "uint8" and images.max() > images.min(), images
print(f"jaxdiff {metadata.version('jaxdiff')} from its wheel: step {int(run.step)}, samples {images.shape}, {licences}")

configs = shipped_configs()
assert len(configs) > 10 and all(file.is_relative_to(sys.prefix) for file in configs.values()), configs
assert all(isinstance(load_config_file(name), RunConfig) for name in configs)


def typed(line: str) -> list[str]:
    """The lines that a command prints."""
    print(f"+ {line}", flush=True)
    done = subprocess.run(
        [str(Path(sys.executable).with_name("jaxdiff")), *shlex.split(line)[1:]], text=True, stdout=-1
    )
    assert done.returncode == 0, f"exit {done.returncode}"
    print(done.stdout, end="")
    return done.stdout.splitlines()


said = typed("jaxdiff train digits_unet --train.steps 60 --train.sample_every 0 --train.log_every 30")
(line,) = (line for line in said if line.startswith("to sample"))
assert line.split()[-3:] == ["jaxdiff", "sample", "runs/digits"] or line.endswith("bin/jaxdiff sample runs/digits"), (
    line
)
assert typed("jaxdiff sample runs/digits --num 20")[-1].endswith("runs/digits/samples.png")
assert typed("jaxdiff runs")[1].split()[:3] == ["runs/digits", "finished", "60/60"]
