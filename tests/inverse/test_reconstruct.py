"""`reconstruct`: a measurement in, samples of a model out; every method on every kind of process."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff.codecs import Images
from jaxdiff.codecs.latents import LatentImages
from jaxdiff.inverse import Gaussian, Poisson, measure
from jaxdiff.inverse.operators import Box, Mask
from jaxdiff.methods.inverse import METHODS, parse_operator
from jaxdiff.model import Model
from jaxdiff.networks.autoencoder import Autoencoder
from jaxdiff.parameterization import ScaledTime
from jaxdiff.plan import draw
from jaxdiff.reconstruction import operator_of, reconstruct
from tests.inverse.exact_models import PROCESSES, ExactNet, digits, drawn, model_of, problem_of, separable
from tests.inverse.exact_models import ROWS as MATRIX
from tests.tiny_autoencoder import network

TRUTH = digits(4)
untyped: Any = reconstruct  # for what a type checker would refuse
METHOD_NOISE = {  # each method, with the noise of the measurement it is tried with
    "ddnm": 0.0,
    "ddnm_plus": 0.2,
    "ddrm": 0.2,
    "pigdm:0.3": 0.1,
    "dps:0.5": 0.1,
    "mcg": 0.0,
    "reconstruction_guidance:5": 0.0,
    "repaint:3": 0.0,
    "ilvr": 0.0,
    "diffpir": 0.1,
    "daps:solve=3,variance=0.3": 0.1,
}
ROWS = list(itertools.product(METHOD_NOISE, PROCESSES))
COVER = [(method, list(PROCESSES)[i % 3]) for i, method in enumerate(METHOD_NOISE)]


@pytest.fixture(scope="module")
def model() -> Model:
    return model_of(jd.GaussianDenoiser(PROCESSES["vp"], 0.0, 0.5), (8, 8, 1))


def test_every_method_is_tried() -> None:
    assert {name.split(":")[0] for name in METHOD_NOISE} | {"psld", "tds"} == set(METHODS)  # test_psld, test_twisted


@pytest.mark.parametrize(("method", "process"), COVER)
def test_every_method_and_every_kind_of_process(method: str, process: str) -> None:
    """From the first time of all on, alpha = 0 for a flow: finite, and nearer to y than without it."""
    exact = jd.GaussianDenoiser(PROCESSES[process], 0.0, 0.5)
    ts = jnp.append(jnp.linspace(1.0, 0.1, 6), 0.01)
    problem = problem_of(separable(), [1.0, -0.5], METHOD_NOISE[method], 8)
    found = drawn(method, problem, exact, ts)
    residual = np.square(found.reshape(8, 4) @ MATRIX.T - [1.0, -0.5]).mean()
    assert np.isfinite(found).all() and residual < 0.5 * (0.625 + 0.25 * np.square(MATRIX).sum() / 2)


def tried(method: str, process: str) -> tuple[float, float]:
    """Root mean square errors of a method's samples of digits and of A+ y."""
    std = METHOD_NOISE[method]
    steps = 50 if method.startswith("dps") else 16
    method = method.replace("dps:0.5", "dps:2")  # one length of steps for 4 numbers, another for 64
    prior = model_of(jd.EmpiricalDenoiser(PROCESSES[process], digits(), 0.1), (8, 8, 1))
    operator = parse_operator("mask:0.4", (8, 8, 1))
    y = measure(operator, TRUTH, std, jd.sample_keys(jax.random.key(9), 0, len(TRUTH)))
    found = reconstruct(method, operator, y, prior, noise=std, steps=steps, grid="log_snr", decode=False)
    errors = [float(np.sqrt(np.square(np.asarray(each) - TRUTH).mean())) for each in (found, operator.pinv(y))]
    return errors[0], errors[1]


def test_digits_are_completed_better_than_by_the_pseudo_inverse() -> None:
    error, plain = tried("reconstruction_guidance:5", "flow")
    assert error < 0.3 * plain


@pytest.mark.nightly
@pytest.mark.parametrize(("method", "process"), ROWS)
def test_each_method_completes_digits_better_than_the_pseudo_inverse(method: str, process: str) -> None:
    error, plain = tried(method, process)
    assert error < 0.9 * plain


