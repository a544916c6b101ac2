"""The metrics file stays valid JSON and is cut back on resume; the progress lines."""

from __future__ import annotations

import io
import json
import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import masked_crc32c

from jaxdiff.train import MetricsLog, Progress, summarize


def _lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_numbers_json_cannot_hold_become_null(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, tensorboard=False) as log:
        log.write(3, {"loss": float("nan"), "grad_norm": float("inf"), "loss_by_noise": [1.0, float("nan")]})
    assert _lines(tmp_path) == [{"step": 3, "loss": None, "grad_norm": None, "loss_by_noise": [1.0, None]}]


@pytest.mark.parametrize(
    "tail", ["", '{"step": 40, "lo', '{"step": 40, "loss": 4.0}', "\x00\x00\x00", '{"step": 40}\n{"st']
)
def test_resume_cuts_later_lines_and_a_torn_one(tmp_path: Path, tail: str) -> None:
    with MetricsLog(tmp_path, tensorboard=False) as log:
        for step in (10, 20, 30):
            log.write(step, {"loss": float(step)})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(tail)
    with MetricsLog(tmp_path, start=20, tensorboard=False) as log:
        log.write(25, {"loss": 25.0})
    assert [line["step"] for line in _lines(tmp_path)] == [10, 20, 25]


def test_a_resume_keeps_lines_that_are_no_record_of_a_step(tmp_path: Path) -> None:
    foreign = ["# a note", '{"event": "moved"}', "", '{"step": "x"}', '{"step": NaN}', "[20]", "\ufffd"]
    with MetricsLog(tmp_path, tensorboard=False) as log:
        log.write(10, {"loss": 10.0})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write("\n".join(foreign) + "\n")
    with MetricsLog(tmp_path, start=10, tensorboard=False) as log:
        log.write(20, {"loss": 20.0})
        log.write(30, {"loss": 30.0})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write("# another\ntorn")
    with MetricsLog(tmp_path, start=20, tensorboard=False) as log:
        log.write(25, {"loss": 25.0})
    *lines, second, other, last = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert lines[1:] == foreign and other == "# another"
    assert [json.loads(line)["step"] for line in (lines[0], second, last)] == [10, 20, 25]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_run_that_starts_afresh_empties_the_file(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 10, "loss": 1.0}\n')
    MetricsLog(tmp_path, tensorboard=False).close()
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_inactive_writes_nothing(tmp_path: Path) -> None:
    with MetricsLog(tmp_path / "run", active=False) as log:
        log.write(1, {"loss": 1.0})
        log.image(1, "samples", np.zeros((2, 2, 3), np.uint8))
    assert not (tmp_path / "run").exists()


def test_tensorboard_events_are_written(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 200, 3), np.uint8)
    with MetricsLog(tmp_path) as log:
        log.write(1, {"loss": -1.5, "loss_by_noise": [1.0, float("nan")]})
        log.image(2**40, "samples", pixels)
    (file,) = (tmp_path / "tensorboard").iterdir()
    version, start, loss, first, picture = _events(file)
    assert version.file_version == "brain.Event:2" and abs(version.wall_time - time.time()) < 60
    assert (start.step, start.session_log.status) == (1, SessionLog.START)
    assert [(event.step, event.summary.value[0].tag) for event in (loss, first)] == [
        (1, "loss"),
        (1, "loss_by_noise/0"),
    ]
    assert (loss.summary.value[0].simple_value, first.summary.value[0].simple_value) == (-1.5, 1.0)
    shown = picture.summary.value[0]
    assert (picture.step, shown.tag) == (2**40, "samples")
    assert (shown.image.height, shown.image.width, shown.image.colorspace) == (4, 200, 3)
    with Image.open(io.BytesIO(shown.image.encoded_image_string)) as read:
        np.testing.assert_array_equal(np.asarray(read), pixels)


def test_a_broken_torch_is_not_imported(tmp_path: Path, run_python: Any) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise OSError('libtorch.so: cannot open shared object file')")
    code = """
import sys
from jaxdiff.train import MetricsLog
with MetricsLog(sys.argv[1]) as log:
    log.write(1, {"loss": 1.0})
assert not {"torch", "tensorboardX"} & sys.modules.keys()
"""
    run_python("-c", code, tmp_path / "run", env={"PYTHONPATH": str(tmp_path)})
    assert len(list((tmp_path / "run" / "tensorboard").iterdir())) == 1


