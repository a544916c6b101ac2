"""Two digits by a caption in a cascade, second stage: from 16x16 to 32x32 (Saharia et al. 2022, "Imagen",
arXiv:2205.11487, in small).

The network is told the caption, the small picture with noise on it, and the level of this noise, as Imagen's stages
are (section 2.4). The large pictures are the small ones enlarged (jaxdiff/data/two_digits.py), so that the stage has
less to invent than a photograph's.

Command:   jaxdiff train two_digits_cascade_32
           the whole cascade: see two_digits_cascade_16
Data:      made of the real digits in the package
Cost:      not measured
Expected:  not measured
"""

from jaxdiff import CosineVP, Stratified, V
from jaxdiff.codecs import Images
from jaxdiff.config import CheckpointConfig, Config, DataConfig, LossConfig, OptimizerConfig, SampleConfig, TrainConfig
from jaxdiff.data.tokenizers import Words
from jaxdiff.networks import Image, Level, Text, UNet
from jaxdiff.train.ema import Ema

config = Config(
    name="two_digits_cascade_32",
    data=DataConfig(name="two_digits", image_size=32),
    tokenizer=Words(length=9, size=24),
    process=CosineVP(),
    parameterization=V(),
    network=UNet(
        image_size=32,
        in_channels=1,
        width=16,
        multipliers=(1, 2, 2),
        blocks=1,
        attention_resolutions=(),
        transformer_layers=(0, 0, 1),
        heads=4,
        conditions=(
            Text("text", vocabulary=24, length=9, width=32, depth=1, heads=4),
            Image("low", (16, 16), 1, low=None, high=None),
            Level("low_level"),
        ),
    ),
    codec=Images((32, 32, 1), low_resolution=16, augment=0.5),
    loss=LossConfig(time=Stratified(), dropout={"text": 0.1}),
    optimizer=OptimizerConfig(lr=2e-3, schedule="cosine", warmup=50, final_fraction=0.05),
    ema=Ema(0.99),
    train=TrainConfig(steps=800, batch_size=32, log_every=50, sample_every=400),
    checkpoint=CheckpointConfig(every=400, keep=2),
    sample=SampleConfig(sampler="ddim", steps=20, grid="uniform", guide=("cfg:1.5",), num=100),
)
