"""A cascade on the command line: its runs loaded, and its small pictures written before the large ones are drawn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from jax.sharding import Mesh
from numpy.typing import NDArray

from jaxdiff.commands.inverse import INVERSE
from jaxdiff.commands.published import PUBLISHED, given
from jaxdiff.config import ConfigError
from jaxdiff.launch.output import write_output
from jaxdiff.runs.cascade import Cascade

OF_ONE_RUN = (*PUBLISHED, *INVERSE, "steer", "image", "mask", "strength", "step", "tiles")
"""Options that a cascade has not."""
Options = Any
"""`jaxdiff.commands.sample.Options`."""


def load_cascade(options: Options, path: Path, average: bool | str, mesh: Mesh) -> Cascade:
    """The cascade of a file.

    Raises:
      ConfigError: an option that is of one run or of published models, or stages that cannot be read.
    """
    if taken := list(given(options, OF_ONE_RUN)):
        raise ConfigError(f"--{taken[0]} is of one model, and {path} is a cascade: leave it out")
    return Cascade.load(path, ema=average, trusted=("jaxdiff", *options.trust), mesh=mesh, dtype=options.dtype)


def writes_stages(cascade: Cascade, out: Path, columns: int | None) -> Callable[[int, dict[str, NDArray[Any]]], None]:
    """What writes each stage but the last as soon as it is drawn: samples_8.png beside samples.png."""

    def write(k: int, record: dict[str, NDArray[Any]]) -> None:
        if k == len(cascade.stages) - 1:
            return
        stage = cascade.stages[k]
        sides = "x".join(map(str, dict.fromkeys(stage.size[:2])))
        file = out.with_name(f"{out.stem}_{sides}{out.suffix}")
        write_output(file, lambda path: stage.run.save(path, record, columns))
        print(f"stage {k + 1} of {len(cascade.stages)}, {stage.name}: {file}", flush=True)

    return write
