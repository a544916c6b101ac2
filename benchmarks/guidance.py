"""The frontier of guidance: how often samples are of the class asked for, against how much of the data they cover.

    python -m jaxdiff train configs/digits_unet.py --workdir runs/digits
    python -m jaxdiff train configs/digits_unet.py --workdir runs/digits_worse --network.width 16 --train.steps 500
    python -m benchmarks.guidance runs/digits --worse runs/digits_worse --out runs/guidance_digits

    python -m jaxdiff train configs/mnist_unet.py --workdir runs/mnist --data.path DIR
    python -m jaxdiff train configs/mnist_unet.py --workdir runs/mnist_worse --data.path DIR --network.width 8 \\
        --train.steps 300
    python -m benchmarks.guidance runs/mnist --worse runs/mnist_worse --data DIR --out runs/guidance_mnist

The second command of each makes the worse network of autoguidance: half as wide and trained for a part of the steps.

For each method and weight, as many samples of each class as the data have are drawn by DDIM, from the same noise for
all methods, several times. A judge that was fitted to real digits which no model was trained on says how many are of
the class asked for (accuracy), and in the features of its last layer how much of the data they cover (recall:
`jaxdiff.evaluate.prdc`). Recall depends on the number of samples; it is compared at one number.

Whether a point (r, a) of a method lies above classifier-free guidance's curve c, in straight lines between its weights,

    d = a - c(r),        for r within the recalls of the curve,                                       (1)

is judged by the jackknife over the repetitions, which share their noise: with d_j the value without the j-th of n,

    se^2 = (n - 1)/n sum_j (d_j - mean d_j)^2.                                                        (2)

There are many points, so d counts as above where d/se is beyond Student's quantile for 5% among all of them together
(Bonferroni). Two files are written, ``OUT.md``, the table, and ``OUT.png``, the curves.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from benchmarks.judges import DigitsJudge, Judge, MnistJudge
from benchmarks.report import say
from jaxdiff import Run
from jaxdiff.config import ConfigError, keep_compiled, one_line_errors
from jaxdiff.data import DataError, batches, open_digits, open_mnist
from jaxdiff.evaluate.prdc import prdc
from jaxdiff.train import CheckpointError

Numbers = NDArray[np.float64]
CFG = "CFG"
INTERVAL = "interval:0.2,5"


@dataclasses.dataclass(frozen=True)
class Method:
    """A method of the frontier.

    Args:
      guide: the list of guidance for a weight.
      weights: that are swept, six or more.
    """

    guide: Callable[[float], list[Any]]
    weights: tuple[float, ...]


def methods(worse: Path) -> dict[str, Method]:
    """The methods by name; ``worse`` is the run that autoguidance leads away from."""
    usual = (1.0, 1.5, 2.0, 3.0, 4.5, 7.0)
    return {
        CFG: Method(lambda w: [f"cfg:{w}"], usual),
        "interval": Method(lambda w: [f"cfg:{w}", INTERVAL], (1.5, 2.0, 3.0, 4.5, 7.0, 10.0)),
        "CFG++": Method(lambda w: [f"cfgpp:{w}"], (0.05, 0.1, 0.2, 0.4, 0.6, 1.0)),
        "APG": Method(lambda w: [f"apg:{w}"], (1.5, 2.0, 3.0, 4.5, 7.0, 10.0)),
        "autoguidance": Method(lambda w: [f"autoguidance:{w},run={worse}"], (1.25, 1.5, 2.0, 2.5, 3.0, 4.0)),
        "PAG": Method(lambda w: [f"pag:{w}"], (0.25, 0.5, 1.0, 1.5, 2.0, 3.0)),
    }


@dataclasses.dataclass(frozen=True)
class Curve:
    """What was measured of a method, ``(repetitions, weights)`` each.

    Args:
      weights: of the sweep.
      accuracy: share of samples of the class asked for.
      recall, precision: of the samples.
    """

    weights: tuple[float, ...]
    accuracy: Numbers
    recall: Numbers
    precision: Numbers


def curve(
    run: Run,
    method: Method,
    judge: Judge,
    real: Numbers,
    labels: NDArray[np.int32],
    *,
    repetitions: int,
    weights: int,
    steps: int | None = None,
) -> Curve:
    """Measures one method.

    Args:
      run: that samples.
      method: the method.
      judge: who reads samples.
      real: its features of the data ``(N, D)``.
      labels: the classes asked for ``(N,)``.
      repetitions: sets of samples, each from noise of its own.
      weights: how many of the method's.
      steps: times of the sampler; None: the run's.
    """
    rows = []
    for repetition in range(repetitions):
        row = []
        for weight in method.weights[:weights]:
            options: dict[str, Any] = {"sampler": "ddim", "guide": method.guide(weight), "steps": steps}
            pictures = run.sample(repetition, len(labels), {"label": labels}, **options)["x"]
            near = prdc(real, judge.features(pictures))
            row.append((float(np.mean(judge.read(pictures) == labels)), near.recall, near.precision))
        rows.append(row)
    accuracy, recall, precision = np.array(rows).transpose(2, 0, 1)
    return Curve(method.weights[:weights], accuracy, recall, precision)


def above(reference: Curve, accuracy: Numbers, recall: Numbers) -> tuple[float, float]:
    """Equations (1) and (2): how far a point lies above a curve, and the standard error; NaN where it has no value.

    Args:
      reference: the curve.
      accuracy, recall: of the point, one a repetition, with the curve's noise.

    >>> line = Curve((1.0, 2.0), np.array([[0.5, 0.9]] * 3), np.array([[0.8, 0.4]] * 3), np.ones((3, 2)))
    >>> [round(each, 3) for each in above(line, np.array([0.79, 0.8, 0.81]), np.array([0.6, 0.6, 0.6]))]
    [0.1, 0.006]
    """

    def difference(kept: NDArray[np.intp]) -> float:
        at, height = reference.recall[kept].mean(axis=0), reference.accuracy[kept].mean(axis=0)
        order = np.argsort(at)
        return float(accuracy[kept].mean() - np.interp(recall[kept].mean(), at[order], height[order]))

    everything, n = np.arange(len(accuracy)), len(accuracy)
    ends = reference.recall.mean(axis=0)
    if not ends.min() <= recall.mean() <= ends.max():
        return float("nan"), float("nan")
    left_out = np.array([difference(np.delete(everything, j)) for j in range(n)])
    return difference(everything), float(np.sqrt((n - 1) / n * np.square(left_out - left_out.mean()).sum()))


def standard_error(values: Numbers) -> float:
    """Of the mean of repetitions."""
    return float(values.std(ddof=1) / np.sqrt(len(values)))


def table(curves: dict[str, Curve]) -> tuple[str, str]:
    """The table in Markdown, and the verdict in words."""
    lines = ["| method | weight | accuracy | recall | precision | above CFG's curve | standard errors |"]
    lines.append("|---|---|---|---|---|---|---|")
    found: list[tuple[str, float, float, float]] = []
    for name, measured in curves.items():
        for i, weight in enumerate(measured.weights):
            values = (getattr(measured, kind)[:, i] for kind in ("accuracy", "recall", "precision"))
            cells = [f"{100 * v.mean():.1f} ± {100 * standard_error(v):.1f}" for v in values]
            apart = ["", ""]
            if name != CFG:
                distance, error = above(curves[CFG], measured.accuracy[:, i], measured.recall[:, i])
                if np.isfinite(distance) and error > 0:
                    found.append((name, weight, distance, distance / error))
                    apart = [f"{100 * distance:+.1f}", f"{distance / error:+.1f}"]
            lines.append(f"| {name} | {weight:g} | {' | '.join([*cells, *apart])} |")
    return "\n".join(lines), verdict(found, len(curves[CFG].accuracy))


def verdict(found: list[tuple[str, float, float, float]], repetitions: int) -> str:
    """Which points lie above the curve beyond the error bars.

    Args:
      found: names, weights, distances, and these in standard errors.
      repetitions: of each point.

    >>> verdict([("APG", 3.0, 0.02, 9.0), ("PAG", 1.0, 0.01, 1.0)], 8).partition("together): ")[2]
    'APG at 3 (+2.0 points of accuracy).'
    >>> verdict([("PAG", 1.0, 0.01, 1.0)], 8)
    "No method lies above CFG's curve by more than 2.4 standard errors (5% among 1 point together)."
    """
    if not found:
        return "No point of another method has a recall within those of CFG's curve: nothing can be compared."
    least = float(student.ppf(1 - 0.05 / (2 * len(found)), repetitions - 1))
    among = f"{least:.1f} standard errors (5% among {len(found)} point{'' if len(found) == 1 else 's'} together)"
    beyond = [f"{name} at {weight:g} ({100 * d:+.1f} points of accuracy)" for name, weight, d, z in found if z > least]
    if not beyond:
        return f"No method lies above CFG's curve by more than {among}."
    return f"Above CFG's curve by more than {among}: {', '.join(beyond)}."


def picture(curves: dict[str, Curve], file: Path, title: str) -> None:
    """The curves with bars of one standard error, as PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 5), dpi=150)
    for name, measured in curves.items():
        right, up = (100 * kind.mean(axis=0) for kind in (measured.recall, measured.accuracy))
        across, along = ([100 * standard_error(v) for v in kind.T] for kind in (measured.recall, measured.accuracy))
        width, color = (2, "black") if name == CFG else (1, None)
        axes.errorbar(right, up, along, across, marker="o", markersize=3, label=name, linewidth=width, color=color)
    axes.set(xlabel="recall, %", ylabel="samples of the class asked for, %", title=title)
    axes.legend()
    figure.tight_layout()
    figure.savefig(file)
    plt.close(figure)


