"""Two real processes that encode one set into one cache of latents."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.parallel.processes import Group
from tests.tiny_autoencoder import write_autoencoder

CONFIG = """
import dataclasses
from jaxdiff.codecs import Latents
from jaxdiff.config import DataConfig, TrainConfig, load_config_file

base = load_config_file("digits_dit")
network = dataclasses.replace(base.network, in_channels=2, patch=1, width=16, depth=1, heads=2, frequencies=16)
config = dataclasses.replace(
    base,
    network=network,
    codec=Latents({autoencoder!r}),
    data=DataConfig(name="digits", cache_folder={cache!r}),
    train=TrainConfig(steps=3, batch_size=16, log_every=1, sample_every=0),
)
"""
# The set has some fifty parts, and each takes a tenth of a second to write.
PROGRAM = """
import sys, time
import train
from jaxdiff.data import encoded
written = encoded._write
def slowly(*arguments):
    written(*arguments)
    time.sleep(0.1)
encoded._PART_BYTES, encoded._write = 4096, slowly
sys.exit(train.main(sys.argv[1:]))
"""

pytestmark = pytest.mark.nightly  # five processes, one after the other


@pytest.fixture
def groups() -> Iterator[list[Group]]:
    made: list[Group] = []
    yield made
    for group in made:
        group.kill()


def test_two_processes_share_a_cache_and_one_is_killed_meanwhile(tmp_path: Path, groups: list[Group]) -> None:
    autoencoder = write_autoencoder(tmp_path / "autoencoder")

    def start(name: str, cache: str, processes: int) -> Group:
        config = tmp_path / f"{name}.py"
        config.write_text(CONFIG.format(autoencoder=str(autoencoder), cache=str(tmp_path / cache)))
        where: dict[str, Any] = {"processes": processes, "devices": 2 // processes}
        groups.append(Group("-c", PROGRAM, config, "--workdir", tmp_path / name, **where))
        return groups[-1]

    def parts(cache: str) -> dict[str, bytes]:
        return {file.name: file.read_bytes() for file in (tmp_path / cache).glob("*/*.npy")}

    def losses(name: str) -> list[float]:
        return [json.loads(line)["loss"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]

    start("alone", "one", 1).finish()
    assert len(parts("one")) > 20

    both = start("both", "two", 2)
    both.until(lambda: len(parts("two")) > 6)
    both.send(signal.SIGKILL, 1)
    survivor = both.members[0]
    assert survivor.wait() in (1, -signal.SIGABRT), survivor.said
    assert "another process" in survivor.said or "another task died" in survivor.said, survivor.said
    left = parts("two")
    assert 6 < len(left) < len(parts("one"))

    said = start("both", "two", 2).finish()
    assert parts("two") == parts("one")  # bit for bit, whoever made them
    assert any("encoding 1,438 records once" in member.said for member in groups[-1].members), said
    np.testing.assert_allclose(losses("both"), losses("alone"), rtol=1e-5)
