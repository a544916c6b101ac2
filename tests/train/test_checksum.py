"""Checksums see every flipped bit, and are the same on any devices."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.train import checksum
from jaxdiff.train.checksum import (
    FILES,
    DamageError,
    check_files,
    device_sums,
    leaf_sums,
    text_sum,
    write_file_sums,
)


def flipped(values: np.ndarray, bit: int) -> np.ndarray:
    data = bytearray(values.tobytes())
    data[bit // 8] ^= 1 << bit % 8
    return np.frombuffer(bytes(data), values.dtype).reshape(values.shape)


def equation_1(values: np.ndarray) -> int:
    """The sum term by term, in whole numbers of any size."""
    bits = values.view(np.dtype(f"u{values.dtype.itemsize}")).reshape(values.shape)
    axes = [np.random.Philox(key=axis).random_raw(size) | np.uint64(1) for axis, size in enumerate(values.shape)]
    total = 0
    for index in np.ndindex(values.shape):
        term = int(bits[index])
        for axis, place in enumerate(index):
            term *= int(axes[axis][place])
        total += term
    return total % 2**64


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "uint32", "bool"])
@pytest.mark.parametrize("shape", [(), (5,), (3, 4), (2, 3, 1, 2)])
def test_the_sum_is_the_equations_and_sees_every_bit(dtype: str, shape: tuple[int, ...]) -> None:
    drawn = np.random.default_rng(0).normal(0, 50, shape)
    signed = abs(drawn) if dtype == "uint32" else drawn
    values = np.asarray(jnp.asarray(drawn > 0 if dtype == "bool" else signed, dtype))
    (whole,) = leaf_sums([jnp.asarray(values)])
    assert int(whole, 16) == equation_1(values)
    assert device_sums([jnp.asarray(values)]) == [whole]
    bits = range(0, 8 * values.nbytes, 8) if dtype == "bool" else range(8 * values.nbytes)
    others = leaf_sums([jnp.asarray(flipped(values, bit)) for bit in bits])
    assert whole not in others and len(set(others)) == len(others)


def test_no_elements_and_swapped_ones() -> None:
    a = jnp.arange(6.0).reshape(2, 3)
    sums = leaf_sums([a, a[::-1], a[:, ::-1], a.T, jnp.zeros((0, 3)), jnp.zeros((2, 3))])
    assert len(set(sums[:4])) == 4 and sums[4] == sums[5] == "0" * 16
    assert device_sums([a, a[::-1], a[:, ::-1], a.T, jnp.zeros((0, 3)), jnp.zeros((2, 3))]) == sums


def test_accelerators_make_the_sums_of_what_lies_on_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """The devices are stand-ins."""
    asked: list[Any] = []

    def sums(leaves: Any) -> list[str]:
        asked.append(list(leaves))
        return ["sum"]

    leaves: list[Any] = [
        SimpleNamespace(devices=lambda name=name: [SimpleNamespace(platform=name)]) for name in ("gpu", "tpu")
    ]
    monkeypatch.setattr(checksum, "device_sums", sums)
    assert leaf_sums(leaves) == ["sum"] and asked == [leaves]
    leaf_sums([jnp.zeros(2)])
    assert len(asked) == 1


def test_the_same_on_any_mesh(run_python: Callable[..., Any]) -> None:
    code = """
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from jaxdiff.train import make_mesh
from jaxdiff.train.checksum import device_sums, leaf_sums
x = np.random.default_rng(0).normal(size=(8, 6, 16)).astype(np.float32)
seen = set(leaf_sums([jax.device_put(x, jax.devices()[0])]))
for data, fsdp in ((8, 1), (1, 8), (2, 4)):
    mesh = make_mesh(data=data, fsdp=fsdp)
    for spec in (P(), P("fsdp"), P(None, None, ("data", "fsdp")), P("data", None, "fsdp")):
        for sums in (leaf_sums, device_sums):
            seen |= set(sums([jax.device_put(x, NamedSharding(mesh, spec))]))
print(len(seen))
"""
    assert run_python("-c", code, devices=8).stdout.split() == ["1"]


def test_a_note_has_one_sum_however_it_is_written() -> None:
    note = {"b": [1, 2.5, None], "a": {"x": "y"}}
    assert text_sum(note) == text_sum(json.loads(json.dumps(note, indent=3))) != text_sum({**note, "b": [1, 2.5, 0]})


def test_files(tmp_path: Path) -> None:
    for name in ("a/deep/y", "b/z"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode() * 9)
    write_file_sums(tmp_path)
    check_files(tmp_path, ["a", "b"])
    (tmp_path / "a" / "deep" / "y").write_bytes(b"")
    (tmp_path / "b" / "z").unlink()
    check_files(tmp_path, [])
    with pytest.raises(DamageError, match=r"^a/deep/y: its checksum does not fit, 0 bytes of 72$"):
        check_files(tmp_path, ["a", "b"])
    with pytest.raises(DamageError, match=r"^b/z: No such file or directory$"):
        check_files(tmp_path, ["b"])
    shares = []
    for index in range(2):  # between them, two processes see both
        with pytest.raises(DamageError) as caught:
            check_files(tmp_path, ["a", "b"], index, 2)
        shares.append(str(caught.value).split(":")[0])
    assert sorted(shares) == ["a/deep/y", "b/z"]
    (tmp_path / FILES).write_text((tmp_path / FILES).read_text().replace("72", "73"))
    with pytest.raises(DamageError, match=rf"^{FILES}: its checksum does not fit$"):
        check_files(tmp_path, ["a"])
