"""What a class-conditional run on MNIST must show, measured.

    python benchmarks/quality_mnist.py runs/mnist --data DIR --out results.json

DIR holds MNIST's train.parquet and test.parquet, or a folder `mnist` that does. A small convolutional network is fitted
to the 60,000 real training digits (under a minute on two CPU cores, once: its weights are kept in ``--cache``) and
must be at least 98.5% right on the 10,000 real test digits. Its verdict on class-conditional samples, made as the run's
configuration says and rounded to bytes, must be the class asked for in at least 85%.

Exits with 1 when a bound is missed, with 2 when the folder is not a run on MNIST or the data are missing.
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array
from numpy.typing import NDArray

from benchmarks.report import Line, add_arguments, agreement_by_class, by_class, finish, say
from jaxdiff import Run
from jaxdiff.codecs import to_model_range
from jaxdiff.config import ConfigError, keep_compiled, one_line_errors
from jaxdiff.data import DataError, Pipeline, Source, batches, fingerprint, open_mnist
from jaxdiff.train import CheckpointError

CLASSES, BATCH, EPOCHS, PEAK = 10, 128, 2, 3e-3
TEST_DIGITS = 10_000


class Classifier(nnx.Module):
    """Two strided convolutions and two dense layers: (B, 28, 28, 1) in [-1, 1] -> logits (B, 10)."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.conv1 = nnx.Conv(1, 32, (5, 5), strides=2, rngs=rngs)  # 14
        self.conv2 = nnx.Conv(32, 64, (3, 3), strides=2, rngs=rngs)  # 7
        self.dense = nnx.Linear(7 * 7 * 64, 128, rngs=rngs)
        self.out = nnx.Linear(128, CLASSES, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        for layer in (self.conv1, self.conv2):
            x = nnx.relu(layer(x))
        return self.out(nnx.relu(self.dense(x.reshape(x.shape[0], -1))))


def new_classifier() -> tuple[Any, Any]:
    """Its structure, and its first weights as a plain nested dict."""
    structure, weights = nnx.split(Classifier(nnx.Rngs(0)), nnx.Param)
    return structure, nnx.to_pure_dict(weights)


def fit(source: Source, steps: int) -> Any:
    """Weights after Adam on a one-cycle learning rate."""
    structure, weights = new_classifier()
    optimizer = optax.adam(optax.cosine_onecycle_schedule(steps, PEAK))

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(weights: Any, moments: Any, image: Array, label: Array) -> tuple[Any, Any, Array]:
        def loss(weights: Any) -> Array:
            logits = nnx.merge(structure, weights)(image)
            return optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()

        value, slope = jax.value_and_grad(loss)(weights)
        updates, moments = optimizer.update(slope, moments)
        return optax.apply_updates(weights, updates), moments, value

    moments = optimizer.init(weights)
    with Pipeline(source, batch_size=BATCH, seed=0) as data:
        for n in range(1, steps + 1):
            batch = next(data)
            weights, moments, value = step(weights, moments, to_model_range(batch["x"]), batch["label"])
            if n % 100 == 0:
                say(f"classifier: step {n}/{steps}, loss {float(value):.4f}")
    return weights


def fit_or_load(source: Source, file: Path, epochs: int = EPOCHS) -> Any:
    """The weights in ``file`` if they are of this network, recipe and data; else new ones, kept there."""
    recipe = f"{fingerprint(source)} {BATCH} {epochs} {PEAK}"
    _, template = new_classifier()
    names = ["/".join(key.key for key in path) for path, _ in jax.tree.leaves_with_path(template)]
    leaves, tree = jax.tree.flatten(template)
    if file.exists():
        with np.load(file, allow_pickle=False) as kept:
            fits = "recipe" in kept and str(kept["recipe"]) == recipe
            if fits and all(n in kept and kept[n].shape == leaf.shape for n, leaf in zip(names, leaves, strict=True)):
                say(f"classifier: read from {file}")
                return jax.tree.unflatten(tree, [jnp.asarray(kept[name]) for name in names])
    weights = fit(source, max(2, epochs * len(source) // BATCH))
    arrays: dict[str, Any] = dict(zip(names, map(np.asarray, jax.tree.leaves(weights)), strict=True))
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    with partial.open("wb") as out:
        np.savez(out, **{"recipe": np.array(recipe)} | arrays)
    partial.replace(file)
    return weights


def classify(weights: Any, images: NDArray[np.float32]) -> NDArray[np.int64]:
    """Classes (N,) of images (N, 28, 28, 1) in [-1, 1]."""
    structure, _ = new_classifier()
    logits = jax.jit(lambda weights, x: nnx.merge(structure, weights)(x))
    return np.concatenate([np.argmax(logits(weights, images[i : i + 500]), axis=1) for i in range(0, len(images), 500)])


def measure(arguments: argparse.Namespace) -> int:
    keep_compiled()
    run = Run.load(arguments.run)
    if "mnist" not in run.config.name + run.config.data.name or (run.num_classes, run.shape) != (CLASSES, (28, 28, 1)):
        raise ConfigError(
            f"{str(arguments.run)!r} was trained on {run.config.data.name!r}, images {run.shape}; "
            "this benchmark is for class-conditional runs on MNIST, 28x28"
        )

    train, test = open_mnist(arguments.data, split="train"), open_mnist(arguments.data, split="test")
    weights = fit_or_load(train, arguments.cache / "mnist_classifier.npz")
    real = next(batches(test, len(test)))
    accuracy = float(np.mean(classify(weights, np.asarray(to_model_range(real["x"]))) == real["label"]))

    say(f"sampling {arguments.num} images by class")
    labels = np.arange(arguments.num, dtype=np.int32) % CLASSES
    samples = np.asarray(to_model_range(run.sample(arguments.seed, arguments.num, {"label": labels})["x"]))
    guesses = classify(weights, samples)
    shares = agreement_by_class(guesses, labels)

    lines = [
        Line("real test digits", len(test), low=TEST_DIGITS, high=TEST_DIGITS),
        Line("classifier right on them", accuracy, low=0.985, percent=True),
        Line("samples it takes for the class asked", float(np.mean(guesses == labels)), low=0.85, percent=True),
        Line("  the same, least of the classes", float(shares.min()), percent=True),
    ]
    print(by_class("classifier", shares))
    return finish(run, lines, {"recognised_by_class": shares}, arguments)


def on_mnist(
    program: str,
    measure: Callable[[argparse.Namespace], int],
    description: str,
    arguments: Sequence[str] | None,
    more: Callable[[argparse.ArgumentParser], Any] = lambda parser: None,
) -> int:
    """A benchmark of a run on MNIST, with its command line, to which ``more`` adds; the status with which it ends."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxdiff"
    parser = argparse.ArgumentParser(prog=program, description=description)
    add_arguments(parser)
    parser.add_argument("--data", type=Path, required=True, help="folder of MNIST's train.parquet and test.parquet")
    parser.add_argument("--cache", type=Path, default=cache, help="folder where the classifier's weights are kept")
    more(parser)
    with one_line_errors(program, CheckpointError, DataError):
        return measure(parser.parse_args(arguments))


def main(arguments: Sequence[str] | None = None) -> int:
    return on_mnist("quality_mnist.py", measure, "Measures a run on MNIST against the project's bounds.", arguments)


if __name__ == "__main__":
    sys.exit(main())
