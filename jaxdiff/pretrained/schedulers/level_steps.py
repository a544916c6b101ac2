"""diffusers' schedulers that step along noise levels s, as tables for `jaxdiff.pretrained.schedulers.steps`.

x is x0 + s eps, and the network sees x / sqrt(s^2 + 1), or as Karras et al. 2022 have it. What diffusers does otherwise
than the papers is named in `jaxdiff.pretrained.schedulers.classes`.
"""

from __future__ import annotations

import math

import numpy as np

from jaxdiff.pretrained.fields import Fields
from jaxdiff.pretrained.schedulers.chain_steps import limit_of
from jaxdiff.pretrained.schedulers.chains import (
    Asked,
    Chain,
    Numbers,
    chain,
    chosen_levels,
    index_at,
    input_scale,
    lagrange_weights,
    level_at,
    noised_at,
    spaced,
    twice,
    warped,
)
from jaxdiff.pretrained.schedulers.paths import edm_levels
from jaxdiff.pretrained.schedulers.steps import Steps, StepTable, Vector


def _levels(fields: Fields, on: Chain, asked: Asked) -> tuple[Numbers, Numbers, float]:
    """What is told, the noise levels, and the first x's standard deviation, of Euler and its like."""
    told = spaced(on, asked.n, whole=False)
    level = level_at(on, told)
    if fields.get("interpolation_type", "linear") == "log_linear":  # one more, so that the last step ends at it
        level = warped(on.levels[-1], on.levels[0], asked.n + 1, "exponential")
    by = chosen_levels(fields)
    most, least = fields.get("sigma_max", None, like=1.0), fields.get("sigma_min", None, like=1.0)
    if by is not None:
        level = warped(level[0] if most is None else most, level[-1] if least is None else least, asked.n, by)
        told = index_at(on, level)
    start = level.max() if on.spacing != "leading" else math.sqrt(level.max() ** 2 + 1)
    final = on.levels[0] if fields.get("final_sigmas_type", "zero") == "sigma_min" else 0.0
    return told, np.append(level, final), float(start)


def _by_level(kind: str, level: float) -> tuple[float, float]:
    """x0 = a x + b f where x = x0 + s eps, and the network sees x over sqrt(s^2 + 1)."""
    wide = level**2 + 1
    return {"epsilon": (1.0, -level), "sample": (0.0, 1.0), "v_prediction": (1 / wide, -level / math.sqrt(wide))}[kind]


def euler(fields: Fields, asked: Asked) -> StepTable:
    """Euler's step of dx/ds = (x - x0)/s.

    With ``interpolation_type: log_linear`` the levels are not those of the indices that are told, and do not end at 0.
    """
    fields.only(interpolation_type=("linear", "log_linear"), timestep_type=("discrete", "continuous"))
    on = chain(fields, zero_snr_level=True)
    told, level, start = _levels(fields, on, asked)
    if fields.get("timestep_type", "discrete") == "continuous" and on.kind == "v_prediction":
        told = np.log(level[: asked.n]) / 4
    steps = Steps()
    for number, index in enumerate(told):
        ratio = level[number + 1] / level[number]
        x = ratio * steps["x"] + (1 - ratio) * steps["x0"]
        steps.add(index, input_scale(level[number]), _by_level(on.kind, level[number]), x=x)
    return steps.table(noised_at(1.0, level[: len(told)]), start=start)


def euler_ancestral(fields: Fields, asked: Asked) -> StepTable:
    """Euler's step to below the next level, and noise up to it."""
    on = chain(fields, kinds=("epsilon", "v_prediction"), zero_snr_level=True)
    told, level, start = _levels(fields, on, asked)
    steps = Steps()
    for number, index in enumerate(told):
        here, to = level[number], level[number + 1]
        up = math.sqrt(to**2 * (here**2 - to**2) / here**2)
        ratio = math.sqrt(max(to**2 - up**2, 0.0)) / here
        x = ratio * steps["x"] + (1 - ratio) * steps["x0"] + up * steps["noise"]
        steps.add(index, input_scale(here), _by_level(on.kind, here), x=x)
    return steps.table(noised_at(1.0, level[:-1]), start=start)


