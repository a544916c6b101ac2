"""What a trained run is worth: metrics of a `Run` against data. `METRICS` is the table that `evaluate.py` offers.

A metric is a generator: ``metric(run, source, options)`` yields a `Measured` after each batch, the last one being the
result. Adding one is a function and a row.
"""

from jaxdiff.evaluate.bits import METHODS, bits
from jaxdiff.evaluate.measured import METRIC_ERRORS, EvaluateOptions, Measured, MeasureError, Metric

METRICS: dict[str, Metric] = {"bpd": bits}

__all__ = ["METHODS", "METRICS", "METRIC_ERRORS", "EvaluateOptions", "MeasureError", "Measured", "Metric", "bits"]
