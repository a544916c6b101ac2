"""MNIST, an autoencoder with latents of 7x7x2: `mnist_latent_unet` diffuses in them.

Command:   jaxdiff train mnist_autoencoder --data.path DIR      (DIR holds train.parquet and test.parquet)
           jaxdiff train mnist_autoencoder --data.name tfds:mnist
Cost:      2 minutes on two CPU cores
Expected:  27.6 dB of PSNR and 0.956 of SSIM on the test split
"""

from jaxdiff.autoencoding import AutoencoderLoss
from jaxdiff.config import AutoencoderConfig, CheckpointConfig, DataConfig, OptimizerConfig, TrainConfig
from jaxdiff.networks import KLAutoencoder
from jaxdiff.train.ema import Ema

config = AutoencoderConfig(
    name="mnist_autoencoder",
    data=DataConfig(name="mnist"),
    network=KLAutoencoder(
        in_channels=1, channels=2, width=24, multipliers=(1, 2), blocks=1, middle_attention=False, patch=2
    ),
    loss=AutoencoderLoss(distance="l2"),  # which is what PSNR measures
    optimizer=OptimizerConfig(lr=2e-3, schedule="cosine", warmup=50, final_fraction=0.02),
    ema=Ema(0.99),
    train=TrainConfig(steps=1200, batch_size=32, log_every=50, sample_every=600),
    checkpoint=CheckpointConfig(every=600, keep=2),
)
