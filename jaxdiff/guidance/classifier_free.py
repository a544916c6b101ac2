"""Classifier-free guidance (Ho & Salimans 2022, https://arxiv.org/abs/2207.12598), with one weight or several.

It extrapolates from the unconditional prediction to the conditional one,

    eps_w = w eps(x, cond) + (1 - w) eps(x, null),                                                   (1)

and likewise x0, which is affine in eps. w = 1 is the plain conditional model (the paper's weight is w - 1), w = 0 the
unconditional one. The weight may depend on the time (`jaxdiff.guidance.weights`).

Conditions c_1, c_2, ... may have weights of their own. With p_i = d(x, c_1, ..., c_i, null, ...), so that p_0 has none
of them (Brooks et al. 2023, "InstructPix2Pix", https://arxiv.org/abs/2211.09800, equation 3),

    p = p_0 + w_1 (p_1 - p_0) + w_2 (p_2 - p_1) + ...                                                (2)

which for equal weights is (1). A condition that is guided and has no weight here has the weight 1, first in the row.

Other conditions may be joined to it (Liu et al. 2022, "Compositional Visual Generation with Composable Diffusion
Models", https://arxiv.org/abs/2206.01714, equations 11 and 13): for the product of the laws given each, "and", their
differences from the unconditional prediction add up; a weight below 0 divides by one, "not",

    p + sum_j v_j (d(x, c'_j) - d(x, null)).                                                         (3)

The guided field is no score of the tilted density p(x) p(c|x)^w at any time but t = 0: noise and tilting do not
commute. tests/guidance/test_tilted.py shows by how much.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxdiff.denoiser import Denoiser, Memory
from jaxdiff.guidance.base import Guidance, Nulls, finite_weights
from jaxdiff.guidance.contrast import Contrast, Contrasted, without
from jaxdiff.guidance.weights import Weight, weight_at
from jaxdiff.prediction import Prediction, mix
from jaxdiff.process import Process
from jaxdiff.record import field, record


@record
class And(Guidance):
    """Another condition beside the call's, equation (3): joined with a weight above 0, kept away from below 0.

    It stands behind `CFG` in a list, and is evaluated in the same batch.

    Args:
      cond: the condition, by name; values for all samples or one a sample. The other conditions are left out.
      weight: v, ``()`` or one a sample ``(B,)``; data.

    Raises:
      ValueError: no condition; (in a list) no `CFG` before it.

    >>> And({"label": 3}, -1.0).weight
    -1.0
    """

    cond: Mapping[str, Any]
    weight: ArrayLike = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.cond, Mapping) or not self.cond:
            raise ValueError(f"and joins a condition, such as {{'label': 3}}, got {self.cond!r}")

    def check(self, n: int) -> None:
        finite_weights(self.weight, n)

    def __call__(self, denoise: Denoiser, plain: Denoiser, process: Process, nulls: Nulls) -> Denoiser:
        if not isinstance(denoise, Contrasted) or not isinstance(denoise.rule, CFG):
            raise ValueError("and joins a condition to cfg: put cfg right before it (cfg:1 is the plain condition)")
        rule = dataclasses.replace(denoise.rule, others=(*denoise.rule.others, self))
        return dataclasses.replace(denoise, rule=rule)


@record
class CFG(Contrast):
    """Classifier-free guidance: the conditional prediction, exaggerated against the one without a condition.

    Args:
      weight: w of equation (1), ``()`` or one a sample ``(B,)``; for several conditions a mapping of weights by name in
        the order of equation (2); or a function of the process and the time (`jaxdiff.guidance.weights`). Data. 1 is
        the plain model.
      sequential: the branches one after the other, in less memory; else all in one call of a larger batch; static.
      others: conditions joined to it, equation (3); `And` puts them there.

    >>> from jaxdiff import VP, GaussianDenoiser
    >>> CFG(2.0)(*[GaussianDenoiser(VP(), 0.0, 1.0)] * 2, VP(), {"label": 10}).null
    {'label': 10}
    """

    weight: ArrayLike | Mapping[str, ArrayLike] | Weight
    sequential: bool = field(default=False, pytree_node=False)
    others: tuple[And, ...] = field(default=(), repr=False)
    name: ClassVar[str] = "cfg"

    def conditions(self, cond: Mapping[str, Any], null: Nulls) -> tuple[dict[str, Any], ...]:
        """The whole condition; without those that are guided; equation (2) between them; then (3)."""
        empty = without(cond, null)
        joined = []
        for other in self.others:
            if missing := sorted(set(other.cond) - set(cond)):
                raise ValueError(f"and joins {missing}, and the conditions of this call are {sorted(cond)}")
            joined.append({**empty, **other.cond})
        if not isinstance(self.weight, Mapping):
            return dict(cond), empty, *joined
        if unknown := sorted(set(self.weight) - set(null)):
            raise ValueError(f"cfg has a weight for {unknown}; the conditions that can be guided are {sorted(null)}")
        names = list(self.weight)
        rows = [without(cond, {name: null[name] for name in names[i:]}) for i in range(len(names))]  # of p_0, p_1, ...
        return dict(cond), *rows, *([empty] if joined else []), *joined

    def combine(
        self, process: Process | None, x: Array, t: ArrayLike, parts: tuple[Prediction, ...], memory: Memory
    ) -> tuple[Prediction, Memory]:
        others = parts[len(parts) - len(self.others) :]
        joined = [jnp.asarray(other.weight, x.dtype) for other in self.others]
        terms: list[tuple[ArrayLike, Prediction]] = list(zip(joined, others, strict=True))
        back: Any = -sum(joined)  # of the unconditional prediction, for equation (3)
        if isinstance(self.weight, Mapping):
            each = [jnp.asarray(weight, x.dtype) for weight in self.weight.values()]
            shares = [1.0 - each[0], *(before - after for before, after in itertools.pairwise(each))]
            terms += zip(shares, parts[1 : 1 + len(each)], strict=True)
            terms += [(back, parts[1 + len(each)])] if joined else []
        else:
            terms.append((1.0 - weight_at(self.weight, process, t, x.dtype) + back, parts[1]))
        return mix(parts[0], *terms), memory


def ClassifierFree(
    denoise: Denoiser, weight: ArrayLike, null: Mapping[str, Any], sequential: bool = False
) -> Contrasted:
    """A denoiser with classifier-free guidance, equation (1).

    Args:
      denoise: a denoiser trained with its condition dropped at random.
      weight: w, ``()`` or one a sample ``(B,)``; data, so changing it compiles nothing.
      null: for each condition that is guided, what stands for "no condition"; see `Contrasted`.
      sequential: see `CFG`.

    >>> from jaxdiff import VP, GaussianDenoiser
    >>> guided = ClassifierFree(GaussianDenoiser(VP(), 0.0, 1.0), weight=2.0, null={"label": 10})
    >>> guided(jnp.ones((1, 2)), 0.5, {"label": jnp.array([3])}).x0.shape
    (1, 2)
    """
    return Contrasted(denoise, CFG(weight, sequential), None, null)
