"""Each objective against the Fisher divergence it stands for, expectations by quadrature in float64."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from jaxdiff import (
    SNR,
    VE,
    VP,
    CosineVP,
    DenoisingLoss,
    Flow,
    GaussianDenoiser,
    Likelihood,
    MixtureDenoiser,
    Process,
    ScaledTime,
    Score,
    Simple,
    SubVP,
    Uniform,
)
from jaxdiff.discrete import DiscreteVP, linear_betas
from jaxdiff.loss import Draws
from jaxdiff.score_matching import (
    FiniteDifference,
    FokkerPlanck,
    HighOrder,
    Implicit,
    LearnedHessian,
    SecondOrder,
    Sliced,
    score_fokker_planck,
)
from jaxdiff.score_matching.base import DirectedDraws
from jaxdiff.times import GeometricLevels, LikelihoodTime

MEANS, STDS, LOG_WEIGHTS = np.array([[-0.5, 0.2], [0.4, -0.3], [0.3, 0.7]]), np.array([0.3, 0.4, 0.25]), np.zeros(3)
T = 0.4
SCORE = Score(time=ScaledTime(1.0))  # the network sees t itself


def mixture(process: Process) -> MixtureDenoiser:
    return MixtureDenoiser(process, jnp.asarray(MEANS), jnp.asarray(STDS), jnp.asarray(LOG_WEIGHTS))


def field(x: Array) -> Array:
    """A smooth field that is no gradient."""
    return jnp.stack([jnp.sin(2 * x[:, 0]) + x[:, 1], jnp.cos(x[:, 0]) - 0.5 * x[:, 1] ** 2], axis=1)


@dataclasses.dataclass(frozen=True)
class Shifted:
    """A network that returns the true score, and ``params`` times a field."""

    exact: Any
    field: Callable[[Array], Array] = field
    cond: ClassVar[dict[str, Any]] = {}

    def apply(self, params: Any, x: Array, t: Array, cond: Any = None, *, key: Any = None) -> Array:
        return self.exact(x, t).score(self.exact.process, t) + params * self.field(x)


def on_a_grid(exact: MixtureDenoiser, half: float = 8.0, side: int = 121) -> tuple[Draws, Array]:
    """Draws whose x_T are a grid and whose weights are p_T there: their sum is the expectation, as exact as the
    trapezoid rule of a function that vanishes at the ends. Also the grid."""
    place = jnp.linspace(-half, half, side)
    x = jnp.stack(jnp.meshgrid(place, place), axis=-1).reshape(-1, 2)
    t = jnp.full(len(x), T)
    weight = jnp.exp(exact.log_density(x, t)) * (place[1] - place[0]) ** 2
    return Draws(x / exact.process.alpha(T), jnp.zeros_like(x), t, weight, {}), x


def with_directions(draws: Draws, v: Array) -> DirectedDraws:
    directions = jnp.broadcast_to(v[None], (len(draws.t), *v.shape))
    return DirectedDraws(draws.x0, draws.eps, draws.t, draws.weight, draws.cond, directions=directions)


# The mean over these is that over the distribution: all signs, and Gauss-Hermite nodes, exact to the fifth power.
SIGNS = np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
OBJECTIVES = {
    "implicit": Implicit(VP(), SCORE),
    "sliced": Sliced(VP(), SCORE, projections=4),
    "sliced_vr": Sliced(VP(), SCORE, projections=4, variance_reduced=True),
    "ve": Implicit(VE(sigma_min=0.1, sigma_max=2.0), SCORE, Likelihood()),
    "simple": Sliced(CosineVP(), SCORE, Simple(), projections=4, variance_reduced=True),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objective_is_fisher_up_to_a_constant(name: str) -> None:
    """Its slope at the true score vanishes along any field, and away from it it grows by w |field|^2."""
    with jax.enable_x64(True):
        loss = OBJECTIVES[name]
        exact = mixture(loss.process)
        plain, x = on_a_grid(exact)
        draws = with_directions(plain, jnp.asarray(SIGNS))
        assert abs(float(plain.weight.sum()) - 1.0) < 1e-9

        @jax.jit
        def total(size: Array) -> Array:
            return loss.terms(Shifted(exact), size, draws).loss.sum()

        expected = (loss.weight.on_target(loss.process, SCORE, T) * plain.weight * (field(x) ** 2).mean(axis=1)).sum()
        slope = jax.grad(total)(0.0)
        assert abs(slope) < 1e-7 * expected
        assert total(0.3) - total(0.0) == pytest.approx(0.09 * float(expected), rel=1e-7)


def test_the_weight_on_the_score() -> None:
    with jax.enable_x64(True):
        for process in (VP(), VE(), SubVP(), Flow()):
            sigma2, diffusion = process.sigma(T) ** 2, process.diffusion_squared(T)
            assert SNR().on_target(process, SCORE, T) == pytest.approx(float(sigma2), rel=1e-9)
            assert Likelihood().on_target(process, SCORE, T) == pytest.approx(float(diffusion) / 2, rel=1e-9)


def test_directions_of_both_kinds_are_white() -> None:
    batch = {"x": jnp.zeros((4000, 2))}
    for distribution in ("rademacher", "gaussian"):
        loss = Sliced(VP(), SCORE, projections=3, distribution=distribution)
        v = loss.draw(jax.random.key(0), batch).directions
        assert v.shape == (4000, 3, 2)
        flat = v.reshape(-1, 2)
        assert np.allclose(flat.T @ flat / len(flat), np.eye(2), atol=0.06)
        assert abs(float((v[:, 0] * v[:, 1]).mean())) < 0.06  # directions of a sample differ
        assert bool((jnp.abs(v) == 1).all()) == (distribution == "rademacher")


def test_finite_differences_approach_the_slices_to_second_order() -> None:
    with jax.enable_x64(True):
        exact = mixture(VP())
        draws = with_directions(on_a_grid(exact)[0], jnp.asarray(SIGNS))

        @functools.partial(jax.jit, static_argnames="reduced")
        def total(step: Any, size: Array, reduced: bool) -> Array:
            parts: dict[str, Any] = {"projections": 4, "variance_reduced": reduced}
            loss = Sliced(VP(), SCORE, **parts) if step is None else FiniteDifference(VP(), SCORE, **parts, step=step)
            return loss.terms(Shifted(exact), size, draws).loss.sum()

        for reduced in (False, True):
            for size in (0.0, 0.3):
                sliced = total(None, size, reduced)
                coarse, fine = (total(step, size, reduced) - sliced for step in (0.1, 0.05))
                assert coarse / fine == pytest.approx(4.0, rel=0.08)
        # and so does where its slope vanishes
        slopes = [jax.grad(total, argnums=1)(step, 0.0, False) for step in (0.1, 0.05)]
        assert slopes[0] / slopes[1] == pytest.approx(4.0, rel=0.08) and abs(slopes[1]) < 0.02


# --- Second order


def gaussian_draws(process: Process, std: float, order: int = 5) -> tuple[Draws, Array]:
    """Draws whose weighted sum is the expectation over x0 ~ N(0, std^2 I) and eps of any polynomial of degree below
    2 order, by Gauss-Hermite quadrature; and their x."""
    node, weight = np.polynomial.hermite_e.hermegauss(order)
    z = np.stack(np.meshgrid(*[node] * 4, indexing="ij"), axis=-1).reshape(-1, 4)
    p = np.prod(np.stack(np.meshgrid(*[weight / weight.sum()] * 4, indexing="ij"), axis=-1).reshape(-1, 4), axis=1)
    x0, eps = jnp.asarray(std * z[:, :2]), jnp.asarray(z[:, 2:])
    t = jnp.full(len(z), T)
    return Draws(x0, eps, t, jnp.asarray(p), {}), process.perturb(x0, eps, t)


@dataclasses.dataclass(frozen=True)
class Outputs:
    """The true score of a Gaussian, moved by a field, and the parts of a Hessian, constant in x."""

    exact: Any
    moved: float = 0.0
    cond: ClassVar[dict[str, Any]] = {}

    def apply(self, params: Any, x: Array, t: Array, cond: Any = None, *, key: Any = None) -> Array:
        score = self.exact(x, t).score(self.exact.process, t) + self.moved * jnp.flip(x, axis=1)
        return jnp.concatenate([score, *(jnp.broadcast_to(part[None], x.shape) for part in params)], axis=1)


def test_second_order_recovers_the_hessian_of_a_gaussian() -> None:
    """The Hessian is -1/n^2: the objective's slope in the outputs vanishes there and only there, and around it the
    objective grows by the squared Frobenius norm of the error in sigma^2 H."""
    with jax.enable_x64(True):
        process, std = VP(), 0.7
        head = LearnedHessian(SCORE, rank=1)
        exact = GaussianDenoiser(process, 0.0, std)
        draws, x = gaussian_draws(process, std)
        sigma2 = process.sigma(T) ** 2
        n2 = process.alpha(T) ** 2 * std**2 + sigma2
        loss = SecondOrder(process, head, factor=3.0)

        def total(params: Any) -> Array:
            return loss.terms(Outputs(exact), params, draws).loss.sum()

        true = (jnp.full(2, -sigma2 / n2), jnp.zeros(2))
        at_truth, slope = jax.jit(jax.value_and_grad(total))(true)
        assert max(float(jnp.abs(part).max()) for part in slope) < 1e-12
        hessian = head.hessian(process, jnp.full(1, T), Outputs(exact).apply(true, x[:1], jnp.full(1, T)))
        assert np.allclose(hessian[0], -np.eye(2) / n2, rtol=1e-12)
        other = (true[0] + jnp.array([0.3, -0.1]), jnp.array([0.2, 0.5]))
        error = jnp.diag(other[0] - true[0]) + jnp.outer(other[1], other[1])
        assert total(other) - at_truth == pytest.approx(3.0 * float((error**2).sum()) / 4, rel=1e-10)


def test_the_hessians_part_does_not_move_the_score() -> None:
    """As an output its gradient in the score is none; as a Jacobian, its target is held."""
    with jax.enable_x64(True):
        draws, _ = gaussian_draws(VP(), 0.7)
        outputs = Outputs(GaussianDenoiser(VP(), 0.0, 0.7), moved=0.3)

        def total(factor: float, add: Array) -> Array:
            def apply(params: Any, x: Array, t: Array, cond: Any = None, *, key: Any = None) -> Array:
                return outputs.apply((jnp.ones(2), jnp.ones(2)), x, t) + add[None]

            net = type("Net", (), {"apply": staticmethod(apply)})()
            loss = SecondOrder(VP(), LearnedHessian(SCORE, rank=1), factor=factor)
            return loss.terms(net, (), draws).loss.sum()

        at = jnp.array([0.1, 0.2, 0.0, 0.0, 0.0, 0.0])
        with_part, without = jax.grad(total, argnums=1)(1.0, at), jax.grad(total, argnums=1)(0.0, at)
        assert np.allclose(with_part[:2], without[:2], rtol=1e-12) and bool((with_part[2:] != 0).all())


def test_square_norm_is_that_of_the_matrix_written_out() -> None:
    with jax.enable_x64(True):
        head = LearnedHessian(SCORE, rank=2)
        rng = np.random.default_rng(0)
        output, eps, x0 = (jnp.asarray(rng.standard_normal((5, n))) for n in (12, 3, 3))
        draws = Draws(x0, eps, jnp.full(5, T), jnp.ones(5), {})
        net = type("Net", (), {"apply": staticmethod(lambda *_, **__: output)})()
        terms = SecondOrder(VP(), head).terms(net, (), draws)
        sigma = VP().sigma(T)
        s = output[:, :3]
        matrix = sigma**2 * (head.hessian(VP(), draws.t, output) + jnp.einsum("bi,bj->bij", s, s))
        matrix = matrix + jnp.eye(3)[None] - jnp.einsum("bi,bj->bij", eps, eps)
        expected = ((sigma * s + eps) ** 2).mean(axis=1) + (matrix**2).mean(axis=(1, 2))
        assert np.allclose(terms.loss, expected, rtol=1e-10)


@pytest.mark.parametrize("projections", [0, 4])
def test_high_order_is_least_at_the_true_score(projections: int) -> None:
    """With a linear field on a Gaussian: the Jacobian's part alone has its slope vanish at the true score, and grows by
    the error of the Jacobian and the square of that of the score (Lu et al. 2022)."""
    with jax.enable_x64(True):
        process, std = VP(), 0.7
        exact = GaussianDenoiser(process, 0.0, std)
        draws, x = gaussian_draws(process, std)
        matrix = jnp.array([[0.4, -0.7], [0.2, 0.1]])
        net = Shifted(exact, lambda x: x @ matrix.T)
        directed = with_directions(draws, jnp.asarray(SIGNS)) if projections else draws

        @jax.jit
        def part(size: Array) -> Array:
            one, none = (HighOrder(process, SCORE, factor=f, projections=projections) for f in (1.0, 0.0))
            return (one.terms(net, size, directed).loss - none.terms(net, size, directed).loss).sum()

        assert abs(jax.grad(part)(0.0)) < 1e-12
        sigma, size = process.sigma(T), 0.2
        d = sigma * size * (x @ matrix.T)  # the error of sigma s
        error = (sigma**2 * size * matrix)[None] - jnp.einsum("bi,bj->bij", d, d)
        # E[l l^T | x] = sigma^2 H + I + d d^T, and the variance of l l^T grows with d too: 2-D moments of eps | x
        shift = exact(x, draws.t).eps
        spread = draws.eps - shift
        ll = jnp.einsum("bi,bj->bij", d + spread, d + spread)
        total = (sigma**2 * (size * matrix) + sigma**2 * -jnp.eye(2) / _total(process, std) + jnp.eye(2))[None] - ll
        expected = (draws.weight * (total**2).mean(axis=(1, 2))).sum()
        assert part(size) == pytest.approx(float(expected), rel=1e-10)
        assert float((draws.weight * (error**2).mean(axis=(1, 2))).sum()) > 0


def _total(process: Process, std: float) -> Array:
    return process.alpha(T) ** 2 * std**2 + process.sigma(T) ** 2


def test_second_order_needs_its_outputs() -> None:
    with pytest.raises(ValueError, match="HighOrder learns"):
        SecondOrder(VP(), SCORE)  # type: ignore[arg-type]
    draws = Draws(jnp.zeros((1, 2)), jnp.zeros((1, 2)), jnp.full(1, T), jnp.ones(1), {})
    net = type("Net", (), {"apply": staticmethod(lambda *_, **__: jnp.zeros((1, 4)))})()
    with pytest.raises(ValueError, match="needs a network of 6 output channels"):
        SecondOrder(VP(), LearnedHessian(SCORE)).terms(net, (), draws)
    with pytest.raises(ValueError, match="projections is at least 1"):
        Sliced(VP(), SCORE, projections=0)
    with pytest.raises(ValueError, match="rademacher"):
        Sliced(VP(), SCORE, distribution="uniform")  # type: ignore[arg-type]


# --- The score Fokker-Planck equation


@pytest.mark.parametrize("process", [VP(), SubVP(), CosineVP(), VE(), Flow()], ids=lambda p: type(p).__name__)
def test_fokker_planck_holds_for_the_true_score_alone(process: Process) -> None:
    with jax.enable_x64(True):
        exact = mixture(process)
        x = jnp.asarray(np.random.default_rng(0).standard_normal((16, 2)))
        t = jnp.linspace(0.2, 0.8, 16)

        @jax.jit
        def residual(size: Array) -> Array:
            net = Shifted(exact)
            return score_fokker_planck(process, lambda x, t: net.apply(size, x, t), x, t)

        scale = float(jnp.abs(jax.jvp(lambda t: exact(x, t).score(process, t), (t,), (jnp.ones(16),))[1]).max())
        assert float(jnp.abs(residual(0.0)).max()) < 1e-10 * scale
        assert float(jnp.abs(residual(0.1)).max()) > 1e-3 * scale


def test_hutchinsons_residual_is_right_on_average() -> None:
    with jax.enable_x64(True):
        net = Shifted(mixture(VP()))
        x, t = jnp.array([[0.3, -0.2], [1.0, 0.5]]), jnp.array([0.3, 0.6])

        @jax.jit
        def residuals() -> list[Array]:
            v = jnp.broadcast_to(jnp.asarray(SIGNS)[:, None], (4, 2, 2))
            return [score_fokker_planck(VP(), functools.partial(net.apply, 0.2), x, t, v) for v in (None, v, v[:1])]

        exact, mean, one = residuals()
        assert np.allclose(mean, exact, rtol=1e-10)
        assert not np.allclose(one, exact, rtol=1e-3)


@pytest.mark.parametrize("projections", [0, 2])
def test_regulariser_adds_to_any_objective(projections: int) -> None:
    with jax.enable_x64(True):
        key, net = jax.random.key(0), Shifted(mixture(VP()))
        batch = {"x": jax.random.normal(key, (8, 2))}
        base = Sliced(VP(), SCORE)
        loss = FokkerPlanck(base, 2.0, projections)
        draws = jax.jit(loss.draw)(key, batch, loss.init())
        assert bool((draws.t == base.draw(key, batch).t).all())

        @jax.jit
        def added(size: Array) -> Array:
            return loss.terms(net, size, draws).loss - base.terms(net, size, draws.draws).loss

        assert bool((added(0.1) > 0).all())
        assert projections or float(jnp.abs(added(0.0)).max()) < 1e-12
        assert loss.update((), draws, None) == ()  # type: ignore[arg-type]


# --- Times


def test_geometric_levels() -> None:
    process = VE(sigma_min=0.01, sigma_max=10.0)
    t = GeometricLevels(levels=4).draw(process, jax.random.key(0), 4000)
    level, count = np.unique(np.round(np.log10(np.asarray(process.sigma(t))), 3), return_counts=True)
    assert np.allclose(level, [-2, -1, 0, 1], atol=1e-3) and count.min() > 900
    with pytest.raises(ValueError, match="at least 2"):
        GeometricLevels(levels=1)
    chain = GeometricLevels(levels=5).draw(DiscreteVP(linear_betas(1000)), jax.random.key(0), 100)
    assert np.allclose(np.asarray(chain) * 1000, np.round(np.asarray(chain) * 1000), atol=1e-3)


@pytest.mark.parametrize("process", [VP(), VE(), SubVP()], ids=lambda p: type(p).__name__)
def test_likelihood_time_is_unbiased_and_has_no_variance_where_it_should(process: Process) -> None:
    with jax.enable_x64(True):
        time = LikelihoodTime(t_min=0.01)
        t, weight = time.sample(process, (), jax.random.key(0), 200_000)
        assert float(t.min()) >= 0.01 - 1e-9 and float(t.max()) <= 1.0
        # weight times g^2/sigma^2 is constant: the mean of g^2/sigma^2 over uniform times
        constant = np.asarray(weight * process.diffusion_squared(t) / process.sigma(t) ** 2)
        assert np.allclose(constant, constant[0], rtol=1e-9)
        middle = 0.01 + 0.99 * (jnp.arange(20_000) + 0.5) / 20_000
        exact = (process.diffusion_squared(middle) / process.sigma(middle) ** 2).mean()
        assert constant[0] == pytest.approx(float(exact), rel=1e-3)
        values = weight * (1.0 + jnp.sin(3 * t))
        error = float(values.std() / jnp.sqrt(len(t)))
        assert abs(float(values.mean() - (1.0 + jnp.sin(3 * middle)).mean())) < 4 * error + 1e-4
    with pytest.raises(ValueError, match="LossSecondMoment"):
        time.sample(DiscreteVP(linear_betas(1000)), (), jax.random.key(0), 4)


def test_likelihood_weight_with_its_time_is_unbiased() -> None:
    """The loss with g^2/2 is the same under both densities of time, with less variance under its own."""
    process = VP()
    exact = mixture(process)
    x0 = exact.sample_data(jax.random.key(1), 50_000)
    means, errors = [], []
    for time in (Uniform(0.01), LikelihoodTime(0.01)):
        loss = DenoisingLoss(process, SCORE, Likelihood(), time)
        values = jax.jit(lambda loss: loss.terms(Shifted(exact), 0.0, loss.draw(jax.random.key(0), {"x": x0})).loss)(
            loss
        )
        means.append(float(values.mean()))
        errors.append(float(values.std()) / np.sqrt(len(x0)))
    assert abs(means[0] - means[1]) < 4 * np.hypot(*errors)
    assert errors[1] < 0.5 * errors[0]
