"""diffusers' schedulers that step along the chain's own indices, as tables for `jaxdiff.pretrained.schedulers.steps`.

x is alpha x0 + sigma eps with ``alpha^2 = abar_i``. What diffusers does otherwise than the papers is named in
`jaxdiff.pretrained.schedulers.classes`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from jaxdiff.pretrained.fields import Fields
from jaxdiff.pretrained.schedulers.chains import Asked, Chain, Numbers, chain, noised_on, of_eps, of_x0, spaced
from jaxdiff.pretrained.schedulers.steps import Steps, StepTable


def ddim(fields: Fields, asked: Asked) -> StepTable:
    """Song et al. 2021, https://arxiv.org/abs/2010.02502, equation (12)."""
    on = chain(fields, spacing="leading")
    last = 1.0 if fields.get("set_alpha_to_one", True) else on.abar[0]
    steps, indices = Steps(), spaced(on, asked.n, whole=True)
    for index in indices:
        before, after, alpha, sigma = _pair(on, index, asked.n, last)
        spread = asked.eta * math.sqrt((1 - after) / (1 - before) * (1 - before / after))
        eps = of_eps(on.kind, alpha, sigma, steps["x"], steps["f"])
        x = math.sqrt(after) * steps["x0"] + math.sqrt(max(1 - after - spread**2, 0.0)) * eps + spread * steps["noise"]
        steps.add(index, 1.0, of_x0(on.kind, alpha, sigma), x=x)
    return steps.table(noised_on(on, indices), limit=limit_of(fields, True))


def ddpm(fields: Fields, asked: Asked) -> StepTable:
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
    return steps.table(noised_on(on, indices), limit=limit_of(fields, True))


def pndm(fields: Fields, asked: Asked) -> StepTable:
    """Liu et al. 2022, https://arxiv.org/abs/2202.09778, equations (9) and (12): Adams-Bashforth steps of the network's
    answers, the second of which is evaluated twice."""
    if not fields.get("skip_prk_steps", False):
        fields.refuse("skip_prk_steps", "is false: the first steps by Runge and Kutta, which jaxdiff does not follow")
    on = chain(fields, spacing="leading", kinds=("epsilon", "v_prediction"))
    last = 1.0 if fields.get("set_alpha_to_one", False) else on.abar[0]
    rows = spaced(on, asked.n, whole=True)
    if len(rows) < 2:
        fields.refuse("skip_prk_steps", "is true, which takes at least 2 steps")
    steps, indices = Steps("first", "f1", "f2", "f3"), [rows[0], rows[1], *rows[1:]]
    for i, index in enumerate(indices):
        number = i - asked.begin  # below 0 nothing is followed
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
    return steps.table(noised_on(on, indices))


