"""`benchmarks/accelerator.py`: the command in its smallest form, its counting, its clock, its verdicts."""

from __future__ import annotations

import argparse
import json
import math
import types
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from benchmarks import accelerator
from benchmarks.speed import accelerator_parts, checks, session
from benchmarks.speed.pipes import WorkerError
from benchmarks.speed.turns import Chosen
from benchmarks.speed.work import forward_work
from jaxdiff.networks import UNet, dit, functional

pytestmark = pytest.mark.nightly

# Every answer that this file's worker gives is one of these; the module stands in a folder of the test's own.
STUB = """
import os, time
from benchmarks.speed.pipes import serve
class Side:
    def twice(self, x): return 2 * x
    def fail(self): raise ValueError("no")
    def die(self): os._exit(3)
    def hang(self): time.sleep(60)
    def drop(self): pass
serve(Side())
"""


def test_the_command_on_a_cpu(run_python: Any, repository: Path, tmp_path: Path) -> None:
    """All that runs here runs and passes; what cannot is said to be unchecked; no time is judged."""
    out, page = tmp_path / "result.json", tmp_path / "page.md"
    page.write_text("<!-- accelerator: generated -->\n<!-- end of accelerator -->\n")
    parts = ["limits", "checks", "train", "attention", "sample"]
    run_python(
        *("benchmarks/accelerator.py", "--quick", "--no-torch", "--cases", "dit_xl2", "--limit", "1000"),
        *("--parts", *parts, "--out", out, "--page", page),
        env={"PYTHONPATH": str(repository)},
    )
    record = json.loads(out.read_text())
    assert record["unfinished"] == [] and not record["judged"] and set(record["part_seconds"]) == set(parts)
    found = {check["name"]: check for check in record["checks"]}
    assert {check["passed"] for check in record["checks"]} == {True, None}
    assert len([check for check in found.values() if check["passed"]]) >= 12
    for name in ("attention by cuDNN", "attention by Pallas", "networks against the CPU"):
        assert found[name]["passed"] is None and found[name]["note"].startswith("not on this machine")
    train, sampled = record["rows"]
    assert (train["mode"], sampled["mode"]) == ("train", "ddim") and sampled["overhead"]["median"] > 0
    for row in record["rows"]:
        assert row["torch"] is None and all(0 < share < math.inf for share in row["utilization"].values())
    assert train["profile"]["jaxdiff"]["operations"]
    forms = {(row["form"], row["dtype"]): row for row in record["attention"]}
    assert {"plain", "chunked", "cudnn", "flash"} == {form for form, _ in forms}
    assert "not on this machine" in forms["cudnn", "bfloat16"]["refused"]
    text = page.read_text()
    assert "| dit_xl2 | 4 |" in text and "| adm_64 | not measured |" in text and "the times mean nothing" in text


@pytest.mark.parametrize(
    ("network", "published"),
    [(dit("S", 2), 6.06), (dit("B", 2), 23.01), (dit("L", 2), 80.71), (dit("XL", 2), 118.64)],
)
def test_work_is_the_papers(network: Any, published: float) -> None:
    """Peebles & Xie 2023, table 4: "Gflops", which are multiply-adds, of one image of 32x32x4."""
    one = forward_work(functional(network), (32, 32, 4), 1, labelled=True)
    assert one.flops / 2e9 == pytest.approx(published, rel=0.01)


def test_work_of_a_convolution_is_its_shapes() -> None:
    """By the change from 8 to 9 input channels of one 3x3 convolution on 16x16 images, the first of the network."""
    fields: dict[str, Any] = {"out_channels": 3, "width": 32, "multipliers": (1,), "attention_resolutions": ()}
    nets = {n: functional(UNet(image_size=16, in_channels=n, blocks=1, **fields)) for n in (8, 9)}
    few, more = (forward_work(net, (16, 16, n), 5, labelled=False) for n, net in nets.items())
    assert more.flops - few.flops == 5 * 16 * 16 * 2 * 9 * 32
    assert more.bytes - few.bytes == 4 * (5 * 16 * 16 + 9 * 32)


def test_what_hangs_dies_or_fails_costs_only_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stub_side.py").write_text(STUB)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(session, "MODULES", {"jax": "stub_side"})
    monkeypatch.setattr(session, "LEAST_LEFT", 0.0)
    out = tmp_path / "record.json"
    with session.Session(out, 30.0, with_torch=False) as here:
        answers = []
        for do, seconds in (("hang", 0.5), ("die", None), ("fail", None)):
            assert not here.attempt(do, lambda do=do, seconds=seconds: here.worker("jax", seconds).ask(do))  # type: ignore[misc]
            assert here.attempt("twice", lambda: answers.append(here.worker("jax").ask("twice", x=21)))
        here.end = here.part_end = 0.0
        assert not here.attempt("late", lambda: answers.append(None))
    assert answers == [42, 42, 42] and here.workers == {}
    pieces = {piece["what"]: piece for piece in json.loads(out.read_text())["unfinished"]}
    assert {what: piece["timed_out"] for what, piece in pieces.items()} == {
        "hang": True, "die": False, "fail": False, "late": True,
    }  # fmt: skip
    assert "exit status 3" in pieces["die"]["why"] and "raise ValueError" in "".join(pieces["fail"]["details"])


