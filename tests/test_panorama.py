"""Pictures of another size: a whole model, of a network that is exact or tells what it was shown."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import X0, CosineVP, NetworkDenoiser
from jaxdiff.codecs import Images
from jaxdiff.model import Defaults, Model
from jaxdiff.panorama import larger, panorama, placed, tiles_of
from jaxdiff.spec import Spec

PROCESS = CosineVP()
LABEL = Spec((), "int32", 0, 3, null=4)
LOW = Spec((2, 2, 1), "float32", -1, 1, null=0.0)


class Told:
    """A network that gives as x0 what it is told, enlarged from the low resolution to the window, and a share of x."""

    def __init__(self, **cond: Spec) -> None:
        self.cond, self.shapes = cond, set[tuple[int, ...]]()

    def apply(self, params: Any, x: jax.Array, t: jax.Array, cond: Any = None, *, key: Any = None) -> jax.Array:
        self.shapes.add(x.shape[1:])
        cond = cond or {}
        said = params * jnp.tanh(jnp.cumsum(x, axis=2))
        if "label" in cond:
            said = said + 0.2 * cond["label"].astype(x.dtype)[:, None, None, None]
        if "low" in cond:
            said = said + 0.5 * jnp.repeat(jnp.repeat(cond["low"], 2, axis=1), 2, axis=2)
        return said


def model(*, share: float = 0.0, codec: Any = None, **cond: Spec) -> Model:
    denoise = NetworkDenoiser(Told(**cond), jnp.asarray(share), PROCESS, X0())
    return Model(denoise, codec or Images((4, 4, 1)), Defaults(steps=3, guide=("cfg:2",)))


def test_the_models_own_size_is_the_model_bit_for_bit() -> None:
    made = model(share=0.3, label=LABEL)
    options: Any = {"cond": {"label": [0, 3]}, "decode": False}
    np.testing.assert_array_equal(panorama(made, 0, 2, (4, 4), **options), made.sample(0, 2, **options))


def test_the_network_sees_windows_and_samples_are_one_a_key() -> None:
    made = model(share=0.3, label=LABEL)
    whole = panorama(made, 0, 3, (6, 10), cond={"label": [0, 1, 2]}, wrap="x", decode=False)
    assert made.denoise.net.shapes == {(4, 4, 1)} and whole.shape == (3, 6, 10, 1)  # type: ignore[attr-defined]
    last = panorama(made, 0, 1, (6, 10), cond={"label": [2]}, wrap="x", start=2, decode=False)
    np.testing.assert_allclose(last, whole[2:], atol=1e-6)


def test_regions_are_drawn_as_they_say() -> None:
    """Of a network whose x0 is its label alone, also with guidance: 2 label - null's."""
    made = model(label=LABEL)
    mask = np.zeros((4, 8))
    mask[:, 4:] = 1
    found = panorama(
        made,
        0,
        2,
        (4, 8),
        stride=4,
        cond={"label": [2, 3]},
        regions=[(mask, {"label": 3})],
        guide="cfg:2",
        decode=False,
    )[..., 0]
    expected = np.clip(2 * 0.2 * np.array([2.0, 3.0]) - 0.8, -1, 1)
    np.testing.assert_allclose(found[:, :, :4], np.broadcast_to(expected[:, None, None], (2, 4, 4)), atol=1e-5)
    np.testing.assert_allclose(found[:, :, 4:], 2 * 0.6 - 0.8, atol=1e-5)


def test_a_low_resolution_is_as_much_larger() -> None:
    made = model(low=LOW, codec=Images((4, 4, 1), low_resolution=2))
    low = np.random.default_rng(0).uniform(-1, 1, (2, 2, 5, 1)).astype(np.float32)
    found = panorama(made, 0, 2, (4, 10), stride=(4, 2), cond={"low": low}, guide="cfg:1", decode=False)
    np.testing.assert_allclose(found, 0.5 * np.repeat(np.repeat(low, 2, axis=1), 2, axis=2), atol=1e-5)


def test_a_picture_on_a_canvas_is_kept() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (4, 4, 1)).astype(np.uint8)
    found = panorama(model(share=0.3), 0, 2, (4, 9), **placed(picture, (4, 9), at=(0, 3)))["x"]
    np.testing.assert_array_equal(found[:, :, 3:7], np.stack([picture] * 2))
    assert (found[0] != found[1]).any()
    middle = placed(picture, (6, 8))
    assert middle["mask"][1:5, 2:6].sum() == 0 and middle["mask"].sum() == 48 - 16


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: panorama(model(), 0, 1, (4, 3)), r"size \(4, 3\) is below the \(4, 4\) that the model"),
        (lambda: larger(model(), (4, 8.0)), r"size is \(height, width\) in pixels, such as \(4, 16\)"),  # type: ignore[arg-type]
        (lambda: panorama(model(), 0, 1, (4, 8), stride=5), "leaves gaps"),
        (lambda: tiles_of(model(), stride=0), "each at least 1"),
        (lambda: placed(np.zeros((4, 4, 1)), (4, 6), at=(0, 3)), r"4x4 at \(0, 3\) does not lie on a canvas"),
        (lambda: placed(np.zeros((4, 4)), (4, 6)), r"a picture is \(H, W, C\), got \(4, 4\)"),
        (
            lambda: panorama(model(label=LABEL), 0, 1, (4, 8), cond={"label": 1}, regions=[(np.ones((4, 4)), {})]),
            r"a region's mask is \(4, 8\), or 1 of them, got \(4, 4\)",
        ),
        (
            lambda: panorama(
                model(label=LABEL), 0, 1, (4, 8), cond={"label": 1}, regions=[(np.ones((4, 8)), {"a": 1})]
            ),
            "a",
        ),
    ],
)
def test_what_does_not_fit_is_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
