"""Damaged, empty and unfit data given to real runs: refused by name in one line, or skipped where that is asked."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tests.data.pictures import encoded, pictures, write_folder, write_parquet
from tests.faults.processes import Training, refusal_problems, whole_steps
from tests.faults.tally import Tally

IMAGES = pictures(40, (8, 8, 1))
LABELS = [n % 10 for n in range(40)]
VICTIM = 25  # beyond the records that are looked at when a set is opened
STEPS = ("--train.steps", "4")


class Case(NamedTuple):
    """A way to spoil a data set.

    Attributes:
        name: of the damage.
        spoil: changes a whole set.
        mentions: what the error must say.
        skippable: whether it is of single records, which can be skipped.
    """

    name: str
    spoil: Callable[[Path], object]
    mentions: tuple[str, ...]
    skippable: bool = False


def _folder(path: Path) -> Path:
    return write_folder(path, IMAGES, [f"{label}" for label in LABELS])


def _parquet(path: Path, images: list[bytes] | None = None, labels: list[int] | None = None) -> Path:
    whole = [encoded(image) for image in IMAGES]
    return write_parquet(path / "train.parquet", images or whole, labels or LABELS, rows=8)


def _victim(folder: Path) -> Path:
    return folder / str(LABELS[VICTIM]) / f"{VICTIM:02}.png"


def _cut(path: Path, share: float = 0.5) -> None:
    os.truncate(path, int(share * path.stat().st_size))


def _with_image(content: bytes) -> Callable[[Path], object]:
    return lambda path: _parquet(path, [content if n == VICTIM else encoded(i) for n, i in enumerate(IMAGES)])


def _without_images(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


_COLOUR = encoded(np.repeat(IMAGES[VICTIM], 3, axis=2))
_VICTIM_NAME = (f"{VICTIM:02}.png",)
FOLDERS = (
    Case("truncated image", lambda f: _cut(_victim(f)), _VICTIM_NAME, True),
    Case("image of 0 bytes", lambda f: _cut(_victim(f), 0), _VICTIM_NAME, True),
    Case("no image at all", lambda f: _victim(f).write_bytes(b"hello, I am no picture"), _VICTIM_NAME, True),
    Case("another channel count", lambda f: _victim(f).write_bytes(_COLOUR), _VICTIM_NAME, True),
    Case("another size", lambda f: _victim(f).write_bytes(encoded(pictures(1, (9, 8, 1))[0])), _VICTIM_NAME, True),
    Case("empty folder", _without_images, ()),
    Case("more classes than the network's", lambda f: shutil.copytree(f / "9", f / "91"), ("11",)),
)
PARQUETS = (
    Case("truncated image in Parquet", _with_image(encoded(IMAGES[VICTIM])[:60]), ("train.parquet", str(VICTIM)), True),
    Case("image of 0 bytes in Parquet", _with_image(b""), ("train.parquet", str(VICTIM)), True),
    Case("truncated Parquet file", lambda f: _cut(f / "train.parquet"), ("train.parquet",)),
    Case("Parquet file of 0 bytes", lambda f: _cut(f / "train.parquet", 0), ("train.parquet",)),
    Case("label out of range", lambda f: _parquet(f, labels=[*LABELS[:VICTIM], 10, *LABELS[VICTIM + 1 :]]), ("10",)),
)


def refused(home: Path, cases: tuple[Case, ...] = (*FOLDERS, *PARQUETS)) -> Tally:
    """Each spoiled set is refused in one line that names it."""
    tally = Tally("damaged or unfit data: one line that names the file or record, exit 2")
    for number, case in enumerate(cases):
        with _training(home, f"refused{number}", case).start() as life:
            tally.add(case.name, refusal_problems(life, *case.mentions))
    return tally


def skipped(home: Path, cases: tuple[Case, ...] = (*FOLDERS, *PARQUETS)) -> Tally:
    """Each set with a bad record is trained on without it, with `--data.skip_bad`, which says so."""
    tally = Tally("--data.skip_bad: the bad record is named, counted and left out")
    for number, case in enumerate(case for case in cases if case.skippable):
        with _training(home, f"skipped{number}", case).start("--data.skip_bad") as life:
            status, said = life.end(), life.out + life.err
        named = all(mention in said for mention in case.mentions)
        good = status == 0 and named and "39 records" in said.replace(",", "")
        tally.add(case.name, [] if good else [f"{case.name}: {life}"])
    return tally


def killed_workers(home: Path, numbers: tuple[signal.Signals, ...] = (signal.SIGKILL, signal.SIGSEGV)) -> Tally:
    """A process that decodes images for a run is killed: the run ends with a message; started again it goes on."""
    tally = Tally("a worker process of the loader killed: no hang, one line, and the same command goes on")
    data = _folder(home / "workers_data")
    options = ("--data.name", "folder", "--data.path", str(data), "--data.decoded_mb", "0", "--data.workers", "2")
    for number in numbers:
        training = Training(home / f"workers_{number.name}", options, cache=home / "compiled")
        long = ("--train.steps", "100000", "--optimizer.schedule", "constant")
        with training.start(*long) as life:
            life.until(lambda: whole_steps(training.folder))  # noqa: B023
            victims = _workers(life.process.pid)
            os.kill(victims[0], number)
            problems = refusal_problems(life, "a worker", number.name)
        last = whole_steps(training.folder)[-1]
        with training.start("--train.steps", str(last + 3), *long[2:]) as again:
            status = again.end()
        if status != 0 or f"going on after step {last}\n" not in again.out:
            problems.append(f"it did not go on after step {last}: {again}")
        left = [pid for pid in victims if _command(pid) is not None]
        tally.add(number.name, problems + [f"process {pid} was left behind" for pid in left])
    return tally


def _command(pid: int) -> bytes | None:
    """The command line of a process that lives."""
    try:
        return (Path("/proc") / str(pid) / "cmdline").read_bytes() or None
    except OSError:
        return None


def _workers(parent: int) -> list[int]:
    """The processes that multiprocessing has started for one, which read data."""
    threads = Path(f"/proc/{parent}/task").glob("*/children")
    children = [int(pid) for file in threads for pid in file.read_text().split()]
    return sorted(pid for pid in children if b"spawn_main" in (_command(pid) or b""))


def _training(home: Path, name: str, case: Case) -> Training:
    folder = case in FOLDERS
    path = home / f"{name}_data"
    _folder(path) if folder else _parquet(path)
    case.spoil(path)
    options = ("--data.name", "folder" if folder else "parquet", "--data.path", str(path), *STEPS)
    return Training(home / name, options, cache=home / "compiled")


def all_of(home: Path) -> list[Tally]:
    """Every count of this module."""
    return [refused(home), skipped(home), killed_workers(home)]
