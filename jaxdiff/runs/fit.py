"""Training from a configuration to a run: what `train.py` and the command `jaxdiff train` call, and notebooks."""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from numpy.typing import ArrayLike, NDArray

from jaxdiff import config as cfg
from jaxdiff import train as training
from jaxdiff.autoencoding.objective import CRITIC
from jaxdiff.codecs import save_png
from jaxdiff.config.build import OWN
from jaxdiff.config.folder import CHECKPOINTS, EXAMPLES, LAST_SAVED, SAMPLES
from jaxdiff.data.buckets import buckets_of
from jaxdiff.data.sources import DataError, Source, spread, take
from jaxdiff.data.sources import texts as stored_texts
from jaxdiff.data.text import TEXT, first_of
from jaxdiff.loss import PRIOR
from jaxdiff.networks.lora import LoRA
from jaxdiff.pretrained.adapters.inversion import ENCODERS, TextualInversion
from jaxdiff.pretrained.origin import found, is_published
from jaxdiff.runs.autoencoder import LATENTS, AutoencoderRun
from jaxdiff.runs.classifier import ClassifierRun
from jaxdiff.runs.latents import write_latents
from jaxdiff.runs.prompts import write_prompts
from jaxdiff.runs.published import load_config
from jaxdiff.runs.run import Run
from jaxdiff.spec import droppable
from jaxdiff.train.ema import rules_by_name
from jaxdiff.train.frozen import joined, partition
from jaxdiff.train.initial import BASE, begun_as, read_frozen
from jaxdiff.train.prior import read_prior

Log = Callable[[int, Mapping[str, float]], None]
"""Gets the step and its figures by name, at every logged step."""


