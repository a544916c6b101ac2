"""Trains a diffusion model.

    python train.py                                                    real handwritten digits, minutes on two CPU cores
    python train.py configs/mnist_unet.py --data.path DIR              another experiment
    python train.py configs/mnist_unet.py --optimizer.lr 1e-4 --train.steps 2000 --workdir runs/x
    python train.py --init-from runs/x --init-partial --workdir ...    the weights of another run to start with
    python train.py --help                                             every option and its value

Ctrl-C (or SIGTERM) saves and ends; the same command goes on from there. In several processes: docs/clusters.md.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import jax

from jaxdiff import config as cfg
from jaxdiff import train as training
from jaxdiff.config.folder import SAMPLES
from jaxdiff.data import DataError
from jaxdiff.launch.signals import end_at_signals
from jaxdiff.runs.fit import fit

HERE = Path(__file__).parents[2]


def train(arguments: Sequence[str]) -> None:
    # --- Configuration: a file, changed by options
    options = cfg.parse_config(arguments, program="train.py", default_file=HERE / "configs" / "digits_unet.py")
    cfg.join(options)
    kept = cfg.keep_compiled(options.cache)
    lead = jax.process_index() == 0
    with cfg.as_config_error("--profile"):
        profile = None if options.profile is None else training.Window.parse(options.profile)
    if lead:
        print(cfg.first_line(kept))

    # --- Training
    run = fit(
        options.config,
        init_from=options.init_from,
        init_partial=options.init_partial,
        cache=options.cache,
        profile=profile,
        dry_run=options.dry_run,
        again=cfg.command(HERE / "train.py", *arguments),
    )

    # --- Where to look
    if options.dry_run or run.step < run.config.train.steps:
        return
    figures, folder = run.measure(), Path(run.config.folder)
    if lead:
        if figures:
            print("measured   " + "  ".join(f"{name} {value:.3g}" for name, value in figures.items()))
        print(f"samples    {folder / SAMPLES}")
        print(f"metrics    {folder / 'metrics.jsonl'}; curves: tensorboard --logdir {folder}")
        print(f"to sample  {cfg.command(HERE / 'sample.py', str(folder), *cfg.trust_options(run.config))}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs with the command line's arguments, or with those given (from Python, where no flag of XLA is set)."""
    with cfg.one_line_errors("train.py", DataError, training.CheckpointError, training.DivergedError):
        if arguments is None:
            end_at_signals()
            cfg.set_up(sys.argv[1:])
        train(sys.argv[1:] if arguments is None else arguments)