def test_bytes_and_numbers_are_the_same_measurement(model: Model) -> None:
    picture = np.asarray(127.5 * (TRUTH[:2] + 1)).round().astype(np.uint8)
    for name in ("box:2", "mask:0.4"):
        operator = parse_operator(name, (8, 8, 1))
        stored = (
            picture if name == "mask:0.4" else np.asarray(operator(jnp.asarray(picture, jnp.float32))).astype(np.uint8)
        )
        given = stored / 127.5 - 1.0
        found = [reconstruct("ddnm", name, y, model, steps=4, sampler="ddim")["x"] for y in (stored, given)]
        np.testing.assert_array_equal(found[0], found[1])
        assert found[0].dtype == np.uint8 and found[0].shape == (2, 8, 8, 1)
    known = np.broadcast_to(np.asarray(operator.known) > 0, picture.shape)  # type: ignore[attr-defined]
    np.testing.assert_array_equal(found[0][known], picture[known])
    assert (found[0][~known] != picture[~known]).any()


def test_a_sample_is_its_own_at_any_batch_size(model: Model) -> None:
    """Masks, measurements and noise are cut with the samples: four of them, and matrices with four rows."""
    masks = (jax.random.uniform(jax.random.key(2), (4, 8, 8, 1)) > 0.4).astype(jnp.float32)
    operator = Mask((8, 8, 1), masks)
    options: dict[str, Any] = {"steps": 3, "grid": "log_snr", "decode": False, "key": 3}
    for method, how in (("ddrm", operator), ("ddnm", "bicubic:2")):
        y = measure(operator_of(model, how), TRUTH)
        whole = reconstruct(method, how, y, model, **options)
        parts = reconstruct(method, how, y, model, batch_size=3, **options)
        np.testing.assert_allclose(parts, whole, atol=2e-5)
    last = reconstruct("ddnm", "bicubic:2", y[3:], model, start=3, **options)
    np.testing.assert_allclose(last, whole[3:], atol=2e-5)
    one = reconstruct("ddnm", "bicubic:2", y[0], model, n=3, **options)  # one measurement for all
    assert one.shape == (3, 8, 8, 1) and np.abs(one[0] - one[1]).max() > 1e-3


def test_one_trace_for_all_numbers(model: Model) -> None:
    """Measurement, mask, noise and weights are data."""
    before = draw._cache_size()  # type: ignore[attr-defined]
    for i, (weight, std) in enumerate([(0.5, 0.1), (1.0, 0.3), (2.0, 0.05)]):
        operator = parse_operator(f"mask:0.{i + 2},seed={i}", (8, 8, 1))
        y = measure(operator, jnp.roll(TRUTH, i, axis=0))
        reconstruct(f"dps:{weight}", operator, y, model, noise=std, steps=3, grid="log_snr")
    assert draw._cache_size() == before + 1  # type: ignore[attr-defined]
    for eta, std in ((0.85, 0.0), (0.5, 0.2)):  # without noise too
        reconstruct(f"ddrm:{eta}", operator, y, model, noise=std, steps=3, grid="log_snr")
    assert draw._cache_size() == before + 2  # type: ignore[attr-defined]


