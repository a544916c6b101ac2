"""The denoising loss: weights mean one thing under every target; importance sampling and learned variance are exact."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import kstest, norm

import jaxdiff as jd
from jaxdiff.broadcast import mean_features
from jaxdiff.times import Terms
from jaxdiff.variational import discretised_log_likelihood, gaussian_kl, learned_log_variance, vlb_term
from tests.tables import PARAMETERIZATIONS, PROCESSES, gaussian

WEIGHTS: dict[str, jd.Weight] = {
    "SNR": jd.SNR(),
    "MinSNR": jd.MinSNR(5.0),
    "P2": jd.P2(1.0, 1.0),
    "Likelihood": jd.Likelihood(),
    "Karras": jd.KarrasWeight(0.5),
    "Sigmoid": jd.Sigmoid(-1.0),
}


class Linear:
    """A network of two numbers: params[0] x + params[1]."""

    cond: ClassVar[dict[str, Any]] = {}

    def apply(self, params: Any, x: jax.Array, t: jax.Array, cond: Any = None, *, key: Any = None) -> jax.Array:
        return params[0] * x + params[1]


class Constant:
    """A network whose output is its parameters."""

    cond: ClassVar[dict[str, Any]] = {}

    def apply(self, params: Any, x: jax.Array, t: jax.Array, cond: Any = None, *, key: Any = None) -> jax.Array:
        return params


@pytest.mark.parametrize("weight", sorted(WEIGHTS))
@pytest.mark.parametrize("process_name", ["VP", "SubVP", "VE", "KarrasVE", "Flow", "CosineVP"])
def test_a_weight_is_the_same_objective_under_every_target(process_name: str, weight: str) -> None:
    """A prediction off by a given error in x0 has the same loss whatever the network's own target."""
    with jax.enable_x64(True):
        process = PROCESSES[process_name]()
        x0 = jax.random.uniform(jax.random.key(0), (6, 4), minval=-1, maxval=1)
        eps, error = jax.random.normal(jax.random.key(1), (2, 6, 4))
        t = jd.log_snr_times(process, 8)[1:7]
        x = process.perturb(x0, eps, t)
        wrong = jd.prediction.from_x0(process, x, t, x0 + 0.1 * error)
        expected = WEIGHTS[weight].on_x0(process, t) * mean_features(jnp.square(0.1 * error))
        for name, parameterization in PARAMETERIZATIONS.items():
            output = parameterization.target(process, wrong.x0, wrong.eps, t)
            draws = jd.loss.Draws(x0, eps, t, jnp.ones(6), {})
            loss = jd.DenoisingLoss(process, parameterization, WEIGHTS[weight])
            np.testing.assert_allclose(loss.terms(Constant(), output, draws).loss, expected, rtol=1e-8, err_msg=name)


def test_weights_are_the_papers() -> None:
    process, t = jd.VP(), jnp.linspace(0.01, 0.99, 30)
    snr, eps, v, x0 = jnp.exp(process.log_snr(t)), jd.Eps(), jd.V(), jd.X0()
    np.testing.assert_allclose(jd.SNR().on_target(process, eps, t), 1, rtol=1e-4)
    np.testing.assert_allclose(jd.MinSNR(5.0).on_target(process, eps, t), np.minimum(snr, 5) / snr, rtol=1e-4)
    np.testing.assert_allclose(jd.MinSNR(5.0).on_target(process, v, t), np.minimum(snr, 5) / (snr + 1), rtol=1e-4)
    np.testing.assert_allclose(jd.MinSNR(5.0).on_target(process, x0, t), np.minimum(snr, 5), rtol=1e-4)
    np.testing.assert_allclose(jd.P2(1.0, 1.0).on_target(process, eps, t), 1 / (1 + snr), rtol=1e-4)
    # g^2 on the score is beta/(2 sigma^2) on eps, up to the 1/2 of the bound
    beta = process.diffusion_squared(t)
    np.testing.assert_allclose(
        jd.Likelihood().on_target(process, eps, t), 0.5 * beta / process.sigma(t) ** 2, rtol=1e-4
    )
    np.testing.assert_allclose(jd.KarrasWeight(0.5).on_target(jd.KarrasVE(), jd.Karras(0.5), t), 1, rtol=1e-4)
    for parameterization in PARAMETERIZATIONS.values():
        np.testing.assert_array_equal(jd.Simple().on_target(process, parameterization, t), np.ones(30))
    with jax.enable_x64(True):
        t = jnp.linspace(0.05, 0.95, 9)
        slope = jax.vmap(jax.grad(lambda t: jnp.exp(process.log_snr(t))))(t)
        np.testing.assert_allclose(jd.Likelihood().on_x0(process, t), -0.5 * slope, rtol=1e-9)


