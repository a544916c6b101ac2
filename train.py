"""Trains a diffusion model: see `jaxdiff/commands/train.py`, or `python train.py --help`."""

import signal

if __name__ == "__main__":  # a Ctrl-C amid the imports would be an exception, and may be lost: jaxdiff.launch.signals
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from jaxdiff.commands.train import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