def test_guidance_stands_before_the_method(model: Model) -> None:
    """The elements of a method come last, so that what they say of the measurement holds."""
    y = measure(parse_operator("box:2", (8, 8, 1)), TRUTH[:1])

    def louder(denoise: jd.Denoiser) -> jd.Denoiser:
        def changed(x: jax.Array, t: Any, cond: Any = None) -> jd.Prediction:
            found = denoise(x, t, cond)
            return jd.prediction.from_x0(model.process, x, t, 1.5 * found.x0)

        return changed

    found = reconstruct("ddnm", "box:2", y, model, steps=3, sampler="ddim", guide=louder, decode=False)
    inside = np.abs(found).max() < 0.999  # else the bounds of pixels came after
    np.testing.assert_allclose(Box((8, 8, 1), 2)(found), y, atol=1e-4 if inside else 0.3)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (
            ("ddnm", "box:2", np.zeros((4, 5, 1))),
            {},
            r"y is what Box measures of \(8, 8, 1\), \(4, 4, 1\) or n of them",
        ),
        (("ddnm", "box:2", np.zeros((2, 4, 4, 1))), {"n": 3}, "y is one measurement for all of 3 samples, or one for"),
        (("ddnm", "box:2", np.full((4, 4, 1), np.nan)), {}, "y"),
        (("ddnm", "sensing:0.5", np.zeros(32, np.uint8)), {}, "CompressedSensing does not measure a picture here"),
        (("ddrm", "box:2", np.zeros((4, 4, 1))), {"sampler": "ddim"}, "DDRM is itself a sampler: leave sampler="),
        (("ddnm", "box:2", np.zeros((4, 4, 1))), {"noise": "loud"}, "noise is the deviation of a Gaussian, or"),
        (("ddnm", "box:2", np.zeros((4, 4, 1))), {"noise": -1.0}, "the noise's deviation is to be 0 or more"),
        (("ddnm", Box((4, 4, 1), 2), np.zeros((2, 2, 1))), {}, "the operator is of data"),
        (("dps", 3, np.zeros((4, 4, 1))), {}, "an operator is a name with its numbers, such as 'blur:3'"),
        ((3, "box:2", np.zeros((4, 4, 1))), {}, "a method is a name with its numbers, such as 'pigdm'"),
        (("pigdm", "phase:2", np.zeros((16, 16, 1))), {}, "PiGDM needs a linear operator"),
        (("psld", "box:2", np.zeros((4, 4, 1))), {}, "PSLD is for models in latents"),
        (("ddnm", "box:2", np.zeros((4, 4, 1))), {"ts": np.array([0.2, 0.9])}, "times are to fall from noise to data"),
    ],
)
def test_bad_input_is_one_line(arguments: Any, options: Any, message: str, model: Model) -> None:
    with pytest.raises(ValueError, match=message) as error:
        untyped(*arguments, model, **({} if "ts" in options else {"steps": 3}), **options)
    assert "\n" not in str(error.value)


def test_other_noises_and_operators_of_dps(model: Model) -> None:
    """Photons, JPEG and phases: finite, and nearer to the measurement than samples that know nothing of it."""
    for name, noise in (("blur:1", Poisson(20.0)), ("jpeg:20", Gaussian(0.0)), ("phase:2", Gaussian(0.05))):
        operator = parse_operator(name, (8, 8, 1))
        y = measure(operator, TRUTH, noise, jd.sample_keys(jax.random.key(5), 0, 4))
        found = [
            reconstruct(f"dps:{scale}", name, y, model, noise=noise, steps=8, grid="log_snr", decode=False)
            for scale in (0.0, 2.0)
        ]
        apart = [float(jnp.square(operator(jnp.asarray(each)) - y).mean()) for each in found]
        assert apart[1] < 0.7 * apart[0], (name, apart)


@pytest.mark.nightly
def test_a_model_in_latents_takes_operators_on_its_pictures() -> None:
    auto = Autoencoder(network())
    params, one = jax.jit(auto.init)(jax.random.key(0)), np.ones(2, np.float32)
    codec = LatentImages(params, 0 * one, one, Images((8, 8, 1)), net=auto, shape=(4, 4, 2))
    exact = jd.GaussianDenoiser(jd.VP(), 0.0, 1.0)
    prior = Model(jd.NetworkDenoiser(ExactNet(), exact, jd.VP(), jd.X0(time=ScaledTime(1.0))), codec)
    y = np.full((4, 4, 1), 100, np.uint8)
    options: dict[str, Any] = {"n": 2, "steps": 3, "grid": "log_snr"}
    found, plain = (reconstruct(name, "box:2", y, prior, **options)["x"] for name in ("psld", "psld:0,0"))
    assert found.shape == (2, 8, 8, 1) and found.dtype == np.uint8
    assert (plain != found).any()
    with pytest.raises(ValueError, match="PiGDM needs a linear operator, and Decoded is not"):
        reconstruct("pigdm", "box:2", y, prior, steps=3)
    assert operator_of(prior, on_latents := Box((4, 4, 2), 2)) is on_latents  # an operator on latents themselves
