"""Models of papers' own repositories beside them: outputs, gradients, files in both directions, samples."""

from __future__ import annotations

import sys
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.denoiser import NetworkDenoiser
from jaxdiff.grid import uniform_times
from jaxdiff.methods import parse_sampler
from jaxdiff.networks.edm2 import log_variance
from jaxdiff.pretrained.files.safetensors import SafeTensors, write_safetensors
from jaxdiff.pretrained.files.writing import Published
from jaxdiff.pretrained.layouts.originals import load_original, original_of, write_original
from tests.parity.comparison import apart, as_torch
from tests.parity.originals import disturbed, quiet, torch
from tests.parity.repositories import REPOSITORIES, module

pytestmark = pytest.mark.nightly

OUTPUT, GRADIENT = 1e-4, 1e-3  # of the root mean square


def loaded(layout: str, seed: int, folder: Path) -> tuple[Any, Any, Any, np.random.Generator]:
    """A random original, what it stores, and the model that is read of it."""
    rng = np.random.default_rng(seed)
    with quiet():
        original = REPOSITORIES[layout](rng)
    theirs = {name: each.numpy() for name, each in disturbed(original.network, seed).state_dict().items()}
    write_safetensors(folder / "theirs.safetensors", theirs)
    return original, theirs, load_original(folder / "theirs.safetensors", original.name, network=original.changes), rng


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("layout", REPOSITORIES)
def test_as_the_original(layout: str, seed: int, tmp_path: Path) -> None:
    output, gradient = compared(layout, seed, tmp_path)
    assert output < OUTPUT and gradient < GRADIENT


def compared(layout: str, seed: int, folder: Path) -> tuple[float, float]:
    """The largest difference of output, at two sizes, two batch sizes and four times, and of gradient; of what is
    written here there must be none."""
    original, theirs, model, rng = loaded(layout, seed, folder)
    net, params = model.denoise.net, model.denoise.params
    x, t, cond, expected = case(original, rng, original.sizes[0], 1)
    assert np.sqrt(np.square(expected).mean()) > 1e-3
    first = apart(jax.jit(net.apply)(params, x, t, cond), expected)
    x, t, cond, expected = case(original, rng, original.sizes[1], 4)
    weight = rng.normal(size=expected.shape).astype(np.float32)
    output, pull = jax.vjp(jax.jit(lambda params, x: net.apply(params, x, t, cond)), params, jnp.asarray(x))
    by_params, by_x = pull(jnp.asarray(weight))
    gradient = gradients(original, net, by_params, by_x, x, t, cond, weight)
    write_original(folder / "ours.safetensors", original.name, params, network=original.changes)
    written = SafeTensors(folder / "ours.safetensors")
    assert {name: each.shape for name, each in written.items()} == {name: each.shape for name, each in theirs.items()}
    original.network.load_state_dict({name: torch.from_numpy(written.read(name)) for name in written}, strict=True)
    for name, each in theirs.items():
        np.testing.assert_array_equal(written.read(name), each, err_msg=name)
    return max(first, apart(output, expected)), gradient


def case(original: Any, rng: Any, size: tuple[int, int], batch: int) -> tuple[Any, Any, Any, Any]:
    x = rng.normal(size=(batch, *size, original.channels)).astype(np.float32)
    t = np.array(original.times[-batch:], np.float32)
    cond = original.cond(rng, batch)
    with torch.no_grad():
        return x, t, cond, original.call(*as_torch((x, t, cond))).numpy()


def gradients(original: Any, net: Any, by_params: Any, by_x: Any, x: Any, t: Any, cond: Any, weight: Any) -> float:
    """The largest difference by x, and by all weights, of the sum of the output times fixed numbers."""
    given = torch.from_numpy(x).requires_grad_()
    (original.call(given, *as_torch((t, cond))) * torch.from_numpy(weight)).sum().backward()
    ours = Published(by_params, original_of(original.name).naming(net.build))
    theirs = {name: each.grad.numpy() for name, each in original.network.named_parameters() if each.grad is not None}
    least = np.sqrt(sum(np.square(each).sum() for each in theirs.values()) / sum(each.size for each in theirs.values()))
    worst = apart(by_x, given.grad.numpy())
    for name, each in theirs.items():
        difference = np.abs(ours[name].reshape(each.shape) - each).max()
        worst = max(worst, float(difference / max(np.sqrt(np.square(each).mean()), least)))
    return worst


