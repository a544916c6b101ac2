"""CIFAR-10 in a cascade, second stage: 8x8 to 32x32 by class and small picture (Ho et al. 2021, "Cascaded Diffusion
Models", arXiv:2106.15282).

In training the small copy of a picture is noised, at a level that the network is told. The process is shifted by the
resolution: of 32 pixels as CosineVP is of 64 (Hoogeboom et al. 2023, "simple diffusion", arXiv:2301.11093, section 3).

Command:   jaxdiff train cifar10_cascade_32 --data.path DIR      (DIR holds train.parquet)
           the whole cascade: see cifar10_cascade_8
Cost:      200,000 steps of 128 pictures of 32x32: for an accelerator
Expected:  not measured: nobody has run these commands to their last step yet
"""

from jaxdiff import CosineVP, Stratified, V, at_resolution
from jaxdiff.codecs import Images
from jaxdiff.config import CheckpointConfig, Config, DataConfig, LossConfig, OptimizerConfig, SampleConfig, TrainConfig
from jaxdiff.networks import Image, Level, UNet
from jaxdiff.train.ema import Ema

config = Config(
    name="cifar10_cascade_32",
    data=DataConfig(name="cifar10", flip=True),
    process=at_resolution(CosineVP(), 32, base=64),
    parameterization=V(),
    network=UNet(
        image_size=32,
        width=96,
        multipliers=(1, 2, 2),
        blocks=2,
        attention_resolutions=(16, 8),
        num_classes=10,
        conditions=(Image("low", (8, 8), 3, low=None, high=None), Level("low_level")),
        dropout=0.1,
    ),
    codec=Images((32, 32, 3), flip=True, low_resolution=8, augment=0.5),
    loss=LossConfig(time=Stratified(), dropout={"label": 0.1}),
    optimizer=OptimizerConfig(lr=3e-4, warmup=1000),
    ema=Ema(0.9999),
    train=TrainConfig(steps=200_000, batch_size=128, log_every=100, sample_every=10_000),
    checkpoint=CheckpointConfig(every=10_000, keep=3),
    sample=SampleConfig(sampler="ddim", steps=50, grid="uniform", guide=("cfg:1.5",), num=100),
)
