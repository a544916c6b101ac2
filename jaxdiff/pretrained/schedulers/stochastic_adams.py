"""diffusers' Adams methods with exact integrals, DEIS and SA-Solver, as tables for `schedulers.steps`.

Both take the polynomial through the last answers, in ``lambda = ln(alpha/sigma)``, and integrate it exactly:

    DEIS       x_t = alpha_t (x_s/alpha_s + sum_i w_i eps_i),    w_i = int l_i(ln rho) d rho,   rho = sigma/alpha   (1)
    SA-Solver  x_t = (sigma_t/sigma_s) e^(-tau^2 h) x_s
                     + (1 + tau^2) sigma_t e^(-tau^2 lambda_t) sum_i w_i x0_i + sigma_t sqrt(1 - e^(-2 tau^2 h)) z   (2)
               w_i = int e^((1 + tau^2) lambda) l_i(lambda) d lambda

(Zhang & Chen 2023, https://arxiv.org/abs/2204.13902, equation (15), and Xue et al. 2023,
https://arxiv.org/abs/2309.05019, equations (14) and (17)). What diffusers does otherwise is named in
`jaxdiff.pretrained.schedulers.classes`.
"""

from __future__ import annotations

import math

import numpy as np

from jaxdiff.pretrained.fields import Fields
from jaxdiff.pretrained.schedulers.chains import Asked, lagrange_weights
from jaxdiff.pretrained.schedulers.paths import Path, solver_path
from jaxdiff.pretrained.schedulers.solvers import spelled
from jaxdiff.pretrained.schedulers.steps import Steps, StepTable, Vector

_OTHER_CLASSES = ("dpmsolver", "dpmsolver++"), ("midpoint", "heun", "bh1", "bh2")


def deis(fields: Fields, asked: Asked) -> StepTable:
    """Equation (1), of orders 1 to 3: the last step goes to the first level of the chain, never to 0.

    With levels that are not the chain's own the last call changes nothing, since its level is the one before.
    """
    spelled(fields, "algorithm_type", ("deis",), _OTHER_CLASSES[0])
    spelled(fields, "solver_type", ("logrho",), _OTHER_CLASSES[1])
    order, lower = fields.get("solver_order", 2), fields.get("lower_order_final", True)
    if order not in (1, 2, 3):
        fields.refuse("solver_order", f"is {order}; jaxdiff has 1 to 3")
    path = solver_path(fields, asked, "repeated")
    steps, n, lam = Steps("e1", "e2"), len(path), path.half_log_snr
    for i in range(n):
        short = n - i if lower and n < 15 else order
        this = min(order, asked.since(i) + 1, short)
        answers = [path.eps(i, steps["x"], steps["x0"]), steps["e1"], steps["e2"]]
        nodes = -lam[i - this + 1 : i + 1][::-1]  # ln rho
        weights = lagrange_weights(nodes, -lam[i], -lam[i + 1], rate=1.0)
        x = steps["x"] / path.alpha[i]
        x = path.alpha[i + 1] * (x + sum(w * e for w, e in zip(weights, answers, strict=False)))
        steps.add(path.told[i], 1.0, path.x0[i], x=x, e1=answers[0], e2=answers[1])
    return steps.table(path.noised)


def sa_solver(fields: Fields, asked: Asked) -> StepTable:
    """Equation (2), predictor and corrector, with tau 1 where the network is told 200 to 800, else 0.

    Of second order the last weight is that of another expansion, as in the authors' code. The last step goes to the
    first level of the chain, never to 0; with other levels the last call changes nothing.
    """
    fields.only(algorithm_type="data_prediction", tau_func=None, variance_type=None)
    predictor, corrector = fields.get("predictor_order", 2), fields.get("corrector_order", 2)
    for name, order in (("predictor_order", predictor), ("corrector_order", corrector)):
        if order not in (1, 2, 3, 4):
            fields.refuse(name, f"is {order}; jaxdiff has 1 to 4")
    lower = fields.get("lower_order_final", True)
    path = solver_path(fields, asked, "repeated")
    most, n = max(predictor, corrector - 1), len(path)
    steps = Steps("begin", "z", "m1", "m2", "m3", "m4")
    for i in range(n):
        x, answers = steps["x"], [steps[name] for name in ("x0", "m1", "m2", "m3", "m4")]
        if i > asked.begin:  # the step before, once more, with the new answer
            order = min(corrector, n - i + 2 if lower else corrector, min(asked.since(i) - 1, most) + 2)
            at = [*range(i, i - order, -1)]
            x = _stochastic(path, i - 1, at, answers, steps["begin"], steps["z"], _tau(path.told[i - 1]))
        order = min(predictor, n - i if lower else predictor, min(asked.since(i), most) + 1)
        at = [*range(i, i - order, -1)]
        after = _stochastic(path, i, at, answers, x, steps["noise"], _tau(path.told[i]))
        kept = dict(zip(("m1", "m2", "m3", "m4"), answers, strict=False))
        steps.add(path.told[i], 1.0, path.x0[i], x=after, begin=x, z=steps["noise"], **kept)
    return steps.table(path.noised)


def _tau(told: float) -> float:
    return 1.0 if 200 <= told <= 800 else 0.0


def _stochastic(
    path: Path, i: int, at: list[int], answers: list[Vector], x: Vector, noise: Vector, tau: float
) -> Vector:
    """Equation (2) from level i to i + 1, with answers at the levels ``at``."""
    lam, wide = path.half_log_snr, 1 + tau**2
    end, h = lam[i + 1], float(lam[i + 1] - lam[i])
    weights = lagrange_weights(lam[at], lam[i], end, rate=wide)
    if len(at) == 2:
        rest = (h * wide - 1 + math.exp(-wide * h)) / wide**2
        # over the length that the difference of the answers is taken over
        change = math.exp(wide * end) * (h**2 / 2 - rest) / (lam[at[0]] - lam[at[1]])
        weights = [weights[0] + change, weights[1] - change]
    sigma = path.sigma[i + 1]
    known = sum((w * m for w, m in zip(weights, answers, strict=False)), np.zeros_like(x))
    x = math.exp(-(tau**2) * h) * sigma / path.sigma[i] * x + wide * sigma * math.exp(-(tau**2) * end) * known
    return np.asarray(x + sigma * math.sqrt(max(1 - math.exp(-2 * tau**2 * h), 0.0)) * noise)
