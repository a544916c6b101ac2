"""Double buffering: the next batch on its way to the devices while a step computes.

    the loop      take n | begin n+1 | dispatch step n | wait for step n-2, log, save ... | take n+1 | ...
    its thread                read batch n+1, put it on the devices
    the devices                          step n ...

One batch ahead is enough to hide reading and transfer that together take less time than a step; reading further ahead
on the host is the data's own affair (`jaxdiff.data.Pipeline` does).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import NamedSharding

from jaxdiff.train.sharding import put_batch

Batch = dict[str, jax.Array]


class Data(Protocol):
    """An endless iterator over batches that knows where it stands; `jaxdiff.data.Pipeline` is one."""

    @property
    def position(self) -> Any: ...

    def __iter__(self) -> Iterator[Mapping[str, np.ndarray]]: ...

    def __next__(self) -> Mapping[str, np.ndarray]: ...


class Prefetch:
    """Batches on the devices, at most one ahead of those handed out. Close it, or use it in a `with`.

    The thread reads under `jax.transfer_guard("disallow")`, as the loop runs.

    Args:
        data: batches of this process's part. Only the thread reads from it.
        sharding: of a batch, from `batch_sharding`.

    Attributes:
        position: of `data` after the last batch handed out: what is saved with a checkpoint.

    Example:
        >>> from jaxdiff.data import Pipeline, open_digits
        >>> from jaxdiff.train import batch_sharding, make_mesh
        >>> sharding = batch_sharding(make_mesh(data=1))
        >>> with Pipeline(open_digits(), batch_size=4, seed=0) as data, Prefetch(data, sharding) as batches:
        ...     batch = batches.take()
        ...     batches.begin()
        ...     batch["image"].shape, batches.position["batches"]
        ((4, 8, 8, 1), 1)
    """

    def __init__(self, data: Data, sharding: NamedSharding) -> None:
        self.position: Any = copy.deepcopy(data.position)
        self._data, self._sharding = data, sharding
        self._thread = ThreadPoolExecutor(1, "prefetch")
        self._coming: Future[tuple[Batch, Any]] | None = None

    def begin(self) -> None:
        """Starts on the next batch, unless that has been done."""
        if self._coming is None:
            self._coming = self._thread.submit(self._read)

    def take(self) -> Batch:
        """The next batch, when it is there. What reading it raised is raised here; taken again, it is read again."""
        self.begin()
        assert self._coming is not None
        coming, self._coming = self._coming, None
        batch, self.position = coming.result()
        return batch

    def _read(self) -> tuple[Batch, Any]:
        with jax.transfer_guard("disallow"):
            return put_batch(next(self._data), self._sharding), copy.deepcopy(self._data.position)

    def close(self) -> None:
        """Ends the thread, after the batch it is reading."""
        self._thread.shutdown(cancel_futures=True)

    def __enter__(self) -> Prefetch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
