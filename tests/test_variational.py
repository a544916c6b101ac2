"""The bound's last term on real-valued data. (Its other terms: test_loss.py.)"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import norm

import jaxdiff as jd
from jaxdiff.variational import learned_log_variance, vlb_term
from tests.tables import gaussian


def test_the_bound_of_real_valued_data_has_a_density_for_decoder() -> None:
    """The last term of a chain on data that are no grey levels: -ln N(x0; x0^, learned variance), in bits."""
    process = jd.DiscreteVP(jd.linear_betas(100))
    x0, eps = jax.random.normal(jax.random.key(0), (2, 6, 3))
    t = 1 / 100
    given = gaussian(process)(process.perturb(x0[..., :2], eps[..., :2], t), t)
    x0, eps = x0[..., :2], eps[..., :2]
    given = given._replace(variance=jnp.full_like(x0, 0.3))
    log_variance = learned_log_variance(process, 0.0, t, jnp.full_like(x0, 0.3))
    expected = -norm.logpdf(np.asarray(x0), np.asarray(given.x0), np.exp(0.5 * np.asarray(log_variance)))
    found = vlb_term(process, x0, eps, given, 0.0, t, levels=None)
    np.testing.assert_allclose(found, expected.mean(axis=1) / np.log(2), rtol=1e-5)
    continuous, bytes_ = (vlb_term(process, x0, eps, given, 0.4, 0.5, levels=levels) for levels in (None, 256))
    np.testing.assert_array_equal(continuous, bytes_)  # no decoder there
