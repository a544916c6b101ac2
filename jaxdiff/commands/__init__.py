"""The commands: `jaxdiff NAME`, `python -m jaxdiff NAME`, and the files `train.py`, `sample.py`, `evaluate.py`.

Each stands in a module of its name, whose text is the help that it shows.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from jaxdiff.launch.allocator import start_again
from jaxdiff.launch.errors import silent_at_a_broken_pipe, suggestion
from jaxdiff.launch.signals import end_with_command

end_with_command()  # of a worker: it imports this first, then waits for what it is to read

COMMANDS = {
    "train": "train a model, by the name of a configuration or by a file",
    "sample": "sample from a trained run",
    "evaluate": "measure a trained run on real data",
    "runs": "list runs: running, finished or stopped, step, loss, speed",
}
LONG = ("train", "evaluate")
"""Commands that run for minutes, so that starting them again with tcmalloc pays."""
USAGE = "\n".join(
    [
        "usage: jaxdiff COMMAND ...",
        "",
        *(f"  jaxdiff {name:9} {what}" for name, what in COMMANDS.items()),
        "",
        "jaxdiff COMMAND --help lists the options of a command; jaxdiff --version says which version this is.",
        "Completion for bash (zsh, tcsh): jaxdiff --tyro-print-completion bash >> ~/.bash_completion",
    ]
)


def main(arguments: Sequence[str] | None = None) -> int | None:
    """Runs a command by its name.

    Args:
      arguments: the name and its options; None: those of the command line.

    Returns:
      The status with which the process ends; None: 0.
    """
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in COMMANDS:
        if name in LONG and arguments is None:
            start_again(rest)
        sys.argv[1:] = rest  # each reads its own options, as the file of its name does
        status: int | None = importlib.import_module(f"jaxdiff.commands.{name}").main()
        return status
    if name in ("-h", "--help", "--version"):
        with silent_at_a_broken_pipe():
            print(USAGE if name != "--version" else f"jaxdiff {importlib.import_module('jaxdiff').__version__}")
    elif name.startswith(("--tyro-print-completion", "--tyro-write-completion")):
        from jaxdiff.commands.completion import complete

        complete([name, *rest], COMMANDS)
    else:
        hint = suggestion(name, COMMANDS) or f"; there are {', '.join(COMMANDS)}"
        print(f"jaxdiff: error: there is no command {name!r}{hint}", file=sys.stderr)
        return 2
    return 0
