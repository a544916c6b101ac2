"""When to stop, as one decision of all processes.

A signal comes to one process, or to each at another moment, and all must stop after the same step: the next step, like
a checkpoint, is a collective operation. So after each step the processes add up their wishes on the devices, and read
the sum of `ahead` steps before: it is the same number everywhere, it is there already when the loop has waited for that
step, and so costs no waiting of its own.
"""

from __future__ import annotations

from collections import deque

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


class StopVote:
    """Whether any process has asked to stop.

    Args:
        mesh: of all processes' devices.
        ahead: after how many steps an answer is read; the loop has waited for the step of that time.

    Example:
        >>> from jaxdiff.train import make_mesh
        >>> vote = StopVote(make_mesh(), ahead=0)
        >>> vote.passed(False), vote.passed(True)
        (False, True)
    """

    def __init__(self, mesh: Mesh, ahead: int) -> None:
        self._alone = jax.process_count() == 1
        self._ahead = ahead
        self._asked = False
        self._sums: deque[jax.Array] = deque()
        self._split = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._mine = sum(device.process_index == jax.process_index() for device in mesh.devices.flat)
        self._add = jax.jit(jnp.sum, out_shardings=NamedSharding(mesh, PartitionSpec()))

    def passed(self, asked: bool) -> bool:
        """Called by every process after every step; once it is True, it is True in all of them.

        Args:
            asked: whether this process asks to stop.
        """
        if self._alone:
            return asked
        wish = np.full(self._mine, asked, np.int32)
        self._sums.append(self._add(jax.make_array_from_process_local_data(self._split, wish)))
        if len(self._sums) > self._ahead:
            self._asked |= bool(self._sums.popleft())
        return self._asked
