"""Handwritten digits by rectified flow (Liu et al. 2022; Lipman et al. 2023), times as in Esser et al. 2024.

Command:   jaxdiff train digits_flow
Data:      as digits_unet
Cost:      as digits_unet
Expected:  close to digits_unet; not measured
"""

import dataclasses

from jaxdiff import Flow, LogitNormal, Velocity
from jaxdiff.config import LossConfig, SampleConfig, load_config_file

config = dataclasses.replace(
    load_config_file("digits_unet"),
    name="digits_flow",
    process=Flow(),
    parameterization=Velocity(),
    loss=LossConfig(time=LogitNormal(mean=0.0, std=1.0), dropout={"label": 0.1}),
    sample=SampleConfig(sampler="heun:t", steps=16, grid="uniform", num=100),
)
