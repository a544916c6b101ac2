"""diffusers' schedulers, step for step as they are: tables for `jaxdiff.pretrained.steps`.

They repeat diffusers' results, faults included. For anything else choose jaxdiff's samplers, which have none of these
faults, each tested beside the original:

- DDIM and PNDM step from i to i - T//n, whatever the spacing of the steps.
- DPM-Solver++ and UniPC round what the network is told with Karras' noise levels, and cut it off with others.
- DPM-Solver++ of third order has half of its last term, and in its SDE form a last term that does not vanish with h.
- a flow's static shift is applied twice, to the ends of the noise levels and to the levels between.

The state is x = alpha x0 + sigma eps. Of Euler, Euler ancestral and Heun it is x = x0 + s eps, and the network sees
x / sqrt(s^2 + 1).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from jaxdiff.pretrained.chains import (
    Asked,
    Chain,
    Numbers,
    chain,
    chosen_levels,
    index_at,
    input_scale,
    level_at,
    of_eps,
    of_x0,
    spaced,
    warped,
)
from jaxdiff.pretrained.errors import PretrainedError
from jaxdiff.pretrained.fields import Fields
from jaxdiff.pretrained.solvers import dpm_solver, unipc
from jaxdiff.pretrained.steps import Steps, StepTable


def table(fields: Fields, n: int, *, eta: float = 0.0, tokens: int | None = None, even: bool = False) -> StepTable:
    """The steps of a scheduler, by its configuration.

    Args:
      fields: of its `scheduler_config.json`.
      n: steps.
      eta: noise of DDIM, from 0 to 1.
      tokens: of the image, which decide a flow's dynamic shift.
      even: see `jaxdiff.pretrained.chains.Asked`.

    Raises:
      PretrainedError: a class, or a field, that jaxdiff does not follow step by step.

    >>> steps = table(Fields({"_class_name": "DDIMScheduler"}), 4)
    >>> steps.told.tolist()
    [750.0, 500.0, 250.0, 0.0]
    """
    name = str(fields.values.get("_class_name")).removeprefix("Flax")
    if name not in SCHEDULERS:
        raise PretrainedError(
            f"{fields.where}: {name} is not followed step by step; jaxdiff follows {', '.join(SCHEDULERS)}"
        )
    fields.ignore("thresholding", "dynamic_thresholding_ratio", "sample_max_value")
    if fields.get("thresholding", False):
        fields.refuse("thresholding", "is true, which jaxdiff does not follow")
    made = SCHEDULERS[name](fields, Asked(n, eta, tokens, even))
    fields.done()
    return made


# --- in the chain's own indices


def _ddim(fields: Fields, asked: Asked) -> StepTable:
    """Song et al. 2021, https://arxiv.org/abs/2010.02502, equation (12)."""
    on = chain(fields, spacing="leading")
    last = 1.0 if fields.get("set_alpha_to_one", True) else on.abar[0]
    steps = Steps()
    for index in spaced(on, asked.n, whole=True):
        before, after, alpha, sigma = _pair(on, index, asked.n, last)
        spread = asked.eta * math.sqrt((1 - after) / (1 - before) * (1 - before / after))
        eps = of_eps(on.kind, alpha, sigma, steps["x"], steps["f"])
        x = math.sqrt(after) * steps["x0"] + math.sqrt(max(1 - after - spread**2, 0.0)) * eps + spread * steps["noise"]
        steps.add(index, 1.0, of_x0(on.kind, alpha, sigma), x=x)
    return steps.table(limit=_limit(fields, True))


def _ddpm(fields: Fields, asked: Asked) -> StepTable:
    """Ho et al. 2020, https://arxiv.org/abs/2006.11239, equations (6) and (7)."""
    fields.only(variance_type=("fixed_small", "fixed_small_log", "fixed_large"))
    large = fields.get("variance_type", "fixed_small") == "fixed_large"
    on = chain(fields, spacing="leading")
    steps, indices = Steps(), spaced(on, asked.n, whole=True)
    for number, index in enumerate(indices):
        before = on.abar[int(index)]
        after = on.abar[int(indices[number + 1])] if number + 1 < len(indices) else 1.0
        alpha, sigma, kept = math.sqrt(before), math.sqrt(1 - before), before / after
        variance = 1 - kept if large else (1 - after) / (1 - before) * (1 - kept)
        x = math.sqrt(after) * (1 - kept) / (1 - before) * steps["x0"]
        x = x + math.sqrt(kept) * (1 - after) / (1 - before) * steps["x"]
        if index > 0:
            x = x + math.sqrt(max(variance, 1e-20)) * steps["noise"]
        steps.add(index, 1.0, of_x0(on.kind, alpha, sigma), x=x)
    return steps.table(limit=_limit(fields, True))


