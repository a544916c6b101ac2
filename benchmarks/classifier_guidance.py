"""What guidance by a classifier does to a model of digits that is told no labels.

    python train.py configs/digits_unet.py
    python train.py configs/digits_classifier.py
    python benchmarks/classifier_guidance.py runs/digits runs/digits_classifier --scales 0 1 2 4

The run is sampled without its labels, which were dropped from a tenth of its training, so that it is an unconditional
model; one without labels does as well (``--network.num_classes None --loss.dropout``).
For each scale as many samples of each class are asked for, as the run samples by its configuration. Two judges,
fitted to real training digits (`benchmarks/quality_digits.py`), say how many are of the class asked for. The samples'
spread is the mean distance of two samples of a class over that of two real training digits of a class.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.quality_digits import CLASSES, fit_judges, pixels
from benchmarks.report import say
from jaxdiff import Run
from jaxdiff.codecs import to_model_range
from jaxdiff.config import ConfigError, keep_compiled, one_line_errors
from jaxdiff.guidance import ClassifierGuidance
from jaxdiff.runs import ClassifierRun
from jaxdiff.train import CheckpointError


def spread(images: NDArray[np.float32], labels: NDArray[np.integer[Any]]) -> float:
    """Mean Euclidean distance of two images of one class, over the classes.

    >>> round(spread(np.array([[0.0, 0.0], [3.0, 4.0], [1.0, 1.0], [1.0, 1.0]]), np.array([0, 0, 1, 1])), 3)
    2.5
    """
    means = []
    for label in np.unique(labels):
        mine = images[labels == label].astype(np.float64)
        apart = np.sqrt(np.square(mine[:, None] - mine[None]).sum(2))
        means.append(apart.sum() / (len(mine) * (len(mine) - 1)))
    return float(np.mean(means))


def measure(arguments: argparse.Namespace) -> int:
    keep_compiled()
    run, classifier = Run.load(arguments.run), ClassifierRun.load(arguments.classifier)
    if run.shape != (8, 8, 1):
        raise ConfigError(f"{arguments.run} is to be a run of digits, of 8x8 pixels, got {run.shape}")
    (train_x, train_y), (test_x, test_y) = pixels("train"), pixels("test")
    say(f"fitting the judges to {len(train_y)} real digits")
    judges = fit_judges(train_x, train_y)
    real = {name: float(judge.score(test_x, test_y)) for name, judge in judges.items()}
    say("on held-out digits: " + ", ".join(f"{name} {share:.1%}" for name, share in real.items()))
    labels = np.arange(arguments.num) % CLASSES
    rows = []
    for scale in arguments.scales:
        guide = ClassifierGuidance(scale, label=labels.astype(np.int32), classifier=classifier.classifier)
        record = run.sample(arguments.seed, arguments.num, guide=guide)
        flat = np.asarray(to_model_range(record["x"])).reshape(arguments.num, -1)
        right = {name: float(np.mean(judge.predict(flat) == labels)) for name, judge in judges.items()}
        rows.append({"scale": scale, **right, "spread": spread(flat, labels) / spread(train_x, train_y)})
        shares = "  ".join(f"{name} {share:6.1%}" for name, share in right.items())
        print(f"scale {scale:g}  {shares}  spread {rows[-1]['spread']:.3f}", flush=True)
    if arguments.out is not None:
        content = {"num": arguments.num, "seed": arguments.seed, "held_out": real, "rows": rows}
        arguments.out.write_text(json.dumps(content, indent=1) + "\n")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Measures classifier guidance on digits.")
    parser.add_argument("run", type=Path, help="a run of digits")
    parser.add_argument("classifier", type=Path, help="a classifier's run")
    parser.add_argument("--scales", type=float, nargs="+", default=[0.0, 1.0, 2.0, 4.0])
    parser.add_argument("--num", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    with one_line_errors("classifier_guidance.py", CheckpointError):
        return measure(parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
