"""One set of parameters for three forms of a network: by name, as arrays. Needs numpy only.

A form that is not jaxdiff's names its parts as jaxdiff does, so that a parameter goes by the path of jaxdiff's nested
dict, joined by dots: ``down.0.stages.1.block.conv1.kernel``. Blocks that jaxdiff stacks along a first axis for its scan
are split into one a block: ``blocks.attention.qkv.kernel`` into ``blocks.0.attention.qkv.kernel`` and so on.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray


def named(params: Mapping[str, Any], stacked: Collection[str] = ()) -> dict[str, NDArray[Any]]:
    """The arrays of a nested dict by dotted name; those under a top name in ``stacked`` split along their first axis.

    >>> found = named({"a": {"w": np.zeros((2, 3))}, "b": np.zeros(4)}, stacked=("a",))
    >>> {name: array.shape for name, array in found.items()}
    {'a.0.w': (3,), 'a.1.w': (3,), 'b': (4,)}
    """
    found: dict[str, NDArray[Any]] = {}

    def walk(tree: Any, path: tuple[str, ...]) -> None:
        if isinstance(tree, Mapping):
            for name, branch in tree.items():
                walk(branch, (*path, str(name)))
        elif path[0] in stacked:
            for index, part in enumerate(np.asarray(tree)):
                found[".".join((path[0], str(index), *path[1:]))] = part
        else:
            found[".".join(path)] = np.asarray(tree)

    walk(params, ())
    return found


def nested(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `named` where nothing is stacked.

    >>> nested({"a.w": 1, "a.b.c": 2})
    {'a': {'w': 1, 'b': {'c': 2}}}
    """
    tree: dict[str, Any] = {}
    for name, value in arrays.items():
        *path, last = name.split(".")
        branch = tree
        for part in path:
            branch = branch.setdefault(part, {})
        branch[last] = value
    return tree


def check_same(ours: Mapping[str, int], theirs: Mapping[str, int]) -> None:
    """Refuses two forms that do not hold the same parameters: by name, each with its number of values.

    Raises:
      ValueError: a name stands on one side only, or the sizes differ.

    >>> check_same({"a": 6}, {"a": 5})
    Traceback (most recent call last):
    ...
    ValueError: the two forms differ: a has 6 values here and 5 there
    """
    wrong = [f"{name} is in this form only" for name in sorted(ours.keys() - theirs.keys())]
    wrong += [f"{name} is in the other form only" for name in sorted(theirs.keys() - ours.keys())]
    wrong += [
        f"{name} has {size} values here and {theirs[name]} there"
        for name, size in ours.items()
        if theirs.get(name, size) != size
    ]
    if wrong:
        raise ValueError(f"the two forms differ: {'; '.join(wrong[:6])}")
