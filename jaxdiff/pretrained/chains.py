"""The tables that diffusers' schedulers begin with: betas, which steps of the chain are taken, noise levels.

With beta_i of T steps, ``abar_i = prod_{j <= i} (1 - beta_j)`` and the noise level ``s_i = sqrt((1 - abar_i)/abar_i)``.
A network is told the index i, or a number between two. Step i of the chain is our time (i + 1)/T.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxdiff.pretrained.fields import Fields

Numbers = NDArray[np.float64]
Levels = Literal["karras", "exponential"]


@dataclass(frozen=True)
class Asked:
    """What is asked of a scheduler beside its configuration.

    Args:
      n: steps.
      eta: noise of DDIM, from 0 to 1.
      tokens: of the image, which decide a flow's dynamic shift.
      even: whether a flow's levels lie evenly from 1 to 1/n before their shift, as FLUX.1's pipeline gives them.
    """

    n: int
    eta: float = 0.0
    tokens: int | None = None
    even: bool = False


class Chain(NamedTuple):
    """The chain that a network was trained on.

    Attributes:
      betas: ``(T,)``.
      abar: ``(T,)``.
      kind: what the network predicts: epsilon, sample, v_prediction or flow_prediction.
      spacing: of the steps taken: linspace, leading or trailing.
      offset: added to them where they are leading.
    """

    betas: Numbers
    abar: Numbers
    kind: str
    spacing: str
    offset: int

    @property
    def length(self) -> int:
        """T."""
        return len(self.betas)

    @property
    def levels(self) -> Numbers:
        """s_i, rising; in float32 as theirs, since a rounding there can move what is told by a whole step."""
        abar = self.abar.astype(np.float32)
        return np.sqrt((1 - abar) / abar).astype(np.float64)


def chain(
    fields: Fields,
    *,
    betas: tuple[float, float, str] = (1e-4, 0.02, "linear"),
    spacing: str = "linspace",
    kinds: tuple[str, ...] = ("epsilon", "sample", "v_prediction"),
    zero_snr_level: bool = False,
) -> Chain:
    """The chain of a scheduler's configuration.

    Args:
      fields: of its configuration.
      betas: the defaults of its class: first, last, and the schedule.
      spacing: likewise.
      kinds: what may be predicted.
      zero_snr_level: whether a zero terminal signal is raised to 2^-24, as the samplers by noise level do.

    Raises:
      PretrainedError: a schedule, spacing or kind that jaxdiff does not know.
    """
    steps = fields.get("num_train_timesteps", 1000)
    first, last = fields.get("beta_start", betas[0]), fields.get("beta_end", betas[1])
    name, trained = fields.get("beta_schedule", betas[2]), fields.get("trained_betas", None)
    if trained is not None:
        found = np.asarray(trained, np.float32)
    elif name == "linear":
        found = np.linspace(first, last, steps, dtype=np.float32)
    elif name == "scaled_linear":
        found = np.linspace(first**0.5, last**0.5, steps, dtype=np.float32) ** 2
    elif name == "squaredcos_cap_v2":
        curve = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * np.pi / 2) ** 2
        found = np.minimum(1 - curve[1:] / curve[:-1], 0.999).astype(np.float32)
    else:
        fields.refuse("beta_schedule", f"is {name!r}; jaxdiff has linear, scaled_linear and squaredcos_cap_v2")
    zero = fields.get("rescale_betas_zero_snr", False)
    if zero:
        found = _zero_terminal_snr(found)
    abar = np.cumprod(1 - found, dtype=np.float32)
    if zero and zero_snr_level:
        abar[-1] = 2.0**-24
    kind = fields.get("prediction_type", "epsilon")
    if kind not in kinds:
        fields.refuse("prediction_type", f"is {kind!r}; jaxdiff has {', '.join(kinds)}")
    chosen = fields.get("timestep_spacing", spacing)
    if chosen not in ("linspace", "leading", "trailing"):
        fields.refuse("timestep_spacing", f"is {chosen!r}; jaxdiff has linspace, leading and trailing")
    offset = fields.get("steps_offset", 0)
    return Chain(found.astype(np.float64), abar.astype(np.float64), kind, chosen, offset)


def _zero_terminal_snr(betas: NDArray[np.float32]) -> NDArray[np.float32]:
    """Betas whose abar ends at 0 (Lin et al. 2024, https://arxiv.org/abs/2305.08891, algorithm 1)."""
    root = np.sqrt(np.cumprod(1 - betas, dtype=np.float32))
    root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
    abar = root**2
    return (1 - np.concatenate([abar[:1], abar[1:] / abar[:-1]])).astype(np.float32)


def spaced(chain: Chain, n: int, *, whole: bool, dropped: bool = False) -> Numbers:
    """The indices of n steps, falling.

    Args:
      chain: of T steps.
      n: how many.
      whole: whether evenly spaced ones are rounded.
      dropped: whether one more is spaced and the lowest left out, as DPM-Solver and UniPC do.
    """
    length, more = chain.length, n + 1 if dropped else n
    found: Any
    if chain.spacing == "linspace":
        found = np.linspace(0, length - 1, more)
        found = found.round() if whole else found.astype(np.float32).astype(np.float64)
    elif chain.spacing == "leading":
        found = np.arange(more) * (length // more) + float(chain.offset)
    else:
        found = (np.round(np.arange(length, 0, -length / n)) - 1)[::-1]
    return np.asarray(found[::-1][:n], np.float64)


def level_at(chain: Chain, index: Numbers) -> Numbers:
    """s at indices, between two by a straight line."""
    return np.interp(index, np.arange(chain.length), chain.levels)


def index_at(chain: Chain, level: Numbers) -> Numbers:
    """The indices of noise levels, between two by the logarithm."""
    known, wanted = np.log(chain.levels.astype(np.float32)).astype(np.float64), np.log(level)
    low = np.clip(np.searchsorted(known, wanted, side="right") - 1, 0, chain.length - 2)
    share = np.clip((known[low] - wanted) / (known[low] - known[low + 1]), 0, 1)
    return (1 - share) * low + share * (low + 1)


def warped(first: float, last: float, n: int, by: Levels) -> Numbers:
    """n noise levels from the first to the last.

    Args:
      first, last: the ends, falling.
      n: how many.
      by: Karras' rho of 7 (Karras et al. 2022, equation 5), or evenly in the logarithm.
    """
    if by == "karras":
        ends = first ** (1 / 7), last ** (1 / 7)
        return (ends[0] + np.linspace(0, 1, n) * (ends[1] - ends[0])) ** 7
    return np.exp(np.linspace(np.log(first), np.log(last), n))


def chosen_levels(fields: Fields) -> Levels | None:
    """Which spacing of noise levels a configuration asks for.

    Raises:
      PretrainedError: two of them.
    """
    fields.only(use_beta_sigmas=(False, None))
    names: tuple[Levels, ...] = ("karras", "exponential")
    asked = [name for name in names if fields.get(f"use_{name}_sigmas", False)]
    if len(asked) > 1:
        fields.refuse(f"use_{asked[1]}_sigmas", f"is true, and use_{asked[0]}_sigmas too")
    return asked[0] if asked else None


def of_x0(kind: str, alpha: float, sigma: float) -> tuple[float, float]:
    """x0 = a x + b f of x = alpha x0 + sigma eps, by what is predicted."""
    if kind == "epsilon":
        return 1 / alpha, -sigma / alpha
    return {"sample": (0.0, 1.0), "v_prediction": (alpha, -sigma), "flow_prediction": (1.0, -sigma)}[kind]


def of_eps(kind: str, alpha: float, sigma: float, x: Any, f: Any) -> Any:
    """eps of x = alpha x0 + sigma eps, by what is predicted."""
    if kind == "epsilon":
        return f
    if kind == "sample":
        return (x - alpha * f) / sigma
    return alpha * f + sigma * x if kind == "v_prediction" else x + alpha * f


def input_scale(level: float) -> float:
    """alpha of a noise level s: alpha (x0 + s eps) is alpha x0 + sigma eps, with alpha^2 + sigma^2 = 1."""
    return 1 / math.sqrt(level**2 + 1)
