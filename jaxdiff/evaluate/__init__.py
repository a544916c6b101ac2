"""Metrics of a trained run against data (`METRICS` is the table that `evaluate.py` offers), and pictures of a learned
score beside the true one (`ScoreField`); `psnr` and `ssim` of images.

A metric is a generator: ``metric(run, source, options)`` yields a `Result` after each batch, the last one being the
result. Adding one is a function and a row.
"""

from jaxdiff.evaluate.accuracy import accuracy
from jaxdiff.evaluate.bits import METHODS, bits
from jaxdiff.evaluate.metric import METRIC_ERRORS, OF_KINDS, EvaluateOptions, Metric, MetricError, Result
from jaxdiff.evaluate.reconstruction import reconstruction
from jaxdiff.evaluate.score_field import ScoreField, scatter
from jaxdiff.similarity import psnr, ssim

METRICS: dict[str, Metric] = {"bpd": bits, "reconstruction": reconstruction, "accuracy": accuracy}

__all__ = [
    "METHODS",
    "METRICS",
    "METRIC_ERRORS",
    "OF_KINDS",
    "EvaluateOptions",
    "Metric",
    "MetricError",
    "Result",
    "ScoreField",
    "accuracy",
    "bits",
    "psnr",
    "reconstruction",
    "scatter",
    "ssim",
]
