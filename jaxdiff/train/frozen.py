"""Which parameters of a network are trained, and the others beside them.

Patterns name what is frozen, of paths such as ``down/0/stages/1/block/conv1/kernel``: a pattern matches the whole path
or a folder of it, with the wildcards of a shell (``*`` does not stop at a slash). The trained leaves alone are in the
training state, its averages and its checkpoints; the frozen ones are read from where they lie.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any

from flax import traverse_util


def partition(params: Mapping[str, Any], patterns: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The trained and the frozen leaves of parameters, two nested dicts whose union they are.

    Args:
        params: a nested dict of anything.
        patterns: what is frozen.

    Raises:
        ValueError: a pattern that matches nothing, or patterns that leave nothing to train.

    Example:
        >>> partition({"down": {"kernel": 1, "bias": 2}, "up": {"kernel": 3}}, ["down"])
        ({'up': {'kernel': 3}}, {'down': {'kernel': 1, 'bias': 2}})
    """
    flat = traverse_util.flatten_dict(dict(params), sep="/")
    frozen: set[str] = set()
    for pattern in patterns:
        found = {
            path for path in flat if fnmatch.fnmatchcase(path, pattern) or fnmatch.fnmatchcase(path, f"{pattern}/*")
        }
        if not found:
            tops = ", ".join(sorted({path.split("/")[0] for path in flat}))
            raise ValueError(f"{pattern!r} matches no parameter; they lie under {tops}")
        frozen |= found
    if len(frozen) == len(flat):
        raise ValueError(f"{', '.join(map(repr, patterns))} match all parameters: nothing is left to train")
    parts = ({path: leaf for path, leaf in flat.items() if (path in frozen) is held} for held in (False, True))
    trained, held = (dict(traverse_util.unflatten_dict(part, sep="/")) for part in parts)
    return trained, held


def joined(trained: Mapping[str, Any], frozen: Mapping[str, Any]) -> Any:
    """The inverse of `partition`.

    Example:
        >>> joined({"up": {"kernel": 3}}, {"up": {"bias": 4}})
        {'up': {'kernel': 3, 'bias': 4}}
    """
    if not frozen:
        return trained
    both = traverse_util.flatten_dict(dict(trained)) | traverse_util.flatten_dict(dict(frozen))
    return traverse_util.unflatten_dict(both)
