"""The process, the prediction and the told time of every published scheduler: at each of its strict steps our
parameterization gives the network the same and reads the same x0. The default times of flows and of students."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.discrete import DiscreteVP
from jaxdiff.methods import parse_sampler
from jaxdiff.prediction import Prediction
from jaxdiff.pretrained import PretrainedError
from jaxdiff.pretrained.fields import Fields
from jaxdiff.pretrained.pipeline import load_pipeline
from jaxdiff.pretrained.schedulers.classes import table
from jaxdiff.pretrained.schedulers.fields import BETAS, FIELDS
from jaxdiff.pretrained.schedulers.processes import RENOISING, process_of
from jaxdiff.sampling.base import integrate
from tests.pretrained.test_pipeline import write_pipeline

RNG = np.random.default_rng(0)
X, F, SECOND = (jnp.asarray(RNG.normal(size=(1, 3)), jnp.float32) for _ in range(3))
V = {"prediction_type": "v_prediction"}
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
STEPPED: dict[str, list[dict[str, Any]]] = {
    "DDIMScheduler": [{}, V, {"prediction_type": "sample"}],
    "DDPMScheduler": [V],
    "TCDScheduler": [V],
    "EulerDiscreteScheduler": [V, {**V, "timestep_type": "continuous"}],
    "HeunDiscreteScheduler": [V],
    "LMSDiscreteScheduler": [{}],
    "KDPM2DiscreteScheduler": [{}],
    "DPMSolverMultistepScheduler": [V, FLOW],
    "UniPCMultistepScheduler": [{**V, "rescale_betas_zero_snr": True}],
    "DEISMultistepScheduler": [{}],
    "SASolverScheduler": [V],
    "EDMEulerScheduler": [{}, V, {"sigma_data": 1.0, **V}],
    "EDMDPMSolverMultistepScheduler": [{"sigma_max": 120.0, "rho": 5.0}],
    "CMStochasticIterativeScheduler": [{}, {"sigma_data": 1.0}],
    "FlowMatchEulerDiscreteScheduler": [{"shift": 3.0}],
    "FlowMatchHeunDiscreteScheduler": [{"num_train_timesteps": 500}],
}


@pytest.mark.parametrize(("name", "options"), [(name, each) for name, several in STEPPED.items() for each in several])
def test_the_network_is_asked_and_read_as_by_strict_steps(name: str, options: dict[str, Any]) -> None:
    fields = Fields({"_class_name": name, **options})
    steps, (process, read, _) = table(fields, 9), process_of(fields)
    t: Any
    length = options.get("num_train_timesteps", 1000)
    rows = [*range(0, len(steps.told), 2)]
    if name in ("LMSDiscreteScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler", "KDPM2DiscreteScheduler"):
        rows = rows[:1] + rows[-1:]  # between two indices its levels lie on a line, ours on another
    for i in rows:
        told, scale, (a, b) = (np.asarray(each[i]) for each in (steps.told, steps.scale, steps.x0))
        if type(process).__name__ == "KarrasVE":
            level = np.exp(told * (0.004 if name.startswith("CM") else 4))
            t = process.time_of_log_snr(-2 * np.log(level))
        else:
            t = np.float32((told + (type(process).__name__ == "DiscreteVP")) / length)
        by_level = steps.start > 2 and type(process).__name__ == "DiscreteVP"
        x = X * (process.alpha(t) if by_level else 1.0)  # theirs is x0 + s eps there, ours alpha times it
        if options == FLOW:  # what is told is cut off
            t = -b
        given, time = read.condition(process, jnp.asarray(x), t)
        np.testing.assert_allclose(given, scale * X, rtol=2e-4, atol=1e-6)
        np.testing.assert_allclose(time, told, rtol=1e-4, atol=1.0 if options == FLOW else 2e-3)
        np.testing.assert_allclose(read.read(process, jnp.asarray(x), t, F).x0, a * X + b * F, rtol=1e-3, atol=2e-3)


def test_first_betas_are_those_of_the_class() -> None:
    for name in FIELDS:
        process, *_ = process_of(Fields({"_class_name": name}))
        if isinstance(process, DiscreteVP):
            first = BETAS.get(name, (1e-4,))[0]
            np.testing.assert_allclose(np.asarray(process.betas)[0], first, rtol=1e-5)


@pytest.mark.parametrize(("name", "message"), [("IPNDMScheduler", "has noise levels"), ("Other", "is not followed")])
def test_a_scheduler_that_says_no_process_is_refused(name: str, message: str) -> None:
    with pytest.raises(PretrainedError, match=message):
        process_of(Fields({"_class_name": name}))


@pytest.mark.parametrize("data", [0.5, 1.0])
def test_targets_are_what_is_read(data: float) -> None:
    """Of minus EDM's output and of consistency models: the target reads as x0."""
    for options in ({"_class_name": "EDMEulerScheduler", **V}, {"_class_name": "CMStochasticIterativeScheduler"}):
        process, read, _ = process_of(Fields({**options, "sigma_data": data}))
        t = jnp.float32(0.6)
        x = process.perturb(X, SECOND, t)
        found = read.read(process, x, t, read.target(process, jnp.asarray(X), jnp.asarray(SECOND), t))
        np.testing.assert_allclose(found.x0, X, atol=2e-5)
        np.testing.assert_allclose(found.eps, SECOND, atol=2e-5)
        more = read.read(process, x, t, jnp.asarray(F + 1)).x0 - read.read(process, x, t, jnp.asarray(F)).x0
        np.testing.assert_allclose(abs(more), jnp.broadcast_to(read.jacobian(process, t), more.shape), rtol=1e-4)


