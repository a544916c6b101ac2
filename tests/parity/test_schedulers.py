"""Every scheduler that is followed step by step, beside diffusers' own, with the noise that diffusers draws.

A network that is not linear takes the place of a trained one. Where torch and diffusers are installed: `python -m
pytest -m nightly tests/parity`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.pretrained.fields import Fields
from jaxdiff.pretrained.schedulers import table
from jaxdiff.pretrained.steps import follow
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
}


def theirs(scheduler: Any, times: dict[str, Any], n: int, **options: Any) -> tuple[Any, Any]:
    """The sample and the times of diffusers; evaluation i draws the noise i."""
    scheduler.set_timesteps(n, **times)
    drawn = {"i": 0}
    module: Any = sys.modules[type(scheduler).__module__]
    own = getattr(module, "randn_tensor", None)
    module.randn_tensor = lambda shape, **_: torch.from_numpy(NOISE[drawn["i"]])
    try:
        x = torch.from_numpy(X) * getattr(scheduler, "init_noise_sigma", 1.0)
        for i, t in enumerate(scheduler.timesteps):
            drawn["i"] = i
            given = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
            f = torch.tanh(given @ torch.from_numpy(MIXING)) + 0.3 * torch.cos(t.float() / 300) * given
            x = scheduler.step(f, t, x, **options).prev_sample
    finally:
        module.randn_tensor = own
    return x.numpy(), scheduler.timesteps.numpy()


def network(x: Any, told: Any) -> Any:
    return jnp.tanh(jnp.matmul(x, MIXING, precision="highest")) + 0.3 * jnp.cos(told / 300) * x


def check(
    name: str, n: int, config: dict[str, Any], times: Any = None, *, tokens: int | None = None, eta: float | None = None
) -> None:
    name = f"{name}Scheduler"
    with quiet():
        scheduler = getattr(diffusers, name)(**config)
        expected, told = theirs(scheduler, times or {}, n, **({} if eta is None else {"eta": eta}))
    steps = table(Fields({"_class_name": name, **scheduler.config}), n, tokens=tokens, eta=eta or 0.0)
    np.testing.assert_allclose(steps.told, told, atol=1e-2)
    found = follow(steps, network, jnp.asarray(X) * steps.start, jnp.asarray(NOISE).__getitem__)
    assert np.abs(found - expected).max() < 1e-4 * np.sqrt(np.square(expected).mean())


@pytest.mark.parametrize("n", [4, 7, 20])
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("name", CLASSES)
def test_the_steps_are_the_originals(name: str, spacing: str, n: int) -> None:
    check(name, n, {**SD, **CLASSES[name], "timestep_spacing": spacing})


@pytest.mark.parametrize("kind", ["v_prediction", "sample"])
@pytest.mark.parametrize("name", [*CLASSES, "LCM"])
def test_what_is_predicted(name: str, kind: str) -> None:
    if kind == "sample" and name in ("PNDM", "EulerAncestralDiscrete"):
        pytest.skip("diffusers' own has no such prediction")
    check(name, 6, {**CLASSES.get(name, {}), "prediction_type": kind})


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


def test_noise_of_ddim_and_a_shift_by_the_images_size() -> None:
    check("DDIM", 8, {**SD, "clip_sample": False}, eta=0.7)
    mu = 0.5 + (1024 - 256) * (1.15 - 0.5) / (4096 - 256)
    for kind in ("exponential", "linear"):
        config = {"use_dynamic_shifting": True, "time_shift_type": kind}
        check("FlowMatchEulerDiscrete", 10, config, {"sigmas": np.linspace(1, 0.1, 10), "mu": mu}, tokens=1024)
