"""The proof that a run does not depend on where it runs: the same losses and samples on any mesh of any processes.

`CASES` covers each pair of (processes, devices), (processes, kind of mesh), (devices, kind of mesh) and (kind of mesh,
network) that there can be; `test_the_cases_cover_all_pairs` counts them.
"""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import pytest

from tests.parallel.processes import Group

Case = tuple[str, int, int, int, int]  # network, devices, data, fsdp, tensor
CASES: dict[int, list[Case]] = {  # by processes
    1: [
        ("unet", 1, 1, 1, 1),
        ("dit", 1, 1, 1, 1),
        ("unet", 2, 2, 1, 1),
        ("dit", 2, 1, 2, 1),
        ("unet", 4, 1, 1, 4),
        ("dit", 8, 4, 2, 1),
        ("unet", 8, 4, 1, 2),
        ("dit", 4, 1, 2, 2),
        ("unet", 8, 2, 2, 2),
        ("dit", 4, 4, 1, 1),
    ],
    2: [
        ("dit", 4, 4, 1, 1),
        ("unet", 8, 1, 8, 1),
        ("dit", 2, 1, 1, 2),
        ("unet", 4, 2, 2, 1),
        ("dit", 4, 2, 1, 2),
        ("unet", 8, 1, 4, 2),
        ("dit", 8, 2, 2, 2),
    ],
    4: [
        ("unet", 8, 8, 1, 1),
        ("dit", 4, 1, 4, 1),
        ("dit", 4, 1, 1, 4),
        ("dit", 4, 2, 2, 1),
        ("unet", 4, 2, 1, 2),
        ("unet", 4, 1, 2, 2),
        ("dit", 8, 2, 2, 2),
    ],
}
DOUBLE: dict[int, list[Case]] = {
    1: [
        ("unet", 1, 1, 1, 1),
        ("dit", 1, 1, 1, 1),
        ("unet", 8, 2, 2, 2),
        ("dit", 8, 2, 2, 2),
        ("dit", 2, 1, 2, 1),
        ("dit", 4, 4, 1, 1),
    ],
    2: [("unet", 4, 1, 2, 2), ("dit", 4, 2, 1, 2)],
}
LOCAL = {1: 8, 2: 4, 4: 2}  # devices that each process has


def kind(case: Case) -> str:
    names = [name for name, size in zip(("data", "fsdp", "tensor"), case[2:], strict=True) if size > 1]
    return " x ".join(names) or "one"


def _pairs(rows: list[tuple[Any, ...]]) -> set[tuple[Any, ...]]:
    # (processes, devices), (processes, kind), (devices, kind), (kind, network)
    return {(a, b, row[a], row[b]) for row in rows for a, b in ((0, 1), (0, 2), (1, 2), (2, 3))}


def test_the_cases_cover_all_pairs() -> None:
    taken = [(p, case[1], kind(case), case[0]) for p, cases in CASES.items() for case in cases]
    possible = []
    for processes, devices, network in itertools.product((1, 2, 4), (1, 2, 4, 8), ("unet", "dit")):
        for powers in itertools.product((1, 2, 4, 8), repeat=3):
            if np.prod(powers) == devices >= processes and powers[2] <= 4:  # 4 heads
                possible.append((processes, devices, kind((network, devices, *powers)), network))
    assert _pairs(possible) - _pairs(taken) == set()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[tuple[int, Case, dict[str, Any]]]]:
    folder = tmp_path_factory.mktemp("scaling")
    found: dict[str, list[tuple[int, Case, dict[str, Any]]]] = {"float32": [], "float64": []}
    for precision, table in (("float32", CASES), ("float64", DOUBLE)):
        for processes, cases in table.items():
            asked, out = folder / f"{precision}_{processes}.json", folder / f"{precision}_{processes}_out.json"
            asked.write_text(json.dumps(cases))
            words = ["float64"] if precision == "float64" else []
            arguments = ["-m", "tests.parallel.job", asked, out, *words]
            group = Group(*arguments, processes=processes, devices=LOCAL[processes], flags=[])
            try:
                group.finish()
            finally:
                group.kill()
            answers = json.loads(out.read_text())
            found[precision] += [(processes, case, answer) for case, answer in zip(cases, answers, strict=True)]
    return found


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-5), ("float64", 1e-10)])
def test_losses_and_samples_are_the_same_everywhere(
    precision: str, tolerance: float, results: Any, record_property: Any
) -> None:
    one = {case[0]: answer for _, case, answer in results[precision] if case[1] == 1}
    assert one.keys() == {"unet", "dit"}
    worst: dict[str, tuple[float, float]] = {}
    for processes, case, answer in results[precision]:
        expected = one[case[0]]
        assert len(answer["losses"]) == 20 and answer["losses"][-1] < answer["losses"][0]
        assert answer["noise"] == expected["noise"], (processes, case)
        loss = float(np.abs(np.array(answer["losses"]) / np.array(expected["losses"]) - 1).max())
        grey = float(np.abs(np.array(answer["images"]) - np.array(expected["images"])).max())
        worst[f"{precision}: {processes} processes, {case}"] = loss, grey
    for name, (loss, grey) in worst.items():
        print(f"{name}: losses differ by {loss:.1e}, samples by {grey:.3f} grey levels")
    record_property(f"largest_{precision}", [max(values) for values in zip(*worst.values(), strict=True)])
    assert {name: loss for name, (loss, _) in worst.items() if loss > tolerance} == {}
    assert {name: grey for name, (_, grey) in worst.items() if grey > 1} == {}


def test_each_device_holds_its_part_only(results: Any) -> None:
    for _, case, answer in results["float32"]:
        fsdp = case[3]
        # Params and EMA; a few small leaves have no axis that 8 divides.
        assert answer["held"] <= 2 * answer["parameters"] * (1 / fsdp + 0.02), case
