"""Feature caches: exact where they reuse nothing, of the order that reuse has, and work that is really left out."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.typing import NDArray

import jaxdiff as jd
from jaxdiff.networks import MLP, DeepCache, DiT, FirstBlock, Functional, TaylorSeer, UNet, functional
from jaxdiff.networks.caching import FeatureCache, forecast_of
from jaxdiff.networks.embedded import Embedded
from jaxdiff.networks.unet_blocks import ResidualBlock

PROCESS = jd.Flow()
SMOOTH = jd.Karras(0.5)  # tells the time as ln(rho)/4: of 1000 t these networks, untrained, know every radian
NETS = {
    "unet": functional(
        UNet(8, in_channels=1, width=8, multipliers=(1, 2), blocks=1, attention_resolutions=(), num_classes=3)
    ),
    "dit": functional(DiT(in_channels=1, width=16, depth=3, heads=2, num_classes=3, frequencies=16)),
}
EXACT: dict[str, list[FeatureCache]] = {  # caches that reuse nothing
    "unet": [DeepCache(1), DeepCache(1, outer=3)],
    "dit": [FirstBlock(0.0), TaylorSeer(1), TaylorSeer(1, order=2, whole=True)],
}
COND = {"label": jnp.array([0, 1, 3])}  # the last: no class
STEPS = (32, 64)


@functools.cache
def params_of(net: Functional) -> Any:
    """Parameters without the zeros that networks start from; drawn by numpy, since XLA takes seconds to compile it."""
    rng = np.random.default_rng(0)

    def drawn(path: Any, leaf: jax.ShapeDtypeStruct) -> NDArray[np.float32]:
        noise = rng.normal(size=leaf.shape).astype(np.float32)
        matrix = jax.tree_util.keystr(path).endswith("['kernel']")
        gain = 1.0 if jax.tree_util.keystr(path).endswith("['scale']") else 0.0
        return np.float32(gain) + noise * np.float32(np.prod(leaf.shape[:-1]) ** -0.5 if matrix else 0.1)

    return jax.tree_util.tree_map_with_path(drawn, jax.eval_shape(net.init, jax.random.key(0)))


def denoiser(kind: str, cache: FeatureCache | None = None) -> jd.NetworkDenoiser:
    return jd.NetworkDenoiser(NETS[kind], params_of(NETS[kind]), PROCESS, SMOOTH, cache)


def start(batch: int = 3) -> jax.Array:
    return jax.random.normal(jax.random.key(1), (batch, 8, 8, 1))


@functools.partial(jax.jit, static_argnames="inner")
def samples(denoise: jd.Denoiser, x: jax.Array, steps: int, cond: Any, inner: type = jd.DDIM) -> jax.Array:
    """One program for any number of steps."""
    ts = 0.9 - 0.6 * jnp.minimum(jnp.arange(max(STEPS) + 1) / steps, 1.0)
    return jd.sample(inner(PROCESS), denoise, None, x, ts, cond, num_steps=steps)


@functools.cache
def uncached(kind: str, steps: int) -> NDArray[np.float32]:
    return np.asarray(samples(denoiser(kind), start(), steps, COND))


def error(kind: str, cache: FeatureCache, steps: int) -> float:
    """RMS difference to the sampler without the cache."""
    return float(np.sqrt(np.mean((samples(denoiser(kind, cache), start(), steps, COND) - uncached(kind, steps)) ** 2)))


@pytest.mark.parametrize("kind", sorted(NETS))
def test_reusing_nothing_is_exact(kind: str) -> None:
    """To the last bit, and with a method of two evaluations a step."""
    for cache in EXACT[kind]:
        np.testing.assert_array_equal(samples(denoiser(kind, cache), start(), 8, COND), uncached(kind, 8))
    if kind == "dit":
        heun = samples(denoiser(kind, EXACT[kind][0]), start(), 5, COND, jd.Heun)
        np.testing.assert_array_equal(heun, samples(denoiser(kind), start(), 5, COND, jd.Heun))


def test_a_first_block_that_adds_nothing_says_nothing() -> None:
    """Its part never changes, while the others' do: a threshold of 0 reuses nothing, and no threshold everything."""
    params = jax.tree.map(np.copy, params_of(NETS["dit"]))
    for leaf in jax.tree.leaves(params["blocks"]["modulation"]):
        leaf[0] = 0.0  # gates and all
    plain = dataclasses.replace(denoiser("dit"), params=params)
    expected = samples(plain, start(), 8, COND)
    for threshold in (0.0, 0.5):
        cached = dataclasses.replace(plain, cache=FirstBlock(threshold))
        np.testing.assert_array_equal(samples(cached, start(), 8, COND), expected)


