"""A tiny run of `train_loop`: `go` for tests in this process, `python -m tests.train.runs` for those in others."""

from __future__ import annotations

import argparse
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import jax

from jaxdiff.train import (
    Checkpoints,
    Ema,
    MetricsLog,
    Outcome,
    compile_step,
    create_sharded_state,
    make_mesh,
    make_optimizer,
    state_template,
    train_loop,
)
from tests.train.standins import Data, Loss, Net


class SlowData(Data):
    """Takes its time: `pause` seconds a batch, and `hang` seconds at the batch after the third."""

    def __init__(self, pause: float = 0.0, hang: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.pause, self.hang = pause, hang

    def __next__(self) -> Any:
        time.sleep(self.hang if self.hang and self.position["batches"] == 3 else self.pause)
        return super().__next__()


def go(
    folder: Path,
    steps: int,
    *,
    pause: float = 0.0,
    hang: float = 0.0,
    accumulate: int = 1,
    poison: float = float("inf"),
    width: int = 16,
    state_dtype: Any = "float32",
    spike: float | None = None,
    max_skipped: int = 10,
    bad: Collection[int] = (),
    huge: Collection[int] = (),
    **kwargs: Any,
) -> Outcome:
    """Start or resume the run in `folder`."""
    net, loss = Net(width, dropout=0.1), Loss(poison)
    optimizer, schedule = make_optimizer(
        lr=1e-2, steps=1000, schedule="cosine", warmup=3, weight_decay=0.01, state_dtype=state_dtype
    )
    parts = (net, optimizer, loss, jax.random.key(0), make_mesh(data=1))
    template = state_template(*parts)
    step = compile_step(
        net=net,
        loss=loss,
        optimizer=optimizer,
        ema=Ema(),
        template=template,
        schedule=schedule,
        accumulate=accumulate,
        spike=spike,
        max_skipped=max_skipped,
    )
    with Checkpoints(folder / "checkpoints") as checkpoints:
        if checkpoints.latest() is None:
            state, position = create_sharded_state(*parts), None
        else:
            state, position = checkpoints.restore(template)
        data = SlowData(pause, hang, position=position, bad=bad, huge=huge)
        with MetricsLog(folder, start=int(state.step), tensorboard=False) as log:
            return train_loop(
                step, state, data, steps=steps, log=log, checkpoints=checkpoints, max_skipped=max_skipped, **kwargs
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("steps", type=int)
    parser.add_argument("--pause", type=float, default=0.0)
    parser.add_argument("--hang", type=float, default=0.0)
    parser.add_argument("--coordinator")
    options = parser.parse_args()
    if options.coordinator:
        jax.distributed.initialize(options.coordinator, num_processes=1, process_id=0)
    command = f"resume {options.folder}"
    go(
        options.folder,
        options.steps,
        pause=options.pause,
        hang=options.hang,
        log_every=1,
        save_every=1000,
        resume_command=command,
    )
