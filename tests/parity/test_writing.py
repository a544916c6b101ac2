"""Models written here are opened by diffusers: each part is the original, and a network of our own gives our answer."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxdiff import DiscreteVP, Eps, TimeIndex, linear_betas
from jaxdiff.networks import UNet, functional
from jaxdiff.pretrained import Loaded, load_pipeline, save_pipeline, write_network
from jaxdiff.pretrained.own import scheduler_fields, unet_fields
from tests.parity import controlnets, published
from tests.parity.originals import diffusers, pixels, planes, quiet, torch

pytestmark = pytest.mark.nightly
CASES: dict[str, Callable[[], published.Case]] = {
    "SD1": published.stable_diffusion,
    "SD2": published.stable_diffusion_2,
    "inpainting": published.inpainting,
    "LCM": published.latent_consistency,
    "SDXL": published.stable_diffusion_xl,
    "SDXL refiner": published.sdxl_refiner,
    "SD3": published.stable_diffusion_3,
    "FLUX dev": published.flux,
    "PixArt": published.pixart,
    "two ControlNets": functools.partial(controlnets.controlled, "DDIM", 2),
    "DiT": published.dit,
    "DDPM": published.ddpm,
}


@pytest.mark.parametrize("name", CASES)
def test_each_part_of_a_written_pipeline_is_the_original(name: str, tmp_path: Path) -> None:
    with quiet():
        pipe = CASES[name]().pipe
        pipe.save_pretrained(tmp_path / "theirs")
        save_pipeline(tmp_path / "ours", load_pipeline(tmp_path / "theirs"))
        again = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "ours")
    assert type(again) is type(pipe)
    assert {name for name, part in again.components.items() if part is not None} == {
        name for name, part in pipe.components.items() if part is not None
    }
    for part, original in pipe.components.items():
        written = getattr(again, part)
        if hasattr(original, "state_dict"):
            theirs, ours = original.state_dict(), written.state_dict()
            assert theirs.keys() == ours.keys()
            # SD3's positions are computed
            assert all(torch.allclose(theirs[key], ours[key], rtol=0, atol=2e-6) for key in theirs), part
        elif "tokenizer" in part and original is not None:
            assert original(published.PROMPTS).input_ids == written(published.PROMPTS).input_ids
    known = {name: value for name, value in pipe.scheduler.config.items() if not name.startswith("_")}
    assert {name: again.scheduler.config[name] for name in known} == known


def test_a_written_pipeline_draws_the_same(tmp_path: Path) -> None:
    case = published.stable_diffusion()
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with quiet(), torch.no_grad():
        case.pipe.save_pretrained(tmp_path / "theirs")
        save_pipeline(tmp_path / "ours", load_pipeline(tmp_path / "theirs"))
        again = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "ours")
        theirs, ours = (case.call(each, latents.clone(), 5) for each in (case.pipe, again))
    assert torch.equal(theirs, ours)


def test_a_network_of_our_own_is_theirs(tmp_path: Path) -> None:
    """A `UNet` with classes and a null, and its chain."""
    network = UNet(
        image_size=16, in_channels=1, width=128, multipliers=(1, 2), blocks=1, attention_resolutions=(8,), num_classes=4
    )
    net = functional(network)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: rng.normal(scale=0.05, size=leaf.shape).astype(np.float32),
        jax.eval_shape(net.init, jax.random.key(0)),
    )
    write_network(tmp_path, Loaded(net, params, unet_fields(network)))
    with quiet():
        theirs = diffusers.UNet2DModel.from_pretrained(tmp_path)
    x = rng.normal(size=(3, 16, 16, 1)).astype(np.float32)
    t, label = np.array([0.0, 300.0, 999.0], np.float32), np.array([0, 3, 4])
    with torch.no_grad():
        wanted = theirs(planes(torch.from_numpy(x)), torch.from_numpy(t), class_labels=torch.from_numpy(label)).sample
    found = np.asarray(net.apply(params, x, t, {"label": label}))
    wanted = pixels(wanted).numpy()
    assert np.abs(found - wanted).max() < 1e-4 * np.sqrt(np.square(wanted).mean())
    fields = scheduler_fields(DiscreteVP(linear_betas(1000)), Eps(time=TimeIndex(1000)))
    scheduler: Any = diffusers.DDPMScheduler.from_config(fields)
    alphas = np.asarray(DiscreteVP(linear_betas(1000)).alpha(np.arange(1, 1001) / 1000)) ** 2
    np.testing.assert_allclose(scheduler.alphas_cumprod.numpy(), alphas, rtol=1e-4)
