"""CIFAR-10 in a cascade, first stage: 8x8 by class (Ho et al. 2021, "Cascaded Diffusion Models", arXiv:2106.15282).

The pictures are the small copies that the second stage, `cifar10_cascade_32`, learns to enlarge: means of 4x4 pixels.

Command:   jaxdiff train cifar10_cascade_8 --data.path DIR      (DIR holds train.parquet)
           jaxdiff train cifar10_cascade_32 --data.path DIR
           echo '{"stages": ["cifar10_cascade_8", {"run": "cifar10_cascade_32", "level": 0.1}]}' > runs/cifar10.json
           jaxdiff sample runs/cifar10.json
Cost:      100,000 steps of 128 pictures of 8x8: for an accelerator
Expected:  not measured: nobody has run these commands to their last step yet
"""

from jaxdiff import CosineVP, Stratified, V
from jaxdiff.codecs import Images
from jaxdiff.config import CheckpointConfig, Config, DataConfig, LossConfig, OptimizerConfig, SampleConfig, TrainConfig
from jaxdiff.networks import UNet
from jaxdiff.train.ema import Ema

config = Config(
    name="cifar10_cascade_8",
    data=DataConfig(name="cifar10", flip=True),
    process=CosineVP(),
    parameterization=V(),
    network=UNet(
        image_size=8,
        width=128,
        multipliers=(1, 2),
        blocks=3,
        attention_resolutions=(8, 4),
        num_classes=10,
        dropout=0.1,
    ),
    codec=Images((8, 8, 3), flip=True, shrinks=True),
    loss=LossConfig(time=Stratified(), dropout={"label": 0.1}),
    optimizer=OptimizerConfig(lr=3e-4, warmup=1000),
    ema=Ema(0.9999),
    train=TrainConfig(steps=100_000, batch_size=128, log_every=100, sample_every=10_000),
    checkpoint=CheckpointConfig(every=10_000, keep=3),
    sample=SampleConfig(sampler="ddim", steps=50, grid="uniform", guide=("cfg:1.5",), num=100),
)
