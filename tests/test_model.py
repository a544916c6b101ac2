"""A model: its plans, its samples and their inverse, of a network that is exact, so that each has a closed form."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff.codecs import Arrays, Points
from jaxdiff.denoiser import NetworkDenoiser
from jaxdiff.model import Defaults, Model
from jaxdiff.prediction import from_x0
from jaxdiff.sampling import Keep
from jaxdiff.spec import Spec

PROCESS = jd.VP()
LABEL = Spec((), "int32", 0, 2, null=3)
STYLE = Spec((2,), "float32", null=0.0)


class Exact:
    """The exact x0 of Gaussian data (`GaussianDenoiser`), whose mean is that of the label plus the style."""

    def __init__(self, **cond: Spec) -> None:
        self.cond, self.traced = cond, 0

    def apply(self, params: Any, x: jax.Array, t: jax.Array, cond: Any = None, *, key: Any = None) -> jax.Array:
        self.traced += 1
        alpha, sigma = PROCESS.alpha(t / 1000)[:, None], PROCESS.sigma(t / 1000)[:, None]
        mean = jnp.zeros((1, 2)) if not cond else params["mean"][cond["label"]] + cond["style"]
        gain = alpha * params["std"] ** 2 / ((alpha * params["std"]) ** 2 + sigma**2)
        return mean + gain * (x - alpha * mean)


PARAMS = {"mean": jnp.array([[1.0, 0.0], [-2.0, 1.0], [0.0, 3.0], [0.0, 0.0]]), "std": jnp.array(0.5)}


def model(codec: Any = None, defaults: Defaults | None = None, **fields: Any) -> Model:
    net = Exact(label=LABEL, style=STYLE)
    denoise = NetworkDenoiser(net, PARAMS, PROCESS, jd.X0())
    return Model(denoise, codec or Points((2,)), defaults or Defaults(), **fields)


def net_of(made: Model) -> Any:
    return made.denoise.net


def times(n: int) -> Any:
    return jd.log_snr_times(PROCESS, n)


# --- guidance


def scaled(factor: float, shift: float = 0.0) -> Any:
    """A function from denoiser to denoiser: x0 becomes factor x0 + shift."""

    def element(denoise: jd.Denoiser) -> jd.Denoiser:
        return lambda x, t, cond=None: from_x0(PROCESS, x, t, factor * denoise(x, t, cond).x0 + shift)

    return element


def test_any_function_guides_and_the_list_has_an_order() -> None:
    made, x, t = model(), jnp.array([[0.3, -0.2]]), jnp.asarray(0.5)
    cond = {"label": 1}
    plain = made.plan(1, cond).denoise(x, t, made.given(1, cond)).x0

    def x0(guide: Any, cond: Any = cond) -> Any:
        return made.plan(1, cond, guide=guide).denoise(x, t, made.given(1, cond)).x0

    np.testing.assert_allclose(x0([scaled(2.0), scaled(1.0, 1.0)]), 2 * plain + 1, rtol=1e-5)
    np.testing.assert_allclose(x0([scaled(1.0, 1.0), scaled(2.0)]), 2 * (plain + 1), rtol=1e-5)
    null = x0((), {})
    led = null + 3.0 * (plain - null)
    np.testing.assert_allclose(x0(["cfg:3", scaled(2.0)]), 2 * led, rtol=1e-5)
    np.testing.assert_allclose(x0(3.0), led, rtol=1e-5)
    np.testing.assert_allclose(x0(jd.CFG(3.0)), led, rtol=1e-5)
    np.testing.assert_allclose(x0(scaled(2.0), {}), 2 * null, rtol=1e-5)  # needs no condition
    moved = made.sample(0, 3, cond, guide=[scaled(1.0, 5.0)], decode=False)
    assert (moved > made.sample(0, 3, cond, decode=False) + 4).all()


def test_the_defaults_guide_where_there_is_a_condition() -> None:
    made = model(defaults=Defaults(guide=("cfg:2",)))
    assert [type(e).__name__ for e in made.plan(2, {"label": 1}).guide] == ["CFG"]
    assert made.plan(2).guide == () and made.plan(2, {"label": 1}, guide=()).guide == ()


def test_what_guidance_leads_away_from() -> None:
    made, x, t = model(), jnp.zeros((2, 2)), jnp.asarray(0.6)
    cond, negative = {"label": [0, 1], "style": [0.5, 0.0]}, {"label": [2, 0]}
    plan = made.plan(2, cond, guide=2.0, negative=negative)
    there = made.given(2, cond)
    away = made.given(2, negative)  # what it does not name is absent
    plain = made.denoise
    expected = plain(x, t, away).x0 + 2.0 * (plain(x, t, there).x0 - plain(x, t, away).x0)
    np.testing.assert_allclose(plan.denoise(x, t, plan.cond).x0, expected, rtol=1e-5, atol=1e-6)
    absent = made.given(2, {})
    expected = plain(x, t, absent).x0 + 2.0 * (plain(x, t, there).x0 - plain(x, t, absent).x0)
    found = made.plan(2, cond, guide=2.0).denoise(x, t, plan.cond).x0  # else both are left out
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


# --- times, starts, what is kept


def test_times_and_starts_of_ones_own() -> None:
    made, cond = model(), {"label": [0, 1, 2]}
    whole, kept = made.sample(1, 3, cond, sampler="ddim", ts=times(20), keep=Keep((0, 8)), decode=False)
    np.testing.assert_array_equal(
        whole, made.sample(1, 3, cond, sampler="ddim", grid="log_snr", steps=20, decode=False)
    )
    rest = made.sample(2, 3, cond, sampler="ddim", ts=times(20)[8:], x=kept.x[1], decode=False)
    np.testing.assert_allclose(rest, whole, rtol=1e-5, atol=1e-6)
    function = made.sample(1, 3, cond, sampler="ddim", grid=lambda process, n: times(n), steps=20, decode=False)
    np.testing.assert_array_equal(function, whole)


def test_batches_are_filled_up_and_joined_with_what_was_kept() -> None:
    made = model(defaults=Defaults(sampler="ddpm", steps=6, grid="log_snr"))
    labels, style = np.arange(5) % 3, np.linspace(-1, 1, 10).reshape(5, 2)
    cond, negative = {"label": labels, "style": style}, {"label": (labels + 1) % 3}
    options: Any = {"negative": negative, "guide": "cfg:1.5", "keep": Keep((2, -1), prediction=True), "decode": False}
    whole, kept = made.sample(3, 5, cond, **options)
    assert kept.x.shape == kept.prediction.x0.shape == (2, 5, 2)
    np.testing.assert_array_equal(kept.prediction.x0[-1], whole)
    made.sample(3, 2, {"label": 1, "style": [0, 0]}, **options | {"negative": {"label": 2}})
    traced = net_of(made).traced
    parts, kept_parts = made.sample(3, 5, cond, **options, batch_size=2)
    assert net_of(made).traced == traced  # the last batch of one compiles nothing
    np.testing.assert_allclose(parts, whole, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(kept_parts.x, kept.x, rtol=1e-5, atol=1e-6)
    begin = np.random.default_rng(0).normal(size=(5, 2))
    for size in (5, 3):
        np.testing.assert_allclose(
            made.sample(3, 5, cond, x=begin, batch_size=size, decode=False),
            made.sample(3, 5, cond, x=begin, decode=False),
            rtol=1e-5,
            atol=1e-6,
        )


def test_samples_are_records_of_the_codec() -> None:
    made = model(Arrays((2,), mean=np.array([10, 20], np.float32), std=np.array([2, 4], np.float32)))
    x0 = made.sample(0, 4, {"label": 2}, decode=False)
    record = made.sample(0, 4, {"label": 2})
    np.testing.assert_allclose(record["x"], x0 * [2, 4] + [10, 20], rtol=1e-6)
    assert record["label"].tolist() == [2, 2, 2, 2] and isinstance(record["x"], np.ndarray)


def test_predictions_are_kept_in_the_range_of_the_data() -> None:
    bounded = Arrays((2,), mean=0.0, std=1.0, low=-0.25, high=0.5)
    assert np.abs(model(bounded).sample(0, 64, {"label": 1}, decode=False) - 0.125).max() <= 0.375 + 1e-6
    loose = model(bounded, Defaults(clip=False)).sample(0, 64, {"label": 1}, decode=False)
    assert loose.min() < -1.5


# --- conditions


def test_conditions_are_drawn_where_none_are_given() -> None:
    def drawn(keys: jax.Array) -> dict[str, Any]:
        return {"label": np.asarray(jax.vmap(lambda key: jax.random.randint(key, (), 0, 3))(keys))}

    made = model(draw_cond=drawn)
    whole = made.sample(5, 9)
    assert set(whole["label"]) == {0, 1, 2}
    parts = made.sample(5, 9, batch_size=4)["label"], made.sample(5, 4, start=5)["label"]
    np.testing.assert_array_equal(parts[0], whole["label"])
    np.testing.assert_array_equal(parts[1], whole["label"][5:])
    assert made.sample(5, 3, {})["label"].tolist() == [3, 3, 3]  # nothing, said aloud
    assert model().sample(5, 2)["label"].tolist() == [3, 3]


def test_words_become_conditions() -> None:
    made = model(encoders={"label": lambda name: {"cat": 0, "dog": 1}[name] if isinstance(name, str) else name})
    np.testing.assert_array_equal(made.sample(0, 2, {"label": "dog"})["x"], made.sample(0, 2, {"label": 1})["x"])


def test_noise_is_projected_onto_the_support() -> None:
    """Data on the line x_1 = x_2: the start and each step's noise, so the samples too."""

    def onto(x: jax.Array, cond: Any) -> jax.Array:
        return jnp.broadcast_to(x.mean(axis=1, keepdims=True), x.shape)

    for sampler in ("ddim", "ddpm", "dpmpp_sde"):
        found = model(support=onto).sample(0, 16, sampler=sampler, grid="log_snr", steps=8, decode=False)
        np.testing.assert_allclose(found[:, 0], found[:, 1], atol=1e-5)
        assert found[:, 0].std() > 0.1
        free = model().sample(0, 16, sampler=sampler, grid="log_snr", steps=8, decode=False)
        assert np.abs(free[:, 0] - free[:, 1]).max() > 0.1
    begin = np.array([[1.0, -1.0]], np.float32)
    assert (model(support=onto).plan(1, x=begin).init(jax.random.split(jax.random.key(0), 1)) == begin).all()


