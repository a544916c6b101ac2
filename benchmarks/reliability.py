"""How often each promise about faults was tried, and how often it was kept, by real `train.py` processes.

    python benchmarks/reliability.py --out reliability.json --page docs/reliability.md

The cases are those of `tests/faults`, in full: there the test suite runs a few of each. `--parts` runs some of them and
keeps the other figures of the file after `--out`; `--kills` says how many times a run is killed. Exits with 1 where a
promise was not kept, after printing what was seen. Takes some 20 minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import fill, say, write
from tests.faults import bad_data, chains, configurations, groups, nans, storage
from tests.faults.tally import Tally

Part = Callable[[Path, argparse.Namespace], list[Tally]]
PARTS: dict[str, Part] = {
    "kills": lambda home, options: [chains.kills(home, options.kills, seed=options.seed)],
    "signals": lambda home, options: [chains.signals(home, seed=options.seed)],
    "storage": lambda home, options: storage.all_of(home),
    "disk": lambda home, options: [storage.full_disk(home)],
    "nans": lambda home, options: nans.all_of(home),
    "data": lambda home, options: bad_data.all_of(home),
    "processes": lambda home, options: groups.all_of(home),
    "configurations": lambda home, options: configurations.all_of(
        home, random=options.configurations, processes=20, seed=options.seed
    ),
}


def table(parts: dict[str, list[dict[str, Any]]]) -> str:
    """The counts, in Markdown.

    >>> row = {"promise": "it holds", "tried": 3, "kept": 2, "kinds": {"flip": 2, "cut": 1}, "notes": ["a note"]}
    >>> print(table({"kills": [row]}))
    | promise | kept of tried | how |
    |---|---|---|
    | it holds | 2 of 3 | flip (2), cut; a note |
    """
    lines = ["| promise | kept of tried | how |", "|---|---|---|"]
    for name in [*PARTS, *(name for name in parts if name not in PARTS)]:
        for row in parts.get(name, []):
            kinds = ", ".join(f"{kind} ({count})" if count > 1 else kind for kind, count in row["kinds"].items())
            lines.append(
                f"| {row['promise']} | {row['kept']} of {row['tried']} | {'; '.join([kinds, *row['notes']])} |"
            )
    return "\n".join(lines)


def measure(options: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """The counts of each part asked for, with those of the other parts as the file then has them."""
    found: dict[str, list[dict[str, Any]]] = {}
    for name in options.parts:
        begun = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="reliability-") as home:
            tallies = PARTS[name](Path(home), options)
        found[name] = [{**vars(tally), "kinds": dict(tally.kinds)} for tally in tallies]
        for tally in tallies:
            say(f"{tally.kept} of {tally.tried}  {tally.promise}")
            for fault in tally.faults:
                say(f"    {fault}")
        say(f"{name}: {time.monotonic() - begun:.0f} s")
    if options.out is not None and options.out.exists():
        found = json.loads(options.out.read_text(encoding="utf-8"))["parts"] | found
    return {name: found[name] for name in PARTS if name in found}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Counts faults tried and faults survived.")
    parser.add_argument("--kills", type=int, default=20, help="times that a run is killed at a random moment")
    parser.add_argument("--configurations", type=int, default=2000, help="random configurations in one process")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="which cases to run")
    parser.add_argument("--out", type=Path, default=None, help="JSON file for the counts")
    parser.add_argument("--page", type=Path, default=None, help="page whose part `reliability` is written anew")
    options = parser.parse_args(arguments)
    if options.kills < 1 or options.configurations < 1:
        parser.error("kills and configurations are to be at least 1")
    parts = measure(options)
    text = table(parts)
    print(text)
    if options.page is not None:
        page = fill(options.page.read_text(encoding="utf-8"), "reliability", text)
        options.page.write_text(page, encoding="utf-8")
    if options.out is not None:
        counts = {"seed": options.seed, "kills": options.kills, "parts": parts}
        write(options.out, counts, ("jax", "flax", "orbax-checkpoint", "grain", "numpy"))
    return 1 if any(row["faults"] for rows in parts.values() for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
