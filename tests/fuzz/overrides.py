"""Random command lines for train.py, and what becomes of them: `python -m tests.fuzz.overrides 2000`.

A command line is a configuration with tiny networks and one to three options of random values: right ones, ones at
the edge of their range and beyond, and text that is no value at all. `--dry-run` then checks the configuration, the
data and the shapes of the whole training step. Allowed are a run that would train, and one clear line with exit
status 2.
"""

from __future__ import annotations

import collections
import contextlib
import io
import sys
import tempfile
import time
import traceback
import typing
from pathlib import Path
from typing import Any

import hypothesis
from hypothesis import strategies as st

import train
from jaxdiff.config import OBJECTIVES, load_config_file
from jaxdiff.config.command_line import TrainOptions, _options
from jaxdiff.data import POINTS
from jaxdiff.methods import GRIDS, SAMPLERS

ROOT = Path(__file__).parents[2]
BASES: dict[str, tuple[str, ...]] = {
    "study_2d": ("--network.width", "8", "--network.depth", "1", "--train.batch_size", "8"),
    "digits_unet": (
        *("--network.width", "8", "--network.multipliers", "1", "2", "--network.blocks", "1"),
        *("--train.batch_size", "8", "--sample.num", "10"),
    ),
    "digits_dit": ("--network.width", "8", "--network.heads", "1", "--network.depth", "1", "--train.batch_size", "8"),
}
ELSEWHERE = {"workdir", "distributed", "init_from", "cache", "xla_flags", "dry_run"}  # not what is tried here
WHOLE = ["0", "1", "2", "3", "4", "7", "8", "16", "-1", "-2", "1.5", "1_000", "x", "", "None", "nan", "0x10", "²"]
HUGE = ["1000000007", str(2**31), str(2**63), str(10**30)]
REAL = ["0", "1", "0.5", "0.1", "2", "-1", "1e-30", "1e30", "1e400", "-inf", "inf", "nan", "x", "", "None", "1,5"]
TEXT = [
    "x",
    "",
    " ",
    "None",
    "..",
    "../x",
    "a b",
    "é☃",
    "a\nb",
    "--",
    "-x",
    "0",
    "True",
    "/dev/null",
    "/nowhere",
    "$(id)",
]
NAMES = {
    "sample.sampler": [*SAMPLERS, "unipc:order=2", "ddim:eta=2", "restart:inner=heun", "deis:order=x"],
    "sample.grid": list(GRIDS),
    "sample.guide": ["cfg:2", "interval:0.2,5", "every:2", "cfg:x", "cfg", "every:0"],
    "loss.dropout": ["label"],
    "loss.objective": list(OBJECTIVES),
    "loss.prior": ["None"],
    "lora.rank": ["0"],
    "lora.alpha": ["None"],
    "lora.targets": ["attention"],
    "inversion.word": ["None"],
    "inversion.init": ["None"],
    "inversion.vectors": ["1"],
    "data.name": [
        "digits",
        "folder",
        "npz",
        "parquet",
        "mnist",
        "points",
        "points:x",
        *(f"points:{n}" for n in POINTS),
    ],
    "data.split": ["train", "test", "all"],
}