def _pndm(fields: Fields, asked: Asked) -> StepTable:
    """Liu et al. 2022, https://arxiv.org/abs/2202.09778, equations (9) and (12): Adams-Bashforth steps of the network's
    answers, the second of which is evaluated twice."""
    if not fields.get("skip_prk_steps", False):
        fields.refuse("skip_prk_steps", "is false: the first steps by Runge and Kutta, which jaxdiff does not follow")
    on = chain(fields, spacing="leading", kinds=("epsilon", "v_prediction"))
    last = 1.0 if fields.get("set_alpha_to_one", False) else on.abar[0]
    rows = spaced(on, asked.n, whole=True)
    if len(rows) < 2:
        fields.refuse("skip_prk_steps", "is true, which takes at least 2 steps")
    steps = Steps("first", "f1", "f2", "f3")
    for number, index in enumerate([rows[0], rows[1], *rows[1:]]):
        f = [steps[name] for name in ("f", "f1", "f2", "f3")]
        begin, at = steps["x"], index
        if number == 1:
            begin, at, mixed = steps["first"], index + on.length // asked.n, (f[0] + f[1]) / 2
        elif number == 0:
            mixed = f[0]
        else:
            weights = {2: (3, -1), 3: (23, -16, 5)}.get(number, (55, -59, 37, -9))
            mixed = sum((w * each for w, each in zip(weights, f, strict=False)), np.zeros_like(begin)) / sum(weights)
        before, after, alpha, sigma = _pair(on, at, asked.n, last)
        eps = of_eps(on.kind, alpha, sigma, begin, mixed)
        below = before * math.sqrt(1 - after) + math.sqrt(before * (1 - before) * after)
        x = math.sqrt(after / before) * begin - (after - before) / below * eps
        kept = {} if number == 1 else {"f1": f[0], "f2": f[1], "f3": f[2]}
        steps.add(index, 1.0, (0.0, 1.0), x=x, first=steps["x"], **kept)
    return steps.table()


