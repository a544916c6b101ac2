"""What the runs from text must show, measured.

    python benchmarks/quality_text.py runs/two_digits_text --out results.json        (configs/two_digits_text.py)
    python benchmarks/quality_text.py runs/emoji_text --data DIR                     (configs/emoji_text.py)

Samples are made as the run's configuration says and rounded to bytes.

- *Two digits.* A classifier of single digits (`judges.PairJudge`: fitted to real digits that are in no training
  picture, at least 97% right on others) reads the two places that the prompt names. Both digits must be right in at
  least 92% of the samples whose pair was trained on, and in at least 85% of those whose pair never was
  (`jaxdiff.data.two_digits`). Without text each digit must be met at each place, in 5% to 16% of the samples, and no
  pair may take more than 4% of them. ``--sweep FILE`` draws both shares against the guidance weight, 1 to 4.
- *Emoji.* For 200 captions of the training set, one sample each is to be nearest to its own caption's picture among
  those 200, in mean squared distance of pixels blurred by a Gaussian of one pixel, in at least 70%. ``--page FILE``
  shows samples of training captions beside the true pictures, and of test captions beside the nearest training picture.
  DIR holds emoji's train.parquet and test.parquet.

Exits with 1 when a bound is missed, with 2 when the folder is not such a run or the data are missing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from benchmarks.judges import PairJudge, crops, stands_above
from benchmarks.report import Line, add_arguments, finish, say
from jaxdiff import Run
from jaxdiff.codecs import grid, save_png
from jaxdiff.config import ConfigError, keep_compiled, one_line_errors
from jaxdiff.data import DataError, open_parquet
from jaxdiff.data.two_digits import PROMPTS, is_held_out
from jaxdiff.train import CheckpointError

DIGITS, CAPTIONS = 500, 200  # samples of each kind, unless --num says another
WEIGHTS = (1.0, 1.5, 2.0, 3.0, 4.0)


def share_right(run: Run, judge: PairJudge, prompts: Sequence[str], seed: int, **options: Any) -> tuple[float, float]:
    """The share of samples with both digits right at the places of their prompts, and their ink elsewhere."""
    x = run.sample(seed, len(prompts), {"text": list(prompts)}, **options)["x"]
    wanted = np.array([PROMPTS[prompt] for prompt in prompts])
    above = wanted[:, 2].astype(bool)
    right = (judge.read(x, above) == wanted[:, :2]).all(axis=1)
    inside = sum(crop.sum(dtype=float) for crop in crops(x, above))
    return float(right.mean()), float(1 - inside / x.sum(dtype=float))


def of_two_digits(run: Run, arguments: argparse.Namespace) -> list[Line]:
    """Lines of a run on pictures of two digits."""
    judge, num = PairJudge(), arguments.num
    lines = [Line("classifier right on digits it has not seen", judge.accuracy, low=0.97, percent=True)]
    kinds: dict[str, tuple[list[str], float]] = {"seen": ([], 0.92), "never seen": ([], 0.85)}
    for prompt, (a, b, _) in PROMPTS.items():
        kinds["never seen" if is_held_out(a, b) else "seen"][0].append(prompt)
    drawn = {
        kind: np.random.default_rng(arguments.seed).permutation(np.resize(known, num)).tolist()
        for kind, (known, _) in kinds.items()
    }
    for kind, (_, low) in kinds.items():
        say(f"sampling {num} prompts with pairs {kind}")
        right, elsewhere = share_right(run, judge, drawn[kind], arguments.seed)
        lines += [
            Line(f"both digits right, pairs {kind}", right, low=low, percent=True),
            Line("  ink elsewhere", elsewhere, percent=True),
        ]

    say(f"sampling {2 * num} images without text")
    x = run.sample(arguments.seed, 2 * num, start=num)["x"]
    above = stands_above(x)
    found = judge.read(x, above)
    counts = np.zeros((10, 10))
    np.add.at(counts, tuple(found.T), 1 / len(x))
    for place, shares in (("first", counts.sum(axis=1)), ("second", counts.sum(axis=0))):
        lines += [
            Line(f"without text: least common {place} digit", float(shares.min()), low=0.05, percent=True),
            Line(f"  most common {place} digit", float(shares.max()), high=0.16, percent=True),
        ]
    trained = np.array([[not is_held_out(a, b) for b in range(10)] for a in range(10)])
    entropy = float(-(counts[counts > 0] * np.log(counts[counts > 0])).sum())
    lines += [
        Line("  most common pair", float(counts.max()), high=0.04, percent=True),
        Line("  trained pairs met, of 80", int((counts[trained] > 0).sum())),
        Line("  even pairs that would have this entropy", float(np.exp(entropy))),
        Line("  pairs that were never trained on", float(counts[~trained].sum()), percent=True),
        Line("  one above the other", float(above.mean()), percent=True),
    ]
    if arguments.sweep is not None:
        table = {
            kind: [share_right(run, judge, prompts, arguments.seed, guide=weight)[0] for weight in WEIGHTS]
            for kind, prompts in drawn.items()
        }
        for kind, shares in table.items():
            print(
                f"pairs {kind}: "
                + "  ".join(f"cfg {w:g}: {100 * s:.1f}%" for w, s in zip(WEIGHTS, shares, strict=True))
            )
        plot(table, arguments.sweep)
    return lines


def plot(table: dict[str, list[float]], file: Path) -> None:
    """Shares against the weight of guidance."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4))
    for kind, shares in table.items():
        axes.plot(WEIGHTS, [100 * share for share in shares], "o-", label=f"pairs {kind} in training")
    axes.set(
        xlabel="guidance weight (1: none)",
        ylabel="both digits right, %",
        ylim=(min(80.0, 100 * min(map(min, table.values())) - 5), 101),
    )
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(file, dpi=110, bbox_inches="tight")
    plt.close(figure)
    print(f"plotted in {file}")


