"""Every scheduler that is followed step by step, beside diffusers' own, with the noise that diffusers draws.

A network that is not linear takes the place of a trained one. Where torch and diffusers are installed: `python -m
pytest -m nightly tests/parity`.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import itertools
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.pretrained.errors import PretrainedError
from jaxdiff.pretrained.fields import Fields
from jaxdiff.pretrained.schedulers.classes import SCHEDULERS, table
from jaxdiff.pretrained.schedulers.fields import FIELDS, SHIFT_BY_SIZE
from jaxdiff.pretrained.schedulers.steps import follow
from tests.covers import cover, pairs
from tests.parity.originals import diffusers, quiet, torch

pytestmark = pytest.mark.nightly
RNG = np.random.default_rng(0)
X, NOISE = (RNG.normal(size=shape).astype(np.float32) for shape in ((2, 4, 3), (60, 2, 4, 3)))
MIXING = 0.5 * RNG.normal(size=(3, 3)).astype(np.float32)
SD: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
CLASSES = {
    "DDIM": {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1},
    "DDPM": {},
    "PNDM": {"skip_prk_steps": True, "steps_offset": 1},
    "EulerDiscrete": {"steps_offset": 1},
    "EulerAncestralDiscrete": {},
    "HeunDiscrete": {},
    "DPMSolverMultistep": {},
    "UniPCMultistep": {},
    "LMSDiscrete": {},
    "KDPM2Discrete": {},
    "KDPM2AncestralDiscrete": {},
    "DPMSolverSDE": {},
    "DEISMultistep": {},
    "SASolver": {},
    "DDIMInverse": {"clip_sample": False, "steps_offset": 1},
}
NO_SAMPLE = ("PNDM", "EulerAncestralDiscrete", "KDPM2Discrete", "KDPM2AncestralDiscrete", "DPMSolverSDE")
"""diffusers' own have no prediction of x0."""


class Brownian:
    """In the place of torchsde's tree: the path whose standard increments are the noises of the evaluations."""

    def __init__(self, *_: Any) -> None:
        self.calls, self.first = 0, (torch.zeros(()), torch.zeros(()))

    def __call__(self, start: Any, end: Any) -> Any:
        z, self.calls = torch.from_numpy(NOISE[self.calls]), self.calls + 1
        if self.calls % 2:
            self.first = (end, z)
            return z
        middle, before = self.first
        return ((start - middle).sqrt() * before + (middle - end).sqrt() * z) / (start - end).sqrt()


def original(name: str) -> Any:
    """diffusers' class. Of two, torchsde is imported, which is not needed here."""
    if name != "DPMSolverSDEScheduler":
        return getattr(diffusers, name)
    sys.modules.setdefault("torchsde", types.ModuleType("torchsde"))
    module: Any = importlib.import_module("diffusers.schedulers.scheduling_dpmsolver_sde")
    module.BrownianTreeNoiseSampler = Brownian
    return module.DPMSolverSDEScheduler


def theirs(scheduler: Any, times: dict[str, Any], n: int, scale: float, **options: Any) -> tuple[Any, Any]:
    """The sample and the times of diffusers; evaluation i draws the noise i."""
    scheduler.set_timesteps(n, **times)
    x = torch.from_numpy(X)
    if type(scheduler).__name__.startswith(("DEIS", "SA")):  # their integrals cancel in float32
        scheduler.sigmas, x = scheduler.sigmas.double(), x.double()
    mixing = torch.from_numpy(MIXING).to(x.dtype)
    drawn = {"i": 0}
    module: Any = sys.modules[type(scheduler).__module__]
    own = getattr(module, "randn_tensor", None)
    module.randn_tensor = lambda shape, **_: torch.from_numpy(NOISE[drawn["i"]])
    try:
        x = x * getattr(scheduler, "init_noise_sigma", 1.0)
        for i, t in enumerate(scheduler.timesteps):
            drawn["i"] = i
            given = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
            f = torch.tanh(given @ mixing) + 0.3 * torch.cos(t.to(x.dtype) / scale) * given
            x = scheduler.step(f, t, x, **options).prev_sample
    finally:
        module.randn_tensor = own
    return x.numpy(), scheduler.timesteps.numpy()


