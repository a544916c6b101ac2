"""A published model on several processes: what one of the processes of `test_published.py` runs.

    python -m tests.parallel.published FOLDER OUT [ADDRESS COUNT INDEX]

Writes the bytes that this process has read of each file, its parameters gathered, and samples.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

import jaxdiff
from jaxdiff.train import make_mesh


def main(folder: str, out: str, *process: str) -> None:
    if process:
        address, count, index = process
        jax.distributed.initialize(address, int(count), int(index))
    preadv, read = os.preadv, dict[str, int]()

    def counted(number: int, buffers: Any, start: int) -> int:
        got = preadv(number, buffers, start)
        name = os.readlink(f"/proc/self/fd/{number}")
        read[name] = read.get(name, 0) + got
        return got

    os.preadv = counted  # type: ignore[assignment]
    model = jaxdiff.load(folder, mesh=make_mesh(fsdp=2))
    params = {name: part.params for name, part in model.parts.items()}
    whole = jax.tree.leaves(multihost_utils.process_allgather(params, tiled=True) if process else params)
    (Path(out) / f"read_{jax.process_index()}.json").write_text(json.dumps(read))
    if jax.process_index() == 0:
        np.savez(Path(out) / "params.npz", *map(np.asarray, whole))


if __name__ == "__main__":
    main(*sys.argv[1:])
