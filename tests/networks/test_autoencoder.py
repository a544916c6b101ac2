"""Autoencoders: published counts, the padding of convolutions that halve, moments, and the codebook."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxdiff.networks import Autoencoder, KLAutoencoder, VQAutoencoder, ldm_kl, ldm_vq
from jaxdiff.networks.autoencoder import LOG_VARIANCE
from jaxdiff.networks.encoder_decoder import _to_channels, _to_pixels, nearest
from jaxdiff.networks.layers import Conv3x3

SMALL: dict[str, Any] = {"in_channels": 1, "channels": 2, "width": 8, "multipliers": (1, 2), "blocks": 1, "patch": 2}


def count(build: Any) -> int:
    shapes = jax.eval_shape(Autoencoder(build).init, jax.random.key(0))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


@pytest.mark.parametrize(
    ("build", "parameters"),
    [
        (ldm_kl(8), 83_653_863),  # Stable Diffusion's
        (KLAutoencoder(channels=16, projections=False), 83_819_683),  # SD3's and FLUX's
    ],
)
def test_published_counts(build: Any, parameters: int) -> None:
    assert count(build) == parameters


def by_hand(build: Any) -> int:
    """Parameters of the layers of LDM's `Encoder` and `Decoder`, added up as its code builds them."""

    def conv(i: int, o: int, k: int = 3) -> int:
        return k * k * i * o + o

    def block(i: int, o: int) -> int:
        return 2 * i + conv(i, o) + 2 * o + conv(o, o) + (conv(i, o, 1) if i != o else 0)

    def attend(c: int) -> int:
        return 2 * c + 4 * conv(c, c, 1)

    widths = [build.width * m for m in build.multipliers]
    top, z = widths[-1], build.encoded
    middle = 2 * block(top, top) + attend(top)
    encoder = conv(build.in_channels, widths[0]) + middle + 2 * top + conv(top, z)
    decoder = conv(build.channels, top) + middle + 2 * widths[0] + conv(widths[0], build.in_channels)
    now = widths[0]
    for level, width in enumerate(widths):
        for _ in range(build.blocks):
            encoder, now = encoder + block(now, width) + (attend(width) if level in build.attention else 0), width
        encoder += conv(now, now) if level < len(widths) - 1 else 0
    now = top
    for level, width in reversed(list(enumerate(widths))):
        for _ in range(build.blocks + 1):
            decoder, now = decoder + block(now, width) + (attend(width) if level in build.attention else 0), width
        decoder += conv(now, now) if level else 0
    return encoder + decoder + conv(z, z, 1) + conv(build.channels, build.channels, 1)


@pytest.mark.parametrize("factor", [4, 8, 16, 32])
def test_counts_of_all_kl(factor: Any) -> None:
    build = ldm_kl(factor)
    assert build.factor == factor and count(build) == by_hand(build)


@pytest.mark.parametrize("factor", [4, 8])
def test_counts_of_vq(factor: Any) -> None:
    build = ldm_vq(factor)
    assert build.factor == factor and count(build) == by_hand(build) + build.entries * build.channels


def test_halving_pads_at_the_bottom_and_the_right() -> None:
    """The kernel that is 1 at its first place reads x[2i, 2j]; padded on all sides it would read x[2i - 1, 2j - 1]."""
    shapes = nnx.eval_shape(lambda: KLAutoencoder(**SMALL)(nnx.Rngs(0)))
    made = shapes.encoder.levels[0].resample
    assert made is not None
    halve = Conv3x3(8, 8, stride=made.stride, padding=made.padding)
    for place in [(0, 0), (1, 1), (2, 2)]:
        kernel = np.zeros((3, 3, 8, 8), np.float32)
        kernel[*place, 0, 0] = 1
        halve.kernel[...] = jnp.asarray(kernel)
        x = np.random.default_rng(0).normal(size=(1, 6, 6, 8)).astype(np.float32)
        padded = np.pad(x, ((0, 0), (0, 2), (0, 2), (0, 0)))
        expected = padded[:, place[0] : place[0] + 6 : 2, place[1] : place[1] + 6 : 2, 0]
        np.testing.assert_allclose(halve(jnp.asarray(x))[..., 0], expected, atol=1e-6)


