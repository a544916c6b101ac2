"""Trains a diffusion model: see `jaxdiff/commands/train.py`, or `python train.py --help`."""

from jaxdiff.commands.train import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