def network(scale: float, x: Any, told: Any, _: Any) -> Any:
    return jnp.tanh(jnp.matmul(x, MIXING, precision="highest")) + 0.3 * jnp.cos(told / scale) * x


NETWORKS: dict[float, Callable[[Any, Any, Any], Any]] = {s: functools.partial(network, s) for s in (300.0, 2.0)}


def noise(i: Any) -> Any:
    return jnp.asarray(NOISE)[i]


compiled = jax.jit(follow, static_argnums=(1, 3))


def check(
    name: str,
    n: int,
    config: dict[str, Any],
    times: Any = None,
    *,
    scale: float = 300.0,
    tokens: int | None = None,
    even: bool = False,
    eta: float | None = None,
) -> None:
    name = f"{name}Scheduler"
    with quiet():
        scheduler = original(name)(**config)
        fields = Fields({"_class_name": name, **scheduler.config})
        given = {} if eta is None else {"eta": eta}
        try:
            steps = table(fields, n, tokens=tokens, eta=eta or 0.0, even=even)
        except PretrainedError as error:
            assert "twice, where diffusers fails" in str(error)
            with pytest.raises((IndexError, RuntimeError, AssertionError)):
                theirs(scheduler, times or {}, n, scale, **given)
            return
        expected, told = theirs(scheduler, times or {}, n, scale, **given)
    assert np.isfinite(expected).all()
    np.testing.assert_allclose(steps.told, told, rtol=1e-5, atol=scale / 3e4)
    found = compiled(steps, NETWORKS[scale], jnp.asarray(X) * steps.start, noise)
    assert np.abs(found - expected).max() < 1e-4 * np.sqrt(np.square(expected).mean())


@pytest.mark.parametrize("n", [4, 7, 20])
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("name", CLASSES)
def test_the_steps_are_the_originals(name: str, spacing: str, n: int) -> None:
    if (name, spacing) == ("DDIMInverse", "linspace"):
        pytest.skip("diffusers' own has no such spacing")
    check(name, n, {**SD, **CLASSES[name], "timestep_spacing": spacing})


@pytest.mark.parametrize("kind", ["v_prediction", "sample"])
@pytest.mark.parametrize("name", [*CLASSES, "LCM", "TCD"])
def test_what_is_predicted(name: str, kind: str) -> None:
    if kind == "sample" and name in NO_SAMPLE:
        pytest.skip("diffusers' own has no such prediction")
    if (name, kind) == ("DDIMInverse", "sample"):
        pytest.skip("diffusers' own ends in NaN: the first step begins without noise")
    check(name, 6, {**CLASSES.get(name, {}), "prediction_type": kind}, eta=0.0 if name == "TCD" else None)