def _events(file: Path) -> list[Any]:
    # Records: length (8 bytes), its checksum (4), the event, its checksum (4); read by tensorboardX's own code.
    data, place, events = file.read_bytes(), 0, []
    while place < len(data):
        size, head = struct.unpack_from("<QI", data, place)
        event = data[place + 12 : place + 12 + size]
        assert head == masked_crc32c(data[place : place + 8])
        assert struct.unpack_from("<I", data, place + 12 + size) == (masked_crc32c(event),)
        events.append(Event.FromString(event))
        place += 16 + size
    return events


def test_a_resume_cuts_tensorboard_back_too(tmp_path: Path) -> None:
    for start, steps in ((0, (10, 20, 30)), (20, (25,))):
        with MetricsLog(tmp_path, start=start) as log:
            for step in steps:
                log.write(step, {"loss": float(step)})
    first, second = sorted((tmp_path / "tensorboard").iterdir())
    assert [event.step for event in _events(first) if event.HasField("summary")] == [10, 20, 30]
    start, point = _events(second)[1:]
    assert start.session_log.status == SessionLog.START and start.step == 21  # older events from here on are dropped
    assert (point.step, point.summary.value[0].tag, point.summary.value[0].simple_value) == (25, "loss", 25.0)


def test_progress_prints_plain_lines_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(10, 5) as progress:
        progress.advance(6)
        progress.update(7, loss=0.5, images_per_second=1234.5)
        progress.say("[note]")
    with Progress(10, active=False) as silent:
        silent.update(7, loss=0.5, images_per_second=1.0)
        silent.say("nothing")
    assert capsys.readouterr().out == "step 7/10  loss 0.5000  1,234 images/s  0:00 left\n[note]\n"


def test_progress_prints_plain_lines_on_a_dumb_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Such as Emacs' shell: a bar would show nothing at all there."""
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("TERM", "dumb")
    with Progress(10) as progress:
        progress.advance(6)
        progress.update(7, loss=0.5, images_per_second=1234.5)
    assert capsys.readouterr().out.startswith("step 7/10  loss 0.5000")


def test_skipped_steps_are_counted_and_left_out_of_the_means() -> None:
    bins = np.ones((2, 2))
    good = {"loss": 2.0, "grad_norm": 1.0, "lr": 0.1, "skipped": np.int32(3), "in_a_row": np.int32(0)}
    bad = good | {"loss": np.nan, "grad_norm": np.inf, "lr": 0.2, "skipped": np.int32(4), "in_a_row": np.int32(1)}
    good, bad = good | {"loss_by_noise": bins}, bad | {"loss_by_noise": bins * np.nan}
    assert summarize([good, bad]) == {
        "loss": 2.0,
        "grad_norm": 1.0,
        "lr": 0.2,
        "skipped": 4,
        "loss_by_noise": [1.0, 1.0],
    }
    only = summarize([bad, bad])
    assert np.isnan([only["loss"], only["grad_norm"], *only["loss_by_noise"]]).all() and only["skipped"] == 4  # type: ignore[misc]


def test_a_listener_that_raises_is_told_of_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    heard: list[int] = []

    def listener(step: int, figures: Any) -> None:
        heard.append(step)
        figures["loss"] = figures.clear()
        if step > 1:
            raise RuntimeError("the tracker\nis down")

    record = {"loss": 0.5}
    with MetricsLog(tmp_path, tensorboard=False, listener=listener) as log:
        for step in range(1, 4):
            log.write(step, record)
    assert heard == [1, 2, 3] and record == {"loss": 0.5}
    assert _lines(tmp_path) == [{"step": step, "loss": 0.5} for step in (1, 2, 3)]
    told = "WARNING: log raised RuntimeError: the tracker is down (step 2); training goes on, and further ones are not"
    assert capsys.readouterr().err == told + " told of\n"


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_a_listener_may_end_the_run(tmp_path: Path, kind: type[BaseException]) -> None:
    def listener(step: int, figures: Any) -> None:
        raise kind

    with MetricsLog(tmp_path, tensorboard=False, listener=listener) as log, pytest.raises(kind):
        log.write(1, {"loss": 0.5})
    assert _lines(tmp_path) == [{"step": 1, "loss": 0.5}]