def test_the_loss_of_a_perfect_network_is_the_irreducible_one() -> None:
    """On Gaussian data the least error in eps is known: E|eps - E[eps|x]|^2 = alpha^2 s^2/(alpha^2 s^2 + sigma^2)."""
    process = jd.VP()
    exact = gaussian(process)

    class Exact:
        cond: ClassVar[dict[str, Any]] = {}

        def apply(self, params: Any, x: jax.Array, t: jax.Array, cond: Any = None, *, key: Any = None) -> jax.Array:
            return exact(x, t / 1000).eps

    x0 = jnp.asarray(exact.mean)[None] + jnp.asarray(exact.std)[None] * jax.random.normal(
        jax.random.key(0), (40_000, 2)
    )
    loss = jd.DenoisingLoss(process, jd.Eps(), time=jd.Uniform(0.5, 0.5))
    terms = loss.terms(Exact(), (), loss.draw(jax.random.key(1), {"x": x0}))
    signal = jnp.square(process.alpha(0.5) * exact.std)
    expected = (signal / (signal + jnp.square(process.sigma(0.5)))).mean()
    np.testing.assert_allclose(terms.loss.mean(), expected, rtol=0.02)
    np.testing.assert_allclose(terms.mse, terms.loss)
    expected_score = (1 / (signal + jnp.square(process.sigma(0.5)))).sum()
    np.testing.assert_allclose(terms.score_norm2.mean(), expected_score, rtol=0.02)


TIMES: dict[str, jd.TrainingTime] = {
    "Uniform": jd.Uniform(),
    "Stratified": jd.Stratified(),
    "LogitNormal": jd.LogitNormal(),
    "LogNormalSigma": jd.LogNormalSigma(),
    "UniformLogSNR": jd.UniformLogSNR(),
    "LossSecondMoment": jd.LossSecondMoment(20),
    "ScoreNorm": jd.ScoreNorm(20),
}


@pytest.mark.parametrize("name", sorted(TIMES))
@pytest.mark.parametrize("process_name", sorted(PROCESSES))
def test_times_are_in_range_and_on_the_chain(process_name: str, name: str) -> None:
    process, time = PROCESSES[process_name](), TIMES[name]
    t, weight = jax.jit(lambda key: time.sample(process, time.init(), key, 500))(jax.random.key(0))
    assert t.shape == weight.shape == (500,)
    assert (t >= process.min_time() * (1 - 1e-6)).all() and (t <= 1).all()
    np.testing.assert_allclose(weight, 1, rtol=1e-5)
    if process.steps is not None:
        np.testing.assert_allclose(t * 1000, np.round(t * 1000), atol=1e-3)


def test_times_have_their_distributions() -> None:
    key, n = jax.random.key(3), 4000
    flow, edm = jd.Flow(), jd.KarrasVE()
    draw = lambda time, process: np.asarray(time.sample(process, time.init(), key, n)[0])  # noqa: E731
    assert kstest(draw(jd.Uniform(0.1, 0.9), flow), "uniform", (0.1, 0.8)).pvalue > 0.01
    strata = np.sort(draw(jd.Stratified(0.0, 1.0), flow)) * n
    assert (np.diff(strata) > 0.9).all()  # one in each n-th
    t = draw(jd.LogitNormal(0.3, 0.8), flow)
    assert kstest(np.log(t / (1 - t)), norm(0.3, 0.8).cdf).pvalue > 0.01
    sigmas = edm.sigma(draw(jd.LogNormalSigma(-1.2, 1.2), edm))
    assert kstest(np.log(sigmas), norm(-1.2, 1.2).cdf).pvalue > 0.01
    levels = np.asarray(jd.VP().log_snr(draw(jd.UniformLogSNR(-8.0, 8.0), jd.VP())))
    assert kstest(levels, "uniform", (-8, 16)).pvalue > 0.01
    chain = PROCESSES["DiscreteVP_linear"]()
    k = np.round(draw(jd.Uniform(), chain) * 1000)
    assert k.min() >= 1 and k.max() == 1000 and kstest((k - 0.5) / 1000, "uniform").pvalue > 0.01


def trained_history(time: Any, process: jd.Process, rounds: int = 60) -> Any:
    """A history that has seen losses and score norms that grow towards t = 0."""
    history = time.init()
    for i in range(rounds):
        t, weight = time.sample(process, history, jax.random.key(100 + i), 256)
        loss = 1 / (0.05 + t)
        history = time.update(process, history, t, weight, Terms(loss * weight, loss, jnp.square(loss)))
    return history


