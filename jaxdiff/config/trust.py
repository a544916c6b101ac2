"""Code of one's own that a run needs: where it is from, and how it comes back when the run is read.

A configuration file may hold classes, and put rows into the tables of names (samplers, grids, guidance, sources,
objectives). The run's `config.json` notes under "code" where these are from: a file, or the name of a module. That note
is for people. Nothing of it is run unless whoever reads the run names it: `--trust my_experiment.py`, or
`Run.load(..., trusted=("jaxdiff", "my_experiment.py"))`.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from jaxdiff.config.build import OBJECTIVES, SOURCES
from jaxdiff.config.schema import Config, RunConfig
from jaxdiff.config.serialize import to_json, types_in
from jaxdiff.launch.errors import ConfigError
from jaxdiff.methods import GRIDS, GUIDANCE, SAMPLERS, parse_grid, parse_guidance, parse_sampler

_TABLES: tuple[Mapping[str, Callable[..., Any]], ...] = (SAMPLERS, GRIDS, GUIDANCE, SOURCES, OBJECTIVES)
_files: dict[str, Path] = {}  # of modules, by name
_registered: dict[tuple[int, str], str] = {}  # (table, name of a row) -> the module that put it there


def module_name(path: Path) -> str:
    """The name of a file as a module of the folder it stands in: its classes can be found again by import path.

    >>> module_name(Path("/home/me/my-project/first try.py"))
    'my_project.first_try'
    """
    return ".".join(re.sub(r"\W|^(?=\d)", "_", part) for part in (path.resolve().parent.name, path.stem))


def load_file(path: str | os.PathLike[str]) -> ModuleType:
    """Runs a Python file as a module.

    Raises:
      ConfigError: there is no such file, or it fails.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise ConfigError(f"there is no file {str(path)!r}")
    name = module_name(path)
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{str(path)!r} is not a Python file: its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    before = [dict(table) for table in _TABLES]
    try:
        spec.loader.exec_module(module)
    # Whatever a person's file may raise is theirs to read; it is reported with its line.
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == path]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
        where = f"{path}, line {line}" if line else str(path)
        raise ConfigError(f"{where}: {type(error).__name__}: {error}") from error
    _files[name] = path.resolve()
    for number, (table, old) in enumerate(zip(_TABLES, before, strict=True)):
        _registered.update({(number, row): name for row in table if old.get(row) is not table[row]})
    return module


def import_trusted(trusted: Sequence[str]) -> tuple[str, ...]:
    """Imports what a person trusts, so that its names are in their tables; files become the names of their modules.

    Raises:
      ConfigError: one cannot be imported.
    """
    names = []
    for each in [trusted] if isinstance(trusted, str) else trusted:
        if each.endswith(".py"):
            name = module_name(Path(each).expanduser())
            if _files.get(name) != Path(each).expanduser().resolve():
                load_file(each)
        else:
            name = each
            if not any(loaded == name or loaded.startswith(f"{name}.") for loaded in sys.modules):
                try:
                    importlib.import_module(name)
                except (ImportError, ValueError) as error:
                    raise ConfigError(f"--trust: {name!r} cannot be imported ({error})") from error
        names.append(name)
    return tuple(names)


def code_of(config: RunConfig) -> list[str]:
    """Files and modules, other than jaxdiff's own, that a configuration's classes and names are from."""
    modules = {path.rpartition(".")[0] for path in types_in(to_json(config))}
    named: tuple[Sequence[Any], ...] = ((), (), (), [config.data.name], ())  # one a table
    if isinstance(config, Config):
        sample = config.sample
        named = ([sample.sampler], [sample.grid], sample.guide, [config.data.name], [config.loss.objective])
    for number, texts in enumerate(named):
        table = _TABLES[number]
        rows = {row for text in texts if isinstance(text, str) for row in re.findall(r"[A-Za-z_]\w*", text)}
        for row in rows & table.keys():
            made = getattr(table[row], "func", table[row])  # of a functools.partial
            modules.add(_registered.get((number, row), getattr(made, "__module__", "jaxdiff")))
    foreign = {name for name in modules if name.split(".")[0] not in ("jaxdiff", "__main__")}
    return sorted(str(_files.get(name, name)) for name in foreign)


def trust_options(config: RunConfig) -> list[str]:
    """What a command needs to read a run of this configuration: ``--trust`` and its code, or nothing."""
    code = [os.path.relpath(each) if each.endswith(".py") else each for each in code_of(config)]
    return ["--trust", *code] if code else []


def check_names(config: RunConfig) -> None:
    """Looks up the names that samples are made by.

    Raises:
      ValueError: one is not in its table.
    """
    if not isinstance(config, Config):
        return
    parse_sampler(config.sample.sampler, config.process)
    parse_grid(config.sample.grid)
    parse_guidance(config.sample.guide)
