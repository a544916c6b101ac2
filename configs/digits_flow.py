"""Handwritten digits by rectified flow (Liu et al. 2022; Lipman et al. 2023), times as in Esser et al. 2024.

Command:   python train.py configs/digits_flow.py
Data:      as digits_unet
Cost:      as digits_unet
Expected:  close to digits_unet; not measured
"""

import dataclasses

from configs.digits_unet import config as digits
from jaxdiff import Flow, LogitNormal, Velocity
from jaxdiff.config import LossConfig, SampleConfig

config = dataclasses.replace(
    digits,
    name="digits_flow",
    process=Flow(),
    parameterization=Velocity(),
    loss=LossConfig(time=LogitNormal(mean=0.0, std=1.0), dropout={"label": 0.1}),
    sample=SampleConfig(sampler="heun:t", steps=16, grid="uniform", num=100),
)
