"""How alike an autoencoder's reconstructions are to the images: PSNR and SSIM (`jaxdiff.similarity`)."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from jaxdiff.config import ConfigError
from jaxdiff.data.sources import Source, take
from jaxdiff.evaluate.metric import EvaluateOptions, Result, refuse_other_run
from jaxdiff.runs.autoencoder import AutoencoderRun
from jaxdiff.runs.latents import scored

UNITS = {"psnr": "dB", "ssim": ""}


def reconstruction(run: AutoencoderRun, source: Source, options: EvaluateOptions) -> Iterator[Result]:
    """PSNR and SSIM of a source's images and their reconstructions, of the latents' means.

    Yields:
      A `Result` for each of the two, after each batch.

    Raises:
      ConfigError: a run that is no autoencoder's, or options out of range.
    """
    refuse_other_run(run, "reconstruction")
    if options.batch_size < 1 or (options.num is not None and options.num < 1):
        raise ConfigError("--num and --batch_size must be at least 1")
    count = min(options.num or len(source), len(source))
    indices = np.arange(count) * len(source) // count
    found: dict[str, list[float]] = {}
    for first in range(0, count, options.batch_size):
        scores = run.over(scored, take(source, indices[first : first + options.batch_size])["x"])
        for name, each in scores.items():
            values = found.setdefault(name, [])
            values += each.tolist()
            error = float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan
            yield Result(name, UNITS[name], len(values), count, float(np.mean(values)), error, {}, list(values))