def blurred(pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Pictures ``(N, H, W, C)`` in [-1, 1], blurred by a Gaussian of one pixel, one flat row each."""
    smooth = gaussian_filter(pictures.astype(np.float32) / 127.5 - 1, (0, 1, 1, 0))
    return np.asarray(smooth.reshape(len(pictures), -1))


def nearest(pictures: NDArray[np.uint8], known: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The number of the known picture that is nearest to each, ``(N,)``."""
    near = blurred(known)
    return np.array([np.square(near - row).mean(axis=1).argmin() for row in blurred(pictures)])


def of_emoji(run: Run, arguments: argparse.Namespace) -> list[Line]:
    """Lines of a run on emoji."""
    if arguments.data is None:
        raise ConfigError("--data: the folder of emoji's train.parquet and test.parquet is needed for this run")
    options: dict[str, Any] = {"image_size": run.shape[0], "resize": True, "conditions": ("text",)}
    train, test = (open_parquet(arguments.data, split=split, **options) for split in ("train", "test"))
    rng = np.random.default_rng(arguments.seed)
    num = min(arguments.num, len(train))
    records = train.take(np.sort(rng.choice(len(train), num, replace=False)))
    say(f"sampling {num} captions of the training set")
    x = run.sample(arguments.seed, num, {"text": records["text"].tolist()})["x"]
    own = nearest(x, records["x"]) == np.arange(num)
    lines = [Line(f"nearest to its own caption's picture, of {num}", float(own.mean()), low=0.7, percent=True)]
    if arguments.page is not None:
        some = np.sort(rng.choice(len(test), 24, replace=False))
        unseen = test.take(some)
        made = run.sample(arguments.seed, 24, {"text": unseen["text"].tolist()}, start=num)["x"]
        everything = train.take(np.arange(len(train)))["x"]
        pairs = [
            np.stack([x[:24], records["x"][:24]], axis=1),
            np.stack([made, everything[nearest(made, everything)]], axis=1),
        ]
        save_png(arguments.page, grid(np.concatenate(pairs).reshape(-1, *x.shape[1:]), 12))
        print(f"training captions, sample and truth: {'; '.join(records['text'][:24])}")
        print(f"test captions, sample and nearest training picture: {'; '.join(unseen['text'])}")
    return lines


def measure(arguments: argparse.Namespace) -> int:
    keep_compiled()
    run = Run.load(arguments.run)
    kinds = {(16, 16, 1): (of_two_digits, DIGITS), (32, 32, 3): (of_emoji, CAPTIONS)}
    if set(run.model.conditions) != {"text"} or run.shape not in kinds:
        raise ConfigError(
            f"{str(arguments.run)!r} is conditioned on {sorted(run.model.conditions)}, images {run.shape}; this "
            "benchmark is for runs of configs/two_digits_text.py and configs/emoji_text.py"
        )
    lines, num = kinds[run.shape]
    arguments.num = num if arguments.num is None else arguments.num
    return finish(run, lines(run, arguments), {}, arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="quality_text.py", description="Measures a run that is conditioned on text.")
    add_arguments(parser)
    parser.set_defaults(num=None)
    parser.add_argument("--data", type=Path, help="folder of emoji's train.parquet and test.parquet")
    parser.add_argument("--sweep", type=Path, help="where a plot over guidance weights goes (two digits)")
    parser.add_argument("--page", type=Path, help="where a page of pictures goes (emoji)")
    with one_line_errors("quality_text.py", CheckpointError, DataError):
        return measure(parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
