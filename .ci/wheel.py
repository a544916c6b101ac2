"""The installed wheel alone, outside the repository: what it carries, and a run reloaded: `python wheel.py RUN`."""

from __future__ import annotations

import sys
from importlib import metadata
from importlib.resources import files
from pathlib import Path

import jax

import jaxdiff

assert Path(jaxdiff.__file__).is_relative_to(sys.prefix), jaxdiff.__file__
assert metadata.metadata("jaxdiff")["License-Expression"] == "Apache-2.0"
for name in ("py.typed", "data/digits.npz"):
    assert (files("jaxdiff") / name).is_file(), name
licences = [p.name for p in metadata.files("jaxdiff") or [] if "licenses" in p.parts]
assert "LICENSE" in licences, licences
assert any("digits" in name.lower() for name in licences), licences

run = jaxdiff.Run.load(sys.argv[1])
images = run.sample(jax.random.key(0), 4, cond={"label": jax.numpy.arange(4)})
assert images.shape == (4, 8, 8, 1), images.shape
assert bool(jax.numpy.isfinite(images).all())
print(f"jaxdiff {metadata.version('jaxdiff')} from its wheel: step {int(run.step)}, samples {images.shape}, {licences}")
