"""The commands: one module each, which the files `train.py`, `sample.py` and `evaluate.py` of the repository run."""