def test_a_batch_is_halved_until_it_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def measured(session: Any, options: Any, wanted: accelerator_parts.Wanted) -> dict[str, int]:
        batch = wanted.batch
        tried.append(batch)
        if batch > 16:
            raise WorkerError("JaxRuntimeError: RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes.")
        if batch < 16:
            raise WorkerError("ValueError: another fault")
        return {"batch": batch}

    monkeypatch.setattr(accelerator_parts, "measured", measured)
    here = types.SimpleNamespace(record={"rows": []})
    wanted = accelerator_parts.Wanted("dit_xl2", "train", 64, ())
    accelerator_parts.fitting(here, argparse.Namespace(), wanted)  # type: ignore[arg-type]
    assert tried == [64, 32, 16] and here.record["rows"] == [{"batch": 16}]
    with pytest.raises(WorkerError, match="another fault"):
        accelerator_parts.fitting(here, argparse.Namespace(), wanted._replace(batch=8))  # type: ignore[arg-type]


class Answers:
    """A worker's answers, and its session's record."""

    with_torch = True

    def __init__(self) -> None:
        self.record: dict[str, Any] = {"rows": [], "checks": [], "limits": {"matmul": 4.0, "memory": 2.0}}
        self.pieces: list[tuple[str, bool]] = []

    def worker(self, name: str, seconds: float | None = None) -> Answers:
        return self

    def ask(self, do: str, **arguments: Any) -> Any:
        about = {"memory": None, "last": math.nan}
        return {"draw": {"parameters": 1}, "work": {"flops": 2.0, "bytes": 1.0}, "time": 0.5, "about": about}[do]

    def left(self) -> float:
        return 100.0

    def bury(self) -> None: ...

    def drop(self) -> None: ...

    def unfinished(self, title: str, why: str, timed_out: bool) -> None:
        self.pieces.append((title, timed_out))


def test_what_a_kernel_or_a_compiler_breaks_is_measured_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """jaxdiff's form falls back to portable attention, PyTorch's to eager after a compilation that took too long."""

    def build(session: Any, form: str, *rest: Any) -> float:
        if form == "ours":
            raise RuntimeError("the worker ended while asked to build: exit status -11")
        return 1.0

    def choose(torch: Any, forms: Any, *rest: Any) -> Chosen:
        tried.append(*forms)
        if forms[0] != "eager":
            raise TimeoutError("late")
        return Chosen("eager", 1.0, {}, {})

    tried: list[str] = []
    monkeypatch.setattr(accelerator_parts, "build", build)
    monkeypatch.setattr(accelerator_parts, "choose", choose)
    options = argparse.Namespace(quick=True, dropout=None, portable=False, torch_forms=None, turns=1, longest=0.0)
    here: Any = Answers()
    wanted = accelerator_parts.Wanted("unet", "train", 8, ("compile channels_last",))
    row = accelerator_parts.measured(here, options, wanted)
    assert row["form"] == "ours portable" and row["torch"]["form"] == "eager"
    assert tried == ["compile channels_last", "eager"] and [late for _, late in here.pieces] == [False, True]
    # 3 x 2 operations at 4 a second, and 3 x 1 bytes with 36 for the one parameter at 2 a second, in steps of 0.5 s.
    assert row["floors"] == {"compute": 1.5, "memory": 19.5} and row["utilization"]["jaxdiff"] == 3.0
    assert row["ratios"]["torch"]["median"] == 1.0
    assert [check["passed"] for check in here.record["checks"]] == [False, False]  # the losses are not finite


def test_goals_are_judged_on_an_accelerator_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    side = {"median": 0.1, "quartile_1": 0.1, "quartile_3": 0.1}
    row = {"case": "dit_xl2", "mode": "train", "batch": 64, "each": False, "seconds": {"jaxdiff": side, "torch": side}}
    row |= {"images_per_second": {"jaxdiff": 640.0, "torch": 500.0}, "torch": {"form": "compile"}}
    row |= {"about": {"jaxdiff": {"memory": {"all": 2**31}}, "torch": {"memory": 2**30}}}
    empty: dict[str, Any] = {"unfinished": [], "checks": [], "attention": [], "flags": []}

    def status(share: float, ratio: float, judged: bool, **more: Any) -> int:
        mine = row | {"utilization": {"jaxdiff": share}, "ratios": {"torch": {"median": ratio, "doubt": 0.01}}}
        file = tmp_path / "record.json"
        file.write_text(json.dumps(empty | {"judged": judged, "rows": [mine]} | more))
        return accelerator.main(["--read", str(file)])

    assert status(0.56, 1.21, judged=True) == 0
    assert "| dit_xl2 | 64 | 640.0 | 100.0 | 56.0% |" in capsys.readouterr().out
    assert status(0.54, 1.21, judged=True) == status(0.56, 1.19, judged=True) == 1
    assert status(0.1, 0.5, judged=False) == 0
    wrong = {"name": "far", "value": 2.0, "most": 1.0, "passed": False, "note": ""}
    assert status(0.56, 1.21, judged=False, checks=[wrong]) == 1
    for timed_out, expected in ((True, 0), (False, 1)):
        piece = {"what": "train adm_64", "why": "why", "timed_out": timed_out, "details": []}
        assert status(0.56, 1.21, judged=True, unfinished=[piece]) == expected
        assert "Not finished: train adm_64 (why)." in capsys.readouterr().out


def test_a_wrong_kernel_fails_its_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel with the right values and half of the gradient."""
    right = checks.plain_attention

    @jax.custom_jvp
    def wrong(*inputs: jax.Array) -> jax.Array:
        return right(*inputs)

    wrong.defjvp(lambda x, d: (right(*x), 0.5 * jax.jvp(right, x, d)[1]))
    monkeypatch.setitem(checks.FORMS, "chunked", wrong)
    found = checks.attention_checks("chunked", "float32", [(1, 1, 8, 8, 8)], checks.SINGLE)
    assert [row.name.split(": ")[1] for row in found if row.passed] == ["value", "vmap"]
    assert checks.distance(jnp.full(4, 1.5), jnp.ones(4)) == 0.5
