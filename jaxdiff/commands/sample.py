"""Samples from a trained run.

python sample.py runs/digits                                       a grid of all classes, one row each
python sample.py runs/digits --label 3 5 --num 20 --guidance 2     some classes
python sample.py runs/digits --num 1000 --out samples.npz          arrays: images uint8 (N, H, W, C), labels
python sample.py runs/digits --num 50000 --out samples             a folder of shards: goes on after a kill
python sample.py runs/digits --sampler dpmpp_2m --steps 20         another sampler
python sample.py runs/digits --sampler sa_solver --tau 0.5         one with a number of its own
python sample.py runs/digits --feature-cache deepcache:3           faster, at a price: features reused
python sample.py runs/digits --compiled kept                       faster to start from the second time on

Of a run on points, the picture is a scatter plot, and the arrays are points float32 (N, 2). A folder is read by
jaxdiff.load_samples. Several processes (docs/clusters.md) share the shards of a folder, and split each batch otherwise.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from jax.sharding import Mesh
from numpy.typing import NDArray

from jaxdiff import config as cfg
from jaxdiff.config import ConfigError, SampleConfig
from jaxdiff.config.build import SAMPLERS, look_up
from jaxdiff.config.schema import check_ranges
from jaxdiff.evaluate import scatter
from jaxdiff.images import grid, png, to_uint8
from jaxdiff.launch.output import check_output, write_output
from jaxdiff.launch.signals import end_at_signals
from jaxdiff.networks import DeepCache, FirstBlock, TaylorSeer
from jaxdiff.networks.caching import FeatureCache
from jaxdiff.process import Process
from jaxdiff.runs.run import Run, rows_of_labels
from jaxdiff.runs.shards import SHARD_SIZE, Request, claim_samples, read_request, wait_for_shards, write_shards
from jaxdiff.train import CheckpointError, make_mesh

CACHES: dict[str, type[FeatureCache]] = {"deepcache": DeepCache, "taylorseer": TaylorSeer, "firstblock": FirstBlock}
NUMBERS = ("order", "eta", "tau", "tolerance", "churn", "snr", "langevin_steps")
"""Options that some samplers have, named as in a configuration's `sample`."""


@dataclasses.dataclass(frozen=True)
class Options(cfg.ProcessOptions):
    """Sample from a trained run. What is left out is as the run's configuration says."""

    run: tyro.conf.Positional[Path | None] = None
    """Folder of the run, such as runs/digits."""
    num: int | None = None
    """How many images; by default 10 for each class shown."""
    label: tuple[int, ...] = ()
    """Classes to sample, one or several; by default all (10 of them, where there are many)."""
    sampler: str | None = None
    """ddim, dpmpp_2m, unipc, heun, dpmpp_2m_sde, adaptive, ...: docs/samplers.md lists all."""
    steps: int | None = None
    """Times on the sampler's grid."""
    spacing: str | None = None
    """Of these times: uniform, log_snr, karras, quadratic or trailing."""
    order: int | None = None
    """Order of dpm_solver, unipc, deis, lms, ipndm or sa_solver."""
    eta: float | None = None
    """Noise of ddim: 0 none, 1 as much as ddpm."""
    tau: float | None = None
    """Noise of the samplers on the reverse SDE: 0 none, 1 the reverse of the process."""
    tolerance: float | None = None
    """Of adaptive, relative and absolute."""
    churn: float | None = None
    """Share by which a step of edm_stochastic raises the noise first."""
    snr: float | None = None
    """Size of predictor_corrector's Langevin steps."""
    langevin_steps: int | None = None
    """Langevin steps at each time, of predictor_corrector or annealed_langevin."""
    guidance: float | None = None
    """Weight of classifier-free guidance; 1 is the plain conditional model."""
    guidance_interval: tuple[float, float] | None = None
    """The sigma/alpha, from and to, between which there is guidance; by default everywhere."""
    null_every: int | None = None
    """Evaluate guidance's unconditional branch only so often, and reuse its difference between."""
    feature_cache: str | None = None
    """Reuse the network's features: deepcache:EVERY of a U-Net, taylorseer:EVERY or firstblock:THRESHOLD of a
    transformer; more by name, taylorseer:4,order=2,whole."""
    compiled: Path | None = None
    """Folder that keeps the compiled sampler, for a faster start from the second time on."""
    seed: int = 0
    """The same seed gives the same images."""
    out: Path | None = None
    """grid.png, samples.npz, or a folder of many such arrays; by default samples.png in the run's folder."""
    shard_size: int = SHARD_SIZE
    """Images in each file of a folder."""
    batch_size: int | None = None
    """Most images at once."""
    step: int | None = None
    """Checkpoint to sample from; by default the newest."""
    trust: tuple[str, ...] = ()
    """Modules of your own that the run's configuration uses."""


