"""`benchmarks/scaling.py`: what it counts in programs whose communication is known, and a tiny run of all of it."""

from __future__ import annotations

import doctest
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from benchmarks import scaling
from benchmarks.speed import collectives, hlo, ideal, partitioned, rates
from benchmarks.speed.hlo import EXAMPLE
from benchmarks.speed.work import forward_work
from benchmarks.training_step import image_shape, prepared
from jaxdiff.networks import functional

pytestmark = pytest.mark.nightly

# Five kinds of communication, each in a loop of its own length within an outer one of 3; 16 x 8 float32 a device.
KNOWN = """
import json, jax, jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from benchmarks.speed.collectives import count
from jaxdiff.train import make_mesh

mesh = make_mesh(data=4, fsdp=2)
ring = [(i, (i + 1) % 4) for i in range(3)]  # three of the four send

def loop(length, body, x):
    return jax.lax.scan(lambda x, _: (body(x), None), x, length=length)[0]

def inner(x):
    x = loop(2, lambda x: jax.lax.psum(x, "data") / 4, x)
    x = loop(3, lambda x: jax.lax.all_gather(x, "data", tiled=True)[:16] + x, x)
    x = loop(4, lambda x: jnp.tile(jax.lax.psum_scatter(x, "fsdp", tiled=True), (2, 1)), x)
    x = loop(5, lambda x: jax.lax.ppermute(x, "data", ring), x)
    return loop(6, lambda x: jax.lax.all_to_all(x, "data", 0, 0, tiled=True) @ jnp.full((8, 8), 0.5), x)

both = P(("data", "fsdp"))
step = jax.jit(jax.shard_map(lambda x: loop(3, inner, x), mesh=mesh, in_specs=both, out_specs=both, check_vma=False))
text = step.lower(jax.ShapeDtypeStruct((128, 8), jnp.float32)).compile().as_text()
counted = count(text, 8, slices=True)
print(json.dumps({"sent": counted.by_kind(), "flops": counted.flops}))
"""


def test_a_known_program_is_counted_to_the_byte(run_python: Any) -> None:
    """Every kind, in nested scans: bodies times their trips, groups by mesh axis, a ring in which one does not send."""
    found = json.loads(run_python("-c", KNOWN, devices=8).stdout.splitlines()[-1])
    array, outer = 16 * 8 * 4, 3
    scattered = array // 2 * 4 * outer
    kinds = found["sent"]
    assert kinds.pop("reduce-scatter", kinds.pop(collectives.SLICED, None)) == scattered
    assert kinds == {
        "all-gather": array * 4 * 3 / 4 * 3 * outer,
        "all-reduce": 2 * array * 3 / 4 * 2 * outer,
        "all-to-all": array * 3 / 4 * 6 * outer,
        "collective-permute": array * 3 / 4 * 5 * outer,
    }
    assert found["flops"] == 2 * 16 * 8 * 8 * 6 * outer


def test_the_command_on_tiny_networks(run_python: Any, repository: Path, tmp_path: Path) -> None:
    """Bytes and operations within 10% of the closed forms for data and fsdp; the state as 1/n."""
    out, page = tmp_path / "record.json", tmp_path / "page.md"
    page.write_text("<!-- scaling: generated -->\n<!-- end of scaling -->\n")
    run_python(
        *("benchmarks/scaling.py", "--quick", "--networks", "dit_tiny", "--meshes", "data", "fsdp"),
        *("--targets", "cpu", "--turns", "1", "--out", out, "--page", page),
        env={"PYTHONPATH": str(repository)},
    )
    record = json.loads(out.read_text())
    assert record["passed"] and len(record["rows"]) == 2
    for row in record["rows"]:
        ratios = row["ratios"]
        assert 0.9 <= ratios["sent"] <= 1.1 and 0.9 <= ratios["operations"] <= 1.1 and 0.9 <= ratios["spread"] <= 1.1
        assert row["state_device"] == row["state"] if row["fsdp"] == 1 else row["state_device"] < 0.128 * row["state"]
        # The compiler's own account: the state and the batch are what a device's program takes.
        assert row["arguments"] == pytest.approx(row["state_device"], rel=0.05)
        assert [step["device"] for step in row["predicted"]] == ["H100 SXM", "H200", "TPU v5p"]
    assert record["depth"]["depths"] == [2, 3] and set(record["depth"]["ratios"]) == {"trace", "compile"}
    text = page.read_text()
    assert "| tiny DiT | 8 | fsdp 8 |" in text and "Predicted, not measured" in text and "(CPU)" in text


