"""Damage to a checkpoint's files, one kind after another: what tests of checkpoints make, and count."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

KINDS = ("flip", "truncate", "delete", "empty")


def damages(step: Path, flips: int = 1, seed: int = 0) -> Iterator[tuple[str, Path]]:
    """Damages each file of a step's folder in each way, and mends it when asked for the next one.

    Args:
        step: the folder of one step.
        flips: how many bits are flipped in a file, one at a time, each at a random place.
        seed: of these places.

    Yields:
        What was done, and the file, while it is damaged. A file of no bytes can only be deleted.
    """
    rng = np.random.default_rng(seed)
    for file in sorted(path for path in step.rglob("*") if path.is_file()):
        whole = file.read_bytes()
        for kind in KINDS:
            for _ in range(flips if kind == "flip" else 1):
                if not whole and kind != "delete":
                    continue
                _damage(file, whole, kind, rng)
                yield kind, file
                file.write_bytes(whole)


def _damage(file: Path, whole: bytes, kind: str, rng: np.random.Generator) -> None:
    if kind == "delete":
        file.unlink()
    elif kind == "empty":
        file.write_bytes(b"")
    elif kind == "truncate":
        file.write_bytes(whole[: int(rng.integers(0, len(whole)))])
    else:
        bits = bytearray(whole)
        place = int(rng.integers(0, 8 * len(whole)))
        bits[place // 8] ^= 1 << place % 8
        file.write_bytes(bytes(bits))


def copied(step: Path, other: Path) -> Path:
    """A copy of a step's folder, to damage."""
    return Path(shutil.copytree(step, other))
