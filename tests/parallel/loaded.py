"""A run loaded, sampled and evaluated on several meshes: what one of the processes of `test_load.py` runs.

    python -m tests.parallel.loaded RUN OUT MESHES [ADDRESS COUNT INDEX]

MESHES is JSON: by name [data, fsdp, tensor], 8 devices each. OUT gets a folder for each mesh.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import evaluate
import jaxdiff
import sample
from jaxdiff.commands.sample import Options, mesh_of
from jaxdiff.config import MeshConfig, build_loss, build_network
from jaxdiff.train import make_mesh, make_optimizer, state_template
from jaxdiff.train.checksum import leaf_sums

SAMPLES = ("--label", "1", "2", "3", "--num", "21", "--steps", "3", "--sampler", "ddpm", "--guide", "cfg:2")
FIGURES = ("--num", "12", "--batch_size", "12", "--steps", "2", "--draws", "2", "--method")


def programs(run: Any, out: Path, *options: str, methods: Sequence[str], noise: bool) -> None:
    """A file, a folder and figures by the commands, all of numbers that no mesh divides; and what samples came from."""
    path = str(run.folder)
    sample.main([path, *SAMPLES, "--batch_size", "3", "--out", str(out / "grid.npz"), *options])
    sample.main([path, *SAMPLES, "--shard_size", "5", "--out", str(out / "folder"), *options])
    evaluate.main([path, *FIGURES, *methods, "--out", str(out / "figures.json"), *options])
    if noise:
        label = {"label": np.arange(3)}
        record = run.sample(3, 3, label, sampler="ddpm", steps=3, guide=2.0)
        begin = run.invert(record, label, sampler="ddim", steps=3)
        if jax.process_index() == 0:
            np.save(out / "noise.npy", begin)


def held(device: jax.Device) -> dict[int, int]:
    """Bytes of all buffers of a device, by their place."""
    shards = (shard for array in jax.live_arrays() for shard in array.addressable_shards if shard.device == device)
    return {shard.data.unsafe_buffer_pointer(): shard.data.nbytes for shard in shards}


def one(path: Path, out: Path, sizes: list[int]) -> dict[str, Any]:
    mesh, device = make_mesh(*sizes), jax.local_devices()[1]
    before = held(device)
    run = jaxdiff.load(path, mesh=mesh)
    added = sum(size for place, size in held(device).items() if place not in before)
    params = run.denoise.params
    optimizer, _ = make_optimizer(lr=1e-3, steps=10)
    state = state_template(build_network(run.config), optimizer, build_loss(run.config), jax.random.key(0), mesh)
    as_trained = jax.tree.map(lambda leaf, wanted: leaf.sharding == wanted.sharding, params, state.ema["ema"])
    half = jaxdiff.load(path, mesh=mesh, dtype="bfloat16", ema=False).denoise.params
    out.mkdir(exist_ok=True)
    several = jax.process_count() > 1
    asked = [f"--mesh.{axis}={size}" for axis, size in zip(mesh.axis_names, sizes, strict=True)]
    programs(run, out, *asked, methods=["elbo" if several or sizes[2] > 1 else "ode"], noise=several)
    return {
        "as_trained": all(jax.tree.leaves(as_trained)),
        "added": added,
        "shards": [[list(leaf.shape), leaf.addressable_data(0).nbytes] for leaf in jax.tree.leaves(params)],
        "half": sum(leaf.addressable_data(0).nbytes for leaf in jax.tree.leaves(half)),
        "folder": [
            mesh_of(Options(mesh=MeshConfig(**sizes)), apart=True).size
            for sizes in ({}, {"fsdp": 4}, {"fsdp": 8}, {"data": 2, "fsdp": 4})
        ],
        "sums": leaf_sums([*jax.tree.leaves(params), jax.numpy.arange(6.0)]),
    }


def main(path: str, out: str, meshes: str, *process: str) -> None:
    if process:
        address, count, index = process
        jax.distributed.initialize(address, int(count), int(index))
    found = {name: one(Path(path), Path(out) / name, sizes) for name, sizes in json.loads(meshes).items()}
    if jax.process_index() == 0:
        (Path(out) / f"found_{jax.process_count()}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
