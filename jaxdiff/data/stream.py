"""The order of training's batches: an endless stream in which every batch is a function of the seed and its own number.

Let n be the number of records, B the global batch size and pi_e the permutation of epoch e, drawn from (seed, e). Then

    stream[g] = record pi_e(g mod n),  e = g div n                    (1)
    batch k   = stream[k B], ..., stream[k B + B - 1]                  (2)

so every record is seen once in an epoch, none is dropped between epochs, and a batch may span two epochs (or many, when
B > n). Nothing depends on what was read before: the position in the stream is the number k alone, and resuming, worker
processes and the split of a batch over processes change nothing of what is seen. Process p of P reads rows p B/P ...
(p+1) B/P - 1 of each batch. Of a record r with m captions, epoch e has the caption

    h(seed, e, r) mod m                                                (3)

with a hash h of 64 bits: each is drawn equally often, to within m / 2^64, and anew in every epoch. A tokenizer makes
numbers of the captions where they are read, in the worker processes too.

Pictures of several sizes lie in M buckets, n_b records in bucket b, n in all (`jaxdiff.data.buckets`). Each bucket has
a stream of its own: (1) with n_b, and a permutation pi_{b,e} drawn from (seed, e, b). A batch takes from one of them,

    batch k = stream_b[j B], ..., stream_b[j B + B - 1],   b = b(k),   j = #{i < k: b(i) = b},                       (4)

so what does not fill a batch begins that bucket's next one, in whatever epoch that is: no record is dropped. Batches
come in the order of the times at which they are due, of bucket b its j-th at

    T_b(j) = (j + u) n / n_b,   u in [0, 1) a hash of (seed, b, j).                                                  (5)

Before a time t bucket b has had N_b(t) of them, |N_b(t) - t n_b/n| < 1. Summed over the buckets, t is off the number K
of all batches by less than M; so of the first K batches bucket b has a share that is right to within

    |N_b - K n_b/n| < 1 + max(M - 2, 0) n_b/n,   and N_b = K n_b/n  where these are whole numbers for all b:         (6)

in every n batches each record is seen exactly B times, and once in every epoch's n/B where B divides all n_b. To find
batch k, (5) is looked at from t = k - M to k + M alone. With one bucket, (4) is (2).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jaxdiff.data.buckets import Bucketed
from jaxdiff.data.sources import Records, Source, take
from jaxdiff.data.tokenizers import Encoder

_TICKS = 2**64  # of a time in (5), in units of a batch


def _hashed(text: str) -> int:
    """64 bits."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _drawn(texts: NDArray[Any], seed: int, epochs: NDArray[np.int64], records: NDArray[np.int64]) -> NDArray[Any]:
    """One caption of each record's, by (3)."""
    drawn = np.empty_like(texts)
    for row, (several, epoch, record) in enumerate(zip(texts, epochs, records, strict=True)):
        drawn[row] = several[_hashed(f"{seed} {epoch} {record}") % len(several)]
    return drawn


def bucket_of_batch(k: int, counts: Sequence[int], seed: int, shuffle: bool = True) -> tuple[int, int]:
    """The bucket b and the number j in it of batch k, by (4) and (5).

    Args:
      k: the batch, from 0.
      counts: n_b of each bucket, at least 1.
      seed: of the order.
      shuffle: False: u is 1/2.

    >>> [bucket_of_batch(k, (2, 1), seed=0, shuffle=False) for k in range(6)]
    [(0, 0), (1, 0), (0, 1), (0, 2), (1, 1), (0, 3)]
    """
    n, around = sum(counts), len(counts)
    earlier, due = 0, []
    for b, count in enumerate(counts):
        first, last = max(0, k - around) * count // n, -(-(k + around) * count // n)
        earlier += first
        for j in range(first, last):
            u = _hashed(f"bucket {seed} {b} {j}") if shuffle else _TICKS // 2
            due.append(((j * _TICKS + u) * n // count, b, j))
    return sorted(due)[k - earlier][1:]


class Stream:
    """Batch k of equations (2) and (4), this process's rows of it.

    Args:
      source: where records come from; a `jaxdiff.data.buckets.Bucketed` gives batches of one bucket each.
      batch_size: B.
      rows: this process's, of each batch.
      seed: of the order.
      shuffle: False: the source's own order in each epoch.
      drop_remainder: False: an epoch of a source without buckets ends with a smaller batch.
      tokenizer: what makes numbers of text; None: it stays text.
    """

    def __init__(
        self,
        source: Source,
        batch_size: int,
        rows: slice,
        seed: int,
        shuffle: bool,
        drop_remainder: bool,
        tokenizer: Encoder | None,
    ) -> None:
        self.source, self.batch_size, self.rows = source, batch_size, rows
        self.seed, self.shuffle, self.drop_remainder = seed, shuffle, drop_remainder
        self.tokenizer = tokenizer
        self._members = source.members if isinstance(source, Bucketed) else (np.arange(len(source)),)
        self._counts = tuple(map(len, self._members))
        self._orders: dict[int, tuple[int, NDArray[np.int64]]] = {}  # of each bucket: an epoch, and its permutation

    def records(self, k: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The records of batch k, of all processes, and their epochs."""
        b, places = 0, np.empty(0, np.int64)
        if len(self._counts) > 1:
            b, k = bucket_of_batch(k, self._counts, self.seed, self.shuffle)
        n, size = self._counts[b], self.batch_size
        if self.drop_remainder:
            places = np.arange(k * size, (k + 1) * size)
        else:
            epoch, part = divmod(k, -(-n // size))
            places = epoch * n + np.arange(part * size, min(n, (part + 1) * size))
        epochs, within = np.divmod(places, n)
        if self.shuffle:
            for epoch in np.unique(epochs):
                here = epochs == epoch
                within[here] = self._order(b, int(epoch))[within[here]]
        return self._members[b][within], epochs

    def _order(self, b: int, epoch: int) -> NDArray[np.int64]:
        """pi_{b,e}; NumPy's: Grain's own shuffle showed correlations between epochs (0.15 between two orders of 60,000
        records)."""
        kept = self._orders.get(b)
        if kept is None or kept[0] != epoch:
            drawn = np.random.default_rng([self.seed, epoch, b]).permutation(self._counts[b])
            kept = self._orders[b] = epoch, drawn
        return kept[1]

    def __call__(self, k: int) -> Records:
        records, epochs = (each[self.rows] for each in self.records(int(k)))
        batch = take(self.source, records)
        for name, spec in self.source.spec.items():
            if spec.is_text and spec.shape:
                batch[name] = _drawn(batch[name], self.seed, epochs, records)
            if spec.is_text and self.tokenizer is not None:
                batch[name] = self.tokenizer.encode(batch[name].tolist())
        return batch
