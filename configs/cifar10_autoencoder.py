"""CIFAR-10, an autoencoder with latents of 8x8x4: `cifar10_latent_dit` diffuses in them.

Command:   jaxdiff train cifar10_autoencoder --data.path DIR    (DIR holds train.parquet and test.parquet)
           jaxdiff train cifar10_autoencoder --data.name tfds:cifar10
Cost:      5 minutes on two CPU cores
Expected:  25.8 dB of PSNR and 0.843 of SSIM on the test split
"""

from jaxdiff.autoencoding import AutoencoderLoss
from jaxdiff.config import AutoencoderConfig, CheckpointConfig, DataConfig, OptimizerConfig, TrainConfig
from jaxdiff.networks import KLAutoencoder
from jaxdiff.train.ema import Ema

config = AutoencoderConfig(
    name="cifar10_autoencoder",
    data=DataConfig(name="cifar10", flip=True),
    network=KLAutoencoder(width=32, multipliers=(1, 2), blocks=1, middle_attention=False, patch=2),
    loss=AutoencoderLoss(distance="l2"),  # which is what PSNR measures
    optimizer=OptimizerConfig(lr=2e-3, schedule="cosine", warmup=50, final_fraction=0.02),
    ema=Ema(0.99),
    train=TrainConfig(steps=2400, batch_size=32, log_every=100, sample_every=1200),
    checkpoint=CheckpointConfig(every=1200, keep=2),
)
