"""Butcher tableaux of explicit Runge-Kutta methods.

For dy/dx = f(x, y) a method of S stages takes (Hairer, Norsett, Wanner 1993, "Solving Ordinary Differential Equations
I", equation II.1.8)

    k_i = f(x + c_i h, y + h sum_{j < i} a_ij k_j),    y(x + h) ~ y + h sum_i b_i k_i.               (1)

It has order p if for every rooted tree of at most p nodes (their theorem II.2.13)

    sum_i b_i Phi_i(tree) = 1/gamma(tree),                                                           (2)

where for a root with the subtrees u_1, ..., u_m

    Phi_i = prod_k sum_j a_ij Phi_j(u_k),    gamma = (number of nodes) prod_k gamma(u_k).            (3)

An embedded pair has a second row of weights b^ of lower order on the same slopes: the difference of the two results
estimates the error.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator
from typing import Any

from jaxdiff.record import field, record

Tree = tuple[Any, ...]
"""A rooted tree: the subtrees of its root."""


@record
class Tableau:
    """The coefficients of an explicit Runge-Kutta method, equation (1).

    They are checked: each row of a sums to its c, and (2) holds up to the orders that are stated.

    Args:
      a: the rows a_2, ..., a_S, of lengths 1, ..., S - 1; row 1 is empty and left out.
      b: the S weights of the result.
      c: the S places of the stages, c_1 = 0.
      order: p of b.
      embedded: the S weights b^ of a result of lower order, or None.
      embedded_order: its order.

    All are static: another tableau is another program.

    Raises:
      ValueError: rows of wrong length, a row that does not sum to its c, an order that the weights do not have.

    >>> Tableau(a=((0.5,),), b=(0.0, 1.0), c=(0.0, 0.5), order=2).stages
    2
    >>> Tableau(a=((0.5,),), b=(0.0, 1.0), c=(0.0, 0.5), order=3)
    Traceback (most recent call last):
    ...
    ValueError: b is of order 2, not 3
    """

    a: tuple[tuple[float, ...], ...] = field(pytree_node=False)
    b: tuple[float, ...] = field(pytree_node=False)
    c: tuple[float, ...] = field(pytree_node=False)
    order: int = field(pytree_node=False)
    embedded: tuple[float, ...] | None = field(default=None, pytree_node=False)
    embedded_order: int = field(default=0, pytree_node=False)

    def __post_init__(self) -> None:
        lengths, wanted = [len(row) for row in self.a], list(range(1, len(self.c)))
        if lengths != wanted:
            raise ValueError(
                f"rows of a are to have the lengths {wanted}, one less than their stage's number, got {lengths}"
            )
        for stage, (row, place) in enumerate(zip(((), *self.a), self.c, strict=True), 1):
            if not math.isclose(math.fsum(row), place, abs_tol=1e-12):
                raise ValueError(f"row {stage} of a sums to {math.fsum(row):g}, its c is {place:g}")
        for name, weights, order in (("b", self.b, self.order), ("embedded", self.embedded, self.embedded_order)):
            if weights is None:
                continue
            if len(weights) != len(self.c):
                raise ValueError(f"{name} is to have {len(self.c)} weights, one a stage, got {len(weights)}")
            reached = next(p for p in itertools.count(1) if p > order or not self._holds(weights, p)) - 1
            if reached < order or order < 1:
                raise ValueError(f"{name} is of order {reached}, not {order}")
        if self.embedded is not None and self.embedded_order >= self.order:
            raise ValueError(
                f"the embedded weights are to be of lower order than b's {self.order}, got {self.embedded_order}"
            )

    def _holds(self, weights: tuple[float, ...], nodes: int) -> bool:
        """Equation (2) for the trees of so many nodes."""
        return all(
            math.isclose(math.fsum(b * phi for b, phi in zip(weights, self._phi(tree), strict=True)), 1 / _gamma(tree),
                         abs_tol=1e-12)
            for tree in _trees(nodes)
        )  # fmt: skip

    def _phi(self, tree: Tree) -> list[float]:
        """Equation (3), for every stage."""
        below = [self._phi(subtree) for subtree in tree]
        rows = ((), *self.a)
        return [math.prod(math.fsum(w * p for w, p in zip(row, phi, strict=False)) for phi in below) for row in rows]

    @property
    def stages(self) -> int:
        """Evaluations of a step of fixed length: stages after the last that b uses are left out."""
        return max(i for i, weight in enumerate(self.b, 1) if weight != 0)

    @property
    def first_same_as_last(self) -> bool:
        """Whether the last stage of a step is the first of the next."""
        return len(self.b) > 1 and self.c[-1] == 1 and (*self.a[-1], 0.0) == self.b


def _gamma(tree: Tree) -> int:
    return _nodes(tree) * math.prod(_gamma(subtree) for subtree in tree)


def _nodes(tree: Tree) -> int:
    return 1 + sum(_nodes(subtree) for subtree in tree)


@functools.cache
def _trees(nodes: int) -> tuple[Tree, ...]:
    """The rooted trees of so many nodes."""

    def forests(left: int, largest: int) -> Iterator[Tree]:
        if left == 0:
            yield ()
        for size in range(min(left, largest), 0, -1):
            for count in range(left // size, 0, -1):
                for same in itertools.combinations_with_replacement(_trees(size), count):
                    for rest in forests(left - count * size, size - 1):
                        yield same + rest

    return tuple(forests(nodes - 1, nodes - 1))


EULER = Tableau(a=(), b=(1.0,), c=(0.0,), order=1)
MIDPOINT = Tableau(a=((1 / 2,),), b=(0.0, 1.0), c=(0.0, 1 / 2), order=2)
HEUN2 = Tableau(
    a=((1.0,),), b=(1 / 2, 1 / 2), c=(0.0, 1.0), order=2, embedded=(1.0, 0.0), embedded_order=1
)  # the trapezoid, and Euler's method embedded
RALSTON2 = Tableau(a=((2 / 3,),), b=(1 / 4, 3 / 4), c=(0.0, 2 / 3), order=2)  # Ralston 1962: least error bound
KUTTA3 = Tableau(a=((1 / 2,), (-1.0, 2.0)), b=(1 / 6, 2 / 3, 1 / 6), c=(0.0, 1 / 2, 1.0), order=3)  # Kutta 1901
SSPRK3 = Tableau(
    a=((1.0,), (1 / 4, 1 / 4)), b=(1 / 6, 1 / 6, 2 / 3), c=(0.0, 1.0, 1 / 2), order=3
)  # Shu and Osher 1988: strong stability preserving
CLASSIC4 = Tableau(
    a=((1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)),
    b=(1 / 6, 1 / 3, 1 / 3, 1 / 6),
    c=(0.0, 1 / 2, 1 / 2, 1.0),
    order=4,
)  # Kutta 1901: "the" Runge-Kutta method
THREE_EIGHTHS = Tableau(
    a=((1 / 3,), (-1 / 3, 1.0), (1.0, -1.0, 1.0)),
    b=(1 / 8, 3 / 8, 3 / 8, 1 / 8),
    c=(0.0, 1 / 3, 2 / 3, 1.0),
    order=4,
)  # Kutta 1901
BOGACKI_SHAMPINE = Tableau(
    a=((1 / 2,), (0.0, 3 / 4), (2 / 9, 1 / 3, 4 / 9)),
    b=(2 / 9, 1 / 3, 4 / 9, 0.0),
    c=(0.0, 1 / 2, 3 / 4, 1.0),
    order=3,
    embedded=(7 / 24, 1 / 4, 1 / 3, 1 / 8),
    embedded_order=2,
)  # Bogacki and Shampine 1989: 3(2)
DORMAND_PRINCE = Tableau(
    a=(
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
    ),
    b=(35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0.0),
    c=(0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0),
    order=5,
    embedded=(5179 / 57600, 0.0, 7571 / 16695, 393 / 640, -92097 / 339200, 187 / 2100, 1 / 40),
    embedded_order=4,
)  # Dormand and Prince 1980: 5(4)

TABLEAUX = {
    "euler": EULER,
    "midpoint": MIDPOINT,
    "heun2": HEUN2,
    "ralston2": RALSTON2,
    "kutta3": KUTTA3,
    "ssprk3": SSPRK3,
    "rk4": CLASSIC4,
    "three_eighths": THREE_EIGHTHS,
    "bogacki_shampine": BOGACKI_SHAMPINE,
    "dormand_prince": DORMAND_PRINCE,
}
"""All of them by name."""
