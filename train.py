"""Trains a diffusion model: see `jaxdiff/commands/train.py`, or `python train.py --help`."""

import signal
import sys

if __name__ == "__main__":  # a Ctrl-C amid the imports would be an exception, and may be lost: jaxdiff.launch.signals
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])  # which start_again has blocked
    from jaxdiff.launch.allocator import start_again

    start_again(sys.argv[1:])  # before what takes longer to import

from jaxdiff.commands.train import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
