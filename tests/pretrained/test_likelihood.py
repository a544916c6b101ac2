"""The likelihood of published models' probability flow."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import sample_keys
from jaxdiff.likelihood import AdaptiveSteps, log_likelihood
from jaxdiff.pretrained import Pretrained, load_pipeline
from jaxdiff.sampling.tableau import BOGACKI_SHAMPINE
from tests.pretrained.test_pipeline import write_pixels


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Pretrained:
    return load_pipeline(write_pixels(tmp_path_factory.mktemp("pixels") / "model"))


@pytest.fixture(scope="module")
def log_density(model: Pretrained) -> Any:
    @jax.jit
    def found(params: Any, x: Any, keys: Any) -> Any:
        denoise = dataclasses.replace(model.denoise, params=params)
        few = AdaptiveSteps(tableau=BOGACKI_SHAMPINE)  # stages, which compile in half the time
        return log_likelihood(denoise, model.process, x, keys, solver=few).log_density

    return found


def test_it_is_finite_and_each_samples_own(model: Pretrained, log_density: Any) -> None:
    """The same beside other samples of a batch."""
    x = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (5, 4, 4, 3)), jnp.float32)
    keys = sample_keys(jax.random.key(1), 0, 5)
    params = model.denoise.params
    one, other = (log_density(params, x[jnp.array(rows)], keys[jnp.array(rows)]) for rows in ([0, 1, 2], [4, 1, 3]))
    assert np.isfinite(one).all() and np.isfinite(other).all()
    np.testing.assert_allclose(one[1], other[1], rtol=1e-5)
    assert len({float(each) for each in (*one, *other)}) == 5


def test_of_a_network_that_says_no_noise_it_is_known(model: Pretrained, log_density: Any) -> None:
    """With eps = 0 nothing moves in y = x/alpha: the density is the prior's at y alpha_T, of the same volume.

    In the units of the data ln p(y) = ln N(alpha_T y; 0, s^2 I) + D ln alpha_T, s the prior's standard deviation.
    """
    zero = {"kernel": jnp.zeros_like, "bias": jnp.zeros_like}
    last = {name: zero[name](leaf) for name, leaf in model.denoise.params["conv_out"].items()}
    x = np.random.default_rng(2).uniform(-1, 1, (3, 4, 4, 3)).astype(np.float32)
    found = log_density({**model.denoise.params, "conv_out": last}, x, sample_keys(jax.random.key(1), 0, 3))
    t = model.process.max_time()
    alpha, s, size = float(model.process.alpha(t)), float(model.process.prior_std(t)), 4 * 4 * 3
    squared = np.square(x, dtype=np.float64).sum(axis=(1, 2, 3)) * (alpha / s) ** 2
    expected = size * (math.log(alpha / s) - 0.5 * math.log(2 * math.pi)) - 0.5 * squared
    np.testing.assert_allclose(found, expected, rtol=1e-4)
