"""Covers: a few rows of a table that show what all of it would.

A test over several axes takes a cover instead of their product: rows in which everything worth meeting meets at least
once. `pairs` asks for each pair of entries of different axes; any other facts of a row may be asked for. The choice is
greedy and depends on nothing but the table, so that a test keeps its name.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, TypeVar

Row = TypeVar("Row", bound=tuple[Any, ...])


def cover(rows: Iterable[Row], facts: Callable[[Row], Iterable[Hashable]]) -> list[Row]:
    """Rows that show between them every fact that any row shows: again and again the one that shows most that is new.

    >>> cover([("a", 1), ("a", 2), ("b", 1), ("b", 2)], lambda row: row)
    [('a', 1), ('b', 2)]
    """
    shown = [(row, set(facts(row))) for row in rows]
    wanted = set[Hashable]().union(*(found for _, found in shown))
    most = [(-len(found), number) for number, (_, found) in enumerate(shown)]
    heapq.heapify(most)
    chosen = []
    while wanted:
        _, number = heapq.heappop(most)
        news = shown[number][1] & wanted
        if most and (-len(news), number) > most[0]:  # what it shows has been shown since: others come first
            heapq.heappush(most, (-len(news), number))
            continue
        wanted -= news
        chosen.append(number)
    return [shown[number][0] for number in sorted(chosen)]


def pairs(row: Sequence[Any]) -> Iterable[tuple[tuple[int, Any], tuple[int, Any]]]:
    """The pairs of a row's entries, each with its two places.

    >>> len(cover(itertools.product("ab", "cd", "ef"), pairs))
    4
    """
    return itertools.combinations(enumerate(row), 2)
