"""Edits: of Gaussians, where the flow from one class to another is a shift, and of networks, where the way back is."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff.codecs import Images
from jaxdiff.inverse import Inverted, edit, interpolate, slerp, variations
from jaxdiff.inverse.editing import mixed
from jaxdiff.model import Defaults, Model
from jaxdiff.networks import UNet, functional
from jaxdiff.sampling import EDICT
from tests.test_model import PARAMS, PROCESS, model

NET = functional(
    UNet(image_size=8, in_channels=1, width=8, multipliers=(1,), blocks=1, attention_resolutions=(), num_classes=3)
)
MEANS = np.asarray(PARAMS["mean"])


@pytest.fixture(scope="module")
def images() -> Model:
    params = jax.jit(NET.init)(jax.random.key(0))
    rough = jax.tree.map(lambda leaf: leaf + 0.05 * jax.random.normal(jax.random.key(leaf.size), leaf.shape), params)
    made = jd.NetworkDenoiser(NET, rough, jd.VP(), jd.Eps())
    return Model(made, Images((8, 8, 1)), Defaults(sampler="ddim", steps=6, grid="log_snr"))


def pictures(n: int) -> dict[str, Any]:
    return {"x": np.random.default_rng(0).integers(0, 256, (n, 8, 8, 1)).astype(np.uint8)}


# --- exact inversion


@pytest.mark.parametrize(("method", "guide"), [("edict", 2.5), ("belm", ()), ("belm", 2.5)])
def test_inversion_and_back_is_the_record(images: Model, method: str, guide: Any) -> None:
    """1e-4 of x0 in float32, with guidance too; by DDIM it is not."""
    record, cond = pictures(3), {"label": [0, 1, 2]}
    x0 = np.asarray(images.codec.encode({"x": jnp.asarray(record["x"])})["x"])
    found: Any = images.invert(record, cond, sampler=method, steps=20, guide=guide)
    assert isinstance(found, Inverted)
    back = images.sample(0, 3, cond, x=found, guide=guide, decode=False)
    np.testing.assert_allclose(back, x0, atol=1e-4)
    np.testing.assert_array_equal(images.sample(5, 3, cond, x=found, guide=guide)["x"], record["x"])
    one = images.sample(0, 3, cond, x=found, guide=guide, decode=False, batch_size=2)  # the state has rows too
    np.testing.assert_allclose(one, back, atol=1e-4)
    x: Any = images.invert(record, cond, sampler="ddim", steps=20, guide=guide)
    there = images.sample(0, 3, cond, x=x, sampler="ddim", steps=20, guide=guide, decode=False)
    assert np.abs(there - x0).max() > 0.01


def test_what_goes_with_an_inversion_and_what_does_not(images: Model) -> None:
    record, cond = pictures(2), {"label": 1}
    found: Any = images.invert(record, cond, sampler=EDICT(images.process, 0.95), steps=5)
    assert found.sampler.p == 0.95 and found.ts.shape == (5,)
    assert np.isfinite(images.sample(0, 2, cond, x=found.x, sampler="heun", ts=found.ts, decode=False)).all()
    for options, message in (
        ({"sampler": "heun"}, "an Inverted x goes back by its own sampler and times"),
        ({"steps": 5}, "an Inverted x goes back by its own sampler and times"),
        ({"image": record["x"]}, "image and x are both what samples begin as"),
        ({"denoising_end": 0.5}, "an exact inversion goes back the whole way"),
        ({"keep": jd.Keep(at=(0,))}, "keep is of a way with a last denoising"),
    ):
        with pytest.raises(ValueError, match=message):
            images.sample(0, 2, cond, x=found, **options)
    with pytest.raises(ValueError, match="x has shape"):
        images.sample(0, 3, cond, x=found)
    with pytest.raises(ValueError, match="EDICT undoes its steps with the same evaluations alone"):
        images.invert(record, cond, sampler="edict", steps=5, guide=["cfg:2", "every:2"])


# --- edits


@pytest.mark.parametrize("method", ["belm", "edict", "ddim", "heun"])
def test_an_edit_of_gaussians_is_the_shift_of_their_means(method: str) -> None:
    """(x - alpha m)/n stays along the flow (`jaxdiff.exact.gaussian`): the edit from m to m' is x0 + m' - m."""
    made, record = model(), {"x": np.array([[1.5, 0.5], [-2.0, 1.2], [0.1, 2.0]], np.float32)}
    steps, atol = {"belm": (200, 0.02), "edict": (200, 0.15), "ddim": (400, 0.06), "heun": (100, 0.02)}[method]
    found = edit(made, record, {"label": 0}, {"label": 2}, method=method, steps=steps)["x"]
    np.testing.assert_allclose(found, record["x"] + MEANS[2] - MEANS[0], atol=atol)


def test_a_part_of_the_way_is_a_part_of_the_edit() -> None:
    """At n/alpha, the deviation of x/alpha there, x0 + (m' - m)(1 - s/(n/alpha)): less noise, less of the shift."""
    made, record = model(), {"x": np.array([[1.5, 0.5]], np.float32)}
    moved = [
        np.abs(edit(made, record, {"label": 0}, {"label": 1}, strength=s, steps=200)["x"] - record["x"])
        for s in (0.0, 0.3, 0.5, 0.7, 1.0)
    ]
    sums = [float(each.sum()) for each in moved]
    assert sums[0] < 1e-6 and sums == sorted(sums) and sums[1] < 0.1 * sums[4]
    shift = np.abs(MEANS[1] - MEANS[0]).sum()
    assert sums[4] == pytest.approx(shift, abs=0.02)
    ts = jd.log_snr_times(PROCESS, 200)[100:]
    spread = np.sqrt(0.25 + float(jnp.square(PROCESS.sigma(ts[0]) / PROCESS.alpha(ts[0]))))
    assert sums[2] == pytest.approx(shift * (1 - 0.5 / spread), abs=0.06)


def test_an_edit_to_its_own_conditions_is_the_record(images: Model) -> None:
    record = pictures(2)
    same = edit(images, record, {"label": 1}, {"label": 1}, steps=20, guide="cfg:2")
    np.testing.assert_array_equal(same["x"], record["x"])
    other = edit(images, record, {"label": 1}, {"label": 2}, steps=20, guide="cfg:2")
    assert (other["x"] != record["x"]).mean() > 0.2
    still = edit(images, record, {"label": 1}, {"label": 2}, method="ddim", strength=0)
    np.testing.assert_array_equal(still["x"], record["x"])


# --- between records, and around one


def test_interpolation_ends_at_its_records_and_its_middle_is_that_of_the_noise() -> None:
    made = model()
    first, second = ({"x": np.array([point], np.float32)} for point in ([2.5, 0.5], [1.9, -0.2]))
    conds: Any = {"first_cond": {"label": 0, "style": [0.5, 0.0]}, "second_cond": {"label": 0, "style": [0.0, 1.0]}}
    weights = [0.0, 0.5, 1.0]
    found = interpolate(made, first, second, weights, steps=200, **conds)["x"]
    np.testing.assert_allclose(found[[0, 2]], np.concatenate([first["x"], second["x"]]), atol=1e-4)
    # Of Gaussians noise is (x0 - m)/s, of which the sphere's middle is taken, around the middle of the two means.
    noise = [(end["x"] - MEANS[0] - np.array(conds[which]["style"])) / 0.5
             for end, which in ((first, "first_cond"), (second, "second_cond"))]  # fmt: skip
    middle = (
        MEANS[0] + np.array([0.25, 0.5]) + 0.5 * np.asarray(slerp(jnp.asarray(noise[0]), jnp.asarray(noise[1]), 0.5))[0]
    )
    np.testing.assert_allclose(found[1], middle, atol=0.02)
    by_ddim = interpolate(made, first, second, weights, method="ddim", steps=400, **conds)["x"]
    np.testing.assert_allclose(by_ddim, found, atol=0.05)


def test_slerp() -> None:
    x, y = jax.random.normal(jax.random.key(0), (2, 6, 3, 5))
    y = y * jnp.linalg.norm(x, axis=(1, 2), keepdims=True) / jnp.linalg.norm(y, axis=(1, 2), keepdims=True)
    for w in (0.0, 0.3, 1.0):
        norm = jnp.linalg.norm(slerp(x, y, w), axis=(1, 2))
        np.testing.assert_allclose(norm, jnp.linalg.norm(x, axis=(1, 2)), rtol=1e-5)  # it stays on the sphere
    np.testing.assert_allclose(slerp(x, y, jnp.array([0.0, 0, 0, 1, 1, 1])), jnp.concatenate([x[:3], y[3:]]), atol=1e-5)
    np.testing.assert_allclose(slerp(x, 3 * x, 0.5), 2 * x, rtol=1e-5)  # parallel: the straight line
    np.testing.assert_allclose(slerp(jnp.zeros_like(x), x, 0.25), 0.25 * x, rtol=1e-5)


def test_conditions_that_have_a_middle_and_those_that_have_none() -> None:
    found: Any = mixed({"a": [0.0, 2.0], "label": 1}, {"a": [1.0, 2.0], "label": 1}, [0.0, 0.5])
    np.testing.assert_allclose(found["a"], [[0.0, 2.0], [0.5, 2.0]])
    np.testing.assert_array_equal(found["label"], [1, 1])
    assert mixed(None, {}, [0.5]) is None
    with pytest.raises(ValueError, match="label 1 and 2 have no middle"):
        mixed({"label": 1}, {"label": 2}, [0.5])
    with pytest.raises(ValueError, match="text 'a cat' and 'a dog' have no middle"):
        mixed({"text": "a cat"}, {"text": "a dog"}, [0.5])
    with pytest.raises(ValueError, match="both ends of an interpolation have the same conditions"):
        mixed({"label": 1}, None, [0.5])


def test_variations_of_one_record(images: Model) -> None:
    record, cond = pictures(1), {"label": 1}
    few = variations(images, record, 0, 3, cond, strength=0.5)["x"]
    assert few.shape == (3, 8, 8, 1) and (few[0] != few[1]).any()
    np.testing.assert_array_equal(few[2:], variations(images, record, 0, 1, cond, strength=0.5, start=2)["x"])
    same = variations(images, record, 0, 2, cond, strength=0)["x"]
    np.testing.assert_array_equal(same, np.concatenate([record["x"]] * 2))
    fresh = variations(images, record, 0, 2, cond, strength=1, decode=False)
    np.testing.assert_array_equal(fresh, images.sample(0, 2, cond, decode=False))  # bit for bit


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: edit(m, pictures(1), strength=1.5), "strength is from 0"),
        (lambda m: edit(m, pictures(1), strength=0.01, steps=10), "strength 0.01 of 10 steps leaves none"),
        (lambda m: edit(m, pictures(1), method="ddpm"), "draws noise"),
        (lambda m: edit(m, pictures(1), method="edit"), "there is no sampler 'edit'; did you mean 'edict'?"),
        (lambda m: edit(m, {"y": 1}), "a record is a dict with 'x'"),
        (lambda m: interpolate(m, pictures(2), pictures(1)), "of one sample each, got 2 and 1"),
        (lambda m: interpolate(m, pictures(1), pictures(1), [2.0]), "weights are a list of numbers from 0"),
        (lambda m: interpolate(m, pictures(1), pictures(1), strength=0), "strength is above 0"),
        (lambda m: variations(m, pictures(2), 0, 1), "variations are of one record, got 2"),
    ],
)
def test_what_is_refused(images: Model, call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(images)
