"""Checkpoints of two processes: checked by both, and what one of them cannot read, neither takes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.train.damage import damages

ROOT = Path(__file__).resolve().parents[2]
CODE = """
import json, sys, jax
folder, port, index, count, save = sys.argv[1], *map(int, sys.argv[2:])
if count > 1:
    jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=count, process_id=index)
import dataclasses
from jaxdiff.train import Checkpoints, create_sharded_state, make_mesh, make_optimizer, state_template
from tests.train.standins import Loss, Net
optimizer, _ = make_optimizer(lr=1e-2, steps=100)
parts = Net(16), optimizer, Loss(), jax.random.key(7), make_mesh(data=1, fsdp=count)
said = []
with Checkpoints(folder, say=said.append, readonly=not save) as checkpoints:
    if save:
        state = create_sharded_state(*parts)
        for step in (1, 2):
            checkpoints.save(step, dataclasses.replace(state, step=state.step + step), {"batches": step})
    restored, position = checkpoints.restore(state_template(*parts))
    print(json.dumps([int(restored.step), position["batches"], said]))
"""


def together(folder: Path, count: int, save: bool = False) -> list[Any]:
    """What each of so many processes says."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = [
        subprocess.Popen(
            [sys.executable, "-c", CODE, str(folder), str(port), str(index), str(count), str(int(save))],
            cwd=ROOT,
            env={**os.environ, "JAX_NUM_CPU_DEVICES": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(count)
    ]
    said = []
    for process in running:
        try:
            out, err = process.communicate(timeout=120)
        finally:
            process.kill()
        assert process.returncode == 0, err
        said.append(json.loads(out.splitlines()[-1]))
    return said


@pytest.mark.nightly
def test_both_take_the_same_step_and_so_does_one_alone(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    assert together(folder, 2, save=True) == [[2, 2, []]] * 2
    assert together(folder, 1) == [[2, 2, []]]
    _, file = next(each for each in damages(folder / "2") if "/params/ocdbt.process_1/d/" in str(each[1]))
    first, second = together(folder, 2)
    assert first[:2] == second[:2] == [1, 1]
    named = f"params/{file.relative_to(folder / '2' / 'params').as_posix()}: its checksum does not fit"
    both = [said[0] for said in (first[2], second[2])]
    assert any(named in text for text in both), both
    assert all(named in text or "another process cannot read it" in text for text in both), both
