"""Loss against images seen, one curve a run, from the runs' own `metrics.jsonl`.

python benchmarks/loss_curves.py runs/digits runs/mnist --out docs/images/losses.png
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def read(run: Path) -> tuple[str, list[float], list[float]]:
    """The run's name, images seen at each logged step, and the mean losses up to there."""
    config = json.loads((run / "config.json").read_text())
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    size = config["train"]["batch_size"]
    return config["name"], [line["step"] * size for line in lines], [line["loss"] for line in lines]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs")
    parser.add_argument("--out", type=Path, default=Path("losses.png"))
    options = parser.parse_args(arguments)
    missing = [str(run) for run in options.runs if not (run / "metrics.jsonl").is_file()]
    if missing:
        parser.error(f"no metrics.jsonl in {', '.join(missing)}: pass the folders of runs")

    figure, axis = plt.subplots(figsize=(6.4, 3.6), layout="constrained", dpi=110)
    for run in options.runs:
        name, images, losses = read(run)
        axis.plot(images, losses, label=name)
    axis.set(xscale="log", yscale="log", xlabel="images seen", ylabel="loss, each on its own target")
    axis.grid(alpha=0.25, which="both")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    figure.savefig(options.out)
    print(options.out)


if __name__ == "__main__":
    main()
