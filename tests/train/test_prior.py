"""DreamBooth's prior-preserving loss: both terms by hand, and a training with pictures of the class beside it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxdiff
from jaxdiff import Flow, Velocity
from jaxdiff.config import ConfigError, DataConfig, LossConfig
from jaxdiff.data import DataError
from jaxdiff.loss import PRIOR, Context, DenoisingLoss, PriorPreserving
from jaxdiff.times import LossSecondMoment
from jaxdiff.train import Ema, create_state
from jaxdiff.train.step import Given, train_step
from tests.runs.test_fit import config, same
from tests.runs.test_lora import NETWORK

RNG = np.random.default_rng(0)
BATCH = {"x": jnp.asarray(RNG.normal(size=(6, 4, 4, 1)), jnp.float32)}
CLASS = {"x": jnp.asarray(3 + RNG.normal(size=(5, 4, 4, 1)), jnp.float32)}
PLAIN = DenoisingLoss(Flow(), Velocity())
CONTEXT = Context(frozen={PRIOR: CLASS})


class Scale:
    """A network of one number."""

    cond: dict[str, Any] = {}  # noqa: RUF012

    def init(self, key: Any) -> Any:
        return {"w": jnp.float32(0.3)}

    def apply(self, params: Any, x: Any, t: Any, cond: Any = None, *, key: Any = None) -> Any:
        return params["w"] * x


def test_the_mean_is_the_sum_of_both_means() -> None:
    loss, key, params = PriorPreserving(PLAIN, 0.7), jax.random.key(3), {"w": jnp.float32(0.3)}
    draws = loss.draw(key, BATCH, loss.init(), CONTEXT)
    found = loss.terms(Scale(), params, draws, CONTEXT)
    mine, prior = (PLAIN.terms(Scale(), params, each) for each in (draws.mine, draws.prior))
    np.testing.assert_allclose(found.loss.mean(), mine.loss.mean() + 0.7 * prior.loss.mean(), rtol=1e-6)
    np.testing.assert_allclose(found.mse, jnp.concatenate([mine.mse, prior.mse]), rtol=1e-6)
    assert draws.t.shape == found.loss.shape == (12,)
    alone = PLAIN.draw(key, BATCH)  # the batch's own draws are as without the term
    jax.tree.map(np.testing.assert_array_equal, draws.mine, alone)
    np.testing.assert_allclose(mine.loss, PLAIN.terms(Scale(), params, alone).loss, rtol=1e-6)
    chosen = {float(each) for each in draws.prior.x0[:, 0, 0, 0]}
    assert chosen <= {float(each) for each in CLASS["x"][:, 0, 0, 0]}
    assert len(chosen) > 1


def test_a_step_is_the_same_by_micro_batches_and_a_factor_of_0_is_the_plain_loss() -> None:
    def grads(loss: Any, accumulate: int = 1) -> Any:
        options: dict[str, Any] = {"net": Scale(), "loss": loss, "optimizer": optax.sgd(1.0), "ema": Ema(0.9)}
        state = create_state(Scale(), options["optimizer"], loss, jax.random.key(0))
        step = jax.jit(lambda s, b, g: train_step(s, b, g, accumulate=accumulate, **options))
        new, metrics = step(state, BATCH, Given(frozen={PRIOR: CLASS}))
        return new.params["w"], metrics["loss"], metrics["loss_by_noise"][1].sum()

    whole, parts, none = (
        grads(PriorPreserving(PLAIN)),
        grads(PriorPreserving(PLAIN), 3),
        grads(PriorPreserving(PLAIN, 0.0)),
    )
    np.testing.assert_allclose(whole, parts, rtol=1e-5)
    assert whole[2] == 12
    np.testing.assert_allclose(none[:2], grads(PLAIN)[:2], rtol=1e-5)
    assert abs(float(whole[0] - none[0])) > 1e-3


def test_the_history_of_importance_sampling_is_of_the_batch_alone() -> None:
    plain = DenoisingLoss(Flow(), Velocity(), time=LossSecondMoment())
    loss, params = PriorPreserving(plain, 0.0), {"w": jnp.float32(0.3)}
    draws = loss.draw(jax.random.key(0), BATCH, loss.init(), CONTEXT)
    terms = loss.terms(Scale(), params, draws, CONTEXT)
    wanted = plain.update(plain.init(), draws.mine, plain.terms(Scale(), params, draws.mine))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), loss.update(loss.init(), draws, terms), wanted
    )


def test_a_training_with_pictures_of_the_class(tmp_path: Path) -> None:
    for name, value, n in (("mine", 200, 12), ("class", 50, 40)):
        images = np.clip(RNG.normal(value, 5, (n, 4, 4, 1)), 0, 255).astype(np.uint8)
        np.savez(tmp_path / f"{name}.npz", x=images)

    def tuned(folder: str, steps: int = 4, **loss: Any) -> Any:
        whole = config(tmp_path / folder, NETWORK, steps=steps, loss=LossConfig(**loss))
        data = DataConfig(name="npz", path=str(tmp_path / "mine.npz"))
        return jaxdiff.fit(dataclasses.replace(whole, data=data))

    prior = str(tmp_path / "class.npz")
    run, plain = tuned("prior", prior=prior), tuned("plain")
    assert not same(run.denoise.params, plain.denoise.params)
    tuned("again", 2, prior=prior)
    assert same(tuned("again", 4, prior=prior).denoise.params, run.denoise.params)
    assert same(jaxdiff.load(tmp_path / "prior").denoise.params, run.denoise.params)
    saved = json.loads((tmp_path / "prior" / "config.json").read_text())
    assert saved["loss"]["prior"] == prior
    with pytest.raises(DataError, match="nowhere"):
        tuned("other", prior=str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match=r"loss\.prior_weight: there are no pictures of the class"):
        tuned("other", prior_weight=0.5)
