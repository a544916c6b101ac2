"""Samples from a trained run, or from a published model.

    jaxdiff sample runs/digits                                       a grid of all classes, one row each
    jaxdiff sample runs/digits --label 3 5 --num 20 --guide cfg:2    some classes
    jaxdiff sample runs/digits --num 1000 --out samples.npz          arrays by name: x uint8 (N, H, W, C), label
    jaxdiff sample runs/digits --num 50000 --out samples             a folder of shards: goes on after a kill
    jaxdiff sample runs/digits --sampler unipc:order=2 --steps 20    another sampler, with a number of its own
    jaxdiff sample runs/digits --feature-cache deepcache:3           faster, at a price: features reused
    jaxdiff sample runs/digits --compiled kept                       faster to start from the second time on
    jaxdiff sample runs/styles --cond label=3 style=2.1,0.3          conditions by name
    jaxdiff sample runs/emoji --prompt "a red heart" --num 20        text; several prompts have a row each
    jaxdiff sample runs/mnist_semantic --control map.png             what a ControlNet is told, a map or a picture
    jaxdiff sample runs/large --mesh.fsdp 8                          weights split over 8 devices, as in training
    jaxdiff sample stable-diffusion-v1-5 --prompt "a red heart" --negative "blurry" --num 4 --size 512 512
    jaxdiff sample model.safetensors --tokenizer DIR --lora hearts.safetensors:0.8 --prompt "a heart"
    jaxdiff sample stable-diffusion-v1-5 --embeddings learned_embeds.safetensors --prompt "a <cat-toy> on the moon"
    jaxdiff sample runs/digits --image seven.png --strength 0.6      begin as a picture; --mask: keep its black part
    jaxdiff sample runs/mnist --size 28 112 --tiles 7 --label 3      larger than trained on; --tiles 7,wrap=x: seamless
    jaxdiff sample runs/cascade.json --label 3                       a cascade, its small pictures first
    jaxdiff sample runs/digits --inverse pigdm --operator blur:2 --measured y.png --noise 0.05    what was blurred

Samples are saved as their codec does it: images as a grid or arrays, points as a scatter plot or arrays. A folder is
read by jaxdiff.load_samples. Several processes (docs/clusters.md) share the shards of a folder, and split each batch
otherwise.
"""

from __future__ import annotations

import dataclasses
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from jax.sharding import Mesh
from numpy.typing import NDArray

from jaxdiff import config as cfg
from jaxdiff.commands.cascade import load_cascade, writes_stages
from jaxdiff.commands.conditions import Sampled, conditions, guide_of, prompts_of, say_doubts
from jaxdiff.commands.inverse import INVERSE, check_inverse, reconstructed, write_measurement
from jaxdiff.commands.published import CALL, CONTROL, PUBLISHED, given, load_model, pictures
from jaxdiff.commands.tiles import asked_tiles, enlarged
from jaxdiff.config import ConfigError
from jaxdiff.data.text import TEXT
from jaxdiff.launch.output import check_output, write_output
from jaxdiff.launch.signals import end_at_signals
from jaxdiff.methods import parse_cache, parse_grid, parse_guidance, parse_sampler
from jaxdiff.pretrained import LongPrompt, Pretrained
from jaxdiff.pretrained.origin import is_published
from jaxdiff.runs.cascade import Cascade, is_cascade
from jaxdiff.runs.reading import refuse_network
from jaxdiff.runs.run import Run
from jaxdiff.runs.shards import SHARD_SIZE, Request, claim_samples, read_request, wait_for_shards, write_shards
from jaxdiff.train import CheckpointError, make_mesh


