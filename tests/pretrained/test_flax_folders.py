"""Folders of Flax: names and shapes as the old classes had them, files as `flax.serialization` writes them, and damage.

`flax_names.json` holds what the Flax classes of diffusers 0.39 and transformers 4.57 made of small configurations. That
outputs are theirs is for `tests/parity/test_flax_folders.py`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.serialization
import jax
import ml_dtypes
import numpy as np
import pytest
from flax import traverse_util

from jaxdiff.networks import UNet
from jaxdiff.pretrained import PretrainedError, load_network, write_network
from jaxdiff.pretrained.fields import Fields
from jaxdiff.pretrained.files.msgpack import Msgpack, open_msgpack
from jaxdiff.pretrained.files.writing import Published
from jaxdiff.pretrained.layouts.families import DIFFUSERS, configured, family_of
from jaxdiff.pretrained.layouts.flax import NUMERICS, flax_naming, plain_fields
from tests.pretrained.tiny import tiny

ORIGINALS: dict[str, Any] = json.loads((Path(__file__).parent / "flax_names.json").read_text())
WEIGHTS = "diffusion_flax_model.msgpack"


def naming_of(fields: Fields) -> Any:
    family = family_of(fields)
    return flax_naming(family.naming(fields), of_diffusers=family.stem == DIFFUSERS)


@pytest.mark.parametrize(
    "name", [name if "linear" not in name else pytest.param(name, marks=pytest.mark.nightly) for name in ORIGINALS]
)
def test_names_and_shapes_are_those_of_the_old_classes(name: str) -> None:
    fields = plain_fields(Fields(ORIGINALS[name]["fields"]), False)
    network = family_of(fields).pure(configured(fields))
    naming = naming_of(fields)
    described = Published(jax.eval_shape(network.init, jax.random.key(0)), naming).described()
    theirs = {naming.newer(key): tuple(shape) for key, shape in ORIGINALS[name]["shapes"].items()}
    ours = {key: shape for key, (_, shape) in described.items()}
    assert ours == {key: shape for key, shape in theirs.items() if not naming.is_unused(key)}


def tree_of(loaded: Any) -> dict[str, Any]:
    """A network's parameters as the old classes held them."""
    tensors = Published(loaded.params, naming_of(Fields(loaded.fields)))
    older = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out_0": "proj_attn"}
    of_vae = loaded.fields["_class_name"] == "AutoencoderKL"
    named = {
        "/".join(older.get(each, each) if of_vae else each for each in name.split("/")): np.ascontiguousarray(
            tensors[name]
        )
        for name in tensors
    }
    return dict(traverse_util.unflatten_dict(named, sep="/"))


def saved(folder: Path, loaded: Any, change: Callable[[Any], Any] = lambda leaf: leaf) -> Any:
    """A folder as the old classes saved it; what is in it."""
    folder.mkdir(exist_ok=True)
    tree = jax.tree.map(change, tree_of(loaded))
    (folder / WEIGHTS).write_bytes(flax.serialization.msgpack_serialize(tree))
    fields = {**loaded.fields, "_class_name": f"Flax{loaded.fields['_class_name']}", "split_head_dim": False}
    (folder / "config.json").write_text(json.dumps(fields))
    return tree


def same(ours: Any, theirs: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.fixture(scope="module")
def vae() -> Any:
    return tiny("AutoencoderKL")


def test_a_file_of_flax_serialization_is_read_and_written_as_torchs(vae: Any, tmp_path: Path) -> None:
    saved(tmp_path / "flax", vae)
    found = load_network(tmp_path / "flax")
    same(found.params, vae.params)
    assert found.fields == vae.fields and found.net == vae.net
    write_network(tmp_path / "torch", found)
    same(load_network(tmp_path / "torch").params, vae.params)
    saved(tmp_path / "torch", vae, lambda leaf: leaf + 1)
    (tmp_path / "torch" / "config.json").write_text(json.dumps(vae.fields))
    same(load_network(tmp_path / "torch").params, vae.params)  # safetensors come first


def test_copies_of_several_devices_are_one(vae: Any, tmp_path: Path) -> None:
    saved(tmp_path, vae, lambda leaf: np.stack([leaf, leaf + 1, leaf + 2]))
    same(load_network(tmp_path).params, vae.params)


def test_large_arrays_lie_in_chunks(vae: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flax.serialization, "MAX_CHUNK_SIZE", 1000)
    tree = saved(tmp_path, vae)
    file = Msgpack(tmp_path / WEIGHTS)
    name = "decoder/conv_in/kernel"
    assert len(file[name].starts) > 3
    whole = tree["decoder"]["conv_in"]["kernel"]
    for rows in (None, (0, 1), (1, 3), (2, 2)):
        np.testing.assert_array_equal(file.read(name, rows), whole if rows is None else whole[slice(*rows)])
    same(load_network(tmp_path).params, vae.params)


def test_dtypes_and_an_outer_name(vae: Any, tmp_path: Path) -> None:
    tree = saved(tmp_path, vae, lambda leaf: leaf.astype(ml_dtypes.bfloat16))
    (tmp_path / WEIGHTS).write_bytes(flax.serialization.msgpack_serialize({"params": tree}))
    found = load_network(tmp_path, dtype=None)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(found.params)} == {"bfloat16"}
    same(found.params, jax.tree.map(lambda leaf: leaf.astype(ml_dtypes.bfloat16), vae.params))
    half = load_network(tmp_path, dtype="float16").params
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(half)} == {"float16"}


