"""Archives of NumPy as sets of tensors."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxdiff.pretrained import PretrainedError, load_network
from jaxdiff.pretrained.fields import Fields
from jaxdiff.pretrained.files.npz import Npz
from jaxdiff.pretrained.files.writing import Published
from jaxdiff.pretrained.layouts.families import family_of
from tests.pretrained.tiny import tiny

ARRAYS: dict[str, Any] = {
    "a.weight": np.arange(24, dtype=np.float32).reshape(4, 3, 2),
    "b": np.float16(3),
    "c": np.asfortranarray(np.arange(12).reshape(4, 3)),
    "d": np.zeros((0, 3), np.uint8),
}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_tensors_and_their_rows(save: Callable[..., None], tmp_path: Path) -> None:
    save(tmp_path / "x.npz", **ARRAYS)
    found = Npz(tmp_path / "x.npz")
    assert {*found} == {*ARRAYS} and len(found) == 4
    for name, array in ARRAYS.items():
        assert found[name].shape == array.shape and found[name].dtype == array.dtype
        np.testing.assert_array_equal(found.read(name), array)
    for name in ("a.weight", "c"):
        np.testing.assert_array_equal(found.read(name, (1, 3)), ARRAYS[name][1:3])


def test_a_folder_whose_weights_are_an_archive(tmp_path: Path) -> None:
    made = tiny("AutoencoderKL")
    tensors = Published(made.params, family_of(Fields(made.fields)).naming(Fields(made.fields)))
    arrays: dict[str, Any] = dict(tensors)
    np.savez(tmp_path / "diffusion_pytorch_model.npz", **arrays)
    (tmp_path / "config.json").write_text(json.dumps(made.fields))
    jax.tree.map(np.testing.assert_array_equal, load_network(tmp_path).params, made.params)


def refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(PretrainedError) as error:
        make()
    assert message in str(error.value) and "\n" not in str(error.value)


def test_what_is_none_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "x.npz"
    refused(lambda: Npz(file), "cannot be read (No such file or directory)")
    for content in (b"", b"version https://git-lfs", b"PK\x03\x04" + b"0" * 80):
        file.write_bytes(content)
        refused(lambda: Npz(file), "is no archive of NumPy, or is damaged")
    np.savez(file, a=np.array([{}], object))
    refused(lambda: Npz(file), "a is of object, expected numbers, such as float32")
    np.savez(file, a=np.array(["x"]))
    refused(lambda: Npz(file), "a is of <U1, expected numbers, such as float32")
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("data.pkl", b"\x80\x02.")
    refused(lambda: Npz(file), "holds data.pkl, expected arrays alone, NAME.npy")
    held = io.BytesIO()
    np.save(held, np.zeros(8))
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.npy", held.getvalue()[:-8])
    refused(lambda: Npz(file), "a.npy has 184 bytes, expected 192: fetch it again")


def test_every_cut_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "x.npz"
    np.savez_compressed(file, a=np.arange(50.0))
    whole = file.read_bytes()
    for cut in range(0, len(whole), 7):
        file.write_bytes(whole[:cut])
        refused(lambda: Npz(file), str(file))
    rng = np.random.default_rng(0)
    for place in range(len(whole)):
        file.write_bytes(whole[:place] + bytes([int(rng.integers(256))]) + whole[place + 1 :])
        try:
            found = Npz(file)
            for name in found:
                found.read(name)
        except PretrainedError as error:
            assert "\n" not in str(error)
