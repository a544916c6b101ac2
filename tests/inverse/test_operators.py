"""Operators: adjoint, pseudo-inverse and spectral form against their definitions, and each against another's code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.fft
import scipy.linalg
import scipy.ndimage
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdiff.inverse.operators import Blur, Differentiable, Grey, Linear, Mask, Operator, Separable, outside
from jaxdiff.inverse.operators.downsampling import bicubic_matrix
from jaxdiff.methods.inverse import OPERATORS, parse_operator

LINEAR = ["mask:0.4", "box_mask:1,0,2,3", "box:2", "bicubic:2", "blur:0.8", "grey", "colourise", "sensing:0.3"]


def draws(seed: int, *shape: int) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def inner(a: Any, b: Any) -> Any:
    return (np.asarray(a, np.float64) * np.asarray(b, np.float64)).reshape(len(a), -1).sum(axis=1)


def every(operator: Operator, seed: int = 0) -> None:
    """What every linear operator with a pseudo-inverse is to hold."""
    x, y = draws(seed, 2, *operator.shape), draws(seed + 1, 2, *operator.measured)
    measured, back = operator(x), operator.adjoint(jnp.asarray(y))
    np.testing.assert_allclose(inner(measured, y), inner(x, back), rtol=1e-4, atol=1e-4)
    inverse = operator.pinv(measured)
    np.testing.assert_allclose(operator(inverse), measured, atol=3e-3 if isinstance(operator, Blur) else 1e-4)
    # A+ A is the orthogonal projection: symmetric, and idempotent
    z = draws(seed + 2, 2, *operator.shape)
    np.testing.assert_allclose(inner(inverse, z), inner(x, operator.pinv(operator(z))), rtol=1e-3, atol=5e-3)
    np.testing.assert_allclose(operator.pinv(operator(inverse)), inverse, atol=2e-3)
    if operator.spectral:
        parts = operator.to_spectrum(jnp.asarray(x))
        np.testing.assert_allclose(operator.from_spectrum(parts), x, atol=1e-5)
        np.testing.assert_allclose(inner(x, x).sum(), float(jnp.square(jnp.abs(parts)).sum()), rtol=1e-4)
        square = operator.filtered(jnp.square, jnp.asarray(x))
        np.testing.assert_allclose(square, operator.adjoint(measured), atol=1e-4)
        np.testing.assert_allclose(operator.filtered(lambda s: (s > 0) * 1.0, jnp.asarray(x)), inverse, atol=2e-3)


@settings(max_examples=12, deadline=None)
@given(st.sampled_from(LINEAR), st.integers(2, 4), st.integers(2, 4), st.sampled_from([3]), st.integers(0, 99))
def test_adjoint_pseudo_inverse_and_spectrum(name: str, rows: int, columns: int, channels: int, seed: int) -> None:
    every(parse_operator(name, (2 * rows, 2 * columns, channels)), seed)


def test_any_linear_function_and_its_refusals() -> None:
    matrix = jnp.asarray(draws(0, 3, 5))
    operator = Linear((5,), lambda m, x: x @ m.T, matrix)
    every(operator)
    y = draws(1, 2, 3)
    np.testing.assert_allclose(operator.pinv(y), y @ np.linalg.pinv(matrix).T, atol=1e-4)
    low_rank = Linear((5,), lambda m, x: x @ m.T, matrix.at[2].set(matrix[0]))  # A+ is not any solution
    np.testing.assert_allclose(low_rank.pinv(y), y @ np.linalg.pinv(low_rank.parameters).T, atol=1e-4)
    curved: list[Callable[[Any, jax.Array], jax.Array]] = [
        lambda _, x: jnp.abs(x),
        lambda _, x: x + 1.0,
        lambda _, x: x * x,
    ]
    for function in curved:
        with pytest.raises(ValueError, match=r"the function is not linear: A\(.* take it as a Differentiable"):
            Linear((5,), function)
    with pytest.raises(ValueError, match="the function is of batches"):
        Linear((5,), lambda _, x: x.sum())


def test_bicubic_is_jax_image_resize_inside() -> None:
    """Its cubic kernel is Keys' too, widened against aliasing. It treats the edge otherwise in no way but rounding."""
    x = draws(3, 2, 16, 12, 3)
    found = parse_operator("bicubic:4", (16, 12, 3))(x)
    np.testing.assert_allclose(found, jax.image.resize(x, (2, 4, 3, 3), "cubic", antialias=True), atol=1e-5)
    line = np.arange(64.0)  # a kernel of order 3 keeps straight lines where it is whole
    np.testing.assert_allclose((bicubic_matrix(64, 4) @ line)[2:-2], (4 * np.arange(16) + 1.5)[2:-2], atol=1e-9)


