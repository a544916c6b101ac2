"""diffusers' schedulers as tables: their published times, what every table does to data of one point, and refusals.

That each step is the original's is for `tests/parity/test_schedulers.py`.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.pretrained import PretrainedError
from jaxdiff.pretrained.fields import Fields
from jaxdiff.pretrained.schedulers.chains import chain
from jaxdiff.pretrained.schedulers.classes import SCHEDULERS, table
from jaxdiff.pretrained.schedulers.flow_steps import flow_levels
from jaxdiff.pretrained.schedulers.steps import StepTable, follow

SD: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
RNG = np.random.default_rng(0)
POINT, START = (RNG.normal(size=(2, 3)).astype(np.float32) for _ in range(2))


def made(name: str, n: int, options: dict[str, Any] | None = None, **asked: Any) -> StepTable:
    return table(fields(name, {**SD, **(options or {})}), n, **asked)


def fields(name: str, options: dict[str, Any] | None = None) -> Fields:
    return Fields({"_class_name": name, **(options or {})})


# --- data of one point: eps = (x - alpha c)/sigma, whatever x is. Every solver ends at c where its levels end at 0


ENDING_AT_0: dict[str, dict[str, Any]] = {
    "DDIMScheduler": {"clip_sample": False},
    "DDPMScheduler": {"clip_sample": False},
    "LCMScheduler": {},
    "EulerDiscreteScheduler": {"use_karras_sigmas": True},
    "EulerAncestralDiscreteScheduler": {},
    "HeunDiscreteScheduler": {},
    "DPMSolverMultistepScheduler": {"solver_order": 3},
    "UniPCMultistepScheduler": {"solver_order": 3},
    "DPMSolverSinglestepScheduler": {"solver_order": 3},
    "LMSDiscreteScheduler": {"use_beta_sigmas": True},
    "KDPM2DiscreteScheduler": {},
    "KDPM2AncestralDiscreteScheduler": {},
    "DPMSolverSDEScheduler": {},
}


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", ENDING_AT_0)
def test_data_of_one_point_are_found(name: str, kind: str) -> None:
    options = {**SD, **ENDING_AT_0[name], "prediction_type": kind}
    steps = table(fields(name, options), 7)
    abar = chain(Fields(options)).abar

    def network(x: Any, told: Any, _: Any) -> Any:  # of the chain: x is alpha x0 + sigma eps there
        log_level = jnp.interp(told, jnp.arange(1000.0), jnp.asarray(0.5 * np.log((1 - abar) / abar), jnp.float32))
        alpha = 1 / jnp.sqrt(1 + jnp.exp(2 * log_level))
        sigma = jnp.exp(log_level) * alpha
        eps = (x - alpha * POINT) / sigma
        return eps if kind == "epsilon" else alpha * eps - sigma * POINT

    noise = jnp.asarray(RNG.normal(size=(20, 2, 3)), jnp.float32)
    found = follow(steps, network, jnp.asarray(START) * steps.start, noise.__getitem__)
    np.testing.assert_allclose(found, POINT, atol=0.02 if "Euler" in name or "Heun" in name else 1e-3)


def test_a_flow_to_one_point_is_straight() -> None:
    for options in ({"shift": 3.0}, {"stochastic_sampling": True}, {"use_dynamic_shifting": True}):
        steps = table(fields("FlowMatchEulerDiscreteScheduler", options), 5, tokens=1024)

        def network(x: Any, told: Any, _: Any) -> Any:
            return (x - POINT) / (told / 1000)

        noise = jnp.asarray(RNG.normal(size=(5, 2, 3)), jnp.float32)
        np.testing.assert_allclose(follow(steps, network, jnp.asarray(START), noise.__getitem__), POINT, atol=1e-5)


# --- published times


def test_what_is_told_are_the_published_times() -> None:
    """Stable Diffusion's, at 10 steps with an offset of 1; LCM's at 4."""
    leading = {"timestep_spacing": "leading", "steps_offset": 1}
    assert made("DDIMScheduler", 10, leading).told.tolist() == [901.0 - 100 * i for i in range(10)]
    assert made("DPMSolverMultistepScheduler", 10, leading).told.tolist() == [901.0 - 90 * i for i in range(10)]
    assert made("PNDMScheduler", 10, leading | {"skip_prk_steps": True}).told.tolist()[:4] == [901, 801, 801, 701]
    assert made("LCMScheduler", 4).told.tolist() == [999, 759, 499, 259]
    assert len(made("HeunDiscreteScheduler", 10).told) == 19
    trailing = made("EulerDiscreteScheduler", 4, {"timestep_spacing": "trailing"})
    assert trailing.told.tolist() == [999, 749, 499, 249]


def test_the_first_samples_spread_is_the_published_one() -> None:
    """sqrt(s^2 + 1) with leading steps, s else; 1 in the chain's own x."""
    levels = chain(Fields(SD)).levels
    assert levels.max() == pytest.approx(14.61, abs=0.01) and levels.min() == pytest.approx(0.029, abs=0.001)
    assert made("EulerDiscreteScheduler", 10).start == pytest.approx(levels.max(), rel=1e-6)
    leading = made("EulerDiscreteScheduler", 10, {"timestep_spacing": "leading", "steps_offset": 1})
    assert leading.start == pytest.approx(np.sqrt(levels[901] ** 2 + 1), rel=1e-6)
    assert made("DDIMScheduler", 10).start == made("UniPCMultistepScheduler", 10).start == 1.0


