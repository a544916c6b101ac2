"""Handwritten digits with a small diffusion transformer (Peebles & Xie 2023).

Command:   jaxdiff train digits_dit
Data:      as digits_unet
Cost:      some minutes on two CPU cores
Expected:  close to digits_unet; not measured
"""

import dataclasses

from jaxdiff.config import load_config_file
from jaxdiff.networks import DiT

config = dataclasses.replace(
    load_config_file("digits_unet"),
    name="digits_dit",
    network=DiT(in_channels=1, patch=2, width=128, depth=6, heads=4, num_classes=10, dropout=0.1),
)
