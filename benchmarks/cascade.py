"""A cascade on MNIST against one run of as many training operations.

    python benchmarks/cascade.py runs/mnist_cascade.json --against runs/mnist --data DIR --out results.json

The runs are those of configs/mnist_cascade_8.py, mnist_cascade_28.py and mnist_unet.py. What must hold:

    the operations of training all stages are the run's, to a hundredth: counted from the steps' traces (jaxdiff.train)
    samples that the classifier of quality_mnist.py takes for the class asked: the run's share minus 2 points, or more
    seconds until the first stage is drawn: half of what the run takes for its samples, or less

Samples are drawn as the runs and the cascade's file say. Times are the median of calls after the first, with nothing
else on the machine.

Exits with 1 when a bound is missed, with 2 when the runs or the data are missing.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np

import jaxdiff
from benchmarks.quality_mnist import CLASSES, TEST_DIGITS, classify, fit_or_load, on_mnist
from benchmarks.report import Line, say, table, write
from jaxdiff import Run
from jaxdiff.codecs import to_model_range
from jaxdiff.config import Config, ConfigError, build_loss, build_network, keep_compiled
from jaxdiff.data import batches, open_mnist
from jaxdiff.runs import Cascade
from jaxdiff.spec import shapes
from jaxdiff.train import step_flops

FEWER, SHARE_OF_TIME, REPEATS = 0.02, 0.5, 5


def training_flops(config: Config, steps: int) -> float:
    """Floating-point operations of so many training steps: the gradient of the loss, counted from its trace."""
    net, objective = build_network(config), cast(Any, build_loss(config))
    assert config.codec is not None
    n = config.train.batch_size
    x = jax.ShapeDtypeStruct((n, *config.codec.spec["x"].shape), np.float32)
    batch = {"x": x, **shapes(config.cond, n)}

    def loss(params: Any, batch: Any, key: Any) -> Any:
        return objective.terms(net, params, objective.draw(key, batch), key=key).loss.mean()

    params = jax.eval_shape(net.init, jax.random.key(0))
    return steps * step_flops(jax.grad(loss), params, batch, jax.random.key(0))


def seconds(draw: Callable[[], Any]) -> float:
    """The median of `REPEATS` calls after one that compiles."""
    draw()
    taken = []
    for _ in range(REPEATS):
        begun = time.perf_counter()
        draw()
        taken.append(time.perf_counter() - begun)
    return float(np.median(taken))


def measure(arguments: argparse.Namespace) -> int:
    keep_compiled()
    cascade, single = jaxdiff.load(arguments.run), Run.load(arguments.against)
    if not isinstance(cascade, Cascade) or cascade.stages[-1].size != (28, 28, 1) or cascade.num_classes != CLASSES:
        raise ConfigError(
            f"{str(arguments.run)!r} is to be a cascade on MNIST by class, 28x28 (configs/mnist_cascade_8.py)"
        )
    if single.shape != (28, 28, 1) or single.num_classes != CLASSES:
        raise ConfigError(f"{arguments.against} is to be a run on MNIST by class, 28x28 (configs/mnist_unet.py)")
    stages = [training_flops(stage.run.config, stage.run.step) for stage in cascade.stages]
    alone = training_flops(single.config, single.step)

    train, test = open_mnist(arguments.data, split="train"), open_mnist(arguments.data, split="test")
    weights = fit_or_load(train, arguments.cache / "mnist_classifier.npz")
    real = next(batches(test, len(test)))
    accuracy = float(np.mean(classify(weights, np.asarray(to_model_range(real["x"]))) == real["label"]))

    labels = np.arange(arguments.num, dtype=np.int32) % CLASSES
    shares = {}
    for name, model in (("cascade", cascade), ("run", single)):
        say(f"sampling {arguments.num} images of the {name}")
        drawn = model.sample(arguments.seed, arguments.num, {"label": labels})["x"]
        shares[name] = float(np.mean(classify(weights, np.asarray(to_model_range(drawn))) == labels))

    few = {"label": labels[: arguments.timed]}
    first = cascade.stages[0]
    times = {
        "first": seconds(lambda: first.run.sample(0, arguments.timed, few, **first.options)),
        "cascade": seconds(lambda: cascade.sample(0, arguments.timed, few)),
        "run": seconds(lambda: single.sample(0, arguments.timed, few)),
    }
    lines = [
        Line("training operations over the run's", sum(stages) / alone, low=0.99, high=1.01),
        Line("real test digits", len(test), low=TEST_DIGITS, high=TEST_DIGITS),
        Line("classifier right on them", accuracy, low=0.985, percent=True),
        Line("samples of the run it takes for the class asked", shares["run"], percent=True),
        Line("samples of the cascade likewise", shares["cascade"], low=shares["run"] - FEWER, percent=True),
        Line("time to the first pictures over the run's", times["first"] / times["run"], high=SHARE_OF_TIME),
        Line("time to the large pictures over the run's", times["cascade"] / times["run"]),
    ]
    print(f"\n{arguments.run} against {arguments.against}: {arguments.num} samples, seed {arguments.seed}, ", end="")
    print(f"{arguments.timed} timed\n\n{table(lines)}")
    failed = [line.name for line in lines if line.passed is False]
    print(f"\n{'FAILED: ' + '; '.join(failed) if failed else 'every bound is met'}")
    if arguments.out is not None:
        levels = [stage.level for stage in cascade.stages]
        figures = {"flops": {"stages": stages, "run": alone}, "shares": shares, "seconds": times, "levels": levels}
        write(arguments.out, {"num": arguments.num, "seed": arguments.seed, "passed": not failed, **figures})
    return 1 if failed else 0


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--against", type=Path, required=True, help="folder of the run of one stage")
    parser.add_argument("--timed", type=int, default=16, help="samples of a call that is timed")


def main(arguments: Sequence[str] | None = None) -> int:
    return on_mnist("cascade.py", measure, "Measures a cascade on MNIST against a run of one stage.", arguments, add)


if __name__ == "__main__":
    sys.exit(main())
