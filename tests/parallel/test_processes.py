"""Real runs of train.py in several processes: joining, one output, signals to one, deaths, other devices and hosts."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import train
from tests.commands.test_cli import one_line
from tests.parallel.processes import PEER_TIMEOUT, Group, free_port

TINY = (
    *("--network.width", "16", "--network.depth", "2", "--network.frequencies", "16", "--train.batch_size", "16"),
    *("--train.log_every", "1", "--optimizer.schedule", "constant", "--train.sample_every", "0"),
    *("--checkpoint.every", "10", "--checkpoint.keep", "2", "--sample.num", "10", "--sample.steps", "3"),
)

Start = Callable[..., Group]


@pytest.fixture
def start() -> Iterator[Start]:
    groups: list[Group] = []

    def run(folder: Path, *options: str, **where: Any) -> Group:
        groups.append(Group("train.py", "configs/digits_dit.py", "--workdir", folder, *TINY, *options, **where))
        return groups[-1]

    yield run
    for group in groups:
        group.kill()


def lines(folder: Path) -> list[dict[str, Any]]:
    file = folder / "metrics.jsonl"
    text = file.read_text() if file.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def losses(folder: Path) -> np.ndarray:
    found = lines(folder)
    assert [line["step"] for line in found] == list(range(1, len(found) + 1))  # each step once
    return np.array([line["loss"] for line in found])


def checkpoints(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in (folder / "checkpoints").iterdir() if path.name.isdigit())


def printed(text: str) -> list[str]:
    return [line for line in text.splitlines() if not line.startswith("[Gloo]")]


# --- joining


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--distributed nowhere --num_processes 2 --process_id 0", "'nowhere' is neither auto nor HOST:PORT"),
        ("--distributed host:99999 --num_processes 2 --process_id 0", "neither auto nor HOST:PORT"),
        ("--distributed 10.0.0.1:1234", "needs --num_processes N and --process_id I"),
        ("--distributed 10.0.0.1:1234 --num_processes 2 --process_id 2", "--process_id 2 of --num_processes 2"),
        ("--distributed auto --num_processes 2", "leave out --num_processes"),
        ("--num_processes 2", "go with --distributed HOST:PORT, which is missing"),
        ("--distributed auto --peer_timeout 0", "--peer_timeout: 0 is out of range"),
        ("--distributed", "--distributed takes text or None, got nothing"),
    ],
)
def test_mistakes_in_joining(arguments: str, message: str, tmp_path: Path, capsys: Any) -> None:
    given = arguments.split() if arguments.endswith("--distributed") else [*arguments.split(), "--seed", "1"]
    assert message in one_line(train.main, given, capsys)


@pytest.mark.parametrize("index", [0, 1])
def test_who_waits_in_vain_says_so_in_one_line(index: int, run_python: Any, tmp_path: Path) -> None:
    flags = ["--distributed", f"127.0.0.1:{free_port()}", "--num_processes", "2", "--process_id", str(index)]
    begun = time.monotonic()
    done = run_python("train.py", "--workdir", tmp_path / "run", *flags, "--join_timeout", "3", check=False)
    assert done.returncode == 2 and time.monotonic() - begun < 60
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("train.py: error: --distributed 127.0.0.1:")
    who = "process 0" if index else "the others"
    assert f"{who} did not answer within 3 s" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_auto_without_a_cluster_is_one_line(run_python: Any, tmp_path: Path) -> None:
    done = run_python("train.py", "--workdir", tmp_path / "run", "--distributed", "auto", check=False)
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.count("\n") == 1
    assert "neither Slurm, Open MPI, Kubernetes nor a TPU pod" in done.stderr


# --- one run


@pytest.mark.parametrize(
    "places",
    [
        [(4, "--mesh.fsdp 8", {"devices": 8}), (8, "--mesh.tensor 2", {"processes": 2}), (12, "", {})],
        pytest.param(
            [
                (5, "--mesh.fsdp 8", {"devices": 8}),
                (10, "--mesh.fsdp 2 --mesh.tensor 2", {"devices": 4}),
                (13, "", {"processes": 2}),
                (16, "--mesh.tensor 2", {"processes": 2}),
                (20, "", {}),
            ],
            marks=pytest.mark.nightly,
        ),
    ],
    ids=["three places", "five places"],
)
def test_a_run_moves_between_devices_and_processes(
    places: list[tuple[int, str, dict[str, int]]], tmp_path: Path, start: Start
) -> None:
    """From place to place, as a run that never moved. (By tensor both processes read all rows.)"""
    moved, still, done = tmp_path / "moved", tmp_path / "still", 0
    start(still, "--train.steps", str(places[-1][0])).finish()
    for steps, mesh, where in places:
        first, *others = start(moved, "--train.steps", str(steps), *mesh.split(), **where).finish()
        assert done == 0 or f"going on after step {done}" in first
        assert all(printed(other) == [] for other in others)  # process 0 alone speaks, and nothing is written twice
        assert ("2 device(s) of 2 processes" in first) == ("processes" in where)
        done = steps
    np.testing.assert_allclose(losses(moved), losses(still), rtol=1e-5)
    assert checkpoints(moved)[-1] == done


def test_a_mistake_of_both_is_told_by_both_and_ends_both(tmp_path: Path, start: Start) -> None:
    group = start(tmp_path / "run", "--mesh.data", "1", "--train.steps", "5", processes=2)
    assert [member.wait() for member in group.members] == [2, 2]
    for member in group.members:
        assert "".join(member.err).count("\n") == 1 and "leaves out processes" in member.err[0]
    assert list(tmp_path.iterdir()) == []


# --- signals and deaths


Blow = tuple[signal.Signals, int]


@pytest.mark.parametrize(
    ("deaths", "signals"),
    [
        ([(signal.SIGKILL, 0)], [(signal.SIGTERM, 1)]),
        pytest.param(
            [(signal.SIGKILL, 1), (signal.SIGKILL, 0), (signal.SIGSTOP, 1)],
            [(signal.SIGTERM, 1), (signal.SIGINT, 0)],
            marks=pytest.mark.nightly,
        ),
    ],
    ids=["two", "five"],
)
def test_what_befalls_one_of_two_processes(
    deaths: list[Blow], signals: list[Blow], tmp_path: Path, start: Start
) -> None:
    """Killed (0 leads), stopped with its connections open, SIGTERM, SIGINT: both end, and both go on."""
    folder, endless = tmp_path / "run", ("--train.steps", "1000000")
    reached = 0

    def run_on() -> Group:
        group = start(folder, *endless, processes=2)
        group.until(lambda: len(lines(folder)) >= reached + 15 and checkpoints(folder)[-1:] > [reached])
        return group

    for number, victim in deaths:
        group = run_on()
        group.send(number, victim)
        begun = time.monotonic()
        survivor = group.members[1 - victim]
        status = survivor.wait(PEER_TIMEOUT + 50)
        assert status in (1, -signal.SIGABRT), survivor.said
        assert "another process" in survivor.said or "another task died" in survivor.said, survivor.said
        print(f"ended with {status}, {time.monotonic() - begun:.1f} s after the other's {number.name}")
        group.send(signal.SIGKILL, victim)
        reached = checkpoints(folder)[-1]

    for number, receiver in signals:
        group = run_on()
        group.send(number, receiver)
        out = group.finish(60)
        assert f"{number.name}: finishing the step" in group.members[receiver].said
        reached = checkpoints(folder)[-1]
        assert len(losses(folder)) == reached  # the checkpoint is of the last step
        assert f"stopped after step {reached}; saved" in out[0]
        assert printed(out[1]) == []

    (last,) = start(folder, "--train.steps", str(reached + 3)).finish()
    assert f"going on after step {reached}" in last
    start(tmp_path / "unbroken", "--train.steps", str(min(reached + 3, 30))).finish()
    found, unbroken = losses(folder), losses(tmp_path / "unbroken")
    assert len(found) == reached + 3
    np.testing.assert_allclose(found[: len(unbroken)], unbroken, rtol=1e-4)
