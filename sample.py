"""Samples from a trained run: see `jaxdiff/commands/sample.py`, or `python sample.py --help`."""

import signal

if __name__ == "__main__":  # a Ctrl-C amid the imports would be an exception, and may be lost: jaxdiff.launch.signals
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from jaxdiff.commands.sample import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
