"""What lies on disk is damaged, lost, full, or wanted by two: real runs that must notice, and lose nothing."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from jaxdiff.train import Checkpoints
from tests.faults.chains import Reference, reference
from tests.faults.processes import (
    Life,
    Training,
    differing,
    leaves,
    log_problems,
    logged,
    refusal_problems,
    saved,
    template,
    whole_steps,
)
from tests.faults.tally import Tally
from tests.train.damage import damages

STEPS = 12
KEPT_FOR_THE_DISK = 6_000_000  # bytes: the run's folder with three of the tiny run's checkpoints, and some room


class Stand:
    """A run killed after its second checkpoint, to be copied and damaged: steps 3 and 6 are saved, 9 is not.

    Args:
        home: an empty folder.
        cache: folder of compiled programs; None: one in `home`.
    """

    def __init__(self, home: Path, cache: Path | None = None) -> None:
        self.home, self.cache = home, cache or home / "compiled"
        self.expected: Reference = reference(home, STEPS, self.cache)
        whole = Training(home / "whole", ("--train.steps", str(STEPS)), cache=self.cache)
        with whole.start(killed_at=(1, r"checkpoints/9\.orbax-checkpoint-tmp$")) as life:
            if life.end() != -signal.SIGKILL or whole_steps(whole.folder) != [3, 6]:
                raise AssertionError(f"it was to be killed with steps 3 and 6 saved: {life}")
        self.whole = whole.folder

    @contextlib.contextmanager
    def copy(self, name: str) -> Iterator[Training]:
        """The run once more, to be damaged and started."""
        folder = self.home / name
        shutil.copytree(self.whole, folder)
        yield Training(folder, ("--train.steps", str(STEPS)), cache=self.cache)
        shutil.rmtree(folder)

    def end_problems(self, folder: Path) -> list[str]:
        """What is not as in the run left alone."""
        if whole_steps(folder)[-1:] != [STEPS]:
            return [f"it ended with checkpoints of {whole_steps(folder)}"]
        problems = [f"at the end {name} is another" for name in differing(saved(folder), self.expected.leaves)[:3]]
        short = [] if len(logged(folder)) == STEPS else [f"it logged {len(logged(folder))} steps of {STEPS}"]
        return problems + short + log_problems(folder, self.expected.lines)


def damaged_files(stand: Stand, *, flips: int = 2, seed: int = 0) -> Tally:
    """Each file of the newest checkpoint damaged in each way: noticed, and the step before taken, bit for bit."""
    tally = Tally("a damaged file of a checkpoint: noticed and named, the step before is restored")
    good = {step: saved(stand.whole, step) for step in (3, 6)}
    shapes, harmless = template(stand.whole), 0
    with stand.copy("damaged") as training:
        newest = training.folder / "checkpoints" / "6"
        for kind, file in damages(newest, flips, seed):
            said: list[str] = []
            with Checkpoints(newest.parent, readonly=True, say=said.append) as checkpoints:
                found = leaves(*checkpoints.restore(shapes))
            name = f"{kind} of {file.relative_to(newest)}"
            if not differing(found, good[6]):  # nothing that is read was changed
                harmless += 1
                continue
            problems = differing(found, good[3])[:3]
            told = any(f"{newest} cannot be read" in line for line in said) and "step 3" in said[-1]
            problems += [] if told else [f"not said: {said}"]
            tally.add(kind, [f"{name}: {problem}" for problem in problems])
    tally.notes.append(f"{harmless} more damages changed nothing that is read: the newest step came back bit for bit")
    return tally


def _half_written(checkpoints: Path, draw: random.Random) -> None:
    (checkpoints / "6").rename(checkpoints / "6.orbax-checkpoint-tmp")
    some = sorted(path for path in checkpoints.glob("6.orbax-checkpoint-tmp/**/*") if path.is_file())
    for path in draw.sample(some, len(some) // 2):
        path.unlink()


def _some_file(kind: str) -> Callable[[Path, random.Random], None]:
    def damage(checkpoints: Path, draw: random.Random) -> None:
        every = damages(checkpoints / "6", 1, draw.randrange(2**31))
        names = sorted(path for path in (checkpoints / "6").glob("*/**/*") if path.is_file() and path.stat().st_size)
        target = draw.choice([path for path in names if path.name != "commit_success.txt"])
        next(None for made, path in every if (made, path) == (kind, target))

    return damage


def _without_files(checkpoints: Path, draw: random.Random) -> None:
    shutil.rmtree(checkpoints / "6")
    (checkpoints / "6").mkdir()


DAMAGES: dict[str, Callable[[Path, random.Random], None]] = {
    **{kind: _some_file(kind) for kind in ("flip", "truncate", "delete", "empty")},
    "half-written step": _half_written,
    "a step of no files": _without_files,
}


def damaged_runs(stand: Stand, kinds: list[str] | None = None, *, seed: int = 0) -> Tally:
    """`train.py` started on a damaged run: it says so, goes back, and ends as the run left alone, bit for bit. The log
    has a torn last line as well."""
    tally = Tally("train.py on a damaged newest checkpoint goes on from the step before, bit for bit")
    draw = random.Random(seed)
    for kind in kinds or list(DAMAGES):
        with stand.copy(f"run, {kind}".replace(" ", "_")) as training:
            DAMAGES[kind](training.folder / "checkpoints", draw)
            with (training.folder / "metrics.jsonl").open("a") as log:
                log.write('{"step": 10, "lo')
            with training.start() as life:
                problems = [] if life.end() == 0 else [f"it failed: {life}"]
            if "going on after step 3\n" not in life.out:
                problems.append(f"it did not go on after step 3: {life}")
            if kind != "half-written step" and "WARNING: checkpoint" not in life.err:
                problems.append(f"it did not warn: {life}")
            tally.add(kind, problems + stand.end_problems(training.folder))
    return tally


def none_good(stand: Stand) -> Tally:
    """Nothing to go on from, though there was: refused, and nothing is touched."""
    tally = Tally("no good checkpoint: refused in one line, never a silent fresh start")

    def damage_all(checkpoints: Path) -> None:
        for step in (3, 6):
            (checkpoints / str(step) / "manifest" / "metadata").write_bytes(b"")

    def empty(checkpoints: Path) -> None:
        for step in (3, 6):
            shutil.rmtree(checkpoints / str(step))

    for kind, spoil in (("all damaged", damage_all), ("steps lost", empty), ("folder lost", shutil.rmtree)):
        with stand.copy(kind.replace(" ", "_")) as training:
            spoil(training.folder / "checkpoints")
            before = _content(training.folder)
            with training.start() as life:
                problems = refusal_problems(life, "no checkpoint in")
            untouched = before.items() <= _content(training.folder).items()
            tally.add(kind, problems if untouched else [*problems, "files were changed"])
    return tally


def _content(folder: Path) -> dict[str, bytes]:
    # The configuration notes where the run now stands, and the lock who holds it.
    files = (path for path in folder.rglob("*") if path.is_file() and path.name not in ("config.json", "lock"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def second_training(stand: Stand) -> Tally:
    """A second `train.py` in a folder where one trains; then the first is killed, and its folder is free again."""
    tally = Tally("a second training in one folder is refused, and the first is not disturbed")
    with stand.copy("two") as training:
        first = _stopped_amid(training)
        with first, training.start() as second:
            problems = refusal_problems(second, "in use", str(first.process.pid))
        tally.add("while the first trains", problems)
        with training.start() as third:
            problems = [] if third.end() == 0 else [f"a killed run still holds its folder: {third}"]
        tally.add("after the first was killed", problems + stand.end_problems(training.folder))
    return tally


def _stopped_amid(training: Training) -> Life:
    """A process that trains and is held there by SIGSTOP, as a slow machine would hold it."""
    life = training.start()
    life.until(lambda: "compiled the training step" in life.out)
    life.send(signal.SIGSTOP)
    return life


def torn_programs(stand: Stand) -> Tally:
    """Compiled programs kept on disk, cut short as by a kill while they were written: compiled anew."""
    tally = Tally("compiled programs on disk that are cut short do no harm")
    with stand.copy("torn") as training:
        cache = stand.home / "compiled_torn"
        shutil.copytree(training.compiled, cache)
        for path in (cache / "jax").iterdir():
            os.truncate(path, path.stat().st_size // 2)
        with Training(training.folder, training.options, cache=cache).start() as life:
            problems = [] if life.end() == 0 else [f"it failed: {life}"]
        tally.add("all of them", problems + stand.end_problems(training.folder))
    return tally


# --- a full disk


@contextlib.contextmanager
def small_disk(place: Path, size: int) -> Iterator[bool]:
    """A file system of `size` bytes at `place`; False where this process may not mount one."""
    place.mkdir(parents=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place], capture_output=True)
    if mounted.returncode:
        yield False
        return
    try:
        yield True
    finally:
        subprocess.run(["umount", place], check=True)


def full_disk(home: Path) -> Tally:
    """The disk is full from the second save on, and has room again later: the run goes on, or stops, as configured."""
    tally = Tally(
        "a full disk during a save: said, the checkpoint before is kept, the run goes on or stops as configured"
    )
    stand = Stand(home)
    for on_error in ("continue", "stop"):
        with small_disk(home / f"disk_{on_error}", KEPT_FOR_THE_DISK) as mounted:
            if not mounted:
                tally.notes.append("no file system could be mounted here: files were limited in size instead")
            training = Training(
                home / f"disk_{on_error}" / "run",
                ("--train.steps", str(STEPS), "--checkpoint.on_error", on_error),
                cache=home / "compiled",
                logs=home / f"logs_{on_error}",
            )
            tally.add(f"on_error {on_error}", _filled(training, stand, on_error, mounted))
    return tally


def _filled(training: Training, stand: Stand, on_error: str, mounted: bool) -> list[str]:
    ballast = training.folder.parent / "ballast"
    with training.start(limits=None if mounted else _small_files) as life:
        if mounted:
            life.until(lambda: 3 in whole_steps(training.folder))
            life.send(signal.SIGSTOP)
            _fill(ballast)
            life.send(signal.SIGCONT)
        status = life.end()
    problems = refusal_problems(life, "could not be saved") if status else [f"a full disk went unnoticed: {life}"]
    if on_error == "continue" and "training goes on" not in life.err:
        problems.append(f"it did not go on: {life}")
    ballast.unlink(missing_ok=True)
    kept = whole_steps(training.folder)
    if mounted and kept[:1] != [3]:
        problems.append(f"checkpoints of {kept} were left")
    with training.start() as life:
        problems += [] if life.end() == 0 else [f"with room again it failed: {life}"]
    return problems + stand.end_problems(training.folder)


def _fill(ballast: Path) -> None:
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def _small_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (16_384, 16_384))


def all_of(home: Path, *, flips: int = 2) -> list[Tally]:
    """Every count of this module but that of `full_disk`."""
    stand = Stand(home / "stand")
    return [
        damaged_files(stand, flips=flips),
        damaged_runs(stand),
        none_good(stand),
        second_training(stand),
        torn_programs(stand),
    ]
