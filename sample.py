"""Samples from a trained run: see `jaxdiff/commands/sample.py`, or `python sample.py --help`."""

from jaxdiff.commands.sample import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
