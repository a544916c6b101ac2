"""Where diffusers' solvers in half the log-SNR evaluate: alpha, sigma, and what the network sees and is told.

At a noise level s it is ``alpha = 1/sqrt(s^2 + 1), sigma = s alpha`` on a chain, ``alpha = 1 - s, sigma = s`` on a flow
(``use_flow_sigmas``), and ``alpha = 1, sigma = s`` with the preconditioning of Karras et al. 2022 (EDM), whose c_skip,
c_out, c_in and c_noise are in `jaxdiff.parameterization`. Levels are float32, as theirs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from jaxdiff.pretrained.fields import Fields
from jaxdiff.pretrained.schedulers.chains import (
    Asked,
    Chain,
    Numbers,
    chain,
    chosen_levels,
    index_at,
    level_at,
    noised_at,
    of_x0,
    spaced,
)
from jaxdiff.pretrained.schedulers.chains import warped as warped_levels
from jaxdiff.pretrained.schedulers.flow_steps import shift_of, shifted, stretched

End = Literal["chosen", "chosen, of its own", "repeated"]
"""Where the levels end: at 0 or, by ``final_sigmas_type``, at the chain's first level; or, where they are not the
chain's own, at their last once more; or always so."""


_NAMES = {each: f"use_{each}_sigmas" for each in ("karras", "exponential", "beta")} | {"lu": "use_lu_lambdas"}


@dataclass(frozen=True)
class Path:
    """n evaluations and the end.

    Args:
      told: ``(n,)``, what the network is told.
      scale: ``(n,)``, of its input.
      alpha: ``(n + 1,)``.
      sigma: ``(n + 1,)``.
      x0: of each evaluation a and b of ``x0 = a x + b f``.
      start: standard deviation of the first x.
    """

    told: Numbers
    scale: Numbers
    alpha: Numbers
    sigma: Numbers
    x0: list[tuple[float, float]]
    start: float = 1.0

    def __len__(self) -> int:
        return len(self.told)

    @property
    def half_log_snr(self) -> Numbers:
        """``(n + 1,)``: ln(alpha/sigma)."""
        with np.errstate(divide="ignore"):
            return np.asarray(np.log(self.alpha) - np.log(self.sigma))

    @property
    def noised(self) -> Numbers:
        """``(n, 2)``: what a picture and noise count for at each evaluation."""
        return noised_at(self.alpha[:-1], self.sigma[:-1])

    @property
    def last_is_empty(self) -> bool:
        """Whether the last level is the one before, but for rounding."""
        return bool(abs(self.sigma[-1] - self.sigma[-2]) < 1e-6 * self.sigma[-2])

    def eps(self, i: int, x: Numbers, x0: Numbers) -> Numbers:
        """The noise that x0 says of x, at evaluation i."""
        return np.asarray((x - self.alpha[i] * x0) / self.sigma[i])


def solver_path(fields: Fields, asked: Asked, end: End, *, cosine_is_exact: bool = False) -> Path:
    """The path of DPM-Solver++, UniPC, DEIS and SA-Solver.

    Args:
      fields: of the scheduler's configuration.
      asked: of it.
      end: how it ends.
      cosine_is_exact: whether the cosine schedule's told index is not rounded, but cut off, with Karras' levels.

    Raises:
      PretrainedError: a schedule or levels that jaxdiff does not follow, or that end in NaN with diffusers too.
    """
    kinds = ("epsilon", "sample", "v_prediction", "flow_prediction")
    on, by = chain(fields, kinds=kinds, zero_snr_level=True), chosen_levels(fields)
    flow, factor = fields.get("use_flow_sigmas", False), fields.get("flow_shift", 1.0)
    terminal, shift = fields.get("shift_terminal", None, like=0.0), shift_of(fields, asked.tokens)
    least, most = fields.get("sigma_min", None, like=1.0), fields.get("sigma_max", None, like=1.0)
    clipped = fields.get("lambda_min_clipped", -math.inf)
    final, first = fields.get("final_sigmas_type", "zero"), float(on.levels[0])
    if final not in ("zero", "sigma_min"):
        fields.refuse("final_sigmas_type", f"is {final!r}; jaxdiff has zero and sigma_min")
    if flow != (on.kind == "flow_prediction"):
        fields.refuse("use_flow_sigmas", f"is {flow}, and prediction_type is {on.kind!r}: they go together")
    own_end = end != "chosen"
    if flow:
        level, told = _flow_levels(fields, asked, shift or factor, terminal, by, on, pinned=end == "chosen, of its own")
    else:
        if terminal is not None:
            fields.refuse("shift_terminal", "is of flows: leave it out without use_flow_sigmas")
        told = spaced(on, asked.n, whole=True, dropped=True, below=_bound(on, clipped))
        if by is None:
            level, own_end = level_at(on, told), False
        else:
            ends = on.levels[-1] if most is None else most, on.levels[0] if least is None else least
            level = warped_levels(*ends, asked.n, by)
            told = index_at(on, level)
            cosine = cosine_is_exact and fields.get("beta_schedule", "linear") == "squaredcos_cap_v2"
            told = told.round() if by in ("karras", "lu") and not cosine else told
    told = np.trunc(told)
    if len(told) > 1 and told[0] == told[1]:
        name = _NAMES[by] if by else "num_train_timesteps"
        fields.refuse(
            name, f"makes {asked.n} steps begin at index {told[0]:g} twice, where diffusers fails: take fewer"
        )
    last = float(level[-1]) if own_end else first
    level = np.append(level, last if end == "repeated" or final == "sigma_min" else 0.0)
    level = level.astype(np.float32).astype(np.float64)
    alpha = 1 - level if flow else 1 / np.sqrt(level**2 + 1)
    sigma = level if flow else level * alpha
    x0 = [of_x0(on.kind, a, s) for a, s in zip(alpha[:-1], sigma[:-1], strict=True)]
    return Path(told, np.ones(len(told)), alpha, sigma, x0)