@dataclasses.dataclass(frozen=True)
class Options(cfg.ProcessOptions):
    """Sample from a trained run, or from a published model. What is left out is as its configuration says."""

    run: tyro.conf.Positional[Path | None] = None
    """Folder of the run, such as runs/digits, or of a published model, with model_index.json; or its one file of
    safetensors; or the file of a cascade, .json."""
    num: int | None = None
    """How many samples in all; by default 10 for each class or prompt shown."""
    label: tuple[str, ...] = ()
    """Classes to sample, by number or name; by default all (10 of them, where there are many)."""
    cond: tuple[str, ...] = ()
    """Other conditions, NAME=VALUE: numbers with commas, or a .npy file of one row a sample."""
    prompt: tuple[str, ...] = ()
    """Texts to sample, for a run that was trained with captions; each in quotation marks."""
    prompts: Path | None = None
    """File of more of them, one a line."""
    negative: str | None = None
    """Text that guidance leads away from, in the place of no text."""
    image: Path | None = None
    """Picture that samples begin as, with noise on it; or whose part under --mask is drawn anew."""
    mask: Path | None = None
    """Picture beside it: white where samples are drawn anew, black where --image is kept."""
    strength: float | None = None
    """Noise on --image, from 0 (as it is) to 1 (a fresh sample); by default 0.8, with a mask 1."""
    inverse: str | None = None
    """Samples that go with a measurement, by a method and its numbers: ddnm, ddnm_plus, ddrm, pigdm, dps, mcg,
    reconstruction_guidance, repaint, ilvr, diffpir, daps, psld or tds:16."""
    operator: str | None = None
    """What was measured: mask:0.4, box_mask:2,2,4,4, box:4, bicubic:4, blur:3, grey, colourise, sensing:0.25, phase:2
    or jpeg:10; or --mask, white where nothing is known."""
    measured: Path | None = None
    """The measurement, a picture or .npz of its own size; in its place --image is measured here."""
    noise: float | None = None
    """Deviation of the measurement's noise, pictures being from -1 to 1; by default 0."""
    prompt_weights: bool = False
    """Of a published model: take parentheses in prompts as weights, "a (red:1.3) heart"."""
    size: tuple[int, int] | None = None
    """Height and width of the pictures, pixels; of a run with --tiles."""
    tiles: str | None = None
    """Of a run, for a --size beyond its own: the stride of overlapping windows, pixels, such as 7, 7,wrap=x or
    7,together=4."""
    strict: bool = False
    """Of a published model: the steps of diffusers' own scheduler, in the place of sampler and grid."""
    clip_skip: int = 0
    """Of a published model: so many of CLIP's last blocks are left out."""
    lora: tuple[str, ...] = ()
    """Of a published model: files of LoRAs that are merged into it, FILE or FILE:WEIGHT."""
    embeddings: tuple[str, ...] = ()
    """Of a published model: files of textual inversion, new words for prompts, FILE or FILE:WORD."""
    controlnet: Path | None = None
    """Of a published model: folder of a ControlNet beside it."""
    control: Path | None = None
    """The ControlNet's picture, an outline or a depth map; for one that takes maps, a PNG whose pixel values are the
    ids of classes."""
    control_scale: float | None = None
    """How far it counts; by default 1."""
    control_start: float | None = None
    """From when it counts, a share of the way from noise to data; by default 0."""
    control_end: float | None = None
    """Until when it counts; by default 1."""
    guess_mode: bool = False
    """Guidance away from an answer without the picture, whose first residuals count less: for no prompt."""
    tokenizer: Path | None = None
    """Of a published model in one file: folder of CLIP's vocab.json and merges.txt."""
    sampler: str | None = None
    """A method and its numbers, such as unipc:order=2 or ddim:eta=1: docs/samplers.md lists all."""
    steps: int | None = None
    """Times on the sampler's grid."""
    grid: str | None = None
    """Of these times: uniform, log_snr, karras, quadratic, trailing or shifted:3."""
    guide: tuple[str, ...] | None = None
    """Guidance, in order: cfg:2, interval:0.2,5, every:2."""
    steer: str | None = None
    """Particles weighed by a reward (brightness, contrast, smoothness): brightness:40,particles=8; --sampler ddpm."""
    guidance: float | None = None
    """Short for --guide cfg:WEIGHT; 1 is the plain conditional model."""
    feature_cache: str | None = None
    """Reuse the network's features: deepcache:3 of a U-Net, taylorseer:4,order=2 or firstblock:0.1 of a transformer."""
    compiled: Path | None = None
    """Folder that keeps the compiled sampler, for a faster start from the second time on."""
    seed: int = 0
    """The same seed gives the same samples."""
    out: Path | None = None
    """grid.png, samples.npz, or a folder of many such arrays; by default samples.png in the folder of the run, of a
    published model in the working folder."""
    shard_size: int = SHARD_SIZE
    """Samples in each file of a folder."""
    batch_size: int | None = None
    """Most samples at once."""
    step: int | None = None
    """Checkpoint to sample from; by default the newest."""
    mesh: cfg.MeshConfig = dataclasses.field(default_factory=cfg.MeshConfig)
    """As in training; by default every device has whole weights."""
    average: str | None = None
    """Of several averages of the weights, the one of this name; "none": the last step's weights."""
    dtype: str | None = None
    """What the network computes in, such as bfloat16; by default as trained."""
    trust: tuple[str, ...] = ()
    """Modules or files (mine.py) of your own that the run's configuration uses; they are imported."""


