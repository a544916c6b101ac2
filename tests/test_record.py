"""Records are pytrees whose structures tell classes apart, and survive whatever JAX does to pytrees."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import jaxdiff as jd
from jaxdiff import field, record
from tests.tables import PARAMETERIZATIONS, PROCESSES, SAMPLERS


@record
class Line:
    slope: float
    name: str = field(default="line", pytree_node=False)


@record
class Curve:
    slope: float
    name: str = field(default="line", pytree_node=False)


def structure(value: Any) -> Any:
    return jax.tree.structure(value)


def test_structures_of_two_classes_differ() -> None:
    """Else a function jitted for one class may run what was compiled for the other (see jaxdiff/record.py)."""
    assert structure(Line(1.0)) == structure(Line(2.0))
    assert structure(Line(1.0)) != structure(Curve(1.0))
    assert structure(Line(1.0)) != structure(Line(1.0, "other"))


def test_structures_of_everything_that_enters_a_jit_differ() -> None:
    process = jd.VP()
    values = [
        *{type(make()): make() for make in PROCESSES.values()}.values(),
        *PARAMETERIZATIONS.values(),
        *{type(make(process)): make(process) for make in SAMPLERS.values()}.values(),
        *(jd.Simple(), jd.SNR(), jd.Likelihood(), jd.MinSNR(), jd.KarrasWeight(), jd.Sigmoid()),
        *(jd.Uniform(), jd.Stratified(), jd.LogitNormal(), jd.LogNormalSigma(), jd.UniformLogSNR()),
    ]
    for one, other in itertools.combinations(values, 2):
        assert structure(one) != structure(other), (type(one), type(other))


def test_records_pass_through_transformations() -> None:
    lines = jax.vmap(lambda slope: Line(slope))(jnp.arange(3.0))
    assert isinstance(lines, Line) and jnp.shape(lines.slope) == (3,)
    assert jax.jit(lambda line: dataclasses.replace(line, slope=line.slope + 1))(Line(1.0)).slope == 2.0
    assert jax.grad(lambda line: line.slope**2)(Line(3.0)).slope == 6.0
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path({"a": Line(1.0)})]
    assert paths == ["['a'].slope"]
    with pytest.raises(dataclasses.FrozenInstanceError):
        Line(1.0).slope = 2.0  # type: ignore[misc]


def test_a_changed_chain_has_its_own_table() -> None:
    process = dataclasses.replace(jd.DiscreteVP(jd.linear_betas(100)), betas=jd.cosine_betas(100))
    assert float(process.alpha(0.5)) == float(jd.DiscreteVP(jd.cosine_betas(100)).alpha(0.5))


def test_what_is_derived_is_no_leaf() -> None:
    """Wrapped samplers have their process from the sampler they wrap: one leaf, whose gradient is the whole."""
    for wrap in (jd.Restart, lambda sampler: jd.PredictorCorrector(sampler, jd.AnnealedLangevin(0.1))):
        sampler = wrap(jd.DPMpp2M(jd.Flow()))
        assert len(jax.tree.leaves(wrap(jd.DPMpp2M(jd.VP())))) == len(jax.tree.leaves(sampler)) + 2
        changed = jax.tree.map(lambda leaf: 2.0 * leaf, wrap(jd.DPMpp2M(jd.VP())))
        inner = getattr(changed, "sampler", None) or changed.predictor
        assert changed.process is inner.process and changed.process.beta_max == 40.0
    gradient = jax.grad(lambda s: s.process.alpha(0.5), allow_int=True)(jd.Restart(jd.DPMpp2M(jd.VP())))
    assert float(gradient.sampler.process.beta_max) < 0
    other = dataclasses.replace(jd.Restart(jd.DPMpp2M(jd.VP())), sampler=jd.DPMpp2M(jd.Flow()))
    assert type(other.process) is jd.Flow
