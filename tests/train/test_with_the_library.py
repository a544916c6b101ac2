"""Training with a network of the library, its loss and importance sampling in place of the stand-ins."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxdiff import CosineVP, V
from jaxdiff.loss import DenoisingLoss
from jaxdiff.networks import DiT, functional
from jaxdiff.times import LossSecondMoment
from jaxdiff.train import (
    Checkpoints,
    Ema,
    batch_sharding,
    compile_step,
    create_sharded_state,
    make_mesh,
    make_optimizer,
    put_batch,
    state_template,
)

NETWORK = DiT(in_channels=1, patch=2, width=16, depth=2, heads=2, num_classes=10, dropout=0.1)


def batch(step: int) -> dict[str, np.ndarray]:
    """A batch of step `step`, whatever came before."""
    rng = np.random.default_rng(step)
    image = rng.uniform(-1, 1, (16, 8, 8, 1)).astype(np.float32)
    return {"x": image, "label": rng.integers(0, 10, 16, dtype=np.int32)}


class Run:
    """A state and its step on a mesh."""

    def __init__(self, accumulate: int = 1, data: int = 1, fsdp: int = 1) -> None:
        net = functional(NETWORK)
        self.loss = DenoisingLoss(CosineVP(), V(), time=LossSecondMoment(bins=4, length=1), dropout={"label": 0.2})
        optimizer, schedule = make_optimizer(lr=1e-3, steps=100, warmup=5, weight_decay=0.01)
        self.mesh = make_mesh(data, fsdp)
        parts = (net, optimizer, self.loss, jax.random.key(0), self.mesh)
        self.template = state_template(*parts)
        self.state = create_sharded_state(*parts)
        self.step = compile_step(
            net=net,
            loss=self.loss,
            optimizer=optimizer,
            ema=Ema(0.99),
            template=self.template,
            schedule=schedule,
            accumulate=accumulate,
        )

    def losses(self, start: int, stop: int) -> list[float]:
        found = []
        for step in range(start, stop):
            with jax.transfer_guard("disallow"):
                self.state, metrics = self.step(self.state, put_batch(batch(step), batch_sharding(self.mesh)))
            found.append(float(metrics["loss"]))
        return found


ON_EIGHT = """
import json
from tests.train.test_with_the_library import Run
print(json.dumps(Run(data=2, fsdp=4).losses(0, 20)))
"""


@pytest.mark.nightly
def test_a_split_state_on_eight_devices_gives_the_same_losses(run_python: Any) -> None:
    eight = json.loads(run_python("-c", ON_EIGHT, devices=8).stdout.splitlines()[-1])
    np.testing.assert_allclose(eight, Run().losses(0, 20), rtol=1e-5)


def test_a_restart_is_bit_for_bit(tmp_path: Path) -> None:
    unbroken, broken, again = (Run(accumulate=2) for _ in range(3))
    whole, first = unbroken.losses(0, 12), broken.losses(0, 7)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(7, broken.state)
    with Checkpoints(tmp_path) as checkpoints:
        again.state, _ = checkpoints.restore(again.template)
    assert first + again.losses(7, 12) == whole
    assert np.asarray(again.state.history.seen).sum() > 0
    for a, b in zip(jax.tree.leaves(again.state.ema), jax.tree.leaves(unbroken.state.ema), strict=True):
        np.testing.assert_array_equal(a, b)
