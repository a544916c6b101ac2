"""What classifier-free guidance does to the density, beside the tilted density that its weight seems to stand for."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

import jaxdiff as jd
from jaxdiff.denoiser import Cond

PROCESS = jd.VP()
MEANS = jnp.array([[-1.0], [1.0]])
STD = 0.5


def both(x: jax.Array, t: ArrayLike, cond: Cond | None = None) -> jd.Prediction:
    """The exact denoiser of a mixture of two classes, given the class; without for class 2."""
    assert cond is not None
    whole = jd.MixtureDenoiser(PROCESS, MEANS, STD)(x, t)
    each = [jd.GaussianDenoiser(PROCESS, MEANS[k], STD)(x, t) for k in range(2)]
    label = cond["label"].reshape(-1, 1)
    return jax.tree.map(lambda w, a, b: jnp.where(label == 2, w, jnp.where(label == 1, b, a)), whole, *each)


def test_the_guided_field_of_a_mixture_is_its_closed_form() -> None:
    """w score(x|c) + (1 - w) score(x), by automatic differentiation of the mixture's log density."""
    x, t, w = jnp.linspace(-3, 3, 7).reshape(-1, 1), 0.3, 4.0
    alpha, sigma = PROCESS.alpha(t), PROCESS.sigma(t)
    std = jnp.sqrt(alpha**2 * STD**2 + sigma**2)

    def log_density(x: jax.Array, w: float) -> jax.Array:
        parts = jnp.stack([-0.5 * ((x - alpha * m) / std) ** 2 for m in (-1.0, 1.0)])
        return w * parts[1] + (1 - w) * jax.scipy.special.logsumexp(parts)

    expected = jax.vmap(jax.grad(log_density), (0, None))(x[:, 0], w)
    guided = jd.ClassifierFree(both, w, {"label": 2})
    found = guided(x, t, {"label": jnp.ones(7, jnp.int32)}).score(PROCESS, t)
    np.testing.assert_allclose(found[:, 0], expected, rtol=1e-3, atol=1e-3)


def test_the_guided_law_is_not_the_tilted_one() -> None:
    """Samples of weight 4 against p(x) (p(x|c)/p(x))^4 by quadrature: another mean, by many standard errors; the mean
    of weight 1 is the class', and that of the tilted density at weight 1 too."""
    n, ts = 4000, jd.log_snr_times(PROCESS, 60)
    x = PROCESS.prior_sample(jd.sample_keys(jax.random.key(0), 0, n), (1,), ts[0])

    @jax.jit
    def drawn(w: float) -> jax.Array:
        guided = jd.ClassifierFree(both, w, {"label": 2})
        return jd.sample(jd.DPMpp2M(PROCESS), guided, None, x, ts, {"label": jnp.ones(n, jnp.int32)})

    grid = np.linspace(-8, 12, 20001)
    parts = [np.exp(-0.5 * ((grid - m) / STD) ** 2) for m in (-1.0, 1.0)]

    def tilted_mean(w: float) -> float:
        density = (parts[1] / (parts[0] + parts[1])) ** w * (parts[0] + parts[1])
        return float((grid * density).sum() / density.sum())

    error = {w: float(drawn(w).std()) / np.sqrt(n) for w in (1.0, 4.0)}
    np.testing.assert_allclose(drawn(1.0).mean(), tilted_mean(1.0), atol=4 * error[1.0])
    difference = float(drawn(4.0).mean()) - tilted_mean(4.0)
    assert difference > 20 * error[4.0], (difference, error[4.0])  # further from the other class than tilting leads
