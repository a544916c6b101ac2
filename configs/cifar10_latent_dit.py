"""CIFAR-10 by class in the latents of `cifar10_autoencoder`, 8x8x4, by a diffusion transformer (Peebles & Xie 2023).

Command:   jaxdiff train cifar10_autoencoder --data.path DIR    (DIR holds train.parquet and test.parquet)
           jaxdiff train cifar10_latent_dit --data.path DIR
Cost:      100,000 steps of 128 latents, 64 tokens each: a few hours on one accelerator; the set and its mirror images
           are encoded once before the first step, 102 MB
Expected:  what the autoencoder loses bounds it: PSNR and SSIM of its reconstructions, in its latents.json (`jaxdiff
           evaluate runs/cifar10_autoencoder`). Nobody has run these commands to their last step yet
"""

from jaxdiff import Flow, LogitNormal, Velocity
from jaxdiff.codecs import Latents
from jaxdiff.config import CheckpointConfig, Config, DataConfig, LossConfig, OptimizerConfig, SampleConfig, TrainConfig
from jaxdiff.networks import DiT
from jaxdiff.train.ema import Ema

config = Config(
    name="cifar10_latent_dit",
    data=DataConfig(name="cifar10", flip=True),
    process=Flow(),
    parameterization=Velocity(),
    network=DiT(in_channels=4, patch=1, width=384, depth=12, heads=6, num_classes=10),
    codec=Latents("runs/cifar10_autoencoder"),
    loss=LossConfig(time=LogitNormal(), dropout={"label": 0.1}),
    optimizer=OptimizerConfig(lr=3e-4, warmup=1000),
    ema=Ema(0.9999),
    train=TrainConfig(steps=100_000, batch_size=128, log_every=100, sample_every=10_000),
    checkpoint=CheckpointConfig(every=10_000, keep=3),
    sample=SampleConfig(sampler="heun:t", steps=40, grid="uniform", guide=("cfg:1.5",), num=100),
)
