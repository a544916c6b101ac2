"""Per-sample randomness: noise belongs to a sample, at any batch size."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import kstest

from jaxdiff.noise import sample_keys, step_noise, white_noise


def test_noise_of_a_sample_does_not_depend_on_its_batch() -> None:
    key = jax.random.key(7)
    small, large = sample_keys(key, 0, 16), sample_keys(key, 0, 64)
    late = sample_keys(key, 5, 3)
    np.testing.assert_array_equal(white_noise(small, (4, 4)), white_noise(large, (4, 4))[:16])
    np.testing.assert_array_equal(white_noise(late, (4, 4)), white_noise(large, (4, 4))[5:8])
    x = jnp.zeros((64, 3))
    whole = step_noise(large, x)(0.7, 0.5)
    np.testing.assert_array_equal(step_noise(small, x[:16])(0.7, 0.5), whole[:16])
    jitted = jax.jit(lambda keys, t, s: step_noise(keys, x[:16])(t, s))(small, 0.7, 0.5)
    np.testing.assert_array_equal(jitted, whole[:16])


def test_draws_of_unlike_purpose_are_independent() -> None:
    keys, x = sample_keys(jax.random.key(0), 0, 2000), jnp.zeros((2000, 2))
    noise = step_noise(keys, x)
    draws = [noise(0.7, 0.5), noise(0.7, 0.5, 1), noise(0.7, 0.4), noise(0.5, 0.4), noise(0.5, 0.7)]
    draws.append(white_noise(keys, (2,)))
    flat = np.stack([np.asarray(draw).ravel() for draw in draws])
    correlation = np.corrcoef(flat) - np.eye(len(draws))
    assert np.abs(correlation).max() < 0.08
    for draw in flat:
        assert kstest(draw, "norm").pvalue > 1e-4
    np.testing.assert_array_equal(noise(0.7, 0.5), draws[0])  # the same step draws the same noise


def test_float64_times_that_float32_cannot_tell_apart() -> None:
    with jax.enable_x64(True):
        noise = step_noise(sample_keys(jax.random.key(0), 0, 2), jnp.zeros((2, 3)))
        assert (noise(0.5, 0.25) != noise(0.5 + 1e-12, 0.25)).any()
        assert noise(0.5, 0.25).dtype == jnp.float64


def test_missing_keys_are_named() -> None:
    with pytest.raises(ValueError, match="this sampler draws noise"):
        step_noise(None, jnp.zeros((2, 3)))(0.5, 0.4)
    with pytest.raises(ValueError, match="3 keys came with samples of shape"):
        step_noise(sample_keys(jax.random.key(0), 0, 3), jnp.zeros((2, 3)))(0.5, 0.4)


SHARDED = """
import hashlib, jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxdiff.noise import sample_keys, step_noise
mesh = Mesh(np.array(jax.devices()), ("data",))
rows = NamedSharding(mesh, PartitionSpec("data"))
keys = jax.device_put(sample_keys(jax.random.key(3), 0, 16), rows)
x = jax.device_put(np.zeros((16, 8, 8, 1), np.float32), rows)
noise = jax.jit(lambda keys, x: step_noise(keys, x)(0.7, 0.5), out_shardings=rows)(keys, x)
assert len(noise.sharding.device_set) == len(jax.devices())
print(len(jax.devices()), hashlib.sha256(np.asarray(noise).tobytes()).hexdigest())
"""


def test_noise_is_the_same_bits_on_any_number_of_devices(
    run_python: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    digests = {}
    for devices in (1, 8):
        count, digest = run_python("-c", SHARDED, devices=devices).stdout.split()
        assert int(count) == devices
        digests[devices] = digest
    assert digests[1] == digests[8]
