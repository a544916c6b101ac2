"""Which of the comparisons with other libraries run before each change lands; `bash .ci/run parity` runs all of them.

One configuration a class, four pipelines, the schedulers by their usual options, one file of each layout.
"""

from __future__ import annotations

import re

import pytest

ALWAYS = re.compile(
    r"test_networks\.py::(test_a_network_is_the_original\[.*-0\]|test_a_field)"
    r"|test_pipelines\.py::.*\[(SD1 DPMSolverMultistep|SDXL|FLUX dev|ControlNet)\]"
    r"|test_parts\.py::.*\[(SD1 DDIM|SDXL refiner|SD1 with a strength|Euler)\]"
    r"|test_writing\.py::.*(\[SD1\]|\[SD3\]|draws_the_same|of_our_own)"
    r"|test_text_encoders\.py"
    r"|test_lora\.py::.*(peft|PEFT|kohya)"
    r"|test_single_file\.py::.*(\[1\]|\[XL\])"
    r"|test_dit_files\.py::test_outputs"
)
EVERY = 6  # of the schedulers' tests, whose cases are pairs of options in the order of their classes


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    schedulers = [item for item in items if "test_schedulers.py" in item.nodeid]
    for item in [*(item for item in items if ALWAYS.search(item.nodeid)), *schedulers[::EVERY]]:
        item.add_marker("cover")