def heun(fields: Fields, asked: Asked) -> StepTable:
    """Heun's method: the mean of the slopes at both ends; the last step is Euler's."""
    on = chain(fields)
    told, level, start = _levels(fields, on, asked)
    steps = Steps("first", "slope")
    for number, index in enumerate(told):
        here, to = level[number], level[number + 1]
        slope = (steps["x"] - steps["x0"]) / here
        after = {"x": steps["x"] + (to - here) * slope, "first": steps["x"], "slope": slope}
        steps.add(index, input_scale(here), _by_level(on.kind, here), **after)
        if to > 0:
            both = ((steps["x"] - steps["x0"]) / to + steps["slope"]) / 2
            x = steps["first"] + (to - here) * both
            steps.add(told[number + 1], input_scale(to), _by_level(on.kind, to), x=x)
    return steps.table(noised_at(1.0, twice(level[:-1])), start=start, limit=limit_of(fields, False))


def lms(fields: Fields, asked: Asked) -> StepTable:
    """Adams and Bashforth's method of fourth order in s: the polynomial through the last four slopes."""
    on = chain(fields)
    told, level, start = _levels(fields, on, asked)
    steps = Steps("d1", "d2", "d3")
    for number, index in enumerate(told):
        slopes = [(steps["x"] - steps["x0"]) / level[number], steps["d1"], steps["d2"], steps["d3"]]
        nodes = level[max(number - 3, 0) : number + 1][::-1]
        weights = lagrange_weights(nodes, level[number], level[number + 1])
        x = steps["x"] + sum((w * d for w, d in zip(weights, slopes, strict=False)), np.zeros_like(steps["x"]))
        kept = {"d1": slopes[0], "d2": slopes[1], "d3": slopes[2]}
        steps.add(index, input_scale(level[number]), _by_level(on.kind, level[number]), x=x, **kept)
    return steps.table(noised_at(1.0, level[:-1]), start=start)


def kdpm2(fields: Fields, asked: Asked) -> StepTable:
    """Karras et al. 2022's DPM2: the slope at the geometric mean of two levels; the last step is Euler's."""
    return _midpoint(fields, asked, ancestral=False)


def kdpm2_ancestral(fields: Fields, asked: Asked) -> StepTable:
    """DPM2's step to below the next level, and noise up to it."""
    return _midpoint(fields, asked, ancestral=True)


def _midpoint(fields: Fields, asked: Asked, *, ancestral: bool) -> StepTable:
    on = chain(fields, kinds=("epsilon", "v_prediction"))
    told, level, start = _levels(fields, on, asked)
    if chosen_levels(fields) == "karras":
        told = told.round()
    steps = Steps("first")
    for number, index in enumerate(told):
        here, to = level[number], level[number + 1]
        up = math.sqrt(to**2 * (here**2 - to**2) / here**2) if ancestral else 0.0
        down = math.sqrt(to**2 - up**2)
        middle = math.sqrt(here * down)
        x = steps["x"] + (middle / here - 1) * (steps["x"] - steps["x0"])
        steps.add(index, input_scale(here), _by_level(on.kind, here), x=x, first=steps["x"])
        if to > 0:
            x = steps["first"] + (down - here) / middle * (steps["x"] - steps["x0"]) + up * steps["noise"]
            between = float(index_at(on, np.array([middle]))[0])
            steps.add(between, input_scale(middle), _by_level(on.kind, middle), x=x)
    return steps.table(noised_at(1.0, twice(level[:-1])), start=start)


