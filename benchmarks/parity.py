"""How far published networks, read here, are from their originals: random configurations beside diffusers.

    python benchmarks/parity.py --seed 7 --configs 5

Each of the classes that `jaxdiff.pretrained` reads is made by its own library, with a configuration drawn from the
fields in which published checkpoints differ and with random weights; is read here; and is written back. The differences
are the largest ones over the root mean square of the original's. Exits with 1 where a bound is passed. Needs torch,
diffusers and transformers (`pip install 'jaxdiff[convert]'`).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.report import say
from tests.parity.comparison import NAMES, compare
from tests.parity.test_networks import BOUNDS


def main(arguments: Sequence[str] | None = None) -> int:
    """The status: 0 where every bound is met."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seed", type=int, default=0, help="of the first configuration of each class")
    parser.add_argument("--configs", type=int, default=3, help="configurations of each class")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, help="classes")
    options = parser.parse_args(arguments)
    passed = 0
    for name in options.only:
        worst: dict[str, float] = {}
        for seed in range(options.seed, options.seed + options.configs):
            with tempfile.TemporaryDirectory() as folder:
                found = compare(name, seed, Path(folder))
            over = {what: value for what, value in found.items() if value > BOUNDS[what]}
            if over:
                say(f"{name} seed {seed}: {over}")
            passed += bool(over)
            worst = {what: max(value, worst.get(what, 0.0)) for what, value in found.items()}
        figures = ", ".join(f"{what} {value:.1e}" for what, value in worst.items())
        print(f"{name}: {options.configs} configurations, {figures}", flush=True)
    print("every bound is met" if not passed else f"{passed} configurations pass a bound")
    return 1 if passed else 0


if __name__ == "__main__":
    sys.exit(main())