def test_moments() -> None:
    net = Autoencoder(KLAutoencoder(**SMALL))
    params = jax.jit(net.init)(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (3, 8, 12, 1))
    moments = jax.jit(net.moments)
    mean, log_variance = moments(params, x)
    assert net.factor == 4 and log_variance is not None and mean.shape == log_variance.shape == (3, 2, 3, 2)
    assert jax.eval_shape(net.decode, params, mean).shape == x.shape
    alone = moments(params, x[1:2])[0]
    np.testing.assert_allclose(alone, mean[1:2], atol=1e-5)  # samples do not know each other
    bias = params["project_in"]["bias"]
    params["project_in"]["bias"] = bias + jnp.array([0.0, 0.0, 100.0, -100.0])
    clipped = moments(params, x)[1]
    assert (
        clipped is not None
        and (clipped[..., 0] == LOG_VARIANCE[1]).all()
        and (clipped[..., 1] == LOG_VARIANCE[0]).all()
    )


def test_decode_is_the_last_convolution_of_the_features() -> None:
    net = Autoencoder(KLAutoencoder(**SMALL))
    params = jax.jit(net.init)(jax.random.key(0))
    z = jax.random.normal(jax.random.key(1), (2, 2, 2, 2))
    whole, parts = jax.jit(lambda p: (net.decode(p, z), net.finish(p, net.features(p, z))))(params)
    np.testing.assert_allclose(whole, parts, atol=1e-6)


def test_squares_of_pixels_are_channels() -> None:
    x = jnp.arange(2 * 4 * 6 * 3.0).reshape(2, 4, 6, 3)
    squares = _to_channels(x, 2)
    assert squares.shape == (2, 2, 3, 12)
    np.testing.assert_array_equal(squares[1, 0, 2], x[1, 0:2, 4:6].reshape(-1))
    np.testing.assert_array_equal(_to_pixels(squares, 2), x)


def test_nearest_entries_and_their_gradients() -> None:
    rng = np.random.default_rng(0)
    z, codebook = rng.normal(size=(2, 3, 4, 5)), rng.normal(size=(17, 5))
    found = nearest(jnp.asarray(z, jnp.float32), jnp.asarray(codebook, jnp.float32))
    code = np.square(z[..., None, :] - codebook).sum(-1).argmin(-1)
    np.testing.assert_array_equal(found.code, code)
    np.testing.assert_allclose(found.z, codebook[code], atol=1e-6)

    def of(z: Any, codebook: Any) -> Any:  # sum of f(z) = sin(z): straight through, its gradient at m is f'(e)
        return jnp.sin(nearest(z, codebook).z).sum()

    by_z, by_codebook = jax.grad(of, (0, 1))(jnp.asarray(z, jnp.float32), jnp.asarray(codebook, jnp.float32))
    np.testing.assert_allclose(by_z, np.cos(codebook[code]), atol=1e-5)
    assert not by_codebook.any()  # it learns from `codebook_loss` alone


def test_a_decoder_with_a_codebook_sees_entries() -> None:
    net = Autoencoder(VQAutoencoder(**SMALL, entries=16))
    params = jax.jit(net.init)(jax.random.key(0))
    assert params["codebook"].shape == (16, 2) and abs(params["codebook"]).max() <= 1 / 16
    z, log_variance = jax.jit(net.moments)(params, jax.random.normal(jax.random.key(1), (2, 8, 8, 1)))
    assert log_variance is None
    rounded, decode = net.quantise(params, z), jax.jit(net.decode)
    np.testing.assert_array_equal(rounded.entry, params["codebook"][rounded.code])
    np.testing.assert_allclose(decode(params, z), decode(params, rounded.entry), atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 0}, "width=0 must be at least 1"),
        ({"multipliers": ()}, "multipliers"),
        ({"attention": (2,)}, "there is no level 2; they are \\[0, 1\\]"),
        ({"heads": 3}, "attention over 16 channels: they do not divide by heads=3"),
    ],
)
def test_refusals(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        KLAutoencoder(**SMALL | change)


def test_what_does_not_fit_is_refused() -> None:
    net = Autoencoder(KLAutoencoder(**SMALL))
    params = jax.eval_shape(net.init, jax.random.key(0))
    with pytest.raises(ValueError, match="KLAutoencoder needs height and width divisible by 4, got 6x8"):
        jax.eval_shape(net.moments, params, jnp.zeros((1, 6, 8, 1)))
    with pytest.raises(ValueError, match=r"latents are \(batch, h, w, 2\), got \(1, 2, 2, 4\)"):
        jax.eval_shape(net.decode, params, jnp.zeros((1, 2, 2, 4)))
    with pytest.raises(ValueError, match="KLAutoencoder has no codebook"):
        jax.eval_shape(net.quantise, params, jnp.zeros((1, 2, 2, 2)))
    with pytest.raises(ValueError, match="at least 2"):
        VQAutoencoder(entries=1)
    with pytest.raises(ValueError, match="there are autoencoders of factor 4, 8, 16, 32, got 5"):
        ldm_kl(5)  # type: ignore[arg-type]
