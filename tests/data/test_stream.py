"""The order of batches in buckets: each record as often as any other, and every batch by its number alone."""

from __future__ import annotations

import json
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdiff.data import DataError, Pipeline, from_arrays
from jaxdiff.data.buckets import Bucket, Bucketed
from jaxdiff.data.stream import bucket_of_batch

few = settings(deadline=None, max_examples=40)
COUNTS = st.lists(st.integers(1, 9), min_size=1, max_size=6)


def bucketed(counts: list[int]) -> Bucketed:
    """Record i has label i; bucket b has pictures of 2 x (b + 1)."""
    n = sum(counts)
    owner = np.random.default_rng(n).permutation(np.repeat(np.arange(len(counts)), counts))
    members = [np.flatnonzero(owner == b) for b in range(len(counts))]
    pictures = [from_arrays(np.zeros((n, 2, b + 1, 1), np.uint8), np.arange(n)) for b in range(len(counts))]
    buckets = [Bucket(source, numbers, None) for source, numbers in zip(pictures, members, strict=True)]
    return Bucketed(pictures[0], buckets, members)


def drawn(source: Bucketed, count: int, **options: Any) -> list[dict[str, Any]]:
    with Pipeline(source, **{"seed": 0, "batch_size": 3, **options}) as pipeline:
        return [next(pipeline) for _ in range(count)]


@few
@given(COUNTS, st.integers(0, 2**40), st.booleans(), st.integers(0, 3))
def test_buckets_come_in_proportion(counts: list[int], seed: int, shuffle: bool, periods: int) -> None:
    """Equation (6): bounded at every batch, exact in every n; and batches of a bucket are numbered without a gap."""
    n, found = sum(counts), [0] * len(counts)
    for k in range(periods * n, (periods + 2) * n):
        b, j = bucket_of_batch(k, counts, seed, shuffle)
        assert j == found[b] + periods * counts[b]
        found[b] += 1
        for each, count in zip(found, counts, strict=True):
            share = Fraction(count, n)
            assert abs(each - (k + 1 - periods * n) * share) < 1 + max(len(counts) - 2, 0) * share
        if (k + 1) % n == 0:
            assert found == [count * ((k + 1) // n - periods) for count in counts]


@few
@given(COUNTS, st.integers(1, 5), st.integers(0, 2**40))
def test_every_record_is_seen_as_often_in_n_batches(counts: list[int], batch_size: int, seed: int) -> None:
    """B times in n batches; and each bucket's own stream has every record once in each of its epochs."""
    source, n = bucketed(counts), sum(counts)
    batches = drawn(source, n, batch_size=batch_size, seed=seed)
    assert np.bincount(np.concatenate([batch["label"] for batch in batches]), minlength=n).tolist() == [batch_size] * n
    for b, members in enumerate(source.members):
        own = np.concatenate([batch["label"] for batch in batches if batch["x"].shape[2] == b + 1])
        for epoch in own.reshape(-1, len(members)):
            assert sorted(epoch) == members.tolist()
    assert all(set(batch["label"]) <= set(source.members[batch["x"].shape[2] - 1]) for batch in batches)


def test_an_epochs_histogram_is_the_records_where_batches_divide_the_buckets() -> None:
    source = bucketed([6, 3, 12])
    labels = np.concatenate([batch["label"] for batch in drawn(source, 21)]).reshape(3, 21)
    for epoch in labels:  # 7 batches of 3
        assert sorted(epoch) == list(range(21))
    assert (labels[0] != labels[1]).any()


@few
@given(COUNTS, st.integers(1, 3), st.integers(1, 3), st.booleans())
def test_processes_and_places(counts: list[int], local: int, processes: int, shuffle: bool) -> None:
    """A process reads its rows of the same bucket; a batch is the same after a resume at its place."""
    source = bucketed(counts)
    options: dict[str, Any] = {"batch_size": local * processes, "shuffle": shuffle}
    whole = drawn(source, 6, **options)
    parts = [drawn(source, 6, process_index=p, process_count=processes, **options) for p in range(processes)]
    for k, batch in enumerate(whole):
        for name in batch:
            assert np.array_equal(np.concatenate([part[k][name] for part in parts]), batch[name])
    with Pipeline(source, seed=0, **options) as pipeline:
        next(pipeline)
        position = json.loads(json.dumps(pipeline.position))
    for k in (4, 0, 2):
        here = pipeline.earlier(position, 1 - k)
        assert pipeline.records(here) == whole[k]["label"].tolist()
        (again,) = drawn(source, 1, position=here, **options)
        assert all(np.array_equal(again[name], whole[k][name]) for name in again)


def test_one_bucket_is_the_plain_stream() -> None:
    source = bucketed([7])
    plain = drawn(source.source, 9)  # type: ignore[arg-type]
    assert all(np.array_equal(a["label"], b["label"]) for a, b in zip(drawn(source, 9), plain, strict=True))


def test_the_order_of_buckets_is_drawn_and_far_batches_are_found() -> None:
    counts = (1000, 700, 1)
    orders = [[bucket_of_batch(k, counts, seed)[0] for k in range(300)] for seed in (0, 1)]
    assert 0.3 < np.mean(np.array(orders[0]) == np.array(orders[1])) < 0.9
    runs = np.diff(np.flatnonzero(np.diff(orders[0])))
    assert len(set(runs.tolist())) > 2  # no fixed pattern
    far = 2**52
    numbers = [bucket_of_batch(k, counts, 0) for k in range(far, far + 10)]
    assert all(abs(j - far * counts[b] / sum(counts)) < 20 for b, j in numbers)


def test_a_bucket_smaller_than_a_batch_repeats_its_records() -> None:
    batches = drawn(bucketed([2, 9]), 11, batch_size=4)
    assert all(np.bincount(batch["label"]).max() == 2 for batch in batches if batch["x"].shape[2] == 1)


def test_what_buckets_do_not_have() -> None:
    source = bucketed([2, 3])
    with pytest.raises(DataError, match="drop_remainder=False is of sets without buckets"):
        Pipeline(source, batch_size=2, seed=0, drop_remainder=False)
    with pytest.raises(DataError, match="arrays: records of several sizes are no batch; take those of one bucket"):
        source.take(np.arange(5))