@pytest.mark.parametrize("process_name", ["VP", "DiscreteVP_linear", "KarrasVE"])
@pytest.mark.parametrize("time", [jd.LossSecondMoment(20), jd.ScoreNorm(20)], ids=["LossSecondMoment", "ScoreNorm"])
def test_importance_sampling_leaves_the_expected_gradient_unchanged(time: Any, process_name: str) -> None:
    """E[grad(loss)/p] under the learned density equals the uniform one's, and single losses are less spread."""
    process = PROCESSES[process_name]()
    history = trained_history(time, process)
    probabilities = time.probabilities(history)
    assert float(probabilities.max() / probabilities.min()) > 3  # it has learned
    np.testing.assert_allclose(probabilities.sum(), 1, rtol=1e-5)

    def gradient(sampler: Any, history: Any) -> tuple[np.ndarray, np.ndarray]:
        t, weight = sampler.sample(process, history, jax.random.key(0), 200_000)
        # of (theta + f(t))^2/2 at theta = 0, f as the losses
        values = np.asarray(weight / (0.05 + t), np.float64)
        return values.mean(), values.std()

    mean, spread = gradient(jd.Uniform(), ())
    learned_mean, learned_spread = gradient(time, history)
    assert learned_mean == pytest.approx(mean, abs=5 * spread / np.sqrt(200_000))
    if isinstance(time, jd.LossSecondMoment):
        assert learned_spread < 0.3 * spread


def test_importance_sampling_gradients_through_the_whole_loss() -> None:
    """As above for parameters of a network, by the loss itself: equal within the standard error."""
    process, batch = jd.VP(), {"x": jnp.full((4096, 3), 0.3)}
    time = jd.ScoreNorm(10)
    params = jnp.array([0.4, 0.1])

    def gradients(time: jd.TrainingTime, history: Any) -> np.ndarray:
        loss = jd.DenoisingLoss(process, jd.V(), time=time)

        @jax.jit
        def one(key: jax.Array) -> jax.Array:
            draws = loss.draw(key, batch, history)
            return jax.grad(lambda params: loss.terms(Linear(), params, draws).loss.mean())(params)

        return np.stack([one(key) for key in jax.random.split(jax.random.key(5), 60)])

    plain, weighted = gradients(jd.Uniform(), ()), gradients(time, trained_history(time, process))
    error = np.sqrt(plain.var(0) / 60 + weighted.var(0) / 60)
    assert (np.abs(plain.mean(0) - weighted.mean(0)) < 4 * error).all()
    assert (error < 0.02 * np.abs(plain.mean(0)).max()).all()


def test_loss_history_is_the_last_losses_in_order() -> None:
    """The vectorised ring buffer against appending one loss after the other."""
    process, time = jd.Flow(), jd.LossSecondMoment(4, length=3)
    history = time.init()
    plain: list[list[float]] = [[] for _ in range(4)]
    for i in range(6):
        t = jax.random.uniform(jax.random.key(i), (9,), minval=0.02, maxval=1.0)
        loss = jax.random.uniform(jax.random.key(50 + i), (9,))
        loss = loss.at[2].set(jnp.nan)  # a broken sample is not remembered
        weight = jnp.full(9, 2.0)
        history = time.update(process, history, t, weight, Terms(loss * weight, loss, loss))
        for where, value in zip(time.bin_of(process, t), loss, strict=True):
            if np.isfinite(value):
                plain[int(where)].append(float(value))
    for row, seen, kept in zip(history.losses, history.seen, plain, strict=True):
        assert int(seen) == len(kept)
        np.testing.assert_allclose(np.sort(row)[-len(kept[-3:]) :], np.sort(kept[-3:]), rtol=1e-6)


def test_score_norm_history_is_the_running_mean() -> None:
    process, time = jd.Flow(), jd.ScoreNorm(2, horizon=1e9)
    history, all_t, all_norms = time.init(), [], []
    for i in range(5):
        t = jax.random.uniform(jax.random.key(i), (8,), minval=0.01, maxval=1.0)
        norms = 1 / t
        history = time.update(process, history, t, jnp.ones(8), Terms(t, t, norms))
        all_t.append(t)
        all_norms.append(norms)
    where, norms = time.bin_of(process, jnp.concatenate(all_t)), jnp.concatenate(all_norms)
    for b in range(2):
        np.testing.assert_allclose(history.mean[b], norms[where == b].mean(), rtol=1e-5)
        assert int(history.seen[b]) == int((where == b).sum())


