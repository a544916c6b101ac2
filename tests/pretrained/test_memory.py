"""Loading a checkpoint of the size of Stable Diffusion 1.5 takes little more memory than its parameters: 3.4 GB."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxdiff.pretrained.families import family_of
from jaxdiff.pretrained.fields import Fields
from jaxdiff.pretrained.safetensors import write_safetensors
from jaxdiff.pretrained.writing import Published

pytestmark = pytest.mark.nightly
FIELDS = {"_class_name": "UNet2DConditionModel", "cross_attention_dim": 768}
MEASURED = """
import json, re, sys
import jax, jax.numpy as jnp
from jaxdiff.pretrained import load_network
from jaxdiff.train import make_mesh
from jaxdiff.train.sharding import split_sharding
def kilobytes(name):
    return int(re.search(name + r":\\s+(\\d+)", open("/proc/self/status").read())[1])
jnp.zeros(8).block_until_ready()
mesh = make_mesh(data=1, fsdp=8) if len(jax.devices()) == 8 else None
before = kilobytes("VmRSS")
loaded = load_network(sys.argv[1], shardings=None if mesh is None else lambda shapes: split_sharding(shapes, mesh))
jax.block_until_ready(loaded.params)
size = sum(leaf.nbytes for leaf in jax.tree.leaves(loaded.params))
print(json.dumps([(kilobytes("VmHWM") - before) * 1024 / size, size]))
"""


class Drawn(Mapping[str, Any]):
    """Tensors of the right shapes, each made when it is written."""

    def __init__(self, described: dict[str, Any]) -> None:
        self.shapes = described

    def described(self) -> dict[str, Any]:
        return self.shapes

    def __getitem__(self, name: str) -> Any:
        dtype, shape = self.shapes[name]
        return np.random.default_rng(len(name)).standard_normal(shape, dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, fields = tmp_path_factory.mktemp("sd15"), Fields(FIELDS)
    family = family_of(fields)
    shapes = jax.eval_shape(family.pure(family.network(fields)).init, jax.random.key(0))
    tensors = Drawn(Published(shapes, family.naming(fields)).described())
    write_safetensors(folder / "diffusion_pytorch_model.safetensors", tensors)
    (folder / "config.json").write_text(json.dumps(FIELDS))
    return folder


@pytest.mark.parametrize("devices", [1, 8])
def test_the_peak_is_at_most_a_seventh_above_the_parameters(devices: int, checkpoint: Path, run_python: Any) -> None:
    done = run_python("-c", MEASURED, checkpoint, devices=devices)
    ratio, size = json.loads(done.stdout.splitlines()[-1])
    assert size == 4 * 859_520_964 and ratio <= 1.15, ratio
