"""From a source to batches: an endless stream in which every batch is a function of the seed and its own number.

Which records a batch has, by equations, is in `jaxdiff.data.stream`. Grain (grain.MapDataset) does the prefetching in
threads and worker processes. The permutations are not Grain's, and its iterator states depend on the number of workers.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import signal
import sys
import threading
import weakref
from collections.abc import Iterator, Mapping
from multiprocessing import connection, resource_tracker
from typing import Any

import grain
import jax
import numpy as np
from absl import flags

from jaxdiff.data.buckets import buckets_of
from jaxdiff.data.sources import DataError, Records, Source, fingerprint, name_of, one_line, take
from jaxdiff.data.stream import Stream
from jaxdiff.data.tokenizers import Encoder, spec_of
from jaxdiff.spec import Spec, Specs

Batch = Records

_ENDLESS = 2**53  # batches; Grain wants a length
_THREADS = 2
_OF_THE_PARENT = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
"""A terminal and a scheduler send these to all processes of a group; it is the parent that answers them."""
_READ_AHEAD = 4  # batches, for each reader


def _start_worker(worker: int, workers: int) -> None:
    """Ties a worker process to its parent: a Ctrl-C that asks training to stop does not end it."""
    for number in _OF_THE_PARENT:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _OF_THE_PARENT)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


@contextlib.contextmanager
def _inherited_by_workers() -> Iterator[None]:
    """Blocks the parent's signals in this thread, and so in the processes that it starts, until they ignore them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _OF_THE_PARENT)
    try:
        # Python's tracker of shared memory is such a process too, and removes what is left behind; of that it need not
        # warn. Whoever starts it has SIGINT and SIGTERM unblocked.
        sys.warnoptions.append("ignore:resource_tracker:UserWarning")
        resource_tracker.ensure_running()
        sys.warnoptions.pop()
        signal.pthread_sigmask(signal.SIG_BLOCK, _OF_THE_PARENT)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(1)


def _ended(name: str, code: int | None) -> str:
    killed = code is not None and -code in set(signal.Signals)
    how = f"by {signal.Signals(-code).name}" if killed and code is not None else f"with status {code}"
    why = " (out of memory, perhaps; fewer data.workers need less)" if code == -signal.SIGKILL else ""
    if code == 1:
        why = (
            ' (it could not start, perhaps: a program with workers is a file whose work stands under if __name__ == "'
            '__main__":, and a source of your own lies in a module that can be imported; data.workers 0 needs neither)'
        )
    return f"{name}: a worker that reads it was ended {how}{why}; the same command goes on from the last checkpoint"


def _close(iterators: list[Any]) -> None:
    while iterators:
        iterators.pop().close()


