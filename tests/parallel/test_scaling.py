"""The proof that a run does not depend on where it runs: the same losses and samples on any mesh of any processes.

`CASES` covers all pairs of network, whether there are several processes and whether each axis of the mesh splits, each
product of axes, and each number of devices and of processes; `test_the_cases_are_a_cover` counts them.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.covers import pairs
from tests.parallel.processes import Group

Case = tuple[str, int, int, int, int]  # network, devices, data, fsdp, tensor
CASES: dict[int, list[Case]] = {  # by processes; each of them compiles its programs, and a U-Net's take longest
    1: [
        ("unet", 1, 1, 1, 1),
        ("unet", 8, 2, 2, 2),
        ("dit", 1, 1, 1, 1),
        ("dit", 2, 1, 1, 2),
        ("dit", 4, 2, 2, 1),
        ("dit", 8, 1, 4, 2),
        ("dit, int8", 1, 1, 1, 1),
        ("dit, int8", 8, 2, 2, 2),
    ],
    2: [("dit", 8, 1, 8, 1), ("unet", 8, 2, 1, 4)],
    4: [("dit", 8, 8, 1, 1)],
}
DOUBLE: dict[int, list[Case]] = {
    1: [("unet", 1, 1, 1, 1), ("unet", 8, 2, 2, 2), ("dit", 1, 1, 1, 1)],
    2: [("dit", 8, 2, 2, 2)],
}
LOCAL = {1: 8, 2: 4, 4: 2}  # devices that each process has


def split(case: Case) -> tuple[bool, ...]:
    """Whether each axis of the mesh splits anything."""
    return tuple(size > 1 for size in case[2:])


def facts(row: tuple[int, Case]) -> set[Any]:
    """What a case shows."""
    processes, case = row
    found = set(pairs((case[0], processes > 1, *split(case))))
    return found | {("axes", split(case)), ("devices", case[1]), ("processes", processes)}


def test_the_cases_are_a_cover() -> None:
    taken = {fact for processes, cases in CASES.items() for case in cases for fact in facts((processes, case))}
    possible: set[Any] = set()
    for processes, devices, network in itertools.product((1, 2, 4), (1, 2, 4, 8), ("unet", "dit")):
        for data, fsdp, tensor in itertools.product((1, 2, 4, 8), (1, 2, 4, 8), (1, 2, 4)):
            if data * fsdp * tensor == devices >= processes:
                possible |= facts((processes, (network, devices, data, fsdp, tensor)))
    assert possible - taken == set()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[tuple[int, Case, dict[str, Any]]]]:
    folder = tmp_path_factory.mktemp("scaling")
    found: dict[str, list[tuple[int, Case, dict[str, Any]]]] = {"float32": [], "float64": []}
    for precision, table in (("float32", CASES), ("float64", DOUBLE)):
        for processes, cases in table.items():
            asked, out = folder / f"{precision}_{processes}.json", folder / f"{precision}_{processes}_out.json"
            asked.write_text(json.dumps(cases))
            words = ["float64"] if precision == "float64" else []
            arguments: list[str | Path] = ["-m", "tests.parallel.job", asked, out, *words]
            group = Group(*arguments, processes=processes, devices=LOCAL[processes], flags=[])
            try:
                group.finish()
            finally:
                group.kill()
            answers = json.loads(out.read_text())
            found[precision] += [(processes, case, answer) for case, answer in zip(cases, answers, strict=True)]
    return found


@pytest.mark.nightly
@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-5), ("float64", 1e-10)])
def test_losses_and_samples_are_the_same_everywhere(
    precision: str, tolerance: float, results: Any, record_property: Any
) -> None:
    one = {case[0]: answer for _, case, answer in results[precision] if case[1] == 1}
    assert one.keys() >= {"unet", "dit"}
    worst: dict[str, tuple[float, float]] = {}
    for processes, case, answer in results[precision]:
        expected = one[case[0]]
        assert len(answer["losses"]) == 20
        assert np.mean(answer["losses"][-5:]) < 0.9 * np.mean(answer["losses"][:5])  # something was learned
        assert answer["noise"] == expected["noise"], (processes, case)
        loss = float(np.abs(np.array(answer["losses"]) / np.array(expected["losses"]) - 1).max())
        grey = float(np.abs(np.array(answer["images"]) - np.array(expected["images"])).max())
        worst[f"{precision}: {processes} processes, {case}"] = loss, grey
    for name, (loss, grey) in worst.items():
        print(f"{name}: losses differ by {loss:.1e}, samples by {grey:.3f} grey levels")
    record_property(f"largest_{precision}", [max(values) for values in zip(*worst.values(), strict=True)])
    # A moment in 8 bits falls on the one or the other level by its last bit: that is a level's width, not rounding.
    limits = {name: 1e-3 if "int8" in name else tolerance for name in worst}
    assert {name: loss for name, (loss, _) in worst.items() if loss > limits[name]} == {}
    assert {name: grey for name, (_, grey) in worst.items() if grey > 1} == {}


@pytest.mark.nightly
def test_each_device_holds_its_part_only(results: Any) -> None:
    for _, case, answer in results["float32"]:
        fsdp = case[3]
        # Params and EMA; a few small leaves have no axis that 8 divides.
        assert answer["held"] <= 2 * answer["parameters"] * (1 / fsdp + 0.02), case
