"""Pictures of two digits say what stands in them."""

from __future__ import annotations

import numpy as np
import pytest

from jaxdiff.data import DataError, fingerprint, open_digits, open_two_digits, take
from jaxdiff.data.two_digits import PROMPTS, halves, is_held_out


def test_a_picture_holds_the_digits_of_its_caption_and_nothing_else() -> None:
    digits = open_digits(split="all")
    everything = digits.take(np.arange(len(digits)))
    for split, half in zip(("train", "test"), halves(), strict=True):
        source = open_two_digits(split=split)
        known = {everything["x"][i].tobytes(): int(everything["label"][i]) for i in half}
        records = take(source, np.arange(200))
        for x, text in zip(records["x"], records["text"], strict=True):
            a, b, above = PROMPTS[text]
            first, second = (x[:8, 4:12], x[8:, 4:12]) if above else (x[4:12, :8], x[4:12, 8:])
            assert (known[first.tobytes()], known[second.tobytes()]) == (a, b)
            assert x.sum(dtype=int) == first.sum(dtype=int) + second.sum(dtype=int)


def test_at_32_pixels_they_are_the_same_pictures_enlarged() -> None:
    small, large = open_two_digits(), open_two_digits(image_size=32)
    rows = np.arange(0, 20_000, 500)
    records, enlarged = take(small, rows), take(large, rows)
    assert enlarged["x"].shape == (40, 32, 32, 1) and (enlarged["text"] == records["text"]).all()
    means = enlarged["x"].reshape(40, 16, 2, 16, 2, 1).astype(float).mean(axis=(2, 4))
    assert np.abs(means - records["x"]).max() <= 0.5
    assert (enlarged["x"][:, ::2] != enlarged["x"][:, 1::2]).mean() > 0.1  # and not each pixel four times
    assert fingerprint(small) != fingerprint(large)
    with pytest.raises(DataError, match="image_size=20 but for 16 or 32"):
        open_two_digits(image_size=20)


def test_pairs_are_kept_back_in_training_alone() -> None:
    train, test = open_two_digits(), open_two_digits(split="test")
    pairs = {
        split: {tuple(pair) for pair in source.pairs.tolist()} for split, source in (("train", train), ("test", test))
    }
    assert len(pairs["train"]) == 80 and not any(is_held_out(a, b) for a, b in pairs["train"])
    assert len(pairs["test"]) == 100
    held_back = {pair for pair in pairs["test"] if is_held_out(*pair)}
    for place in (0, 1):  # each digit is met at each place in training, and twice in a pair that is not
        assert {pair[place] for pair in pairs["train"]} == set(range(10))
        assert sorted(pair[place] for pair in held_back) == [digit for digit in range(10) for _ in range(2)]
    assert not set(halves()[0]) & set(halves()[1])
    assert fingerprint(train) == fingerprint(open_two_digits()) != fingerprint(test)
