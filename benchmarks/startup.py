"""What a start costs: importing jaxdiff, and each shipped configuration's time to its first training step.

    python benchmarks/startup.py --out results.json --page docs/performance.md

- *Imports*: the time of `import jaxdiff`, of `from jaxdiff import Run` (configurations, checkpoints) and of what
  `train.py` imports, over that of `import jax, flax.nnx, optax`. Each is a new process that times its statement; they
  take turns, and a ratio is the median over the turns. The command fails where `import jaxdiff` is over 1.15.
- *First step*: each file of `configs/`, in a process of its own: imports, tracing and lowering, compilation, and the
  first step with the state made for it; once with an empty cache of compiled programs and once with what that left.
  The batch is noise, of at most `--batch` samples: what a step compiles to does not depend much on it. Networks of over
  60 million parameters are left out; with `--all` they are compiled from shapes and not run.

Time it on an idle machine. `--quick` only shows that it runs: two turns, one configuration; its numbers mean nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MOST = 1.15
HEAVY = 60_000_000  # parameters
BASE = "import jax, flax.nnx, optax"
IMPORTS = {
    BASE: BASE,
    "import jaxdiff": "import jaxdiff",
    "from jaxdiff import Run": "from jaxdiff import Run",
    "train.py": "import train",
}


def import_seconds(statement: str) -> float:
    """Of a statement in a new process, by its own clock."""
    code = f"import time; begin = time.perf_counter(); exec({statement!r}); print(time.perf_counter() - begin)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def imports(turns: int) -> dict[str, list[float]]:
    """Seconds of each import in each turn; the first turn, which fills the file system's cache, is left out."""
    taken: dict[str, list[float]] = {name: [] for name in IMPORTS}
    for turn in range(turns + 1):
        names = list(IMPORTS) if turn % 2 == 0 else list(reversed(IMPORTS))
        for name in names:
            seconds = import_seconds(IMPORTS[name])
            if turn:
                taken[name].append(seconds)
    return taken


def first_step(file: Path, most: int, heavy: bool) -> dict[str, Any]:
    """Seconds of each part of one configuration's start, in this process, which must be new."""
    begin = time.perf_counter()
    import jax

    from benchmarks.training_step import prepared
    from jaxdiff.config import keep_compiled, load_config_file, set_up
    from jaxdiff.train.step import Given

    set_up([])  # as train.py
    keep_compiled()
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    config = load_config_file(file)
    size = min(config.train.batch_size, most * config.train.accumulate)
    parts = prepared(dataclasses.replace(config, train=dataclasses.replace(config.train, batch_size=size)))
    large = parts.parameters > HEAVY
    found: dict[str, Any] = {"parameters": parts.parameters, "batch_size": size, "imports": time.perf_counter() - begin}
    if large and not heavy:
        return found
    begin = time.perf_counter()
    lowered = parts.step.lower(parts.template, parts.batch)
    found["lowering"] = time.perf_counter() - begin
    begin = time.perf_counter()
    compiled = lowered.compile()
    found["compiling"] = time.perf_counter() - begin
    if not large:
        begin = time.perf_counter()
        state, batch = jax.block_until_ready((parts.make_state(), parts.make_batch()))
        found["state"] = time.perf_counter() - begin
        begin = time.perf_counter()
        state = jax.block_until_ready(compiled(state, batch, Given())[0])
        found["step"] = time.perf_counter() - begin
        begin = time.perf_counter()
        jax.block_until_ready(compiled(state, batch, Given())[0])
        found["second_step"] = time.perf_counter() - begin
    found["total"] = sum(found.get(part, 0.0) for part in ("imports", "lowering", "compiling", "state", "step"))
    return found


