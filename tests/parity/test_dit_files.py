"""DiT and SiT in their authors' layout beside diffusers' DiT, told time by the authors' frequencies and with their eps:
so it is their function. And the converter, beside torch.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from jaxdiff.pretrained import PretrainedError, dit_model, load_dit
from jaxdiff.pretrained.convert import convert, main
from jaxdiff.pretrained.files.safetensors import SafeTensors
from tests.parity.originals import diffusers, disturbed, quiet, torch

pytestmark = pytest.mark.nightly
TIMES = (0.0, 0.37, 421.5, 999.0)


def original() -> Any:
    with quiet():
        network = diffusers.DiTTransformer2DModel(
            num_attention_heads=4,
            attention_head_dim=16,
            num_layers=3,
            sample_size=8,
            out_channels=8,
            norm_eps=1e-6,
            num_embeds_ada_norm=5,
        )
        for block in network.transformer_blocks:
            block.norm1.emb.time_proj.downscale_freq_shift = 0
            block.norm1.emb.class_embedder.num_classes = 5
    return disturbed(network, 0)


def of_the_authors(network: Any, depth: int) -> dict[str, Any]:
    """The tensors of diffusers' network as the authors' repository names them."""
    state = network.state_dict()
    first = "transformer_blocks.0.norm1.emb."
    made = {
        "pos_embed": network.pos_embed.pos_embed,
        "y_embedder.embedding_table.weight": state[first + "class_embedder.embedding_table.weight"],
    }
    maps = {
        "x_embedder.proj": "pos_embed.proj",
        "t_embedder.mlp.0": first + "timestep_embedder.linear_1",
        "t_embedder.mlp.2": first + "timestep_embedder.linear_2",
        "final_layer.adaLN_modulation.1": "proj_out_1",
        "final_layer.linear": "proj_out_2",
    }
    for number in range(depth):
        ours, theirs = f"blocks.{number}.", f"transformer_blocks.{number}."
        maps |= {
            f"{ours}attn.proj": f"{theirs}attn1.to_out.0",
            f"{ours}mlp.fc1": f"{theirs}ff.net.0.proj",
            f"{ours}mlp.fc2": f"{theirs}ff.net.2",
            f"{ours}adaLN_modulation.1": f"{theirs}norm1.linear",
        }
        for end in ("weight", "bias"):
            parts = [state[f"{theirs}attn1.to_{part}.{end}"] for part in "qkv"]
            made[f"{ours}attn.qkv.{end}"] = torch.cat(parts)
    return made | {
        f"{ours}.{end}": state[f"{theirs}.{end}"] for ours, theirs in maps.items() for end in ("weight", "bias")
    }


@pytest.fixture(scope="module")
def network() -> Any:
    network = original()
    with torch.no_grad():  # diffusers' own copies of the embeddings, one a block, are one
        first = network.transformer_blocks[0].norm1.emb.state_dict()
        for block in network.transformer_blocks:
            block.norm1.emb.load_state_dict(first)
    return network


@pytest.fixture(scope="module")
def file(network: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("authors")
    weights = of_the_authors(network, 3)
    torch.save({"model": {"a": torch.zeros(1)}, "ema": weights, "opt": {"step": 3}}, folder / "x.pt")
    assert main([str(folder / "x.pt"), str(folder / "x.safetensors"), "--part", "ema"]) == 0
    return folder / "x.safetensors"


def theirs_of(network: Any, x: Any, t: Any, label: Any) -> Any:
    with torch.no_grad():
        planes = torch.from_numpy(x.transpose(0, 3, 1, 2))
        found = network(planes, torch.from_numpy(t), torch.from_numpy(label)).sample
    return found.permute(0, 2, 3, 1).numpy()


def test_outputs(network: Any, file: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 8, 8, 4)).astype(np.float32)
    t, label = np.array(TIMES, np.float32), np.array([0, 4, 5, 2])
    theirs = theirs_of(network, x, t, label)
    loaded = load_dit(file, heads=4)
    ours = np.asarray(loaded.net.apply(loaded.params, x, t, {"label": label}))
    assert np.abs(ours - theirs).max() < 1e-4 * np.sqrt(np.square(theirs).mean())


def test_a_sit_flows_from_noise_to_data(network: Any, file: Path) -> None:
    """Its authors' Euler steps from u = 0 to 1, and ours from t = 1 to 0."""
    model = dit_model(load_dit(file, "SiT", heads=4))
    rng = np.random.default_rng(1)
    noise, label = rng.normal(size=(2, 8, 8, 4)).astype(np.float32), np.array([1, 3])
    x, steps = noise, 8
    for step in range(steps):
        u = np.full(2, step / steps, np.float32)
        x = x + theirs_of(network, x, u, label)[..., :4] / steps
    ts = np.linspace(1, 1 / steps, steps).astype(np.float32)
    found = model.sample(0, 2, {"label": label}, sampler="euler", ts=ts, x=noise, guide=(), decode=False)
    assert np.abs(found - x).max() < 1e-4 * np.sqrt(np.square(x).mean())


# --- the converter


def refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(PretrainedError) as error:
        make()
    assert message in str(error.value) and "\n" not in str(error.value)


DTYPES = [
    "float64",
    "float32",
    "float16",
    "bfloat16",
    "float8_e4m3fn",
    "int64",
    "int32",
    "int16",
    "int8",
    "uint8",
    "bool",
]


