"""Guidance by name, in a model."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff.codecs import Points
from jaxdiff.model import Model
from jaxdiff.networks import MLP, functional


def model() -> Model:
    net = functional(MLP(width=16, depth=2, num_classes=3))

    params = jax.tree.map(lambda leaf: leaf + 0.1, net.init(jax.random.key(0)))
    return Model(jd.NetworkDenoiser(net, params, jd.VP(), jd.V()), Points((2,)))


def test_other_conditions_are_joined_by_name() -> None:
    """and, not, and a weight for a condition, as text; each batch has its own rows of them."""
    made, x, t = model(), jnp.array([[0.3, -0.2]]), jnp.asarray(0.5)

    def x0(guide: Any, cond: Any) -> Any:
        return made.plan(1, cond, guide=guide).denoise(x, t, made.given(1, cond)).x0

    none, one, two = x0((), {}), x0((), {"label": 1}), x0((), {"label": 2})
    joined = none + 3.0 * (one - none) + 0.5 * (two - none)
    np.testing.assert_allclose(x0(["cfg:3", "and:label=2,weight=0.5"], {"label": 1}), joined, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(x0(["cfg:3", "not:label=2,weight=-0.5"], {"label": 1}), joined, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(x0("cfg:label=3", {"label": 1}), none + 3.0 * (one - none), rtol=1e-4, atol=1e-6)
    labels = np.array([0, 1, 2])
    options: dict[str, Any] = {"decode": False, "steps": 3}
    each: list[Any] = ["cfg:1", jd.And({"label": labels}, np.array([0.5, 1.0, -1.0]))]
    whole = made.sample(0, 3, {"label": 1}, guide=each, **options)
    np.testing.assert_allclose(made.sample(0, 3, {"label": 1}, guide=each, batch_size=2, **options), whole, rtol=1e-5)
    for guide, message in (
        (["cfg:2", "and:style=2"], "style"),
        (["and:label=2"], "and joins a condition to cfg: put cfg right before it"),
        (["cfg:2", "and:weight=2"], "and joins a condition, such as"),
        ("cfg:wieght=2", r"cfg has a weight for \['wieght'\]; the conditions that can be guided are \['label'\]"),
        ("cfg", "cfg needs weight, for instance cfg:2"),
        ("cfg:2,label=3", "cfg takes one weight, or one for each condition by its name"),
    ):
        with pytest.raises(ValueError, match=message):
            made.sample(0, 1, {"label": 1}, guide=guide)


def test_guidance_with_samplers_of_its_own() -> None:
    made = model()
    for sampler in ("ddim", "ddim:eta=0.5", "ddpm"):
        assert np.isfinite(made.sample(0, 2, {"label": 1}, guide="cfgpp:0.6", sampler=sampler, decode=False)).all()
    with pytest.raises(ValueError, match="CFGPlusPlus is for the samplers DDIM and DDPM, got UniPC"):
        made.sample(0, 2, {"label": 1}, guide="cfgpp:0.6", sampler="unipc")
