"""Each codec: back to the record exactly, pure JAX, numbers as data, pictures and files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxdiff.codecs import Arrays, Images, Points, default_codec, encoded_specs, grid, scatter
from jaxdiff.codecs.images import area_mean
from jaxdiff.data import DataError, from_arrays, open_digits, open_points
from jaxdiff.spec import Spec
from tests.data.pictures import pictures

IMAGES, WIDE, MEAN = pictures(6, (8, 10, 3)), np.random.default_rng(1), np.array([3.0, -2000.0], np.float32)
SIGNALS = (MEAN + np.array([1e-3, 50.0], np.float32) * WIDE.standard_normal((40, 16, 2))).astype(np.float32)

CODECS: list[tuple[Any, Any]] = [
    (Images((8, 10, 3)), IMAGES),
    (Images((8, 10, 3), flip=True, low_resolution=2), IMAGES),
    (Arrays((16, 2), MEAN, np.array([1e-3, 50.0], np.float32)), SIGNALS),
    (Arrays((16, 2), 1.0, 2.0, low=-1e4, high=1e4), SIGNALS),
    (Points(), SIGNALS[:, 0]),
]


@pytest.mark.parametrize(("codec", "stored"), CODECS)
def test_every_codec(codec: Any, stored: Any) -> None:
    """There and back under jit, as its spec says, differentiable, what it does not know passed on."""
    record = {"x": jnp.asarray(stored), "label": jnp.arange(len(stored)), "caption": {"tokens": jnp.ones(len(stored))}}
    encode, decode = jax.jit(lambda codec, r: codec.encode(r)), jax.jit(lambda codec, x, c: codec.decode(x, c))
    batch = encode(codec, record)
    assert batch["x"].dtype == jnp.float32
    wanted: Any = encoded_specs(codec, {"x": Spec(stored.shape[1:], str(stored.dtype)), "label": Spec((), "int32")})
    assert {name: batch[name].shape[1:] for name in wanted} == {name: spec.shape for name, spec in wanted.items()}
    again = decode(codec, batch["x"], {name: value for name, value in batch.items() if name != "x"})
    assert again.keys() == record.keys()
    assert (again["label"] == record["label"]).all() and (again["caption"]["tokens"] == 1).all()
    if stored.dtype == np.uint8:
        assert again["x"].dtype == jnp.uint8 and (again["x"] == record["x"]).all()
    else:
        np.testing.assert_allclose(again["x"], stored, rtol=1e-6)
    gradient = jax.grad(lambda x: (codec.decode(x)["x"].astype(jnp.float32) ** 2).mean())(batch["x"])
    assert jnp.isfinite(gradient).all()


def test_every_grey_level_survives() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    codec = Images((16, 16, 1))
    x = jax.jit(codec.encode)({"x": levels})["x"]
    assert (x.min(), x.max()) == (-1.0, 1.0)
    np.testing.assert_allclose(x, levels / 127.5 - 1, atol=1.2e-7)
    assert (jax.jit(codec.decode)(x)["x"] == levels).all()
    assert (codec.decode(x * 1.5)["x"] == np.clip(np.rint((levels / 127.5 - 1) * 191.25 + 127.5), 0, 255)).all()


def test_mirrors_follow_the_sample_alone() -> None:
    """Half of the samples, by the key and each one's place; image conditions with them, and nothing without a key."""
    x = np.arange(2 * 3, dtype=np.uint8).reshape(1, 2, 3, 1).repeat(4000, axis=0)
    record: Any = {"x": x, "mask": x.astype(np.float32), "label": np.arange(4000)}
    codec: Any = Images((2, 3, 1), flip=True)
    plain, first = codec.encode(record), jax.jit(codec.encode)(record, jax.random.key(0))
    whole: Any = (first["x"] == plain["x"][:, :, ::-1]).all(axis=(1, 2, 3))
    assert (whole | (first["x"] == plain["x"]).all(axis=(1, 2, 3))).all()
    assert abs(whole.mean() - 0.5) < 4 * 0.5 / 4000**0.5
    assert ((first["mask"] == plain["mask"][:, :, ::-1]).all(axis=(1, 2, 3)) == whole).all()
    assert (first["label"] == record["label"]).all()
    part = codec.encode({name: value[:7] for name, value in record.items()}, jax.random.key(0))
    assert (part["x"] == first["x"][:7]).all()
    other = codec.encode(record, jax.random.key(1))["x"]
    assert abs(((other == plain["x"][:, :, ::-1]).all(axis=(1, 2, 3)) == whole).mean() - 0.5) < 4 * 0.5 / 4000**0.5
    assert (Images((2, 3, 1)).encode(record, jax.random.key(0))["x"] == plain["x"]).all()