def dpm_solver_sde(fields: Fields, asked: Asked) -> StepTable:
    """Lu et al. 2022's second-order SDE solver of two stages, with the noise of one Brownian motion.

    The first stage goes to the geometric mean of two levels, the second over the whole step, so that its noise holds
    that of the first: of standard noises z1 and z2 over the two parts it is ``(sqrt(s - m) z1 + sqrt(m - s') z2) /
    sqrt(s - s')``. diffusers draws the same from torchsde's tree, whose numbers are another library's.
    """
    fields.ignore("noise_sampler_seed")
    on = chain(fields, kinds=("epsilon", "v_prediction"))
    told, level, start = _levels(fields, on, asked)
    steps = Steps("first", "z")
    for number, index in enumerate(told):
        here, to = level[number], level[number + 1]
        if to == 0:
            steps.add(index, input_scale(here), _by_level(on.kind, here), x=steps["x0"])
            continue
        middle = math.sqrt(here * to)
        x = _ancestral(here, middle, steps["x"], steps["x0"], steps["noise"])
        steps.add(index, input_scale(here), _by_level(on.kind, here), x=x, first=steps["x"], z=steps["noise"])
        parts = math.sqrt((here - middle) / (here - to)), math.sqrt((middle - to) / (here - to))
        noise = parts[0] * steps["z"] + parts[1] * steps["noise"]
        x = _ancestral(here, to, steps["first"], steps["x0"], noise)
        between = float(index_at(on, np.array([middle]))[0])
        steps.add(between, input_scale(middle), _by_level(on.kind, middle), x=x)
    return steps.table(noised_at(1.0, twice(level[:-1])), start=start)


def _ancestral(here: float, to: float, x: Vector, x0: Vector, noise: Vector) -> Vector:
    """A step to below a level, with x0 as it is, and noise up to it."""
    up = min(to, math.sqrt(to**2 * (here**2 - to**2) / here**2))
    down = math.sqrt(to**2 - up**2)
    return down / here * x + (1 - down / here) * x0 + up * noise


def edm_euler(fields: Fields, asked: Asked) -> StepTable:
    """Euler's step with the preconditioning and the levels of Karras et al. 2022, https://arxiv.org/abs/2206.00364.

    Where ``final_sigmas_type`` is sigma_min, the last call changes nothing.
    """
    edm = edm_levels(fields, asked.n)
    fields.only(prediction_type=("epsilon", "v_prediction"))
    level = np.append(edm.level, edm.level[-1] if edm.final else 0.0)
    steps = Steps()
    for number in range(asked.n):
        ratio = level[number + 1] / level[number]
        x = ratio * steps["x"] + (1 - ratio) * steps["x0"]
        steps.add(edm.told[number], edm.scale[number], edm.x0[number], x=x)
    return steps.table(noised_at(1.0, edm.level), start=edm.start)


def consistency(fields: Fields, asked: Asked) -> StepTable:
    """Song et al. 2023, https://arxiv.org/abs/2303.01469, algorithm 1."""
    length, least, most = (
        fields.get("num_train_timesteps", 40),
        fields.get("sigma_min", 0.002),
        fields.get("sigma_max", 80.0),
    )
    data, spread, rho = fields.get("sigma_data", 0.5), fields.get("s_noise", 1.0), fields.get("rho", 7.0)
    if asked.n > length:
        fields.refuse("num_train_timesteps", f"is {length}, and {asked.n} steps are asked for")
    places = np.asarray(asked.indices or np.arange(asked.n) * (length // asked.n)) / (length - 1)
    ends = most ** (1 / rho), least ** (1 / rho)
    level = (ends[0] + places * (ends[1] - ends[0])) ** rho
    steps = Steps()
    for number, here in enumerate(level):
        to = level[number + 1] if number + 1 < asked.n else least
        past = here - least
        x0 = data**2 / (past**2 + data**2), past * data / math.hypot(here, data)
        x = steps["x0"] + spread * math.sqrt(max(to**2 - least**2, 0.0)) * steps["noise"]
        steps.add(250 * math.log(here), 1 / math.hypot(here, data), x0, x=x)
    limit = 1.0 if fields.get("clip_denoised", True) else None
    return steps.table(noised_at(1.0, level), start=most, limit=limit)