def taught_indices(length: int, original: int, n: int, share: float = 1.0) -> Any:
    """``(n,)``: n of the indices that a student was distilled at, falling, of a chain of so many steps; of the lowest
    share of them."""
    taught = (np.arange(1, int(original * share) + 1) * (length // original) - 1)[::-1]
    return taught[np.floor(np.linspace(0, len(taught), n, endpoint=False)).astype(int)]


def _taught(fields: Fields, on: Chain, asked: Asked) -> Numbers:
    """The indices of n steps, of those that a student was distilled at."""
    fields.ignore("set_alpha_to_one")
    original = fields.get("original_inference_steps", 50)
    if asked.n > int(original * asked.share):
        which = "" if asked.share == 1 else f"; of these strength={asked.share} leaves {int(original * asked.share)}"
        fields.refuse("original_inference_steps", f"is {original}{which}, and {asked.n} steps are asked for")
    return taught_indices(on.length, original, asked.n, asked.share)


def lcm(fields: Fields, asked: Asked) -> StepTable:
    """Luo et al. 2023, https://arxiv.org/abs/2310.04378, algorithm 3."""
    on = chain(fields, spacing="leading")
    scaling = fields.get("timestep_scaling", 10.0)
    steps, indices = Steps(), _taught(fields, on, asked)
    for number, index in enumerate(indices):
        alpha, sigma = math.sqrt(on.abar[index]), math.sqrt(1 - on.abar[index])
        time = float(index) * scaling
        clean = time / math.sqrt(time**2 + 0.25) * steps["x0"] + 0.25 / (time**2 + 0.25) * steps["x"]
        if number + 1 < asked.n:
            after = on.abar[indices[number + 1]]
            clean = math.sqrt(after) * clean + math.sqrt(1 - after) * steps["noise"]
        steps.add(float(index), 1.0, of_x0(on.kind, alpha, sigma), x=clean)
    return steps.table(noised_on(on, indices), limit=limit_of(fields, False))


def tcd(fields: Fields, asked: Asked) -> StepTable:
    """Zheng et al. 2024, https://arxiv.org/abs/2402.19159, algorithm 2: to (1 - eta) of the next index, and noise up.

    The sample that comes out is that of abar_0, with its noise: diffusers takes no last step to x0. Its range is not
    limited, though a field says so.
    """
    fields.ignore("clip_sample", "clip_sample_range", "timestep_scaling")
    on = chain(fields, spacing="leading")
    steps, indices = Steps(), _taught(fields, on, asked)
    for number, index in enumerate(indices):
        last = number + 1 == asked.n
        to = 0 if last else int(indices[number + 1])
        low = int(np.float32(1 - asked.eta) * np.float32(to))
        alpha, sigma = math.sqrt(on.abar[index]), math.sqrt(1 - on.abar[index])
        eps = of_eps(on.kind, alpha, sigma, steps["x"], steps["f"])
        x = math.sqrt(on.abar[low]) * steps["x0"] + math.sqrt(1 - on.abar[low]) * eps
        if asked.eta > 0 and not last:
            kept = on.abar[to] / on.abar[low]
            x = math.sqrt(kept) * x + math.sqrt(1 - kept) * steps["noise"]
        steps.add(float(index), 1.0, of_x0(on.kind, alpha, sigma), x=x)
    return steps.table(noised_on(on, indices))


def ddim_inverse(fields: Fields, asked: Asked) -> StepTable:
    """DDIM from data to noise: the network is told the index that a step goes to (Mokady et al. 2023,
    https://arxiv.org/abs/2211.09794, section 3.2)."""
    on = chain(fields, spacing="leading")
    if on.spacing == "linspace":
        fields.refuse("timestep_spacing", "is 'linspace', which diffusers' own does not have")
    first = 1.0 if fields.get("set_alpha_to_one", True) else on.abar[0]
    steps, indices = Steps(), spaced(on, asked.n, whole=True)[::-1]
    for index in indices:
        at = min(int(index) - on.length // asked.n, on.length - 1)
        before, after = on.abar[at] if at >= 0 else first, on.abar[int(index)]
        alpha, sigma = math.sqrt(before), math.sqrt(1 - before)
        eps = of_eps(on.kind, alpha, sigma, steps["x"], steps["f"])
        x = math.sqrt(after) * steps["x0"] + math.sqrt(1 - after) * eps
        steps.add(index, 1.0, of_x0(on.kind, alpha, sigma), x=x)
    return steps.table(noised_on(on, indices), limit=limit_of(fields, True))


def _pair(on: Chain, index: float, n: int, last: float) -> tuple[float, float, float, float]:
    """abar of a step and of the one T//n below, and alpha and sigma of the first."""
    before, below = float(on.abar[int(index)]), int(index) - on.length // n
    after = float(on.abar[below]) if below >= 0 else float(last)
    return before, after, math.sqrt(before), math.sqrt(1 - before)


def limit_of(fields: Fields, default: bool) -> float | None:
    limit: float = fields.get("clip_sample_range", 1.0)
    return limit if fields.get("clip_sample", default) else None
