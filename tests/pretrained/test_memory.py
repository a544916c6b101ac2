"""Loading a checkpoint of the size of Stable Diffusion 1.5 takes little more memory than its parameters: 3.4 GB."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import flax.serialization
import jax
import numpy as np
import pytest

from jaxdiff.pretrained.fields import Fields
from jaxdiff.pretrained.files.safetensors import write_safetensors
from jaxdiff.pretrained.files.writing import Published
from jaxdiff.pretrained.layouts.families import family_of
from jaxdiff.pretrained.layouts.flax import flax_naming

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


def write_msgpack(file: Path, tensors: Drawn) -> None:
    """As `flax.serialization` writes a flat map of arrays, one held at a time."""
    with file.open("wb") as opened:
        opened.write(b"\xde" + len(tensors).to_bytes(2, "big"))
        for name, (dtype, shape) in tensors.described().items():
            axes = b"".join(b"\xce" + length.to_bytes(4, "big") for length in shape)
            size = math.prod(shape) * dtype.itemsize
            kind = str(dtype).encode()
            head = b"\x93" + bytes([0x90 + len(shape)]) + axes + bytes([0xA0 + len(kind)]) + kind
            head += b"\xc6" + size.to_bytes(4, "big")
            opened.write(b"\xd9" + bytes([len(name)]) + name.encode())
            opened.write(b"\xc9" + (len(head) + size).to_bytes(4, "big") + b"\x01" + head)
            opened.write(tensors[name].data)


@pytest.fixture(scope="module", params=["safetensors", "msgpack"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder, fields = tmp_path_factory.mktemp("sd15"), Fields(FIELDS)
    family = family_of(fields)
    shapes = jax.eval_shape(family.pure(family.network(fields)).init, jax.random.key(0))
    naming = family.naming(fields)
    if request.param == "msgpack":
        tensors = Drawn(Published(shapes, flax_naming(naming, of_diffusers=True)).described())
        write_msgpack(folder / "diffusion_flax_model.msgpack", tensors)
    else:
        write_safetensors(folder / "diffusion_pytorch_model.safetensors", Drawn(Published(shapes, naming).described()))
    (folder / "config.json").write_text(json.dumps(FIELDS))
    yield folder
    shutil.rmtree(folder)


def test_the_file_that_is_measured_is_flaxs(tmp_path: Path) -> None:
    """What `write_msgpack` writes, `flax.serialization` restores."""
    tensors = Drawn({"a/b": (np.dtype("float32"), (3, 70000)), "c": (np.dtype("float32"), (2,))})
    write_msgpack(tmp_path / "x", tensors)
    restored = flax.serialization.msgpack_restore((tmp_path / "x").read_bytes())
    assert {*restored} == {"a/b", "c"}
    for name in tensors:
        np.testing.assert_array_equal(restored[name], tensors[name])


@pytest.mark.parametrize("devices", [1, 8])
def test_the_peak_is_at_most_a_seventh_above_the_parameters(devices: int, checkpoint: Path, run_python: Any) -> None:
    done = run_python("-c", MEASURED, checkpoint, devices=devices)
    ratio, size = json.loads(done.stdout.splitlines()[-1])
    print(f"{devices} devices: {ratio:.3f}")
    assert size == 4 * 859_520_964 and ratio <= 1.15, ratio