def _flow_levels(
    fields: Fields, asked: Asked, factor: float, terminal: float | None, by: str | None, on: Chain, *, pinned: bool
) -> tuple[Numbers, Numbers]:
    """A flow's levels; ``pinned``: UniPC's, which may be dynamic, stretched or Karras', and begin below 1."""
    if by is not None and not (pinned and by == "karras"):
        fields.refuse(_NAMES[by], "is true with use_flow_sigmas, which ends in NaN: its levels are not a flow's")
    if by is not None:
        ratio = warped_levels(float(on.levels[-1]), float(on.levels[0]), asked.n, "karras")
        level = ratio / (ratio + 1)
    elif pinned:
        level = stretched(shifted(np.linspace(1, 1 / on.length, asked.n + 1)[:-1], factor), terminal)
        level[0] -= 1e-6 if abs(level[0] - 1) < 1e-6 else 0.0
    else:
        level = shifted(1 - np.linspace(1, 1 / on.length, asked.n + 1), factor)[:0:-1]
    return level, level * on.length


def _bound(on: Chain, clipped: float) -> int | None:
    """The bound of the indices whose half log-SNR is not below a number."""
    if math.isinf(clipped):
        return None
    abar = on.abar.astype(np.float32)
    half = np.log(np.sqrt(abar)) - np.log(np.sqrt(1 - abar))
    return on.length - int((half < clipped).sum())


@dataclass(frozen=True)
class EDMLevels:
    """The levels of Karras et al. 2022, with their preconditioning.

    Args:
      level: ``(n,)``.
      told, scale: ``(n,)``: c_noise and c_in.
      x0: c_skip and c_out.
      start: standard deviation of the first x.
      final: whether the levels end at sigma_min, not at 0.
    """

    level: Numbers
    told: Numbers
    scale: Numbers
    x0: list[tuple[float, float]]
    start: float
    final: bool


def edm_levels(fields: Fields, n: int) -> EDMLevels:
    """The n levels of an EDM scheduler.

    Raises:
      PretrainedError: a spacing of levels or a prediction that jaxdiff does not know.
    """
    fields.ignore("num_train_timesteps")
    fields.only(
        sigma_schedule=("karras", "exponential"),
        prediction_type=("epsilon", "v_prediction"),
        final_sigmas_type=("zero", "sigma_min"),
    )
    least, most, data = fields.get("sigma_min", 0.002), fields.get("sigma_max", 80.0), fields.get("sigma_data", 0.5)
    level = warped_levels(most, least, n, fields.get("sigma_schedule", "karras"), fields.get("rho", 7.0))
    sign = -1.0 if fields.get("prediction_type", "epsilon") == "v_prediction" else 1.0
    wide = np.sqrt(level**2 + data**2)
    x0 = [(float(data**2 / w**2), float(sign * s * data / w)) for s, w in zip(level, wide, strict=True)]
    final = fields.get("final_sigmas_type", "zero") == "sigma_min"
    return EDMLevels(level, np.log(level) / 4, 1 / wide, x0, math.sqrt(most**2 + 1), final)


def edm_path(fields: Fields, n: int) -> Path:
    """The path of EDM's DPM-Solver++."""
    edm = edm_levels(fields, n)
    sigma = np.append(edm.level, edm.level[-1] if edm.final else 0.0)
    return Path(edm.told, edm.scale, np.ones(n + 1), sigma, edm.x0, edm.start)
