"""Twenty steps and some samples on each of several meshes: what one of the processes of `test_scaling.py` runs.

    python -m tests.parallel.job CASES.json OUT.json [float64] [ADDRESS COUNT INDEX]

A case is [network, devices, data, fsdp, tensor]; its devices are spread evenly over the processes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import config as cfg
from jaxdiff import train as training
from jaxdiff.networks import DiT, UNet
from jaxdiff.networks.layers import Conv3x3, Linear
from jaxdiff.noise import sample_keys
from jaxdiff.runs.run import Run
from jaxdiff.train.step import Given

ROOT = Path(__file__).resolve().parents[2]
STEPS, BATCH, SAMPLES = 20, 16, 8
NETWORKS: dict[str, Any] = {
    "unet": UNet(
        image_size=8,
        in_channels=1,
        width=8,
        multipliers=(1, 2),
        blocks=1,
        attention_resolutions=(),  # the middle has one
        heads=4,
        num_classes=10,
    ),
    "dit": DiT(in_channels=1, width=16, depth=2, heads=4, num_classes=10, frequencies=16),
    "dit, int8": DiT(in_channels=1, width=48, depth=2, heads=4, num_classes=10, frequencies=16),  # Adam's moments
}


def in_double() -> None:
    """The same programs with float64 wherever they say float32."""
    jax.config.update("jax_enable_x64", True)
    setattr(jnp, "float32", jnp.float64)  # noqa: B010
    for layer in (Linear, Conv3x3):
        vars(layer)["__init__"].__kwdefaults__["dtype"] = "float64"


FIRST: dict[str, training.TrainState] = {}  # states of step 0, on one device


def one(case: list[Any], double: bool) -> dict[str, Any]:
    name, count, *sizes = case
    each = count // jax.process_count()
    devices = [d for p in range(jax.process_count()) for d in [d for d in jax.devices() if d.process_index == p][:each]]
    mesh = training.make_mesh(*sizes, devices=devices)

    base = cfg.load_config_file(ROOT / "configs" / "digits_unet.py")
    config = dataclasses.replace(
        base,
        network=dataclasses.replace(NETWORKS[name], dtype="float64" if double else "float32"),
        train=dataclasses.replace(base.train, batch_size=BATCH, steps=100),
        optimizer=dataclasses.replace(
            base.optimizer,
            schedule="constant",
            warmup=0,
            lr=1e-2,
            state_dtype="int8" if name.endswith("int8") else "float32",
        ),
        sample=dataclasses.replace(base.sample, steps=4, guide=()),
    )
    source = cfg.build_source(config)
    config = cfg.resolve(config, source)
    net, loss, key = cfg.build_network(config), cfg.build_loss(config), jax.random.key(0)
    optimizer, _ = training.make_optimizer(steps=config.train.steps, **dataclasses.asdict(config.optimizer))
    template = training.state_template(net, optimizer, loss, key, mesh)
    if (jax.process_count(), mesh.size) in ((1, 1), (1, 8)):
        state = training.create_sharded_state(net, optimizer, loss, key, mesh)
    else:  # the same, without compiling it for each mesh
        if name not in FIRST:
            FIRST[name] = jax.jit(lambda key: training.create_state(net, optimizer, loss, key))(key)
        shardings = jax.tree.map(lambda leaf: leaf.sharding, template)
        state = jax.jit(lambda state: state, out_shardings=shardings)(FIRST[name])
    step = training.compile_step(net=net, loss=loss, optimizer=optimizer, ema=config.ema, template=template)
    given = jax.device_put(
        Given(cfg.build_codec(config)), jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    )
    losses = []
    with cfg.build_pipeline(config, source, part=training.batch_part(mesh)) as data:
        for _ in range(STEPS):
            state, metrics = step(state, training.put_batch(next(data), training.batch_sharding(mesh)), given)
            losses.append(float(metrics["loss"]))

    run = Run.of(config, state.params, STEPS, mesh)
    images = run.sample(0, SAMPLES, {"label": np.arange(SAMPLES, dtype=np.int32)}, decode=False)
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    parts = training.batch_sharding(mesh)
    keys = jax.jit(lambda: sample_keys(jax.random.key(0), 0, SAMPLES), out_shardings=parts)()
    prior = jax.jit(lambda keys: config.process.prior_sample(keys, run.shape, 1.0), out_shardings=whole)
    noise = np.asarray(prior(keys))
    held = sum(leaf.addressable_shards[0].data.size for leaf in jax.tree.leaves((state.params, state.ema)))
    return {
        "losses": losses,
        "images": np.round((np.clip(images, -1, 1) + 1) * 127.5, 3).tolist(),
        "noise": hashlib.sha256(noise.tobytes()).hexdigest(),
        "held": held,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
    }


def main(cases: str, out: str, *rest: str) -> None:
    double = rest[:1] == ("float64",)
    if process := rest[double:]:
        address, count, index = process
        jax.distributed.initialize(address, int(count), int(index))
    if double:
        in_double()
    found = [one(case, double) for case in json.loads(Path(cases).read_text())]
    if jax.process_index() == 0:
        Path(out).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
