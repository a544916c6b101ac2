"""Score matching: objectives whose minimiser is the score of the noisy data.

A model s(x, t) of the score is fitted to p_t, the density of x_t = alpha x_0 + sigma eps, by a divergence that cannot
be computed, Fisher's, weighted with w(t):

    F = E_{t, x_t} [ w(t) |s(x_t, t) - grad log p_t(x_t)|^2 ].                                       (1)

Each objective here is F, up to a constant of the data and a factor, without grad log p_t. With e = eps, v random
directions of E[v v^T] = I, and H the Hessian of log p_t:

    denoising      |s + e/sigma|^2                                  Vincent 2011: `jaxdiff.DenoisingLoss`        (2)
    implicit       |s|^2 + 2 tr(ds/dx)                              Hyvarinen 2005: `Implicit`                   (3)
    sliced         (v.s)^2 + 2 v.(ds/dx) v, or |s|^2 for (v.s)^2    Song et al. 2019: `Sliced`                   (4)
    differences    (v.(s+ + s-)/2)^2 + v.(s+ - s-)/h,  s(x +- h v)  Pang et al. 2020: `FiniteDifference`         (5)
    likelihood     any, w = g^2/2 and times by g^2/sigma^2          Song et al. 2021b: `Likelihood`, `LikelihoodTime`
    NCSN           (2), w = sigma^2, geometric levels               Song & Ermon 2019: `SNR`, `GeometricLevels`  (6)

(3) to (5) compare with no noise: for data of a density of its own, fix t near 0, `Uniform(t, t)`. With a second-order
identity of Gaussian noise, sigma^2 (H + s s^T) = E[e e^T | x_t] - I, the Hessian is learned beside the score,

    |sigma^2 H^ + sigma^2 s s^T + I - e e^T|_F^2                    Meng et al. 2021: `SecondOrder`              (7)
    sigma^2 H^ = diag(a) + sum_k b_k b_k^T                          outputs a, b of the network: `LearnedHessian` (8)
    |sigma^2 ds/dx + I - l l^T|_F^2,  l = sigma s + e               Lu et al. 2022: `HighOrder`                  (9)

where s is held constant in (7) and in l. The scores of all t together satisfy the score Fokker-Planck equation,

    r = ds/dt - grad [ g^2/2 (div s + |s|^2) - f x.s ] = 0          Lai et al. 2023: `FokkerPlanck`             (10)

and |r|^2 regularises any of them. Derivatives in x are Jacobian-vector products, taken forward over one evaluation;
the gradient of a loss in the parameters goes backward over them.

An objective is what `jaxdiff.train` asks of a loss: `init`, `draw`, `terms`, `update`.
"""

from jaxdiff.score_matching.base import ScoreMatching, network_score
from jaxdiff.score_matching.first_order import FiniteDifference, Implicit, Sliced
from jaxdiff.score_matching.fokker_planck import FokkerPlanck, score_fokker_planck
from jaxdiff.score_matching.second_order import HighOrder, LearnedHessian, SecondOrder

__all__ = [
    "FiniteDifference",
    "FokkerPlanck",
    "HighOrder",
    "Implicit",
    "LearnedHessian",
    "ScoreMatching",
    "SecondOrder",
    "Sliced",
    "network_score",
    "score_fokker_planck",
]
