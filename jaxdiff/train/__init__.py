"""Training: the state, the step, the loop, and what they stand on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxdiff.launch.signals import Stop
from jaxdiff.lazy import lazily
from jaxdiff.train.ema import Ema, EmaRule, HalfLifeEma, update_ema
from jaxdiff.train.guard import Guard
from jaxdiff.train.low_precision import scale_by_short_adam
from jaxdiff.train.metrics import MetricsLog, Progress, summarize
from jaxdiff.train.optimizer import decays, make_optimizer, make_schedule
from jaxdiff.train.profile import Window
from jaxdiff.train.sharding import (
    batch_part,
    batch_sharding,
    check_batch_size,
    check_heads,
    create_sharded_state,
    leaf_spec,
    make_mesh,
    params_template,
    put_batch,
    split_sharding,
    state_sharding,
    state_template,
)
from jaxdiff.train.skipped import DivergedError
from jaxdiff.train.state import TrainState, create_state
from jaxdiff.train.step import compile_step, loss_by_noise, several_steps, train_step

if TYPE_CHECKING:
    from jaxdiff.train.checkpoint import Checkpoints, SaveError
    from jaxdiff.train.checkpoint_format import CheckpointError, StructureError
    from jaxdiff.train.flops import peak_flops, step_flops
    from jaxdiff.train.initial import read_cached, read_codec, read_text, read_weights, with_weights
    from jaxdiff.train.loop import Outcome, train_loop
    from jaxdiff.train.network_folder import save_network

__getattr__ = lazily(  # Orbax takes longer to import than JAX
    __name__,
    {
        **dict.fromkeys(("Checkpoints", "SaveError"), "checkpoint"),
        **dict.fromkeys(("CheckpointError", "StructureError"), "checkpoint_format"),
        **dict.fromkeys(("read_cached", "read_codec", "read_text", "read_weights", "with_weights"), "initial"),
        **dict.fromkeys(("Outcome", "train_loop"), "loop"),
        "save_network": "network_folder",
        **dict.fromkeys(("peak_flops", "step_flops"), "flops"),
    },
)

__all__ = [
    "CheckpointError",
    "Checkpoints",
    "DivergedError",
    "Ema",
    "EmaRule",
    "Guard",
    "HalfLifeEma",
    "MetricsLog",
    "Outcome",
    "Progress",
    "SaveError",
    "Stop",
    "StructureError",
    "TrainState",
    "Window",
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
    "params_template",
    "peak_flops",
    "put_batch",
    "read_cached",
    "read_codec",
    "read_text",
    "read_weights",
    "save_network",
    "scale_by_short_adam",
    "several_steps",
    "split_sharding",
    "state_sharding",
    "state_template",
    "step_flops",
    "summarize",
    "train_loop",
    "train_step",
    "update_ema",
    "with_weights",
]