def _lcm(fields: Fields, asked: Asked) -> StepTable:
    """Luo et al. 2023, https://arxiv.org/abs/2310.04378, algorithm 3."""
    on = chain(fields, betas=(0.00085, 0.012, "scaled_linear"), spacing="leading")
    fields.ignore("set_alpha_to_one")
    original, scaling = fields.get("original_inference_steps", 50), fields.get("timestep_scaling", 10.0)
    if asked.n > original:
        fields.refuse("original_inference_steps", f"is {original}, and {asked.n} steps are asked for")
    taught = (np.arange(1, original + 1) * (on.length // original) - 1)[::-1]
    indices = taught[np.floor(np.linspace(0, original, asked.n, endpoint=False)).astype(int)]
    steps = Steps()
    for number, index in enumerate(indices):
        alpha, sigma = math.sqrt(on.abar[index]), math.sqrt(1 - on.abar[index])
        time = float(index) * scaling
        clean = time / math.sqrt(time**2 + 0.25) * steps["x0"] + 0.25 / (time**2 + 0.25) * steps["x"]
        if number + 1 < asked.n:
            after = on.abar[indices[number + 1]]
            clean = math.sqrt(after) * clean + math.sqrt(1 - after) * steps["noise"]
        steps.add(float(index), 1.0, of_x0(on.kind, alpha, sigma), x=clean)
    return steps.table(limit=_limit(fields, False))


def _pair(on: Chain, index: float, n: int, last: float) -> tuple[float, float, float, float]:
    """abar of a step and of the one T//n below, and alpha and sigma of the first."""
    before, below = float(on.abar[int(index)]), int(index) - on.length // n
    after = float(on.abar[below]) if below >= 0 else float(last)
    return before, after, math.sqrt(before), math.sqrt(1 - before)


def _limit(fields: Fields, default: bool) -> float | None:
    limit: float = fields.get("clip_sample_range", 1.0)
    return limit if fields.get("clip_sample", default) else None


# --- by noise level, x = x0 + s eps


def _levels(fields: Fields, on: Chain, asked: Asked) -> tuple[Numbers, Numbers, float]:
    """What is told, the noise levels, and the first x's standard deviation, of Euler and its like."""
    told = spaced(on, asked.n, whole=False)
    level = level_at(on, told)
    by, most, least = chosen_levels(fields), fields.get("sigma_max", None), fields.get("sigma_min", None)
    if by is not None:
        level = warped(most or level[0], least or level[-1], asked.n, by)
        told = index_at(on, level)
    start = level.max() if on.spacing != "leading" else math.sqrt(level.max() ** 2 + 1)
    final = on.levels[0] if fields.get("final_sigmas_type", "zero") == "sigma_min" else 0.0
    return told, np.append(level, final), float(start)


def _by_level(kind: str, level: float) -> tuple[float, float]:
    """x0 = a x + b f where x = x0 + s eps, and the network sees x over sqrt(s^2 + 1)."""
    wide = level**2 + 1
    return {"epsilon": (1.0, -level), "sample": (0.0, 1.0), "v_prediction": (1 / wide, -level / math.sqrt(wide))}[kind]


def _euler(fields: Fields, asked: Asked) -> StepTable:
    """Euler's step of dx/ds = (x - x0)/s."""
    fields.only(interpolation_type="linear", timestep_type="discrete")
    on = chain(fields, zero_snr_level=True)
    told, level, start = _levels(fields, on, asked)
    steps = Steps()
    for number, index in enumerate(told):
        ratio = level[number + 1] / level[number]
        x = ratio * steps["x"] + (1 - ratio) * steps["x0"]
        steps.add(index, input_scale(level[number]), _by_level(on.kind, level[number]), x=x)
    return steps.table(start=start)


def _euler_ancestral(fields: Fields, asked: Asked) -> StepTable:
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
    return steps.table(start=start)


def _heun(fields: Fields, asked: Asked) -> StepTable:
    """Heun's method: the mean of the slopes at both ends; the last step is Euler's."""
    on = chain(fields, betas=(0.00085, 0.012, "linear"))
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
    return steps.table(start=start, limit=_limit(fields, False))


# --- flows, x = (1 - s) x0 + s eps


def _flow_euler(fields: Fields, asked: Asked) -> StepTable:
    """Euler's step of dx/ds = f (Esser et al. 2024, https://arxiv.org/abs/2403.03206, sections 2 and 5.3.2)."""
    fields.only(invert_sigmas=False, use_karras_sigmas=False, use_exponential_sigmas=False, use_beta_sigmas=False)
    level = flow_levels(fields, asked.n, asked.tokens, even=asked.even)
    length, again = fields.get("num_train_timesteps", 1000), fields.get("stochastic_sampling", False)
    steps = Steps()
    for i in range(asked.n):
        here, to = level[i], level[i + 1]
        x = (1 - to) * steps["x0"] + to * steps["noise"] if again else steps["x"] + (to - here) * steps["f"]
        steps.add(length * here, 1.0, of_x0("flow_prediction", 1 - here, here), x=x)
    return steps.table()


def flow_levels(fields: Fields, n: int, tokens: int | None, *, even: bool = False) -> Numbers:
    """The noise levels of a `FlowMatchEulerDiscreteScheduler`, n and then 0.

    Raises:
      PretrainedError: a dynamic shift, and the number of tokens is not said.
    """
    length, shift = fields.get("num_train_timesteps", 1000), fields.get("shift", 1.0)
    dynamic = fields.get("use_dynamic_shifting", False)
    base, most = fields.get("base_shift", 0.5), fields.get("max_shift", 1.15)
    few, many = fields.get("base_image_seq_len", 256), fields.get("max_image_seq_len", 4096)
    kind, end = fields.get("time_shift_type", "exponential"), fields.get("shift_terminal", None)
    if dynamic:
        if tokens is None:
            fields.refuse("use_dynamic_shifting", "is true: say how many tokens the image has, tokens=")
        mu = base + ((tokens or 0) - few) * (most - base) / (many - few)
        factor = math.exp(mu) if kind == "exponential" else mu
    else:
        factor = shift
    if dynamic or even:
        level = np.linspace(1.0, 1 / n, n)
    else:
        first, last = (shift * end / (1 + (shift - 1) * end) for end in (1.0, 1 / length))  # shifted, and once more
        level = np.linspace(first, last, n)
    level = factor * level / (1 + (factor - 1) * level)
    if end:
        level = 1 - (1 - level) * (1 - end) / (1 - level[-1])
    return np.append(level, 0.0)


SCHEDULERS: dict[str, Callable[[Fields, Asked], StepTable]] = {
    "DDIMScheduler": _ddim,
    "DDPMScheduler": _ddpm,
    "PNDMScheduler": _pndm,
    "LCMScheduler": _lcm,
    "EulerDiscreteScheduler": _euler,
    "EulerAncestralDiscreteScheduler": _euler_ancestral,
    "HeunDiscreteScheduler": _heun,
    "DPMSolverMultistepScheduler": dpm_solver,
    "UniPCMultistepScheduler": unipc,
    "FlowMatchEulerDiscreteScheduler": _flow_euler,
}
"""Classes of diffusers that are followed step by step."""