def test_separable_is_the_product_of_its_matrices() -> None:
    rows, columns = draws(0, 3, 5).astype(float), draws(1, 6, 4).astype(float)  # one has more rows than columns
    operator = Separable.of((5, 4, 1), rows, columns)
    x = draws(2, 2, 5, 4, 1)
    np.testing.assert_allclose(operator(x)[..., 0], rows @ x[..., 0] @ columns.T, atol=1e-4)
    every(operator)
    dense = np.linalg.pinv(np.kron(rows, columns))
    y = draws(3, 2, 3, 6, 1)
    np.testing.assert_allclose(operator.pinv(jnp.asarray(y)).reshape(2, -1), y.reshape(2, -1) @ dense.T, atol=1e-4)


@pytest.mark.parametrize("size", [(3, 3), (2, 5), (5, 4)])
def test_blur_is_scipys_convolution(size: tuple[int, int]) -> None:
    kernel, x = draws(0, *size), draws(1, 1, 6, 7, 2)
    found = Blur((6, 7, 2), jnp.asarray(kernel))(x)
    wanted = [scipy.ndimage.convolve(x[0, ..., c], kernel, mode="wrap") for c in range(2)]
    np.testing.assert_allclose(found[0], np.stack(wanted, axis=-1), atol=1e-5)


def test_gaussian_blur_is_scipys() -> None:
    x = draws(1, 1, 16, 16, 1)
    found = parse_operator("blur:1.5", (16, 16, 1))(x)
    wanted = scipy.ndimage.gaussian_filter(x[0, ..., 0], 1.5, mode="wrap", radius=6)
    np.testing.assert_allclose(found[0, ..., 0], wanted, atol=1e-5)


def test_sensing_has_orthonormal_rows_and_hadamards() -> None:
    operator: Any = parse_operator("sensing:1", (4, 6, 1))  # 24 = 8 * 3
    rows = np.asarray(operator(np.eye(24, dtype=np.float32).reshape(24, 4, 6, 1))).T
    np.testing.assert_allclose(rows @ rows.T, np.eye(24), atol=1e-5)
    wanted = np.kron(scipy.linalg.hadamard(8) / np.sqrt(8), operator.mixing) * np.asarray(operator.signs)
    np.testing.assert_allclose(rows, wanted, atol=1e-5)


def test_grey_is_the_brightness() -> None:
    pixel = jnp.array([1.0, 0.5, -1.0]).reshape(1, 1, 1, 3)
    np.testing.assert_allclose(parse_operator("grey", (1, 1, 3))(pixel).ravel(), 0.299 + 0.2935 - 0.114, rtol=1e-5)
    assert isinstance(parse_operator("colourise", (1, 1, 3)), Grey)
    np.testing.assert_allclose(parse_operator("colourise", (1, 1, 3))(pixel).ravel(), 0.5 / 3, rtol=1e-5)


def test_phase_keeps_the_length_and_forgets_signs() -> None:
    operator: Any = parse_operator("phase:2", (4, 4, 1))
    x = draws(0, 2, 4, 4, 1)
    found = operator(x)
    np.testing.assert_allclose(inner(found, found), inner(x + 1, x + 1), rtol=1e-5)
    np.testing.assert_allclose(operator(-2 - x), found, atol=1e-5)  # the other sign of x + 1
    np.testing.assert_allclose(operator(x[:, ::-1, ::-1]), found, atol=1e-5)
    assert bool(jnp.isfinite(jax.grad(lambda x: operator(x).sum())(-jnp.ones((1, 4, 4, 1)))).all())  # at darkness


@pytest.mark.parametrize("shape", [(8, 16, 1), (8, 8, 3)])
def test_jpeg_rounds_scipys_cosine_transform(shape: tuple[int, ...]) -> None:
    operator: Any = parse_operator("jpeg:30", shape)
    x = np.clip(draws(0, 2, *shape), -1, 1)
    y = operator(x)
    np.testing.assert_array_equal(operator(operator.pinv(y)), y)
    grey = x if shape[2] == 1 else (x @ np.array([0.299, 0.587, 0.114]))[..., None]
    block = scipy.fft.dctn(127.5 * (grey[0, :8, :8, 0] + 1) - 128, norm="ortho")
    np.testing.assert_allclose(y[0, :8, :8, 0], block / np.asarray(operator.steps[..., 0]), atol=0.5001)
    assert np.array_equal(y, np.round(y)) and np.abs(y).max() > 1
    fine: Any = parse_operator("jpeg:100", shape)
    np.testing.assert_allclose(fine.pinv(fine(x)), x, atol=0.05)
    # the derivative is that of the map within the round
    turned = jax.jvp(operator, (jnp.asarray(x),), (jnp.asarray(x),))[1]
    offset = operator._blockwise(jnp.zeros((1, *shape)).at[..., 0].add(-0.5), True) / operator._steps(x)
    assert float(jnp.abs(turned - (y - offset)).max()) <= 0.501


