"""Skipped steps: nothing moves, all is counted, a run ends well or stops where it can be replayed."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.config.folder import CONFIG
from jaxdiff.train import Checkpoints, DivergedError, Ema, checkpoint, create_state, make_optimizer, train_step
from jaxdiff.train.guard import NORMS, judge, new_guard
from tests.train.runs import go
from tests.train.standins import Data, Loss, Net

KEPT = ("params", "ema", "opt_state", "history")


def _bits(tree: Any) -> list[np.ndarray]:
    keys = jax.dtypes.prng_key
    raw = jax.tree.map(lambda a: jax.random.key_data(a) if jax.dtypes.issubdtype(a.dtype, keys) else a, tree)
    return [np.asarray(leaf).copy() for leaf in jax.tree.leaves(raw)]


def _same(a: Any, b: Any) -> None:
    for x, y in zip(_bits(a), _bits(b), strict=True):
        np.testing.assert_array_equal(x, y)


def _lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def _saved(folder: Path) -> list[int]:
    with Checkpoints(folder / "checkpoints") as checkpoints:
        return checkpoints.steps()


@dataclasses.dataclass(frozen=True)
class BrokenNet(Net):
    """Its output is NaN, or its gradient alone is, where an image has a pixel above 5."""

    how: str = "output"

    def apply(self, params: Any, x: jax.Array, t: jax.Array, cond: Any = None, *, key: Any = None) -> jax.Array:
        broken = x.max() > 5
        out = super().apply(params, x, t, cond, key=key)
        if self.how == "output":
            return out * jnp.where(broken, jnp.nan, 1.0)
        at = jnp.where(broken, 0.0, 1.0) + 0.0 * params["out"]["bias"].sum()
        return out + 0.0 * jnp.sqrt(at)  # whose slope at 0 is infinite


def _poisoned(image: np.ndarray, value: float) -> np.ndarray:
    image = image.copy()
    image[0, 1, 2, 0] = value
    return image


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize(
    ("net", "loss", "pixel"),
    [
        (Net(dropout=0.1), Loss(), math.nan),
        (Net(dropout=0.1), Loss(), math.inf),
        (Net(dropout=0.1), Loss(poison=5.0), 6.0),
        (BrokenNet(how="output"), Loss(), 50.0),
        (BrokenNet(how="gradient"), Loss(), 50.0),
    ],
)
@pytest.mark.parametrize("state_dtype", ["float32", "int8"])
def test_a_bad_step_leaves_everything_as_it_was(
    net: Any, loss: Any, pixel: float, accumulate: int, state_dtype: Any
) -> None:
    optimizer, _ = make_optimizer(lr=1e-2, steps=100, weight_decay=0.01, state_dtype=state_dtype)
    data, state = Data(), create_state(net, optimizer, loss, jax.random.key(0))
    parts = {"net": net, "loss": loss, "optimizer": optimizer, "ema": Ema(0.9), "accumulate": accumulate}
    step = jax.jit(lambda s, b: train_step(s, b, **parts))
    good = [{"x": jnp.asarray(next(data)["x"])} for _ in range(3)]
    bad = {"x": jnp.asarray(_poisoned(np.asarray(good[1]["x"]), pixel))}
    first, _ = step(state, good[0])
    skipped, metrics = step(first, bad)
    assert not (math.isfinite(metrics["loss"]) and math.isfinite(metrics["grad_norm"]))
    for name in KEPT:
        _same(getattr(skipped, name), getattr(first, name))
    assert int(skipped.step) == 2 and int(skipped.guard.skipped) == int(skipped.guard.in_a_row) == 1
    _same(skipped.guard.norms, first.guard.norms)
    assert (int(metrics["skipped"]), int(metrics["in_a_row"])) == (1, 1)
    after, metrics = step(skipped, good[2])
    assert (int(metrics["skipped"]), int(metrics["in_a_row"])) == (1, 0)
    assert all(np.isfinite(leaf).all() for leaf in _bits(after) if leaf.dtype.kind == "f" and leaf.shape != (NORMS,))
    assert any((x != y).any() for x, y in zip(_bits(after.params), _bits(first.params), strict=True))


def test_the_median_is_of_the_last_norms_and_needs_half_of_them() -> None:
    one = jax.jit(lambda guard, norm: judge(guard, jnp.zeros(()), norm, spike=3.0, max_skipped=1000))
    rng, guard, norms = np.random.default_rng(0), new_guard(), list[float]()
    skipped = 0
    for n in range(200):
        norm = float(np.float32(rng.lognormal() * (10 if n % 7 == 0 else 1)))
        last = sorted(norms[-NORMS:])
        usual = last[NORMS // 2 - (NORMS - len(last))] if len(last) == NORMS else math.inf
        if len(last) < NORMS:  # the missing ones are infinite
            usual = (last + [math.inf] * (NORMS - len(last)))[NORMS // 2]
        taken, guard = one(guard, jnp.float32(norm))
        assert bool(taken) == (norm <= np.float32(3.0) * np.float32(usual)), n
        skipped += not bool(taken)
        norms += [norm] if bool(taken) else []
        assert bool(taken) or n > NORMS // 2
    assert skipped > 20 and int(guard.skipped) == skipped


def test_after_as_many_as_are_allowed_nothing_moves() -> None:
    guard = new_guard()
    nan, one = jnp.float32(jnp.nan), jnp.float32(1.0)
    for loss in (nan, nan, one, one):
        taken, guard = judge(guard, loss, one, spike=None, max_skipped=2)
        assert not bool(taken)
    assert (int(guard.skipped), int(guard.in_a_row)) == (2, 2) and bool(jnp.isinf(guard.norms).all())


def test_the_schedule_counts_the_steps_taken(tmp_path: Path) -> None:
    go(tmp_path / "skips", 8, log_every=1, bad={1, 2})
    go(tmp_path / "none", 6, log_every=1)
    rates = [[line["lr"] for line in _lines(tmp_path / name)] for name in ("skips", "none")]
    assert rates[0] == [rates[1][0], rates[1][1], rates[1][1], rates[1][1], *rates[1][2:]]


def test_a_run_with_bad_batches_ends_well(tmp_path: Path) -> None:
    seen: dict[int, Any] = {}
    outcome = go(
        tmp_path,
        12,
        bad={4, 8, 9},
        log_every=3,
        callbacks=[(1, lambda step, state: seen.update({step: _bits([getattr(state, name) for name in KEPT])}))],
    )
    assert outcome.step == 12 and not outcome.stopped
    for step in range(2, 13):
        same = all((x == y).all() for x, y in zip(seen[step], seen[step - 1], strict=True))
        assert same == (step in {5, 9, 10}), step
    lines = _lines(tmp_path)
    assert [line["skipped"] for line in lines] == [0, 1, 2, 3]
    assert all(math.isfinite(line[name]) for line in lines for name in ("loss", "grad_norm", "param_norm"))
    assert not (tmp_path / "skipped_steps.json").exists()


def test_a_gradient_spike_is_skipped(tmp_path: Path) -> None:
    go(tmp_path, 45, spike=8.0, huge={40, 41}, log_every=1)
    lines = _lines(tmp_path)
    assert [line["skipped"] for line in lines[39:44]] == [0, 1, 2, 2, 2]
    assert lines[40]["loss"] is None and lines[41]["param_norm"] == lines[39]["param_norm"] != lines[42]["param_norm"]
    go(tmp_path / "off", 45, spike=None, huge={40, 41}, log_every=1)
    assert _lines(tmp_path / "off")[-1]["skipped"] == 0


@pytest.mark.parametrize("log_every", [1, 7, 100])
def test_too_many_in_a_row_stop_where_they_can_be_replayed(tmp_path: Path, log_every: int) -> None:
    """Ten bad steps and then good ones: those must not be taken before the host has seen what came before them."""
    bad = range(8, 18)
    options: Any = {"max_skipped": 4, "log_every": log_every, "save_every": 100 if log_every == 100 else 6}
    expected = go(tmp_path / "whole", 8).state
    found = []
    for _ in range(2):
        with pytest.raises(DivergedError, match="loss is nan at step 9, and 4 steps in a row were skipped") as stopped:
            go(tmp_path / "run", 40, bad=bad, resume_command="train.py", **options)
        message = str(stopped.value)
        assert "\n" not in message and str(tmp_path / "run" / "skipped_steps.json") in message
        assert "the checkpoint of step 8" in message and "train.py tries them again" in message
        report = json.loads((tmp_path / "run" / "skipped_steps.json").read_text())
        found.append((message, report))
        assert max(_saved(tmp_path / "run")) == report["checkpoint"] == 8
        for step, entry in enumerate(report["steps"], 9):
            records = list(range(16 * (step - 1), 16 * step))
            assert entry == {"step": step, "records": records, "loss": "nan", "grad_norm": "nan"}
        assert len(report["steps"]) == 4
    assert found[0] == found[1]  # the replay gave the same
    _same(go(tmp_path / "run", 8).state, expected)  # and began where the run stood before the first of them

    unbroken = go(tmp_path / "unbroken", 20).state
    _same(go(tmp_path / "run", 20, **options).state, unbroken)  # with the data mended
    assert [line["step"] for line in _lines(tmp_path / "run")][-1] == 20


def test_spikes_in_a_row_stop_too(tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match=r"grad_norm is \S+, a spike, at step 41, and 3 steps in a row"):
        go(tmp_path, 60, spike=8.0, max_skipped=3, huge=range(40, 60), log_every=10)
    assert max(_saved(tmp_path)) == 40


def test_a_run_that_is_bad_from_the_start_has_its_first_state_saved(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(DivergedError, match=r"at step 1, and 3 steps in a row.*the checkpoint of step 0"):
            go(tmp_path, 20, bad=range(20), max_skipped=3)
    assert _saved(tmp_path) == [0]


def test_a_checkpoint_that_is_due_amid_bad_steps_is_that_from_before(tmp_path: Path) -> None:
    bad = range(5, 9)
    options: Any = {"log_every": 100, "save_every": 4}
    whole = go(tmp_path / "whole", 12, bad=bad, log_every=100).state
    run = go(tmp_path / "run", 12, bad=bad, **options)
    _same(run.state, whole)
    assert _saved(tmp_path / "run") == [4, 5, 12]
    for step in (5, 4):  # as if the run had been killed after that one
        for later in _saved(tmp_path / "run"):
            if later > step:
                (tmp_path / "run" / "checkpoints" / str(later)).rename(tmp_path / f"{later}_of_{step}")
        _same(go(tmp_path / "run", 12, bad=bad, **options).state, whole)


def test_a_stop_amid_bad_steps_goes_on_counting(tmp_path: Path) -> None:
    bad = range(5, 9)
    whole = go(tmp_path / "whole", 12, bad=bad).state
    go(tmp_path / "run", 7, bad=bad)
    _same(go(tmp_path / "run", 12, bad=bad).state, whole)

    go(tmp_path / "few", 7, bad=bad, max_skipped=4)
    with pytest.raises(DivergedError, match=r"at step 8, and 4 steps in a row.*the checkpoint of step 7"):
        go(tmp_path / "few", 12, bad=bad, max_skipped=4)
    report = json.loads((tmp_path / "few" / "skipped_steps.json").read_text())
    assert [step["step"] for step in report["steps"]] == [6, 7, 8, 9]
    assert [step["records"][0] for step in report["steps"]] == [16 * n for n in bad]


def test_a_checkpoint_without_a_guard_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trees = checkpoint.trees_of

    def older(state: Any) -> Any:
        found = trees(state)
        return found | {"state": {name: tree for name, tree in found["state"].items() if name != "guard"}}

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "trees_of", older)
        go(tmp_path, 5)
    whole = go(tmp_path / "whole", 9).state
    state = go(tmp_path, 9).state
    for name in ("step", "key", *KEPT):
        _same(getattr(state, name), getattr(whole, name))
    assert int(jnp.isfinite(state.guard.norms).sum()) == 4  # of the steps since


NAN_DATA = """
import dataclasses
import numpy as np
from jaxdiff.codecs import Arrays
from jaxdiff.config.build import SOURCES
from configs.digits_unet import config as digits
from jaxdiff.spec import Spec

