"""A part of the way from noise to data: two parts are the whole way, of every method of one step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from jaxdiff.model import Model
from jaxdiff.sampling import Keep
from tests.test_model import model

COND = {"label": [0, 1, 2], "style": [0.3, -0.2]}


@pytest.fixture(scope="module")
def made() -> Model:
    return model()


@pytest.mark.parametrize("sampler", ["ddim", "heun", "ddim:eta=1", "sa_solver:order=1,corrector_order=0"])
def test_two_parts_are_the_whole_way(made: Model, sampler: str) -> None:
    """Those that draw noise too, which is that of the sample and the times."""
    options: dict[str, Any] = {"sampler": sampler, "steps": 8, "decode": False}
    whole, kept = made.sample(3, 3, COND, **options, keep=Keep(at=(4,)))
    x = made.sample(3, 3, COND, **options, denoising_end=0.5)
    np.testing.assert_allclose(x, kept.x[0], rtol=1e-5, atol=1e-6)
    rest = made.sample(3, 3, COND, **options, x=x, denoising_start=0.5)
    np.testing.assert_allclose(rest, whole, rtol=1e-5, atol=1e-6)


def test_three_parts_and_a_picture(made: Model) -> None:
    options: dict[str, Any] = {"sampler": "ddim", "steps": 9, "decode": False}
    x = made.sample(0, 3, COND, **options, denoising_end=0.3)
    x = made.sample(0, 3, COND, **options, x=x, denoising_start=0.3, denoising_end=0.7)
    x = made.sample(0, 3, COND, **options, x=x, denoising_start=0.7)
    np.testing.assert_allclose(x, made.sample(0, 3, COND, **options), rtol=1e-5, atol=1e-6)
    options |= {"image": np.array([0.5, -1.0], np.float32), "strength": 0.6}
    x = made.sample(0, 3, COND, **options, denoising_end=0.7)
    plain = {name: value for name, value in options.items() if name not in ("image", "strength")}
    x = made.sample(0, 3, COND, **plain, x=x, denoising_start=0.7)
    np.testing.assert_allclose(x, made.sample(0, 3, COND, **options), rtol=1e-5, atol=1e-6)


def test_a_part_is_decided_by_the_times_not_by_their_number(made: Model) -> None:
    """A time is in the first part where it is at least 1 - 0.75; x is at the first time below."""
    options: dict[str, Any] = {"sampler": "ddim", "ts": [0.9, 0.8, 0.25, 0.2, 0.01], "decode": False}
    _, kept = made.sample(0, 3, COND, **options, keep=Keep(at=(3,)))
    np.testing.assert_allclose(made.sample(0, 3, COND, **options, denoising_end=0.75), kept.x[0], rtol=1e-5)


X = np.zeros((3, 2), np.float32)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"denoising_end": 1.0}, "denoising_end is a share of the way above 0 and below 1, such as 0.8, got 1.0"),
        ({"denoising_start": "late"}, "denoising_start is a share of the way above 0 and below 1, such as 0.8, got 'l"),
        ({"denoising_start": True}, "got True"),
        (
            {"denoising_start": 0.8},
            "denoising_start goes on from what a call with denoising_end=0.8 gave: give it as x",
        ),
        ({"x": X, "denoising_start": 0.8, "denoising_end": 0.5}, "denoising_start=0.8 is not below denoising_end=0.5"),
        ({"image": X[0], "denoising_start": 0.8}, "denoising_start goes on from x, and image begins anew"),
        (
            {"denoising_end": 0.999999},
            "denoising_end=0.999999 leaves no part of the 4 times: take more steps, or another",
        ),
        ({"x": X, "denoising_start": 0.4, "denoising_end": 0.41}, "denoising_start=0.4 and denoising_end=0.41 leaves"),
        (
            {"denoising_end": 0.5, "keep": Keep(at=(0,))},
            "keep is of the way to its end: leave it out, or denoising_end",
        ),
    ],
)
def test_parts_that_are_none_are_one_line(made: Model, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:
        made.sample(0, 3, COND, steps=4, **options)
    assert message in str(error.value) and "\n" not in str(error.value)
