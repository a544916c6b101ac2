"""Whole pipelines of diffusers with random weights, saved by diffusers and read here: by strict steps the same noise in
gives the same latents and the same pictures.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.noise import sample_keys
from jaxdiff.pretrained import schedulers
from jaxdiff.pretrained.fields import Fields
from jaxdiff.pretrained.pipeline import load_pipeline
from tests.parity import controlnets, published
from tests.parity.originals import quiet, torch

pytestmark = pytest.mark.nightly
SCHEDULERS: dict[str, dict[str, Any]] = {
    "DDIM": {},
    "EulerDiscrete": {"timestep_spacing": "leading"},
    "EulerAncestralDiscrete": {},
    "DPMSolverMultistep": {"use_karras_sigmas": True},
    "UniPCMultistep": {},
    "HeunDiscrete": {},
    "PNDM": {"skip_prk_steps": True},
}
CASES: dict[str, tuple[Callable[[], published.Case], int]] = {
    **{f"SD1 {name}": (functools.partial(published.stable_diffusion, name, **o), 20) for name, o in SCHEDULERS.items()},
    "SD2": (published.stable_diffusion_2, 20),
    "inpainting": (published.inpainting, 20),
    "LCM": (published.latent_consistency, 4),
    "SDXL": (published.stable_diffusion_xl, 20),
    "SDXL empty text": (functools.partial(published.stable_diffusion_xl, False), 20),
    "SDXL refiner": (published.sdxl_refiner, 20),
    "SDXL refiner, no negative text": (functools.partial(published.sdxl_refiner, True), 20),
    "SD3": (published.stable_diffusion_3, 20),
    "FLUX dev": (published.flux, 20),
    "FLUX schnell": (functools.partial(published.flux, False), 4),
    "PixArt": (published.pixart, 20),
    "PixArt Alpha": (functools.partial(published.pixart, "Alpha"), 20),
    "ControlNet": (controlnets.controlled, 20),
    "two ControlNets": (functools.partial(controlnets.controlled, "DDIM", 2), 20),
    "ControlNet of SDXL": (controlnets.controlled_xl, 20),
    "DiT": (published.dit, 20),
    "DDPM": (published.ddpm, 20),
    "DDPM of large variances": (functools.partial(published.ddpm, variance_type="fixed_large"), 20),
    "DDIM": (functools.partial(published.ddpm, "DDIM", clip_sample=False), 20),
}


@pytest.mark.filterwarnings("ignore::jaxdiff.pretrained.LongPrompt")
@pytest.mark.parametrize("name", CASES)
def test_the_same_noise_gives_the_same_pictures(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make, steps = CASES[name]
    with quiet():
        case = make()
        case.pipe.set_progress_bar_config(disable=True)
        case.pipe.save_pretrained(tmp_path / "theirs")
    model = load_pipeline(tmp_path / "theirs", length=published.length_of(tmp_path / "theirs"))
    options = dict(case.options)
    size = options.pop("size", None)
    shape = model.model.shape if size is None else (*(side // model.model.codec.net.factor for side in size), 4)  # type: ignore[attr-defined]
    noise = noise_of(0, 2, shape, range(-1, 40))
    first = noise[-1]

    drawn = {"number": 0}

    def next_noise(*_: Any, **__: Any) -> Any:  # evaluation i draws the noise i
        drawn["number"] += 1
        return torch.from_numpy(noise[drawn["number"] - 1].transpose(0, 3, 1, 2))

    module = __import__(type(case.pipe.scheduler).__module__, fromlist=["randn_tensor"])
    monkeypatch.setattr(module, "randn_tensor", next_noise, raising=False)
    with quiet(), torch.no_grad():
        latents = case.call(case.pipe, torch.from_numpy(first.transpose(0, 3, 1, 2)).contiguous(), steps)
        pixels = latents
        if (vae := case.pipe.components.get("vae")) is not None:
            pixels = vae.decode(latents / vae.config.scaling_factor + (vae.config.shift_factor or 0.0)).sample
    table = schedulers.table(Fields(model.scheduler), steps, tokens=int(np.prod(shape[:2])) // 4, even="FLUX" in name)
    given: dict[str, Any] = {"strict": True, "steps": steps, "size": size, "x": first * table.start, **options}
    found = model.sample(0, 2, case.cond, decode=False, **given)
    theirs = published.channels_last(latents)
    assert np.abs(found - theirs).max() < 1e-3 * np.sqrt(np.square(theirs).mean())
    pictures = model.sample(0, 2, case.cond, **given)["x"].astype(int)
    wanted = np.round((published.channels_last(pixels) / 2 + 0.5).clip(0, 1) * 255)
    assert np.abs(pictures - wanted).max() <= 1
    if name in ("SDXL refiner", "PixArt", "DiT", "DDPM"):
        ours = model.sample(0, 2, case.cond, decode=False, steps=2, guide=options.get("guide"))
        assert ours.shape == found.shape and np.isfinite(ours).all()


def noise_of(seed: int, n: int, shape: tuple[int, ...], numbers: Any) -> dict[int, Any]:
    """What strict steps draw, by the number of the evaluation."""
    keys = sample_keys(jax.random.key(seed), 0, n)

    def draw(number: int) -> Any:
        return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, jnp.array(number)), shape))(keys)

    return {number: np.asarray(draw(number)) for number in numbers}
