"""Training of autoencoders: the losses, and the objective that `train.py` minimises for an `AutoencoderConfig`."""

from jaxdiff.autoencoding.losses import (
    adaptive_weight,
    codebook_loss,
    critic_loss,
    generator_loss,
    kl_divergence,
    perceptual,
    perplexity,
    pixels,
)
from jaxdiff.autoencoding.objective import AutoencoderLoss

__all__ = [
    "AutoencoderLoss",
    "adaptive_weight",
    "codebook_loss",
    "critic_loss",
    "generator_loss",
    "kl_divergence",
    "perceptual",
    "perplexity",
    "pixels",
]
