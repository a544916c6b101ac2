"""Evaluates a trained run: see `jaxdiff/commands/evaluate.py`, or `python evaluate.py --help`."""

import signal

if __name__ == "__main__":  # a Ctrl-C amid the imports would be an exception, and may be lost: jaxdiff.launch.signals
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from jaxdiff.commands.evaluate import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
