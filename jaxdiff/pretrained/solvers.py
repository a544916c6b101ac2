"""diffusers' solvers in half the log-SNR, DPM-Solver++ and UniPC, as tables for `jaxdiff.pretrained.steps`.

With s_i the noise levels, ``lambda_i = -ln s_i`` and h the difference of two; x is alpha x0 + sigma eps. What diffusers
does otherwise than the papers is named in `jaxdiff.pretrained.schedulers`.
"""

from __future__ import annotations

import math
from typing import Any

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
    of_x0,
    spaced,
    warped,
)
from jaxdiff.pretrained.fields import Fields
from jaxdiff.pretrained.steps import Steps, StepTable, Vector

Parts = tuple[float, float, float]


def _solver_levels(fields: Fields, on: Chain, asked: Asked, *, unipc: bool) -> tuple[Numbers, Numbers]:
    """What is told, and the noise levels, of DPM-Solver++ and UniPC."""
    fields.only(use_flow_sigmas=False, use_lu_lambdas=False, use_dynamic_shifting=False)
    fields.ignore("flow_shift", "time_shift_type", "lambda_min_clipped", "sigma_min", "sigma_max", "shift_terminal")
    told = spaced(on, asked.n, whole=True, dropped=True)
    by, final = chosen_levels(fields), on.levels[0]
    if by is None:
        level = level_at(on, told)
    else:
        level = warped(on.levels[-1], on.levels[0], asked.n, by)
        told = index_at(on, level)
        cosine = fields.get("beta_schedule", "linear") == "squaredcos_cap_v2"
        told = told.round() if by == "karras" and (unipc or not cosine) else told
        final = level[-1] if unipc else final
    last = final if fields.get("final_sigmas_type", "zero") == "sigma_min" else 0.0
    return np.trunc(told), np.append(level, last)


def _alpha_sigma(level: float) -> tuple[float, float]:
    return input_scale(level), level * input_scale(level)


def _half_log_snr(level: float) -> float:
    return -math.log(level) if level > 0 else math.inf


def dpm_solver(fields: Fields, asked: Asked) -> StepTable:
    """Lu et al. 2022, "DPM-Solver++", https://arxiv.org/abs/2211.01095, algorithm 2, and its SDE form, appendix B.

    The last step is of first order where the levels end at 0, and the last two are of lower order under 15 steps.
    """
    fields.only(algorithm_type=("dpmsolver++", "sde-dpmsolver++"), solver_type=("midpoint", "heun"), variance_type=None)
    on = chain(fields, zero_snr_level=True)
    order, noisy = fields.get("solver_order", 2), fields.get("algorithm_type", "dpmsolver++").startswith("sde")
    lower, heun = fields.get("lower_order_final", True), fields.get("solver_type", "midpoint") == "heun"
    at_end = fields.get("euler_at_final", False) or fields.get("final_sigmas_type", "zero") == "zero"
    told, level = _solver_levels(fields, on, asked, unipc=False)
    steps, n = Steps("m1", "m2"), asked.n
    for i in range(n):
        last = i == n - 1 and (at_end or (lower and n < 15))
        second = i == n - 2 and lower and n < 15
        this = 1 if last else min(order, i + 1, 2 if second else order)
        (alpha, sigma), (_, below) = _alpha_sigma(level[i + 1]), _alpha_sigma(level[i])
        h = _half_log_snr(level[i + 1]) - _half_log_snr(level[i])
        kept, e = math.exp(-h), math.exp(-2 * h) if noisy else math.exp(-h)
        x = sigma / below * (kept if noisy else 1.0) * steps["x"] + alpha * (1 - e) * steps["x0"]
        for weight, difference in _differences(steps, level, i, this, h, noisy, heun):
            x = x + alpha * weight * difference
        x = x + (sigma * math.sqrt(1 - e) * steps["noise"] if noisy else 0.0)
        x0 = of_x0(on.kind, *_alpha_sigma(level[i]))
        steps.add(told[i], 1.0, x0, x=x, m1=steps["x0"], m2=steps["m1"])
    return steps.table()


