"""`python -m jaxdiff.runs`: what it tells of runs, and that a bad folder breaks nothing."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path
from typing import Any

import pytest

from jaxdiff.config import folder as config_folder
from jaxdiff.runs import listing
from jaxdiff.runs.listing import RunError, main, read_status
from jaxdiff.train import metrics


def make(
    folder: Path, *, steps: int = 100, logged: int | None = None, saved: int | None = None, grid: bool = True
) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"type": "some.where.Config", "train": {"steps": steps}}))
    if logged is not None:
        lines = [{"step": step, "loss": 1 / step, "images_per_second": 1234.5} for step in range(1, logged + 1)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for step in () if saved is None else (saved // 2, saved):
        (folder / "checkpoints" / str(step)).mkdir(parents=True)
    (folder / "checkpoints" / "90.orbax-checkpoint-tmp").mkdir(parents=True, exist_ok=True)
    if grid:
        (folder / "samples").mkdir()
        for step in (5, 40, 9):
            (folder / "samples" / f"step_{step:08d}.png").touch()
    return folder


def test_the_names_are_those_of_a_run() -> None:
    for name in ("CONFIG", "CHECKPOINTS", "SAMPLES"):
        assert getattr(listing, name) == getattr(config_folder, name)
    assert listing.METRICS == metrics.METRICS


def test_states(tmp_path: Path) -> None:
    stopped = read_status(make(tmp_path / "stopped", logged=50, saved=40))
    assert (stopped.state, stopped.step, stopped.total) == ("stopped", 50, 100)
    assert (stopped.loss, stopped.images_per_second) == (1 / 50, 1234.5)
    assert stopped.samples == tmp_path / "stopped" / "samples" / "step_00000040.png"
    assert read_status(make(tmp_path / "finished", logged=100, saved=100)).state == "finished"
    fresh = read_status(make(tmp_path / "fresh", grid=False))
    assert (fresh.state, fresh.step, fresh.loss, fresh.samples) == ("stopped", 0, None, None)

    folder = make(tmp_path / "running", logged=3)
    (folder / "lock").touch()
    assert read_status(folder).state == "stopped"
    with (folder / "lock").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert read_status(folder).state == "running"
    assert read_status(folder).state == "stopped"


def test_a_line_that_is_being_written_is_not_read(tmp_path: Path) -> None:
    folder = make(tmp_path / "run", logged=2000)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2001, "lo')
    assert read_status(folder).step == 2000
    (folder / "metrics.jsonl").write_text('{"step": 7, "loss": null, "images_per_second": 3}\n')
    assert (read_status(folder).step, read_status(folder).loss) == (7, None)


def test_lines_of_others_are_passed_over(tmp_path: Path) -> None:
    folder = make(tmp_path / "run", logged=3)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('a note\n{"event": "moved"}\n')
    assert (read_status(folder).step, read_status(folder).loss) == (3, 1 / 3)


DAMAGES: dict[str, tuple[str, str | bytes | None, str]] = {
    "no_config": ("config.json", None, "it has no config.json"),
    "empty_config": ("config.json", "", "config.json cannot be read: Expecting value"),
    "other_config": ("config.json", "{}", "config.json cannot be read: there is no 'train'"),
    "list_config": ("config.json", "[1]", "config.json cannot be read: list indices"),
    "binary_config": ("config.json", b"\xff\xfe", "config.json cannot be read: 'utf-8'"),
    "no_steps": ("config.json", '{"train": {"steps": "x"}}', "train.steps is 'x'"),
    "bad_metrics": ("metrics.jsonl", "{{{\n", "metrics.jsonl: its last line cannot be read"),
    "zero_metrics": ("metrics.jsonl", b"\x00\x00\n", "metrics.jsonl: its last line cannot be read"),
    "list_metrics": ("metrics.jsonl", "[]\n", "its last line is no record"),
    "text_step": ("metrics.jsonl", '{"step": "x"}\n', "its last line has the step 'x'"),
}


def test_bad_folders_are_named_and_the_others_listed(tmp_path: Path, capsys: Any) -> None:
    make(tmp_path / "good", logged=50, saved=40)
    make(tmp_path / "long_name_of_a_run", logged=100, saved=100, grid=False)
    for name, (file, content, _) in DAMAGES.items():
        path = make(tmp_path / name, logged=3) / file
        path.unlink()
        if content is not None:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
    (tmp_path / "a_file").touch()
    unreadable = make(tmp_path / "a_folder_for_metrics")
    (unreadable / "metrics.jsonl").mkdir()
    assert main([str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    head, first, second, *faults = out.splitlines()
    assert head.split() == ["run", "state", "step", "loss", "images/s", "samples"]
    sample = tmp_path / "good" / "samples" / "step_00000040.png"
    assert first.split() == [str(tmp_path / "good"), "stopped", "50/100", "0.0200", "1,234", str(sample)]
    assert second.split()[1:] == ["finished", "100/100", "0.0100", "1,234", "-"]
    assert len(faults) == len(DAMAGES) + 1
    for name, (_, _, fault) in DAMAGES.items():
        assert any(line.startswith(f"{tmp_path / name}: ") and fault in line for line in faults), (name, faults)
    assert any("a_folder_for_metrics: " in line and "Is a directory" in line for line in faults)
    with pytest.raises(RunError, match="it has no config"):
        read_status(tmp_path / "no_config")


def test_one_run_none_and_nothing(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make(tmp_path / "runs" / "x", logged=1)
    assert main([str(folder)]) == 0 and str(folder) in capsys.readouterr().out
    monkeypatch.chdir(tmp_path)
    assert main([]) == 0 and "runs/x" in capsys.readouterr().out
    (tmp_path / "empty").mkdir()
    assert main(["empty"]) == 0 and capsys.readouterr().out == "no runs\n"
    assert main(["nothing"]) == 2
    assert capsys.readouterr().err.startswith("jaxdiff runs: error: there is no folder 'nothing'")
    assert main(["--help"]) == 0 and capsys.readouterr().err == ""
    for arguments, wrong in ((["--x"], "--x"), (["a", "b"], "b")):
        assert main(arguments) == 2
        assert capsys.readouterr().err.startswith(f"jaxdiff runs: error: {wrong!r} is unexpected; usage: jaxdiff runs")
    assert main(["a" * 300]) == 2 and "there is no folder" in capsys.readouterr().err


def test_the_command(run_python: Any, tmp_path: Path) -> None:
    make(tmp_path / "x", logged=5)
    assert "stopped  5/100" in run_python("-m", "jaxdiff.runs", tmp_path).stdout
