"""Fused windows: the least-squares problem solved by numpy, exact denoisers of windows, symmetries, seams."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.typing import NDArray

from jaxdiff import DDIM, VP, Flow, FullGaussianDenoiser, Reuse, log_snr_times
from jaxdiff.denoiser import Denoiser
from jaxdiff.guidance import CFG
from jaxdiff.inverse import Region, Tiles, hann
from jaxdiff.inverse.tiles import Fused, paths
from jaxdiff.prediction import Prediction, from_x0
from jaxdiff.sampling import integrate, sample

PROCESS = VP()
T = 0.4


class Curved:
    """A denoiser of windows that is no function of single pixels, and differs with the label."""

    def __init__(self) -> None:
        self.traced, self.seen = 0, set[tuple[int, ...]]()

    def __call__(self, x: jax.Array, t: Any, cond: Any = None) -> Prediction:
        self.traced += 1
        self.seen.add(x.shape[1:3])
        label = jnp.zeros(len(x)) if cond is None else cond["label"].astype(jnp.float32)
        mixed, told = jnp.tanh(jnp.cumsum(x, axis=2) - jnp.cumsum(x, axis=1)), label[:, None, None, None]
        return from_x0(PROCESS, x, t, mixed * (1 + told) + told)


@jax.jit
def fused(tiles: Tiles, x: jax.Array, cond: Any = None) -> Prediction:
    return Fused(Curved(), tiles)(x, T, cond)


@jax.jit
def curved(x: jax.Array, cond: Any = None) -> Prediction:
    return Curved()(x, T, cond)


def noise(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def least_squares(x: Any, tiles: Tiles, conds: list[Any], masks: Any) -> NDArray[np.float64]:
    """Equation (1) as a dense problem: one row a pixel of each window and region."""
    size, where = x.shape[1:3], paths(x.shape[1:3], tiles)
    weight = np.ones(tiles.window) if tiles.weight is None else np.asarray(tiles.weight)[0]
    rows, answers = [], []
    for down, across in zip(where.rows, where.columns, strict=True):
        places = (down[:, None] * size[1] + across[None, :]).ravel()
        for cond, mask in zip(conds, masks, strict=True):
            found = curved(np.asarray(x)[:, down[:, None], across[None, :]], cond).x0
            root = np.sqrt(np.asarray(mask).ravel()[places] * weight.ravel())
            rows.append(root[:, None] * np.eye(size[0] * size[1])[places])
            answers.append(root[:, None] * np.asarray(found, np.float64).reshape(len(x), -1).T)
    solved = np.linalg.lstsq(np.concatenate(rows), np.concatenate(answers), rcond=None)[0]
    return np.asarray(solved.T.reshape(x.shape))


@pytest.mark.parametrize(("wrap", "weighted"), [("none", True), ("x", False), ("both", True)])
def test_fused_predictions_solve_the_least_squares_problem(wrap: Any, weighted: bool) -> None:
    x, weight = noise(2, 6, 7, 1), np.exp(noise(1, 3, 4, seed=1)) if weighted else None
    tiles = Tiles((3, 4), (2, 3), wrap, weight=weight)
    found = fused(tiles, x)
    np.testing.assert_allclose(found.x0, least_squares(x, tiles, [None], [np.ones((6, 7))]), atol=1e-5)
    alpha, sigma = float(PROCESS.alpha(T)), float(PROCESS.sigma(T))
    np.testing.assert_allclose(alpha * np.asarray(found.x0) + sigma * np.asarray(found.eps), x, atol=1e-5)


def test_regions_have_their_own_conditions() -> None:
    x, rng = noise(2, 5, 6, 1), np.random.default_rng(0)
    masks = rng.uniform(0, 0.6, (2, 1, 5, 6)).astype(np.float32)
    conds = [{"label": jnp.array(each)} for each in ([0, 1], [3, 2], [7, 7])]
    regions = tuple(Region(mask, cond) for mask, cond in zip(masks, conds[1:], strict=True))
    tiles = Tiles((3, 4), (2, 2), regions=regions)
    rest = np.maximum(1 - masks.sum(axis=0), 0)
    expected = least_squares(x, tiles, conds, [rest, *masks])
    np.testing.assert_allclose(fused(tiles, x, conds[0]).x0, expected, atol=1e-5)
    ones, zeros = np.ones((1, 5, 6), np.float32), np.zeros((1, 5, 6), np.float32)
    everywhere = dataclasses.replace(tiles, regions=(Region(zeros, conds[1]), Region(ones, conds[2])))
    alone = least_squares(x, tiles, [conds[2]], [ones])
    np.testing.assert_allclose(fused(everywhere, x, conds[0]).x0, alone, atol=1e-5)


def test_one_window_is_the_denoiser_bit_for_bit() -> None:
    x, cond = noise(2, 4, 4, 1), {"label": jnp.array([1, 2])}
    for weight in (None, hann((4, 4))):
        found = fused(Tiles((4, 4), (2, 2), weight=weight), x, cond)
        for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(curved(x, cond)), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_wrapped_pictures_move_round_by_a_stride() -> None:
    x = np.asarray(noise(1, 6, 8, 1))

    def moved(tiles: Tiles, down: int, across: int) -> float:
        there = fused(tiles, np.roll(x, (down, across), (1, 2))).x0
        return float(np.abs(there - np.roll(fused(tiles, x).x0, (down, across), (1, 2))).max())

    both = Tiles((3, 4), (2, 2), "both", weight=hann((3, 4)))
    assert moved(both, 2, 0) < 1e-5 and moved(both, 0, 2) < 1e-5 and moved(both, 4, 6) < 1e-5
    assert moved(both, 0, 1) > 0.1  # not by less than a stride
    assert moved(dataclasses.replace(both, wrap="x"), 2, 0) > 0.1  # nor across a border that is not wrapped
    assert moved(dataclasses.replace(both, wrap="x"), 0, 2) < 1e-5


def test_windows_at_once_or_one_after_the_other() -> None:
    x, cond = noise(2, 6, 8, 1), {"label": jnp.array([0, 3])}
    tiles = Tiles((3, 4), (2, 2), regions=(Region(jnp.full((1, 6, 8), 0.3), {"label": jnp.array([1, 1])}),))
    whole = fused(tiles, x, cond)
    for together in (1, 4):
        found = fused(dataclasses.replace(tiles, together=together), x, cond)
        np.testing.assert_allclose(found.x0, whole.x0, atol=1e-5)


def test_guidance_of_one_weight_a_sample_in_windows() -> None:
    """CFG inside of the windows, with a weight for each sample, is CFG of fused predictions: both are linear."""
    x, cond, weight = noise(3, 4, 8, 1), {"label": jnp.array([1, 2, 3])}, jnp.array([0.5, 1.0, 3.0])
    tiles, plain = Tiles((4, 4), (2, 2)), Curved()
    inside = tiles(CFG(weight)(plain, plain, PROCESS, {"label": 0}), plain, PROCESS, {"label": 0})
    outside = CFG(weight)(tiles(plain, plain, PROCESS, {}), plain, PROCESS, {"label": 0})
    first, second = jax.jit(lambda: (inside(x, T, cond).x0, outside(x, T, cond).x0))()
    np.testing.assert_allclose(first, second, atol=1e-5)


@pytest.mark.parametrize("together", [None, 1])
def test_windows_remember_what_guidance_keeps(together: int | None) -> None:
    """Guidance that is reused at every second evaluation: in windows as without, where one of them would do."""
    cond, nulls = {"label": jnp.array([1, 2])}, {"label": 0}
    small = noise(2, 4, 4, 1)
    x = np.tile(small, (1, 1, 3, 1))  # three windows of the same picture, side by side
    tiles, plain = Tiles((4, 4), (4, 4), together=together), Curved()

    @jax.jit
    def drawn(every: Any, x: jax.Array, wide: bool = True) -> jax.Array:
        made: Denoiser = Reuse(every)(CFG(2.0)(plain, plain, PROCESS, nulls), plain, PROCESS, nulls)
        made = Fused(made, tiles) if x.shape[2] > 4 else made
        return sample(DDIM(PROCESS), made, None, x, jnp.array([0.9, 0.6, 0.4, 0.2]), cond)

    wide = drawn(2, x)
    np.testing.assert_allclose(wide, np.tile(drawn(2, small), (1, 1, 3, 1)), atol=1e-4)
    assert float(np.abs(wide - drawn(1, x)).max()) > 1e-3  # and it does reuse


def test_fused_predictions_are_the_papers_fused_steps() -> None:
    """DDIM's step is affine in x and the prediction, so that a step of the fused prediction is the mean of steps."""
    x, tiles, ts = np.asarray(noise(1, 3, 7, 1)), Tiles((3, 3), (3, 2)), jnp.array([T, 0.3])

    @jax.jit
    def step(x: jax.Array) -> jax.Array:
        made: Denoiser = Fused(Curved(), tiles) if x.shape[2] > 3 else Curved()
        return integrate(DDIM(PROCESS), made, None, x, ts)[0]

    total, count = np.zeros((1, 3, 7, 1)), np.zeros((1, 3, 7, 1))
    for columns in paths((3, 7), tiles).columns:
        total[:, :, columns] += step(x[:, :, columns])
        count[:, :, columns] += 1
    np.testing.assert_allclose(step(x), total / count, atol=1e-5)