@pytest.mark.parametrize("layout", ["edm, DDPM++ and NCSN++", "edm2"])
def test_samples_of_edm(layout: str, tmp_path: Path) -> None:
    """Karras et al. 2022, algorithm 1, written out around the original's own preconditioned denoiser in float64."""
    original, _, model, rng = loaded(layout, 1, tmp_path)
    n, steps = 2, 5
    cond = {name: value for name, value in original.cond(rng, n).items() if name == "label"}
    noise = rng.normal(size=(n, *original.sizes[0], original.channels))
    label = None
    if cond:
        label = torch.nn.functional.one_hot(torch.from_numpy(cond["label"]), original.classes)
    levels = (80 ** (1 / 7) + np.arange(steps) / (steps - 1) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7

    def slope(x: Any, sigma: float) -> Any:
        planes = torch.from_numpy(x).permute(0, 3, 1, 2)
        with torch.no_grad():
            clean = original.network(planes, torch.full((n,), sigma), label).permute(0, 2, 3, 1).numpy()
        return (x - clean.astype(np.float64)) / sigma

    x = noise * levels[0]
    for sigma, after in zip(levels, [*levels[1:], 0.0], strict=True):
        first = slope(x, sigma)
        new = x + (after - sigma) * first
        x = new if after == 0 else x + (after - sigma) * 0.5 * (first + slope(new, after))
    sampled = model.sample(0, n, cond or None, steps=steps, x=noise * levels[0], decode=False)
    assert model.defaults.sampler == "heun" and model.defaults.grid == "karras"
    assert apart(sampled, x) < OUTPUT


class Waves(NamedTuple):
    """A network that is a formula: of x and of what it is told."""

    cond: Any = MappingProxyType({})

    def apply(self, params: Any, x: Any, t: Any, cond: Any = None, *, key: Any = None) -> Any:
        told = t.reshape(-1, 1, 1, 1) / 1000
        return jnp.concatenate([jnp.sin(x + told), jnp.cos(2 * x - told)], axis=-1)


@pytest.mark.parametrize(
    ("name", "schedule", "length", "steps", "told"),
    [
        ("adm-64", "cosine", 1000, 10, False),
        ("adm-256", "linear", 1000, 28, False),
        ("iddpm-cifar10", "cosine", 4000, 32, True),
        ("iddpm-imagenet64", "cosine", 4000, 4, False),
    ],
)
def test_steps_of_adm(name: str, schedule: str, length: int, steps: int, told: bool) -> None:
    """Mean and deviation of each step with the learned variance, over a part of the chain, and the last prediction."""
    respace = module("guided-diffusion", "guided_diffusion.respace")
    gaussian = sys.modules["guided_diffusion.gaussian_diffusion"]
    diffusion = respace.SpacedDiffusion(
        use_timesteps=respace.space_timesteps(length, [steps]),
        betas=gaussian.get_named_beta_schedule(schedule, length),
        model_mean_type=gaussian.ModelMeanType.EPSILON,
        model_var_type=gaussian.ModelVarType.LEARNED_RANGE,
        loss_type=gaussian.LossType.MSE,
        rescale_timesteps=told,
    )

    def waves(x: Any, t: Any) -> Any:
        told = t.reshape(-1, 1, 1, 1) / 1000
        return torch.cat([torch.sin(x + told), torch.cos(2 * x - told)], 1)

    original = original_of(name)
    process = original.process()
    denoise = NetworkDenoiser(Waves(), {}, process, original.parameterization)
    sampler = parse_sampler(original.defaults.sampler, process)
    times = uniform_times(process, steps)
    x = np.random.default_rng(0).normal(size=(2, 3, 3, 3)).astype(np.float32)
    for number in (0, 1, steps // 2, steps - 2, steps - 1):
        step = torch.full((2,), steps - 1 - number)
        with torch.no_grad():
            out = diffusion.p_mean_variance(waves, torch.from_numpy(x).permute(0, 3, 1, 2), step, clip_denoised=False)
        mean, log_variance, clean = (out[each].permute(0, 2, 3, 1) for each in ("mean", "log_variance", "pred_xstart"))
        t = times[number]
        assert apart(denoise(jnp.asarray(x), t).x0, clean) < OUTPUT
        if number == steps - 1:
            break

        def step_with(noise: float, t: Any = t, s: Any = times[number + 1]) -> Any:
            return sampler.step(denoise, lambda *_: jnp.full(x.shape, noise), (), jnp.asarray(x), t, s)[0]

        assert apart(step_with(0.0), mean) < OUTPUT
        far = 1e6  # so that the mean, which is large at the first step, takes no digits
        assert apart((step_with(far) - step_with(0.0)) / far, torch.exp(0.5 * log_variance)) < OUTPUT


def test_log_variance_of_edm2(tmp_path: Path) -> None:
    original, _, model, _ = loaded("edm2", 0, tmp_path)
    t = np.array(original.times, np.float32)
    with torch.no_grad():
        network, told = original.network, torch.from_numpy(t)
        theirs = network.logvar_linear(network.logvar_fourier(told))[:, 0].numpy()
    assert apart(log_variance(model.denoise.net, model.denoise.params, jnp.asarray(t)), theirs) < OUTPUT