def sample(arguments: Sequence[str]) -> None:
    options = cfg.parse(Options, arguments, program="sample.py", positional=1)
    if options.run is None:
        raise ConfigError("the folder of a run is missing, for instance: sample.py runs/digits")
    out = options.run / "samples.png" if options.out is None else options.out
    if out.suffix not in (".png", ".npz", ""):
        raise ConfigError(f"--out: {str(out)!r} must end in .png (a grid) or .npz (arrays), or be a folder (of shards)")
    if options.shard_size < 1:
        raise ConfigError(f"--shard_size: {options.shard_size} is out of range, it must be at least 1")
    if not out.parent.is_dir() and options.out is not None:
        raise ConfigError(f"--out: there is no folder {str(out.parent)!r}")
    if options.num is not None and options.num < 1:
        raise ConfigError(f"--num: {options.num} is out of range, it must be at least 1")
    if not 0 <= options.seed < 2**32:
        raise ConfigError(f"--seed: {options.seed} is out of range, it must be from 0 to {2**32 - 1}")
    if options.compiled is not None and options.compiled.exists() and not options.compiled.is_dir():
        raise ConfigError(f"--compiled: {str(options.compiled)!r} is a file, it must be a folder")
    if options.compiled is not None and not options.cache:
        raise ConfigError("--compiled keeps a compiled program and --no-cache keeps none: leave one of them out")
    cache = None if options.feature_cache is None else feature_cache(options.feature_cache)
    if options.run.is_dir():
        check_output(out)

    cfg.join(options)
    kept = cfg.keep_compiled(options.cache)
    if out.suffix == "":
        into_folder(options, options.run, out, cache, kept)
        return
    run = load(options, options.run, options.step, mesh=make_mesh())
    cond, columns = rows_of_labels(run.num_classes, options.num, options.label)
    num = len(cond["label"]) if cond else options.num or 64
    lead = jax.process_index() == 0
    if lead:
        print(cfg.first_line(kept))
    drawn = draw(run, options, num, cond, cache)
    if not lead:
        return

    points = len(run.shape) == 1
    if out.suffix == ".png":
        picture = png(scatter(drawn) if points else grid(to_uint8(drawn), columns))
        write_output(out, lambda file: file.write(picture))
    else:
        labels = cond["label"] if cond else np.full(num, -1, np.int32)
        arrays: dict[str, Any] = {"points": drawn} if points else {"images": to_uint8(drawn)}
        write_output(out, lambda file: np.savez_compressed(file, **arrays, labels=labels))
    print(f"{num} {'points' if points else 'images'} from step {run.step} of {options.run}: {out}")