# --- default ways to sample


def test_students_times_are_the_published_ones() -> None:
    for name in ("LCMScheduler", "TCDScheduler"):
        process, read, defaults = process_of(Fields({"_class_name": name}))
        assert not isinstance(defaults.grid, str)
        ts = defaults.grid(process, 4)
        np.testing.assert_allclose(read.time(process, ts), [999, 759, 499, 259], atol=1e-3)
    fields = Fields({"_class_name": "CMStochasticIterativeScheduler"})
    process, _, defaults = process_of(fields)
    assert not isinstance(defaults.grid, str)
    np.testing.assert_allclose(
        250 * np.log(process.sigma(defaults.grid(process, 4))), table(fields, 4).told, rtol=1e-4, atol=1e-3
    )


@pytest.mark.parametrize(
    ("options", "ends"),
    [
        ({"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}, (14.61, 0.03)),
        ({}, (80.0, 0.03)),
        ({"rescale_betas_zero_snr": True, **V}, (200.0, 0.03)),
    ],
)
def test_default_times_of_a_chain_are_even_in_log_snr_within_its_ends(options: Any, ends: tuple[float, float]) -> None:
    process, _, defaults = process_of(Fields({"_class_name": "DPMSolverMultistepScheduler", **options}))
    assert not isinstance(defaults.grid, str)
    log_level = -0.5 * process.log_snr(defaults.grid(process, 9))
    np.testing.assert_allclose(log_level, np.linspace(np.log(ends[0]), np.log(ends[1]), 9), atol=2e-3)


def test_a_students_sampler_forgets_x() -> None:
    """As LCM: x0, and noise up to the next time; two x become one where x0 is the same."""
    process, _, defaults = process_of(Fields({"_class_name": "LCMScheduler"}))
    assert not isinstance(defaults.grid, str)
    method, ts = parse_sampler(RENOISING, process), defaults.grid(process, 4)
    x = jnp.asarray(np.stack([X[0], SECOND[0]]))
    seen: list[Any] = []

    def denoise(x: Any, t: Any, cond: Any = None) -> Prediction:
        jax.debug.callback(seen.append, x)
        return Prediction(jnp.broadcast_to(jnp.asarray(F), x.shape), jnp.zeros_like(x))

    keys = jax.random.wrap_key_data(jnp.zeros((2, 2), jnp.uint32))  # the same noise twice
    denoiser: Any = denoise
    integrate(method, denoiser, keys, x, ts)
    jax.effects_barrier()
    assert len(seen) >= 3 and all(np.allclose(each[0], each[1], atol=1e-6) for each in seen[1:])
    spread = np.std([np.asarray(each[0]) for each in seen[1:]])
    assert spread > 0.1


def test_default_times_of_a_flow_are_shifted_by_the_pictures_size(tmp_path: Path) -> None:
    """64 tokens at the published 16 x 16 pixels, 1024 at 64 x 64; the numbers are FLUX.1's, as strict steps'."""
    shifted = {"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True, "shift": 3.0}
    model = load_pipeline(write_pipeline(tmp_path / "flow", shifted))
    for size, tokens in ((None, 64), ((64, 64), 1024)):
        ts = model._changed(size, 0, False).plan(1, {"text": "a"}, steps=4, guide=()).ts
        factor = np.exp(0.5 + (tokens - 256) * (1.15 - 0.5) / (4096 - 256))
        level = np.array([1.0, 0.75, 0.5, 0.25])  # up to 4 of them
        np.testing.assert_allclose(ts, factor * level / (1 + (factor - 1) * level), rtol=1e-5)
        strict = table(Fields(shifted), 4, tokens=tokens, even=True)
        np.testing.assert_allclose(1000 * ts, strict.told, rtol=1e-5)
