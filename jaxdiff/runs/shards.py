"""Many samples in a folder, written in shards by any number of processes, resumable, and read back.

    samples/index.json                    what was asked: run, checkpoint, number, seed, sampler, labels
    samples/00000000-00000999.npz         samples 0 to 999: arrays by name, x (1000, ...) and the conditions
    samples/00001000-00001999.npz         ...

Sample i is decided by the request and i alone (`jaxdiff.noise.sample_keys`), so it does not matter who draws it.
Process p of P draws the shards p, p + P, p + 2 P, ... on its own devices, without a word to the others; where weights
are split over the devices of several, these draw every shard together, and the same one writes it. A shard is
there whole or not at all (written beside, synced, renamed), and a shard that is there is never drawn again: after a
kill the same command goes on, with as many processes as it likes. Another request into the same folder is refused.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
import zipfile
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jaxdiff.config import ConfigError, as_lead

INDEX = "index.json"
SHARD_SIZE = 1000

Draw = Callable[[int, int], Mapping[str, NDArray[Any]]]
"""``draw(first, n)``: the record of the samples ``first, ..., first + n - 1``."""


@dataclasses.dataclass(frozen=True)
class Request:
    """What a folder of samples holds. Equal requests give equal samples.

    Args:
      num: samples in all.
      shape: of one: (H, W, C), or (D,) of a point.
      made_by: everything else that decides a sample: run, step, seed, sampler, ...; JSON.
      shard_size: samples a shard; the last may have fewer.
    """

    num: int
    shape: tuple[int, ...]
    made_by: Mapping[str, Any]
    shard_size: int = SHARD_SIZE

    def __post_init__(self) -> None:
        if self.num < 1 or self.shard_size < 1:
            raise ConfigError(f"num and shard_size must be at least 1, got {self.num} and {self.shard_size}")

    @property
    def shards(self) -> list[range]:
        """The samples of each shard.

        >>> Request(5, (8, 8, 1), {}, shard_size=2).shards
        [range(0, 2), range(2, 4), range(4, 5)]
        """
        return [range(a, min(a + self.shard_size, self.num)) for a in range(0, self.num, self.shard_size)]

    def to_json(self) -> dict[str, Any]:
        """As it stands in the index."""
        stored: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return stored


def shard_name(samples: range) -> str:
    """File of a shard.

    >>> shard_name(range(1000, 2000))
    '00001000-00001999.npz'
    """
    return f"{samples.start:08d}-{samples.stop - 1:08d}.npz"


def read_request(folder: str | os.PathLike[str]) -> Request | None:
    """What was asked of a folder; None where there is no index.

    Raises:
      ConfigError: an index that cannot be read.
    """
    file = Path(folder) / INDEX
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return Request(found["num"], tuple(found["shape"]), found["made_by"], found["shard_size"])
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{file} cannot be read as the index of a folder of samples: {error}") from error


def claim_samples(folder: str | os.PathLike[str], request: Request, *, write: bool = True) -> None:
    """Makes the folder with its index, or goes on in one whose index says the same.

    Args:
      folder: where the shards go; made when missing.
      request: what is asked.
      write: False only compares.

    Raises:
      ConfigError: the folder holds something else, or other samples; the first differences are named.
    """
    folder = Path(folder)
    there = read_request(folder)
    if there is not None:
        old, new = _flat(there.to_json()), _flat(request.to_json())
        changed = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
        if changed:
            shown = ", ".join(f"{name} ({old.get(name)} there, {new.get(name)} here)" for name in changed[:4])
            raise ConfigError(f"{folder} holds other samples: {shown}; choose another --out, or ask for the same")
        return
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigError(f"{folder} is there already and holds no samples: choose another --out")
        if write:
            folder.mkdir(parents=True, exist_ok=True)
            _write_whole(folder / INDEX, lambda file: file.write(json.dumps(request.to_json(), indent=1).encode()))
    except OSError as error:
        raise ConfigError(f"{folder} cannot be used: {error.strerror}") from error


def write_shards(
    folder: str | os.PathLike[str],
    request: Request,
    draw: Draw,
    *,
    part: tuple[int, int] = (0, 1),
    together: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> int:
    """Draws and writes the shards that are missing, of this process's part.

    Args:
      folder: claimed by `claim_samples`.
      request: what is asked.
      draw: makes samples. The next are drawn while a shard is being written.
      part: (p, P): every P-th shard, from the p-th.
      together: all processes draw each shard, and write those of their part.
      say: gets a line for each shard.

    Returns:
      How many shards were drawn.

    Raises:
      ConfigError: a shard cannot be written, or as ``draw``.

    >>> import tempfile
    >>> request = Request(5, (2,), {"seed": 0}, shard_size=2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     claim_samples(folder, request)
    ...     count = write_shards(folder, request, lambda first, n: {"x": np.full((n, 2), first, np.float32)})
    ...     again = write_shards(folder, request, lambda first, n: {"x": np.zeros((n, 2), np.float32)})
    ...     points = load_samples(folder)["x"]
    >>> count, again, points[:, 0].tolist()
    (3, 0, [0.0, 0.0, 2.0, 2.0, 4.0])
    """
    folder, mine = Path(folder), request.shards[part[0] :: part[1]]
    asked = request.shards if together else mine
    absent = [number for number, samples in enumerate(asked) if not (folder / shard_name(samples)).exists()]
    missing = [asked[number] for number in (as_lead(absent) if together else absent)]
    if len(missing) < len(asked):
        say(f"{len(asked) - len(missing)} of {len(asked)} shards are there already")

    def store(samples: range, drawn: Mapping[str, NDArray[Any]]) -> None:
        arrays: dict[str, Any] = dict(drawn)
        _write_whole(folder / shard_name(samples), lambda file: np.savez_compressed(file, **arrays))

    with ThreadPoolExecutor(1) as writer:
        writing: Future[None] | None = None
        try:
            for done, samples in enumerate(missing):
                drawn = draw(samples.start, len(samples))
                if writing is not None:
                    writing.result()
                writing = writer.submit(store, samples, drawn) if samples in mine else None
                say(f"shard {done + 1} of {len(missing)}: samples {samples.start} to {samples.stop - 1}")
            if writing is not None:
                writing.result()
        except OSError as error:
            raise ConfigError(f"{folder} cannot be written: {error.strerror}") from error
    return len(missing)


def wait_for_shards(folder: str | os.PathLike[str], request: Request, *, every: float = 0.2) -> None:
    """Waits until all shards are there, of all processes. That they live is not this function's business.

    Args:
      folder: as for `write_shards`.
      request: what is asked.
      every: seconds between two looks.
    """
    missing = request.shards
    while missing := [samples for samples in missing if not (Path(folder) / shard_name(samples)).exists()]:
        time.sleep(every)


def load_samples(folder: str | os.PathLike[str]) -> dict[str, NDArray[Any]]:
    """All samples of a folder that `jaxdiff sample --out FOLDER` has written, in order.

    Args:
      folder: with an index and all of its shards.

    Returns:
      A record: ``x`` ``(N, ...)`` as its codec stores it, and the conditions by name.

    Raises:
      ConfigError: no folder of samples, or one that is not complete or damaged.
    """
    folder = Path(folder).expanduser()
    request = read_request(folder)
    if request is None:
        raise ConfigError(f"{str(folder)!r} is no folder of samples: it has no {INDEX}")
    missing = [samples for samples in request.shards if not (folder / shard_name(samples)).exists()]
    if missing:
        count = sum(map(len, missing))
        raise ConfigError(
            f"{folder} is not complete: {request.num - count} of {request.num} samples are there; the same command "
            "again draws the others"
        )
    found: dict[str, NDArray[Any]] = {}
    for samples in request.shards:
        file = folder / shard_name(samples)
        try:
            with file.open("rb") as opened, np.load(opened, allow_pickle=False) as arrays:
                if found and set(arrays.files) != set(found):
                    raise KeyError(f"it holds {', '.join(arrays.files)}, others {', '.join(found)}")
                for name in arrays.files:
                    part = arrays[name]
                    whole = found.setdefault(name, np.empty((request.num, *part.shape[1:]), part.dtype))
                    if part.dtype.kind == "U" and part.dtype > whole.dtype:  # of longer texts
                        whole = found[name] = whole.astype(part.dtype)
                    whole[samples.start : samples.stop] = part
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise ConfigError(f"{file} cannot be read ({error}): remove it, and draw it again") from error
    return found


def _write_whole(file: Path, write: Callable[[Any], Any]) -> None:
    # Whoever dies on the way leaves a .partial file, which the next one overwrites: a shard has one owner at a time.
    partial = file.with_name(f"{file.name}.partial")
    with partial.open("wb") as out:
        write(out)
        out.flush()
        os.fsync(out.fileno())
    partial.replace(file)


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix: tree}
    flat: dict[str, Any] = {}
    for key, branch in tree.items():
        flat |= _flat(branch, f"{prefix}.{key}".lstrip("."))
    return flat