def test_what_lies_under_the_picture_is_cut_with_it() -> None:
    """A denoiser whose x0 is its condition, enlarged: fused, it is the whole condition, enlarged."""

    def shown(x: jax.Array, t: Any, cond: Any = None) -> Prediction:
        return from_x0(PROCESS, x, t, jnp.repeat(jnp.repeat(cond["low"], 2, axis=1), 2, axis=2))

    x, low = noise(2, 8, 12, 1), noise(2, 4, 6, 1, seed=3)
    tiles = Tiles((4, 4), (2, 2), "both", spatial=(("low", (2, 2)),))
    found = jax.jit(Fused(shown, tiles).__call__)(x, T, {"low": low}).x0
    np.testing.assert_allclose(found, np.repeat(np.repeat(low, 2, axis=1), 2, axis=2), atol=1e-6)
    with pytest.raises(ValueError, match=r"low has 6 pixels under 12, and a window does not begin .* that 2 divides"):
        Fused(shown, Tiles((4, 4), (4, 3), spatial=(("low", (2, 2)),)))(x, T, {"low": low})
    with pytest.raises(ValueError, match=r"low is \(8, 12\) under a picture of \(8, 12\), .* give one of \(4, 6\)"):
        Fused(shown, tiles)(x, T, {"low": x})


