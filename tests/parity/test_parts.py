"""A part of diffusers' steps: begun with a picture, with a part of one kept, and split between a base and its refiner.

Schedulers by themselves, then pipelines with random weights: the same noise gives the same latents. The autoencoder's
latents are its mean on both sides.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.pretrained.fields import Fields
from jaxdiff.pretrained.pipeline import load_pipeline
from jaxdiff.pretrained.schedulers import evaluations, table
from jaxdiff.pretrained.schedulers.steps import Picture, follow
from tests.parity import controlnets, published
from tests.parity.comparison import apart
from tests.parity.originals import diffusers, quiet, torch
from tests.parity.published import NEGATIVE, PROMPTS
from tests.parity.test_pipelines import noise_of
from tests.parity.test_schedulers import CLASSES, MIXING, NETWORKS, NOISE, SD, Brownian, X, noise, original

pytestmark = [pytest.mark.nightly, pytest.mark.filterwarnings("ignore::jaxdiff.pretrained.LongPrompt")]
SDE = {"algorithm_type": "sde-dpmsolver++"}
FLOWS = ("FlowMatchEulerDiscrete", "FlowMatchHeunDiscrete", "FlowMatchLCM")
CONFIGS: list[tuple[str, dict[str, Any]]] = [
    *((name, {**SD, **options}) for name, options in CLASSES.items() if name != "DDIMInverse"),
    ("DPMSolverMultistep", {**SD, "solver_order": 3, "use_karras_sigmas": True}),
    ("DPMSolverMultistep", {**SD, **SDE, "solver_type": "heun"}),
    ("DPMSolverSinglestep", {**SD, "solver_order": 3}),
    ("DPMSolverSinglestep", {**SD, "solver_order": 2}),
    ("UniPCMultistep", {**SD, "solver_order": 3}),
    ("EulerDiscrete", {**SD, "timestep_spacing": "leading"}),
    ("LCM", {}),
    ("TCD", {}),
    ("EDMEuler", {}),
    ("EDMDPMSolverMultistep", {}),
    *((name, {"shift": 3.0}) for name in FLOWS),
]
PICTURE = np.random.default_rng(5).normal(size=X.shape).astype(np.float32)
MASK = np.zeros((2, 4, 1), np.float32)
MASK[:, 1:3] = 1
compiled = jax.jit(follow, static_argnames=("network", "noise"))


@pytest.mark.parametrize("begin", [0, 1, 4])
@pytest.mark.parametrize(("name", "config"), CONFIGS)
def test_a_picture_with_noise_on_it(name: str, config: dict[str, Any], begin: int) -> None:
    """And with a part of it kept, as diffusers' inpainting pipelines do after each step."""
    scale = 2.0 if name.startswith("EDM") else 300.0
    fields = Fields({"_class_name": f"{name}Scheduler", **config})
    steps = table(fields, 9, begin=begin, eta=0.3 if name == "TCD" else 0.0).from_picture()  # 0.3: TCD's own default
    first = steps.begin[0] * PICTURE + steps.begin[1] * X
    each = evaluations(fields)
    for masked in (False, True):
        picture = Picture(*map(jnp.asarray, (PICTURE, X, MASK))) if masked else None
        with quiet():
            expected = _theirs(original(f"{name}Scheduler")(**config), begin * each, scale, masked)
        found = compiled(steps, NETWORKS[scale], jnp.asarray(first), noise, picture)
        assert apart(found, expected) < 1e-4, masked


def _theirs(scheduler: Any, begin: int, scale: float, masked: bool) -> Any:
    scheduler.set_timesteps(9)
    ts = scheduler.timesteps[begin:]
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begin)
    add = getattr(scheduler, "add_noise", None)

    def noised(t: Any) -> Any:
        given = torch.from_numpy(PICTURE), torch.from_numpy(X)
        return add(*given, t) if add else scheduler.scale_noise(given[0], t, given[1])

    if type(scheduler).__name__.startswith(("DEIS", "SA")):  # their integrals cancel in float32
        scheduler.sigmas = scheduler.sigmas.double()
    x, drawn = noised(ts[:1]), {"i": begin}
    module: Any = __import__(type(scheduler).__module__, fromlist=["randn_tensor"])
    if hasattr(module, "BrownianTreeNoiseSampler"):
        scheduler.noise_sampler = Brownian()
        scheduler.noise_sampler.calls = begin
    with mock.patch.object(module, "randn_tensor", lambda *_, **__: torch.from_numpy(NOISE[drawn["i"]]), create=True):
        for i, t in enumerate(ts):
            drawn["i"] = begin + i
            given = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
            f = torch.tanh(given @ torch.from_numpy(MIXING).to(x.dtype)) + 0.3 * torch.cos(t / scale) * given
            x = scheduler.step(f, t, x).prev_sample
            if masked:
                kept = noised(ts[i + 1 : i + 2]) if i + 1 < len(ts) else torch.from_numpy(PICTURE)
                x = torch.from_numpy(MASK) * x + (1 - torch.from_numpy(MASK)) * kept
    return x.numpy()


