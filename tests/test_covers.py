"""A cover shows all that its table shows, in few rows."""

from __future__ import annotations

import doctest
import itertools

import pytest

from tests import covers
from tests.covers import cover, pairs


@pytest.mark.parametrize("sizes", [(2, 2), (3, 3, 3), (5, 4, 3, 2), (2, 2, 2, 2, 2, 2)])
def test_every_pair_is_in_few_rows(sizes: tuple[int, ...]) -> None:
    """At least as many rows as the two largest axes have pairs, and at most half as many more."""
    rows = list(itertools.product(*map(range, sizes)))
    chosen = cover(rows, pairs)
    assert {pair for row in chosen for pair in pairs(row)} == {pair for row in rows for pair in pairs(row)}
    first, second = sorted(sizes)[-2:]
    assert first * second <= len(chosen) <= max(1.5 * first * second, 8)
    assert chosen == cover(rows, pairs) and len(set(chosen)) == len(chosen)


def test_facts_may_be_any() -> None:
    rows = [(name, number) for name in "abc" for number in range(10)]
    assert cover(rows, lambda row: [row[1] % 3]) == [("a", 0), ("a", 1), ("a", 2)]
    assert cover(rows, lambda row: [] if row[1] else [row[0]]) == [("a", 0), ("b", 0), ("c", 0)]
    assert cover([], pairs) == []


def test_examples_in_docstrings_hold() -> None:
    tried = doctest.testmod(covers, extraglobs={"itertools": itertools})
    assert tried.attempted and not tried.failed