# --- one program


def test_numbers_and_conditions_compile_nothing() -> None:
    made = model(Arrays((2,), mean=0.0, std=1.0), Defaults(sampler="ddim:eta=0.5", steps=5, grid="log_snr"))
    begin: Any = np.ones((4, 2))
    first: dict[str, Any] = {"guide": "cfg:2", "negative": {"label": 0}, "ts": times(5), "x": begin}
    made.sample(0, 4, {"label": 1, "style": [0, 0]}, **first)
    net, traced = net_of(made), net_of(made).traced
    assert traced > 0
    made.sample(1, 4, {"label": [0, 1, 2, 3], "style": [1.0, 2.0]}, **first | {"guide": "cfg:7.5"})
    made.sample(
        2, 4, {"label": 3, "style": np.ones((4, 2))}, **first | {"guide": 0, "negative": {"label": [2, 1, 0, 3]}}
    )
    made.sample(3, 4, {"label": 0, "style": [0, 1]}, **first | {"ts": times(5) * 0.9, "x": 3 * begin})
    made.sample(3, 4, {"label": 0, "style": [0, 1]}, **first, sampler="ddim:eta=0.1", start=77)
    other = dataclasses.replace(
        made,
        denoise=dataclasses.replace(made.denoise, params=jax.tree.map(lambda leaf: leaf + 1.0, PARAMS)),
        codec=Arrays((2,), mean=5.0, std=3.0),
    )
    other.sample(3, 4, {"label": 0, "style": [0, 1]}, **first)
    assert net.traced == traced
    made.sample(0, 3, {"label": 1, "style": [0, 0]}, **first | {"x": begin[:3]})  # another size does
    assert net.traced > traced