def variants() -> Iterator[Any]:
    for order in (1, 2, 3):
        for n in (10, 20):  # below 15 steps the last are of lower order
            for options in (
                {"use_karras_sigmas": True},
                {"algorithm_type": "sde-dpmsolver++"},
                {"final_sigmas_type": "sigma_min", "solver_type": "heun"},
                {"lower_order_final": False, "euler_at_final": True},
            ):
                yield "DPMSolverMultistep", n, {**SD, **options, "solver_order": order}
            yield "UniPCMultistep", n, {**SD, "solver_order": order, "use_karras_sigmas": order == 2}
            yield (
                "UniPCMultistep",
                n,
                {**SD, "solver_order": order, "solver_type": "bh1", "final_sigmas_type": "sigma_min"},
            )
    for name in ("EulerDiscrete", "HeunDiscrete", "DPMSolverMultistep", "UniPCMultistep"):
        for by in ("karras", "exponential"):
            yield name, 12, {**SD, f"use_{by}_sigmas": True}
    for name in ("DDIM", "EulerDiscrete", "EulerAncestralDiscrete", "DPMSolverMultistep", "UniPCMultistep"):
        zero = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}
        yield name, 12, {**SD, **zero}
    yield from (("LCM", n, {}) for n in (1, 4, 8))
    yield "DDPM", 10, {"beta_schedule": "squaredcos_cap_v2", "variance_type": "fixed_large"}
    yield "DDIM", 10, {"trained_betas": list(np.linspace(1e-4, 0.03, 200)), "num_train_timesteps": 200}
    yield from (("FlowMatchEulerDiscrete", 28, {"shift": shift}) for shift in (1.0, 3.0))
    yield "FlowMatchEulerDiscrete", 10, {"stochastic_sampling": True, "shift_terminal": 0.1}


@pytest.mark.parametrize(("name", "n", "config"), [*variants()])
def test_the_options_are_the_originals(name: str, n: int, config: dict[str, Any]) -> None:
    check(name, n, config)


# --- options that multiply: covers by pairs


LEVELS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
SPACINGS, KINDS = ("leading", "linspace", "trailing"), ("epsilon", "v_prediction", "sample")
FLOW: dict[str, Any] = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
COSINE: dict[str, Any] = {"beta_schedule": "squaredcos_cap_v2", "lambda_min_clipped": -5.1}
SDE: dict[str, Any] = {"algorithm_type": "sde-dpmsolver++"}
HEUN: dict[str, Any] = {"solver_type": "heun"}
ZERO_SNR: dict[str, Any] = {"rescale_betas_zero_snr": True}


def one(name: str, *values: Any) -> list[dict[str, Any]]:
    return [{name: value} for value in values]


BY_LEVEL = [{}, *({name: True} for name in LEVELS)]
SPACED = one("timestep_spacing", *SPACINGS)
PREDICTED = one("prediction_type", *KINDS)
ORDERS = one("solver_order", 1, 2, 3)
FINAL = one("final_sigmas_type", "zero", "sigma_min")
LOWER = one("lower_order_final", True, False)
AXES: dict[str, list[list[dict[str, Any]]]] = {
    "EulerDiscrete": [
        BY_LEVEL,
        SPACED,
        [*PREDICTED, {"prediction_type": "v_prediction", "timestep_type": "continuous"}],
        FINAL,
        [{}, {"sigma_min": 0.01, "sigma_max": 50.0}, {"interpolation_type": "log_linear"}],
    ],
    "HeunDiscrete": [BY_LEVEL, SPACED, PREDICTED, [{}, {"clip_sample": True}]],
    "LMSDiscrete": [BY_LEVEL, SPACED, PREDICTED],
    "KDPM2Discrete": [BY_LEVEL, SPACED, PREDICTED[:2]],
    "KDPM2AncestralDiscrete": [BY_LEVEL, SPACED, PREDICTED[:2]],
    "DPMSolverSDE": [BY_LEVEL, SPACED, PREDICTED[:2]],
    "DPMSolverMultistep": [
        [*BY_LEVEL, {"use_lu_lambdas": True}],
        SPACED,
        PREDICTED,
        ORDERS,
        [{}, SDE],
        [{}, HEUN],
        FINAL,
        LOWER,
        [SD, COSINE, {**SD, **ZERO_SNR}, {**SD, "euler_at_final": True}],
    ],
    "DPMSolverSinglestep": [BY_LEVEL, PREDICTED, ORDERS, [{}, SDE], [{}, HEUN], FINAL, LOWER, [SD, COSINE]],
    "UniPCMultistep": [
        [*BY_LEVEL, {"use_karras_sigmas": True, "sigma_min": 0.05, "sigma_max": 10.0}],
        SPACED,
        PREDICTED,
        ORDERS,
        [{}, {"solver_type": "bh1"}],
        FINAL,
        LOWER,
        [{}, ZERO_SNR, {"disable_corrector": [0, 2]}],
    ],
    "DEISMultistep": [BY_LEVEL, SPACED, PREDICTED, ORDERS, LOWER],
    "SASolver": [
        BY_LEVEL,
        SPACED,
        PREDICTED,
        one("predictor_order", 1, 2, 3),
        one("corrector_order", 1, 2, 3),
        LOWER,
        [SD, COSINE],
    ],
    "FlowMatchEulerDiscrete": [
        BY_LEVEL,
        one("shift", 1.0, 3.0),
        one("shift_terminal", None, 0.1),
        one("stochastic_sampling", False, True),
    ],
    "FlowMatchLCM": [BY_LEVEL, one("shift", 1.0, 3.0), one("shift_terminal", None, 0.1)],
    "FlowMatchHeunDiscrete": [one("shift", 1.0, 3.0)],
}
EDM = [
    one("sigma_schedule", "karras", "exponential"),
    one("prediction_type", "epsilon", "v_prediction"),
    [{}, {"sigma_data": 1.0, "sigma_max": 120.0, "sigma_min": 0.01, "rho": 5.0}],
]
AT_THEIR_SCALE: dict[str, list[list[dict[str, Any]]]] = {
    "EDMEuler": [*EDM, FINAL],
    "EDMDPMSolverMultistep": [*EDM, FINAL, ORDERS, [{}, SDE], [{}, HEUN], LOWER],
    "CMStochasticIterative": [
        [{}, {"sigma_data": 1.0, "sigma_max": 20.0, "rho": 5.0}],
        one("clip_denoised", True, False),
        one("s_noise", 1.0, 0.7),
    ],
}


