"""diffusers' solvers in half the log-SNR, DPM-Solver++ and UniPC, as tables for `jaxdiff.pretrained.schedulers.steps`.

With ``lambda = ln(alpha/sigma)`` and h the difference of two; x is alpha x0 + sigma eps. What diffusers does otherwise
than the papers is named in `jaxdiff.pretrained.schedulers.classes`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from jaxdiff.pretrained.fields import Fields
from jaxdiff.pretrained.schedulers.chains import Asked
from jaxdiff.pretrained.schedulers.paths import Path, edm_path, solver_path
from jaxdiff.pretrained.schedulers.steps import Steps, StepTable, Vector

Parts = tuple[float, float, float]
NO_LENGTH = "is 'sigma_min', which ends in NaN: the last step has no length"


def spelled(fields: Fields, name: str, known: tuple[str, ...], others: tuple[str, ...]) -> str:
    """A field's value; that of another class is this class' default, as diffusers has it.

    Raises:
      PretrainedError: a value that no class has.
    """
    value: str = fields.get(name, known[0])
    if value in others:
        return known[0]
    fields.only(**{name: known})
    return value


def _stochastic(fields: Fields) -> bool:
    return spelled(fields, "algorithm_type", ("dpmsolver++", "sde-dpmsolver++"), ()).startswith("sde")


def _heun(fields: Fields) -> bool:
    return spelled(fields, "solver_type", ("midpoint", "heun"), ("logrho", "bh1", "bh2")) == "heun"


def _order(fields: Fields) -> int:
    order: int = fields.get("solver_order", 2)
    if order not in (1, 2, 3):
        fields.refuse("solver_order", f"is {order}; jaxdiff has 1 to 3")
    return order


def dpm_solver(fields: Fields, asked: Asked) -> StepTable:
    """Lu et al. 2022, "DPM-Solver++", https://arxiv.org/abs/2211.01095, algorithm 2, and its SDE form, appendix B.

    The last step is of first order where the levels end at 0, and the last two are of lower order under 15 steps. A
    flow's that ends at ``sigma_min`` ends at the chain's.
    """
    fields.only(variance_type=None)
    return _multistep(fields, asked, solver_path(fields, asked, "chosen", cosine_is_exact=True))


def edm_dpm_solver(fields: Fields, asked: Asked) -> StepTable:
    """DPM-Solver++ with the preconditioning and the levels of Karras et al. 2022.

    Where ``final_sigmas_type`` is sigma_min, the last call changes nothing.
    """
    if _stochastic(fields) and _order(fields) == 3:
        fields.refuse("solver_order", "is 3 with sde-dpmsolver++, which diffusers' own does not have")
    return _multistep(fields, asked, edm_path(fields, asked.n))


def _multistep(fields: Fields, asked: Asked, path: Path) -> StepTable:
    order, noisy, heun = _order(fields), _stochastic(fields), _heun(fields)
    lower = fields.get("lower_order_final", True)
    at_end = fields.get("euler_at_final", False) or fields.get("final_sigmas_type", "zero") == "zero"
    steps, n, lam, last_is_empty = Steps("m1", "m2"), len(path), path.half_log_snr, path.last_is_empty
    for i in range(n):
        last = i == n - 1 and (at_end or (lower and n < 15))
        second = i == n - 2 and lower and n < 15
        this = 1 if last else min(order, asked.since(i) + 1, 2 if second else order)
        kept = {"m1": steps["x0"], "m2": steps["m1"]}
        if last_is_empty and i == n - 1:
            if noisy or (this > 1 and (heun or order == 3)):
                fields.refuse("final_sigmas_type", NO_LENGTH)
            steps.add(path.told[i], path.scale[i], path.x0[i], **kept)
            continue
        h = lam[i + 1] - lam[i]
        x = _exponential(steps, path, i, i, h, steps["x"], steps["x0"], noisy)
        if this > 1:
            r0 = (lam[i] - lam[i - 1]) / h
            first = (steps["x0"] - steps["m1"]) / r0
            differences = [first]
            if this == 3:
                r1 = (lam[i - 1] - lam[i - 2]) / h
                second_one = (first - (steps["m1"] - steps["m2"]) / r1) / (r0 + r1)
                differences = [first + r0 * second_one, second_one]
            weights = _weights(this, h, noisy, heun)
            x = x + path.alpha[i + 1] * sum(w * d for w, d in zip(weights, differences, strict=True))
        steps.add(path.told[i], path.scale[i], path.x0[i], x=x, **kept)
    return steps.table(path.noised, start=path.start)


def _exponential(steps: Steps, path: Path, i: int, base: int, h: float, x: Vector, x0: Vector, noisy: bool) -> Vector:
    """The step of first order from the level ``base`` to i + 1, with its noise."""
    alpha, sigma, below = path.alpha[i + 1], path.sigma[i + 1], path.sigma[base]
    kept, e = math.exp(-h), math.exp(-2 * h) if noisy else math.exp(-h)
    after: Vector = sigma / below * (kept if noisy else 1.0) * x + alpha * (1 - e) * x0
    return after + sigma * math.sqrt(1 - e) * steps["noise"] if noisy else after


def _weights(order: int, h: float, noisy: bool, heun: bool) -> list[float]:
    """Of the differences of the answers that a step of order 2 or 3 has, over alpha."""
    wide = 2 * h if noisy else h
    e = math.exp(-wide)
    slope = (e - 1) / wide + 1 if math.isfinite(wide) else 1.0
    if order == 2:
        return [slope if heun else 0.5 * (1 - e)]
    curve = (e - 1 + wide) / wide**2 + (0.5 if noisy else -0.5)
    return [slope, -curve]


def dpm_solver_singlestep(fields: Fields, asked: Asked) -> StepTable:
    """Lu et al. 2022's singlestep solver: steps of orders 1, 2 and 3 from one x, which count as one each.

    ``lower_order_final`` is true where n is no multiple of the order or the levels end at 0, whatever is asked. By
    midpoints the third order has no third term, and in the SDE form it has the multistep solver's.
    """
    fields.only(variance_type=None)
    order, noisy, heun = _order(fields), _stochastic(fields), _heun(fields)
    lower, at_zero = fields.get("lower_order_final", False), fields.get("final_sigmas_type", "zero") == "zero"
    path = solver_path(fields, asked, "chosen")
    n, lam = len(path), path.half_log_snr
    orders = _orders(n, order, lower or n % order != 0 or at_zero)
    orders = [*orders[:-1], 1] if at_zero else orders
    if noisy and path.last_is_empty:
        fields.refuse("final_sigmas_type", NO_LENGTH)
    steps = Steps("begin", "m1", "m2")
    for i, order in enumerate(orders):
        this = min(order, asked.since(i) + 1)
        base = i - this + 1
        h = lam[i + 1] - lam[base]
        begin = steps["x"] if this == 1 else steps["begin"]
        answers = [steps["x0"], steps["m1"], steps["m2"]]
        x = _exponential(steps, path, i, base, h, begin, answers[this - 1], noisy)
        if this == 2:
            difference = (answers[0] - answers[1]) * h / (lam[i] - lam[base])
            x = x + path.alpha[i + 1] * _weights(2, h, noisy, heun)[0] * difference
        elif this == 3:
            r1, r0 = (lam[i - 1] - lam[base]) / h, (lam[i] - lam[base]) / h
            near, far = (answers[1] - answers[2]) / r1, (answers[0] - answers[2]) / r0
            differences = [(r0 * near - r1 * far) / (r0 - r1), 2 * (far - near) / (r0 - r1)] if heun else [far, 0 * far]
            weights = _weights(3, h, noisy, heun)
            x = x + path.alpha[i + 1] * sum(w * d for w, d in zip(weights, differences, strict=True))
        steps.add(path.told[i], 1.0, path.x0[i], x=x, begin=begin, m1=answers[0], m2=answers[1])
    return steps.table(path.noised)


def _orders(n: int, order: int, lower: bool) -> list[int]:
    """The orders of n singlestep evaluations."""
    full = [*range(1, order + 1)]
    if not lower or order == 1:
        return full * (n // order)
    if n % order == 0:
        return full * (n // order - 1) + {2: [1, 1], 3: [1, 2, 1]}[order]
    return full * (n // order) + full[: n % order]


def unipc(fields: Fields, asked: Asked) -> StepTable:
    """Zhao et al. 2023, "UniPC", https://arxiv.org/abs/2302.04867, algorithms 1 and 2, of the data prediction.

    With B the coefficient of the differences, a step of order p mixes them by weights rho that solve R rho = b,
    R_jk = r_k^(j-1): the predictor over the p - 1 earlier answers, the corrector over the new one too.
    """
    fields.only(predict_x0=True, solver_p=None)
    order, lower, uncorrected = (
        _order(fields),
        fields.get("lower_order_final", True),
        fields.get("disable_corrector", (), like=(0,)) or (),
    )
    first_kind = spelled(fields, "solver_type", ("bh2", "bh1"), ("midpoint", "heun", "logrho")) == "bh1"
    path = solver_path(fields, asked, "chosen, of its own")
    if first_kind and path.sigma[-1] == 0:
        fields.refuse("solver_type", "is 'bh1', which ends in NaN where final_sigmas_type is 'zero'")
    if path.sigma[-1] == 0 and order > 1 and not lower:
        fields.refuse("lower_order_final", "is false, which ends in NaN where final_sigmas_type is 'zero'")
    if path.last_is_empty:
        fields.refuse("final_sigmas_type", NO_LENGTH)
    steps, n = Steps("begin", "m1", "m2", "m3"), len(path)
    earlier = 1
    for i in range(n):
        x, answers = steps["x"], [steps[name] for name in ("x0", "m1", "m2", "m3")]
        if i > asked.begin and i - 1 not in uncorrected:  # the step before, once more, with the new answer
            r, weights, b, parts = _uni(path, i - 1, earlier, first_kind)
            rho = np.array([0.5]) if earlier == 1 else np.linalg.solve(r, b)
            old = [(answers[k + 2] - answers[1]) / weights[k] for k in range(earlier - 1)]
            mixed = sum((p * d for p, d in zip(rho, [*old, answers[0] - answers[1]], strict=True)), np.zeros_like(x))
            x = parts[0] * steps["begin"] + parts[1] * answers[1] - parts[2] * mixed
        this = min(order, asked.since(i) + 1, n - i if lower else order)
        r, weights, b, parts = _uni(path, i, this, first_kind)
        rho = np.array([0.5]) if this == 2 else np.linalg.solve(r[:-1, :-1], b[:-1])
        new = [(answers[k + 1] - answers[0]) / weights[k] for k in range(this - 1)]
        mixed = sum((p * d for p, d in zip(rho, new, strict=False)), np.zeros_like(x))
        after = parts[0] * x + parts[1] * answers[0] - parts[2] * mixed
        kept = {"m1": answers[0], "m2": answers[1], "m3": answers[2]}
        steps.add(path.told[i], 1.0, path.x0[i], x=after, begin=x, **kept)
        earlier = this
    return steps.table(path.noised)


def _uni(path: Path, i: int, order: int, first_kind: bool) -> tuple[Any, list[float], Any, Parts]:
    """R, the r_k of earlier answers, b, and the coefficients of x, of the last answer, and B."""
    alpha, lam = path.alpha[i + 1], path.half_log_snr
    h = lam[i + 1] - lam[i]
    earlier = [float((lam[i - k] - lam[i]) / h) for k in range(1, order)]
    r, factorial = np.array([*earlier, 1.0]), 1.0
    phi1 = math.expm1(-h)
    scale = -h if first_kind else phi1
    phi, b = phi1 / -h - 1, []
    for k in range(1, order + 1):
        b.append(phi * factorial / scale)
        factorial *= k + 1
        phi = phi / -h - 1 / factorial
    matrix = np.stack([r ** (k - 1) for k in range(1, order + 1)])
    return matrix, earlier, np.array(b), (path.sigma[i + 1] / path.sigma[i], -alpha * phi1, alpha * scale)
