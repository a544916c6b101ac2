"""What a run of the default experiment must show, measured.

    python benchmarks/quality_digits.py runs/digits --out results.json

All on the published split (`jaxdiff.data.open_digits`: 1,438 real digits to train on, 359 held out):

- *Judges.* Two unlike classifiers, fitted to the real training digits, and their accuracy on the held-out ones: an RBF
  SVC on plain pixels, its C and gamma by 5-fold cross-validation within the training split, and a random forest.
- *Right class.* The share of class-conditional samples, as many of each class, that each judge takes for the class
  asked for. Samples are made as the run's configuration says and rounded to bytes, as an image file would hold them.
- *No copies.* Euclidean distance of an image to its nearest training image: the median over samples divided by the
  median over held-out digits. Two more lines of the lower tail inform; the least distance of few held-out digits is too
  noisy for a bound.
- *Even coverage.* Each class's share of unconditional samples (null label, no guidance), as the SVC sees it.

Exits with 1 when a bound is missed, with 2 when the folder is not a run on this split.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.svm import SVC

from benchmarks.report import Line, add_arguments, agreement_by_class, by_class, finish, say
from jaxdiff import Run
from jaxdiff.codecs import to_model_range
from jaxdiff.config import ConfigError, keep_compiled, one_line_errors
from jaxdiff.data import batches, open_digits
from jaxdiff.train import CheckpointError

CLASSES = 10
GRID = {"C": [1.0, 10.0, 100.0], "gamma": [0.005, 0.01, 0.02, 0.04, 0.08]}


def pixels(split: str) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """A split of the real digits: (N, 64) in [-1, 1], and labels (N,)."""
    source = open_digits(split=split)
    batch = next(batches(source, len(source)))
    return np.asarray(to_model_range(batch["x"])).reshape(len(source), -1), batch["label"]


def fit_judges(images: NDArray[np.float32], labels: NDArray[np.int32]) -> dict[str, Any]:
    """The two classifiers, fitted; nothing of the held-out digits enters."""
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    svc = GridSearchCV(SVC(), GRID, cv=folds).fit(images, labels)
    forest = RandomForestClassifier(500, random_state=0).fit(images, labels)
    return {"SVC": svc, "forest": forest}


def nearest_distance(images: NDArray[np.float32], training: NDArray[np.float32]) -> NDArray[np.float64]:
    """Euclidean distance of each row to the nearest row of ``training``.

    >>> nearest_distance(np.array([[0.0, 0.0], [3.0, 4.0]]), np.array([[0.0, 1.0], [3.0, 4.0]])).tolist()
    [1.0, 0.0]
    """
    training = training.astype(np.float64)
    # The difference itself, not |a|^2 + |b|^2 - 2ab: the small distances of copies are the point.
    return np.array([np.sqrt(np.square(training - image).sum(axis=1).min()) for image in images.astype(np.float64)])


def drawn(run: Run, seed: int, num: int, labels: NDArray[np.int32] | None, start: int = 0) -> NDArray[np.float32]:
    """Samples, which are bytes, as flat rows (num, 64) in [-1, 1]."""
    record = run.sample(seed, num, None if labels is None else {"label": labels}, start=start)
    return np.asarray(to_model_range(record["x"])).reshape(num, -1)


def measure(arguments: argparse.Namespace) -> int:
    keep_compiled()
    run = Run.load(arguments.run)
    data = run.config.data
    if (data.name, data.split, run.num_classes, run.shape) != ("digits", "train", CLASSES, (8, 8, 1)):
        raise ConfigError(
            f"{str(arguments.run)!r} was trained on {data.name!r}, split {data.split!r}; "
            "this benchmark is for class-conditional runs on the digits' training split"
        )

    (train_x, train_y), (test_x, test_y) = pixels("train"), pixels("test")
    say(f"fitting the classifiers to {len(train_y)} real digits")
    judges = fit_judges(train_x, train_y)
    say(f"sampling {arguments.num} images by class and {arguments.num} without a class")
    labels = np.arange(arguments.num, dtype=np.int32) % CLASSES
    samples = drawn(run, arguments.seed, arguments.num, labels)
    unconditional = drawn(run, arguments.seed, arguments.num, None, start=arguments.num)  # other noise than above

    lines, shares = [], {}
    for name, judge in judges.items():
        accuracy = float(judge.score(test_x, test_y))
        lines.append(Line(f"{name} right on held-out digits", accuracy, 0.98 if name == "SVC" else None, percent=True))
    for name, judge in judges.items():
        guesses = judge.predict(samples)
        shares[name] = agreement_by_class(guesses, labels)
        lines.append(
            Line(f"samples {name} takes for the class asked", float(np.mean(guesses == labels)), 0.95, None, True)
        )

    near, real = nearest_distance(samples, train_x), nearest_distance(test_x, train_x)
    low, low_real = np.percentile(near, 5), np.percentile(real, 5)
    lines += [
        Line("distance to training set, sample / held-out, median", float(np.median(near) / np.median(real)), 0.9),
        Line("  the same, 5th percentiles", float(low / low_real)),
        Line("  samples nearer than any held-out digit", float(np.mean(near < real.min())), percent=True),
    ]
    seen = np.bincount(judges["SVC"].predict(unconditional), minlength=CLASSES) / arguments.num
    lines += [
        Line(f"share of {k} among unconditional samples", float(seen[k]), 0.05, 0.16, True) for k in range(CLASSES)
    ]

    for name, share in shares.items():
        print(by_class(name, share))
    details = {
        "svc": {**judges["SVC"].best_params_, "cross_validated": float(judges["SVC"].best_score_)},
        "recognised_by_class": shares,
        "distance": {
            "samples": {"median": np.median(near), "percentile_5": low, "least": near.min()},
            "held_out": {"median": np.median(real), "percentile_5": low_real, "least": real.min()},
            "samples_below_least_held_out": int(np.sum(near < real.min())),
        },
    }
    return finish(run, lines, details, arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Measures a run on the digits against the project's bounds.")
    add_arguments(parser)
    with one_line_errors("quality_digits.py", CheckpointError):
        return measure(parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
