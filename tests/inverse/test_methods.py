"""What each method does to a prediction and to a step, against its formula; limits in which one is another."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import jaxdiff as jd
from jaxdiff.guidance import apply
from jaxdiff.inverse import Gaussian, Poisson, Problem, measure
from jaxdiff.inverse.around import projected
from jaxdiff.inverse.dps import norm_gradient
from jaxdiff.inverse.operators import Box, Decoded, Differentiable, Mask
from jaxdiff.inverse.psld import glued
from jaxdiff.methods.inverse import METHODS, parse_method, parse_operator
from tests.inverse.exact_models import (
    MEAN,
    PROCESSES,
    ROWS,
    VARIANCE,
    drawn,
    problem_of,
    separable,
    step_of,
)

PROCESS = PROCESSES["vp"]
EXACT = jd.GaussianDenoiser(PROCESS, MEAN, VARIANCE**0.5)
Y = np.array([1.0, -0.5])
X = jax.random.normal(jax.random.key(0), (3, 4, 1, 1))
T, S = 0.5, 0.3


def predicted(method: str, problem: Problem, exact: Any, x: jax.Array, t: Any) -> jd.Prediction:
    """By the elements of a method."""
    elements, _ = parse_method(method).of(problem, exact.process, jd.DDIM(exact.process))
    return apply(elements, exact, exact.process, {})(x, jnp.asarray(t))


@pytest.mark.parametrize("name", ["mask:0.4", "box:2", "bicubic:2", "blur:0.7", "grey", "sensing:0.3", "jpeg:30"])
def test_ddnm_is_consistent_with_the_measurement(name: str) -> None:
    operator = parse_operator(name, (8, 8, 3))
    draws = jax.random.uniform(jax.random.key(1), (2, 2, 8, 8, 3), minval=-1.0)
    problem = Problem(operator, operator(draws[0]))
    found = predicted("ddnm", problem, jd.GaussianDenoiser(PROCESS, 0.0, 0.5), draws[1], jnp.array([0.2, 0.9]))
    atol = {"blur:0.7": 2e-3, "jpeg:30": 0.51}.get(name, 2e-5)
    np.testing.assert_allclose(operator(found.x0), problem.y, atol=atol)
    np.testing.assert_allclose(PROCESS.perturb(found.x0, found.eps, jnp.array([0.2, 0.9])), draws[1], atol=1e-5)


def test_ddnm_of_a_mask_is_replacement() -> None:
    hidden = jnp.array([1.0, 0, 0, 1]).reshape(1, 4, 1, 1)
    known = jnp.full((3, 4, 1, 1), 0.7)
    mask = Mask((4, 1, 1), 1 - hidden)
    found = predicted("ddnm", Problem(mask, known), EXACT, X, T)
    wanted = jd.inverse.KnownPart(EXACT, PROCESS, known, jnp.broadcast_to(hidden, known.shape))(X, T)
    np.testing.assert_allclose(found.x0, wanted.x0, atol=1e-6)
    np.testing.assert_allclose(found.eps, wanted.eps, atol=1e-5)


def test_diffpir_solves_its_least_squares() -> None:
    std, lam = 0.4, 3.0
    found = predicted(f"diffpir:{lam},0.3", problem_of(separable(), Y, std, 3), EXACT, X, T)
    rho = float(PROCESS.sigma(T) / PROCESS.alpha(T))
    weight = lam * std**2 / rho**2
    before = np.asarray(EXACT(X, T).x0).reshape(3, 4)
    stacked = np.concatenate([ROWS, weight**0.5 * np.eye(4)])
    wanted = [np.linalg.lstsq(stacked, np.concatenate([Y, weight**0.5 * each]), rcond=None)[0] for each in before]
    np.testing.assert_allclose(np.asarray(found.x0).reshape(3, 4), wanted, atol=1e-4)
    # without noise lambda does not matter, and zeta = 0 is DDIM's step
    one, other = (step_of(f"diffpir:{lam},0", problem_of(separable(), Y, 0.0, 3), EXACT, X, T, S) for lam in (1, 50))
    np.testing.assert_allclose(one, other, atol=1e-6)
    np.testing.assert_allclose(
        one, step_of("ddnm", problem_of(separable(), Y, 0.0, 3), EXACT, X, T, S, sampler="ddim"), atol=1e-5
    )


def test_reconstruction_guidance_is_its_gradient() -> None:
    """For Gaussian data J = alpha v/(alpha^2 v + sigma^2) I."""
    problem, weight = problem_of(separable(), Y, 0.0, 3), 1.5
    alpha, sigma = float(PROCESS.alpha(T)), float(PROCESS.sigma(T))
    jacobian = alpha * VARIANCE / (alpha**2 * VARIANCE + sigma**2)
    before = np.asarray(EXACT(X, T).x0).reshape(3, 4)
    wanted = before + weight * alpha * jacobian * (Y - before @ ROWS.T) @ ROWS
    found = predicted(f"reconstruction_guidance:{weight},replace=false", problem, EXACT, X, T).x0
    np.testing.assert_allclose(np.asarray(found).reshape(3, 4), wanted, atol=1e-5)
    plain, none = (predicted(name, problem, EXACT, X, T).x0 for name in ("ddnm", "reconstruction_guidance:0"))
    np.testing.assert_allclose(none, plain, atol=1e-6)


def test_dps_takes_the_gradient_of_each_samples_norm() -> None:
    problem, scale = problem_of(separable(), Y, 0.1, 3), 0.8
    alpha, sigma = float(PROCESS.alpha(T)), float(PROCESS.sigma(T))
    jacobian = alpha * VARIANCE / (alpha**2 * VARIANCE + sigma**2)
    residual = Y - np.asarray(EXACT(X, T).x0).reshape(3, 4) @ ROWS.T
    gradient = -jacobian * residual @ ROWS / np.linalg.norm(residual, axis=1, keepdims=True)
    for sampler in ("ddim", "ddpm", "heun"):
        plain = step_of("dps:0", problem, EXACT, X, T, S, sampler=sampler)
        found = step_of(f"dps:{scale}", problem, EXACT, X, T, S, sampler=sampler)
        np.testing.assert_allclose((found - plain).reshape(3, 4), -scale * gradient, atol=1e-5)
    solved = Problem(separable(), separable()(X))
    assert float(jnp.abs(norm_gradient(solved, X)).max()) == 0.0  # where there is no residual


@pytest.mark.parametrize("method", ["dps:0.8", "mcg:0.8", "psld:0.8,0.3"])
@pytest.mark.parametrize("name", ["flow", "ve"])
def test_a_gradient_step_is_the_same_at_the_same_noise(method: str, name: str) -> None:
    """x over sqrt(alpha^2 + sigma^2) goes the same way on every process, as it does without the gradient."""
    operator: Any = separable()
    if method.startswith("psld"):
        operator = Decoded((4, 4, 1), parse_operator("mask:0.5", (4, 4, 2)), Linearly())
    x = jax.random.normal(jax.random.key(0), (3, *operator.shape))
    problem = problem_of(operator, jnp.ones(operator.measured), 0.0, 3)
    process, found = PROCESSES[name], []
    for each in (PROCESS, process):
        t, s = (each.time_of_log_snr(PROCESS.log_snr(time)) for time in (T, S))
        units = [jnp.hypot(each.alpha(time), each.sigma(time)) for time in (t, s)]
        exact = jd.GaussianDenoiser(each, MEAN, VARIANCE**0.5)
        how = parse_method(method)
        elements, around = how.of(problem, each, jd.DDIM(each))
        noise = lambda t, s, salt=0: jnp.ones_like(x)  # noqa: E731
        stepped = around.step(apply(elements, exact, each, {}), noise, (), units[0] * x, t, s)[0]
        found.append(np.asarray(stepped / units[1]))
    np.testing.assert_allclose(found[1], found[0], rtol=2e-4, atol=2e-4)


def test_poisson_counts_weigh_the_residual() -> None:
    y, x0 = jnp.array([[1.0, -0.5, -1.0]]), jnp.array([[0.5, 0.5, 0.5]])
    problem = Problem(Mask((3,), jnp.ones(3)), y, Poisson(rate=8.0))
    residual, weight = np.array([-0.5, 1.0, 1.5]), np.array([1.0, 4.0, 8.0])  # 8/8, 8/2, 8/max(0, 1)
    wanted = weight * residual / np.sqrt((weight * residual**2).sum())
    np.testing.assert_allclose(norm_gradient(problem, x0)[0], wanted, rtol=1e-5)


def test_projection_and_the_methods_that_are_it() -> None:
    problem, z = problem_of(separable(), Y, 0.0, 3), jax.random.normal(jax.random.key(4), X.shape)
    found = projected(problem, PROCESS, X, jnp.asarray(S), z)
    wanted = PROCESS.alpha(S) * problem.y + PROCESS.sigma(S) * separable()(z)
    np.testing.assert_allclose(separable()(found), wanted, atol=1e-5)
    seen = separable().pinv(separable()(found - X))
    np.testing.assert_allclose(found - X, seen, atol=1e-5)  # the null space is left
    steps = [step_of(name, problem, EXACT, X, T, S) for name in ("mcg:0", "ilvr", "repaint:1")]
    np.testing.assert_allclose(steps[1], steps[0], atol=1e-5)
    np.testing.assert_allclose(steps[2], steps[0], atol=1e-5)
    plain = step_of("dps:0", problem, EXACT, X, T, S)
    np.testing.assert_array_equal(step_of("ilvr:inf", problem, EXACT, X, T, S), plain)
    assert float(jnp.abs(steps[1] - plain).max()) > 0.1


@pytest.mark.parametrize(
    ("method", "calls"), [("repaint:3,2", 6), ("ddnm_plus:1,2,2", 4), ("daps:solve=4", 4), ("dps:1", 1), ("ddrm", 1)]
)
def test_evaluations_are_as_many_as_are_said(method: str, calls: int) -> None:
    problem = problem_of(separable(), Y, 0.1, 3)
    counted: list[Any] = []

    class Counting:
        process = PROCESS

        def __call__(self, x: jax.Array, t: Any, cond: Any = None) -> jd.Prediction:
            jax.debug.callback(counted.append, jnp.zeros(()))
            return EXACT(x, t)

    jax.block_until_ready(step_of(method, problem, Counting(), X, T, S))
    jax.effects_barrier()
    assert len(counted) == calls


class Linearly:
    """A codec of latents: u = 2 z, and half of u back, with what is lost of odd channels."""

    def pixels(self, z: jax.Array) -> jax.Array:
        return jnp.concatenate([2 * z, 0 * z], axis=-1)

    def latents(self, u: jax.Array) -> jax.Array:
        return u[..., :1] / 2 + 0.1


def test_psld_is_dps_through_the_decoder_and_a_term_of_its_own() -> None:
    operator = Decoded((4, 4, 1), parse_operator("mask:0.5", (4, 4, 2)), Linearly())
    z0 = jax.random.normal(jax.random.key(7), (2, 4, 4, 1))
    problem = Problem(operator, jnp.ones((2, 4, 4, 2)))
    known = np.asarray(operator.of_pixels.known)[..., :1]  # type: ignore[attr-defined]
    residual = known * (1 - 2 * np.asarray(z0)), np.broadcast_to(known, z0.shape)  # of both channels
    first = np.sqrt(np.square(residual[0]).sum(axis=(1, 2, 3)) + np.square(residual[1]).sum(axis=(1, 2, 3)))
    apart = np.where(known > 0, np.asarray(z0) - 0.5, 0.0) - 0.1  # z0 - E(u)
    second = np.sqrt(np.square(apart).sum(axis=(1, 2, 3)))
    np.testing.assert_allclose(glued(problem, z0, 1.0, 0.0), first, rtol=1e-5)
    np.testing.assert_allclose(glued(problem, z0, 0.7, 0.2), 0.7 * first + 0.2 * second, rtol=1e-5)
    exact = jd.GaussianDenoiser(PROCESS, 0.0, 1.0)
    same = [step_of(name, problem, exact, z0, T, S) for name in ("psld:1,0", "dps:1")]
    np.testing.assert_allclose(same[0], same[1], atol=1e-5)
    assert float(jnp.abs(step_of("psld:1,1", problem, exact, z0, T, S) - same[0]).max()) > 1e-3


def test_noise_has_its_law() -> None:
    clean, y = jnp.array([[0.5, -0.2, 0.9]]), jnp.array([[0.4, 0.0, 1.0]])
    mask = Mask((3,), jnp.array([1, 1, 0]))
    found = Problem(mask, y, Gaussian(0.3)).log_likelihood(clean)
    np.testing.assert_allclose(found, scipy.stats.norm.logpdf([0.4, 0.0], [0.5, -0.2], 0.3).sum(), rtol=1e-5)
    counted = Problem(mask, y, Poisson(10.0)).log_likelihood(clean)
    np.testing.assert_allclose(counted, scipy.stats.poisson.logpmf([7, 5], [7.5, 4.0]).sum(), rtol=1e-4)
    keys = jd.sample_keys(jax.random.key(0), 0, 4000)
    many = jnp.broadcast_to(clean, (4000, 3))
    drawn_ = np.asarray(measure(mask, many, Poisson(10.0), keys))
    np.testing.assert_allclose(drawn_.mean(axis=0), [0.5, -0.2, 0.0], atol=0.03)
    np.testing.assert_allclose(drawn_.var(axis=0), [0.04 * 7.5, 0.04 * 4.0, 0.0], atol=0.02)  # (2/10)^2 mean
    part = measure(mask, many[:3], Gaussian(0.3), keys[2:5])
    np.testing.assert_array_equal(part, measure(mask, many, Gaussian(0.3), keys)[2:5])  # a sample's noise is its key's
    np.testing.assert_array_equal(measure(Box((2, 2, 1), 2), jnp.ones((1, 2, 2, 1))), 1.0)


@pytest.mark.parametrize(
    ("method", "operator", "noise", "message"),
    [
        ("pigdm", "phase:2", 0.0, "PiGDM needs a linear operator, and PhaseRetrieval is not: dps takes any"),
        ("ddnm", "phase:2", 0.0, "DDNM needs a pseudo-inverse, and PhaseRetrieval has none"),
        ("ddrm", "jpeg:10", 0.0, "DDRM needs the operator's singular values, and Quantise has none"),
        ("repaint", "jpeg:10", 0.0, "RePaint needs a linear operator, and Quantise is not"),
        ("psld", "box:2", 0.0, "PSLD is for models in latents, and this one is in pixels"),
        ("pigdm", "box:2", Poisson(4.0), "this method is for Gaussian noise, got Poisson: dps takes any"),
        ("ddrm", "box:2", Poisson(4.0), "this method is for Gaussian noise, got Poisson"),
        ("diffpir", "box:2", Poisson(4.0), "this method is for Gaussian noise, got Poisson"),
    ],
)
def test_what_a_method_cannot_take_is_refused_in_one_line(method: str, operator: str, noise: Any, message: str) -> None:
    made = parse_operator(operator, (8, 8, 1))
    law = Gaussian(noise) if isinstance(noise, float) else noise
    problem = Problem(made, jnp.zeros((1, *made.measured)), law)
    with pytest.raises(ValueError, match=message) as error:
        parse_method(method).of(problem, PROCESS, jd.DDIM(PROCESS))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pigmd", "there is no method of reconstruction 'pigmd'; did you mean 'pigdm'"),
        ("pigdm:0", "the data's variance is to be positive, got variance = 0"),
        ("ddrm:2", "eta and eta_b are to be from 0 to 1"),
        ("ddnm_plus:0", "eta is to be above 0 and at most 1"),
        ("dps:-1", "the scale of dps is to be 0 or more"),
        ("mcg:-1", "the scale of mcg is to be 0 or more"),
        ("repaint:0", "rounds of repaint are to be a whole number, 1 or more, got 0"),
        ("ilvr:-1", "low of ilvr is a sigma/alpha, 0 or more"),
        ("diffpir:0", "lam of diffpir is to be positive"),
        ("diffpir:1,2", "zeta is to be from 0 to 1"),
        ("daps:0", "solve of daps is a whole number, 1 or more, got 0"),
        ("daps:size=0", "size of daps is to be positive"),
        ("reconstruction_guidance:-1", "the weight of reconstruction guidance is to be 0 or more"),
        ("psld:-1", "the weights of psld are to be 0 or more"),
    ],
)
def test_numbers_out_of_range_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_method(text)


def test_samplers_with_steps_of_their_own_are_refused() -> None:
    problem = problem_of(separable(), Y, 0.0, 1)
    for name in ("dps", "mcg", "ilvr", "repaint"):
        with pytest.raises(ValueError, match=f"{name} acts after each step of a grid, and Adaptive chooses"):
            parse_method(name).of(problem, PROCESS, jd.Adaptive(PROCESS))


def test_every_row_is_a_method_and_its_parts_know_their_rows() -> None:
    """Rows of some samples are cut by what is one a sample, never by a length that is so by chance."""
    problem = Problem(separable(np.eye(4)), jnp.arange(16.0).reshape(4, 4, 1, 1))  # four samples, matrices of four
    for name, row in METHODS.items():
        if name == "psld":
            continue
        asked = dataclasses.replace(problem, noise=Gaussian(0.1)) if name == "tds" else problem
        elements, around = row().of(asked, PROCESS, jd.DDPM(PROCESS) if name == "tds" else jd.DDIM(PROCESS))
        parts: list[Any] = [*elements, around]
        cut = [part.rows(lambda leaf: leaf[:2]) for part in parts if hasattr(part, "rows")]
        leaves = jax.tree.leaves(cut, is_leaf=lambda each: isinstance(each, Problem))
        problems = [each for each in leaves if isinstance(each, Problem)]
        assert problems, name
        for mine in problems:
            operator: Any = mine.operator
            assert mine.y.shape[0] == 2 and operator.left[0].shape == (4, 4), name


def test_a_function_alone_goes_with_the_methods_that_need_no_more() -> None:
    square = Differentiable((4, 1, 1), lambda _, x: x * x)
    problem = Problem(square, jnp.full((2, 4, 1, 1), 0.25), Gaussian(0.05))
    ts = jd.log_snr_times(PROCESS, 24)
    errors = {}
    for name in ("dps:0", "dps:0.5", "daps:solve=2,steps=20", "reconstruction_guidance:4"):
        found = drawn(name, problem, EXACT, ts)
        errors[name] = float(np.abs(found**2 - 0.25).mean())
    assert max(each for name, each in errors.items() if name != "dps:0") < 0.7 * errors["dps:0"], errors
