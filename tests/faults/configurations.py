"""Random command lines for `train.py`, and runs whose files name code: a run or one line may come of them, no more."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from jaxdiff.config import ConfigError, load_config_file, read_config, to_json
from tests.faults.processes import ROOT, TINY
from tests.faults.tally import Tally
from tests.fuzz.overrides import fuzz
from tests.fuzz.test_overrides import real_processes


def in_one_process(count: int, seed: int) -> Tally:
    """Random overrides through the parser and the check of shapes."""
    tally = Tally("random options, checked with --dry-run in one process: a good run or one line with exit 2")
    counts = fuzz(count, seed)
    tally.tried, tally.kept = counts["tried"], counts["runs"] + counts["refused"]
    tally.kinds.update({"would run": counts["runs"], "refused": counts["refused"]})
    if counts["wrong"]:
        tally.faults.append(f"{counts['wrong']} ended otherwise, as told above")
    return tally


def as_processes(home: Path, count: int, seed: int) -> Tally:
    """The same as real processes, which train a step where they can."""
    tally = Tally("random options to real processes: a run, or one line with exit 2 and no folder")
    home.mkdir(parents=True, exist_ok=True)

    def run(*arguments: Any, check: bool) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, *map(str, arguments)]
        return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=check, timeout=300)

    try:
        for name, number in real_processes(run, home, count, seed).items():
            for _ in range(number):
                tally.add(name, [])
    except AssertionError as error:
        tally.add("wrong", [str(error)])
    return tally


def no_code(home: Path) -> Tally:
    """A run's config.json names code instead of classes: nothing of it is imported or called."""
    tally = Tally("a run's config.json that names code: refused in one line, nothing is imported or called")
    home.mkdir(parents=True, exist_ok=True)
    mark = home / "mark"
    (home / "planted.py").write_text(f"from pathlib import Path\nPath({str(mark)!r}).touch()\n\nclass Evil: ...\n")
    whole = to_json(load_config_file(TINY))
    sys.path.insert(0, str(home))
    try:
        for named in (
            {"type": "os.system", "command": f"touch {mark}"},
            {"type": "subprocess.Popen", "args": ["touch", str(mark)]},
            {"type": "planted.Evil"},
            {"type": "builtins.exec", "source": f"open({str(mark)!r}, 'w')"},
            {"type": "jaxdiff.config.serialize.importlib.import_module", "name": "planted"},
            {"type": "jaxdiff.config.folder.os.system", "command": f"touch {mark}"},
        ):
            for part in ("process", "network", "ema"):
                (home / "config.json").write_text(json.dumps({**whole, part: named}))
                problems = ["it was read"]
                try:
                    read_config(home)
                except ConfigError as error:
                    problems = [] if "\n" not in str(error) else [f"more than a line: {error}"]
                if mark.exists() or "planted" in sys.modules:
                    problems.append("the code ran")
                tally.add(str(named["type"]), [f"{part}: {problem}" for problem in problems])
    finally:
        sys.path.remove(str(home))
    return tally


def all_of(home: Path, *, random: int, processes: int, seed: int) -> list[Tally]:
    """Every count of this module."""
    return [in_one_process(random, seed), as_processes(home / "fuzz", processes, seed), no_code(home / "code")]
