"""diffusers' schedulers: the process that each is of, and its own steps as a table of numbers."""

from jaxdiff.pretrained.schedulers.classes import SCHEDULERS, evaluations, table
from jaxdiff.pretrained.schedulers.processes import process_of

__all__ = ["SCHEDULERS", "evaluations", "process_of", "table"]
