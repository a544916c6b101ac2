"""Evaluates a trained run: see `jaxdiff/commands/evaluate.py`, or `python evaluate.py --help`."""

from jaxdiff.commands.evaluate import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