def words(name: str, hint: Any) -> st.SearchStrategy[list[str]]:
    """An option and its value, right or wrong."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    option = st.just(f"--{name}")
    if hint is bool:
        head, _, last = name.rpartition(".")
        return st.sampled_from([[f"--{name}"], [f"--{head}.no_{last}".replace("--.", "--")], [f"--{name}", "True"]])
    # Layers are made one by one: so many would only take long.
    whole = WHOLE if name.startswith("network.") and not name.endswith("width") else WHOLE + HUGE
    pools: list[str] = []
    for each in (hint, *inner):
        pools += whole if each is int else REAL if each is float else TEXT if each is str else []
    if origin is typing.Literal:
        pools += [*map(str, inner), "x"]
    pools += 3 * NAMES.get(name, [])
    value = st.sampled_from(pools or TEXT)
    if origin is tuple or any(typing.get_origin(each) is tuple for each in inner):
        some = st.lists(st.sampled_from(WHOLE + 3 * NAMES.get(name, [])), max_size=4)
        return st.builds(lambda first, rest: [first, *rest], option, some)
    return st.one_of(
        st.builds(lambda first, rest: [first, rest], option, value),
        st.builds(lambda first, rest: [f"{first}={rest}"], option, value),
    )


def _known(base: str) -> list[st.SearchStrategy[list[str]]]:
    config = load_config_file(ROOT / "configs" / f"{base}.py")
    options = _options(TrainOptions, TrainOptions(config=config))
    return [words(name, hint) for name, hint in options if name not in ELSEWHERE]


@st.composite
def command_lines(draw: st.DrawFn) -> list[str]:
    base = draw(st.sampled_from([*["study_2d"] * 6, "digits_unet", "digits_dit"]))
    known = st.sampled_from(_KNOWN[base]).flatmap(lambda each: each)
    unknown = st.tuples(st.sampled_from(["--seeed", "--network.widht", "--x", "--optimizer", "stray"]), st.just("1"))
    option = st.one_of(*[known] * 7, unknown.map(list))
    given = draw(st.lists(option, min_size=1, max_size=3))
    return [f"configs/{base}.py", *BASES[base], *(word for words in given for word in words)]


_KNOWN = {base: _known(base) for base in BASES}


def outcome(arguments: list[str], folder: Path) -> str:
    """ "runs", "refused", or what went wrong with a command line."""
    out, err = io.StringIO(), io.StringIO()
    code: Any = 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), contextlib.chdir(ROOT):
            train.main([*arguments, "--dry-run", "--workdir", str(folder / "run")])
    except SystemExit as stopped:
        code = stopped.code
    except BaseException as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        ours = [each for each in traceback.extract_tb(error.__traceback__) if str(ROOT) in each.filename]
        where = f"{Path(ours[-1].filename).relative_to(ROOT)}:{ours[-1].lineno}"
        return f"traceback: {type(error).__name__} at {where} ({Path(frame.filename).name}): {str(error)[:200]}"
    lines = err.getvalue().splitlines()
    if list(folder.iterdir()):
        return f"left files behind: {[each.name for each in folder.iterdir()]}"
    if code == 0 and "dry run: configuration, data and shapes are good" in out.getvalue():
        return "runs"
    if code == 2 and len(lines) == 1 and lines[0].startswith("jaxdiff train: error: ") and len(lines[0]) > 30:
        return "refused"
    return f"exit {code} with {len(lines)} lines: {lines[-3:]}"


def fuzz(count: int, seed: int = 0) -> collections.Counter[str]:
    """Tries random command lines; outcomes by number. What went wrong is told with the shortest command line for it."""
    counts: collections.Counter[str] = collections.Counter()
    worst: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory() as folder:

        @hypothesis.seed(seed)
        @hypothesis.settings(
            max_examples=count,
            deadline=None,
            database=None,
            phases=[hypothesis.Phase.generate],
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        @hypothesis.given(command_lines())
        def attempt(arguments: list[str]) -> None:
            found = outcome(arguments, Path(folder))
            counts["tried"] += 1
            counts[found if found in ("runs", "refused") else "wrong"] += 1
            if found not in ("runs", "refused"):
                given = arguments[1 + len(BASES[Path(arguments[0]).stem]) :]
                if found not in worst or len(given) < len(worst[found][1:]):
                    worst[found] = [arguments[0], *given]

        attempt()
    for found, arguments in worst.items():
        print(f"{found}\n    {arguments}", file=sys.stderr)
    return counts


if __name__ == "__main__":
    begun = time.process_time()
    result = fuzz(int(sys.argv[1]) if len(sys.argv) > 1 else 2000)
    print(dict(result), f"{time.process_time() - begun:.0f} CPU seconds")
    sys.exit(1 if result["wrong"] else 0)
