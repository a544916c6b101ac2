"""The tables that diffusers' schedulers begin with: betas, which steps of the chain are taken, noise levels.

With beta_i of T steps, ``abar_i = prod_{j <= i} (1 - beta_j)`` and the noise level ``s_i = sqrt((1 - abar_i)/abar_i)``.
A network is told the index i, or a number between two. Step i of the chain is our time (i + 1)/T.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jaxdiff.pretrained.fields import Fields
from jaxdiff.pretrained.schedulers.fields import BETAS, class_of

Numbers = NDArray[np.float64]
Levels = Literal["karras", "exponential", "beta", "lu"]


@dataclass(frozen=True)
class Asked:
    """What is asked of a scheduler beside its configuration.

    Args:
      n: steps.
      eta: noise of DDIM, from 0 to 1.
      tokens: of the image, which decide a flow's dynamic shift.
      even: whether a flow's levels lie evenly from 1 to 1/n before their shift, as FLUX.1's pipeline gives them.
      begin: the step that is begun with; what a multistep method holds of those before is nothing.
      indices: of a consistency model, the levels that are visited; (): n of them evenly.
      share: of the indices that a student was distilled at, the lowest share, from which the n steps are taken.
    """

    n: int
    eta: float = 0.0
    tokens: int | None = None
    even: bool = False
    begin: int = 0
    share: float = 1.0
    indices: tuple[int, ...] = ()

    def since(self, i: int) -> int:
        """How many steps were taken before step i."""
        return max(i - self.begin, 0)


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
    spacing: str = "linspace",
    kinds: tuple[str, ...] = ("epsilon", "sample", "v_prediction"),
    zero_snr_level: bool = False,
) -> Chain:
    """The chain of a scheduler's configuration.

    Args:
      fields: of its configuration.
      spacing: the default of its class.
      kinds: what may be predicted.
      zero_snr_level: whether a zero terminal signal is raised to 2^-24, as the samplers by noise level do.

    Raises:
      PretrainedError: a schedule, spacing or kind that jaxdiff does not know.
    """
    steps = fields.get("num_train_timesteps", 1000)
    betas = BETAS.get(class_of(fields), (1e-4, 0.02, "linear"))
    first, last = fields.get("beta_start", betas[0]), fields.get("beta_end", betas[1])
    name, trained = fields.get("beta_schedule", betas[2]), fields.get("trained_betas", None, like=(0.5,))
    if trained is not None:
        found = np.asarray(trained, np.float32)
    elif name == "linear":
        found = _line(first, last, steps)
    elif name == "scaled_linear":
        found = _line(first**0.5, last**0.5, steps) ** 2
    elif name == "squaredcos_cap_v2":
        curve = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * np.pi / 2) ** 2
        found = np.minimum(1 - curve[1:] / curve[:-1], 0.999).astype(np.float32)
    else:
        fields.refuse("beta_schedule", f"is {name!r}; jaxdiff has linear, scaled_linear and squaredcos_cap_v2")
    if trained is not None and len(trained) != steps:
        fields.refuse("trained_betas", f"has {len(trained)} numbers, and num_train_timesteps is {steps}")
    if not ((found > 0).all() and (found[:-1] < 1).all() and found[-1] <= 1):
        said = "beta_start" if trained is None and first <= 0 else "beta_end" if trained is None else "trained_betas"
        fields.refuse(said, f"makes betas from {found.min():g} to {found.max():g}, expected numbers between 0 and 1")
    zero = fields.get("rescale_betas_zero_snr", False)
    if zero:
        found = _zero_terminal_snr(found)
    abar = np.cumprod(1 - found, dtype=np.float64).astype(np.float32)
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


def _line(first: float, last: float, n: int) -> NDArray[np.float32]:
    """n numbers from the first to the last, each rounded once to float32 and counted from the nearer end, as torch has
    them: a rounding here can move what is told by a whole step."""
    ends = np.array([first, last], np.float32)
    step, i = float((ends[1] - ends[0]) / np.float32(n - 1)), np.arange(n)
    return np.where(i < n // 2, float(ends[0]) + step * i, float(ends[1]) - step * (n - 1 - i)).astype(np.float32)


def _zero_terminal_snr(betas: NDArray[np.float32]) -> NDArray[np.float32]:
    """Betas whose abar ends at 0 (Lin et al. 2024, https://arxiv.org/abs/2305.08891, algorithm 1)."""
    root = np.sqrt(np.cumprod(1 - betas, dtype=np.float64).astype(np.float32))
    root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
    abar = root**2
    return (1 - np.concatenate([abar[:1], abar[1:] / abar[:-1]])).astype(np.float32)


def spaced(chain: Chain, n: int, *, whole: bool, dropped: bool = False, below: int | None = None) -> Numbers:
    """The indices of n steps, falling. Fewer of them where trailing ones are bounded.

    Args:
      chain: of T steps.
      n: how many.
      whole: whether evenly spaced ones are rounded.
      dropped: whether one more is spaced and the lowest left out, as DPM-Solver and UniPC do.
      below: a bound of the indices; None: T.
    """
    length, more = below or chain.length, n + 1 if dropped else n
    found: Any
    if chain.spacing == "linspace":
        found = np.linspace(0, length - 1, more)
        found = found.round() if whole else found.astype(np.float32).astype(np.float64)
    elif chain.spacing == "leading":
        found = np.arange(more) * (length // more) + float(chain.offset)
    else:
        found = (np.round(np.arange(length, 0, -chain.length / n)) - 1)[::-1]
    return np.asarray(found[::-1][:n], np.float64)


def level_at(chain: Chain, index: Numbers) -> Numbers:
    """s at indices, between two by a straight line."""
    return np.interp(index, np.arange(chain.length), chain.levels)


def index_at(chain: Chain, level: Numbers) -> Numbers:
    """The indices of noise levels, between two by the logarithm; rounded where diffusers rounds."""
    known, wanted = np.log(chain.levels.astype(np.float32)), np.log(level)
    low = np.clip(np.searchsorted(known.astype(np.float64), wanted, side="right") - 1, 0, chain.length - 2)
    share = np.clip((known[low].astype(np.float64) - wanted) / (known[low] - known[low + 1]), 0, 1)
    return (1 - share) * low + share * (low + 1)


def warped(first: float, last: float, n: int, by: Levels, rho: float = 7.0) -> Numbers:
    """n noise levels from the first to the last.

    Args:
      first, last: the ends, falling.
      n: how many.
      by: "karras", evenly in s^(1/rho) (Karras et al. 2022, equation 5); "exponential", evenly in the logarithm; "lu",
        the same with the ends' logarithms in float32; "beta", the quantiles of a beta distribution of 0.6 and 0.6 (Lee
        et al. 2024, https://arxiv.org/abs/2407.12173).
      rho: of Karras' levels.
    """
    places = np.linspace(0, 1, n)
    if by == "karras":
        ends = first ** (1 / rho), last ** (1 / rho)
        return (ends[0] + places * (ends[1] - ends[0])) ** rho
    if by == "beta":
        from scipy.special import betaincinv

        return np.asarray(last + betaincinv(0.6, 0.6, 1 - places) * (first - last), np.float64)
    ends = np.log(np.array([first, last], np.float32 if by == "lu" else np.float64))
    return np.exp(np.linspace(float(ends[0]), float(ends[1]), n))


def chosen_levels(fields: Fields) -> Levels | None:
    """Which spacing of noise levels a configuration asks for.

    Raises:
      PretrainedError: two of them.
    """
    names: dict[str, Levels] = {
        "use_karras_sigmas": "karras",
        "use_lu_lambdas": "lu",
        "use_exponential_sigmas": "exponential",
        "use_beta_sigmas": "beta",
    }
    asked = [name for name in names if fields.get(name, False)]
    if len(asked) > 1:
        fields.refuse(asked[1], f"is true, and {asked[0]} too")
    return names[asked[0]] if asked else None


def noised_at(alpha: ArrayLike, sigma: ArrayLike) -> Numbers:
    """``(E, 2)``: what a picture and noise count for at each evaluation."""
    return np.stack(np.broadcast_arrays(np.asarray(alpha, np.float64), np.asarray(sigma, np.float64)), axis=1)


def noised_on(chain: Chain, index: ArrayLike) -> Numbers:
    """The same at indices of a chain."""
    abar = chain.abar[np.asarray(index, int)]
    return noised_at(np.sqrt(abar), np.sqrt(1 - abar))


def twice(level: Numbers) -> Numbers:
    """The levels at the evaluations of a method of two: s_0, s_1, s_1, s_2, s_2, ..."""
    return np.concatenate([level[:1], np.repeat(level[1:], 2)])


def of_x0(kind: str, alpha: float, sigma: float) -> tuple[float, float]:
    """x0 = a x + b f of x = alpha x0 + sigma eps, by what is predicted.

    Raises:
      ValueError: the noise is predicted where x is nothing but noise.
    """
    if kind == "epsilon":
        if alpha == 0:
            raise ValueError(
                "prediction_type is 'epsilon', and rescale_betas_zero_snr begins where x is noise alone, which tells "
                "nothing of x0: take timestep_spacing 'leading'"
            )
        return 1 / alpha, -sigma / alpha
    return {"sample": (0.0, 1.0), "v_prediction": (alpha, -sigma), "flow_prediction": (1.0, -sigma)}[kind]


def of_eps(kind: str, alpha: float, sigma: float, x: Any, f: Any) -> Any:
    """eps of x = alpha x0 + sigma eps, by what is predicted.

    Raises:
      ValueError: x0 is predicted where x is x0.
    """
    if kind == "epsilon":
        return f
    if kind == "sample":
        if sigma == 0:
            raise ValueError("prediction_type is 'sample', and the first step begins at x0, which has no noise")
        return (x - alpha * f) / sigma
    return alpha * f + sigma * x if kind == "v_prediction" else x + alpha * f


def input_scale(level: float) -> float:
    """alpha of a noise level s: alpha (x0 + s eps) is alpha x0 + sigma eps, with alpha^2 + sigma^2 = 1."""
    return 1 / math.sqrt(level**2 + 1)


def lagrange_weights(nodes: Any, begin: float, end: float, rate: float = 0.0) -> list[float]:
    """The integrals of ``e^(rate u) l_i(u)`` from ``begin`` to ``end``, l_i the Lagrange polynomials of the nodes.

    By 40 Gauss-Legendre points, which is exact to float64's rounding for the lengths that a step has.

    >>> [round(weight, 6) for weight in lagrange_weights([1.0, 0.0], 1.0, 2.0)]  # of Adams and Bashforth
    [1.5, -0.5]
    """
    places, weights = np.polynomial.legendre.leggauss(40)
    u = begin + (end - begin) * (places + 1) / 2
    scaled = weights * (end - begin) / 2 * np.exp(rate * u)
    found = []
    for i, node in enumerate(nodes):
        others = [other for j, other in enumerate(nodes) if j != i]
        polynomial = np.prod([(u - other) / (node - other) for other in others], axis=0)
        found.append(float((scaled * polynomial).sum()))
    return found
