"""Trains a diffusion model.

    python train.py                                                    real handwritten digits, minutes on two CPU cores
    python train.py configs/mnist_unet.py --data.path DIR              another experiment
    python train.py configs/mnist_unet.py --optimizer.lr 1e-4 --train.steps 2000 --workdir runs/x
    python train.py --init-from runs/x --init-partial --workdir ...    the weights of another run to start with
    python train.py --help                                             every option and its value

Ctrl-C (or SIGTERM) saves and ends; the same command goes on from there. In several processes: docs/clusters.md.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import jax

from jaxdiff import config as cfg
from jaxdiff import train as training
from jaxdiff.config.folder import CHECKPOINTS, LAST_SAVED, SAMPLES
from jaxdiff.data import DataError
from jaxdiff.denoiser import NetworkDenoiser
from jaxdiff.images import save_png
from jaxdiff.launch.signals import end_at_signals
from jaxdiff.runs.run import Run

HERE = Path(__file__).parents[2]


def train(arguments: Sequence[str]) -> None:
    # --- Configuration: a file, changed by options
    options = cfg.parse_config(arguments, program="train.py", default_file=HERE / "configs" / "digits_unet.py")
    config = options.config
    cfg.join(options)
    kept = cfg.keep_compiled(options.cache)
    cfg.check(config)
    lead = jax.process_index() == 0

    # --- Devices
    with cfg.as_config_error("mesh"):
        mesh = training.make_mesh(**dataclasses.asdict(config.mesh))
        training.check_batch_size(config.train.batch_size, mesh, config.train.accumulate)
        training.check_heads(config.network, mesh)
        part = training.batch_part(mesh)

    with cfg.as_config_error("--profile"):
        profile = None if options.profile is None else training.Window.parse(options.profile)

    # --- Data
    source = cfg.build_source(config, cache=options.cache)
    config = cfg.resolve(config, source)

    # --- Network, loss, optimizer
    net, key = cfg.build_network(config), jax.random.key(config.seed)
    with cfg.as_config_error("loss"):
        loss = cfg.build_loss(config)
    with cfg.as_config_error("optimizer"):
        optimizer, schedule = training.make_optimizer(steps=config.train.steps, **dataclasses.asdict(config.optimizer))

    def run_of(weights: object, step: int) -> Run:
        return Run(config, NetworkDenoiser(net, weights, config.process, config.parameterization), step, mesh)

    # --- The step; all shapes are checked before anything is made
    with cfg.as_config_error("network"):
        template = training.state_template(net, optimizer, loss, key, mesh)
        step_fn = training.compile_step(
            net=net,
            loss=loss,
            optimizer=optimizer,
            ema=config.ema,
            schedule=schedule,
            accumulate=config.train.accumulate,
            spike=config.train.spike,
            max_skipped=config.train.max_skipped,
            template=template,
        )
        jax.eval_shape(step_fn, template, cfg.batch_shapes(config, source))
    run_of(template.ema, 0).check()
    folder, weights = cfg.check_folder(config), None
    if options.init_from is not None and not (folder / LAST_SAVED).exists():
        weights = training.read_weights(options.init_from, template.params, partial=options.init_partial)
    if lead:
        print(cfg.first_line(kept))
        parameters = sum(leaf.size for leaf in jax.tree.leaves(template.params))
        where = f"{mesh.size} device(s)" + (f" of {jax.process_count()} processes" if jax.process_count() > 1 else "")
        print(f"{config.name}: {parameters:,} parameters, {len(source):,} images, {where}, in {folder}")
    if options.dry_run:
        if lead:
            print("dry run: configuration, data and shapes are good; nothing was written")
        return

    with (
        cfg.build_pipeline(config, source, cache=options.cache, part=part) as data,
        cfg.claim_folder(config, active=lead),
        training.Checkpoints(
            folder / CHECKPOINTS,
            keep=config.checkpoint.keep,
            best="loss",
            on_error=config.checkpoint.on_error,
            last_saved=folder / LAST_SAVED,
        ) as checkpoints,
    ):
        # --- State: as the last checkpoint has it, or new
        if checkpoints.begun():
            state, position = checkpoints.restore(template)
            data.seek(position)
        else:
            state = training.create_sharded_state(net, optimizer, loss, key, mesh)
            state = state if weights is None else training.with_weights(state, weights)
        start = int(state.step)
        sample_command = cfg.command(HERE / "sample.py", str(folder))
        if start >= config.train.steps:
            if lead:
                print(f"finished: all {start} steps are done. To sample: {sample_command}")
            return
        if start and lead:
            print(f"going on after step {start}")

        # --- Training: log, sample, save
        with training.MetricsLog(folder, start=start, active=lead) as log:

            def draw(step: int, state: training.TrainState) -> None:
                run = run_of(state.ema, step)
                picture, figures = run.picture(), run.measure()
                if lead:
                    try:
                        save_png(folder / SAMPLES / f"step_{step:08d}.png", picture)
                    except OSError as error:  # a full disk: training is worth more than a picture of it
                        print(f"WARNING: {error.filename}: {error.strerror}", file=sys.stderr, flush=True)
                    log.image(step, "samples", picture)
                    if figures:
                        log.write(step, figures)

            outcome = training.train_loop(
                step_fn,
                state,
                data,
                steps=config.train.steps,
                log=log,
                checkpoints=checkpoints,
                log_every=config.train.log_every,
                save_every=config.checkpoint.every,
                callbacks=[(config.train.sample_every, draw)],
                steps_per_call=config.train.steps_per_call,
                max_skipped=config.train.max_skipped,
                profile=profile,
                resume_command=cfg.command(HERE / "train.py", *arguments),
            )

    # --- Where to look
    if outcome.stopped:
        return
    figures = run_of(outcome.state.ema, outcome.step).measure()
    if lead:
        if figures:
            print("measured   " + "  ".join(f"{name} {value:.3g}" for name, value in figures.items()))
        print(f"samples    {folder / SAMPLES}")
        print(f"metrics    {folder / 'metrics.jsonl'}; curves: tensorboard --logdir {folder}")
        print(f"to sample  {sample_command}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs with the command line's arguments, or with those given (from Python, where no flag of XLA is set)."""
    with cfg.one_line_errors("train.py", DataError, training.CheckpointError, training.DivergedError):
        if arguments is None:
            end_at_signals()
            cfg.set_up(sys.argv[1:])
        train(sys.argv[1:] if arguments is None else arguments)
