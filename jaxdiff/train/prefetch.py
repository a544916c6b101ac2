"""Double buffering: the next batch on its way to the devices while a step computes.

    the loop      take n | begin n+1 | dispatch step n | wait for step n-2, log, save ... | take n+1 | ...
    its thread                read batch n+1, put it on the devices
    the devices                          step n ...

One batch ahead is enough to hide reading and transfer that together take less time than a step; reading further ahead
on the host is the data's own affair (`jaxdiff.data.Pipeline` does). Where a call of the devices takes several steps,
what is read ahead is the several batches of the next call.

Data that stand still look like training that is slow. So a wait for a batch is reported when it has lasted `PATIENCE`
seconds, and again every minute.
"""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import NamedSharding

from jaxdiff.train.sharding import put_batch

Batch = dict[str, jax.Array]
PATIENCE, AGAIN = 30.0, 60.0  # seconds


class Data(Protocol):
    """An endless iterator over batches that knows where it stands; `jaxdiff.data.Pipeline` is one."""

    @property
    def position(self) -> Any: ...

    def earlier(self, position: Any, batches: int, /) -> Any:
        """The position so many batches before another."""
        ...

    def records(self, position: Any, /) -> list[int]:
        """The records in the batch that follows a position."""
        ...

    def __iter__(self) -> Iterator[Mapping[str, np.ndarray]]: ...

    def __next__(self) -> Mapping[str, np.ndarray]: ...


class Prefetch:
    """Batches on the devices, at most one call's ahead of those handed out. Close it, or use it in a `with`.

    The thread reads under `jax.transfer_guard("disallow")`, as the loop runs.

    Args:
        data: batches of this process's part. Only the thread reads from it.
        sharding: of a batch, from `batch_sharding`.
        patience: seconds of waiting in `take` after which it is reported.
        again: seconds after which it is reported again.
        say: gets each report, one line of text.

    Attributes:
        position: of `data` after the last batch handed out: what is saved with a checkpoint.

    Example:
        >>> from jaxdiff.data import Pipeline, open_digits
        >>> from jaxdiff.train import batch_sharding, make_mesh
        >>> sharding = batch_sharding(make_mesh(data=1))
        >>> with Pipeline(open_digits(), batch_size=4, seed=0) as data, Prefetch(data, sharding) as batches:
        ...     (batch,) = batches.take()
        ...     batches.begin()
        ...     batch["x"].shape, batches.position["batches"]
        ((4, 8, 8, 1), 1)
    """

    def __init__(
        self,
        data: Data,
        sharding: NamedSharding,
        *,
        patience: float = PATIENCE,
        again: float = AGAIN,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self.position: Any = copy.deepcopy(data.position)
        self._data, self._sharding = data, sharding
        self._patience, self._again = patience, again
        self._say = say or (lambda text: print(text, file=sys.stderr, flush=True))
        self._thread = ThreadPoolExecutor(1, "prefetch")
        self._read: list[Batch] = []  # of the batches that are coming, those that are there
        self._coming: Future[tuple[tuple[Batch, ...], Any]] | None = None

    def begin(self, count: int = 1) -> None:
        """Starts on the next batches, unless that has been done."""
        if self._coming is None:
            self._coming = self._thread.submit(self._read_on, count)

    def take(self, count: int = 1) -> tuple[Batch, ...]:
        """The next batches, when they are there. What reading them raised is raised here; taken again, the batch that
        failed is read again.

        Args:
            count: how many; as in `begin`, where that came first.
        """
        self.begin(count)
        assert self._coming is not None
        self._wait_for(self._coming)
        coming, self._coming = self._coming, None
        batches, self.position = coming.result()
        return batches

    def _wait_for(self, coming: Future[Any]) -> None:
        begun, limit = time.monotonic(), self._patience
        while wait([coming], timeout=limit).not_done:
            limit = self._again
            self._say(
                f"WARNING: process {jax.process_index()} has waited {time.monotonic() - begun:.0f} s for the batch "
                f"after {self.position}: the data stand still, and training with them"
            )

    def _read_on(self, count: int) -> tuple[tuple[Batch, ...], Any]:
        with jax.transfer_guard("disallow"):
            while len(self._read) < count:
                self._read.append(put_batch(next(self._data), self._sharding))
            batches, self._read = tuple(self._read), []
            return batches, copy.deepcopy(self._data.position)

    def close(self) -> None:
        """Ends the thread, after the batch it is reading."""
        self._thread.shutdown(cancel_futures=True)

    def __enter__(self) -> Prefetch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
