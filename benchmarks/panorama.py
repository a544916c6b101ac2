"""Seams of pictures drawn in windows, measured where each window's denoiser is exact.

    python benchmarks/panorama.py --data DIR --out results.json

DIR holds CIFAR-10's train.parquet, or a folder `cifar10` that does. Windows are 8x8 grey pixels, Gaussian with the mean
and covariance of crops of the photographs at random places, so that the field is stationary and a window's denoiser is
known exactly. Pictures of 32x32 that continue themselves on all sides are drawn in such windows
(`jaxdiff.inverse.tiles`) by DDIM in 40 steps. For each stride and weight it prints

    the gradient where windows begin, over that elsewhere: root mean squares of neighbours' differences, along both axes
    the pictures' variance, and the mean square of their gradient, over the crops'

At half a window's stride or less, with Hann's weight, the first must be from 0.9 to 1.1. Exits with 1 when it is not.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from benchmarks.report import Line, table, write
from jaxdiff import DDIM, Flow, FullGaussianDenoiser, log_snr_times, sample, sample_keys
from jaxdiff.config import one_line_errors
from jaxdiff.data import DataError, open_cifar10
from jaxdiff.inverse import Tiles, hann
from jaxdiff.inverse.tiles import Fused

WINDOW, SIZE, STEPS, CROPS = 8, 32, 40, 20_000


def crops(path: Path, rng: np.random.Generator) -> NDArray[np.float64]:
    """Grey windows ``(N, 8, 8)`` in [-1, 1] at random places of photographs."""
    source = open_cifar10(path, conditions=())
    chosen = np.sort(rng.choice(len(source), CROPS, replace=False))
    grey = source.take(chosen)["x"].mean(axis=3) / 127.5 - 1
    top, left = rng.integers(0, grey.shape[1] - WINDOW + 1, (2, CROPS))
    rows, columns = (at[:, None] + np.arange(WINDOW) for at in (top, left))
    return grey[np.arange(CROPS)[:, None, None], rows[:, :, None], columns[:, None, :]]


def gradients(x: NDArray[Any], *, around: bool) -> list[NDArray[Any]]:
    """Squared differences of neighbours of ``(N, H, W)``, down and across; ``around``: of last and first too."""
    pairs = [(x, np.roll(x, -1, axis)) for axis in (1, 2)]
    squared = [np.square(b - a) for a, b in pairs]
    return squared if around else [squared[0][:, :-1], squared[1][:, :, :-1]]


def measure(arguments: argparse.Namespace) -> int:
    known = crops(arguments.data, np.random.default_rng(0))
    flow = Flow()
    stationary = np.broadcast_to(known.mean(), (WINDOW, WINDOW, 1))
    centred = (known - known.mean()).reshape(CROPS, -1)
    denoise = FullGaussianDenoiser.from_covariance(flow, stationary, centred.T @ centred / CROPS)
    slope = float(np.mean([each.mean() for each in gradients(known, around=False)]))
    keys, ts = sample_keys(jax.random.key(arguments.seed), 0, arguments.num), log_snr_times(flow, STEPS)

    @jax.jit
    def draw(tiles: Tiles) -> jax.Array:
        x = flow.prior_sample(keys, (SIZE, SIZE, 1), ts[0])
        return sample(DDIM(flow), Fused(denoise, tiles), None, x, ts)

    lines, rows = [], []
    for stride in (8, 4, 2):
        for name, weight in (("even", None), ("Hann", hann((WINDOW, WINDOW)))):
            x = np.asarray(draw(Tiles((WINDOW, WINDOW), (stride, stride), "both", weight=weight)))[..., 0]
            seams = (np.arange(SIZE) + 1) % stride == 0
            down, across = gradients(x, around=True)
            at = np.concatenate([down[:, seams].ravel(), across[:, :, seams].ravel()]).mean()
            inside = np.concatenate([down[:, ~seams].ravel(), across[:, :, ~seams].ravel()]).mean()
            ratio, bound = float(np.sqrt(at / inside)), stride <= WINDOW // 2 and weight is not None
            variance = float(x.var() / known.var())
            gradient = float(np.mean([each.mean() for each in (down, across)]) / slope)
            low, high = (0.9, 1.1) if bound else (None, None)
            lines.append(Line(f"stride {stride}, {name}: seams over inside", ratio, low=low, high=high))
            rows.append({"stride": stride, "weight": name, "ratio": ratio, "variance": variance, "gradient": gradient})
            lines += [
                Line("  variance over the crops'", variance),
                Line("  gradient squared over the crops'", gradient),
            ]
    print(table(lines))
    failed = [line.name for line in lines if line.passed is False]
    print(f"\n{'FAILED: ' + '; '.join(failed) if failed else 'every bound is met'}")
    if arguments.out is not None:
        write(arguments.out, {"num": arguments.num, "seed": arguments.seed, "passed": not failed, "rows": rows})
    return 1 if failed else 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="panorama.py", description="Measures seams of pictures drawn in windows.")
    parser.add_argument("--data", type=Path, required=True, help="folder of CIFAR-10's train.parquet")
    parser.add_argument("--num", type=int, default=100, help="pictures")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=None, help="file for the figures, JSON")
    with one_line_errors("panorama.py", DataError):
        return measure(parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
