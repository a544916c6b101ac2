"""Training: the state, the step, the loop, and what they stand on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxdiff.lazy import lazily
from jaxdiff.train.ema import Ema, EmaRule, HalfLifeEma, update_ema
from jaxdiff.train.low_precision import scale_by_short_adam
from jaxdiff.train.metrics import MetricsLog, Progress, summarize
from jaxdiff.train.optimizer import decays, make_optimizer, make_schedule
from jaxdiff.train.sharding import (
    batch_part,
    batch_sharding,
    check_batch_size,
    check_heads,
    create_sharded_state,
    leaf_spec,
    make_mesh,
    put_batch,
    split_sharding,
    state_sharding,
    state_template,
)
from jaxdiff.train.state import TrainState, create_state
from jaxdiff.train.step import compile_step, loss_by_noise, train_step

if TYPE_CHECKING:
    from jaxdiff.train.checkpoint import CheckpointError, Checkpoints, StructureError
    from jaxdiff.train.loop import DivergedError, Outcome, Stop, train_loop

__getattr__ = lazily(  # Orbax takes longer to import than JAX
    __name__,
    {
        **dict.fromkeys(("CheckpointError", "Checkpoints", "StructureError"), "checkpoint"),
        **dict.fromkeys(("DivergedError", "Outcome", "Stop", "train_loop"), "loop"),
    },
)

__all__ = [
    "CheckpointError",
    "Checkpoints",
    "DivergedError",
    "Ema",
    "EmaRule",
    "HalfLifeEma",
    "MetricsLog",
    "Outcome",
    "Progress",
    "Stop",
    "StructureError",
    "TrainState",
    "batch_part",
    "batch_sharding",
    "check_batch_size",
    "check_heads",
    "compile_step",
    "create_sharded_state",
    "create_state",
    "decays",
    "leaf_spec",
    "loss_by_noise",
    "make_mesh",
    "make_optimizer",
    "make_schedule",
    "put_batch",
    "scale_by_short_adam",
    "split_sharding",
    "state_sharding",
    "state_template",
    "summarize",
    "train_loop",
    "train_step",
    "update_ema",
]