def ends_in_nan(name: str, config: dict[str, Any]) -> bool:
    """What diffusers itself does not survive, or not in every rounding, and jaxdiff refuses."""
    levels = any(config.get(each) for each in (*LEVELS, "use_lu_lambdas"))
    empty = config.get("final_sigmas_type") == "sigma_min" and (levels or "EDM" in name)
    third, heun, noisy = config.get("solver_order") == 3, "solver_type" in config, "algorithm_type" in config
    if name == "UniPCMultistep":
        if config["solver_order"] > 1 and not config["lower_order_final"] and config["final_sigmas_type"] == "zero":
            return True
        return empty or (heun and config.get("final_sigmas_type") != "sigma_min")
    if name == "DPMSolverSinglestep":
        return empty and noisy
    if name == "EDMDPMSolverMultistep" and noisy and third:
        return True
    zero = config.get("rescale_betas_zero_snr") and config.get("prediction_type") == "epsilon"
    return bool(empty and (third or heun or noisy)) or bool(zero)


def rows(axes: dict[str, list[list[dict[str, Any]]]]) -> Iterator[Any]:
    for name, several in axes.items():
        made = (
            (n, *chosen)
            for n in (9, 20)
            for chosen in itertools.product(*several)
            if not ends_in_nan(name, {key: value for part in chosen for key, value in part.items()})
        )
        found = cover(made, lambda row: pairs([str(each) for each in row]))
        for row in found:
            chosen: tuple[Any, ...] = row[1:]
            yield name, row[0], {key: value for part in chosen for key, value in part.items()}


@pytest.mark.parametrize(("name", "n", "config"), [*rows(AXES)])
def test_options_in_pairs(name: str, n: int, config: dict[str, Any]) -> None:
    check(name, n, config)


@pytest.mark.parametrize(("name", "n", "config"), [*rows(AT_THEIR_SCALE)])
def test_preconditioned_ones(name: str, n: int, config: dict[str, Any]) -> None:
    check(name, n, config, scale=300.0 if name.startswith("CM") else 2.0)