# --- Whole pipelines

IMAGES = controlnets.pictures(40)
PIXELS = np.zeros((2, 16, 16), np.uint8)
PIXELS[:, 4:12, 6:] = 1
GUIDED: dict[str, Any] = {"negative_prompt": NEGATIVE, "guidance_scale": 7.5}
Made = tuple[Callable[[], published.Case], str, dict[str, Any]]
SD1 = (published.stable_diffusion, "StableDiffusionImg2ImgPipeline", GUIDED)
XL = (published.stable_diffusion_xl, "StableDiffusionXLImg2ImgPipeline", {"guidance_scale": 5.0})
SIZED = {"height": 16, "width": 16, "max_sequence_length": 20}
FLUX = {**SIZED, "guidance_scale": 3.5}
REFINING = {"original_size": (16, 16), "target_size": (16, 16), "guidance_scale": 5.0}
PICTURES: dict[str, tuple[Made, float]] = {
    **{
        f"SD1 {name}": ((functools.partial(published.stable_diffusion, name, **options), *SD1[1:]), strength)
        for name, options, strength in (
            ("DDIM", {}, 0.6),
            ("PNDM", {"skip_prk_steps": True}, 0.6),
            ("EulerAncestralDiscrete", {}, 0.29),
            ("DPMSolverMultistep", {"use_karras_sigmas": True}, 1.0),
            ("HeunDiscrete", {}, 0.5),
            ("LCM", {}, 0.5),
        )
    },
    "LCM": ((published.latent_consistency, "LatentConsistencyModelImg2ImgPipeline", {"guidance_scale": 6.0}), 0.6),
    "SDXL": (XL, 0.3),
    "SDXL refiner": ((published.sdxl_refiner, XL[1], REFINING), 0.3),
    "SD3": ((published.stable_diffusion_3, "StableDiffusion3Img2ImgPipeline", {**SIZED, **GUIDED}), 0.33),
    "FLUX": ((published.flux, "FluxImg2ImgPipeline", FLUX), 0.62),
    "ControlNet": (
        (controlnets.controlled, "StableDiffusionControlNetImg2ImgPipeline", {**GUIDED, "controlled": 0.8}),
        0.6,
    ),
}
PARTS: dict[str, tuple[Made, float | None]] = {
    "SD1": ((SD1[0], "StableDiffusionInpaintPipeline", {**GUIDED, "height": 16, "width": 16}), None),
    "SD1 with a strength": ((SD1[0], "StableDiffusionInpaintPipeline", {**GUIDED, "height": 16, "width": 16}), 0.6),
    "SD1 of nine channels": (
        (published.inpainting, "StableDiffusionInpaintPipeline", {**GUIDED, "height": 16, "width": 16}),
        0.6,
    ),
    "SDXL": ((XL[0], "StableDiffusionXLInpaintPipeline", {**XL[2], "height": 16, "width": 16}), 0.7),
    "SD3": ((published.stable_diffusion_3, "StableDiffusion3InpaintPipeline", {**SIZED, **GUIDED}), None),
}


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_in_give_the_same_latents(name: str, tmp_path: Path) -> None:
    made, strength = PICTURES[name]
    _compare(made, strength, None, 4 if name == "LCM" else 15, tmp_path)


@pytest.mark.parametrize("name", PARTS)
def test_a_part_of_a_picture_drawn_anew_gives_the_same_latents(name: str, tmp_path: Path) -> None:
    made, strength = PARTS[name]
    _compare(made, strength, PIXELS, 15, tmp_path)