def test_a_static_shift_of_a_flow_is_applied_twice() -> None:
    """diffusers' fault 13243: with a shift of 3, 28 steps end at 0.00893, not at 0.00299."""
    level = flow_levels(Fields({"shift": 3.0}), 28, None)
    assert level[-2:].round(5).tolist() == [0.00893, 0.0] and level[0] == 1.0
    dynamic = flow_levels(Fields({"use_dynamic_shifting": True}), 4, 4096, even=True)
    factor = np.exp(1.15)
    expected = [factor * s / (1 + (factor - 1) * s) for s in (1.0, 0.75, 0.5, 0.25)]
    np.testing.assert_allclose(dynamic, [*expected, 0.0], rtol=1e-12)


def test_ddim_with_noise_has_ddpms_variance() -> None:
    steps = made("DDIMScheduler", 10, {"clip_sample": False}, eta=1.0)
    other = made("DDPMScheduler", 10, {"clip_sample": False})
    np.testing.assert_allclose(steps.moves[:-1, 0, -1], other.moves[:-1, 0, -1], rtol=1e-4)
    assert steps.noisy and not made("DDIMScheduler", 10).noisy


# --- refusals


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("IPNDMScheduler", {}, "IPNDMScheduler has noise levels of its own, whatever the model was trained on"),
        (
            "VQDiffusionScheduler",
            {},
            "'VQDiffusionScheduler' is not followed step by step; jaxdiff follows DDIMScheduler, ",
        ),
        ("DDIMScheduler", {"beta_schedule": "laplace"}, "beta_schedule is 'laplace'; jaxdiff has linear, "),
        ("DDIMScheduler", {"timestep_spacing": "other"}, "timestep_spacing is 'other'; jaxdiff has linspace, "),
        ("DDIMScheduler", {"prediction_type": "flow_prediction"}, "prediction_type is 'flow_prediction'; jaxdiff has"),
        ("DDIMScheduler", {"thresholding": True}, "thresholding is true"),
        ("DDIMScheduler", {"new": 1}, "new is 1, which jaxdiff does not know"),
        ("DDPMScheduler", {"variance_type": "learned"}, "variance_type is 'learned'; jaxdiff has 'fixed_small' or"),
        ("PNDMScheduler", {}, "skip_prk_steps is false: the first steps by Runge and Kutta"),
        ("EulerDiscreteScheduler", {"timestep_type": "other"}, "timestep_type is 'other'; jaxdiff has"),
        (
            "DDIMScheduler",
            {"prediction_type": "epsilon", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
            "where x is noise alone",
        ),
        ("DDIMInverseScheduler", {"prediction_type": "sample"}, "the first step begins at x0, which has no noise"),
        ("DDIMInverseScheduler", {"timestep_spacing": "linspace"}, "timestep_spacing is 'linspace', which diffusers'"),
        ("LMSDiscreteScheduler", {"prediction_type": "flow_prediction"}, "prediction_type is 'flow_prediction'"),
        (
            "KDPM2DiscreteScheduler",
            {"prediction_type": "sample"},
            "prediction_type is 'sample'; jaxdiff has epsilon, v_",
        ),
        (
            "EulerDiscreteScheduler",
            {"use_karras_sigmas": True, "use_exponential_sigmas": True},
            "use_karras_sigmas too",
        ),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver"}, "algorithm_type is 'dpmsolver'; jaxdiff has"),
        ("DPMSolverMultistepScheduler", {"use_flow_sigmas": True}, "prediction_type is 'epsilon': they go together"),
        (
            "DPMSolverMultistepScheduler",
            {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "use_karras_sigmas": True},
            "use_karras_sigmas is true with use_flow_sigmas, which ends in NaN",
        ),
        (
            "DPMSolverMultistepScheduler",
            {"use_exponential_sigmas": True, "final_sigmas_type": "sigma_min", "algorithm_type": "sde-dpmsolver++"},
            "final_sigmas_type is 'sigma_min', which ends in NaN",
        ),
        ("DPMSolverSinglestepScheduler", {"solver_order": 4}, "solver_order is 4; jaxdiff has 1 to 3"),
        ("DEISMultistepScheduler", {"solver_order": 4}, "solver_order is 4; jaxdiff has 1 to 3"),
        (
            "SASolverScheduler",
            {"algorithm_type": "noise_prediction"},
            "algorithm_type is 'noise_prediction'; jaxdiff has",
        ),
        ("SASolverScheduler", {"corrector_order": 0}, "corrector_order is 0, expected at least 1"),
        ("EDMEulerScheduler", {"sigma_schedule": "linear"}, "sigma_schedule is 'linear'; jaxdiff has"),
        (
            "EDMDPMSolverMultistepScheduler",
            {"solver_order": 3, "algorithm_type": "sde-dpmsolver++"},
            "solver_order is 3 with sde-dpmsolver++, which diffusers' own does not have",
        ),
        (
            "CMStochasticIterativeScheduler",
            {"num_train_timesteps": 5},
            "num_train_timesteps is 5, and 7 steps are asked",
        ),
        ("TCDScheduler", {"original_inference_steps": 5}, "original_inference_steps is 5, and 7 steps are asked for"),
        ("FlowMatchEulerDiscreteScheduler", {"invert_sigmas": True}, "invert_sigmas is True; jaxdiff has False alone"),
        ("FlowMatchLCMScheduler", {"scale_factors": [0.5]}, "scale_factors is (0.5,); jaxdiff has None alone"),
        ("UniPCMultistepScheduler", {"shift_terminal": 0.1}, "shift_terminal is of flows"),
        ("UniPCMultistepScheduler", {"lower_order_final": False}, "lower_order_final is false, which ends in NaN"),
        ("UniPCMultistepScheduler", {"solver_order": 4}, "solver_order is 4; jaxdiff has 1 to 3"),
        ("UniPCMultistepScheduler", {"solver_type": "bh1"}, "solver_type is 'bh1', which ends in NaN"),
        (
            "UniPCMultistepScheduler",
            {"use_karras_sigmas": True, "final_sigmas_type": "sigma_min"},
            "final_sigmas_type is 'sigma_min', which ends in NaN: the last step has no length",
        ),
        ("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True}, "say how many tokens the image has"),
        ("LCMScheduler", {"original_inference_steps": 5}, "original_inference_steps is 5, and 7 steps are asked for"),
    ],
)
def test_what_is_not_followed_is_refused_by_name(name: str, options: Any, message: str) -> None:
    with pytest.raises(PretrainedError) as error:
        table(Fields({"_class_name": name, **options}, "scheduler_config.json"), 7)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert str(error.value).startswith("scheduler_config.json: ")


def test_every_scheduler_has_a_table_by_its_defaults() -> None:
    for name in SCHEDULERS:
        options = {"skip_prk_steps": True} if name == "PNDMScheduler" else {}
        steps = table(fields(name, options), 5)
        assert np.isfinite(steps.moves).all() and np.isfinite(steps.x0).all()
        rising = name == "DDIMInverseScheduler"
        assert (np.diff(steps.told) >= 0 if rising else np.diff(steps.told) <= 0).all(), name


def test_a_consistency_model_visits_the_levels_that_are_said() -> None:
    """Song et al. 2023's levels, evenly in the seventh root from 80 to 0.002; 40 of them."""
    steps = table(fields("CMStochasticIterativeScheduler", {}), 2, indices=(0, 22))
    level = (80 ** (1 / 7) + 22 / 39 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(steps.told, 250 * np.log([80, level]), rtol=1e-6)
    np.testing.assert_allclose(steps.moves[0, 0, -1], np.sqrt(level**2 - 0.002**2), rtol=1e-6)