def test_masks_know_their_rows() -> None:
    mask = outside((4, 4, 1), jnp.zeros((3, 4, 4, 1)).at[0].set(1))
    assert mask.known.sum(axis=(1, 2, 3)).tolist() == [0, 16, 16]
    assert mask.rows(lambda leaf: leaf[:1]).known.shape[0] == 1
    shared: Any = parse_operator("mask:0.25", (4, 4, 1))
    assert shared.rows(lambda leaf: leaf[:0]) is shared and float(shared.known.sum()) == 12
    assert not np.array_equal(shared.known, parse_operator("mask:0.25,seed=1", (4, 4, 1)).known)  # type: ignore[attr-defined]
    assert isinstance(shared, Mask)


@pytest.mark.parametrize(
    ("text", "shape", "message"),
    [
        ("blurr:3", (8, 8, 1), "there is no operator 'blurr'; did you mean 'blur'"),
        ("box:3", (8, 8, 1), "box:3: the factor of box is a whole number that divides 8 and 8, got 3"),
        ("bicubic:5", (8, 8, 1), "the factor of bicubic is a whole number that divides 8 and 8, got 5"),
        ("box:2", (4,), r"box is of images \(H, W, C\), got data of shape \(4,\)"),
        ("blur:0", (8, 8, 1), "the deviation of a Gaussian blur is positive"),
        ("grey", (8, 8, 1), "grey is of red, green and blue, got 1 channels"),
        ("colourise", (8, 8, 1), "grey is of images with several channels"),
        ("mask:1.5", (8, 8, 1), "hidden is the share of pixels that are not measured, from 0 to 1, got 1.5"),
        ("box_mask:0,0,9,1", (8, 8, 1), "the hidden rectangle is to lie within 8x8, got rows 0 to 9"),
        ("sensing:0", (8, 8, 1), "the share that is measured is above 0 and at most 1"),
        ("phase:0.5", (8, 8, 1), "the sides grow by a factor of 1 or more, got 0.5"),
        ("jpeg:0", (8, 8, 1), "the quality of jpeg is from 1 to 100, got 0"),
        ("jpeg:10", (28, 28, 1), "jpeg is of images of 1 or 3 channels whose sides 8 divides"),
        ("jpeg:10,block=5", (28, 28, 1), "the block of jpeg is 8, 4 or 2, got 5"),
    ],
)
def test_refusals_are_one_line(text: str, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        parse_operator(text, shape)
    assert "\n" not in str(error.value)


def test_what_an_operator_has_not_is_said() -> None:
    square = Differentiable((4,), lambda _, x: x * x)
    for ask, what in (
        (lambda: square.adjoint(jnp.zeros((1, 4))), "adjoint, because it is not linear"),
        (lambda: square.pinv(jnp.zeros((1, 4))), "pseudo-inverse"),
        (lambda: square.singular_values, "spectral form"),
    ):
        with pytest.raises(ValueError, match=f"Differentiable has no {what}"):
            ask()
    with pytest.raises(ValueError, match=r"a mask is \(4,\), or one such a sample, got \(5,\)"):
        Mask((4,), jnp.ones(5))
    with pytest.raises(ValueError, match="a mask is 1 where x0 is known and 0 elsewhere"):
        Mask((4,), jnp.full(4, 0.5))
    with pytest.raises(ValueError, match="the operator is of data"):
        parse_operator(square, (5,))


def test_arrays_are_data() -> None:
    """One trace for every operator of one kind and shape."""
    traces = []

    @jax.jit
    def run(operator: Operator, x: jax.Array) -> jax.Array:
        traces.append(operator)
        return operator.pinv(operator(x))

    for kind in OPERATORS:
        if kind == "phase":
            continue
        changes = {"box_mask": [":0,0,1,1", ":1,1,2,2"], "mask": [":0.1", ":0.6"], "blur": [":1", ":2"]}
        for numbers in changes.get(kind, [""]):
            run(parse_operator(kind + numbers, (16, 16, 3)), jnp.ones((1, 16, 16, 3)))
    kinds = [type(each).__name__ for each in traces]
    assert kinds.count("Mask") == 1
