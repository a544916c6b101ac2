"""The order benchmark: that no sampler is missing from it, and that it finds an order out."""

from __future__ import annotations

import importlib
import inspect
import pkgutil

import jax
import pytest

import jaxdiff.sampling
from benchmarks.orders import passed
from benchmarks.samplers.order_measures import measure, slope
from benchmarks.samplers.order_rows import ADAPTIVE, QUICK, STOCHASTIC, Row, deterministic
from jaxdiff import VP, DPMpp2M, Sampler
from tests.tables import PROCESSES

pytestmark = pytest.mark.nightly

# `STOCHASTIC` says why; Tabulated's order is its table's
WITHOUT_ORDER = {"AnalyticDDPM", "PredictorCorrector", "AnnealedLangevinDynamics", "Restart", "Tabulated"}


def test_every_sampler_is_measured() -> None:
    modules = [
        importlib.import_module(f"jaxdiff.sampling.{module.name}")
        for module in pkgutil.iter_modules(jaxdiff.sampling.__path__)
    ]
    classes = {
        name
        for module in modules
        for name, kind in inspect.getmembers(module, inspect.isclass)
        if issubclass(kind, Sampler) and not inspect.isabstract(kind)
    }
    process = VP()
    made = [row.make(process) for row in deterministic()] + [row.make(process) for row in ADAPTIVE]
    made += [row.make(process, 10) for row in STOCHASTIC]
    assert classes - {type(sampler).__name__ for sampler in made} == WITHOUT_ORDER
    names = [row.name for rows in (deterministic(), ADAPTIVE, STOCHASTIC) for row in rows]
    assert len(names) == len(set(names)) and set(names) >= QUICK


def test_an_order_is_found_out() -> None:
    """DPMpp2M is of order 2, also from its own start, one evaluation a step; a claim of 3 fails. A chain is no other
    curve."""
    found = {}
    with jax.enable_x64(True):
        for name in ("VP", "DiscreteVP_cosine"):
            found[name] = measure(Row("", "", DPMpp2M, 2, 2, multistep=True), PROCESSES[name]())
            assert found[name]["slope"] == pytest.approx(2.0, abs=0.1) and passed(found[name])
            assert found[name]["slope_as_started"] == pytest.approx(2.0, abs=0.1)
            assert found[name]["evaluations_a_step"] == 1
            assert passed(found[name] | {"order": 3}) is False
        assert found["VP"]["seeded"] != found["VP"]["started"]
        assert found["VP"]["seeded"] == pytest.approx(found["DiscreteVP_cosine"]["seeded"], rel=1e-4)


def test_rounding_is_left_out_of_a_slope() -> None:
    counts, errors = [10, 20, 40, 80, 160, 320], [1e-3, 1e-4, 1e-5, 1e-6, 1e-14, 9e-7]
    assert slope(counts, errors) == pytest.approx(3.3219, abs=1e-3)
    assert slope(counts, errors, doublings=1) == pytest.approx(3.3219, abs=1e-3)
    assert not slope(counts, [1e-14] * 6) >= 0


def test_a_method_in_t_is_not_judged_on_a_chain() -> None:
    rows = [row for row in deterministic() if row.in_t]
    assert {row.name for row in rows} == {"Euler", "Heun(t)", "RK4(t)", "DEIS(2, t)", "DEIS(3, t)", "DEIS(4, t)"}
    assert passed({"order": 4, "slope": 2.0, "judged": False}) is None
