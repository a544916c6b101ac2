"""Every shipped configuration's sampler, grid, weight and times against its paper's box, written again in NumPy.

Sampling is compared in float64 on a mixture of Gaussians, whose denoiser NumPy has too; noise is given.
"""

from __future__ import annotations

import importlib
import itertools
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import kstest, norm

import jaxdiff as jd
from jaxdiff.config.build import build_loss
from jaxdiff.methods import parse_sampler, times
from jaxdiff.prediction import from_eps
from tests.tables import LOG_WEIGHTS, MEANS, STDS, mixture

FOLDER = Path(__file__).resolve().parents[1] / "configs"
RNG = np.random.default_rng(0)


def denoised(x: np.ndarray, sigma: float, alpha: float = 1.0) -> np.ndarray:
    """E[x_0 | x] of the mixture at x = alpha x_0 + sigma eps: the D(x; sigma) of Karras et al."""
    means, var, log_pi = (np.asarray(part, np.float64) for part in (MEANS, jnp.square(STDS), LOG_WEIGHTS))
    total = alpha**2 * var + sigma**2  # (K,)
    apart = x[:, None] - alpha * means[None]  # (B, K, 2)
    logits = log_pi - 0.5 * (apart**2).sum(axis=2) / total - np.log(total)
    share = np.exp(logits - logits.max(axis=1, keepdims=True))
    share /= share.sum(axis=1, keepdims=True)
    of_each = means[None] + (alpha * var / total)[None, :, None] * apart
    return (share[:, :, None] * of_each).sum(axis=1)


def config_of(name: str) -> Any:
    return importlib.import_module(f"configs.{name}").config


def built(name: str) -> tuple[Any, Any, np.ndarray]:
    config = config_of(name)
    sampler = parse_sampler(config.sample.sampler, config.process)
    ts = times(sampler, config.sample.grid, config.sample.steps)
    return config, sampler, np.asarray(ts, np.float64)


def weights_on_eps(config: Any, t: np.ndarray) -> np.ndarray:
    """The objective's factor of |eps - eps^|^2."""
    objective: Any = build_loss(config)
    factor = objective.weight.on_target(config.process, config.parameterization, t)
    return np.asarray(factor / jnp.square(config.parameterization.eps_jacobian(config.process, t)))


def weights_on_x0(config: Any, t: np.ndarray) -> np.ndarray:
    objective: Any = build_loss(config)
    factor = objective.weight.on_target(config.process, config.parameterization, t)
    return np.asarray(factor / jnp.square(config.parameterization.jacobian(config.process, t)))


def times_of(config: Any, n: int = 4000) -> np.ndarray:
    objective: Any = build_loss(config)
    return np.asarray(objective.time.sample(config.process, objective.init(), jax.random.key(0), n)[0])


@pytest.mark.parametrize(
    ("name", "low", "high", "steps"),
    [("cifar10_edm", 0.002, 80.0, 18), ("digits_ve", 0.01, 50.0, 18), ("study_2d", 0.03, 5.0, 25)],
)
def test_karras_algorithm_1(name: str, low: float, high: float, steps: int) -> None:
    """Karras et al. 2022, algorithm 1 with sigma(t) = t, s(t) = 1 and the time steps of equation 5."""
    with jax.enable_x64(True):
        config, sampler, ts = built(name)
        i = np.arange(steps)
        sigmas = (high ** (1 / 7) + i / (steps - 1) * (low ** (1 / 7) - high ** (1 / 7))) ** 7
        np.testing.assert_allclose(config.process.sigma(ts), sigmas, rtol=1e-6)
        x = high * RNG.normal(size=(5, 2))
        expected = x
        for t, s in itertools.pairwise(np.append(sigmas, 0.0)):
            d = (expected - denoised(expected, t)) / t
            ahead = expected + (s - t) * d
            if s > 0:
                other = (ahead - denoised(ahead, s)) / s
                ahead = expected + (s - t) * (0.5 * d + 0.5 * other)
            expected = ahead
        found = jax.jit(jd.sample)(sampler, mixture(config.process), None, jnp.asarray(x), ts)
        np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize("name", ["cifar10_edm", "digits_ve"])
