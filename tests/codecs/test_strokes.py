"""Width and slant of strokes, on bars whose own are known and on MNIST."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.typing import NDArray

from jaxdiff.codecs import Images, Strokes
from jaxdiff.codecs.strokes import stroke_style
from jaxdiff.data import open_mnist

ROOT = Path(__file__).resolve().parents[2]


def bar(width: float, slant: float, height: float = 20.0, size: int = 28, fine: int = 16) -> NDArray[np.float32]:
    """A sheared bar, its width measured across it: each pixel's share of ink."""
    rows, columns = (np.mgrid[: size * fine, : size * fine] + 0.5) / fine - size / 2
    across = np.abs(columns + slant * rows) / np.sqrt(1 + slant**2)
    ink = (across <= width / 2) & (np.abs(rows) <= height / 2)
    return ink.astype(np.float32).reshape(size, fine, size, fine).mean((1, 3))


@pytest.mark.parametrize("slant", [-0.8, -0.3, 0.0, 0.25, 0.7])
@pytest.mark.parametrize("width", [2.0, 3.0, 4.0])
def test_bars(width: float, slant: float) -> None:
    """A bar of height h has the perimeter of two lengths and two feet, so 2 A/P is known."""
    found = stroke_style(jnp.asarray(bar(width, slant))[None])[0]
    length, foot = 20 * np.sqrt(1 + slant**2), width * np.sqrt(1 + slant**2)
    expected = 2 * (width * length) / (2 * (length + foot))
    assert float(found[0]) == pytest.approx(expected, rel=0.09)
    assert float(found[1]) == pytest.approx(slant, abs=0.01)


def test_a_shear_adds_to_the_slant_whatever_the_writing() -> None:
    ink = np.random.default_rng(0).random((8, 21, 41)).astype(np.float32) * (np.arange(41) % 41 > 25)
    ink[:, :, :] = np.roll(ink, -13, axis=2)
    plain = stroke_style(jnp.asarray(ink))
    sheared = np.stack([np.roll(ink[:, row], -(row - 10), axis=1) for row in range(21)], axis=1)  # x + y
    np.testing.assert_allclose(stroke_style(jnp.asarray(sheared))[:, 1], plain[:, 1] + 1.0, atol=1e-4)


def test_darkness_cancels_and_no_ink_is_no_stroke() -> None:
    ink = jnp.asarray(bar(3.0, 0.3))[None]
    np.testing.assert_allclose(stroke_style(0.4 * ink), stroke_style(ink), rtol=1e-4)
    assert (stroke_style(jnp.zeros((2, 8, 8))) == 0).all()
    gradient = jax.grad(lambda ink: stroke_style(ink)[0, 1])(ink + 0.01)
    assert jnp.isfinite(gradient).all()


def test_the_codec_is_images_with_a_style() -> None:
    x = np.rint(255 * np.stack([bar(2.0, 0.0), bar(4.0, 0.5)])).astype(np.uint8)[..., None]
    codec: Any = Strokes((28, 28, 1))
    batch = jax.jit(codec.encode)({"x": x, "label": np.arange(2)})
    plain: Any = Images((28, 28, 1)).encode({"x": x})
    np.testing.assert_array_equal(batch["x"], plain["x"])
    np.testing.assert_allclose(batch["style"], stroke_style(jnp.asarray(x[..., 0] / np.float32(255))), atol=1e-5)
    assert batch["label"].tolist() == [0, 1] and codec.spec["style"].shape == (2,)
    again = codec.decode(batch["x"], {"style": batch["style"], "label": batch["label"]})
    assert set(again) == {"x", "label"} and (again["x"] == x).all()  # the style is measured, not stored
    assert codec.picture({"x": x}).dtype == np.uint8 and codec.suffixes == (".png", ".npz")
    with pytest.raises(ValueError, match="grey"):
        Strokes((28, 28, 3))


def test_the_configuration_knows_mnist(shared_data: Path) -> None:
    """Mean and deviation that the network standardises by are those of the pictures."""
    source = open_mnist(shared_data / "mnist")
    codec, chosen = Strokes((28, 28, 1)), np.arange(0, 60_000, 6)
    style = np.asarray(jax.jit(codec.encode)({"x": source.take(chosen)["x"]})["style"])
    (vector,) = runpy.run_path(str(ROOT / "configs" / "mnist_style.py"))["config"].network.conditions
    np.testing.assert_allclose(style.mean(0), vector.mean, atol=0.02)
    np.testing.assert_allclose(style.std(0), vector.std, atol=0.02)
