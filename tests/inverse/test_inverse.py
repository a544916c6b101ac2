"""SDEdit and replacement: closed forms on a Gaussian, what is kept, and what every sampler does with it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import VP, Flow, GaussianDenoiser, NetworkDenoiser, Velocity, sample_keys
from jaxdiff.codecs import Images
from jaxdiff.inverse import KnownPart, noised, remaining
from jaxdiff.model import Model
from jaxdiff.networks import UNet, functional
from jaxdiff.sampling import DDIM, Keep, sample

NET = functional(UNet(image_size=8, in_channels=1, width=16, multipliers=(1, 2), blocks=1, attention_resolutions=()))


@pytest.fixture(scope="module")
def model() -> Model:
    params = jax.jit(NET.init)(jax.random.key(0))
    rough = jax.tree.map(lambda leaf: leaf + 0.05 * jax.random.normal(jax.random.key(leaf.size), leaf.shape), params)
    return Model(NetworkDenoiser(NET, rough, Flow(), Velocity()), Images((8, 8, 1)))


def images(n: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (n, 8, 8, 1)).astype(np.uint8)


def test_a_noised_picture_follows_the_flow_of_a_gaussian() -> None:
    """From x = alpha k + sigma eps at t the probability flow of N(m, s^2) goes to m + s (x - alpha m)/std(t)."""
    process, m, s = VP(), 0.3, 0.7
    x0 = jnp.linspace(-1, 1, 12).reshape(3, 4)
    ts = remaining(jnp.linspace(1.0, 1e-4, 4000), 0.4)
    keys = sample_keys(jax.random.key(0), 0, 3)
    x = noised(process, x0, ts[0], keys)
    alpha, sigma = process.alpha(ts[0]), process.sigma(ts[0])
    wanted = m + s * (x - alpha * m) / jnp.sqrt(alpha**2 * s**2 + sigma**2)
    found = sample(DDIM(process), GaussianDenoiser(process, m, s), keys, x, ts)
    np.testing.assert_allclose(found, wanted, atol=2e-3)
    eps = (x - alpha * x0) / sigma
    assert abs(float(eps.mean())) < 1 and 0.5 < float(eps.std()) < 1.5


@pytest.mark.parametrize("sampler", ["ddim", "heun", "dpmpp_2m", "unipc:order=3", "ddpm", "euler_ancestral"])
def test_the_known_part_is_kept_by_every_sampler(model: Model, sampler: str) -> None:
    picture, mask = images(2), np.zeros((8, 8), int)
    mask[2:6, 3:] = 1
    found = model.sample(0, 2, sampler=sampler, grid="log_snr", steps=6, image=picture, mask=mask)["x"]
    np.testing.assert_array_equal(found[:, mask == 0], picture[:, mask == 0])
    assert (found[:, mask == 1] != picture[:, mask == 1]).mean() > 0.5


def test_a_mask_of_ones_changes_nothing_and_one_of_zeros_gives_the_picture(model: Model) -> None:
    picture = images(1)[0]
    plain = model.sample(0, 2, steps=4, image=picture, strength=1.0, decode=False)
    whole = model.sample(0, 2, steps=4, image=picture, mask=np.ones((8, 8), bool), decode=False)
    np.testing.assert_allclose(whole, plain, atol=1e-6)
    kept = model.sample(0, 2, steps=4, image=picture, mask=np.zeros((8, 8), bool))["x"]
    np.testing.assert_array_equal(kept, np.stack([picture] * 2))


def test_the_prediction_stays_one_of_x() -> None:
    process, x = VP(), jax.random.normal(jax.random.key(1), (2, 5))
    part = KnownPart(GaussianDenoiser(process, 0.0, 1.0), process, jnp.ones((2, 5)), jnp.array([[1.0, 0, 0, 1, 0]]))
    for t in (1.0, 0.5, 0.01):
        found = part(x, t)
        np.testing.assert_allclose(process.alpha(t) * found.x0 + process.sigma(t) * found.eps, x, atol=1e-5)


def test_less_strength_keeps_more_of_the_picture(model: Model) -> None:
    picture = images(1)[0]
    apart = [
        np.abs(model.sample(0, 4, steps=10, image=picture, strength=each)["x"].astype(int) - picture).mean()
        for each in (0.1, 0.5, 1.0)
    ]
    assert apart == sorted(apart) and apart[0] < 0.5 * apart[2]


def test_strength_0_is_the_picture_and_1_a_fresh_sample(model: Model) -> None:
    """To 1e-3 (in fact to rounding) by every kind of sampler; and bit for bit, where alpha(ts[0]) is not 0 too."""
    picture = images(2)
    x0 = np.asarray(model.codec.encode({"x": jnp.asarray(picture)})["x"])
    for sampler in ("ddim", "dpmpp_2m", "ddpm"):
        found = model.sample(0, 2, sampler=sampler, steps=4, image=picture, strength=0, decode=False)
        np.testing.assert_allclose(found, x0, atol=1e-6)
    np.testing.assert_array_equal(model.sample(0, 2, steps=4, image=picture, strength=0.0)["x"], picture)
    kept = model.sample(0, 2, steps=4, image=picture, mask=np.ones((8, 8), bool), strength=0)["x"]
    np.testing.assert_array_equal(kept, picture)
    with pytest.raises(ValueError, match="keep is of a way with a last denoising"):
        model.sample(0, 2, steps=4, image=picture, strength=0, keep=Keep(at=(0,)))
    grid: Any = {"steps": 4, "grid": "log_snr"}  # which begins at alpha = 0.005
    fresh = model.sample(0, 2, sampler="ddpm", decode=False, **grid)
    again = model.sample(0, 2, sampler="ddpm", decode=False, image=picture, strength=1, **grid)
    np.testing.assert_array_equal(again, fresh)
    anew = model.sample(0, 2, decode=False, image=picture, mask=np.ones((8, 8), bool), strength=1, **grid)
    np.testing.assert_allclose(anew, model.sample(0, 2, decode=False, **grid), atol=1e-6)


def test_each_sample_has_noise_of_its_own_at_any_batch_size(model: Model) -> None:
    whole = model.sample(0, 3, steps=4, image=images(3), mask=np.ones((3, 8, 8), bool), strength=0.5, decode=False)
    parts = model.sample(0, 3, steps=4, image=images(3), mask=np.ones((3, 8, 8), bool), strength=0.5, decode=False,
                         batch_size=1)  # fmt: skip
    np.testing.assert_allclose(parts, whole, atol=1e-5)
    last = model.sample(0, 1, steps=4, image=images(3)[2], strength=0.5, start=2, decode=False)
    np.testing.assert_allclose(last, whole[2:], atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask": np.ones((8, 8))}, "mask is of an image"),
        ({"strength": 0.5}, "strength is of an image"),
        ({"image": images(1)[0], "strength": -0.1}, "strength is from 0 (the picture as it is) to 1"),
        ({"image": images(1)[0], "strength": 0.1}, "strength 0.1 of 4 steps leaves none"),
        ({"image": images(1)[0], "mask": np.full((8, 8), 0.5)}, "mask is 8x8 of 0 (kept) and 1 (drawn anew)"),
        ({"image": images(1)[0], "mask": np.ones((4, 4))}, "or 2 of them, got (4, 4) from 1 to 1"),
        ({"image": np.zeros((4, 4, 1), np.uint8)}, "image is uint8 8x8x1, or 2 of them, got uint8 (4, 4, 1)"),
        ({"image": np.zeros((8, 8, 1))}, "got float64"),
        ({"image": images(1)[0], "x": np.zeros((2, 8, 8, 1))}, "image and x are both what samples begin as"),
    ],
)
def test_arguments_that_do_not_fit(model: Model, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:
        model.sample(0, 2, steps=4, **options)
    assert message in str(error.value)