def test_every_dtype_and_shape_is_converted(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    made = {name: torch.from_numpy(rng.normal(size=(3, 4)) * 3).to(getattr(torch, name)) for name in DTYPES}
    made |= {"turned": made["float32"].T, "one": torch.tensor(2.5), "none": torch.zeros(0, 3)}
    torch.save(made, tmp_path / "x.pt")
    assert convert(tmp_path / "x.pt", tmp_path / "x.safetensors") == []
    found = SafeTensors(tmp_path / "x.safetensors")
    for name, tensor in made.items():
        wide = tensor.to(torch.float64).numpy()
        np.testing.assert_array_equal(found.read(name).astype(np.float64), wide)
    assert found["bfloat16"].dtype == ml_dtypes.bfloat16
    theirs = pytest.importorskip("safetensors.torch").load_file(tmp_path / "x.safetensors")
    for name, tensor in made.items():
        assert theirs[name].dtype == tensor.dtype and torch.equal(theirs[name].double(), tensor.double()), name


class Malice:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_what_would_run_is_refused_and_does_not(tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    torch.save({"state_dict": {"a": torch.zeros(1)}, "args": Malice(touched)}, tmp_path / "x.ckpt")
    refused(lambda: convert(tmp_path / "x.ckpt", tmp_path / "y"), "weights_only=True) refuses it: it holds ")
    torch.save({"model": {"a": torch.zeros(1)}, "args": argparse.Namespace(x=3)}, tmp_path / "x.pt")
    refused(lambda: convert(tmp_path / "x.pt", tmp_path / "y"), "save its state_dict alone with the library that made")
    assert not touched.exists() and not (tmp_path / "y").exists()


def test_what_is_damaged_or_something_else_is_one_line(tmp_path: Path) -> None:
    file, to = tmp_path / "x.pt", tmp_path / "y"
    torch.save({"w": torch.zeros(3)}, file)
    whole = file.read_bytes()
    for cut in (1, 30, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:cut])
        refused(lambda: convert(file, to), "it holds more than tensors, or is damaged (")
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/other", b"")
    refused(lambda: convert(file, to), "it holds more than tensors, or is damaged (")
    file.write_bytes(b"<!doctype html>")
    refused(lambda: convert(file, to), "is a web page, not the file itself")
    for tensors, message in (
        ({"w": torch.zeros(2).to_sparse()}, "w is sparse, expected a plain tensor"),
        ({"w": torch.zeros(2, device="meta")}, "w is without its numbers, expected a plain tensor"),
        ({1: torch.zeros(1), "1": torch.ones(1)}, "holds two tensors of one name"),
        ({}, "none that is known, but nothing at all"),
    ):
        torch.save(tensors, file)
        refused(lambda: convert(file, to), message)
    refused(lambda: convert(tmp_path, to), "is a folder, expected a file")
    refused(lambda: convert(file, file), "is the file that is read: name another one to write")
    torch.save({"w": torch._neg_view(torch.ones(2))}, file)
    assert convert(file, to) == [] and SafeTensors(to).read("w").tolist() == [-1, -1]


def test_which_entry_is_taken(tmp_path: Path) -> None:
    a, b = {"w": torch.zeros(1)}, {"w": torch.ones(1), "n": 3, "deep": {"w": torch.full((1,), 2.0)}}
    file, to = tmp_path / "x.pt", tmp_path / "y"
    torch.save({"state_dict": b, "epoch": 3}, file)
    assert convert(file, to) == ["n (int)", "deep (dict)"]
    assert SafeTensors(to).read("w") == 1
    assert convert(file, to, "state_dict.deep") == [] and SafeTensors(to).read("w") == 2
    torch.save({"model": a, "ema": b}, file)
    refused(lambda: convert(file, to), "of entries with weights there are several, model, ema: say which, --part ema")
    refused(lambda: convert(file, to, "emma"), "there is no 'emma'; there are model, ema")
    refused(lambda: convert(file, to, "ema.n"), "ema.n is a int, expected tensors by name")
    torch.save({"x": a, "y": 3}, file)
    refused(lambda: convert(file, to), "there are none that is known, but x, y: say which, --part NAME")
    torch.save([torch.zeros(1)], file)
    refused(lambda: convert(file, to), "holds a list, expected tensors by name")
    torch.save({"ema": {"x": 3}}, file)
    refused(lambda: convert(file, to), "it holds no tensors")
    torch.save({"w": torch.zeros(1, dtype=torch.complex64)}, file)
    refused(lambda: convert(file, to), "w is of complex64, which safetensors do not have here")
    file.write_bytes(b"PK\x03\x04 cut off")
    refused(lambda: convert(file, to), "or is damaged")
    refused(lambda: convert(tmp_path / "z", to), "there is no such file")
    torch.save(a, file)
    refused(lambda: convert(file, file / "y"), "cannot be written (")


def test_the_command(tmp_path: Path) -> None:
    torch.save({"state_dict": {"w": torch.zeros(1), "n": 3}}, tmp_path / "x.pt")
    command = [sys.executable, "-m", "jaxdiff.pretrained.convert", str(tmp_path / "x.pt"), str(tmp_path / "y")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "1 entries are no tensors and left out: n (int)" in done.stdout
    done = subprocess.run([*command, "--part", "ema"], capture_output=True, text=True, check=False)
    lines = [line for line in done.stderr.splitlines() if "convert" in line]
    assert done.returncode == 2 and len(lines) == 1 and lines[0].startswith("convert: error: ")
