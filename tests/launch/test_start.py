"""How the programs start: XLA's flags, the cache of compiled programs, and how much is compiled."""

from __future__ import annotations

import collections
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jaxdiff.launch import start
from tests.tiny_run import TINY

CPU_FLAG = next(row.flag for row in start.FLAGS if row.backend == "cpu")


# --- flags


def test_a_flag_is_set_only_for_releases_known_to_take_it() -> None:
    assert start.flags_for("cpu", "0.10.2") == start.flags_for("cpu", "0.12.0.1") == [CPU_FLAG]
    assert start.flags_for("cpu", "0.12.0.dev20260101") == [CPU_FLAG]
    for unknown in ("0.10.1", "0.9", "0.13", "0.13.0.dev1", "1.0", "", "new"):
        assert start.flags_for("cpu", unknown) == start.flags_for("cuda", unknown) == []
    assert all(len(row.why) > 20 and row.since < row.before for row in start.FLAGS)


def test_what_the_user_has_set_stays_and_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.10.2")
    environ = {"JAX_PLATFORMS": "cpu"}
    start.set_up(["--train.steps", "3"], environ)
    assert environ["XLA_FLAGS"] == CPU_FLAG
    start.set_up([], environ)  # as of a process that this one starts
    assert environ["XLA_FLAGS"] == CPU_FLAG
    name = CPU_FLAG.split("=")[0]
    for given, after in (
        ("--xla_dump_to=x", f"--xla_dump_to=x {CPU_FLAG}"),
        (f"{name}=other --b", f"{name}=other --b"),
    ):
        environ = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": given}
        start.set_up([], environ)
        assert environ["XLA_FLAGS"] == after
    for switch in ("--no-xla-flags", "--no-xla_flags", "--no_xla_flags"):
        environ = {"JAX_PLATFORMS": "cpu"}
        start.set_up(["--seed", "1", switch], environ)
        assert "XLA_FLAGS" not in environ


def test_the_backend_is_told_without_jax(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = {"cuda": "cuda", "gpu": "cuda", "cpu": "cpu", "tpu,cpu": "tpu"}
    assert {given: start.likely_backend({"JAX_PLATFORMS": given}) for given in cases} == cases
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == "jax_cuda13_plugin" or None)
    assert start.likely_backend({}) == "cuda"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert start.likely_backend({}) == "cpu"


def test_the_module_does_not_need_jax(run_python: Callable[..., Any], repository: Path) -> None:
    code = "import runpy, sys; runpy.run_path('jaxdiff/launch/start.py'); assert 'jax' not in sys.modules"
    run_python("-c", code)


NOTEBOOK = """
import os
import jaxdiff, jaxdiff.data, jaxdiff.model, jaxdiff.train
from jaxdiff import config
for again in range(2):
    config.set_up()
print(os.environ["XLA_FLAGS"])
os.environ["XLA_FLAGS"] += " --xla_unknown"  # that ends the process, should XLA read it only now
import jax
jax.numpy.zeros(1)
"""


def test_a_notebook_has_them_after_its_imports(run_python: Callable[..., Any]) -> None:
    done = run_python("-c", NOTEBOOK, env={"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}, check=False)
    assert done.stdout.splitlines() == [CPU_FLAG]
    assert done.returncode != 0 and "xla_unknown" in done.stderr


# --- compilations, in real processes

MOST_IN_TRAINING, MOST_IN_SAMPLING = 40, 40  # small programs outside of a jit, each some 10 ms, among them
COUNTED = """
import json, sys
import jax
compiled = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, seconds, **more: event.endswith("backend_compile_duration") and compiled.append(more.get("fun_name"))
)
import {program}
counts = []
for arguments in json.loads(sys.argv[1]):
    compiled.clear()
    {program}.main(arguments)
    counts.append(list(compiled))
print(json.dumps(counts))
"""


def counted(run_python: Callable[..., Any], program: str, *runs: list[str]) -> list[collections.Counter[str]]:
    """What each of some runs of a program, one after another in a new process, compiles: names and how often."""
    done = run_python("-c", COUNTED.format(program=program), json.dumps(runs))
    return [collections.Counter(names) for names in json.loads(done.stdout.splitlines()[-1])]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, run_python: Callable[..., Any]) -> tuple[Path, Any]:
    """A short run with two pictures, and what it compiled."""
    path = tmp_path_factory.mktemp("runs") / "digits"
    run = ["--workdir", str(path), "--train.steps", "4", "--train.sample_every", "2", *TINY]
    return path, counted(run_python, "train", run)[0]


def test_training_compiles_its_step_and_its_sampler_once(trained: tuple[Path, Any]) -> None:
    _, compiled = trained
    assert (compiled["jit(step)"], compiled["jit(draw)"]) == (1, 1), compiled
    assert sum(compiled.values()) <= MOST_IN_TRAINING, compiled


def test_sampling_compiles_once_for_all_weights_and_seeds(
    trained: tuple[Path, Any], run_python: Callable[..., Any]
) -> None:
    path, _ = trained
    options = [str(path), "--num", "4", "--label", "1", "2", "--out", str(path / "s.png")]
    first, again, other = counted(
        run_python,
        "sample",
        [*options, "--guidance", "2"],
        [*options, "--guidance", "3.5", "--seed", "7"],
        [*options, "--guidance", "2", "--sampler", "dpmpp_2m"],
    )
    assert first["jit(draw)"] == 1 and sum(first.values()) <= MOST_IN_SAMPLING, first
    assert again == {}, again
    assert other["jit(draw)"] == 1, other


# --- the first line


@pytest.mark.nightly
def test_the_first_line_tells_what_was_set_up(
    trained: tuple[Path, Any], run_python: Callable[..., Any], tmp_path: Path
) -> None:
    path, _ = trained
    cache, out = tmp_path / "cache", str(tmp_path / "s.png")
    environment = {"JAX_COMPILATION_CACHE_DIR": str(cache), "XLA_FLAGS": ""}
    environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    options = ("--num", "2", "--label", "1", "--out", out)
    line = run_python("sample.py", path, *options, "--no-cache", "--no-xla-flags", env=environment).stdout.splitlines()[
        0
    ]
    assert line.startswith("JAX ") and "compiled programs are not kept" in line and "no XLA flags set" in line
    assert not cache.exists()
    line = run_python("sample.py", path, *options, env=environment).stdout.splitlines()[0]
    assert f"kept in {cache}" in line
    assert f"XLA runs with {CPU_FLAG} (--no-xla-flags: without)" in line
    assert any(cache.iterdir())


def test_called_from_python_no_flag_is_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any) -> None:
    import train

    monkeypatch.delenv("XLA_FLAGS", raising=False)
    train.main(["--dry-run", "--workdir", str(tmp_path / "run"), *TINY])
    assert "XLA_FLAGS" not in os.environ and "no XLA flags set" in capsys.readouterr().out.splitlines()[0]