def sample(arguments: Sequence[str]) -> None:
    # --- What is asked, checked before anything is loaded
    about = cfg.about("sample", __doc__)
    options = cfg.parse(Options, arguments, program=cfg.program("sample"), default=Options(), positional=1, about=about)
    if options.run is None:
        raise ConfigError(f"the folder of a run is missing, for instance: {cfg.program('sample')} runs/digits")
    path = options.run
    out = default_out(path) if options.out is None else options.out
    check(options, out)
    cfg.join(options)
    kept = cfg.keep_compiled(options.cache)

    # --- Drawing: into a folder of shards, or one file
    if out.suffix == "":
        into_folder(options, path, out, kept)
        return
    run = load(options, path, options.step, mesh_of(options))
    if out.suffix not in run.codec.suffixes:
        allowed = " or ".join(run.codec.suffixes)
        raise ConfigError(f"--out: {str(out)!r} must end in {allowed}, or be a folder (of shards)")
    cond, num, columns = conditions(run, options)
    say_doubts(run, cond)
    lead = jax.process_index() == 0
    if lead:
        print(cfg.first_line(kept))
    on_stage = writes_stages(run, out, columns) if lead and isinstance(run, Cascade) else None
    drawn = draw(run, options, num, cond, on_stage=on_stage)
    if lead:
        write_output(out, lambda file: run.save(file, drawn, columns))
        say_measurement(run, options, out)
        print(f"{said(run, num, path)}: {out}")


def default_out(path: Path) -> Path:
    """Where samples are written: beside a cascade's file under its name, in a run's folder, or here."""
    if is_cascade(path):
        return path.with_suffix(".png")
    return (Path() if is_published(path) else path) / "samples.png"


def check(options: Options, out: Path) -> None:
    """What can be refused without the run.

    Raises:
      ConfigError: an option that is out of range, or that contradicts another.
    """
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
    if options.guide is not None and options.guidance is not None:
        raise ConfigError("--guidance 2 is short for --guide cfg:2: give one of them")
    with cfg.as_config_error("--feature-cache"):
        parse_cache(options.feature_cache or "deepcache")
    asked_tiles(options.tiles)
    with cfg.as_config_error("--grid"):
        parse_grid(options.grid or "uniform")
    with cfg.as_config_error("--guide"):
        parse_guidance(options.guide or ())
    check_inverse(options)
    if out.parent.is_dir():
        check_output(out)


def say_measurement(run: Sampled, options: Options, out: Path) -> None:
    """Writes what was measured here, and says where."""
    if options.inverse is not None and options.image is not None and not isinstance(run, Cascade):
        print(f"measured: {write_measurement(run, options, out)}", flush=True)


def said(run: Sampled, num: int, path: Path) -> str:
    """What was drawn, and of what."""
    of = f"step {run.step} of {path}" if isinstance(run, Run) else str(path)
    return f"{num} sample{'' if num == 1 else 's'} from {of}"


def into_folder(options: Options, path: Path, out: Path, kept: Path | None) -> None:
    """Many samples in shards, of which each process draws its own ones, or all draw each together where a process's
    devices do not hold the weights. What is there already is not drawn again."""
    lead = jax.process_index() == 0

    def say(text: str) -> None:
        if lead:
            print(text, flush=True)

    # The checkpoint of an interrupted request, though a training may have written newer ones since.
    request = read_request(out)
    step = options.step if options.step is not None or request is None else request.made_by.get("step")
    run = load(options, path, cfg.as_lead(step), mesh_of(options, apart=True))
    cond, num, _ = conditions(run, options)
    say_doubts(run, cond)
    request = Request(num, run.shape, made_by(run, options), options.shard_size)
    with cfg.lead_first("samples"):
        claim_samples(out, request, write=lead)
    say(cfg.first_line(kept))

    def records(first: int, n: int) -> dict[str, NDArray[Any]]:
        def rows(value: Any) -> Any:  # one a sample, or one for all
            return value[first : first + n] if np.ndim(value) and len(value) == num else value

        return draw(run, options, n, {name: rows(value) for name, value in cond.items()} if cond else None, first)

    part, together = (jax.process_index(), jax.process_count()), _spans_processes(run)
    write_shards(out, request, records, part=part, together=together, say=say)
    if lead:
        wait_for_shards(out, request)
        say_measurement(run, options, out)
    say(f"{said(run, num, path)}: {out}")


