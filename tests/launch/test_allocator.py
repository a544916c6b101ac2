"""tcmalloc: when a command starts again with it, and what the process then is. The processes are real."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jaxdiff.launch import allocator
from jaxdiff.launch.allocator import NAMES, STARTED_AGAIN, find, wanted

TCMALLOC = find()
installed = pytest.mark.skipif(TCMALLOC is None, reason="no tcmalloc here (Debian: libtcmalloc-minimal4)")
linux = pytest.mark.skipif(sys.platform != "linux", reason="about Linux")


# --- when


@linux
@pytest.mark.parametrize(
    ("arguments", "environ", "is_wanted"),
    [
        ([], {}, True),
        (["--seed", "1"], {"JAX_PLATFORMS": "cpu", "LD_PRELOAD": "/usr/lib/libfaketime.so.1"}, True),
        (["--no-xla-flags"], {}, False),
        (["--seed", "1", "--no_xla_flags"], {}, False),
        (["--help"], {}, False),
        ([], {"JAX_PLATFORMS": "cuda,cpu"}, False),
        ([], {"JAX_PLATFORMS": "tpu"}, False),
        ([], {"LD_PRELOAD": "/usr/lib/libfaketime.so.1:/opt/libjemalloc.so.2"}, False),
        ([], {"LD_PRELOAD": "libtcmalloc.so.4"}, False),
        ([], {"MALLOC_ARENA_MAX": "2"}, False),
        ([], {"GLIBC_TUNABLES": "glibc.malloc.check=3"}, False),
    ],
)
def test_when_it_is_wanted(
    arguments: list[str], environ: dict[str, str], is_wanted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)  # no plugin of another backend
    monkeypatch.setattr(allocator, "find", lambda: Path("/lib/libtcmalloc.so.4"))
    assert wanted(arguments, environ) == (Path("/lib/libtcmalloc.so.4") if is_wanted else None)


@linux
def test_it_is_found_where_it_fits(tmp_path: Path) -> None:
    """The linker would leave out a library of another machine, with a message in each process."""
    mine = Path("/proc/self/exe").read_bytes()[:64]
    first, second, other = (tmp_path / name for name in ("first", "second", "other"))
    for folder in (first, second, other):
        folder.mkdir()
    (first / NAMES[1]).write_bytes(mine)
    assert find([tmp_path, first, second]) == first / NAMES[1]
    (second / NAMES[0]).write_bytes(mine)
    assert find([first, second]) == second / NAMES[0]  # the one without a profiler
    (other / NAMES[0]).write_bytes(mine[:18] + b"\xff\xff" + mine[20:])
    (other / NAMES[1]).write_text("no library")
    assert find([other]) is None


# --- what happens

PROGRAM = """
import os, sys
print("begun", os.getpid(), flush=True)
from jaxdiff.launch import allocator
{before}
allocator.start_again(sys.argv[1:])
maps = open("/proc/self/maps").read()
print(allocator.used(), "tcmalloc" in maps, os.environ.get("LD_PRELOAD"), "JAXDIFF_STARTED_AGAIN" in os.environ)
print(sys.argv[1:], os.getcwd(), sys.stdin.read())
{after}
"""


def run(tmp_path: Path, *arguments: str, before: str = "", after: str = "", how: str = "file", **env: str) -> list[str]:
    """The lines of a program that starts again; its errors fail the test."""
    file = tmp_path / "my program.py"
    file.write_text(PROGRAM.format(before=before, after=after))
    environ = {name: value for name, value in os.environ.items() if name not in (STARTED_AGAIN, "LD_PRELOAD")}
    environ |= {"PYTHONPATH": str(Path(__file__).parents[2]), "JAX_PLATFORMS": "cpu", **env}
    given = {"file": [file.name], "code": ["-c", file.read_text()], "stdin": ["-"]}[how]
    text = file.read_text() if how == "stdin" else "typed"
    done = subprocess.run(
        [sys.executable, *given, *arguments],
        input=text,
        cwd=tmp_path,
        env=environ,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return done.stdout.splitlines()


@installed
def test_a_command_starts_again_once(tmp_path: Path) -> None:
    """The same process, arguments, folder and input; what it starts has the environment that it would have had."""
    quiet = f"print(os.environ[{allocator.QUIET!r}])"
    first, second, third, fourth, fifth = run(tmp_path, "--seed", "a b", after=quiet)
    assert first == second and first.startswith("begun ")
    assert third == f"{TCMALLOC} True None False"
    assert fourth == f"['--seed', 'a b'] {tmp_path} typed" and int(fifth) > 2**50
    assert run(tmp_path, after=quiet, **{allocator.QUIET: "7"})[-1] == "7"


@installed
def test_what_was_preloaded_stays(tmp_path: Path) -> None:
    other = next(Path("/lib").glob("*-linux-gnu*/libutil.so.1"), None) or next(Path("/lib64").glob("libutil.so.1"))
    lines = run(tmp_path, LD_PRELOAD=str(other))
    assert lines[2] == f"{TCMALLOC} True {other} False"


@installed
@pytest.mark.parametrize(
    "case",
    [
        {"arguments": ["--no-xla-flags"]},
        {"how": "code"},
        {"how": "stdin"},
        {"before": "sys.settrace(lambda *event: None)"},
        {"before": "sys.setprofile(lambda *event: None)"},
        {"before": "import cProfile"},
        {"before": "allocator._is_traced = lambda: True"},
        {"MALLOC_ARENA_MAX": "2"},
        {"JAXDIFF_STARTED_AGAIN": ""},
    ],
    ids=str,
)
def test_it_goes_on_as_it_is(case: dict[str, Any], tmp_path: Path) -> None:
    first, second, third = run(tmp_path, *case.pop("arguments", ()), **case)
    assert first.startswith("begun ") and second == "None False None False"
    assert third.startswith(f"{['--no-xla-flags'] if 'no-xla' in third else []} ")


@installed
def test_a_process_that_cannot_start_again_says_so(tmp_path: Path) -> None:
    before = "sys.executable = '/nowhere/python'; sys.stderr = sys.stdout"
    lines = run(tmp_path, before=before)
    assert lines[1] == "WARNING: no start with tcmalloc, /nowhere/python: No such file or directory"
    assert lines[2] == "None False None False"


@linux
def test_a_debugger_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not allocator._is_traced()
    monkeypatch.setattr(Path, "read_text", lambda *arguments, **options: "Name:\tpython\nTracerPid:\t4711\nUid:\t0\n")
    assert allocator._is_traced()


@pytest.mark.nightly
@installed
def test_training_says_so_in_its_first_line(run_python: Any, tmp_path: Path) -> None:
    dry = ("--dry-run", "--workdir", tmp_path / "run")
    environ = {name: value for name, value in os.environ.items() if name not in (STARTED_AGAIN, "LD_PRELOAD")}
    options: dict[str, Any] = {"cwd": Path(__file__).parents[2], "env": environ, "capture_output": True, "text": True}
    for command, said in (
        (["train.py"], True),
        (["-m", "jaxdiff", "train"], True),
        (["train.py", "--no-xla-flags"], False),
    ):
        done = subprocess.run([sys.executable, *command, *map(str, dry)], timeout=300, **options)
        first = done.stdout.splitlines()[0]
        assert (f"{TCMALLOC} (--no-xla-flags: without)" in first) == said, done.stderr
    assert "tcmalloc" not in run_python("train.py", *dry).stdout  # of the tests: conftest.py