def fit(
    config: cfg.RunConfig | str | Path,
    source: Source | Mapping[str, ArrayLike] | ArrayLike | None = None,
    *,
    log: Log | None = None,
    init_from: str | Path | None = None,
    init_partial: bool = False,
    cache: bool = True,
    profile: training.Window | None = None,
    dry_run: bool = False,
    again: str = "the same call of fit",
) -> Any:
    """Trains a configuration to its last step, or goes on where its folder left off, bit for bit.

    Ctrl-C saves, and gives the run as it is; the same call goes on from there. Checkpoints, metrics and pictures are in
    the run's folder, ``config.folder``.

    Args:
      config: what to train, a `Config`, an `AutoencoderConfig` or a `ClassifierConfig`; or the name of a shipped
        configuration, ``"mnist_unet"``, or the path of one's file, or of a published model, which is trained further.
      source: the data, in the place of ``config.data``: a source, arrays by name (``{"x": ..., "label": ...}``), or one
        array ``(N, ...)``. None: what the configuration names.
      log: gets the step and its figures by name, such as ``lambda step, figures: wandb.log(figures, step=step)``. What
        it raises is told of once, and training goes on.
      init_from: a run whose averaged weights are taken to start with, or a published model; a run that has checkpoints
        goes on from those.
      init_partial: of those weights, take what fits and leave the rest new.
      cache: keep decoded images of small sets, and latents.
      profile: steps to trace.
      dry_run: check configuration, data and shapes, and stop.
      again: how a person goes on after a signal, for the message.

    Returns:
      The `Run` with its averaged weights, of an autoencoder its `AutoencoderRun`, of a classifier its `ClassifierRun`.

    Raises:
      ConfigError: a configuration that cannot be trained.
      DataError: data that are missing or do not fit.
      CheckpointError, DivergedError: see `jaxdiff.train`.

    >>> import tempfile, dataclasses
    >>> import jaxdiff
    >>> from jaxdiff.config import Config, SampleConfig, TrainConfig
    >>> from jaxdiff.networks import MLP
    >>> from jaxdiff.train import Ema
    >>> x = np.random.default_rng(0).normal(size=(512, 2)).astype(np.float32)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     run = jaxdiff.fit(
    ...         Config(
    ...             name="two", workdir=f"{folder}/two", process=jaxdiff.Flow(), parameterization=jaxdiff.Velocity(),
    ...             network=MLP(width=16, depth=1), ema=Ema(0.9),
    ...             train=TrainConfig(steps=3, batch_size=64), sample=SampleConfig(steps=4, num=8),
    ...         ),
    ...         x,
    ...     )  # doctest: +ELLIPSIS
    two: 2,210 parameters, ... steps 0 to 3: ...
    >>> run.step
    3
    """
    lead = jax.process_index() == 0
    if isinstance(config, str | Path):
        init_from = found(config) if init_from is None and is_published(config) else init_from
        config = load_config(config)
    if not isinstance(config, cfg.RunConfig):
        raise cfg.ConfigError(f"fit takes a Config, or the name or file of one, got {type(config).__name__}")
    if log is not None and not callable(log):
        raise cfg.ConfigError(f"log is a function of the step and its figures, got {log!r}")
    cfg.check(config)
    config = cfg.with_word(cfg.with_base_frozen(config))
    with cfg.as_config_error("ema"):
        rules = rules_by_name(config.ema)

    # --- Devices
    with cfg.as_config_error("mesh"):
        mesh = training.make_mesh(**dataclasses.asdict(config.mesh))
        training.check_batch_size(config.train.batch_size, mesh, config.train.accumulate)
        training.check_heads(config.network, mesh)
        part = training.batch_part(mesh)

    # --- Data: the source as it is stored, and the codec that makes of it what the network sees
    if source is None:
        data: Source = cfg.build_source(config, cache=cache)
    else:
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, name=OWN))
        data = cfg.with_conditions(_as_source(source), config)
    cfg.check_captions(config, data)
    config = cfg.resolve(cfg.with_saved(config), data, cfg.finder(config))

    # --- Network, loss, optimizer, and what is given to each step
    net, key = cfg.build_network(config), jax.random.key(config.seed)
    if config.train.freeze and init_from is not None and not any(each.name == BASE for each in config.frozen):
        base = cfg.FrozenWeights(name=BASE, path=str(init_from))
        config = dataclasses.replace(config, frozen=(*config.frozen, base))
    config, given = read_frozen(config, net, mesh)
    if isinstance(config, cfg.Config) and config.loss.prior is not None:
        given = given._replace(frozen={**given.frozen, PRIOR: read_prior(config, given.codec, mesh)})
    with cfg.as_config_error("loss"):
        loss = cfg.build_loss(config)
    with cfg.as_config_error("optimizer"):
        optimizer, schedule = _optimizer(config)
    main = next(iter(rules))
    frozen_part = config.train.freeze
    options: dict[str, Any] = {
        "averages": tuple(rules),
        "trained": (lambda params: partition(params, frozen_part)[0]) if frozen_part else (lambda params: params),
    }
    examples = _examples(config, data, given.codec)
    stored = cfg.with_buckets(config, data, cache=cache)

    make: Any = functools.partial(
        ClassifierRun.of if isinstance(config, cfg.ClassifierConfig) else Run.of, codec=given.codec
    )
    if isinstance(config, cfg.AutoencoderConfig):
        make = AutoencoderRun.of

    def run_of(state: training.TrainState, step: int) -> Any:
        whole = joined(state.ema[main], given.base)
        return make(config, whole, step, mesh, examples=examples, folder=Path(config.folder))

    # --- The step; all shapes are checked before anything is made
    with cfg.as_config_error("network"):
        template = training.state_template(net, optimizer, loss, key, mesh, **options)
        step_fn = training.compile_step(
            net=net,
            loss=loss,
            optimizer=optimizer,
            ema=rules,
            schedule=schedule,
            accumulate=config.train.accumulate,
            spike=config.train.spike,
            max_skipped=config.train.max_skipped,
            template=template,
        )
        codec = given.codec
        given = given._replace(codec=cfg.codec_of_buckets(codec, stored))
        for bucket in buckets_of(stored):
            sides = "x".join(map(str, bucket.spec["x"].shape[:2]))
            with cfg.as_config_error("network" if bucket is stored else f"data.buckets: pictures of {sides}"):
                jax.eval_shape(step_fn, template, cfg.batch_shapes(config, bucket), given)
    run_of(template, 0).check()
    folder, weights, parts = cfg.check_folder(config), None, begun_as(config)
    if init_from is None and parts:
        init_from = next((each.path for each in config.frozen if each.name == BASE), None)
    begins = not (folder / LAST_SAVED).exists()
    if isinstance(net, TextualInversion):
        weights = cfg.first_vectors(config, net, given.base[ENCODERS], template.params) if begins else None
    elif init_from is not None and not isinstance(net, LoRA) and begins:
        options_of: dict[str, Any] = {"partial": init_partial or bool(frozen_part), "begun_as": parts}
        weights = training.read_weights(init_from, template.params, network=config.network, **options_of)
    if lead:
        parameters = sum(leaf.size for leaf in jax.tree.leaves(template.params))
        where = f"{mesh.size} device(s)" + (f" of {jax.process_count()} processes" if jax.process_count() > 1 else "")
        print(f"{config.name}: {parameters:,} parameters, {len(data):,} records, {where}, in {folder}")
        for line in cfg.buckets_said(stored, config.train.batch_size):
            print(line)
        for line in [*cfg.doubts(config), *cfg.captions_said(config, data)]:
            print(f"WARNING: {line}", file=sys.stderr, flush=True)
    if dry_run:
        if lead:
            print("dry run: configuration, data and shapes are good; nothing was written")
        return run_of(template, 0)

    if cache and config.data.cache_latents:
        stored = training.read_cached(config, stored, codec, mesh)
    text = training.read_text(config, data, codec, mesh) if config.data.cache_text else None
    with (
        cfg.build_pipeline(config, stored, cache=cache, part=part, text=text) as pipeline,
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
        if lead and examples:
            np.savez(folder / EXAMPLES, **examples)  # type: ignore[arg-type]
        if checkpoints.begun():
            state, position = checkpoints.restore(template)
            pipeline.seek(position)
        else:
            state = training.create_sharded_state(net, optimizer, loss, key, mesh, **options)
            state = state if weights is None else training.with_weights(state, weights)
        start = int(state.step)
        if start >= config.train.steps:
            if lead:
                print(f"finished: all {start} steps are done")
            return _finished(run_of(state, start), data, own=source is not None)
        if start and lead:
            print(f"going on after step {start}")

        # --- Training: log, sample, save
        with training.MetricsLog(folder, start=start, active=lead, listener=log) as metrics:

            def draw(step: int, state: training.TrainState) -> None:
                run = run_of(state, step)
                picture, figures = run.picture(), run.measure()
                checkpoints.check()  # drawing takes time, and a folder may be moved meanwhile
                if lead:
                    try:
                        save_png(folder / SAMPLES / f"step_{step:08d}.png", picture)
                        if prompts := getattr(run, "prompts", []):  # which an autoencoder's run has none of
                            write_prompts(folder / SAMPLES, prompts)
                    except OSError as error:  # a full disk: training is worth more than a picture of it
                        print(f"WARNING: {error.filename}: {error.strerror}", file=sys.stderr, flush=True)
                    metrics.image(step, "samples", picture)
                    if figures:
                        metrics.write(step, figures)

            outcome = training.train_loop(
                step_fn,
                state,
                pipeline,
                given,
                steps=config.train.steps,
                log=metrics,
                checkpoints=checkpoints,
                log_every=config.train.log_every,
                save_every=config.checkpoint.every,
                callbacks=[(config.train.sample_every, draw)],
                steps_per_call=config.train.steps_per_call,
                max_skipped=config.train.max_skipped,
                profile=profile,
                resume_command=again,
            )
        run = run_of(outcome.state, outcome.step)
        return run if outcome.stopped else _finished(run, data, own=source is not None)


def _optimizer(config: cfg.RunConfig) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """That of the configuration, and the critic's own beside it where there is one; and the schedule, for the log."""
    steps = config.train.steps
    optimizer, schedule = training.make_optimizer(steps=steps, **dataclasses.asdict(config.optimizer))
    if not isinstance(config, cfg.AutoencoderConfig) or config.critic is None:
        return optimizer, schedule
    critic, _ = training.make_optimizer(steps=steps, **dataclasses.asdict(config.critic_optimizer))

    def whose(params: Any) -> dict[str, str]:
        return {name: CRITIC if name == CRITIC else "others" for name in params}

    return optax.multi_transform({CRITIC: critic, "others": optimizer}, whose), schedule


def _finished(run: Any, source: Source, *, own: bool) -> Any:
    """The run after its last step: an autoencoder's folder then says how well it reconstructs, and its latents' scale.

    Args:
      run: as it is.
      source: the training data.
      own: they are the caller's, so that there is no test split.
    """
    if not isinstance(run, AutoencoderRun) or run.figures().get("step") == run.step:
        return run
    test = None
    if not own:
        try:
            data = dataclasses.replace(run.config.data, split="test")
            test = cfg.build_source(dataclasses.replace(run.config, data=data))
        except (DataError, cfg.ConfigError) as error:
            if jax.process_index() == 0:
                print(f"there is no test split ({error}): {LATENTS} has figures of the training data")
    write_latents(run, source, test)
    return run


def _as_source(given: Any) -> Source:
    from jaxdiff.data import from_arrays

    if hasattr(given, "spec") and hasattr(given, "take"):
        source: Source = given
        return source
    if isinstance(given, tuple) and any(np.ndim(part) for part in given[:1]):
        raise DataError("the data is one array, or arrays by name, {'x': x, 'label': labels}; got a tuple of arrays")
    if not isinstance(given, Mapping):
        return from_arrays(given)
    if "x" not in given:
        raise DataError(f"the data is to be under 'x', got {', '.join(given)}")
    if taken := [name for name in ("low", "high", "num_classes", "classes", "name") if name in given]:
        raise DataError(f"a condition cannot be named {taken[0]!r}, an option of jaxdiff.data.from_arrays: rename it")
    return from_arrays(**given)


def _examples(config: cfg.RunConfig, source: Source, codec: Any) -> dict[str, NDArray[Any]] | None:
    """Conditions of some records, where the network has one that cannot be left out, and that is no label; where it
    takes text, their captions, with their labels; of an autoencoder some images as stored, of a classifier with their
    labels."""
    if not isinstance(config, cfg.Config):
        shown = config.shown if isinstance(config, cfg.AutoencoderConfig | cfg.ClassifierConfig) else 1
        record = take(source, spread(len(source), shown))
        return record if isinstance(config, cfg.ClassifierConfig) else {"x": record["x"]}
    has_text = cfg.has_captions(source)
    needed = [
        name
        for name, each in config.cond.items()
        if (name != "label" or has_text) and not (config.loss.dropout.get(name, 0) > 0 and droppable(each))
    ]
    if not needed and not has_text:
        return None
    chosen = spread(len(source), config.sample.num)
    texts = {TEXT: np.array(first_of(stored_texts(source, chosen)))} if has_text else {}
    if not set(needed) - {TEXT}:
        return texts
    if "label" in config.cond:  # with the others of its record
        needed = ["label", *needed]
    records = take(cfg.tokenised(config, source), chosen)
    encoded = jax.jit(lambda codec, records: codec.encode(records))(codec, records)
    return {name: np.asarray(encoded[name]) for name in needed if name in encoded and name != TEXT} | texts
