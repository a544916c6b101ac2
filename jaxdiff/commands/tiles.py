"""Pictures larger than a run was trained on, on the command line: `--size` and `--tiles`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from jaxdiff.config import as_config_error
from jaxdiff.inverse.tiles import Wrap
from jaxdiff.launch.errors import ConfigError
from jaxdiff.methods import Guide, guidance_of
from jaxdiff.methods.parser import made
from jaxdiff.panorama import larger, tiles_of
from jaxdiff.runs.run import Run

Options = Any
"""`jaxdiff.commands.sample.Options`."""


def _tiles(
    stride: int | None = None, wrap: Wrap = "none", together: int | None = None, smooth: bool = True
) -> dict[str, Any]:
    """What `--tiles` says: numbers of `jaxdiff.panorama.tiles_of`."""
    return {"stride": stride, "wrap": wrap, "together": together, "smooth": smooth}


def asked_tiles(text: str | None) -> dict[str, Any]:
    """The numbers of `--tiles`.

    Raises:
      ConfigError: an unknown number, or a value of another type.

    >>> asked_tiles("7,wrap=x")
    {'stride': 7, 'wrap': 'x', 'together': None, 'smooth': True}
    """
    with as_config_error("--tiles"):
        return made({"tiles": _tiles}, "tiles" if text is None else f"tiles:{text}", "option")


def enlarged(run: Run, options: Options, guide: Guide | Sequence[Guide] | None, *, guided: bool) -> tuple[Run, Any]:
    """A run that draws pictures of `--size`, and its guidance with the windows behind it.

    Args:
      run: of pictures.
      options: with ``size`` or without, and ``tiles``.
      guide: guidance; None: as configured, where there is something to lead to.
      guided: whether there is.

    Raises:
      ConfigError: `--tiles` without a size, or sizes that do not fit the run.
    """
    if options.size is None:
        if options.tiles is not None:
            raise ConfigError("--tiles is of pictures larger than the run's own: give their --size HEIGHT WIDTH too")
        return run, guide
    asked = asked_tiles(options.tiles)
    with as_config_error("--size"):
        model = larger(run.model, tuple(options.size), wrap=asked["wrap"])
    with as_config_error("--tiles"):
        tiles = tiles_of(run.model, **asked)
    elements = guidance_of((run.model.defaults.guide if guided else ()) if guide is None else guide)
    return dataclasses.replace(run, model=model), [*elements, tiles]
