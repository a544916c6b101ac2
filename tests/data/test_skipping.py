"""Bad records: each named by file and row, or counted and left out for good."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import train
from jaxdiff import data
from jaxdiff.data import DataError, Pipeline, Source, decode_once, take, without_bad
from tests.data.pictures import encoded, one_line_error, pictures, record, write_folder, write_parquet


def damaged(image: bytes) -> dict[str, bytes]:
    """The same image, made unreadable in several ways."""
    middle = len(image) // 2
    flipped = image[:middle] + bytes([image[middle] ^ 255]) + image[middle + 1 :]
    return {"empty": b"", "truncated": image[:middle], "no image": b"no image at all", "flipped": flipped}


def noisy() -> tuple[list[bytes], list[int], dict[int, str]]:
    """Encoded images, labels, and which of them are bad for what reason."""
    images = [encoded(pixels) for pixels in pictures(16)]
    labels = [number % 3 for number in range(16)]
    bad: dict[int, str] = {}
    for number, (why, broken) in zip((0, 5, 9, 10), damaged(images[0]).items(), strict=True):
        images[number], bad[number] = broken, why
    images[12], bad[12] = encoded(pictures(1, (8, 8, 3))[0].repeat(2, axis=0)), "another size"
    images[13], bad[13] = encoded(np.zeros((8, 8, 1), np.uint16)), "sixteen bits"
    labels[15], bad[15] = 7, "label out of range"
    return images, labels, bad


def content(source: Source) -> list[tuple[bytes, int]]:
    records = take(source, np.arange(len(source)))
    return [(x.tobytes(), int(label)) for x, label in zip(records["x"], records["label"], strict=True)]


def opened(path: Path, **options: Any) -> Source:
    return data.open_parquet(path, channels=3, num_classes=3, skip_bad=True, **options)


def test_each_kind_is_named_by_file_and_row(tmp_path: Path) -> None:
    images, labels, bad = noisy()
    file = write_parquet(tmp_path / "train.parquet", images, labels, rows=4)
    assert f"{file} row 15: label 7, expected 0..2 (1 such rows)" in one_line_error(
        lambda: data.open_parquet(file, num_classes=3)
    )
    source = opened(file)
    for row, why in bad.items():
        assert one_line_error(lambda row=row: record(source, row)).startswith(f"{file} row {row}: "), why  # type: ignore[misc]


def test_what_is_left_is_the_good_ones_in_order(tmp_path: Path, capsys: Any) -> None:
    images, labels, bad = noisy()
    file = write_parquet(tmp_path / "train.parquet", images, labels, rows=4)
    good = [row for row in range(16) if row not in bad]
    clean = write_parquet(tmp_path / "clean" / "train.parquet", [images[i] for i in good], [labels[i] for i in good])
    source = without_bad(opened(file), folder=tmp_path / "kept")
    assert content(source) == content(data.open_parquet(clean, num_classes=3))
    said = capsys.readouterr().err
    assert f"{file}: reading all 16 records once" in said
    assert f"WARNING: {file}: 7 of 16 records are bad and left out: {file} row 0: image is empty (0 bytes)" in said
    assert f"{file} row 5: " in said and "| and 2 more" in said
    every = np.arange(len(source))
    assert (take(source, every)["x"] == take(decode_once(source, limit=10**6), every)["x"]).all()
    with Pipeline(source, batch_size=3, seed=0) as pipeline:  # every good record once in each epoch
        for _ in range(2):
            seen = np.concatenate([next(pipeline)["x"] for _ in range(3)])
            assert sorted(image.tobytes() for image in seen) == sorted(image for image, _ in content(source))


def test_it_is_found_once_and_anew_when_a_file_changes(tmp_path: Path) -> None:
    write_folder(tmp_path / "set", pictures(12), list("aaabbbcccddd"))
    (tmp_path / "set" / "b" / "04.png").write_bytes(b"")
    said: list[str] = []
    options: dict[str, Any] = {"folder": tmp_path / "kept", "say": said.append}
    prints = []
    for change in (None, None, tmp_path / "set" / "c" / "07.png"):
        if change is not None:
            change.write_bytes(change.read_bytes()[:60])
        source = without_bad(data.open_folder(tmp_path / "set", skip_bad=True), **options)
        prints.append((len(source), data.fingerprint(source)))
    assert prints[0] == prints[1] and [count for count, _ in prints] == [11, 11, 10] and prints[2][1] != prints[1][1]
    assert sum("reading all 12 records" in line for line in said) == 2
    with Pipeline(source, batch_size=2, seed=0) as pipeline:
        position = {**pipeline.position, "batches": 1}
        position["stream"] = {**position["stream"], "data": prints[0][1], "records": 11}
        with pytest.raises(DataError, match="records was 11, is now 10"):
            pipeline.seek(position)
    (kept,) = (tmp_path / "kept").glob("*.bad.json")
    kept.write_text("{")  # torn: found anew
    assert len(without_bad(data.open_folder(tmp_path / "set", skip_bad=True), **options)) == 10
    assert sorted(json.loads(kept.read_text())) == ["4", "7"]


def test_no_room_to_keep_it_is_said(tmp_path: Path) -> None:
    write_folder(tmp_path / "set", pictures(3), list("aab"))
    (tmp_path / "file").write_text("in the way")
    said: list[str] = []
    without_bad(data.open_folder(tmp_path / "set", skip_bad=True), folder=tmp_path / "file", say=said.append)
    assert "which records are bad cannot be kept in" in said[0]


def test_whole_files(tmp_path: Path) -> None:
    images = [encoded(pixels) for pixels in pictures(8)]
    for number in range(3):
        write_parquet(tmp_path / f"train-{number}.parquet", images, list(range(8)), rows=4)
    first, second = tmp_path / "train-0.parquet", tmp_path / "train-1.parquet"
    first.write_bytes(first.read_bytes()[:500])
    assert f"{first}: not a Parquet file, or damaged" in one_line_error(lambda: data.open_parquet(tmp_path))
    body = bytearray(second.read_bytes())
    body[10:200] = bytes(190)  # within its first row group
    second.write_bytes(body)
    said: list[str] = []
    source = without_bad(data.open_parquet(tmp_path, skip_bad=True), keep=False, say=said.append)
    assert 8 <= len(source) < 16
    assert (
        f"1 files or entries and {16 - len(source)} of 16 records are bad and left out: {first}: not a Parquet file"
        in said[-1]
    )
    assert f"{second}" in said[-1]
    second.write_bytes(b"")
    shutil.copy(second, tmp_path / "train-2.parquet")
    assert "none of its 3 files can be read; the first: " in one_line_error(
        lambda: data.open_parquet(tmp_path, skip_bad=True)
    )


def test_nothing_good_is_refused(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", [b""] * 3)
    assert "none of its 3 records can be read; the first: " in one_line_error(
        lambda: data.open_parquet(tmp_path, skip_bad=True)
    )
    np.savez(tmp_path / "set.npz", images=np.zeros((3, 4, 4), np.uint8), labels=np.array([5, -1, 9]))
    assert "label 5, expected 0..2 (3 such rows)" in one_line_error(
        lambda: data.open_npz(tmp_path / "set.npz", num_classes=3)
    )
    source = data.open_npz(tmp_path / "set.npz", num_classes=3, skip_bad=True)
    assert "none of its 3 records can be used" in one_line_error(lambda: without_bad(source, say=lambda text: None))
    np.savez(tmp_path / "set.npz", images=np.zeros((3, 4, 4), np.uint8), labels=np.array([5, -1, 2]))
    source = data.open_npz(tmp_path / "set.npz", num_classes=3, skip_bad=True)
    assert content(without_bad(source, say=lambda text: None)) == [(bytes(16), 2)]


TINY_FOLDER = (
    *("--data.name", "folder", "--network.in_channels", "3", "--network.num_classes", "2", "--network.width", "8"),
    *("--network.multipliers", "1", "2", "--network.blocks", "1", "--train.batch_size", "2"),
)


def test_training_names_a_bad_record_before_it_makes_a_folder(tmp_path: Path, capsys: Any) -> None:
    write_folder(tmp_path / "set", pictures(12), list("aaaaaaaaaabb"))
    bad = tmp_path / "set" / "a" / "09.png"
    bad.write_bytes(bad.read_bytes()[:60])
    arguments = ["--data.path", str(tmp_path / "set"), "--workdir", str(tmp_path / "run"), *TINY_FOLDER]
    with pytest.raises(SystemExit) as stopped:
        train.main(arguments)
    error = capsys.readouterr().err.splitlines()[-1]  # after the line that says what is decoded
    assert stopped.value.code == 2 and f"jaxdiff train: error: {bad} (row 9): image is damaged" in error
    assert not (tmp_path / "run").exists()
    train.main([*arguments, "--data.skip_bad", "--no-cache", "--dry-run"])
    said = capsys.readouterr()
    assert f"1 of 12 records are bad and left out: {bad} (row 9): image is damaged" in said.err
    assert "11 records" in said.out and "nothing was written" in said.out
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_killed_worker_is_no_hang(number: signal.Signals) -> None:
    with Pipeline(data.open_digits(), batch_size=16, seed=0, workers=2) as pipeline:
        before = set(multiprocessing.active_children())
        for _ in range(4):
            next(pipeline)
        position = pipeline.position
        workers = list(set(multiprocessing.active_children()) - before)
        assert len(workers) == 2
        os.kill(workers[0].pid or 0, number)
        begun = time.monotonic()
        with pytest.raises(
            DataError, match=rf"digits: a worker that reads it was ended by {number.name}.* goes on from"
        ):
            for _ in range(200):  # what was read ahead comes first
                next(pipeline)
                position = pipeline.position
        assert time.monotonic() - begun < 60
        assert pipeline.position == position
        next(pipeline)  # with new workers