def test_a_small_unet_gathers_its_weights_and_not_its_batches(run_python: Any) -> None:
    case = {"network": "unet_tiny", "fsdp": 8, "batch": 32}
    done = run_python("-m", "benchmarks.speed.partitioned", json.dumps(case), devices=8)
    row = scaling.judged(json.loads(done.stdout.splitlines()[-1]))
    assert row["passed"], row["ratios"]


def test_a_step_that_misses_a_bound_is_said_and_fails(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    row: dict[str, Any] = {"network": "dit_tiny", "mesh": "fsdp 8", "target": "cpu", "devices": 8, "batch": 2}
    row |= {"data": 1, "fsdp": 8, "tensor": 1, "sent": 3e9, "ideal_sent": {"weights": 1e9}, "seconds": 1.0}
    row |= {"operations": 8e9, "ideal_operations": 8e9, "device_operations": 4e9, "state": 8e9, "state_device": 1e9}
    row |= {"ideal_sent_in_bfloat16": dict.fromkeys(ideal.Sent._fields, 1e9), "model_operations": 8e9}
    row |= {"forward_bytes": 1e9, "parameters": 10**9, "arguments": 1e9, "temporaries": 1e9}
    monkeypatch.setattr(scaling, "asked_of_child", lambda *_: row)
    arguments = ["--quick", "--meshes", "fsdp", "--targets", "cpu", "--turns", "0"]
    assert scaling.main(arguments) == 1
    assert "dit_tiny fsdp 8 cpu: ['sent', 'spread']" in capsys.readouterr().out

    def fails(*_: Any) -> Any:
        raise RuntimeError("exit 1: out of memory")

    monkeypatch.setattr(scaling, "asked_of_child", fails)
    assert scaling.main(arguments) == 1
    assert "did not compile" in capsys.readouterr().out


def test_a_loop_of_unknown_length_that_communicates_is_an_error() -> None:
    unknown = EXAMPLE.replace("%n = s32[] constant(7)", "%n = s32[] get-tuple-element(%x), index=0")
    with pytest.raises(ValueError, match="length the program does not tell holds sum, all-reduce"):
        collectives.count(unknown, 8, slices=False)
    silent = unknown.replace("all-reduce(%v), replica_groups=[2,4]<=[8], to_apply=%add", "negate(%v)")
    assert collectives.count(silent, 8, slices=False).collectives == []


SLICE = """\
ENTRY %main (a: f32[16]) -> f32[4] {
  %a = f32[16]{0} parameter(0)
  %here = s32[] constant(4)
  %sum = f32[16]{0} all-reduce(%a), replica_groups=[2,4]<=[8], to_apply=%add
  ROOT %part = f32[4]{0} dynamic-slice(%sum, %here), dynamic_slice_sizes={4}
}
"""


def test_an_all_reduce_is_a_reduce_scatter_only_where_each_device_takes_its_part_alone() -> None:
    def kinds(text: str, slices: bool = True) -> list[str]:
        return [collective.kind for collective in collectives.count(text, 8, slices=slices).collectives]

    assert kinds(SLICE) == [collectives.SLICED] and kinds(SLICE, slices=False) == ["all-reduce"]
    assert kinds(SLICE.replace("f32[4]", "f32[8]")) == [collectives.SLICED, "all-reduce"]  # a half, by groups of four
    assert kinds(SLICE.replace("f32[16]", "f32[12]")) == ["all-reduce"]  # a third
    used = SLICE.replace("  ROOT", "  %also = f32[16]{0} negate(%sum)\n  ROOT")
    assert kinds(used) == ["all-reduce"]


@pytest.mark.parametrize("name", ["dit_xl2", "adm_64", "unet_tiny"])
def test_closed_form_of_the_operations_is_the_traces_and_the_papers(name: str) -> None:
    config = partitioned.configurations()[name]
    whole, _ = ideal.forward_operations(config.network, image_shape(config)[0], prepared(config).template.params)
    traced = forward_work(functional(config.network), image_shape(config), 1, labelled=True).flops
    assert whole == pytest.approx(traced, rel=0.01)
    if name == "dit_xl2":  # Peebles & Xie 2023, table 4: "Gflops", which are multiply-adds
        assert whole / 2e9 == pytest.approx(118.64, rel=0.01)


@pytest.mark.parametrize("module", [hlo, collectives, ideal, partitioned, rates, scaling])
def test_examples_in_docstrings_hold(module: ModuleType) -> None:
    tried = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    assert tried.attempted and not tried.failed