def test_several_files_with_an_index(tmp_path: Path) -> None:
    made = tiny("T5EncoderModel")
    fields = Fields(made.fields)
    tensors = Published(made.params, naming_of(fields))
    names = sorted(tensors)
    shards = {f"flax_model-0000{n}-of-00002.msgpack": names[n - 1 :: 2] for n in (1, 2)}
    for file, within in shards.items():
        tree = traverse_util.unflatten_dict({name: tensors[name] for name in within}, sep="/")
        (tmp_path / file).write_bytes(flax.serialization.msgpack_serialize(tree))
    index = {"weight_map": {name: file for file, within in shards.items() for name in within}}
    (tmp_path / "flax_model.msgpack.index.json").write_text(json.dumps(index))
    (tmp_path / "config.json").write_text(json.dumps({**made.fields, "architectures": ["FlaxT5EncoderModel"]}))
    same(load_network(tmp_path).params, made.params)
    (tmp_path / "flax_model-00002-of-00002.msgpack").unlink()
    refused(
        lambda: load_network(tmp_path), "00002-of-00002.msgpack is missing (1 of the 2 files of flax_model.msgpack.ind"
    )
    (tmp_path / "flax_model.msgpack.index.json").write_text("{}")
    refused(lambda: load_network(tmp_path), "flax_model.msgpack.index.json: has no weight_map")


def test_the_old_arithmetic_is_an_option() -> None:
    fields = ORIGINALS["FlaxUNet2DConditionModel, linear"]["fields"]
    plain, flaxs = (configured(plain_fields(Fields(fields), numerics)) for numerics in (False, True))
    assert isinstance(plain, UNet) and not plain.flax_numerics and flaxs.flax_numerics
    again = plain_fields(Fields(fields), True)
    assert again.values[NUMERICS] is True and configured(Fields(again.values)) == flaxs
    odd = Fields({**fields, "norm_num_groups": 8})
    refused(
        lambda: plain_fields(odd, True), "norm_num_groups is 8; the Flax class had 32 alone: leave flax_numerics out"
    )
    dit = Fields({"_class_name": "DiTTransformer2DModel"})
    refused(lambda: plain_fields(dit, True), "flax_numerics is of U-Nets with text and of AutoencoderKL")


# --- damage


def refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(PretrainedError) as error:
        make()
    assert message in str(error.value) and "\n" not in str(error.value)


def packed(value: Any) -> bytes:
    return bytes(flax.serialization.msgpack_serialize(value))


ONE = packed({"a": {"b": np.arange(3.0)}})
# {"a": {"__msgpack_chunked_array__": true, "shape": {"x": 3}, and one more entry}}
CHUNKED = b"\x81\xa1a\x83\xb9__msgpack_chunked_array__\xc3\xa5shape\x81\xa1x\x03"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty: fetch it again"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "is a pointer of Git LFS, not the file itself"),
        (b"<!DOCTYPE html>", "is a web page, not the file itself"),
        (b"\x80\x02}q\x00.", "is a pickle of torch, which may run code"),
        (ONE[:-5], "it ends too early"),
        (ONE[:-30], "it ends too early"),
        (ONE + b"\x00", "1 bytes too many"),
        (packed({"a": 3}), "a is a number, expected arrays in maps"),
        (packed({"a": "text"}), "a is a str, expected arrays in maps"),
        (packed({"a": 1 + 2j}), "a is of the extension type 2, which is no array"),
        (packed({"a": np.zeros(2, np.complex64)}), "a is of 'complex64', expected float64, float32"),
        (packed([1, 2]), "the whole is a array, expected arrays in maps"),
        (ONE.replace(b"\x91\x03", b"\x91\x04"), "a/b of shape (4,) in 24 bytes"),
        (ONE.replace(b"\x91\x03", b"\xc1\x03"), "the byte 0xc1"),
        (packed({"a": {"x": 1}}), "a/x is a number, expected arrays in maps"),
        (CHUNKED, "'x' in the place of a number"),
        (b"\x81\xa1a" * 80 + b"\x80", "more than 64 maps within each other"),
        (b"\xdf\xff\xff\xff\xff", "it ends too early"),
    ],
)
def test_a_damaged_file_is_one_line(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / WEIGHTS).write_bytes(content)
    refused(lambda: open_msgpack(tmp_path, "diffusion_flax_model"), message)
    refused(lambda: open_msgpack(tmp_path, "diffusion_flax_model"), str(tmp_path / WEIGHTS))


def test_every_cut_and_every_changed_byte_is_an_answer_or_one_line(tmp_path: Path) -> None:
    """Never another error, and never more memory than the file's size."""
    file, rng = tmp_path / WEIGHTS, np.random.default_rng(0)
    whole = packed({"a": {"b": np.arange(3.0), "c": np.zeros((2, 2), np.float16)}})
    broken = [whole[:cut] for cut in range(len(whole))]
    for place in range(len(whole)):
        broken.append(whole[:place] + bytes([int(rng.integers(256))]) + whole[place + 1 :])
    for content in broken:
        file.write_bytes(content)
        try:
            found = Msgpack(file)
        except PretrainedError as error:
            assert "\n" not in str(error)
        else:
            assert sum(math.prod(place.shape) * place.dtype.itemsize for place in found.values()) <= len(whole)
