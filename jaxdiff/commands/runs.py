"""Lists runs, one a line: `jaxdiff runs runs/`."""

from jaxdiff.runs.listing import main

__all__ = ["main"]
