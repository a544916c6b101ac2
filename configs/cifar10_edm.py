"""CIFAR-10 as in Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative Models".

Command:   jaxdiff train cifar10_edm --data.name tfds:cifar10
Cost:      200 million images in batches of 512; in the paper about 2 days on 8 V100
Expected:  FID 1.97 with 35 evaluations (the paper's, table 2; not measured here)

Unconditional. Of the paper's training (table 7) two things differ: of its augmentation only flips, and instead of its
DDPM++ network the nearest `UNet`.
"""

from jaxdiff import Karras, KarrasVE, KarrasWeight, LogNormalSigma
from jaxdiff.config import CheckpointConfig, Config, DataConfig, LossConfig, OptimizerConfig, SampleConfig, TrainConfig
from jaxdiff.networks import UNet
from jaxdiff.train.ema import HalfLifeEma

BATCH = 512

config = Config(
    name="cifar10_edm",
    data=DataConfig(name="cifar10", flip=True),
    process=KarrasVE(sigma_min=0.002, sigma_max=80.0, rho=7.0),
    parameterization=Karras(sigma_data=0.5),
    network=UNet(
        image_size=32,
        width=128,
        multipliers=(2, 2, 2),
        blocks=4,
        attention_resolutions=(16,),
        scale_shift=True,
        residual_resampling=True,
        dropout=0.13,
    ),
    loss=LossConfig(weight=KarrasWeight(sigma_data=0.5), time=LogNormalSigma(mean=-1.2, std=1.2)),
    optimizer=OptimizerConfig(lr=1e-3, warmup=10_000_000 // BATCH, clip_norm=None),
    ema=HalfLifeEma(images=500_000, ramp_up=0.05),
    train=TrainConfig(steps=200_000_000 // BATCH, batch_size=BATCH, log_every=100, sample_every=5000),
    checkpoint=CheckpointConfig(every=5000, keep=3),
    sample=SampleConfig(sampler="heun", steps=18, grid="karras", clip=False),
)
