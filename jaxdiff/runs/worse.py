"""The second network of `jaxdiff.guidance.Autoguidance`, read from where its text says that it lies."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from jaxdiff.denoiser import NetworkDenoiser
from jaxdiff.guidance import Autoguidance
from jaxdiff.launch.errors import ConfigError
from jaxdiff.methods import guidance_of
from jaxdiff.train import CheckpointError

Run = Any
"""`jaxdiff.runs.Run`."""


def with_worse(run: Run, guide: Any) -> Any:
    """Guidance whose second networks have been read, those that are named; each once for a run.

    Args:
      run: that samples.
      guide: as `jaxdiff.Model.sample` takes it.

    Raises:
      ConfigError: what is named is not there, or is of another process, or of other data or conditions.
    """
    if guide is None:
        return None
    return [
        dataclasses.replace(element, denoise=_other(run, element)[0], run=None, step=None, average="")
        if _is_named(element)
        else element
        for element in guidance_of(guide)
    ]


def worse_decided_by(run: Run, guide: Any) -> list[dict[str, Any]]:
    """What decides the second networks that guidance names: `jaxdiff.runs.Run.decided_by` of each, and its average.

    Args:
      run, guide: as of `with_worse`.
    """
    named = [element for element in guidance_of(guide) if _is_named(element)]
    return [{**_other(run, element)[1], "average": element.average} for element in named]


def _is_named(element: Any) -> bool:
    return isinstance(element, Autoguidance) and element.denoise is None


def _other(run: Run, named: Any) -> tuple[NetworkDenoiser, dict[str, Any]]:
    place = {"run": named.run, "step": named.step, "average": named.average or None}
    words = ",".join(f"{name}={value}" for name, value in place.items() if value is not None)
    if words not in run.worse:
        try:
            run.worse[words] = _read(run, named)
        except (ValueError, CheckpointError) as error:
            raise ConfigError(f"autoguidance:{words}: {error}") from error
    other: tuple[NetworkDenoiser, dict[str, Any]] = run.worse[words]
    return other


def _read(run: Run, named: Autoguidance) -> tuple[NetworkDenoiser, dict[str, Any]]:
    path = run.folder if named.run is None else named.run
    if path is None:
        raise ConfigError("this run lies in no folder that could be read from: name another, run=runs/small")
    average: bool | str = False if named.average == "none" else named.average or True
    other = type(run).load(path, step=named.step, ema=average, trusted=run.trusted, mesh=run.mesh)
    for what, mine, its in (
        ("process", run.process, other.process),
        ("shape of the data", run.shape, other.shape),
        ("codec", run.config.codec, other.config.codec),
        ("condition", dict(run.denoise.net.cond), dict(other.denoise.net.cond)),
    ):
        if not _equal(mine, its):
            raise ConfigError(
                f"its {what} is {_brief(its)}, and that of the run that samples {_brief(mine)}: both networks are to "
                "answer the same question"
            )
    return other.denoise, other.decided_by()


def _equal(mine: Any, its: Any) -> bool:
    forms: list[Any] = [jax.tree.structure(each) for each in (mine, its)]
    if forms[0] != forms[1]:
        return False
    leaves = zip(jax.tree.leaves(mine), jax.tree.leaves(its), strict=True)
    return all(np.array_equal(np.asarray(a), np.asarray(b)) if _number(a) else a == b for a, b in leaves)


def _number(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray | np.generic | float | int)


def _brief(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