# --- inversion


@pytest.mark.parametrize(("sampler", "order"), [("ddim", 1), ("dpmpp_2m", 2), ("heun", 2), ("rk4", 4)])
def test_inversion_is_the_probability_flow_at_its_samplers_order(sampler: str, order: int) -> None:
    """Of Gaussian data: (x - alpha m)/n stays as it is along the flow (`jaxdiff.exact.gaussian`, equation 2)."""
    with jax.enable_x64(True):
        params = {name: jnp.asarray(value, jnp.float64) for name, value in PARAMS.items()}
        made = model()
        made = dataclasses.replace(made, denoise=dataclasses.replace(made.denoise, params=params))
        x0, label = np.array([[1.5, 0.5], [-2.0, 1.2], [0.1, 2.0]]), np.arange(3)
        mean = np.asarray(PARAMS["mean"])[:3]

        def total(t: Any) -> Any:
            return np.sqrt(PROCESS.alpha(t) ** 2 * 0.25 + PROCESS.sigma(t) ** 2)

        errors, steps = [], (12, 24) if order == 4 else (32, 64)
        for n in steps:
            ts = PROCESS.time_of_log_snr(jnp.linspace(-3.0, 3.0, n + 1))
            first, last = ts[0], ts[-1]
            expected = PROCESS.alpha(first) * mean + total(first) / total(last) * PROCESS.alpha(last) * (x0 - mean)
            found = made.invert({"x": x0}, {"label": label}, sampler=sampler, ts=ts)
            errors.append(np.abs(found - expected).max())
        assert np.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.4)