def _compare(made: Made, strength: float | None, mask: Any, n: int, tmp_path: Path) -> None:
    make, kind, options = made
    options = dict(options)
    with quiet():
        case = make()
        case.pipe.set_progress_bar_config(disable=True)
        case.pipe.save_pretrained(tmp_path / "theirs")
    model = load_pipeline(tmp_path / "theirs", length=published.length_of(tmp_path / "theirs"))
    ours = dict(case.options)
    size = ours.pop("size", None)
    shape = model.model.shape if size is None else (8, 8, 4)
    given: dict[str, Any] = {"image": IMAGES, "strict": True, "steps": n, "size": size, **ours}
    given |= {"strength": strength} if strength is not None else {}
    found = model.sample(0, 2, case.cond if mask is None else _told(case.cond), mask=mask, decode=False, **given)
    pipe = case.pipe
    if type(pipe).__name__ != kind:
        parts = pipe.components
        plain = {} if "StableDiffusion3" in kind or "Flux" in kind else {"requires_safety_checker": False}
        plain = {"add_watermarker": False} if "XL" in kind else {} if "Consistency" in kind else plain
        with quiet():
            pipe = getattr(diffusers, kind)(**parts, **plain)
            pipe.set_progress_bar_config(disable=True)
    image = torch.from_numpy(IMAGES).permute(0, 3, 1, 2) / 255
    if (scale := options.pop("controlled", None)) is not None:
        told = torch.from_numpy(controlnets.pictures(30)).permute(0, 3, 1, 2) / 255
        options |= {"control_image": told, "controlnet_conditioning_scale": scale}
    if mask is not None:
        options["mask_image"] = torch.from_numpy(mask[:, None].astype(np.float32))
    asked = {"image": image, "strength": 1.0 if strength is None else strength, "num_inference_steps": n}
    with drawing(pipe, noise_of(0, 2, shape, range(-1, 40))):
        theirs = pipe(PROMPTS, output_type="latent", **asked, **options).images
    if "Flux" in kind:
        theirs = pipe._unpack_latents(theirs, 16, 16, pipe.vae_scale_factor)
    assert apart(found, published.channels_last(theirs)) < 1e-3


def _told(cond: Any) -> dict[str, Any]:
    """What the network is told, without what it is told of a mask."""
    return {name: value for name, value in cond.items() if name not in ("mask", "masked")}


@contextlib.contextmanager
def drawing(pipe: Any, noises: dict[int, Any]) -> Iterator[None]:
    """diffusers draws our noise, and of an autoencoder its mean."""

    def drawn(number: int) -> Any:
        return torch.from_numpy(np.ascontiguousarray(noises[number].transpose(0, 3, 1, 2)))

    scheduler = sys.modules[type(pipe.scheduler).__module__]
    posterior: Any = importlib.import_module("diffusers.models.autoencoders.vae").DiagonalGaussianDistribution
    with (
        mock.patch.object(sys.modules[type(pipe).__module__], "randn_tensor", lambda *_, **__: drawn(-1)),
        mock.patch.object(scheduler, "randn_tensor", lambda *_, **__: drawn(pipe.scheduler.step_index), create=True),
        mock.patch.object(posterior, "sample", lambda self, *_, **__: self.mode()),
        torch.no_grad(),
        quiet(),
    ):
        yield


# --- A base and its refiner

SPLIT: dict[str, tuple[str, dict[str, Any], float]] = {
    "Euler": ("EulerDiscrete", {"timestep_spacing": "leading"}, 0.8),
    "Euler ancestral": ("EulerAncestralDiscrete", {"timestep_spacing": "trailing"}, 0.55),
    "DPM++": ("DPMSolverMultistep", {}, 0.7),
    "Heun, whole steps": ("HeunDiscrete", {}, 0.7),
    "Heun, half of a step twice": ("HeunDiscrete", {}, 0.5),
}


@pytest.mark.parametrize("name", SPLIT)
def test_a_base_and_its_refiner_give_the_same_latents(name: str, tmp_path: Path) -> None:
    kind, options, share = SPLIT[name]
    n, shape = 10, (8, 8, 4)
    noises = noise_of(0, 2, shape, range(-1, 40))
    with quiet():
        pipes = [published.stable_diffusion_xl().pipe, published.sdxl_refiner().pipe]
        for number, pipe in enumerate(pipes):
            pipe.register_modules(scheduler=published.scheduler(kind, **options))
            pipe.set_progress_bar_config(disable=True)
            pipe.save_pretrained(tmp_path / str(number))
    base, refiner = (load_pipeline(tmp_path / str(number)) for number in range(2))
    asked: dict[str, Any] = {"num_inference_steps": n, "output_type": "latent", "guidance_scale": 5.0}
    first = torch.from_numpy(np.ascontiguousarray(noises[-1].transpose(0, 3, 1, 2)))
    with drawing(pipes[0], noises):
        half = pipes[0](PROMPTS, latents=first, height=16, width=16, denoising_end=share, **asked).images
    sizes = {"original_size": (16, 16), "target_size": (16, 16)}
    with drawing(pipes[1], noises):
        theirs = pipes[1](PROMPTS, image=half, denoising_start=share, **asked, **sizes).images
    given: dict[str, Any] = {"guide": "cfg:5", "strict": True, "steps": n}
    x = base.sample(0, 2, {"text": PROMPTS}, denoising_end=share, **given)
    assert apart(x, published.channels_last(half)) < 1e-3
    found = refiner.sample(0, 2, {"text": PROMPTS}, x=x, denoising_start=share, decode=False, **given)
    assert apart(found, published.channels_last(theirs)) < 1e-3
