"""Initial noise against jax.random's own Threefry, known answers, and the distributions that it claims."""

from __future__ import annotations

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.random import threefry_2x32
from scipy import stats

from jaxdiff.networks.initial_noise import initial_noise, threefry


def from_bits(bits):
    """Equation (2) in float64."""
    return (2 * (np.asarray(bits) >> 9).astype(np.float64) + 1) / 2**23 - 1


@pytest.mark.parametrize(
    ("key", "counter", "expected"),
    [  # kat_vectors of Random123 1.14, threefry2x32 of 20 rounds
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
        ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
    ],
)
def test_threefry_gives_the_known_answers(key, counter, expected):
    high, low = (jnp.array([word], jnp.uint32) for word in counter)
    found = threefry(jnp.array(key, jnp.uint32), high, low)
    assert tuple(int(word[0]) for word in found) == expected


@pytest.mark.parametrize("shape", [(), (7,), (5, 3), (3, 3, 4, 6)])
def test_the_bits_of_weight_0_are_those_of_jax_random(shape):
    key = jax.random.key(11)
    np.testing.assert_array_equal(
        initial_noise(key, 0, jnp.ones(shape), "uniform"), from_bits(jax.random.bits(key, shape)).astype(np.float32)
    )


def test_the_number_of_the_weight_is_the_counters_high_word():
    key, weight, shape = jax.random.key(5), 41, (6, 9)
    count = jnp.concatenate([jnp.full(54, weight, jnp.uint32), jnp.arange(54, dtype=jnp.uint32)])
    first, second = np.split(np.asarray(threefry_2x32(jax.random.key_data(key), count)), 2)
    expected = from_bits(first ^ second).reshape(shape)
    np.testing.assert_array_equal(initial_noise(key, weight, jnp.ones(shape), "uniform"), expected.astype(np.float32))
    normal = initial_noise(key, weight, jnp.full(shape, 3.0), "normal")
    np.testing.assert_allclose(normal, 3 * stats.norm.ppf((1 + expected) / 2), rtol=2e-6, atol=3e-6)


@pytest.mark.parametrize("weight", [0, 1, 200])
def test_noise_has_its_distribution_and_weights_and_keys_are_independent(weight):
    n, key = 200_000, jax.random.key(2)
    ones = jnp.ones((n // 100, 100))
    uniform, normal = (np.asarray(initial_noise(key, weight, ones, kind)) for kind in ("uniform", "normal"))
    assert abs(uniform).max() < 1 and np.isfinite(normal).all()
    assert stats.kstest(uniform.ravel(), stats.uniform(-1, 2).cdf).pvalue > 1e-3
    assert stats.kstest(normal.ravel(), stats.norm.cdf).pvalue > 1e-3
    others = [initial_noise(key, weight + 1, ones, "uniform")]
    others += [initial_noise(jax.random.key(3), weight, ones, "uniform")]
    others += [np.roll(uniform.ravel(), shift).reshape(uniform.shape) for shift in (1, 100)]
    for other in others:  # the correlation of independent draws is normal, of deviation 1 / sqrt(n)
        assert abs(np.corrcoef(uniform.ravel(), np.ravel(other))[0, 1]) < 4 / math.sqrt(n)


def test_keys_of_another_implementation_and_the_limit():
    noise = [initial_noise(jax.random.key(seed, impl="rbg"), 0, jnp.ones(50), "uniform") for seed in (0, 0, 1)]
    np.testing.assert_array_equal(noise[0], noise[1])
    assert not np.isin(noise[0], noise[2]).any()
    with pytest.raises(ValueError, match=r"shape \(65537, 65536\) has 4295032832 elements: .* at most 2\^32"):
        jax.eval_shape(lambda: initial_noise(jax.random.key(0), 0, jnp.ones((65537, 65536)), "normal"))


PARAMETERS = """
import hashlib, json, sys
import jax, numpy as np
from jaxdiff.networks import MLP, UNet, dit, functional
from jaxdiff.train import make_mesh
from jaxdiff.train.sharding import split_sharding

NETWORKS = [
    dit("S", 2, depth=3, width=64, heads=4, num_classes=10),
    UNet(8, 3, width=16, multipliers=(1, 2), blocks=1, attention_resolutions=(), num_classes=10),
    MLP(width=64, fourier=8, num_classes=3),
]

def digests(mesh):
    found = []
    for network in NETWORKS:
        init, key = functional(network).init, jax.random.key(7)
        if mesh is None:
            params = init(key)
        else:
            params = jax.jit(init, out_shardings=split_sharding(jax.eval_shape(init, key), make_mesh(*mesh)))(key)
        data = b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(params))
        found.append(hashlib.sha256(data).hexdigest())
    return found

print(json.dumps([digests(mesh) for mesh in json.loads(sys.argv[1])]))
"""


def test_a_key_gives_the_same_parameters_on_every_mesh_and_outside_of_jit(run_python):
    found = []
    for devices, meshes in [(1, [None, (1, 1, 1)]), (8, [(1, 8, 1), (2, 2, 2)])]:
        done = run_python("-c", PARAMETERS, json.dumps(meshes), devices=devices)
        found += json.loads(done.stdout.splitlines()[-1])
    assert len(found) == 4
    assert all(digests == found[0] for digests in found)