class Points:
    spec = {"x": Spec((8, 8, 1), "float32")}
    def __len__(self): return 64
    def take(self, indices):
        x = np.stack([np.random.default_rng(i).uniform(-1, 1, (8, 8, 1)) for i in indices]).astype(np.float32)
        x[indices == 21] = np.nan
        return {"x": x}

SOURCES["nan"] = lambda **options: Points()
small = dict(width=8, multipliers=(1,), blocks=1, attention_resolutions=(), num_classes=None)
config = dataclasses.replace(
    digits,
    data=dataclasses.replace(digits.data, name="nan"),
    codec=Arrays((8, 8, 1)),  # one that is fitted refuses the NaN
    network=dataclasses.replace(digits.network, **small),
    loss=dataclasses.replace(digits.loss, dropout={}),
)
"""


@pytest.mark.nightly
def test_the_program_skips_and_stops(tmp_path: Path, run_python: Any) -> None:
    """A set of 64 images of which one is NaN: a batch of 16 is bad once an epoch, one of 64 always."""
    (tmp_path / "own.py").write_text(NAN_DATA)
    common = ("train.py", tmp_path / "own.py", "--train.sample_every", "0", "--train.log_every", "4")
    options = ("--train.max_skipped", "3", "--optimizer.schedule", "constant", "--optimizer.warmup", "1")
    few = (*common, "--workdir", tmp_path / "few", *options)
    done = run_python(*few, "--train.batch_size", "16", "--train.steps", "12")
    assert "trained steps 0 to 12" in done.stdout
    assert [line["skipped"] for line in _lines(tmp_path / "few")] == [1, 2, 3]

    all_ = (*common, "--workdir", tmp_path / "all", *options, "--train.batch_size", "64", "--train.steps", "12")
    done = run_python(*all_, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "Traceback" not in done.stderr, done.stderr
    assert done.stderr.startswith("train.py: error: loss is nan at step 1, and 3 steps in a row were skipped")
    report = json.loads((tmp_path / "all" / "skipped_steps.json").read_text())
    assert all(sorted(step["records"]) == list(range(64)) for step in report["steps"])
    assert (tmp_path / "all" / CONFIG).is_file() and (tmp_path / "all" / "checkpoints" / "0").is_dir()
