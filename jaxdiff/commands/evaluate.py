"""Evaluates a trained run.

    jaxdiff evaluate runs/digits                                        bits per dimension of the test split
    jaxdiff evaluate runs/digits --estimator rademacher gaussian        by the probability flow, with both estimators
    jaxdiff evaluate runs/digits --method ode elbo vlb --num 100        and by the variational bounds; 100 images
    jaxdiff evaluate runs/mnist_autoencoder                             PSNR and SSIM of an autoencoder's test split
    jaxdiff evaluate runs/digits_classifier                             a classifier's accuracy by noise level
    jaxdiff evaluate runs/digits --split train --out results.json       another split; figures as JSON

Ctrl-C ends it with the figures of the images done so far. Several processes (docs/clusters.md) split each batch, and
--mesh.fsdp 8 the weights, as in training.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import tyro

from jaxdiff import config as cfg
from jaxdiff.config import ConfigError
from jaxdiff.config.build import look_up
from jaxdiff.data.sources import DataError, Source, name_of
from jaxdiff.evaluate import METRIC_ERRORS, METRICS, OF_KINDS, EvaluateOptions, Result
from jaxdiff.evaluate.metric import ProgressLine
from jaxdiff.launch.output import check_output, write_output
from jaxdiff.launch.signals import Stop, end_at_signals
from jaxdiff.runs.reading import load
from jaxdiff.train import CheckpointError, make_mesh


@dataclasses.dataclass(frozen=True)
class Options(EvaluateOptions, cfg.ProcessOptions):
    """Evaluate a trained run on real images."""

    run: tyro.conf.Positional[Path | None] = None
    """Folder of the run, such as runs/digits."""
    metrics: tuple[str, ...] = ()
    """What to measure: bpd (bits per dimension); of an autoencoder reconstruction (PSNR and SSIM), of a classifier
    accuracy; the defaults."""
    split: str = "test"
    """Which part of the run's data."""
    path: str | None = None
    """Where the data are, if not where the run found them."""
    out: Path | None = None
    """results.json: the figures, image by image too."""
    step: int | None = None
    """Checkpoint to evaluate; by default the newest."""
    mesh: cfg.MeshConfig = dataclasses.field(default_factory=cfg.MeshConfig)
    """As in training; by default every device has whole weights."""
    trust: tuple[str, ...] = ()
    """Modules or files (mine.py) of your own that the run's configuration uses; they are imported."""


def evaluate(arguments: Sequence[str]) -> int | None:
    """The signal that ended it early; None where it came to the end."""
    about = cfg.about("evaluate", __doc__)
    options = cfg.parse(
        Options, arguments, program=cfg.program("evaluate"), default=Options(), positional=1, about=about
    )
    if options.run is None:
        raise ConfigError(f"the folder of a run is missing, for instance: {cfg.program('evaluate')} runs/digits")
    if options.out is not None and (options.out.suffix != ".json" or not options.out.parent.is_dir()):
        raise ConfigError(f"--out: {str(options.out)!r} must end in .json, in a folder that is there")
    if options.out is not None:
        check_output(options.out)
    if not 0 <= options.seed < 2**32:
        raise ConfigError(f"--seed: {options.seed} is out of range, it must be from 0 to {2**32 - 1}")
    asked = [look_up(METRICS, name, "--metrics") for name in dict.fromkeys(options.metrics)]

    # --- The run, and its data
    cfg.join(options)
    lead = jax.process_index() == 0
    kept = cfg.keep_compiled(options.cache)
    with cfg.as_config_error("--mesh"):
        mesh = make_mesh(**dataclasses.asdict(options.mesh))
    run = load(options.run, step=options.step, trusted=("jaxdiff", *options.trust), mesh=mesh)
    data = dataclasses.replace(run.config.data, split=options.split)
    data = data if options.path is None else dataclasses.replace(data, path=options.path)
    source = cfg.tokenised(run.config, cfg.build_source(dataclasses.replace(run.config, data=data)))

    metrics = asked or [METRICS[OF_KINDS[type(run)][1]]]

    # --- Measuring: the last answer of each name is its result
    results: dict[str, Result] = {}
    progress, stop = ProgressLine(), Stop("finishing the images at hand, then the figures so far")
    with contextlib.ExitStack() as answered:
        for result in itertools.chain.from_iterable(metric(run, source, options) for metric in metrics):
            if not results:  # before the first figures a signal ends the process: there is nothing to keep
                answered.enter_context(stop)
                if lead:
                    print(cfg.first_line(kept))  # not before: a mistake is one line
            results[result.name] = result
            if lead:
                progress.show(result)
            if stop.requested:
                break
    progress.clear()

    # --- What came of it
    if lead:
        tell(options, run, source, results, stop.requested)
    if stop.requested and jax.process_count() > 1:
        raise KeyboardInterrupt  # leaves at once: the others may wait for this one
    return stop.signal


def tell(options: Options, run: Any, source: Source, results: Mapping[str, Result], interrupted: bool) -> None:
    """Prints the results, and writes them."""
    print(f"step {run.step} of {options.run}, {options.split} split of {name_of(source)}")
    for result in results.values():
        print(result.line())
    if interrupted:
        print("interrupted: these are the images done so far")
    if options.out is not None:
        content = {
            "run": str(options.run),
            "step": run.step,
            "split": options.split,
            "interrupted": interrupted,
            "options": {f.name: getattr(options, f.name) for f in dataclasses.fields(EvaluateOptions)},
            "results": [dataclasses.asdict(result) for result in results.values()],
        }

        def write(file: Path) -> None:
            partial = file.with_suffix(".partial")
            partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
            partial.replace(file)  # there whole or not at all

        write_output(options.out, write)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs with the command line's arguments, or with those given (from Python, where no flag of XLA is set). An
    interrupted run ends with status 128 and the number of the signal: 130 for Ctrl-C."""
    with cfg.one_line_errors(cfg.program("evaluate"), DataError, CheckpointError, *METRIC_ERRORS):
        if arguments is None:
            end_at_signals()
            cfg.set_up(sys.argv[1:])
        interrupted = evaluate(sys.argv[1:] if arguments is None else arguments)
    if interrupted is not None:
        raise SystemExit(128 + interrupted)
