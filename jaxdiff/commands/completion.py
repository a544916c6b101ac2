"""What a shell completes after `jaxdiff`: a script for bash, zsh or tcsh, made by tyro of all commands' options."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Union

import tyro

from jaxdiff.commands import evaluate, sample
from jaxdiff.config.command_line import REGISTRY, TrainOptions, load_config_file


@dataclasses.dataclass(frozen=True)
class _Runs:
    folder: tyro.conf.Positional[Path] = Path("runs")


def complete(arguments: Sequence[str], commands: Mapping[str, str]) -> None:
    """Prints or writes the script, by tyro's options ``--tyro-print-completion`` and ``--tyro-write-completion``.

    Args:
      arguments: these options.
      commands: name -> what it does.
    """
    defaults = {
        "train": TrainOptions(config=load_config_file("digits_unet")),
        "sample": sample.Options(),
        "evaluate": evaluate.Options(),
        "runs": _Runs(),
    }
    parts: Any = tuple(
        Annotated[type(defaults[name]), tyro.conf.subcommand(name, default=defaults[name], description=what)]
        for name, what in commands.items()
    )
    options = tyro.conf.SuppressFixed, tyro.conf.AvoidSubcommands
    tyro.cli(Union[parts], args=arguments, prog="jaxdiff", registry=REGISTRY, config=options)  # noqa: UP007