def test_denoising_loss_is_one_number_a_sample() -> None:
    losses = jd.denoising_loss(
        Linear(),
        jnp.array([0.5, 0.0]),
        jax.random.key(0),
        {"x": jnp.ones((5, 4, 4, 1))},
        process=jd.CosineVP(),
        parameterization=jd.V(),
        weight=jd.MinSNR(),
    )
    assert losses.shape == (5,) and (losses > 0).all()


def test_draws_split_into_micro_batches() -> None:
    loss = jd.DenoisingLoss(jd.VP(), jd.Eps())
    draws = loss.draw(jax.random.key(0), {"x": jnp.ones((8, 3)), "label": jnp.arange(8)})
    whole = loss.terms(Linear(), jnp.array([0.5, 0.1]), draws).loss
    parts = [
        loss.terms(Linear(), jnp.array([0.5, 0.1]), jax.tree.map(lambda leaf, i=i: leaf[i : i + 2], draws)).loss
        for i in range(0, 8, 2)
    ]
    np.testing.assert_allclose(jnp.concatenate(parts), whole, rtol=1e-6)


# The learned variance and the variational bound


def test_gaussian_kl_and_decoder_against_scipy() -> None:
    m1, l1, m2, l2 = 0.3, np.log(0.2), -0.1, np.log(0.5)
    expected = 0.5 * (l2 - l1 + (0.2 + 0.16) / 0.5 - 1)
    assert float(gaussian_kl(*map(jnp.asarray, (m1, l1, m2, l2)))) == pytest.approx(expected, rel=1e-6)
    x = np.linspace(-1, 1, 256)
    for mean, std in ((0.0, 0.5), (-0.999, 0.01), (1.0, 0.003), (0.3, 0.002)):
        edges = np.concatenate([[-np.inf], (x[1:] + x[:-1]) / 2, [np.inf]])
        # the mass of an interval on the side where it does not cancel
        upper, lower = (edges[1:] - mean) / std, (edges[:-1] - mean) / std
        mass = np.where(lower > 0, norm.sf(lower) - norm.sf(upper), norm.cdf(upper) - norm.cdf(lower))
        got = discretised_log_likelihood(jnp.asarray(x, jnp.float32), jnp.asarray(mean), jnp.log(jnp.asarray(std**2)))
        assert np.isfinite(got).all()
        sure = mass > 1e-12
        np.testing.assert_allclose(np.asarray(got)[sure], np.log(mass[sure]), rtol=5e-3, atol=5e-3)
        assert float(jnp.exp(got).sum()) == pytest.approx(1, abs=1e-3)


def test_decoder_gradient_is_finite_far_away() -> None:
    slope = jax.grad(lambda m: discretised_log_likelihood(jnp.asarray(0.5), m, jnp.asarray(-12.0)))
    for mean in (-1.0, 0.4999, 0.5, 0.51, 1.0):
        assert np.isfinite(slope(mean))


def test_learned_variance_lies_between_its_bounds_also_for_strided_chains() -> None:
    process = PROCESSES["DiscreteVP_linear"]()
    for stride in (1, 10, 250):
        t = jnp.asarray(0.5)
        s = t - stride / 1000
        low, high = process.posterior(s, t)[2], process.transition(s, t)[1]
        for output, bound in ((-1.0, low), (1.0, high)):
            got = learned_log_variance(process, s, t, jnp.full((1, 2), output))
            np.testing.assert_allclose(got, jnp.log(bound), rtol=1e-4)
    first = learned_log_variance(process, 0.0, 0.001, jnp.full((1, 2), -1.0))
    np.testing.assert_allclose(jnp.exp(first), process.kernel_posterior(2)[2], rtol=2e-3)  # type: ignore[attr-defined]


