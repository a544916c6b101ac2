"""What the runs with a condition beside the label must show, measured.

    python benchmarks/quality_conditions.py runs/mnist_style --data DIR --out results.json  (configs/mnist_style.py)
    python benchmarks/quality_conditions.py runs/mnist_superres --data DIR                  (configs/mnist_superres.py)
    python benchmarks/quality_conditions.py runs/mnist_semantic --data DIR                  (configs/mnist_semantic.py)

DIR holds MNIST's train.parquet and test.parquet, or a folder `mnist` that does. Conditions are those of real test
digits, which training never saw; samples are made as the run's configuration says and rounded to bytes.

- *Style.* Width and slant are measured on the samples as on the data (`jaxdiff.codecs.strokes`). Their correlation with
  those asked for must be at least 0.8, with label and style given and with the style alone; the classifier of
  `quality_mnist.py` must take at least 85% for the class asked for, with label and style given and with the label
  alone.
- *A picture from a small one.* The samples' means over 2x2 pixels must be the condition's up to a root mean square of
  0.05 on [-1, 1] (6 grey levels), and samples must be nearer to the real digits, in PSNR, than the condition enlarged
  (bilinear) is.
- *A semantic map.* Maps are given without labels, at the scales 1, 0.5 and 0. At 1 the classifier must take at least
  85% for the digit that the map says, and at least 85% of all ink must lie where the map has that digit. At 0 the map
  says nothing: what is then right is so by chance.

Exits with 1 when a bound is missed, with 2 when the folder is not such a run or the data are missing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike, NDArray

from benchmarks.quality_mnist import classify, fit_or_load, on_mnist
from benchmarks.report import Line, finish, say
from jaxdiff import Run
from jaxdiff.codecs import SemanticMap, to_model_range
from jaxdiff.codecs.images import area_mean
from jaxdiff.config import ConfigError, keep_compiled
from jaxdiff.data import open_mnist, open_mnist_maps
from jaxdiff.networks.conditions import enlarge


def of_style(run: Run, arguments: argparse.Namespace) -> list[Line]:
    """Lines of a run with a label and a style."""
    train, test = open_mnist(arguments.data, split="train"), open_mnist(arguments.data, split="test")
    weights = fit_or_load(train, arguments.cache / "mnist_classifier.npz")
    real = test.take(np.arange(arguments.num))
    label, style = real["label"], np.asarray(run.codec.encode(real)["style"])
    lines = []
    cases = {"label and style": {"label": label, "style": style}, "style alone": {"style": style}}
    for case, cond in (cases | {"label alone": {"label": label}}).items():
        say(f"sampling {arguments.num} images: {case}")
        x = run.sample(arguments.seed, arguments.num, cond)["x"]
        if "style" in cond:
            got = np.asarray(run.codec.encode({"x": x})["style"])
            for i, name in enumerate(("width", "slant")):
                lines += [
                    Line(
                        f"{case}: correlation of the {name}", float(np.corrcoef(got[:, i], style[:, i])[0, 1]), low=0.8
                    ),
                    Line("  its error over the data's std", float(rms(got[:, i] - style[:, i]) / style[:, i].std())),
                ]
        if "label" in cond:
            share = float(np.mean(classify(weights, np.asarray(to_model_range(x))) == label))
            lines.append(Line(f"{case}: taken for the class asked", share, low=0.85, percent=True))
    return lines


def of_superres(run: Run, arguments: argparse.Namespace) -> list[Line]:
    """Lines of a run from 8 to 16 pixels."""
    test = open_mnist(arguments.data, split="test", image_size=16, resize=True)
    real = np.asarray(to_model_range(test.take(np.arange(arguments.num))["x"]))
    low = np.asarray(area_mean(jnp.asarray(real), 8))
    say(f"sampling {arguments.num} images")
    x = np.asarray(to_model_range(run.sample(arguments.seed, arguments.num, {"low": low})["x"]))
    plain = psnr(np.asarray(enlarge(jnp.asarray(low), (16, 16))), real)
    return [
        Line(
            "2x2 means: root mean square error on [-1, 1]",
            rms(np.asarray(area_mean(jnp.asarray(x), 8)) - low),
            high=0.05,
        ),
        Line("PSNR of the condition enlarged, dB", plain),
        Line("PSNR of samples, dB", psnr(x, real), low=plain),
    ]


def of_maps(run: Run, arguments: argparse.Namespace) -> list[Line]:
    """Lines of a run with a ControlNet of semantic maps."""
    weights = fit_or_load(open_mnist(arguments.data, split="train"), arguments.cache / "mnist_classifier.npz")
    real = open_mnist_maps(arguments.data, split="test").take(np.arange(arguments.num))
    ids = real["map"]
    wanted = ids.max(axis=(1, 2)).astype(int) - 1
    lines = [Line("real digits: ink where the map has the digit", ink_within(real["x"], ids), percent=True)]
    for scale in (1.0, 0.5, 0.0):
        say(f"sampling {arguments.num} images at the scale {scale:g}")
        x = run.sample(arguments.seed, arguments.num, {"control": ids, "control_scale": scale})["x"]
        share = float(np.mean(classify(weights, np.asarray(to_model_range(x))) == wanted))
        least = 0.85 if scale == 1 else None
        lines += [
            Line(f"scale {scale:g}: taken for the map's digit", share, low=least, percent=True),
            Line("  ink where the map has it", ink_within(x, ids), low=least, percent=True),
        ]
    return lines


def ink_within(x: NDArray[np.uint8], ids: NDArray[np.uint8]) -> float:
    """The share of all ink of pictures ``(N, H, W, 1)`` where their maps ``(N, H, W)`` are above 0.

    >>> ink_within(np.full((1, 1, 4, 1), 9, np.uint8), np.array([[[0, 3, 3, 3]]], np.uint8))
    0.75
    """
    ink = x[..., 0].astype(float)
    return float(ink[ids > 0].sum() / ink.sum())


def rms(error: ArrayLike) -> float:
    return float(np.sqrt(np.mean(np.square(error))))


def psnr(x: ArrayLike, real: ArrayLike) -> float:
    """20 log10(2/rms), of values in [-1, 1].

    >>> round(psnr([0.0, 0.2], [0.0, 0.0]), 2)
    23.01
    """
    return 20 * float(np.log10(2 / rms(np.subtract(x, real))))


def measure(arguments: argparse.Namespace) -> int:
    keep_compiled()
    run = Run.load(arguments.run)
    kinds: dict[frozenset[str], Any] = {
        frozenset({"label", "style"}): of_style,
        frozenset({"low"}): of_superres,
        frozenset({"label", "control", "control_scale"}): of_maps,
    }
    kind = kinds.get(frozenset(run.model.conditions))
    if kind is of_maps and not isinstance(run.codec, SemanticMap):
        kind = None
    if kind is None:
        raise ConfigError(
            f"{str(arguments.run)!r} is conditioned on {sorted(run.model.conditions)}; this benchmark is for runs of "
            "configs/mnist_style.py (label, style), configs/mnist_superres.py (low) and configs/mnist_semantic.py (a "
            "map and its scale)"
        )
    return finish(run, kind(run, arguments), {}, arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    description = "Measures a run with a style, a small picture or a semantic map as its condition."
    return on_mnist("quality_conditions.py", measure, description, arguments)


if __name__ == "__main__":
    sys.exit(main())