def frontier(arguments: argparse.Namespace) -> int:
    """Measures all, writes both files, and says what was found."""
    keep_compiled()
    run = Run.load(arguments.run)
    judge: Judge
    source: Any
    if run.config.data.name == "digits" and run.shape == (8, 8, 1):
        judge, source = DigitsJudge(), open_digits(split="train")
    elif run.shape == (28, 28, 1) and run.num_classes == 10 and arguments.data is not None:
        judge, source = MnistJudge(arguments.data, arguments.cache), open_mnist(arguments.data, split="train")
    else:
        raise ConfigError(
            f"{str(arguments.run)!r} is of {run.config.data.name!r}, shape {run.shape}: this benchmark is for digits "
            "8x8, and with --data DIR for MNIST"
        )
    chosen = np.random.default_rng(0).permutation(len(source))[: arguments.num]
    real = next(batches(source, len(source)))
    labels, features = real["label"][chosen], judge.features(real["x"][chosen])
    say(f"the judge is right on {100 * judge.accuracy:.1f}% of real digits that it has not seen")
    curves = {}
    for name, method in methods(arguments.worse).items():
        options = {"repetitions": arguments.repetitions, "weights": arguments.weights, "steps": arguments.steps}
        curves[name] = measured = curve(run, method, judge, features, labels, **options)
        shown = [" ".join(f"{100 * v:.1f}" for v in kind.mean(axis=0)) for kind in (measured.accuracy, measured.recall)]
        say(f"{name}: accuracy {shown[0]}; recall {shown[1]}")
    rows, words = table(curves)
    about = (
        f"{run.config.name}, step {run.step}, DDIM, {arguments.steps or run.config.sample.steps} steps; "
        f"{len(labels)} samples, {arguments.repetitions} repetitions; the judge is right on "
        f"{100 * judge.accuracy:.1f}% of real digits. In percent, with one standard error."
    )
    text = f"{about}\n\n{rows}\n\n{words}\n"
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.with_suffix(".md").write_text(text, encoding="utf-8")
    picture(curves, arguments.out.with_suffix(".png"), f"Guidance: {run.config.name}")
    print(text)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxdiff"
    parser = argparse.ArgumentParser(prog="guidance.py", description="Accuracy against recall of guided samples.")
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("--worse", type=Path, required=True, help="folder of the worse run, for autoguidance")
    parser.add_argument("--out", type=Path, required=True, help="name of both files, .md and .png")
    parser.add_argument("--data", type=Path, default=None, help="folder of MNIST's parquet files")
    parser.add_argument("--cache", type=Path, default=cache, help="folder where MNIST's judge is kept")
    parser.add_argument("--num", type=int, default=500, help="samples of a set, at least 4")
    parser.add_argument("--repetitions", type=int, default=8, help="sets of samples of each weight, at least 2")
    parser.add_argument("--weights", type=int, default=6, help="how many of each method's")
    parser.add_argument("--steps", type=int, default=None, help="of the sampler; by default the run's")
    with one_line_errors("guidance.py", CheckpointError, DataError):
        parsed = parser.parse_args(arguments)
        for name, least in (("num", 4), ("repetitions", 2), ("weights", 1)):
            if getattr(parsed, name) < least:
                raise ConfigError(f"--{name}: {getattr(parsed, name)} is out of range, it must be at least {least}")
        return frontier(parsed)


if __name__ == "__main__":
    sys.exit(main())
