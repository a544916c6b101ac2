"""Consistency models in one and in more steps: a pipeline of diffusers with random weights, and the same noise."""

from __future__ import annotations

from typing import Any
from unittest import mock

import numpy as np
import pytest

from jaxdiff.launch.errors import ConfigError
from jaxdiff.pretrained.pipeline import Pretrained, load_pipeline
from jaxdiff.sampling import Keep
from tests.parity.comparison import apart
from tests.parity.originals import diffusers, disturbed, quiet, torch
from tests.parity.published import channels_last, stepped
from tests.parity.test_pipelines import noise_of

pytestmark = pytest.mark.nightly
STEPS: list[dict[str, Any]] = [{"steps": 1}, {"steps": 2}, {"timesteps": [22, 0]}, {"timesteps": [18, 9, 0]}]
LABELS = [3, 1]


@pytest.fixture(scope="module")
def pipe() -> Any:
    network = diffusers.UNet2DModel(
        sample_size=8,
        block_out_channels=(32, 64),
        down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
        downsample_type="resnet",
        upsample_type="resnet",
        resnet_time_scale_shift="scale_shift",
        layers_per_block=1,
        attention_head_dim=16,
        attn_norm_num_groups=32,
        num_class_embeds=5,
    )
    made = diffusers.ConsistencyModelPipeline(
        unet=disturbed(network, 9, 0.3), scheduler=diffusers.CMStochasticIterativeScheduler()
    )
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def model(pipe: Any, tmp_path_factory: pytest.TempPathFactory) -> Pretrained:
    folder = tmp_path_factory.mktemp("consistency")
    with quiet():
        pipe.save_pretrained(folder)
    return load_pipeline(folder)


@pytest.mark.parametrize("steps", STEPS, ids=str)
def test_the_same_noise_gives_the_same_pictures(pipe: Any, model: Pretrained, steps: dict[str, Any]) -> None:
    noises = noise_of(0, 2, model.shape, range(-1, 4))
    drawn = [torch.from_numpy(np.ascontiguousarray(noises[i].transpose(0, 3, 1, 2))) for i in range(-1, 4)]
    module = __import__(type(pipe.scheduler).__module__, fromlist=["randn_tensor"])
    given = {"num_inference_steps" if name == "steps" else name: value for name, value in steps.items()}
    with (
        quiet(),
        torch.no_grad(),
        mock.patch.object(module, "randn_tensor", lambda *_, **__: drawn[pipe.scheduler.step_index + 1]),
    ):
        theirs = channels_last(stepped(pipe, drawn[0], batch_size=2, class_labels=LABELS, output_type="pt", **given))
    found = model.sample(0, 2, {"label": LABELS}, strict=True, decode=False, **steps)
    assert apart(found, theirs) < 1e-3


def test_our_sampler_visits_the_same_levels(model: Pretrained) -> None:
    """In one step it is theirs; in two, x0 is what the model says of x at the second level."""
    x, cond = 80 * noise_of(0, 2, model.shape, [-1])[-1], {"label": LABELS}
    one = model.sample(0, 2, cond, x=x, steps=1, decode=False)
    assert apart(one, model.sample(0, 2, cond, x=x, steps=1, strict=True, decode=False)) < 1e-3
    found, kept = model.sample(0, 2, cond, x=x, timesteps=[22, 0], decode=False, keep=Keep(at=(1,)))
    level = (80 ** (1 / 7) + 22 / 39 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    t = model.process.time_of_log_snr(-2 * np.log(level))
    said = model.denoise(kept.x[0], t, {"label": np.array(LABELS)}).x0.clip(-1, 1)
    assert apart(found, said) < 1e-3
    assert 0.8 < np.std(kept.x[0] - one) / level < 1.2  # its noise, of 384 numbers


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timesteps": [40, 0]}, r"timesteps is indices from 0 to 39, such as \[22, 0\], got \[40, 0\]"),
        ({"timesteps": 3}, "got 3"),
        ({"timesteps": [3, 3]}, "timesteps has an index twice"),
        ({"timesteps": [3, 0], "steps": 2}, "timesteps are the steps themselves: leave steps out"),
    ],
)
def test_timesteps_that_are_none(model: Pretrained, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        model.sample(0, 1, {"label": 3}, **options)
