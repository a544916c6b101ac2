"""MNIST from 8 to 16 pixels: a picture as the condition of a picture (Saharia et al. 2021, "SR3", arXiv:2104.07636).

The digits are resized to 16x16. The condition "low" is their mean over squares of 2x2 pixels, made by the codec, and
stands enlarged beside the noisy sample. It is never dropped, so it cannot be left out: sampling without one takes the
conditions of some training records, which the run keeps (examples.npz).

Command:   python train.py configs/mnist_superres.py --data.path DIR      (DIR holds train.parquet)
Cost:      a minute and a half on two CPU cores
Expected:  the 2x2 means of samples are the condition's within 3 grey levels (root mean square): docs/results.md
"""

from jaxdiff import CosineVP, Stratified, V
from jaxdiff.codecs import Images
from jaxdiff.config import CheckpointConfig, Config, DataConfig, LossConfig, OptimizerConfig, SampleConfig, TrainConfig
from jaxdiff.networks import Image, UNet
from jaxdiff.train.ema import Ema

config = Config(
    name="mnist_superres",
    data=DataConfig(name="mnist", image_size=16, resize=True),
    process=CosineVP(),
    parameterization=V(),
    network=UNet(
        image_size=16,
        in_channels=1,
        width=16,
        multipliers=(1, 2),
        blocks=1,
        attention_resolutions=(),
        conditions=(Image("low", (8, 8), 1, null=False),),
    ),
    codec=Images((16, 16, 1), low_resolution=8),
    loss=LossConfig(time=Stratified()),
    optimizer=OptimizerConfig(lr=2e-3, schedule="cosine", warmup=50, final_fraction=0.05),
    ema=Ema(0.99),
    train=TrainConfig(steps=1000, batch_size=32, log_every=50, sample_every=500),
    checkpoint=CheckpointConfig(every=500, keep=2),
    sample=SampleConfig(sampler="ddim", steps=20, grid="uniform", num=64),
)
