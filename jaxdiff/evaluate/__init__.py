"""Metrics of a trained run against data (`METRICS` is the table that `evaluate.py` offers), and pictures of a learned
score beside the true one (`ScoreField`).

A metric is a generator: ``metric(run, source, options)`` yields a `Result` after each batch, the last one being the
result. Adding one is a function and a row.
"""

from jaxdiff.evaluate.bits import METHODS, bits
from jaxdiff.evaluate.metric import METRIC_ERRORS, EvaluateOptions, Metric, MetricError, Result
from jaxdiff.evaluate.score_field import ScoreField, scatter

METRICS: dict[str, Metric] = {"bpd": bits}

__all__ = [
    "METHODS",
    "METRICS",
    "METRIC_ERRORS",
    "EvaluateOptions",
    "Metric",
    "MetricError",
    "Result",
    "ScoreField",
    "bits",
    "scatter",
]
