"""Per-sample randomness: noise belongs to a sample, at any batch size."""

from __future__ import annotations

import itertools
import subprocess
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest

from jaxdiff.noise import as_key, brownian_noise, salted_keys, sample_keys, step_noise, white_noise


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


PATH_X = jnp.zeros((1500, 2))
PATH_KEYS = sample_keys(jax.random.key(0), 0, 1500)
draw = jax.jit(lambda t, s, salt=0: brownian_noise(PATH_KEYS, PATH_X)(t, s, salt))
draw_few = jax.jit(lambda t, s: brownian_noise(PATH_KEYS[:8], PATH_X[:8])(t, s))


def test_brownian_increments_have_the_law_of_brownian_motion() -> None:
    """Standard normal at any length, over the ends 0 and 1 too, independent where they do not overlap; where they do,
    correlated as the overlap says; another salt is another motion."""
    steps = [(1.0, 0.7), (0.7, 0.7 - 3e-4), (0.6997, 0.5), (0.5, 0.25), (0.25, 1e-3), (1e-3, 1e-3 - 2e-7), (9e-4, 0.0)]
    draws = np.stack([np.asarray(draw(t, s)).ravel() for t, s in steps])
    salted = np.stack([np.asarray(draw(t, s, 1)).ravel() for t, s in steps])
    for one in (*draws, *salted):
        assert kstest(one, "norm").pvalue > 1e-4
    both = np.concatenate([draws, salted])
    assert np.abs(np.corrcoef(both) - np.eye(len(both))).max() < 0.08  # 4.4 standard errors of 3,000
    overlapping = np.asarray(draw(0.9, 0.4)).ravel(), np.asarray(draw(0.6, 0.2)).ravel()
    assert np.corrcoef(*overlapping)[0, 1] == pytest.approx(0.2 / np.sqrt(0.5 * 0.4), abs=0.06)
    assert float(jnp.abs(draw(0.5, 0.5)).max()) == 0.0
    np.testing.assert_array_equal(draw(0.25, 0.75), -draw(0.75, 0.25))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.lists(st.floats(0.0, 1.0, width=32), min_size=2, max_size=8, unique=True))
def test_brownian_increments_add_up(times: list[float]) -> None:
    """However an interval is cut, its parts make the whole: to float32's rounding of the path itself."""
    ts = np.sort(np.array(times, np.float32))[::-1]
    total = sum(np.sqrt(t - s) * np.asarray(draw_few(t, s)) for t, s in itertools.pairwise(ts))
    np.testing.assert_allclose(total, np.sqrt(ts[0] - ts[-1]) * draw_few(ts[0], ts[-1]), atol=1e-5)


def test_brownian_path_belongs_to_its_sample() -> None:
    np.testing.assert_array_equal(
        jax.jit(lambda t, s: brownian_noise(PATH_KEYS[3:8], PATH_X[3:8])(t, s))(0.7, 0.3), draw(0.7, 0.3)[3:8]
    )
    x, keys = jnp.zeros((3, 2)), PATH_KEYS[:3]
    apart = jnp.array([0.7, 0.6, 0.5])  # times of each sample's own
    mine = brownian_noise(keys, x)(apart, 0.3)
    for i in range(3):
        np.testing.assert_allclose(mine[i], draw(apart[i], 0.3)[i], rtol=1e-5)


def test_brownian_path_in_float64() -> None:
    """Steps far below float32's resolution still have the law, and a coarser tree would not."""
    with jax.enable_x64(True):
        keys, x = sample_keys(jax.random.key(0), 0, 2000), jnp.zeros((2000, 1))
        z = brownian_noise(keys, x)(0.5 + 1e-11, 0.5 + 2e-11)
        assert z.dtype == jnp.float64
        assert kstest(np.asarray(z).ravel(), "norm").pvalue > 1e-4
        assert float(jnp.std(brownian_noise(keys, x, depth=24)(0.5 + 1e-11, 0.5 + 2e-11))) > 1.5
        rough, fine = (brownian_noise(keys, x, depth)(0.75, 0.25) for depth in (24, 53))
        np.testing.assert_allclose(rough, fine, atol=1e-12)  # where both trees have the times, one path
    with pytest.raises(ValueError, match="at least 1, got 0"):
        brownian_noise(None, PATH_X, 0)
    with pytest.raises(ValueError, match="this sampler draws noise"):
        brownian_noise(None, PATH_X)(0.5, 0.4)


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


def test_salted_keys() -> None:
    """Salts are folded in order, one for all or one a sample; a sample's keys do not depend on its batch."""
    keys = sample_keys(jax.random.key(0), 0, 4)
    of_all, of_each = salted_keys(keys, 7, 3), salted_keys(keys, 7, jnp.array([3, 4, 5, 3]))
    expected = [jax.random.fold_in(jax.random.fold_in(key, 7), 3) for key in keys]
    for i in range(4):
        np.testing.assert_array_equal(jax.random.key_data(of_all[i]), jax.random.key_data(expected[i]))
    same = (jax.random.key_data(of_each) == jax.random.key_data(of_all)).all(axis=1)
    np.testing.assert_array_equal(same, [True, False, False, True])
    part = salted_keys(keys[2:], 7, 3)
    np.testing.assert_array_equal(jax.random.key_data(part), jax.random.key_data(of_all[2:]))


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (0.5, "the key is a jax.random.key, or a seed"),
        ("0", "the key is a jax.random.key, or a seed"),
        (None, "the key is a jax.random.key, or a seed"),
        (True, "the key is a jax.random.key, or a seed"),
        (-1, "a seed is from 0 to 4294967295, got -1"),
        (2**32, "a seed is from 0 to 4294967295"),  # JAX makes of it the key of 0
        (np.array([1, 2, 3]), r"the key is one jax.random.key, or a seed, got int64 of shape \(3,\)"),
    ],
)
def test_what_is_no_key_is_refused(key: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        as_key(key)


def test_a_seed_and_both_kinds_of_key() -> None:
    same: Any = (7, np.int64(7), jax.random.key(7), jax.random.PRNGKey(7))
    draws = [jax.random.normal(as_key(key)) for key in same]
    assert len(set(map(float, draws))) == 1
    with pytest.raises(ValueError, match=r"the key is one jax.random.key, or a seed, got .* of shape \(3,\)"):
        as_key(jax.random.split(jax.random.key(0), 3))
