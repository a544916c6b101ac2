"""What a metric is asked, and what it answers."""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal

from jaxdiff.config import ConfigError
from jaxdiff.data import Source
from jaxdiff.runs.autoencoder import AutoencoderRun
from jaxdiff.runs.classifier import ClassifierRun
from jaxdiff.runs.run import Run


class MetricError(ValueError):
    """A metric that has no value. Its message is one line."""


METRIC_ERRORS = (MetricError,)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """How metrics are taken."""

    num: int | None = None
    """Images, spread evenly over the split; by default all."""
    batch_size: int = 64
    """Most images at once."""
    seed: int = 0
    """The same seed gives the same figures."""
    labels: bool = True
    """Give the model each image's label, where it was trained with labels."""
    method: tuple[Literal["ode", "elbo", "vlb"], ...] = ("ode",)
    """bpd: the probability flow's likelihood, the bound of the reverse SDE, that of a chain."""
    estimator: tuple[Literal["rademacher", "gaussian", "exact"], ...] = ("rademacher",)
    """ode: how the divergence is found; exact costs an evaluation for each pixel."""
    probes: int = 1
    """ode: random directions averaged for each image."""
    steps: int | None = None
    """ode: fixed Runge-Kutta steps (of order 4); by default steps are adaptive."""
    rtol: float | None = None
    """ode: relative and absolute tolerance of adaptive steps; by default 1e-4."""
    dequantise: Literal["uniform", "gaussian"] = "uniform"
    """ode: noise that makes grey levels a density: uniform in the level, or the process's own at its least time."""
    draws: int = 16
    """elbo, accuracy: times drawn for each image."""
    time: Literal["log_snr", "t", "learned"] = "learned"
    """elbo: how they are drawn; learned from the first batch, for the least variance."""
    chain: int | None = None
    """vlb: times of the chain; by default all of a discrete process, 256 of another."""
    variance: Literal["fixed_small", "fixed_large", "learned"] | None = None
    """vlb: of the chain's steps; by default learned where the network has it, else fixed_small."""


@dataclasses.dataclass(frozen=True)
class Result:
    """A metric over the images done so far.

    Args:
      name: such as "bpd ode rademacher".
      unit: such as "bits/dim".
      done, total: images.
      mean: over the images done.
      error: standard error of the mean, from the spread over images: it holds the choice of images and, because each
        has draws of its own, the noise of the estimate. NaN for one image.
      parts: what else the metric knows, means over images.
      values: one number an image, in order.
    """

    name: str
    unit: str
    done: int
    total: int
    mean: float
    error: float
    parts: dict[str, Any]
    values: list[float] = dataclasses.field(default_factory=list, repr=False)

    def line(self) -> str:
        """One line for people.

        >>> Result("bpd ode", "bits/dim", 10, 20, 3.14159, 0.012, {}).line()
        'bpd ode  3.142 +- 0.012 bits/dim  (10 of 20 images)'
        """
        digits = (
            3 if not math.isfinite(self.error) or self.error <= 0 else max(3, 1 - math.floor(math.log10(self.error)))
        )
        digits = min(digits, 6)
        of = "" if self.done == self.total else f" of {self.total}"
        return f"{self.name}  {self.mean:.{digits}f} +- {self.error:.{digits}f} {self.unit}  ({self.done}{of} images)"


Metric = Callable[[Any, Source, EvaluateOptions], Iterator[Result]]
"""Of a run of any kind. Yields after each batch; the last for each name is the result."""


OF_KINDS: dict[type, tuple[str, str]] = {
    Run: ("a diffusion model", "bpd"),
    AutoencoderRun: ("an autoencoder", "reconstruction"),
    ClassifierRun: ("a classifier", "accuracy"),
}
"""Each kind of run, in words, and its metric."""


def refuse_other_run(run: Any, metric: str) -> None:
    """Refuses a run of another kind than the one that a metric is of.

    Raises:
      ConfigError: it is one.
    """
    kind, own = OF_KINDS[type(run)]
    if own != metric:
        wanted = next(words for words, name in OF_KINDS.values() if name == metric)
        raise ConfigError(f"--metrics {metric} is of {wanted}; this run is {kind}: {own}")


class ProgressLine:
    """Where a metric stands, on stderr: one line that changes on a terminal, a line every ten seconds elsewhere."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._begun = self._shown = time.monotonic()
        self._name = ""
        self._width = 0

    def show(self, result: Result) -> None:
        """The state after a batch."""
        now = time.monotonic()
        if result.name != self._name:
            self._name, self._begun = result.name, now if self._name else self._begun
        if not self._live and now - self._shown < 10:
            return
        self._shown = now
        left = (now - self._begun) / result.done * (result.total - result.done)
        text = f"{result.line()}  {left:,.0f} s left"
        padded = text.ljust(self._width)
        self._width = len(text)
        print(f"\r{padded}" if self._live else text, end="" if self._live else "\n", file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Makes room for other output."""
        if self._live and self._width:
            print(f"\r{' ' * self._width}\r", end="", file=sys.stderr, flush=True)
            self._width = 0
