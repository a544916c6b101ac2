"""Samples from a trained run.

python sample.py runs/digits                                       a grid of all classes, one row each
python sample.py runs/digits --label 3 5 --num 20 --guidance 2     some classes
python sample.py runs/digits --num 1000 --out samples.npz          arrays: images uint8 (N, H, W, C), labels
python sample.py runs/digits --sampler dpmpp_2m --steps 20         another sampler

Of a run on points, the picture is a scatter plot, and the arrays are points float32 (N, 2).
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
import tyro

from jaxdiff import config as cfg
from jaxdiff.config import ConfigError
from jaxdiff.images import grid, save_png, to_uint8
from jaxdiff.run import Run, rows_of_labels
from jaxdiff.study import scatter
from jaxdiff.train import CheckpointError


@dataclasses.dataclass(frozen=True)
class Options(cfg.StartOptions):
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
    guidance: float | None = None
    """Weight of classifier-free guidance; 1 is the plain conditional model."""
    seed: int = 0
    """The same seed gives the same images."""
    out: Path | None = None
    """grid.png or samples.npz; by default samples.png in the run's folder."""
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
    if out.suffix not in (".png", ".npz"):
        raise ConfigError(f"--out: {str(out)!r} must end in .png (a grid) or .npz (arrays)")
    if not out.parent.is_dir() and options.out is not None:
        raise ConfigError(f"--out: there is no folder {str(out.parent)!r}")
    if options.num is not None and options.num < 1:
        raise ConfigError(f"--num: {options.num} is out of range, it must be at least 1")
    if not 0 <= options.seed < 2**32:
        raise ConfigError(f"--seed: {options.seed} is out of range, it must be from 0 to {2**32 - 1}")

    kept = cfg.keep_compiled(options.cache)
    run = Run.load(options.run, step=options.step, trusted=("jaxdiff", *options.trust))
    print(cfg.first_line(kept))
    cond, columns = rows_of_labels(run.num_classes, options.num, options.label)
    num = len(cond["label"]) if cond else options.num or 64
    drawn = run.sample(
        jax.random.key(options.seed),
        num,
        cond,
        sampler=options.sampler,
        steps=options.steps,
        guidance=options.guidance,
        batch_size=options.batch_size,
    )

    points = len(run.shape) == 1
    if points and out.suffix == ".png":
        save_png(out, scatter(drawn))
    elif out.suffix == ".png":
        save_png(out, grid(to_uint8(drawn), columns))
    else:
        labels = cond["label"] if cond else np.full(num, -1, np.int32)
        with out.open("wb") as file:
            np.savez_compressed(file, **({"points": drawn} if points else {"images": to_uint8(drawn)}), labels=labels)
    print(f"{num} {'points' if points else 'images'} from step {run.step} of {options.run}: {out}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs with the command line's arguments, or with those given (from Python, where no flag of XLA is set)."""
    with cfg.one_line_errors("sample.py", CheckpointError):
        if arguments is None:
            cfg.set_xla_flags(sys.argv[1:])
        sample(sys.argv[1:] if arguments is None else arguments)


if __name__ == "__main__":
    main()