def into_folder(options: Options, path: Path, out: Path, cache: FeatureCache | None, kept: Path | None) -> None:
    """Samples in shards, of which each process draws its own."""
    with cfg.lead_first("samples") as lead:
        there = read_request(out)
        step = options.step if there is None or options.step is not None else there.made_by.get("step")
        run = load(options, path, step)
        every = run.num_classes or 0
        cond, _ = rows_of_labels(run.num_classes, options.num, options.label, most=every)
        num = len(cond["label"]) if cond else options.num or 64
        request = Request(num, run.shape, made_by(run, options), options.shard_size)
        claim_samples(out, request, write=lead)

    def say(text: str) -> None:
        if lead:
            print(text, flush=True)

    say(cfg.first_line(kept))
    size = options.batch_size or run.config.sample.batch_size
    size = -(-size // run.batch_devices) * run.batch_devices  # what does not divide would not be split
    options = dataclasses.replace(options, batch_size=size)

    def samples(first: int, n: int) -> NDArray[np.float32]:
        part = None if cond is None else {name: value[first : first + n] for name, value in cond.items()}
        return draw(run, options, n, part, cache, first)

    share = jax.process_index(), jax.process_count()
    labels = None if cond is None else cond["label"]
    write_shards(out, request, samples, labels, part=share, say=say)
    if lead:
        wait_for_shards(out, request)
    say(f"{num} {'points' if len(run.shape) == 1 else 'images'} from step {run.step} of {path}: {out}")


def made_by(run: Run, options: Options) -> dict[str, Any]:
    """What decides a sample, for a folder's index: beside the weights all options that change the result."""
    learned = ("seed", "process", "parameterization", "network", "loss", "optimizer")
    text = json.dumps({name: cfg.to_json(getattr(run.config, name)) for name in learned}, sort_keys=True)
    config = hashlib.sha256(text.encode()).hexdigest()[:16]
    usual = run.config.sample
    chosen = {
        "steps": options.steps or usual.steps,
        "spacing": options.spacing or usual.grid,
        "guidance": usual.guidance if options.guidance is None else options.guidance,
    }
    chosen |= {name: getattr(usual, name) for name in ("sampler", *NUMBERS, "variance", "clip")}
    chosen |= {name: getattr(options, name) for name in ("guidance_interval", "null_every", "feature_cache", "label")}
    return {"run": run.config.name, "config": config, "step": run.step, "seed": options.seed, **chosen}


def load(options: Options, path: Path, step: int | None, mesh: Mesh | None = None) -> Run:
    """The run, with the sampler that the options ask for."""
    return with_numbers(Run.load(path, step=step, trusted=("jaxdiff", *options.trust), mesh=mesh), options)


def draw(
    run: Run,
    options: Options,
    num: int,
    cond: Mapping[str, NDArray[Any]] | None,
    cache: FeatureCache | None,
    start: int = 0,
) -> NDArray[np.float32]:
    """Samples `start` to `start + num - 1`, as the options say."""
    return run.sample(
        jax.random.key(options.seed),
        num,
        cond,
        steps=options.steps,
        spacing=options.spacing,
        guidance=options.guidance,
        batch_size=options.batch_size,
        start=start,
        cache=cache,
        null_every=options.null_every,
        guidance_interval=options.guidance_interval,
        compiled=options.compiled,
    )


def with_numbers(run: Run, options: Options) -> Run:
    """The run with the sampler and the numbers that the command line gives in its configuration.

    Raises:
      ConfigError: an unknown sampler, a number that it does not have, or one out of its range.
    """
    given = {name: getattr(options, name) for name in NUMBERS if getattr(options, name) is not None}
    name = run.config.sample.sampler if options.sampler is None else options.sampler
    look_up(SAMPLERS, name, "--sampler")
    for other in sorted(given.keys() - numbers_of(name, run.process)):
        having = ", ".join(row for row in SAMPLERS if other in numbers_of(row, run.process))
        raise ConfigError(f"--{other.replace('_', '-')}: {name} has no such number; these have it: {having}")
    config = dataclasses.replace(run.config, sample=dataclasses.replace(run.config.sample, sampler=name, **given))
    if given:
        check_ranges(config)
    return dataclasses.replace(run, config=config)


def numbers_of(sampler: str, process: Process) -> set[str]:
    """The options of a configuration's `sample` that a sampler is made of.

    >>> from jaxdiff import VP
    >>> sorted(numbers_of("sa_solver", VP())), numbers_of("heun", VP())
    (['order', 'tau'], set())
    """
    asked: set[str] = set()

    class Asked(SampleConfig):
        def __getattribute__(self, name: str) -> Any:
            asked.add(name)
            return super().__getattribute__(name)

    SAMPLERS[sampler](process, Asked())
    return asked & {field.name for field in dataclasses.fields(SampleConfig)}


def feature_cache(text: str) -> FeatureCache:
    """A cache by its name and settings, ``NAME:FIRST,NAME=VALUE,SWITCH``.

    Raises:
      ConfigError: a name or a setting that does not exist, or a value out of its range.

    >>> feature_cache("taylorseer:4,order=2,whole")
    TaylorSeer(every=4, order=2, newton=False, whole=True)
    """
    name, _, settings = text.partition(":")
    kind = look_up(CACHES, name, "--feature-cache")
    defaults: dict[str, Any] = {field.name: field.default for field in dataclasses.fields(kind)}
    given: dict[str, Any] = {}
    for setting in settings.split(",") if settings else []:
        key, equals, value = setting.partition("=")
        if not (equals or given or key in defaults):
            key, value = next(iter(defaults)), key  # the first, without its name
        default = defaults.get(key)
        try:
            given[key] = True if default is False and not equals else {int: int, float: float}[type(default)](value)
        except (KeyError, ValueError):
            known = ", ".join(row if default is False else f"{row}={default}" for row, default in defaults.items())
            raise ConfigError(f"--feature-cache: {setting!r} is no setting of {name}, which has {known}") from None
    with cfg.as_config_error("--feature-cache"):
        return kind(**given)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs with the command line's arguments, or with those given (from Python, where no flag of XLA is set)."""
    with cfg.one_line_errors("sample.py", CheckpointError):
        if arguments is None:
            end_at_signals()
            cfg.set_up(sys.argv[1:])
        sample(sys.argv[1:] if arguments is None else arguments)