def test_karras_training(name: str) -> None:
    """Karras et al. 2022, table 1: ln sigma ~ N(-1.2, 1.2^2), and 1 on the preconditioned network's own target, that is
    lambda = (sigma^2 + s^2)/(sigma s)^2 on D."""
    config = config_of(name)
    t = times_of(config)
    sigma = np.asarray(config.process.sigma(t))
    inside = (sigma > 1.001 * float(config.process.sigma(0.0))) & (sigma < 79)
    assert kstest(np.log(sigma[inside]), norm(-1.2, 1.2).cdf).pvalue > 1e-3
    expected = (sigma**2 + 0.25) / (0.5 * sigma) ** 2
    np.testing.assert_allclose(weights_on_x0(config, t), expected, rtol=2e-4)


def test_ddpm_algorithm_2() -> None:
    """Ho et al. 2020: algorithm 2 with sigma_t^2 = beta_t on all 1,000 steps, and the simple loss of equation 14."""
    with jax.enable_x64(True):
        config, sampler, ts = built("cifar10_unet")
        np.testing.assert_allclose(ts * 1000, np.arange(1000, 0, -1), atol=1e-3)
        betas = np.linspace(1e-4, 0.02, 1000)
        abar = np.cumprod(1 - betas)
        for k in (1000, 517, 2):  # x_k to x_{k-1}
            x, eps, z = RNG.normal(size=(3, 4, 2))
            expected = (x - betas[k - 1] / np.sqrt(1 - abar[k - 1]) * eps) / np.sqrt(1 - betas[k - 1])
            expected = expected + np.sqrt(betas[k - 1]) * z
            found, _ = sampler.step(
                lambda x, t, eps=eps: from_eps(config.process, x, t, jnp.asarray(eps)),
                lambda t, s, salt=0, z=z: jnp.asarray(z),
                (),
                jnp.asarray(x),
                jnp.asarray(k / 1000),
                jnp.asarray((k - 1) / 1000),
            )
            np.testing.assert_allclose(found, expected, rtol=1e-9)
        np.testing.assert_allclose(weights_on_eps(config, np.arange(1, 1001) / 1000), 1.0, rtol=1e-9)
        np.testing.assert_allclose(np.unique(np.round(times_of(config, 40_000) * 1000)), np.arange(1, 1001))


def test_song_euler_maruyama() -> None:
    """Song et al. 2021: the reverse SDE (equation 6) by Euler-Maruyama, beta from 0.1 to 20; the loss |sigma s + z|^2
    of "DDPM cont.". (Their code stops at 1e-3; this grid at sigma/alpha = 0.002.)"""
    with jax.enable_x64(True):
        config, sampler, ts = built("cifar10_vp_continuous")
        np.testing.assert_allclose(np.diff(ts), (ts[-1] - 1) / 999, rtol=1e-3)
        for i in (0, 400, 998):
            t, s = ts[i], ts[i + 1]
            x, z = RNG.normal(size=(2, 4, 2))
            integral = 0.1 * t + 0.5 * t**2 * 19.9
            alpha, sigma = np.exp(-0.5 * integral), np.sqrt(1 - np.exp(-integral))
            beta = 0.1 + t * 19.9
            score = (alpha * denoised(x, sigma, alpha) - x) / sigma**2
            expected = x + (-0.5 * beta * x - beta * score) * (s - t) + np.sqrt(beta * (t - s)) * z
            found, _ = sampler.step(
                mixture(config.process),
                lambda t, s, salt=0, z=z: jnp.asarray(z),
                (),
                jnp.asarray(x),
                jnp.asarray(t),
                jnp.asarray(s),
            )
            np.testing.assert_allclose(found, expected, rtol=1e-6)
        t = times_of(config)
        np.testing.assert_allclose(weights_on_eps(config, t), 1.0, rtol=1e-6)
        assert t.min() >= 1e-5 and kstest(t, "uniform").pvalue > 1e-3


