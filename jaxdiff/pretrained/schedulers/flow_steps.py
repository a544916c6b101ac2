"""diffusers' schedulers of flows, x = (1 - s) x0 + s eps, as tables for `jaxdiff.pretrained.schedulers.steps`.

The network predicts eps - x0 and is told T s. What diffusers does otherwise than the papers is named in
`jaxdiff.pretrained.schedulers.classes`.
"""

from __future__ import annotations

import itertools
import math

import numpy as np

from jaxdiff.pretrained.fields import Fields
from jaxdiff.pretrained.schedulers.chains import Asked, Numbers, chosen_levels, noised_at, of_x0, twice, warped
from jaxdiff.pretrained.schedulers.steps import Steps, StepTable


def flow_euler(fields: Fields, asked: Asked) -> StepTable:
    """Euler's step of dx/ds = f (Esser et al. 2024, https://arxiv.org/abs/2403.03206, sections 2 and 5.3.2)."""
    fields.only(invert_sigmas=False)
    level = flow_levels(fields, asked.n, asked.tokens, even=asked.even)
    length, again = fields.get("num_train_timesteps", 1000), fields.get("stochastic_sampling", False)
    steps = Steps()
    for i in range(asked.n):
        here, to = level[i], level[i + 1]
        x = (1 - to) * steps["x0"] + to * steps["noise"] if again else steps["x"] + (to - here) * steps["f"]
        steps.add(length * here, 1.0, of_x0("flow_prediction", 1 - here, here), x=x)
    return steps.table(noised_at(1 - level[:-1], level[:-1]))


def flow_lcm(fields: Fields, asked: Asked) -> StepTable:
    """x0, and noise up to the next level: the steps of a flow's consistency model."""
    fields.only(invert_sigmas=False, scale_factors=None)
    fields.ignore("upscale_mode")
    level = flow_levels(fields, asked.n, asked.tokens, even=asked.even)
    length, steps = fields.get("num_train_timesteps", 1000), Steps()
    for here, to in itertools.pairwise(level):
        x = (1 - to) * steps["x0"] + to * steps["noise"]
        steps.add(length * here, 1.0, of_x0("flow_prediction", 1 - here, here), x=x)
    return steps.table(noised_at(1 - level[:-1], level[:-1]))


def flow_heun(fields: Fields, asked: Asked) -> StepTable:
    """Heun's method: the mean of the slopes at both ends; the last step is Euler's."""
    if asked.even:
        fields.refuse("_class_name", "is FlowMatchHeunDiscreteScheduler, which takes no levels of the pipeline's own")
    level = flow_levels(fields, asked.n, None)
    length, steps = fields.get("num_train_timesteps", 1000), Steps("first", "slope")
    for here, to in itertools.pairwise(level):
        after = {"x": steps["x"] + (to - here) * steps["f"], "first": steps["x"], "slope": steps["f"]}
        steps.add(length * here, 1.0, of_x0("flow_prediction", 1 - here, here), **after)
        if to > 0:
            x = steps["first"] + (to - here) * (steps["slope"] + steps["f"]) / 2
            steps.add(length * to, 1.0, of_x0("flow_prediction", 1 - to, to), x=x)
    return steps.table(noised_at(1 - twice(level[:-1]), twice(level[:-1])))


def shift_of(fields: Fields, tokens: int | None) -> float | None:
    """The factor of a dynamic shift by the image's tokens; None: the shift is not dynamic.

    Raises:
      PretrainedError: a dynamic shift, and the number of tokens is not said.
    """
    base, most = fields.get("base_shift", 0.5), fields.get("max_shift", 1.15)
    few, many = fields.get("base_image_seq_len", 256), fields.get("max_image_seq_len", 4096)
    kind = fields.get("time_shift_type", "exponential")
    if not fields.get("use_dynamic_shifting", False):
        return None
    if tokens is None:
        fields.refuse("use_dynamic_shifting", "is true: say how many tokens the image has, tokens=")
    mu: float = base + ((tokens or 0) - few) * (most - base) / (many - few)
    return math.exp(mu) if kind == "exponential" else mu


def shifted(level: Numbers, factor: float) -> Numbers:
    """A flow's levels s as ``factor s / (1 + (factor - 1) s)``."""
    return factor * level / (1 + (factor - 1) * level)


def stretched(level: Numbers, end: float | None) -> Numbers:
    """A flow's levels so that 1 - s ends at 1 - ``end``; None, 0: as they are."""
    return 1 - (1 - level) * (1 - end) / (1 - level[-1]) if end else level


def flow_levels(fields: Fields, n: int, tokens: int | None, *, even: bool = False) -> Numbers:
    """The noise levels of a `FlowMatchEulerDiscreteScheduler`, n and then 0.

    Raises:
      PretrainedError: a dynamic shift, and the number of tokens is not said.
    """
    length, shift = fields.get("num_train_timesteps", 1000), fields.get("shift", 1.0)
    dynamic = shift_of(fields, tokens)
    if even:
        level = np.linspace(1.0, 1 / n, n)
    else:
        ends = np.array([1.0, 1 / length])
        first, last = ends if dynamic else shifted(ends, shift)  # shifted, and once more
        level = np.linspace(first, last, n)
    level = shifted(level, dynamic or shift)
    level = stretched(level, fields.get("shift_terminal", None, like=0.0))
    by = chosen_levels(fields)
    return np.append(level if by is None else warped(level[0], level[-1], n, by), 0.0)
