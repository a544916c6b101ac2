"""What diffusion in latents must show on MNIST beside diffusion in pixels, measured.

    python benchmarks/quality_latents.py runs/mnist_latent --pixels runs/mnist --data DIR --out results.json

The runs are of configs/mnist_latent_unet.py and configs/mnist_unet.py; DIR holds MNIST's train.parquet and
test.parquet, or a folder `mnist` that does. With T the seconds of training that a run's metrics.jsonl adds up to, and E
the seconds to encode the training set once (timed here on a part of it),

    T(latents) + T(its autoencoder) + E   is at most T(pixels), to 5%                                  (1)

and then, at that training time, of samples made as each run's configuration says and rounded to bytes,

- the classifier of `quality_mnist.py` takes as large a share for the class asked for as in pixels, minus 2 points;
- at least three times as many images are drawn a second, the decoder's time included. The two are timed in turns, and
  of each the fastest counts.

Exits with 1 when a bound is missed, with 2 when a folder is not such a run or the data are missing.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.quality_mnist import CLASSES, classify, fit_or_load, on_mnist
from benchmarks.report import Line, agreement_by_class, finish, say
from jaxdiff import Run
from jaxdiff.codecs import LatentImages, Latents, to_model_range
from jaxdiff.config import ConfigError, keep_compiled
from jaxdiff.config.folder import find_run, read_config
from jaxdiff.data import open_mnist

POINTS, FASTER, SAME_TIME = 0.02, 3.0, 1.05
TURNS, ENCODED = 3, 2048


def training_seconds(folder: Path, batch_size: int) -> float:
    """Seconds of training that a run's metrics.jsonl adds up to: the images of each record over its images a second.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     records = {"step": 9, "images_per_second": 3}, {"step": 9, "psnr": 1}, {"step": 19, "images_per_second": 4}
    ...     _ = Path(folder, "metrics.jsonl").write_text(chr(10).join(map(json.dumps, records)))
    ...     training_seconds(Path(folder), batch_size=2)  # 18 images at 3 a second, 20 at 4
    11.0
    """
    file = folder / "metrics.jsonl"
    if not file.is_file():
        raise ConfigError(f"{folder} has no metrics.jsonl, which tells how long it was trained")
    total, before = 0.0, 0
    for record in map(json.loads, file.read_text(encoding="utf-8").splitlines()):
        if record.get("images_per_second"):
            total += (record["step"] - before) * batch_size / record["images_per_second"]
            before = record["step"]
    return total


def seconds_of(folder: Path) -> float:
    """`training_seconds` of a run, by its configuration."""
    return training_seconds(folder, read_config(folder).train.batch_size)


def measure(arguments: argparse.Namespace) -> int:
    keep_compiled()
    latents, pixels = Run.load(arguments.run), Run.load(arguments.pixels)
    recipe, codec = latents.config.codec, latents.codec
    if not isinstance(recipe, Latents) or not isinstance(codec, LatentImages) or recipe.path is None:
        raise ConfigError(
            f"{str(arguments.run)!r} is no run in latents: this benchmark is of configs/mnist_latent_unet.py"
        )
    if (pixels.num_classes, pixels.shape, codec.images.shape) != (CLASSES, (28, 28, 1), (28, 28, 1)):
        raise ConfigError(f"{str(arguments.pixels)!r} and {str(arguments.run)!r} are to be of MNIST, 28x28, by class")

    train, test = open_mnist(arguments.data, split="train"), open_mnist(arguments.data, split="test")
    weights = fit_or_load(train, arguments.cache / "mnist_classifier.npz")
    real = test.take(np.arange(len(test)))
    accuracy = float(np.mean(classify(weights, np.asarray(to_model_range(real["x"]))) == real["label"]))

    # --- (1): how long each was trained
    encode = jax.jit(lambda codec, x: codec.precompute({"x": x})["x"])
    some = train.take(np.arange(ENCODED))["x"]
    jax.block_until_ready(encode(codec, some))  # compiled
    begun = time.perf_counter()
    jax.block_until_ready(encode(codec, some))
    once = (time.perf_counter() - begun) * len(train) / ENCODED
    autoencoder = find_run(recipe.path, arguments.run, known=True)
    parts = {"network": seconds_of(arguments.run), "autoencoder": seconds_of(autoencoder), "encoding": once}
    in_pixels = seconds_of(arguments.pixels)

    # --- Samples, in turns
    labels = {"label": np.arange(arguments.num, dtype=np.int32) % CLASSES}
    drawn: dict[str, Any] = {}
    seconds: dict[str, list[float]] = {"latents": [], "pixels": []}
    for turn in range(TURNS + 1):
        for name, run in (("latents", latents), ("pixels", pixels)):
            say(f"sampling {arguments.num} images in {name}" + (f", turn {turn} of {TURNS}" if turn else ""))
            begun = time.perf_counter()
            drawn[name] = run.sample(arguments.seed, arguments.num, labels)["x"]
            if turn:  # the first compiles
                seconds[name].append(time.perf_counter() - begun)
    rate = {name: arguments.num / min(each) for name, each in seconds.items()}
    shares = {
        name: agreement_by_class(classify(weights, np.asarray(to_model_range(x))), labels["label"])
        for name, x in drawn.items()
    }
    recognised = {name: float(each.mean()) for name, each in shares.items()}
    lines = [
        Line("classifier right on real test digits", accuracy, low=0.985, percent=True),
        Line("in pixels: samples it takes for the class asked", recognised["pixels"], percent=True),
        Line("in latents", recognised["latents"], low=recognised["pixels"] - POINTS, percent=True),
        *(Line(f"  seconds of training, {name}", each) for name, each in parts.items()),
        Line("  seconds of training in pixels", in_pixels),
        Line("training time over that in pixels", sum(parts.values()) / in_pixels, high=SAME_TIME),
        *(Line(f"  images a second in {name}", each) for name, each in rate.items()),
        Line("images a second over those in pixels", rate["latents"] / rate["pixels"], low=FASTER),
    ]
    details = {"recognised_by_class": shares, "seconds_of_sampling": seconds, "seconds_of_training": parts}
    return finish(latents, lines, details, arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    description = "Measures a run in latents beside one in pixels."

    def more(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--pixels", type=Path, required=True, help="folder of the run of configs/mnist_unet.py")

    return on_mnist("quality_latents.py", measure, description, arguments, more)


if __name__ == "__main__":
    sys.exit(main())