@pytest.mark.parametrize(
    "name",
    [
        "digits_unet",
        "digits_dit",
        "mnist_unet",
        "mnist_control",
        "mnist_semantic",
        "mnist_style",
        "mnist_superres",
        "mnist_latent_unet",
        "mnist_cascade_8",
        "mnist_cascade_28",
        "cifar10_cascade_8",
        "two_digits_text",
        "two_digits_cascade_16",
        "two_digits_cascade_32",
        "emoji_text",
    ],
)
def test_ddim_of_salimans_and_ho(name: str) -> None:
    """Salimans & Ho 2022, equation 8 (DDIM) on alpha = cos(pi t/2), evenly spaced from t = 1; the loss on v is SNR + 1
    on x0 (their section 4)."""
    with jax.enable_x64(True):
        config, sampler, ts = built(name)
        assert ts[0] == 1.0 and np.ptp(np.diff(ts)) < 1e-6
        x = RNG.normal(size=(5, 2))
        expected = x
        for t, s in itertools.pairwise(ts):
            x0 = denoised(expected, np.sin(0.5 * np.pi * t), np.sin(0.5 * np.pi * (1 - t)))
            eps = (expected - np.cos(0.5 * np.pi * t) * x0) / np.sin(0.5 * np.pi * t)
            expected = np.cos(0.5 * np.pi * s) * x0 + np.sin(0.5 * np.pi * s) * eps
        expected = denoised(expected, np.sin(0.5 * np.pi * ts[-1]), np.cos(0.5 * np.pi * ts[-1]))
        found = jax.jit(jd.sample)(sampler, mixture(config.process), None, jnp.asarray(x), ts)
        np.testing.assert_allclose(found, expected, atol=1e-7)
        t = times_of(config)
        np.testing.assert_allclose(weights_on_x0(config, t), 1 + 1 / np.tan(0.5 * np.pi * t) ** 2, rtol=1e-5)
        if name == "emoji_text":  # Esser et al. 2024, equation 19, at mean and std of its own
            t = norm(1.2, 1.2).cdf(np.log(t[t < 1] / (1 - t[t < 1])))
        assert kstest(t, "uniform").pvalue > 1e-3


@pytest.mark.parametrize("name", ["digits_flow", "cifar10_latent_dit"])
def test_rectified_flow(name: str) -> None:
    """Liu et al. 2022: dx/dt = v, here by Heun's method in t; the loss |v - (eps - x0)|^2; Esser et al. 2024, equation
    19: t = logistic(N(0, 1))."""
    with jax.enable_x64(True):
        config, sampler, ts = built(name)
        assert ts[0] == 1.0 and np.ptp(np.diff(ts)) < 1e-6

        def velocity(x: np.ndarray, t: float) -> np.ndarray:
            return (x - denoised(x, t, 1 - t)) / t

        x = RNG.normal(size=(5, 2))
        expected = x
        for t, s in itertools.pairwise(ts):
            first = velocity(expected, t)
            expected = expected + (s - t) / 2 * (first + velocity(expected + (s - t) * first, s))
        expected = expected - ts[-1] * velocity(expected, ts[-1])
        found = jax.jit(jd.sample)(sampler, mixture(config.process), None, jnp.asarray(x), ts)
        np.testing.assert_allclose(found, expected, atol=1e-7)
        t = times_of(config)
        objective: Any = build_loss(config)
        np.testing.assert_array_equal(objective.weight.on_target(config.process, config.parameterization, t), 1.0)
        x0, eps = jnp.asarray(x), jnp.asarray(x[::-1])
        np.testing.assert_allclose(config.parameterization.target(config.process, x0, eps, 0.3), eps - x0)
        inside = t[t > 1.001 * float(config.process.min_time())]
        assert kstest(np.log(inside / (1 - inside)), norm(0, 1).cdf).pvalue > 1e-3