def test_low_resolution_is_the_area_mean_after_mirroring() -> None:
    codec = Images((8, 10, 3), flip=True, low_resolution=2)
    batch = codec.encode({"x": IMAGES}, jax.random.key(3))
    means = np.asarray(batch["x"], np.float64).reshape(6, 2, 4, 2, 5, 3).mean(axis=(2, 4))
    np.testing.assert_allclose(batch["low"], means, atol=1e-6)
    plain = codec.encode({"x": IMAGES})["low"]
    assert not (batch["low"] == plain).all()
    assert jnp.minimum(abs(batch["low"] - plain), abs(batch["low"] - plain[:, :, ::-1])).max() < 1e-6
    assert codec.spec["low"] == Spec((2, 2, 3), "float32", -1, 1)
    assert area_mean(jnp.ones((1, 8, 10, 3)), 3).shape == (1, 3, 3, 3)
    np.testing.assert_allclose(area_mean(jnp.ones((1, 8, 10, 3)), 3), 1.0, rtol=1e-6)


def test_the_small_copy_is_noised_by_the_samples_key_and_its_level_told() -> None:
    x = np.repeat(IMAGES[:1], 2000, axis=0)
    codec: Any = Images((8, 10, 3), low_resolution=2, augment=0.4)
    plain = codec.encode({"x": x})
    assert (plain["low_level"] == 0).all() and (plain["low"] == plain["low"][:1]).all()
    batch = jax.jit(codec.encode)({"x": x}, jax.random.key(3))
    s = np.asarray(batch["low_level"], np.float64)
    assert 0 <= s.min() < 0.01 and 0.39 < s.max() <= 0.4 and abs(s.mean() - 0.2) < 4 * 0.4 / 12**0.5 / 2000**0.5
    wide = s[:, None, None, None]
    eps = (np.asarray(batch["low"], np.float64) - np.sqrt(1 - wide**2) * np.asarray(plain["low"])) / wide
    eps = eps[s > 0.05].ravel()
    assert abs(eps.mean()) < 4 / eps.size**0.5 and abs(eps.var() - 1) < 4 * (2 / eps.size) ** 0.5
    part = codec.encode({"x": x[:7]}, jax.random.key(3))
    np.testing.assert_allclose(part["low"], batch["low"][:7], atol=1e-6)
    assert set(codec.spec) == {"x", "low", "low_level"} and codec.spec["low"].clip is None