class Pipeline:
    """Endless batches for training, read ahead in the background, exactly resumable.

    An iterator of records as the source stores them, batch first, NumPy: for images ``{"x": uint8 (B/P, H, W, C),
    "label": int32 (B/P,)}``; captions are objects (B/P,) of str, one drawn where a record has several. A failed read
    raises its DataError and leaves the position where it was. Close it, or use it in a `with`.

    Args:
      source: where records come from; of one in buckets (`jaxdiff.data.in_buckets`) each batch has one bucket's alone.
      batch_size: B, of all processes together; may exceed the number of records, in all or in a bucket, which then
        repeat within a batch.
      seed: of the order, at least 0.
      shuffle: another order each epoch; False: the source's own, each epoch.
      workers: processes that read and decode; 0: threads of this process. The stream is the same. With workers, the
        program's main module must be importable without side effects (`if __name__ == "__main__":`), and so must the
        module that a source of your own is defined in.
      process_index: p, which of the processes this one is.
      process_count: P; divides the batch size.
      tokenizer: what makes numbers of text, such as `Words`; None: text stays text.
      drop_remainder: True: batches run on across the ends of epochs, all of one size, and no record is dropped. False:
        each epoch ends with a smaller batch where B does not divide n (one process only).
      position: a saved `position` to go on from.

    Attributes:
      spec: of a record, as the source's; of text as the tokenizer's, or one text where the source has several.

    Raises:
      DataError: an option out of range, or a position of another stream.

    >>> from jaxdiff.data import open_digits
    >>> with Pipeline(open_digits(), batch_size=32, seed=0) as pipeline:
    ...     first, second = next(pipeline), next(pipeline)
    ...     position = pipeline.position
    ...     third = next(pipeline)
    >>> first["x"].shape, str(first["x"].dtype), first["label"].shape, position["batches"]
    ((32, 8, 8, 1), 'uint8', (32,), 2)
    >>> with Pipeline(open_digits(), batch_size=32, seed=0, position=position) as pipeline:
    ...     bool((next(pipeline)["x"] == third["x"]).all())
    True
    """

    def __init__(
        self,
        source: Source,
        *,
        batch_size: int,
        seed: int,
        shuffle: bool = True,
        workers: int = 0,
        process_index: int = 0,
        process_count: int = 1,
        tokenizer: Encoder | None = None,
        drop_remainder: bool = True,
        position: Mapping[str, Any] | None = None,
    ) -> None:
        for option, value, least in (
            ("batch_size", batch_size, 1),
            ("seed", seed, 0),
            ("workers", workers, 0),
            ("process_count", process_count, 1),
        ):
            if value < least:
                raise DataError(f"{option} is at least {least}, got {value}")
        if not 0 <= process_index < process_count:
            raise DataError(f"process_index lies in 0..{process_count - 1}, got {process_index}")
        if batch_size % process_count:
            raise DataError(
                f"batch_size {batch_size} does not divide evenly over {process_count} processes; use a multiple of it"
            )
        if not drop_remainder and process_count > 1:
            raise DataError(
                "drop_remainder=False makes batches that do not divide over several processes; leave it True"
            )
        if not drop_remainder and len(buckets_of(source)) > 1:
            raise DataError("drop_remainder=False is of sets without buckets: each has a remainder; leave it True")
        if len(source) == 0:
            raise DataError(f"{name_of(source)}: the set is empty, expected at least one record")
        local = batch_size // process_count
        rows = slice(process_index * local, (process_index + 1) * local)
        of_text = Spec((), "str") if tokenizer is None else spec_of(tokenizer)
        self.spec: Specs = {name: of_text if spec.is_text else spec for name, spec in source.spec.items()}
        self._stream = Stream(source, batch_size, rows, seed, shuffle, drop_remainder, tokenizer)
        self._identity = {
            "seed": int(seed),
            "batch_size": int(batch_size),
            "shuffle": bool(shuffle),
            "drop_remainder": bool(drop_remainder),
            "records": len(source),
            "data": fingerprint(source),
        }
        self._workers = workers
        self._batches = 0
        self._closed = False
        self._iterators: list[Any] = []  # Grain's, at most one
        # For a pipeline that is dropped, or still open when the program ends: workers hold shared memory.
        weakref.finalize(self, _close, self._iterators)
        if position is not None:
            self.seek(position)

    @property
    def position(self) -> dict[str, Any]:
        """Where the stream stands after the last batch handed out, as JSON; the same for any workers and processes."""
        return {"batches": self._batches, "stream": dict(self._identity)}

    def seek(self, position: Mapping[str, Any]) -> None:
        """Goes to a saved position; the next batch is the one that followed it.

        Raises:
          DataError: the position is not one, or is that of another stream.
        """
        batches, stream = position.get("batches"), position.get("stream")
        if not isinstance(batches, int) or batches < 0 or not isinstance(stream, Mapping):
            raise DataError(f"not a position in a stream of batches: {dict(position)}")
        other = [
            f"{key} was {stream.get(key)}, is now {value}"
            for key, value in self._identity.items()
            if stream.get(key) != value
        ]
        if other:
            raise DataError(
                f"the saved position belongs to another stream of batches: {'; '.join(other)}; "
                "resume with the data and options it was saved with, or start a new run"
            )
        self._stop()
        self._batches = batches

    def earlier(self, position: Mapping[str, Any], batches: int) -> dict[str, Any]:
        """The position so many batches before another of this stream."""
        return {**position, "batches": position["batches"] - batches}

    def records(self, position: Mapping[str, Any]) -> list[int]:
        """The numbers in the source of the records in the batch that follows a position, of all processes.

        >>> from jaxdiff.data import open_digits
        >>> with Pipeline(open_digits(), batch_size=4, seed=0, shuffle=False) as pipeline:
        ...     _ = next(pipeline), next(pipeline)
        ...     pipeline.records(pipeline.earlier(pipeline.position, 1))
        [4, 5, 6, 7]
        """
        return [int(record) for record in self._stream.records(position["batches"])[0]]

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self._closed:
            raise ValueError("the pipeline is closed; make a new one with position=pipeline.position")
        name = name_of(self._stream.source)
        try:
            with _inherited_by_workers() if self._workers and not self._iterators else contextlib.nullcontext():
                if not self._iterators:
                    self._iterators.append(iter(self._dataset()))
                batch = next(self._iterators[0])
        except BaseException as error:
            self._stop()  # what was read ahead is no longer in step with the position
            if any("cannot be pickled" in note for note in getattr(error, "__notes__", ())):
                raise DataError(
                    f"{name}: cannot be sent to worker processes ({one_line(error)}); open what it holds in take, "
                    "leave it out in __getstate__, or set data.workers to 0"
                ) from error
            if isinstance(error, RuntimeError) and "terminated unexpectedly" in str(error):
                found = re.search(r"exit code (-?\d+)", str(error))
                raise DataError(_ended(name, int(found[1]) if found else None)) from error
            raise
        self._batches += 1
        return {key: jax.tree.map(np.asarray, value) for key, value in batch.items()}  # plain, over shared memory

    def _dataset(self) -> Any:
        numbers = grain.MapDataset.range(self._batches, _ENDLESS)
        reading = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_READ_AHEAD)
        dataset = numbers.map(self._stream).to_iter_dataset(reading)
        if self._workers == 0:
            return dataset
        if not flags.FLAGS.is_parsed():  # Grain hands its absl flags to the workers, and would find them unparsed
            flags.FLAGS.mark_as_parsed()
        options = grain.MultiprocessingOptions(self._workers, per_worker_buffer_size=_READ_AHEAD)
        return dataset.mp_prefetch(options, _start_worker)

    def _stop(self) -> None:
        _close(self._iterators)

    def close(self) -> None:
        """Ends the threads and worker processes. The position can still be read."""
        self._stop()
        self._closed = True

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def batches(source: Source, batch_size: int) -> Iterator[Batch]:
    """One pass over a source in its own order, for evaluation; the last batch may be smaller.

    Args:
      source: where records come from.
      batch_size: at least 1.

    Yields:
      Records as they are stored, as `Pipeline` does.

    >>> from jaxdiff.data import open_digits
    >>> [len(batch["label"]) for batch in batches(open_digits(split="test"), 100)]
    [100, 100, 100, 59]
    """
    if batch_size < 1:
        raise DataError(f"batch_size is at least 1, got {batch_size}")
    for start in range(0, len(source), batch_size):
        yield take(source, np.arange(start, min(start + batch_size, len(source))))