@pytest.mark.parametrize("n", [9, 20])
@pytest.mark.parametrize("name", ["DPMSolverMultistep", "DPMSolverSinglestep", "UniPCMultistep", "DEISMultistep"])
def test_solvers_of_flows(name: str, n: int) -> None:
    for order in (1, 2, 3):
        check(name, n, {**FLOW, "solver_order": order, "flow_shift": 3.0 if order == 2 else 1.0})
    mu = 0.5 + (1024 - 256) * (1.15 - 0.5) / (4096 - 256)
    check(name, n, {**FLOW, "use_dynamic_shifting": True}, {"mu": mu}, tokens=1024)
    if name.startswith("DPM"):
        check(name, n, {**FLOW, **SDE, "final_sigmas_type": "sigma_min"})
    if name == "UniPCMultistep":
        check(name, n, {**FLOW, "shift_terminal": 0.1})
        check(name, n, {**FLOW, "use_karras_sigmas": True})


def test_sa_solver_of_flows() -> None:
    for order in (1, 2, 3):
        check("SASolver", 12, {**FLOW, "predictor_order": order, "flow_shift": 3.0})


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("n", [1, 4, 8])
def test_tcd(n: int, eta: float) -> None:
    check("TCD", n, {}, eta=eta)


def test_fields_of_another_class_are_ignored_as_diffusers_ignores_them() -> None:
    """Each class' own fields are those of its constructor; a network's sees of the others nothing."""
    for name, known in FIELDS.items():
        with quiet():
            theirs_own = {*inspect.signature(original(name).__init__).parameters} - {"self", "kwargs"}
        shift = SHIFT_BY_SIZE if not SHIFT_BY_SIZE & theirs_own else frozenset()
        assert known - shift == theirs_own, name
    assert {*FIELDS} == {*SCHEDULERS}
    left = {"use_karras_sigmas": True, "skip_prk_steps": True, "set_alpha_to_one": False, "clip_sample": True}
    for name in ("EulerAncestralDiscrete", "EulerDiscrete"):
        with quiet():
            made = original(f"{name}Scheduler").from_config({**SD, **left, "steps_offset": 1})
            expected, _ = theirs(made, {}, 6, 300.0)
        steps = table(Fields({"_class_name": f"{name}Scheduler", **SD, **left, "steps_offset": 1}), 6)
        found = compiled(steps, NETWORKS[300.0], jnp.asarray(X) * steps.start, noise)
        assert np.abs(found - expected).max() < 1e-4 * np.sqrt(np.square(expected).mean())
    for name, config in (
        ("UniPCMultistep", {"solver_type": "midpoint"}),
        ("DEISMultistep", {"algorithm_type": "dpmsolver++", "solver_type": "midpoint"}),
        ("DPMSolverMultistep", {"solver_type": "logrho"}),
    ):
        with quiet():
            made = original(f"{name}Scheduler")(**config)
            expected, _ = theirs(made, {}, 6, 300.0)
        steps = table(Fields({"_class_name": f"{name}Scheduler", **config}), 6)
        found = compiled(steps, NETWORKS[300.0], jnp.asarray(X) * steps.start, noise)
        assert np.abs(found - expected).max() < 1e-4 * np.sqrt(np.square(expected).mean())


def test_noise_of_ddim_and_a_shift_by_the_images_size() -> None:
    check("DDIM", 8, {**SD, "clip_sample": False}, eta=0.7)
    mu = 0.5 + (1024 - 256) * (1.15 - 0.5) / (4096 - 256)
    for kind in ("exponential", "linear"):
        config = {"use_dynamic_shifting": True, "time_shift_type": kind}
        for name in ("FlowMatchEulerDiscrete", "FlowMatchLCM"):
            check(name, 10, config, {"sigmas": np.linspace(1, 0.1, 10), "mu": mu}, tokens=1024, even=True)
            check(name, 10, config, {"mu": mu}, tokens=1024)
