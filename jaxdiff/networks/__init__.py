"""Networks: Flax NNX modules behind two pure functions, ``init`` and ``apply``.

>>> import jax
>>> net = functional(UNet(image_size=8, in_channels=1, width=16, attention_resolutions=(4,), multipliers=(1, 2)))
>>> params = jax.jit(net.init)(jax.random.key(0))
>>> jax.jit(net.apply)(params, jax.numpy.zeros((4, 8, 8, 1)), 0.5).shape
(4, 8, 8, 1)
"""

from jaxdiff.networks.autoencoder import Autoencoder, KLAutoencoder, VQAutoencoder, ldm_kl, ldm_vq
from jaxdiff.networks.caching import DeepCache, FirstBlock, TaylorSeer
from jaxdiff.networks.classifier import Classifier
from jaxdiff.networks.conditions import Image, Level, Map, Text, Tokens, Vector
from jaxdiff.networks.control import Controlled, ControlNet
from jaxdiff.networks.critic import PatchCritic
from jaxdiff.networks.dit import DiT, dit, pixart_alpha, pixart_sigma
from jaxdiff.networks.edm2 import EDM2
from jaxdiff.networks.functional import Functional, Networks, Params, functional
from jaxdiff.networks.mlp import MLP
from jaxdiff.networks.mmdit import MMDiT
from jaxdiff.networks.published_transformers import flux, sd3
from jaxdiff.networks.published_unets import (
    adm,
    adm_256_uncond,
    adm_classifier,
    adm_upsampler,
    cm_imagenet64,
    cm_lsun256,
    ddpm_256,
    ddpm_cifar10,
    ddpmpp,
    edm2_img64,
    edm2_img512,
    iddpm_cifar10,
    iddpm_imagenet64,
    iddpm_lsun256,
    ncsnpp,
    sd15,
    sd21,
    sdxl,
    sdxl_refiner,
)
from jaxdiff.networks.song import SongUNet
from jaxdiff.networks.unet import UNet
from jaxdiff.networks.uvit import UViT, u_vit

__all__ = [
    "EDM2",
    "MLP",
    "Autoencoder",
    "Classifier",
    "ControlNet",
    "Controlled",
    "DeepCache",
    "DiT",
    "FirstBlock",
    "Functional",
    "Image",
    "KLAutoencoder",
    "Level",
    "MMDiT",
    "Map",
    "Networks",
    "Params",
    "PatchCritic",
    "SongUNet",
    "TaylorSeer",
    "Text",
    "Tokens",
    "UNet",
    "UViT",
    "VQAutoencoder",
    "Vector",
    "adm",
    "adm_256_uncond",
    "adm_classifier",
    "adm_upsampler",
    "cm_imagenet64",
    "cm_lsun256",
    "ddpm_256",
    "ddpm_cifar10",
    "ddpmpp",
    "dit",
    "edm2_img64",
    "edm2_img512",
    "flux",
    "functional",
    "iddpm_cifar10",
    "iddpm_imagenet64",
    "iddpm_lsun256",
    "ldm_kl",
    "ldm_vq",
    "ncsnpp",
    "pixart_alpha",
    "pixart_sigma",
    "sd3",
    "sd15",
    "sd21",
    "sdxl",
    "sdxl_refiner",
    "u_vit",
]
