"""Which rows of a batch a process reads, and that all of them are read once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import pytest

from jaxdiff.data import Pipeline, open_digits
from jaxdiff.data.sources import take
from jaxdiff.train import batch_part, make_mesh


@dataclass(frozen=True)
class Device:
    """As much of a device as a mesh's arithmetic asks for."""

    id: int
    process_index: int


class Mesh:
    """Devices 0, 1, 2, ... of `processes` processes, in the order of the processes."""

    def __init__(self, processes: int, data: int, fsdp: int, tensor: int) -> None:
        each = data * fsdp * tensor // processes
        devices = [Device(i, i // each) for i in range(data * fsdp * tensor)]
        self.devices = np.array(devices, object).reshape(data, fsdp, tensor)
        self.shape = {"data": data, "fsdp": fsdp, "tensor": tensor}


def uneven() -> Mesh:
    """Six devices of three processes, of which the second has half of each of two pairs."""
    mesh = Mesh(1, 3, 1, 2)
    owners = [0, 0, 0, 1, 1, 2]
    mesh.devices = np.array([Device(i, p) for i, p in enumerate(owners)], object).reshape(3, 1, 2)
    return mesh


def parts(monkeypatch: pytest.MonkeyPatch, mesh: Any, processes: int) -> list[tuple[int, int]]:
    found = []
    for index in range(processes):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        found.append(batch_part.__wrapped__(mesh))
    return found


@pytest.mark.parametrize(
    ("processes", "sizes", "expected"),
    [
        (1, (4, 2, 1), [(0, 1)]),
        (2, (2, 1, 1), [(0, 2), (1, 2)]),
        (4, (2, 2, 2), [(0, 4), (1, 4), (2, 4), (3, 4)]),
        (2, (1, 1, 2), [(0, 1), (0, 1)]),  # tensor across processes: both read all
        (4, (2, 1, 2), [(0, 2), (0, 2), (1, 2), (1, 2)]),
        (4, (1, 2, 4), [(0, 2), (0, 2), (1, 2), (1, 2)]),
    ],
)
def test_parts(processes: int, sizes: Any, expected: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert parts(monkeypatch, Mesh(processes, *sizes), processes) == expected


def test_parts_that_overlap_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="does not give 3 processes equal parts"):
        parts(monkeypatch, uneven(), 3)


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_every_record_is_read_once_an_epoch(processes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_digits()
    seen: list[np.ndarray] = []
    for part in parts(monkeypatch, Mesh(processes, 4, 1, 1), processes):
        options: dict[str, Any] = {"batch_size": 96, "seed": 0, "process_index": part[0], "process_count": part[1]}
        with Pipeline(source, **options) as pipeline:
            batches = [next(pipeline) for _ in range(-(-2 * len(source) // 96))]
        seen.append(np.stack([batch["x"].reshape(96 // part[1], -1) for batch in batches]))
    stream = np.concatenate(seen, axis=1).reshape(-1, 64)  # in the order of the global stream
    everything = np.sort(take(source, np.arange(len(source)))["x"].reshape(len(source), -1), axis=0)
    for epoch in range(2):
        part_of = stream[epoch * len(source) : (epoch + 1) * len(source)]
        assert (np.sort(part_of, axis=0) == everything).all()


def test_a_mesh_is_of_all_devices_of_one_process() -> None:
    assert batch_part(make_mesh()) == (0, 1)