def in_new_process(file: Path, options: argparse.Namespace, cache: str) -> dict[str, Any]:
    command = [sys.executable, str(Path(__file__).resolve()), "--one", str(file), "--batch", str(options.batch)]
    command += ["--all"] if options.all else []
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": cache, "PYTHONPATH": paths}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{file.name} failed:\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(options: argparse.Namespace) -> int:
    import numpy as np

    from benchmarks.report import fill, say, write

    say("imports")
    taken = {name: np.array(seconds) for name, seconds in imports(options.turns).items()}
    ratios = {name: seconds / taken[BASE] for name, seconds in taken.items()}
    files = sorted((ROOT / "configs").glob("[!_]*.py"))
    starts: dict[str, dict[str, Any]] = {}
    for file in [file for file in files if file.stem == "digits_unet"] if options.quick else files:
        say(file.name)
        with tempfile.TemporaryDirectory() as cache:
            cold = in_new_process(file, options, cache)
            starts[file.stem] = {"cold": cold, "warm": in_new_process(file, options, cache) if "total" in cold else {}}
    spread = {
        name: dict(zip(("quartile_1", "median", "quartile_3"), np.percentile(ratio, [25, 50, 75]), strict=True))
        for name, ratio in ratios.items()
    }
    text = page({name: float(np.median(s)) for name, s in taken.items()}, spread, starts)
    print(text)
    passed = options.quick or spread["import jaxdiff"]["median"] <= MOST
    print("the bound is met" if passed else f"FAILED: import jaxdiff takes over {MOST} times {BASE}")
    if options.page is not None:
        options.page.write_text(fill(options.page.read_text(encoding="utf-8"), "startup", text), encoding="utf-8")
    if options.out is not None:
        record = {"turns": options.turns, "quick": options.quick, "passed": passed, "ratios": spread}
        write(options.out, {**record, "seconds": taken, "first_step": starts})
    return 0 if passed else 1


def page(seconds: dict[str, float], spread: dict[str, dict[str, float]], starts: dict[str, dict[str, Any]]) -> str:
    """The tables, in Markdown.

    >>> cold = {"parameters": 2_000_000, "batch_size": 16, "lowering": 1.0, "compiling": 2.5, "step": 0.5, "total": 5.0}
    >>> print(page({}, {}, {"small": {"cold": cold, "warm": cold}, "large": {"cold": {"parameters": 9}, "warm": {}}}))
    | import | seconds | over jax, flax.nnx and optax |
    | --- | --- | --- |
    <BLANKLINE>
    | configuration | parameters | lowering | compiling | first step | in all | in all, compiled before |
    | --- | --- | --- | --- | --- | --- | --- |
    | small | 2.0M | 1.0 s | 2.5 s | 0.5 s | 5.0 s | 5.0 s |
    """
    lines = ["| import | seconds | over jax, flax.nnx and optax |", "| --- | --- | --- |"]
    for name, ratio in spread.items():
        quartiles = f"{ratio['quartile_1']:.2f} to {ratio['quartile_3']:.2f}"
        lines.append(f"| `{name}` | {seconds[name]:.2f} | {ratio['median']:.2f} ({quartiles}) |")
    lines += [
        "",
        "| configuration | parameters | lowering | compiling | first step | in all | in all, compiled before |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, start in starts.items():
        cold, warm = start["cold"], start["warm"]
        if "total" not in cold:
            continue
        step = f"{cold['step']:.1f} s" if "step" in cold else "not run"
        lines.append(
            f"| {name} | {cold['parameters'] / 1e6:.1f}M | {cold['lowering']:.1f} s | {cold['compiling']:.1f} s | "
            f"{step} | {cold['total']:.1f} s | {warm['total']:.1f} s |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Measures imports, and the time to each configuration's first step.")
    parser.add_argument("--turns", type=int, default=15, help="timings of each import")
    parser.add_argument("--batch", type=int, default=16, help="most samples a micro-batch")
    parser.add_argument("--all", action="store_true", help="compile the large networks too")
    parser.add_argument("--quick", action="store_true", help="see that it runs; the numbers mean nothing")
    parser.add_argument("--out", type=Path, default=None, help="JSON file for the results")
    parser.add_argument("--page", type=Path, default=None, help="page whose part `startup` is written anew")
    parser.add_argument("--one", type=Path, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.turns < 1 or options.batch < 1:
        parser.error("turns and batch are to be at least 1")
    if options.one is not None:
        print(json.dumps(first_step(options.one, options.batch, options.all)))
        return 0
    if options.quick:
        options.turns = 2
    return measure(options)


if __name__ == "__main__":
    sys.exit(main())
