"""How often a classifier of noisy samples tells the label, and the cross-entropy, by noise level.

Each image is given noise at times drawn from each quarter of t, in turn from data to noise, equally many in each; the
accuracy of all is the mean of the quarters.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from jaxdiff.classifier import LABEL, QUARTERS
from jaxdiff.config import ConfigError
from jaxdiff.data.sources import Source, name_of, take
from jaxdiff.evaluate.metric import EvaluateOptions, Result, refuse_other_run
from jaxdiff.noise import salted_keys
from jaxdiff.process import Process
from jaxdiff.runs.classifier import ClassifierRun
from jaxdiff.times import Uniform

TIMES = 0x74
"""Salt of the times, apart from the noise."""


def accuracy(run: ClassifierRun, source: Source, options: EvaluateOptions) -> Iterator[Result]:
    """Accuracy and cross-entropy of a source's labels.

    Yields:
      After each batch a `Result` of all times, one of each quarter of t, and the cross-entropy in nats.

    Raises:
      ConfigError: a run that is no classifier's, data without labels, or options out of range.
    """
    refuse_other_run(run, "accuracy")
    if options.batch_size < 1 or (options.num is not None and options.num < 1):
        raise ConfigError("--num and --batch_size must be at least 1")
    if options.draws < QUARTERS:
        raise ConfigError(
            f"--draws: {options.draws} is out of range, it must be at least {QUARTERS}: one a quarter of t"
        )
    if LABEL not in source.spec:
        raise ConfigError(f"{name_of(source)} has no labels, which accuracy is of")
    count = min(options.num or len(source), len(source))
    indices = np.arange(count) * len(source) // count
    each, key = options.draws // QUARTERS, jax.random.key(options.seed)
    right, cross_entropy = np.zeros((0, QUARTERS)), np.zeros(0)
    size = min(options.batch_size, count)
    for first in range(0, count, size):
        part = indices[first : first + size]
        filled = np.pad(part, (0, size - len(part)), mode="edge")  # the last one does not compile again
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.asarray(filled, jnp.uint32))
        found = run.told(take(source, filled), keys, times(run.process, keys, each))
        log_prob, told = (values[: len(part)] for values in found)
        right = np.concatenate([right, told.reshape(len(part), QUARTERS, each).mean(2)])
        cross_entropy = np.concatenate([cross_entropy, -log_prob.mean(1, dtype=np.float64)])
        yield _result("accuracy", "", count, right.mean(1))
        for quarter in range(QUARTERS):
            name = f"accuracy, t {quarter / QUARTERS:g} to {(quarter + 1) / QUARTERS:g}"
            yield _result(name, "", count, right[:, quarter])
        yield _result("cross-entropy", "nats", count, cross_entropy)


@functools.partial(jax.jit, static_argnames=("each",))
def times(process: Process, keys: Array, each: int) -> Array:
    """So many times of each quarter for each sample, ``(B, 4 each)``, a quarter after the other."""
    parts = []
    for quarter in range(QUARTERS):
        inside = Uniform(quarter / QUARTERS if quarter else None, (quarter + 1) / QUARTERS)
        drawn = jax.vmap(lambda key, inside=inside: inside.draw(process, key, each))
        parts.append(drawn(salted_keys(keys, TIMES, quarter)))
    return jnp.concatenate(parts, axis=1)


def _result(name: str, unit: str, total: int, values: NDArray[np.float64]) -> Result:
    error = float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return Result(name, unit, len(values), total, float(values.mean()), error, {}, values.tolist())