def test_the_variational_bound_of_an_exact_model_is_the_entropy() -> None:
    """On a single Gaussian pixel-wise data set the discrete bound is above, and near, the true code length.

    Data: x_0 uniform on 256 values would need 8 bits; here a discretised N(0, 0.3^2), whose entropy is known.
    """
    process = jd.DiscreteVP(jd.linear_betas(1000))
    std, values = 0.3, np.linspace(-1, 1, 256)
    edges = np.concatenate([[-np.inf], (values[1:] + values[:-1]) / 2, [np.inf]])
    mass = np.diff(norm.cdf(edges / std))
    entropy = -(mass[mass > 0] * np.log2(mass[mass > 0])).sum()
    x0 = jnp.asarray(np.random.default_rng(0).choice(values, (2000, 1), p=mass), jnp.float32)
    exact = jd.GaussianDenoiser(process, 0.0, std)
    spread = jnp.square(exact.std)

    @jax.jit
    def term(k: jax.Array, key: jax.Array) -> jax.Array:
        t, s = k / 1000, (k - 1) / 1000
        eps = jax.random.normal(key, x0.shape)
        prediction = exact(process.perturb(x0, eps, t), t)
        # the exact reverse step's variance: the posterior's plus that of x_0 given x_t carried through
        a, b, w = process.posterior(jnp.maximum(s, 0.5 / 1000), t)
        left = (
            spread
            * jnp.square(process.sigma(t))
            / (jnp.square(process.alpha(t)) * spread + jnp.square(process.sigma(t)))
        )
        gain = jnp.where(k == 1, 1.0, a - b * process.alpha(t) / process.sigma(t))
        w = jnp.where(k == 1, 0.0, w) + jnp.square(gain) * left
        low = learned_log_variance(process, s, t, jnp.full((1, 1), -1.0))
        high = learned_log_variance(process, s, t, jnp.full((1, 1), 1.0))
        output = 2 * (jnp.log(w) - low) / (high - low) - 1
        prediction = prediction._replace(variance=jnp.broadcast_to(output, x0.shape))
        return vlb_term(process, x0, eps, prediction, s, t).mean()

    terms = jax.lax.map(lambda pair: term(*pair), (jnp.arange(1, 1001), jax.random.split(jax.random.key(0), 1000)))
    total_variance = process.alpha(1.0) ** 2 * x0**2 + process.sigma(1.0) ** 2
    prior = 0.5 * (total_variance - 1 - jnp.log(process.sigma(1.0) ** 2)).mean() / np.log(2)
    bound = float(terms.sum() + prior)
    assert entropy - 0.02 < bound < entropy + 0.06


def test_hybrid_loss_moves_the_variance_and_not_the_mean() -> None:
    """The variational term's gradient reaches the variance channels only (stop-gradient on the mean)."""
    process = PROCESSES["DiscreteVP_cosine"]()
    batch = {"x": jnp.round(jax.random.uniform(jax.random.key(0), (8, 2, 2, 1), minval=-1, maxval=1) * 127.5) / 127.5}
    output = 0.1 * jax.random.normal(jax.random.key(1), (8, 2, 2, 2))
    make = lambda w: jd.DenoisingLoss(process, jd.LearnedVariance(), vlb_weight=w)  # noqa: E731
    draws = make(0.001).draw(jax.random.key(2), batch)
    draws = dataclasses.replace(draws, t=draws.t.at[0].set(0.001))  # one at k = 1: the decoder
    gradient = lambda w: jax.grad(lambda o: make(w).terms(Constant(), o, draws).loss.sum())(output)  # noqa: E731
    plain, hybrid = gradient(0.0), gradient(0.001)
    np.testing.assert_allclose(hybrid[..., :1], plain[..., :1], rtol=1e-5)
    assert (plain[..., 1:] == 0).all() and (hybrid[..., 1:] != 0).all() and np.isfinite(hybrid).all()
    with pytest.raises(ValueError, match="needs a chain"):
        jd.DenoisingLoss(jd.VP(), jd.LearnedVariance(), vlb_weight=0.001)


def test_the_variational_term_of_real_data_is_a_density() -> None:
    """At the chain's first step, t = 1/T, it is -log2 N(x0; x0^, e^(log variance)), the mean over dimensions."""
    process: Any = PROCESSES["DiscreteVP_cosine"]()
    kind = jd.LearnedVariance()
    batch = {"x": 3.0 * jax.random.normal(jax.random.key(0), (8, 2, 2, 1))}
    output = 0.1 * jax.random.normal(jax.random.key(1), (8, 2, 2, 2))

    def total(weight: float, levels: int | None) -> Any:
        return jd.DenoisingLoss(process, kind, vlb_weight=weight, levels=levels).terms(Constant(), output, draws).loss

    draws = jd.DenoisingLoss(process, kind).draw(jax.random.key(2), batch)
    t = jnp.full((8,), 1.0 / process.steps)
    draws = dataclasses.replace(draws, t=t)
    prediction: Any = kind.read(process, process.perturb(draws.x0, draws.eps, t), t, output)
    log_variance = learned_log_variance(process, jnp.zeros(8), t, prediction.variance)
    density = norm.logpdf(draws.x0, prediction.x0, np.exp(0.5 * log_variance)).mean(axis=(1, 2, 3)) / np.log(2)
    found = total(1.0, None) - total(0.0, None)
    np.testing.assert_allclose(found / process.steps, -density, rtol=1e-3)
    assert (np.abs(total(1.0, 256) - total(1.0, None)) > 0.1 * np.abs(found)).all()
