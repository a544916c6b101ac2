"""Score matching in the plane: any objective, the learned field beside the true one.

The VE process of Song et al. 2021 with the preconditioning of Karras et al. 2022; the objectives and their papers are
in `jaxdiff.score_matching`. The network's last four outputs are the Hessian of `second_order`; others leave them alone.

Command:   jaxdiff train study_2d --loss.objective sliced
           (denoising, ncsn, likelihood, implicit, sliced, sliced_vr, finite_difference, second_order or high_order;
           --loss.fokker_planck 0.1 regularises any of them; --loss.time.t_min 0.5 --loss.time.t_max 0.5: one level)
Data:      points:eight_gaussians, drawn at once; --data.name points:moons, rings, spiral, ... (jaxdiff/data/points.py)
Cost:      at most about a minute on two CPU cores; with --loss.fokker_planck about two
Pictures:  samples/step_N.png: learned | true | difference at four noise levels, samples and data
Expected:  E sigma^2 |s - s*|^2 relative to E sigma^2 |s*|^2, printed at the end as fisher_relative: denoising 0.007,
           ncsn 0.014, likelihood 0.007 (on VE it is denoising, by another factor), implicit 0.009, sliced 0.04,
           sliced_vr 0.011, finite_difference 0.04, second_order with --loss.hessian_weight 0.1 0.008, high_order 0.003;
           denoising with --loss.fokker_planck 0.1 0.005; 0.28 before training
"""

from jaxdiff import SNR, VE, Karras, LogSigma, Uniform
from jaxdiff.config import CheckpointConfig, Config, DataConfig, LossConfig, OptimizerConfig, SampleConfig, TrainConfig
from jaxdiff.evaluate import ScoreField
from jaxdiff.networks import MLP
from jaxdiff.score_matching import LearnedHessian
from jaxdiff.train.ema import Ema

config = Config(
    name="study_2d",
    data=DataConfig(name="points:eight_gaussians"),
    process=VE(sigma_min=0.03, sigma_max=5.0),
    parameterization=LearnedHessian(Karras(sigma_data=0.6, time=LogSigma(scale=1.0)), rank=1),
    network=MLP(in_channels=2, out_channels=6, width=128, depth=3),
    loss=LossConfig(weight=SNR(), time=Uniform()),
    optimizer=OptimizerConfig(lr=2e-3, schedule="cosine", warmup=100, final_fraction=0.01),
    ema=Ema(0.995),
    train=TrainConfig(steps=1000, batch_size=512, log_every=100, sample_every=250),
    checkpoint=CheckpointConfig(every=500, keep=1),
    sample=SampleConfig(sampler="heun", steps=25, grid="karras", clip=False, num=400, batch_size=400),
    picture=ScoreField(),
)
