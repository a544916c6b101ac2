"""ImageNet 256x256, the autoencoder of latent diffusion: KL-f8 of Rombach et al. 2022, 83,653,863 parameters.

Command:   jaxdiff train imagenet256_autoencoder --data.path DIR --mesh.fsdp 8      (DIR holds train/CLASS/*.JPEG)
Cost:      500,000 steps of 96 images
Expected:  the authors' KL-f8 has rFID 0.90 and PSNR 24.19 dB after 246,803 steps (README of CompVis/latent-diffusion),
           with a perceptual term too: give loss.features for one. Not measured here; a run states PSNR and SSIM of its
           validation images in its latents.json
"""

from jaxdiff.autoencoding import AutoencoderLoss
from jaxdiff.config import AutoencoderConfig, CheckpointConfig, DataConfig, MeshConfig, OptimizerConfig, TrainConfig
from jaxdiff.networks import PatchCritic, ldm_kl
from jaxdiff.train.ema import Ema

config = AutoencoderConfig(
    name="imagenet256_autoencoder",
    data=DataConfig(name="folder", image_size=256, channels=3, resize=True, flip=True, workers=8, decoded_mb=0),
    network=ldm_kl(8),
    loss=AutoencoderLoss(log_variance=True, critic_start=50_000),
    critic=PatchCritic(),
    optimizer=OptimizerConfig(lr=4.32e-4, b1=0.5, b2=0.9, clip_norm=None),  # 4.5e-6 a sample
    critic_optimizer=OptimizerConfig(lr=4.32e-4, b1=0.5, b2=0.9, clip_norm=None),
    ema=Ema(0.999),
    train=TrainConfig(steps=500_000, batch_size=96, log_every=100, sample_every=10_000),
    checkpoint=CheckpointConfig(every=10_000, keep=3),
    mesh=MeshConfig(data=-1, fsdp=1),
)
