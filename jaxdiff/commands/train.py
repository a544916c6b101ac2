"""Trains a diffusion model, an autoencoder, or a classifier for guidance.

    jaxdiff train                                            real handwritten digits, minutes on two CPU cores
    jaxdiff train mnist_unet --data.path DIR                 another experiment that comes with jaxdiff
    jaxdiff train my_experiment.py --optimizer.lr 1e-4 --train.steps 2000 --workdir runs/x
    jaxdiff train --init-from runs/x --init-partial          the weights of another run to start with
    jaxdiff train stable-diffusion-v1-5 --data.path DIR      a published model, trained further
    jaxdiff train mnist_unet --help                          every option, and its value there

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
from jaxdiff.runs.published import load_config


def train(arguments: Sequence[str]) -> None:
    # --- Configuration: a file, changed by options
    about = cfg.about("train", __doc__)
    options = cfg.parse_config(arguments, program=cfg.program("train"), about=about, load=load_config)
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
        again=cfg.command("train", *arguments),
    )

    # --- Where to look
    if options.dry_run or run.step < run.config.train.steps:
        return
    figures, folder = run.measure(), Path(run.config.folder)
    if lead:
        if figures:
            print("measured   " + "  ".join(f"{name} {value:.3g}" for name, value in figures.items()))
        if (folder / SAMPLES).is_dir():  # none with train.sample_every 0
            print(f"samples    {folder / SAMPLES}")
        print(f"metrics    {folder / 'metrics.jsonl'}; curves: tensorboard --logdir {folder}")
        prompt = ["--prompt", run.prompts[0]] if getattr(run, "prompts", []) else []
        after = "sample" if isinstance(run.config, cfg.Config) else "evaluate"
        print(f"{'to ' + after:<9}  {cfg.command(after, str(folder), *prompt, *cfg.trust_options(run.config))}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs with the command line's arguments, or with those given (from Python, where no flag of XLA is set)."""
    with cfg.one_line_errors(cfg.program("train"), DataError, training.CheckpointError, training.DivergedError):
        if arguments is None:
            end_at_signals()
            cfg.set_up(sys.argv[1:])
        train(sys.argv[1:] if arguments is None else arguments)
