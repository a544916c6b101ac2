"""One training step, compiled from shapes alone for devices that are simulated or only described; no weight is made.

    JAX_NUM_CPU_DEVICES=8 python -m benchmarks.speed.partitioned '{"network": "dit_xl2", "fsdp": 8, "batch": 32}'

prints a line of JSON (`Case`, `row`). With ``"target": "tpu"`` the program is the one that libtpu's compiler makes for
a TPU v5p of that many chips (`jax.experimental.topologies`; no TPU is needed, the package libtpu is). Attention has its
plain form, whose products a trace shows.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import sys
import time
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import Mesh

from benchmarks.speed import ideal
from benchmarks.speed.collectives import count
from benchmarks.speed.work import forward_work, products
from benchmarks.training_step import Prepared, image_shape, prepared
from configs.imagenet64_adm import config as adm_64
from configs.imagenet256_dit_xl2 import config as dit_xl2
from jaxdiff.config import Config, build_network
from jaxdiff.networks import UNet, dit
from jaxdiff.networks.backend import attention_form
from jaxdiff.train import make_mesh
from jaxdiff.train.step import Given

TPU = {8: "v5p:2x2x2", 64: "v5p:4x4x4", 1024: "v5p:8x8x16"}
"""Chips -> the topology's name; a chip is one device (its two cores work as one)."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A step and where it runs.

    Args:
      network: of `configurations`.
      data, fsdp, tensor: the mesh.
      batch: samples of each of its data x fsdp parts of the batch.
      target: "cpu", simulated devices, or "tpu", a described TPU v5p.
    """

    network: str
    data: int = 1
    fsdp: int = 1
    tensor: int = 1
    batch: int = 32
    target: str = "cpu"

    @property
    def devices(self) -> int:
        return self.data * self.fsdp * self.tensor

    @property
    def mesh(self) -> str:
        """
        >>> Case("dit_xl2", data=8, tensor=2).mesh
        'data 8 x tensor 2'
        """
        sizes = {"data": self.data, "fsdp": self.fsdp, "tensor": self.tensor}
        return " x ".join(f"{axis} {size}" for axis, size in sizes.items() if size > 1) or "one device"


def configurations() -> dict[str, Config]:
    """The published two, and small ones with their structure that show that all of it runs."""
    classes: dict[str, Any] = {"num_classes": 10, "dtype": "bfloat16"}
    tiny = dit("S", 2, depth=3, width=256, heads=2, remat="full", **classes)
    small = UNet(8, 3, 6, 32, (1, 2), 1, (), scale_shift=True, residual_resampling=True, null_class=False, **classes)
    data = dataclasses.replace(dit_xl2.data, image_size=16)
    return {
        "dit_xl2": dit_xl2,
        "adm_64": adm_64,
        "dit_tiny": dataclasses.replace(dit_xl2, network=tiny, data=data, codec=None),
        "unet_tiny": dataclasses.replace(adm_64, network=small),
    }


def devices_of(case: Case) -> list[jax.Device]:
    """The devices, which need not exist.

    Raises:
      ValueError: a TPU of a size that is not in `TPU`, or too few simulated devices.
    """
    if case.target == "tpu":
        if case.devices not in TPU:
            raise ValueError(f"a TPU of {case.devices} chips is not described here; take {', '.join(map(str, TPU))}")
        return list(topologies.get_topology_desc(TPU[case.devices], platform="tpu").devices)
    if len(jax.devices()) < case.devices:
        raise ValueError(f"{case.mesh} needs JAX_NUM_CPU_DEVICES={case.devices}, it is {len(jax.devices())}")
    return jax.devices()[: case.devices]


def configured(case: Case) -> Config:
    config = configurations()[case.network]
    size = case.batch * case.data * case.fsdp
    return dataclasses.replace(config, train=dataclasses.replace(config.train, batch_size=size))


def step_of(case: Case) -> tuple[Prepared, Mesh]:
    mesh = make_mesh(case.data, case.fsdp, case.tensor, devices=devices_of(case))
    return prepared(configured(case), mesh), mesh


def row(case: Case) -> dict[str, Any]:
    """What the compiled step sends, computes and keeps, beside the closed forms of `benchmarks.speed.ideal`; and what
    making the state of step 0 keeps."""
    config = configured(case)
    network, (size, *_) = config.network, image_shape(config)
    cpu = case.target == "cpu"
    with attention_form("plain"):
        parts, _ = step_of(case)
        begin = time.perf_counter()
        traced = parts.step.jitted.trace(parts.template, parts.batch, Given())
        compiled = traced.lower().compile()
        seconds = time.perf_counter() - begin
    counted = count(compiled.as_text(), case.devices, slices=cpu)
    memory: Any = compiled.memory_analysis()
    begin = time.perf_counter()
    making: Any = jax.jit(parts.make_state).lower(parts.template.key).compile().memory_analysis()
    making_seconds = time.perf_counter() - begin
    half = 4 if cpu or network.dtype == "float32" else 2  # the CPU's compiler carries bfloat16 as float32
    layout = ideal.Layout(case.data, case.fsdp, case.tensor, case.batch, size, half)
    closed = ideal.sent(network, layout, parts.template.params)
    accelerator = dataclasses.replace(layout, half=2)
    once, device = ideal.state_bytes(parts.template)
    forward = forward_work(build_network(config), image_shape(config), case.batch, labelled=True)
    return {
        **dataclasses.asdict(case),
        "mesh": case.mesh,
        "devices": case.devices,
        "parameters": parts.parameters,
        "seconds": seconds,
        "sent": counted.sent,
        "sent_by_kind": counted.by_kind(),
        "sent_by_source": dict(list(counted.by_source().items())[:8]),
        "ideal_sent": closed._asdict(),
        "ideal_sent_in_bfloat16": ideal.sent(network, accelerator, parts.template.params)._asdict(),
        "operations": products(traced.jaxpr.jaxpr).flops,
        "ideal_operations": ideal.step_operations(network, layout, parts.template.params),
        "device_operations": counted.flops if cpu else None,
        "model_operations": 3 * forward.flops * case.data * case.fsdp,
        "forward_bytes": forward.bytes,
        "state": once,
        "state_device": device,
        "arguments": memory.argument_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "making": making.output_size_in_bytes + making.temp_size_in_bytes,
        "making_seconds": making_seconds,
    }


def depths(network: str, turns: int, few: int = 4) -> dict[str, Any]:
    """Seconds to trace and to compile a DiT as it is and with a few blocks, in turns, on one device."""
    config = configurations()[network]
    counts = (few, config.network.depth)
    found: dict[str, dict[int, list[float]]] = {"trace": {n: [] for n in counts}, "compile": {n: [] for n in counts}}
    for turn in range(turns + 1):  # the first warms up
        for depth in counts if turn % 2 == 0 else counts[::-1]:
            jax.clear_caches()
            parts = prepared(dataclasses.replace(config, network=dataclasses.replace(config.network, depth=depth)))
            begin = time.perf_counter()
            lowered = parts.step.jitted.trace(parts.template, parts.batch, Given()).lower()
            traced = time.perf_counter()
            lowered.compile()
            if turn:
                found["trace"][depth].append(traced - begin)
                found["compile"][depth].append(time.perf_counter() - traced)
    medians = {what: {n: statistics.median(times) for n, times in by.items()} for what, by in found.items()}
    ratios = {what: by[counts[1]] / by[few] for what, by in medians.items()}
    return {"network": network, "depths": counts, "turns": turns, "seconds": medians, "ratios": ratios, "all": found}


def main(arguments: list[str]) -> None:
    jax.config.update("jax_enable_compilation_cache", False)  # compiling is what is looked at
    asked = json.loads(arguments[0])
    answer = depths(**asked["depths"]) if "depths" in asked else row(Case(**asked))
    sys.stdout.write(json.dumps(answer) + os.linesep)


if __name__ == "__main__":
    main(sys.argv[1:])