def test_half_of_the_small_copies_are_blurred_in_training() -> None:
    """Ho et al. 2021, section 4: by a filter of 3x3 pixels, of a width of each sample's own, and not told."""
    x = np.repeat(IMAGES[:1], 400, axis=0)
    codec: Any = Images((8, 10, 3), low_resolution=5, blur=(0.4, 0.6))
    plain = np.asarray(codec.encode({"x": x[:1]})["low"], np.float64)
    assert "low_level" not in codec.spec
    found = np.asarray(jax.jit(codec.encode)({"x": x}, jax.random.key(0))["low"], np.float64)
    same = np.abs(found - plain).max(axis=(1, 2, 3)) < 1e-6
    assert abs(same.mean() - 0.5) < 4 * 0.5 / 400**0.5
    padded = np.pad(plain, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
    for blurry in found[~same][:5]:  # one width explains each, and its filter sums to 1
        fits = []
        for width in np.linspace(0.4, 0.6, 401):
            line = np.exp(-0.5 * np.array([-1, 0, 1]) ** 2 / width**2)
            kernel = np.outer(line, line) / line.sum() ** 2
            by = sum(kernel[i, j] * padded[:, i : i + 5, j : j + 5] for i in range(3) for j in range(3))
            fits.append(np.abs(by - blurry).max())
        assert min(fits) < 1e-3
    assert len({round(float(each), 6) for each in found[~same][:, 2, 2, 0]}) > 50
    np.testing.assert_allclose(codec.encode({"x": x[:9]}, jax.random.key(0))["low"], found[:9], atol=1e-6)


def test_a_codec_that_shrinks_makes_the_small_copy_of_one_that_enlarges() -> None:
    """The stages of a cascade learn from one set: to the rounding of bytes."""
    squares = pictures(6, (28, 28, 1))
    small: Any = Images((8, 8, 1), shrinks=True)
    x0 = small.encode({"x": squares})["x"]
    low = Images((28, 28, 1), low_resolution=8).encode({"x": squares})["low"]
    assert x0.shape == (6, 8, 8, 1) and float(jnp.abs(x0 - low).max()) <= 0.5 / 127.5 + 1e-6
    decoded = small.decode(x0)["x"]
    np.testing.assert_array_equal(small.encode({"x": decoded})["x"], x0)  # what is small already stays
    with pytest.raises(ValueError, match=r"x is uint8 \(B, 8, 8, 1\), got"):
        small.encode({"x": squares[:, :7, :7]})
    assert small.sized(jax.ShapeDtypeStruct((1, 16, 24, 1), jnp.uint8)) == Images((16, 24, 1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Images((8, 8, 1), low_resolution=4, blur=(0.6, 0.4)), "blur is .least, largest. width of a filter"),
        (lambda: Images((8, 8, 1), blur=(0.4, 0.6)), r"got \(0.4, 0.6\) and low_resolution=None"),
        (lambda: Images((8, 10, 1), shrinks=True), r"shrinks is of squares, and shape is \(8, 10, 1\)"),
        (lambda: Images((8, 8, 1), low_resolution=4, augment=1.5), "from 0 to 1, got 1.5"),
        (lambda: Images((8, 8, 1), augment=0.5), "set low_resolution too"),
        (lambda: Images((8, 8)), r"an image is \(H, W, C\), got \(8, 8\)"),  # type: ignore[arg-type]
        (lambda: Images((8, 8, 1), low_resolution=8), "below the image's 8, got 8"),
        (
            lambda: Images((8, 8, 1)).encode({"x": np.zeros((2, 8, 8, 1), np.float32)}),
            r"images are uint8 in 0\.\.255, got float32",
        ),
        (lambda: Images((8, 8, 1)).encode({"x": np.zeros((2, 8, 8, 3), np.uint8)}), r"x is uint8 \(B, 8, 8, 1\), got"),
        (lambda: Arrays((4, 2), mean=np.zeros(3)), r"mean is a number or .* last axis of \(4, 2\), got \(3,\)"),
        (lambda: Arrays((4, 2), std=0.0), "std is above 0"),
        (lambda: Images((8, 8, 1)).save("a.jpg", {}), r"'a.jpg': images are saved as .png or .npz"),
        (lambda: Images((8, 8, 5)).save("a.png", {}), r"'a.png': images of 5 channels are saved as .npz"),
        (lambda: Points((3,)).save("a.png", {}), r"points \(3,\) are saved as .npz"),
        (lambda: Arrays((3,)).save("a", {}), r"'a': arrays are saved as .png or .npz"),
    ],
)
def test_refusals(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_another_mean_compiles_nothing() -> None:
    traces = []

    @jax.jit
    def there_and_back(codec: Arrays, x: Any) -> Any:
        traces.append(1)
        return codec.decode(codec.encode({"x": x})["x"])["x"]

    for mean, std in ((0.0, 1.0), (3.0, 7.0), (-2.0, 0.5)):
        codec = Arrays((16, 2), np.array([mean, 0.0], np.float32), np.array([std, 1.0], np.float32))
        np.testing.assert_allclose(there_and_back(codec, SIGNALS), SIGNALS, rtol=1e-5)
    assert len(traces) == 1


def test_fitted_is_the_mean_and_std_of_the_records() -> None:
    codec: Any = Arrays.fitted(from_arrays(SIGNALS, low=-3000.0, high=3000.0))
    np.testing.assert_allclose(codec.mean, SIGNALS.mean((0, 1), dtype=np.float64), rtol=1e-6)
    np.testing.assert_allclose(codec.std, SIGNALS.std((0, 1), dtype=np.float64), rtol=1e-5)
    x0 = codec.encode({"x": SIGNALS})["x"]
    np.testing.assert_allclose(x0.std(axis=(0, 1)), 1.0, atol=1e-3)
    assert (codec.decode(x0 + 1e8)["x"] == 3000).all()
    spec: Any = codec.spec["x"]
    assert spec.high == pytest.approx(float((3000 - codec.mean[0]) / codec.std[0]))
    assert Arrays.fitted(from_arrays(SIGNALS)).spec["x"] == Spec((16, 2), "float32")
    again, few = Arrays.fitted(from_arrays(SIGNALS)), Arrays.fitted(from_arrays(SIGNALS), records=5)
    assert (again.mean == codec.mean).all() and (again.std == codec.std).all()
    np.testing.assert_allclose(few.mean, SIGNALS[[0, 10, 20, 29, 39]].mean((0, 1), dtype=np.float64), rtol=1e-6)
    one = Arrays.fitted(from_arrays(SIGNALS), per_channel=False)
    assert np.shape(one.mean) == () and one.std == pytest.approx(SIGNALS.std(dtype=np.float64), rel=1e-5)
    broken = SIGNALS.copy()
    broken[17, 3, 1] = np.nan
    with pytest.raises(DataError, match="arrays row 17: x is not finite"):
        Arrays.fitted(from_arrays(broken))


def test_fitted_survives_a_configuration() -> None:
    from jaxdiff.config.serialize import from_json, to_json

    codec: Any = Arrays.fitted(from_arrays(SIGNALS, low=-1e4))
    again: Any = from_json(to_json(codec))
    assert isinstance(again, Arrays) and again.shape == codec.shape and again.low == -1e4
    assert (again.mean == codec.mean).all() and (again.std == codec.std).all()
    for each in (Images((8, 8, 1), low_resolution=2, blur=(0.4, 0.6)), Images((8, 8, 1), shrinks=True)):
        assert from_json(to_json(each)) == each


def test_the_codec_of_a_source() -> None:
    assert default_codec(open_digits(), flip=True) == Images((8, 8, 1), flip=True)
    assert default_codec(open_digits(), low_resolution=4) == Images((8, 8, 1), low_resolution=4)
    assert default_codec(open_points("moons")) == Points()
    found: Any = default_codec(from_arrays(SIGNALS))
    assert isinstance(found, Arrays) and (np.asarray(found.mean) == Arrays.fitted(from_arrays(SIGNALS)).mean).all()
    for source, options, message in [
        (from_arrays(np.zeros((5, 7), np.uint8)), {}, r"x is uint8 \(7,\), which no codec is for: give uint8 images"),
        (open_points("moons"), {"flip": True}, "flip mirrors images, and records have shape"),
        (from_arrays(SIGNALS), {"low_resolution": 4}, "low_resolution is of images"),
    ]:
        with pytest.raises(DataError, match=message):
            default_codec(source, **options)  # type: ignore[arg-type]


# --- pictures and files


@pytest.mark.parametrize(("channels", "shown"), [(1, [0]), (2, [0]), (3, [0, 1, 2]), (4, [0, 1, 2]), (7, [0, 1, 2])])
def test_pictures_of_images(channels: int, shown: list[int]) -> None:
    x = pictures(5, (8, 8, channels))
    assert (Images((8, 8, channels)).picture({"x": x}, 3) == grid(x[..., shown], 3)).all()


@pytest.mark.parametrize(
    ("shape", "size"),
    [((2,), (480, 480, 3)), ((12,), (300, 480, 3)), ((12, 3), (300, 480, 3)), ((2, 3, 4, 5), (240, 480, 3))],
)
def test_pictures_of_arrays(shape: tuple[int, ...], size: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).standard_normal((8, *shape)).astype(np.float32)
    codec = Arrays(shape)
    picture = codec.picture({"x": x})
    assert picture.shape == size and picture.dtype == np.uint8
    assert (picture != 255).any()
    nothing = codec.picture({"x": np.full_like(x, np.nan)})
    assert nothing.shape == size and (nothing != 255).sum() < (picture != 255).sum()


def test_float_images_are_shown_on_their_own_range() -> None:
    x = np.stack([np.linspace(0, 1, 144).reshape(12, 12), 100 * np.linspace(0, 1, 144).reshape(12, 12)])
    for shape in ((12, 12), (12, 12, 1)):
        shown = Arrays(shape).picture({"x": x.reshape(2, *shape).astype(np.float32)}, 1)
        wanted = np.rint(255 * x[:1]).astype(np.uint8).repeat(2, axis=0)[..., None]
        assert (shown == grid(wanted, 1)).all()


def test_a_line_stands_where_its_values_are() -> None:
    """A step from low to high: the left half of the panel is drawn at its foot, the right half at its head."""
    x = np.concatenate([np.zeros(50), np.ones(50)]).astype(np.float32).reshape(1, 100)
    shown: Any = Arrays((100,)).picture({"x": x})
    dark = (shown < 150).any(axis=2)[2:-2, 2:-2]
    rows, columns = np.nonzero(dark)
    assert rows[columns < 65].min() > 80 and rows[columns > 90].max() < 15


@pytest.mark.parametrize(("codec", "stored"), CODECS)
def test_files(codec: Any, stored: Any, tmp_path: Path) -> None:
    records = {"x": stored, "label": np.arange(len(stored))}
    codec.save(tmp_path / "new" / "a.npz", records)
    with np.load(tmp_path / "new" / "a.npz", allow_pickle=False) as file:
        assert (file["x"] == stored).all() and file["x"].dtype == stored.dtype
        assert (file["label"] == records["label"]).all()
    codec.save(tmp_path / "new" / "a.PNG", records, columns=2)
    with Image.open(tmp_path / "new" / "a.PNG") as image:
        assert (np.asarray(image).reshape(image.height, image.width, -1) == codec.picture(records, 2)).all()
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["a.PNG", "a.npz"]


def test_scatter_puts_points_where_they_are() -> None:
    picture = scatter(np.array([[1.0, 0.5], [np.nan, 0.0]]), size=101, half=1.0 + 1 / 50)
    dark = np.argwhere(picture.sum(axis=2) < 600).mean(axis=0)
    assert np.allclose(dark, [50 - 0.5 * 50, 99], atol=1.5)
    with pytest.raises(ValueError, match=r"points \(N, 2\)"):
        scatter(np.zeros((3, 4)))