def test_every_loop_carries_the_memory() -> None:
    """`sample_path` and `integrate` reuse as `sample` does."""

    @jax.jit
    def loops(denoise: jd.NetworkDenoiser, x: jax.Array) -> tuple[jax.Array, ...]:
        sampler, ts = jd.DPMpp2M(PROCESS), jnp.linspace(0.9, 0.3, 8)
        xs, x0 = jd.sample_path(sampler, denoise, None, x, ts, COND)
        last, _ = jd.integrate(sampler, denoise, None, x, ts, COND)
        return jd.sample(sampler, denoise, None, x, ts, COND), x0, last, xs[-1]

    found = loops(denoiser("dit", TaylorSeer(3)), start())
    for one, other in (found[:2], found[2:]):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)
    for one, other in zip(found, loops(denoiser("dit", TaylorSeer(1)), start()), strict=True):
        assert np.abs(one - other).max() > 1e-4  # the cache was there


def test_half_precision_is_kept() -> None:
    """Features have the network's type from one evaluation to the next, as a loop's carry must."""
    caches: dict[str, list[FeatureCache]] = {
        "unet": [DeepCache(2, outer=3)],
        "dit": [FirstBlock(0.1), TaylorSeer(2, order=2, newton=True), TaylorSeer(2, whole=True)],
    }
    for kind, these in caches.items():
        half: Any = functional(dataclasses.replace(NETS[kind].build, dtype="bfloat16"))
        for cache in these:
            denoise = dataclasses.replace(denoiser(kind, cache), net=half)
            types = {leaf.dtype.name for leaf in jax.tree.leaves(denoise.begin(start(), COND).features)}
            assert types == {"bfloat16"}
            ts = jnp.linspace(0.9, 0.3, 5)
            jax.eval_shape(lambda d, x, ts=ts: jd.sample(jd.DDIM(PROCESS), d, None, x, ts, COND), denoise, start())


def test_weights_are_not_copied() -> None:
    """A part of the blocks runs on the stacked weights where they are: other memory is less than theirs."""
    net = functional(DiT(in_channels=1, width=32, depth=12, heads=1, frequencies=16))
    denoise = jd.NetworkDenoiser(net, params_of(net), PROCESS, SMOOTH, FirstBlock(0.1))
    x = start(1)
    memory = denoise.begin(x)
    compiled = jax.jit(lambda d, x, memory: d.recall(x, 0.5, None, memory)).lower(denoise, x, memory).compile()
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(params_of(net)["blocks"]))
    used = compiled.memory_analysis()
    assert used is not None and used.temp_size_in_bytes < weights / 2


@pytest.mark.parametrize(
    ("kind", "cache", "order"),
    [
        ("unet", DeepCache(1), 1),
        ("dit", TaylorSeer(1, order=0), 1),
        ("dit", TaylorSeer(1, order=1), 2),
        ("dit", TaylorSeer(1, order=1, whole=True), 2),
    ],
)
def test_error_grows_with_the_interval_and_falls_with_the_step(kind: str, cache: Any, order: int) -> None:
    """Reuse over j evaluations is wrong by O(j h), a linear forecast by O((j h)^2)."""
    errors = np.array([[error(kind, dataclasses.replace(cache, every=every), n) for every in (2, 4, 8)] for n in STEPS])
    assert (errors[:, 0] > 0).all() and (np.diff(errors, axis=1) > 0).all(), errors
    found = np.log2(errors[0] / errors[1])
    np.testing.assert_allclose(found, order, atol=0.35, err_msg=str(errors))