def test_simple_diffusion_at_32_pixels() -> None:
    """ "cifar10_cascade_32": Hoogeboom et al. 2023, section 3, from 64 pixels; DDIM and the loss on v as above."""
    with jax.enable_x64(True):
        config, _, ts = built("cifar10_cascade_32")
        assert ts[0] == 1.0 and np.ptp(np.diff(ts)) < 1e-6
        t = times_of(config)
        log_snr = -2 * np.log(np.tan(0.5 * np.pi * t)) + 2 * np.log(64 / 32)
        np.testing.assert_allclose(config.process.log_snr(t[t < 1]), log_snr[t < 1], rtol=1e-6)
        np.testing.assert_allclose(weights_on_x0(config, t), 1 + np.exp(log_snr), rtol=1e-5)


def spaced(total: int, count: int) -> list[int]:
    """Nichol & Dhariwal's `space_timesteps` of one section."""
    stride = (total - 1) / (count - 1)
    return [round(i * stride) for i in range(count)]


@pytest.mark.parametrize(("name", "make"), [("imagenet256_dit_xl2", "linear"), ("imagenet64_adm", "cosine")])
def test_improved_ddpm(name: str, make: str) -> None:
    """Nichol & Dhariwal 2021: ancestral sampling on a respaced chain of 250 steps with the variance of equation 15, and
    L_simple + 0.001 L_vlb (equation 16), L_vlb being T terms of which one is drawn."""
    with jax.enable_x64(True):
        config, sampler, ts = built(name)
        kept = spaced(1000, 250)[::-1]
        np.testing.assert_allclose(ts * 1000 - 1, kept, atol=1e-3)
        if make == "linear":
            betas = np.linspace(1e-4, 0.02, 1000)
        else:
            f = np.cos((np.arange(1001) / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
            betas = np.minimum(1 - f[1:] / f[:-1], 0.999)
        abar = np.cumprod(1 - betas)
        for i in (0, 1, 130, 248):
            now, before = abar[kept[i]], abar[kept[i + 1]]
            beta = 1 - now / before  # of the respaced chain
            x, eps, z, u = RNG.normal(size=(4, 4, 2))
            x0 = (x - np.sqrt(1 - now) * eps) / np.sqrt(now)
            mean = np.sqrt(before) * beta / (1 - now) * x0 + np.sqrt(1 - beta) * (1 - before) / (1 - now) * x
            share, small = (u + 1) / 2, beta * (1 - before) / (1 - now)
            std = np.exp(0.5 * (share * np.log(beta) + (1 - share) * np.log(small)))
            found, _ = sampler.step(
                lambda x, t, eps=eps, u=u: from_eps(config.process, x, t, jnp.asarray(eps))._replace(
                    variance=jnp.asarray(u)
                ),
                lambda t, s, salt=0, z=z: jnp.asarray(z),
                (),
                jnp.asarray(x),
                jnp.asarray((kept[i] + 1) / 1000),
                jnp.asarray((kept[i + 1] + 1) / 1000),
            )
            np.testing.assert_allclose(found, mean + std * z, rtol=1e-7, atol=1e-9)
        np.testing.assert_allclose(weights_on_eps(config, np.arange(1, 1001) / 1000), 1.0, rtol=1e-6)
        hybrid: Any = build_loss(config)
        assert hybrid.vlb_weight * config.process.steps == pytest.approx(1.0)


def test_every_configuration_has_its_box() -> None:
    source = Path(__file__).read_text()
    drawn_by_none = {path.stem for kind in ("autoencoder", "classifier") for path in FOLDER.glob(f"*_{kind}.py")}
    names = {path.stem for path in FOLDER.glob("*.py")} - {"__init__"} - drawn_by_none
    assert names and all(re.search(rf'[" ]{name}[" ]', source) for name in names), names