def made_by(run: Sampled, options: Options) -> dict[str, Any]:
    """What decides a sample, for a folder's index: beside the weights all options that change the result."""
    usual = run.model.defaults
    chosen = {
        "sampler": options.sampler or usual.sampler,
        "steps": options.steps or usual.steps,
        "grid": options.grid or (usual.grid if isinstance(usual.grid, str) else "its own"),
        "guide": list(guide_of(run, options)),
        "clip": usual.clip,
    }
    chosen |= {name: getattr(options, name) for name in ("feature_cache", "label", "cond", "average", "dtype")}
    begun = {name: getattr(options, name) for name in ("image", "mask", "strength", "tiles", "steer")}
    chosen |= {name: str(value) for name, value in begun.items() if value is not None}
    asked = {"prompt": prompts_of(run, options), "negative": options.negative}
    chosen |= {name: value for name, value in asked.items() if value not in ([], None)}
    if isinstance(run, Run) and (named := run.named_by(chosen["guide"])):
        chosen["named"] = named
    more = given(options, (*PUBLISHED, *INVERSE))
    chosen |= {name: str(value) if isinstance(value, Path) else value for name, value in more.items()}
    return {**run.decided_by(), "seed": options.seed, **chosen}


def mesh_of(options: Options, *, apart: bool = False) -> Mesh:
    """The devices that the options ask for; ``apart``: this process's alone, where they hold the weights.

    Raises:
      ConfigError: sizes that do not fit the devices.
    """
    sizes, own = options.mesh, jax.local_devices()
    parts = sizes.fsdp * sizes.tensor
    apart = apart and sizes.data == -1 and parts > 0 and len(own) % parts == 0
    with cfg.as_config_error("--mesh"):
        return make_mesh(**dataclasses.asdict(sizes), devices=own if apart else None)


def load(options: Options, path: Path, step: int | None, mesh: Mesh) -> Sampled:
    """The run or the published model, with the sampler that the options ask for tried on its process.

    Raises:
      ConfigError: an unknown sampler, a number that it does not have, or one out of its range.
    """
    average = True if options.average is None else False if options.average == "none" else options.average
    trusted = ("jaxdiff", *options.trust)
    run: Sampled
    if is_published(path):
        run = load_model(options, path, mesh)
    elif is_cascade(path):
        run = load_cascade(options, path, average, mesh)
    else:
        taken = [name for name in given(options, PUBLISHED) if name not in (*CONTROL, "size")]
        if path.is_dir() and taken:
            raise ConfigError(f"--{taken[0]} is of published models, and {path} is a run: leave it out")
        refuse_network(path)
        run = Run.load(path, step=step, ema=average, trusted=trusted, mesh=mesh, dtype=options.dtype)
    if options.sampler is not None:
        with cfg.as_config_error("--sampler"):
            for each in [stage.run for stage in run.stages] if isinstance(run, Cascade) else [run]:
                parse_sampler(options.sampler, each.process)
    return run


def _spans_processes(run: Sampled) -> bool:
    sharding = run.model.sharding
    return sharding is not None and sharding.mesh.is_multi_process


def draw(
    run: Sampled, options: Options, num: int, cond: Mapping[str, Any] | None, start: int = 0, *, on_stage: Any = None
) -> dict[str, NDArray[Any]]:
    """Samples `start` to `start + num - 1`, as the options say: a record."""
    if options.inverse is not None:
        assert not isinstance(run, Cascade), "refused where it is loaded"
        return reconstructed(run, options, num, cond, start)
    guide: Any = options.guide if options.guidance is None else options.guidance
    chosen: dict[str, Any] = {"compiled": options.compiled, "strength": options.strength}
    if isinstance(run, Cascade):
        chosen = {"compiled": options.compiled, "on_stage": on_stage}
    elif any(each is not None for each in (options.image, options.mask, options.control)):
        chosen |= pictures(run, options)
    if options.steer is not None:
        chosen["steer"] = options.steer
    if isinstance(run, Pretrained):
        chosen = {**chosen, **given(options, CALL)}
        del chosen["compiled"]
        warnings.simplefilter("ignore", LongPrompt)  # `say_doubts` has told
    elif isinstance(run, Run):
        run, guide = enlarged(run, options, guide, guided=bool(cond))
    record: dict[str, NDArray[Any]] = run.sample(
        jax.random.key(options.seed),
        num,
        cond,
        negative=None if options.negative is None else {TEXT: options.negative},
        sampler=options.sampler,
        steps=options.steps,
        grid=options.grid,
        guide=guide,
        batch_size=options.batch_size,
        start=start,
        cache=options.feature_cache,
        **chosen,
    )
    return record


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs with the command line's arguments, or with those given (from Python, where no flag of XLA is set)."""
    with cfg.one_line_errors(cfg.program("sample"), CheckpointError):
        if arguments is None:
            end_at_signals()
            cfg.set_up(sys.argv[1:])
        sample(sys.argv[1:] if arguments is None else arguments)
