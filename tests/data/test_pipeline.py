"""The stream is exact: every record once an epoch, the same whatever reads it, resumable at every place."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jaxdiff.data import DataError, Pipeline, Source, batches, from_arrays, open_digits, open_folder, take
from tests.data.pictures import record

few = settings(deadline=None, max_examples=40)


def numbered(n: int) -> Source:
    """Record i has label i and its own picture."""
    images = np.random.default_rng(0).integers(0, 256, (n, 2, 2, 1), dtype=np.uint8)
    return from_arrays(images, np.arange(n))


def several(pipeline: Iterator[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    return [next(pipeline) for _ in range(count)]


def labels(source: Source, count: int, **options: Any) -> np.ndarray:
    with Pipeline(source, **{"seed": 0, **options}) as pipeline:
        return np.concatenate([batch["label"] for batch in several(pipeline, count)])


def same(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> bool:
    return len(a) == len(b) and all(
        x.keys() == y.keys() and all(np.array_equal(x[k], y[k]) for k in x) for x, y in zip(a, b, strict=True)
    )


@few
@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 2**40))
def test_every_record_once_an_epoch(n: int, batch_size: int, seed: int) -> None:
    epochs = 3
    seen = labels(numbered(n), -(-epochs * n // batch_size), batch_size=batch_size, seed=seed)
    for epoch in range(epochs):
        assert sorted(seen[epoch * n : (epoch + 1) * n]) == list(range(n))


@few
@given(st.integers(1, 30), st.integers(1, 6), st.integers(1, 4), st.booleans())
def test_processes_share_the_global_batch(n: int, local: int, processes: int, shuffle: bool) -> None:
    source, size = numbered(n), local * processes
    options: dict[str, Any] = {"batch_size": size, "seed": 3, "shuffle": shuffle}
    with Pipeline(source, **options) as pipeline:
        whole = several(pipeline, 4)
    parts = []
    for index in range(processes):
        with Pipeline(source, process_index=index, process_count=processes, **options) as pipeline:
            parts.append(several(pipeline, 4))
            assert parts[-1][0]["x"].shape == (local, 2, 2, 1)
            assert pipeline.records(pipeline.earlier(pipeline.position, 1)) == whole[3]["label"].tolist()
    joined = [{k: np.concatenate([p[i][k] for p in parts]) for k in whole[0]} for i in range(4)]
    assert same(joined, whole)


@few
@given(st.integers(1, 20), st.integers(1, 30), st.booleans())
def test_resume_at_every_position(n: int, batch_size: int, drop_remainder: bool) -> None:
    source = numbered(n)
    options: dict[str, Any] = {"batch_size": batch_size, "seed": 5, "drop_remainder": drop_remainder}
    positions, handed = [], []
    with Pipeline(source, **options) as pipeline:
        for _ in range(8):
            positions.append(json.loads(json.dumps(pipeline.position)))
            handed.append(next(pipeline))
    with Pipeline(source, **options) as other:
        for number in (3, 0, 7, 5):  # forwards and backwards
            other.seek(positions[number])
            assert other.position == positions[number]
            assert same(several(other, 8 - number), handed[number:])
    for number, position in enumerate(positions):
        assert other.records(position) == handed[number]["label"].tolist()
        assert other.earlier(positions[7], 7 - number) == position
        with Pipeline(source, position=position, **options) as resumed:
            assert same(several(resumed, 1), handed[number : number + 1])


def test_a_position_crosses_process_counts() -> None:
    source = numbered(10)
    with Pipeline(source, batch_size=4, seed=0) as pipeline:
        several(pipeline, 3)
        position = pipeline.position
        fourth = next(pipeline)["label"]
    halves = [
        labels(source, 1, batch_size=4, position=position, process_index=index, process_count=2) for index in range(2)
    ]
    assert np.concatenate(halves).tolist() == fourth.tolist()


def test_batches_are_the_records_as_stored() -> None:
    source = open_digits()
    with Pipeline(source, batch_size=len(source), seed=0) as pipeline:
        batch = next(pipeline)
        order = pipeline.records(pipeline.earlier(pipeline.position, 1))
        assert pipeline.spec == source.spec
    assert batch["x"].dtype == np.uint8 and batch["label"].dtype == np.int32
    assert type(batch["x"]) is np.ndarray
    wanted = take(source, order)
    assert (batch["x"] == wanted["x"]).all() and (batch["label"] == wanted["label"]).all()


def test_orders_differ_between_epochs_and_seeds() -> None:
    source = numbered(1000)
    first, second = labels(source, 20, batch_size=100).reshape(2, 1000)
    other = labels(source, 10, batch_size=100, seed=1)
    for a, b in [(first, second), (first, other), (second, other), (first, np.arange(1000))]:
        assert (a == b).mean() < 0.02
        assert abs(np.corrcoef(a, b)[0, 1]) < 0.13  # four standard deviations
    assert (labels(source, 20, batch_size=100)[:1000] == first).all()


def test_unshuffled_and_short_batches() -> None:
    source = numbered(5)
    assert labels(source, 4, batch_size=3, shuffle=False).tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]
    with Pipeline(source, batch_size=3, seed=0, drop_remainder=False) as pipeline:
        found = [batch["label"].tolist() for batch in several(pipeline, 6)]
    assert [len(f) for f in found] == [3, 2, 3, 2, 3, 2]
    assert all(sorted(found[i] + found[i + 1]) == [0, 1, 2, 3, 4] for i in (0, 2, 4))


def test_batch_larger_than_the_set_repeats() -> None:
    seen = labels(numbered(3), 1, batch_size=8)
    assert np.bincount(seen).min() >= 2
    assert sorted(seen[:3]) == sorted(seen[3:6]) == [0, 1, 2]


def test_unlabelled() -> None:
    source = from_arrays(np.zeros((4, 2, 2, 3), np.uint8))
    with Pipeline(source, batch_size=2, seed=0) as pipeline:
        assert next(pipeline).keys() == {"x"}
    assert next(batches(source, 3)).keys() == {"x"}


def test_batches_is_one_pass_in_order() -> None:
    source = numbered(7)
    found = list(batches(source, 3))
    assert [batch["label"].tolist() for batch in found] == [[0, 1, 2], [3, 4, 5], [6]]
    assert found[2]["x"].shape == (1, 2, 2, 1)
    assert (found[0]["x"][1] == record(source, 1)["x"]).all()
    with pytest.raises(DataError, match="batch_size is at least 1, got 0"):
        next(batches(source, 0))


def test_options_out_of_range() -> None:
    source = numbered(4)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"batch_size": 0}, "batch_size is at least 1, got 0"),
        ({"seed": -1}, "seed is at least 0, got -1"),
        ({"workers": -1}, "workers is at least 0, got -1"),
        ({"process_index": 2, "process_count": 2}, "process_index lies in 0..1, got 2"),
        ({"batch_size": 3, "process_count": 2}, "batch_size 3 does not divide evenly over 2 processes"),
        ({"drop_remainder": False, "process_count": 2}, "drop_remainder=False"),
    ]
    for options, message in cases:
        with pytest.raises(DataError) as caught:
            Pipeline(source, **{"batch_size": 2, "seed": 0, **options})
        assert message in str(caught.value)


def test_a_position_of_another_stream_is_refused() -> None:
    source = numbered(6)
    with Pipeline(source, batch_size=2, seed=0) as pipeline:
        next(pipeline)
        position = pipeline.position
        for bad in ({}, {"batches": -1, "stream": {}}, {"batches": "1", "stream": {}}, {"batches": 1}):
            with pytest.raises(DataError, match="not a position"):
                pipeline.seek(bad)
        assert pipeline.position == position
    changed = from_arrays(np.zeros((6, 2, 2, 1), np.uint8), np.arange(6))
    cases: list[tuple[Source, dict[str, Any], str]] = [
        (source, {"seed": 1}, "seed was 0, is now 1"),
        (source, {"batch_size": 3}, "batch_size was 2, is now 3"),
        (numbered(7), {}, "records was 6, is now 7"),
        (changed, {}, "data was "),
    ]
    for other, options, message in cases:
        with pytest.raises(DataError, match=message):
            Pipeline(other, **{"batch_size": 2, "seed": 0, "position": position, **options})


def test_closed() -> None:
    pipeline = Pipeline(numbered(4), batch_size=2, seed=0)
    next(pipeline)
    pipeline.close()
    pipeline.close()
    assert pipeline.position["batches"] == 1
    with pytest.raises(ValueError, match="the pipeline is closed"):
        next(pipeline)


@pytest.fixture
def folder_with_a_bad_image(tmp_path: Path) -> Path:
    for number in range(12):
        (tmp_path / "train" / "a").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / "train" / "a" / f"{number:02}.png")
    (tmp_path / "train" / "a" / "09.png").write_bytes(b"")
    return tmp_path


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_image_stops_at_its_batch(folder_with_a_bad_image: Path, workers: int) -> None:
    source = open_folder(folder_with_a_bad_image)
    with Pipeline(source, batch_size=3, seed=0, shuffle=False, workers=workers) as pipeline:
        several(pipeline, 3)
        for _ in range(1 if workers else 2):  # again and again, without skipping the batch
            with pytest.raises(DataError, match=r"09.png \(row 9\): image is empty"):
                next(pipeline)
            assert pipeline.position["batches"] == 3
        if workers == 0:
            Image.new("RGB", (4, 4), (9, 0, 0)).save(folder_with_a_bad_image / "train" / "a" / "09.png")
            assert next(pipeline)["x"][:, 0, 0, 0].tolist() == [9, 10, 11]


def test_workers_read_the_same_stream() -> None:
    source = open_digits()
    options: dict[str, Any] = {"batch_size": 100, "seed": 2}
    with Pipeline(source, **options) as pipeline:
        several(pipeline, 3)
        position = pipeline.position
        wanted = several(pipeline, 17)
    with Pipeline(source, workers=2, position=position, **options) as pipeline:
        assert same(several(pipeline, 12), wanted[:12])
        position = pipeline.position
    with Pipeline(source, position=position, **options) as pipeline:  # workers before, none now
        assert same(several(pipeline, 5), wanted[12:])


def test_sources_travel_to_workers(shared_data: Path, tmp_path: Path) -> None:
    """What a worker receives is the source without its images: the same records, and no copy of a mapped array."""
    cloudpickle = pytest.importorskip("cloudpickle")  # what Grain sends it with

    from jaxdiff.data import open_cifar10, open_npz

    images = np.random.default_rng(0).integers(0, 256, (500, 32, 32, 3), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=images)
    for source in (open_cifar10(shared_data, split="test"), open_npz(tmp_path / "a.npz")):
        sent = cloudpickle.dumps(source)
        assert len(sent) < 200_000
        received = cloudpickle.loads(sent)
        assert received.fingerprint == source.fingerprint
        assert (record(received, 123)["x"] == record(source, 123)["x"]).all()


def test_an_open_pipeline_does_not_hold_up_the_end_of_the_program(run_python: Any, tmp_path: Path) -> None:
    """A program that forgets close() ends by itself, quietly, and leaves no shared memory."""
    script = tmp_path / "script.py"
    script.write_text(
        "from jaxdiff.data import Pipeline, open_digits\n"
        "if __name__ == '__main__':\n"
        "    pipeline = Pipeline(open_digits(), batch_size=8, seed=0, workers=2)\n"
        "    print(next(pipeline)['x'].shape)\n"
    )
    root = str(Path(__file__).resolve().parents[2])
    done = run_python(script, env={"PYTHONPATH": root}, timeout=100)
    assert done.stdout.strip() == "(8, 8, 8, 1)"
    assert "Traceback" not in done.stderr
    assert "leaked" not in done.stderr


def test_no_worker_ever_hears_what_a_terminal_sends_to_all(run_python: Any, tmp_path: Path) -> None:
    """Blocked when a worker runs its first line, and ignored when it reads."""
    (tmp_path / "heard.py").write_text(
        "import os, signal\n"
        "numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)\n"
        "def say(what):\n"
        "    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())\n"
        "    seen = [(n in blocked) + 2 * (signal.getsignal(n) == signal.SIG_IGN) for n in numbers]\n"
        "    os.write(1, f'{os.getpid()} {what} {seen}\\n'.encode())\n"
        "class Heard:\n"
        "    def __init__(self, source):\n"
        "        self.source, self.spec, self.name = source, source.spec, 'heard'\n"
        "    def __len__(self):\n"
        "        return len(self.source)\n"
        "    def take(self, records):\n"
        "        say('reads')\n"
        "        return self.source.take(records)\n"
    )
    script = tmp_path / "script.py"
    script.write_text(
        "from heard import Heard, say\n"
        "if __name__ != '__main__':\n"
        "    say('starts')\n"
        "from jaxdiff.data import Pipeline, open_digits\n"
        "if __name__ == '__main__':\n"
        "    with Pipeline(Heard(open_digits()), batch_size=8, seed=0, workers=2) as pipeline:\n"
        "        next(pipeline), next(pipeline)\n"
    )
    root = str(Path(__file__).resolve().parents[2])
    done = run_python(script, env={"PYTHONPATH": root}, timeout=100)
    lines = [line.split(" ", 2) for line in done.stdout.splitlines()]
    workers = {worker for worker, what, _ in lines if what == "starts"}
    assert len(workers) == 2
    seen = {(what, *json.loads(state)) for worker, what, state in lines if worker in workers}
    assert ("reads", 2, 2, 2, 2) in seen and len(seen) == 2
    (begun,) = (state for what, *state in seen if what == "starts")
    assert all(number & 1 for number in begun)  # and ignored already where pytest itself runs in the background