def test_more_of_the_network_is_nearer() -> None:
    errors = [error("unet", DeepCache(4, outer=outer), STEPS[0]) for outer in (1, 3)]
    assert 0 < errors[1] < errors[0]


def test_threshold_trades_error_for_work() -> None:
    """A larger threshold computes less and errs more; the count is the memory's."""

    @jax.jit
    @chex.assert_max_traces(n=1)
    def run(denoise: jd.NetworkDenoiser, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        memory, ts = denoise.begin(x, COND), jnp.linspace(0.9, 0.3, 33)

        def body(carry: Any, times: Any) -> Any:
            x, memory = carry
            given, memory = denoise.recall(x, times[0], COND, memory)
            return (PROCESS.alpha(times[1]) * given.x0 + PROCESS.sigma(times[1]) * given.eps, memory), None

        (x, memory), _ = jax.lax.scan(body, (x, memory), (ts[:-1], ts[1:]))
        return denoise(x, ts[-1], COND).x0, memory.full

    found = [
        run(denoiser("dit", FirstBlock(threshold, together=True)), start()) for threshold in (0.0, 0.02, 0.05, 0.2)
    ]
    full = [int(count) for _, count in found]
    errors = [float(jnp.sqrt(jnp.mean((x0 - found[0][0]) ** 2))) for x0, _ in found]
    assert full[0] == 32 and full == sorted(full, reverse=True) and 1 <= full[-1] < full[1] < 32, full
    assert errors == sorted(errors) and errors[1] > 0, errors


def test_samples_decide_for_themselves() -> None:
    """A sample's result is its own whatever the batch; with ``together`` it is not."""
    x = start() * jnp.array([1.0, 0.3, 3.0]).reshape(3, 1, 1, 1)  # so that they change at different times
    first = {"label": COND["label"][:1]}
    for together in (False, True):
        denoise = denoiser("dit", FirstBlock(0.05, together=together))
        apart = np.abs(samples(denoise, x, 32, COND)[:1] - samples(denoise, x[:1], 32, first)).max()
        assert (apart > 1e-4) == together, apart


def test_what_is_not_due_is_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of the U-Net's middle run at every N-th evaluation alone; `every` is data."""
    calls: list[int] = []
    original = ResidualBlock.__call__
    middle = NETS["unet"].module(params_of(NETS["unet"])).middle_out.site

    def told(self: ResidualBlock, x: jax.Array, embedding: Embedded, key: jax.Array | None) -> jax.Array:
        if self.site == middle:
            jax.debug.callback(lambda: calls.append(1))
        return original(self, x, embedding, key)

    monkeypatch.setattr(ResidualBlock, "__call__", told)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def run(denoise: jd.NetworkDenoiser, x: jax.Array) -> jax.Array:
        return jd.sample(jd.DPMpp2M(PROCESS), denoise, None, x, jnp.linspace(0.9, 0.3, 10), COND)  # ten evaluations

    for every, expected in ((1, 10), (2, 5), (3, 4), (10, 1), (99, 1)):
        calls.clear()
        jax.block_until_ready(run(denoiser("unet", DeepCache(every)), start()))
        jax.effects_barrier()
        assert len(calls) == expected


@pytest.mark.nightly
def test_under_guidance_clipping_and_vmap() -> None:
    """Both branches in one call, one after the other, and sample by sample under vmap give the same."""
    inner = denoiser("unet", DeepCache(3))

    @jax.jit
    def forms(inner: jd.NetworkDenoiser, x: jax.Array) -> dict[str, jax.Array]:
        def run(sequential: bool, x: jax.Array, cond: Any) -> jax.Array:
            guided = jd.ClassifierFree(inner, 2.0, {"label": 3}, sequential=sequential)
            return jd.sample(jd.DDIM(PROCESS), jd.Clipped(guided, PROCESS), None, x, jnp.linspace(0.9, 0.3, 8), cond)

        return {
            "together": run(False, x, COND),
            "sequential": run(True, x, COND),
            "vmap": jax.vmap(lambda x, label: run(False, x[None], {"label": label[None]})[0])(x, COND["label"]),
        }

    found = forms(inner, start())
    for form in ("sequential", "vmap"):
        np.testing.assert_allclose(found[form], found["together"], rtol=2e-4, atol=2e-4, err_msg=form)
    plain = forms(dataclasses.replace(inner, cache=DeepCache(1)), start())
    assert np.abs(plain["together"] - found["together"]).max() > 1e-4  # the cache was there


def test_newton_forecasts_polynomials() -> None:
    """Equation (5) with differences of a cubic is the cubic; equation (4) is exact for lines alone."""
    cubic, line = np.poly1d([1.0, -2.0, 0.5, 3.0]), np.poly1d([2.0, 1.0])
    for polynomial, newton in ((cubic, True), (line, False)):
        rows = [[float(polynomial(-i)) for i in range(4)]]  # newest first
        for _ in range(3):
            rows.append([a - b for a, b in zip(rows[-1], rows[-1][1:], strict=False)])
        differences = tuple(jnp.array(row[0]) for row in rows)
        for u in (0.25, 0.5, 1.0):
            np.testing.assert_allclose(forecast_of(differences, u, newton), polynomial(u), rtol=1e-5)


def test_differences_grow_with_what_is_known() -> None:
    """Equation (3): after i + 1 values those of order i; Newton's forecast is then exact for their degree."""
    cache, square = TaylorSeer(order=2, newton=True), np.poly1d([1.0, -3.0, 2.0])
    features: tuple[Any, ...] = (jnp.zeros(()),) * 3
    found = []
    for known in range(4):
        features = cache._differences(jnp.float32(square(known)), features, jnp.int32(known))
        found.append([float(leaf) for leaf in features])
        if known >= 2:
            np.testing.assert_allclose(forecast_of(features, 0.5, True), square(known + 0.5), rtol=1e-6)
    assert found == [[2.0, 0.0, 0.0], [0.0, -2.0, 0.0], [0.0, 0.0, 2.0], [2.0, 2.0, 2.0]]


@pytest.mark.parametrize(
    "sampler",
    [
        jd.Adaptive(PROCESS),
        jd.Restart(jd.DPMpp2M(PROCESS)),
        jd.AnnealedLangevinDynamics(PROCESS),
        jd.PredictorCorrector(jd.DDIM(PROCESS), jd.AnnealedLangevin(0.1)),
    ],
)
def test_samplers_with_loops_of_their_own_are_refused(sampler: jd.Sampler) -> None:
    keys = jd.sample_keys(jax.random.key(0), 0, 3)
    with pytest.raises(ValueError, match="inside a loop or a branch of its own"):
        jax.eval_shape(
            lambda x: jd.sample(sampler, denoiser("unet", DeepCache(2)), keys, x, jnp.array([0.9, 0.6, 0.3]), COND),
            start(),
        )


def test_bad_settings_are_named() -> None:
    for wrong in (0, 1.5, -2):
        with pytest.raises(ValueError, match="every is to be a whole number, 1 or more"):
            DeepCache(wrong)
    with pytest.raises(ValueError, match="threshold is to be 0 or more"):
        FirstBlock(-0.1)
    with pytest.raises(ValueError, match="order is to be an integer"):
        TaylorSeer(2, order=-1)
    for kind, cache, message in (
        ("dit", DeepCache(2), "a cache of a U-Net, got a DiTModule"),
        ("unet", TaylorSeer(2), r"a cache of a diffusion transformer \(DiT\), got a UNetModule"),
        ("unet", DeepCache(2, outer=4), "outer is to be 1 to 3, got 4"),
    ):
        with pytest.raises(ValueError, match=message):
            denoiser(kind, cache).begin(start(), COND)
    points = functional(MLP())
    with pytest.raises(ValueError, match="got a Perceptron"):
        jd.NetworkDenoiser(points, points.init(jax.random.key(0)), PROCESS, jd.V(), DeepCache(2)).begin(
            jnp.ones((1, 2))
        )