def test_there_and_back_is_the_record() -> None:
    made = model(Arrays((2,), mean=1.0, std=2.0))
    record = {"x": np.array([[3.5, 2.0], [-3.0, 3.2]], np.float32)}
    cond, errors = {"label": [0, 1]}, []
    for n in (20, 40, 80):
        options: Any = {"sampler": "dpmpp_2m", "ts": PROCESS.time_of_log_snr(jnp.linspace(-8.0, 12.0, n))}
        x = made.invert(record, cond, **options)
        errors.append(np.abs(made.sample(0, 2, cond, x=x, **options)["x"] - record["x"]).max())
    assert errors[0] > 2 * errors[1] > 4 * errors[2] and errors[2] < 0.02


def test_inversion_refuses_noise() -> None:
    with pytest.raises(ValueError, match="draws noise"):
        model().invert({"x": np.zeros((1, 2))}, sampler="ddpm", steps=5)


@pytest.mark.parametrize(
    ("record", "options", "message"),
    [
        (np.zeros((1, 2)), {}, "a record is a dict with 'x', as sample gives it, got ndarray"),
        (None, {}, "a record is a dict with 'x', as sample gives it, got NoneType"),
        ({"label": [1]}, {}, "a record is a dict with 'x'"),
        ({"x": np.zeros((3, 5))}, {}, r"x has shape \(3, 5\), expected \(n, 2\): records, the batch first"),
        ({"x": np.zeros(2)}, {}, r"x has shape \(2,\), expected \(n, 2\)"),  # no two samples of one number
        ({"x": np.zeros((0, 2))}, {}, r"x has shape \(0, 2\), expected \(n, 2\)"),
        ({"x": [[np.nan, 0.0]]}, {}, "x is NaN or infinite in 1 of its 2 numbers"),
        ({"x": [["a", "b"]]}, {}, "x must be real numbers"),
        ({"x": np.zeros((1, 2))}, {"cond": [1]}, "conditions are a dict by name"),
        ({"x": np.zeros((1, 2))}, {"ts": [0.1, 0.9]}, "times are to fall from noise to data"),  # those of sample
    ],
)
def test_inversion_refuses_what_is_no_record(record: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model().invert(record, **options)


# --- words of errors


class NotFinite(Exact):
    def apply(self, params: Any, x: jax.Array, *rest: Any, **named: Any) -> jax.Array:
        return jnp.where(jnp.arange(len(x))[:, None] == 1, jnp.nan, super().apply(params, x, *rest, **named))


def test_samples_that_are_not_finite_are_told_of() -> None:
    made = model()
    made = dataclasses.replace(made, denoise=dataclasses.replace(made.denoise, net=NotFinite(label=LABEL, style=STYLE)))
    with pytest.raises(ValueError, match=r"1 of 3 samples are not finite.*decode=False gives them"):
        made.sample(0, 3)
    assert np.isnan(made.sample(0, 3, decode=False)).any(axis=1).tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("n", "options", "message"),
    [
        (0, {}, "n must be a whole number of at least 1, got 0"),
        (2.5, {}, "n must be a whole number of at least 1, got 2.5"),
        (2, {"start": 1.5}, "start must be a whole number of at least 0, got 1.5"),
        (2, {"steps": 2.5}, "steps must be a whole number"),
        (2, {"batch_size": 1.5}, "batch_size must be a whole number"),
        (2, {"keep": 3}, r"keep is a jaxdiff.sampling.Keep, such as Keep\(at=\(0, 10, -1\)\), or 'particles', got 3"),
        (2, {"keep": (0, -1)}, "keep is a jaxdiff.sampling.Keep"),
        (2, {"cond": [1, 2]}, "conditions are a dict by name, such as .*, got list"),
        (2, {"cond": np.array([1, 2])}, "conditions are a dict by name, such as .*, got ndarray"),
        (2, {"cond": {"label": 1}, "negative": [1], "guide": 2}, "conditions are a dict by name"),
        (2, {"cond": {"label": None}}, "label must be whole numbers .int32., got NoneType"),
        (2, {"cond": {"style": [[1.0], [1.0, 2.0]]}}, "style has rows of unequal lengths"),
        (2, {"x": np.full((2, 2), np.nan)}, "x is NaN or infinite in 4 of its 4 numbers"),
        (2, {"x": np.zeros((2, 2), complex)}, "x must be real numbers, got complex128"),
        (2, {"ts": "karras"}, "for a grid by its name, grid='karras'"),
        (2, {"sampler": jd.DDIM}, "a sampler is a name with its numbers"),
        (2, {"cond": {"label": 1}, "guide": {"cfg": 2}}, "an element of guidance is a name, a weight, or a function"),
        (3, {"cond": {"label": 1}, "guide": jd.CFG(np.ones(2))}, "a finite weight, or one for each of 3 samples, got"),
        (3, {"cond": {"label": 1}, "guide": jd.CFG(np.nan)}, "a finite weight, or one for each of 3 samples, got nan"),
        (2, {"cond": {"label": 1}, "guide": jd.CFG}, "an element of guidance is a name"),
        (2, {"cond": {"label": 1}, "guide": lambda denoise: 3}, "is to give a denoiser, called as .x, t, cond., got 3"),
        (2, {"cond": {"label": 4}}, "label 4 is out of range: from 0 to 2, or 3 for none"),
        (2, {"cond": {"style": np.ones((1, 2))}}, "style has 1 rows for 2 samples"),
        (2, {"cond": {"style": [1.0]}}, r"style has shape \(2, 1\), expected \(2, 2\)"),
        (2, {"cond": {"style": [1.0, np.nan]}}, "style nan is out of range: it must be finite"),
        (2, {"cond": {"colour": 1}}, r"colour: the conditions are \['label', 'style'\]: leave it out"),
        (2, {"guide": "cfg:2"}, "guidance leads towards a condition"),
        (2, {"cond": {"label": 1}, "guide": scaled(2.0), "negative": {"label": 2}}, "there is no guidance"),
        (2, {"cond": {"label": 1}, "guide": [object()]}, "a name, a weight, or a function of a denoiser"),
        (2, {"cond": {"label": 1}, "guide": ["every:2"]}, "cfg"),
        (2, {"ts": [0.9, 0.5], "grid": "karras"}, "leave steps and grid out"),
        (2, {"ts": [0.1, 0.5]}, "fall"),
        (2, {"x": np.zeros((2, 3))}, r"x has shape \(2, 3\), expected \(2, 2\): samples at the first time"),
        (2, {"keep": Keep((99,)), "steps": 4}, "keep.at has 99"),
        (2, {"cache": "deepcache:2"}, "U-Net"),
    ],
)
def test_what_does_not_fit_is_said(n: int, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model().sample(0, n, options.pop("cond", None), **options)


def test_what_cannot_be_left_out_is_said() -> None:
    needed = model(cond={"label": dataclasses.replace(LABEL, null=None), "style": STYLE})
    with pytest.raises(ValueError, match=r"this model needs label: pass cond=\{'label': ...\}"):
        needed.sample(0, 2, {"style": [1.0, 0.0]})
    assert needed.sample(0, 2, {"label": 1})["x"].shape == (2, 2)
    needed.check()
    with pytest.raises(ValueError, match="learned"):
        dataclasses.replace(needed, defaults=Defaults(sampler="ddpm:learned")).check()


@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_weight_for_each_sample_is_that_of_each_alone(n: int) -> None:
    made, weights = model(), np.array([0.5, 2.0, 4.0], np.float32)[:n]
    options: Any = {"sampler": "dpmpp_2m", "steps": 4, "decode": False}
    found = made.sample(0, n, {"label": 1}, guide=jd.CFG(weights), batch_size=2, **options)
    for i, weight in enumerate(weights):
        alone = made.sample(0, 1, {"label": 1}, guide=float(weight), start=i, **options)
        np.testing.assert_allclose(found[i : i + 1], alone, rtol=1e-5)