def _differences(
    steps: Steps, level: Numbers, i: int, order: int, h: float, noisy: bool, heun: bool
) -> list[tuple[float, Vector]]:
    """The differences of the answers that a step of order 2 or 3 has, each with its weight over alpha."""
    if order == 1:
        return []
    lambdas = [_half_log_snr(each) for each in level[max(i - 2, 0) : i + 1]][::-1]
    wide = 2 * h if noisy else h
    e = math.exp(-wide)
    slope = (e - 1) / wide + 1
    r0 = (lambdas[0] - lambdas[1]) / h
    first = (steps["x0"] - steps["m1"]) / r0
    if order == 2:
        return [(slope if heun else 0.5 * (1 - e), first)]
    r1 = (lambdas[1] - lambdas[2]) / h
    second = (first - (steps["m1"] - steps["m2"]) / r1) / (r0 + r1)
    curve = (e - 1 + wide) / wide**2 + (0.5 if noisy else -0.5)
    return [(slope, first + r0 * second), (-curve, second)]


def unipc(fields: Fields, asked: Asked) -> StepTable:
    """Zhao et al. 2023, "UniPC", https://arxiv.org/abs/2302.04867, algorithms 1 and 2, of the data prediction.

    With B the coefficient of the differences, a step of order p mixes them by weights rho that solve R rho = b,
    R_jk = r_k^(j-1): the predictor over the p - 1 earlier answers, the corrector over the new one too.
    """
    fields.only(predict_x0=True, disable_corrector=((),), solver_p=None, solver_type=("bh2", "bh1"))
    on = chain(fields, zero_snr_level=True)
    order, lower = fields.get("solver_order", 2), fields.get("lower_order_final", True)
    if order > 3:
        fields.refuse("solver_order", f"is {order}; jaxdiff has 1 to 3")
    first_kind = fields.get("solver_type", "bh2") == "bh1"
    told, level = _solver_levels(fields, on, asked, unipc=True)
    if first_kind and level[-1] == 0:
        fields.refuse("solver_type", "is 'bh1', which ends in NaN where final_sigmas_type is 'zero'")
    if level[-1] == level[-2]:
        fields.refuse("final_sigmas_type", "is 'sigma_min', which ends in NaN: the last step has no length")
    steps = Steps("begin", "m1", "m2", "m3")
    earlier = 1
    for i in range(asked.n):
        x, answers = steps["x"], [steps[name] for name in ("x0", "m1", "m2", "m3")]
        if i > 0:  # the step before, once more, with the new answer
            r, weights, b, parts = _uni(level, i - 1, earlier, first_kind)
            rho = np.array([0.5]) if earlier == 1 else np.linalg.solve(r, b)
            old = [(answers[k + 2] - answers[1]) / weights[k] for k in range(earlier - 1)]
            mixed = sum((p * d for p, d in zip(rho, [*old, answers[0] - answers[1]], strict=True)), np.zeros_like(x))
            x = parts[0] * steps["begin"] + parts[1] * answers[1] - parts[2] * mixed
        this = min(order, i + 1, asked.n - i if lower else order)
        r, weights, b, parts = _uni(level, i, this, first_kind)
        rho = np.array([0.5]) if this == 2 else np.linalg.solve(r[:-1, :-1], b[:-1])
        new = [(answers[k + 1] - answers[0]) / weights[k] for k in range(this - 1)]
        mixed = sum((p * d for p, d in zip(rho, new, strict=False)), np.zeros_like(x))
        after = parts[0] * x + parts[1] * answers[0] - parts[2] * mixed
        kept = {"m1": answers[0], "m2": answers[1], "m3": answers[2]}
        steps.add(told[i], 1.0, of_x0(on.kind, *_alpha_sigma(level[i])), x=after, begin=x, **kept)
        earlier = this
    return steps.table()


def _uni(level: Numbers, i: int, order: int, first_kind: bool) -> tuple[Any, list[float], Any, Parts]:
    """R, the r_k of earlier answers, b, and the coefficients of x, of the last answer, and B."""
    (alpha, sigma), (_, below) = _alpha_sigma(level[i + 1]), _alpha_sigma(level[i])
    at = _half_log_snr(level[i])
    h = _half_log_snr(level[i + 1]) - at
    earlier = [(_half_log_snr(level[i - k]) - at) / h for k in range(1, order)]
    r, factorial = np.array([*earlier, 1.0]), 1.0
    phi1 = math.expm1(-h)
    scale = -h if first_kind else phi1
    phi, b = phi1 / -h - 1, []
    for k in range(1, order + 1):
        b.append(phi * factorial / scale)
        factorial *= k + 1
        phi = phi / -h - 1 / factorial
    matrix = np.stack([r ** (k - 1) for k in range(1, order + 1)])
    return matrix, earlier, np.array(b), (sigma / below, -alpha * phi1, alpha * scale)
