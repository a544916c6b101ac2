"""MNIST in a cascade, second stage: from 8x8 to 28x28, by class and small picture (Ho et al. 2021, "Cascaded Diffusion
Models", arXiv:2106.15282).

In training the small copy of a digit is noised, at a level that the network is told. In sampling it is a picture of
`mnist_cascade_8`. Both stages together are trained with as many floating-point operations as `mnist_unet`.

Command:   jaxdiff train mnist_cascade_28 --data.path DIR      (DIR holds train.parquet)
           the whole cascade: see mnist_cascade_8
Cost:      four fifths of mnist_unet's: 78% of its floating-point operations, reckoned and not timed
Expected:  not measured yet: see mnist_cascade_8
"""

from jaxdiff import CosineVP, Stratified, V
from jaxdiff.codecs import Images
from jaxdiff.config import CheckpointConfig, Config, DataConfig, LossConfig, OptimizerConfig, SampleConfig, TrainConfig
from jaxdiff.networks import Image, Level, UNet
from jaxdiff.train.ema import Ema

config = Config(
    name="mnist_cascade_28",
    data=DataConfig(name="mnist"),
    process=CosineVP(),
    parameterization=V(),
    network=UNet(
        image_size=28,
        in_channels=1,
        width=16,
        multipliers=(1, 2, 4),
        blocks=1,
        attention_resolutions=(7,),
        num_classes=10,
        conditions=(Image("low", (8, 8), 1, low=None, high=None), Level("low_level")),
    ),
    codec=Images((28, 28, 1), low_resolution=8, augment=0.5),
    loss=LossConfig(time=Stratified(), dropout={"label": 0.1}),
    optimizer=OptimizerConfig(lr=2e-3, schedule="cosine", warmup=50, final_fraction=0.05),
    ema=Ema(0.99),
    train=TrainConfig(steps=778, batch_size=32, log_every=50, sample_every=389),
    checkpoint=CheckpointConfig(every=389, keep=2),
    sample=SampleConfig(sampler="ddim", steps=20, grid="uniform", guide=("cfg:1.5",), num=100),
)