def test_weights_masks_and_conditions_are_data() -> None:
    x, plain = noise(1, 4, 6, 1), Curved()

    @jax.jit
    def counted(tiles: Tiles, cond: Any) -> jax.Array:
        return Fused(plain, tiles)(x, T, cond).x0

    for seed in (0, 1):
        mask = np.random.default_rng(seed).uniform(size=(1, 4, 6)).astype(np.float32)
        weight = np.exp(noise(1, 4, 4, seed=seed))
        tiles = Tiles((4, 4), (2, 2), weight=weight, regions=(Region(mask, {"label": jnp.array([seed])}),))
        counted(tiles, {"label": jnp.array([4 - seed])})
    assert plain.traced == 2 and plain.seen == {(4, 4)}  # once for each of two regions


# --- seams


def seam_ratio(stride: int) -> float:
    """Of a stationary Gaussian line whose windows' denoisers are exact: the root mean square of the gradient where a
    window begins, over that elsewhere."""
    window, size, flow = 8, 32, Flow()
    apart = np.abs(np.arange(window)[:, None] - np.arange(window)[None, :])
    covariance = np.exp(-0.5 * (apart / 2.0) ** 2) + 1e-3 * np.eye(window)
    denoise = FullGaussianDenoiser.from_covariance(flow, np.zeros((1, window, 1)), covariance)
    tiles = Tiles((1, window), (1, stride), "x", weight=hann((1, window)))
    ts = log_snr_times(flow, 20)
    x = np.random.default_rng(0).normal(size=(500, 1, size, 1)).astype(np.float32) * float(flow.sigma(ts[0]))
    drawn = jax.jit(lambda x: sample(DDIM(flow), Fused(denoise, tiles), None, x, ts))(x)[:, 0, :, 0]
    squared = np.square(np.roll(drawn, -1, axis=1) - drawn).mean(axis=0)
    seams = (np.arange(size) + 1) % stride == 0
    return float(np.sqrt(squared[seams].mean() / squared[~seams].mean()))


def test_seams_of_a_stationary_field_are_not_seen() -> None:
    """Windows that overlap by half: the gradient at the seams is that of the inside. Without overlap it is not."""
    assert 0.9 < seam_ratio(4) < 1.1
    assert seam_ratio(8) > 2


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: Tiles((4, 4), (5, 4)), r"a stride of \(5, 4\) leaves gaps between windows of \(4, 4\)"),
        (lambda: Tiles((4, 0), (1, 1)), "window is .* each at least 1"),
        (lambda: Tiles((4, 4), (2, 2), "z"), "wrap is 'x', 'y', 'both' or 'none', got 'z'"),  # type: ignore[arg-type]
        (lambda: Tiles((4, 4), (2, 2), together=0), "at least 1, got 0"),
        (lambda: Tiles((4, 4), (2, 2), weight=jnp.ones((1, 4, 3))), r"weight is \(1, 4, 4\) of positive numbers"),
        (lambda: Tiles((4, 4), (2, 2), weight=jnp.zeros((1, 4, 4))), "of positive numbers"),
        (lambda: Region(jnp.ones((4, 8)), {}), r"from 0 to 1, got \(4, 8\)"),
        (lambda: Region(2 * jnp.ones((1, 4, 8)), {}), "from 0 to 1"),
        (lambda: Fused(Curved(), Tiles((4, 4), (2, 2)))(noise(1, 3, 8, 1), T), r"\(3, 8\) are smaller than a window"),
        (
            lambda: Fused(Curved(), Tiles((4, 4), (2, 2), regions=(Region(jnp.ones((1, 4, 4)), {}),)))(
                noise(1, 4, 8, 1), T, {"label": jnp.ones(1)}
            ),
            r"a region's mask is \(1, 4, 8\), as its picture is, got \(1, 4, 4\)",
        ),
        (
            lambda: Fused(
                Curved(), Tiles((4, 4), (2, 2), regions=(Region(jnp.ones((1, 4, 8)), {"lable": jnp.ones(1)}),))
            )(noise(1, 4, 8, 1), T, {"label": jnp.ones(1)}),
            r"a region has \['lable'\], and the picture's conditions are \['label'\]",
        ),
        (
            lambda: CFG(2.0)(
                Fused(Curved(), Tiles((4, 4), (2, 2), regions=(Region(jnp.ones((1, 4, 8)), {"label": jnp.ones(1)}),))),
                Curved(),
                PROCESS,
                {"label": 0},
            )(noise(1, 4, 8, 1), T, {"label": jnp.ones(1)}),
            "tiles stand behind cfg",
        ),
    ],
)
def test_what_does_not_fit_is_refused(made: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made()
