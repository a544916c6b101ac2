"""Handwritten digits with the variance-exploding SDE (Song et al. 2021), preconditioned as in Karras et al. 2022.

Command:   jaxdiff train digits_ve
Data:      as digits_unet
Cost:      as digits_unet
Expected:  close to digits_unet; not measured
"""

import dataclasses

from jaxdiff import VE, Karras, LogNormalSigma
from jaxdiff.config import LossConfig, SampleConfig, load_config_file

config = dataclasses.replace(
    load_config_file("digits_unet"),
    name="digits_ve",
    process=VE(sigma_min=0.01, sigma_max=50.0),
    parameterization=Karras(sigma_data=0.5),
    loss=LossConfig(time=LogNormalSigma(mean=-1.2, std=1.2), dropout={"label": 0.1}),
    sample=SampleConfig(sampler="heun", steps=18, grid="karras", num=100),
)
