# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Score matching
#
# Sampling needs the score $\nabla \log p_t$ of noisy data, and nobody knows it: there is only a set of points. This
# notebook trains small networks by the objectives that get around that, on a set in the plane whose true score happens
# to be a formula, so that what each has learned can be measured.
#
# Needs jaxdiff and matplotlib; `pip install -e '.[test]'` brings both. It takes under a minute on two CPU cores.

# %% tags=["hide-input"]
import functools

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import jaxdiff as jd
from jaxdiff.evaluate.score_field import measure_hessian, measure_score
from jaxdiff.networks import MLP, functional
from jaxdiff.score_matching import (
    FiniteDifference,
    FokkerPlanck,
    HighOrder,
    Implicit,
    LearnedHessian,
    SecondOrder,
    Sliced,
)
from jaxdiff.times import GeometricLevels, LikelihoodTime
from jaxdiff.train import Ema, create_state, train_step

plt.rcParams |= {
    "figure.dpi": 110,
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
}

# %% [markdown]
# ## What is to be learned
#
# Data are a mixture of five Gaussians. Noise is added at every level $\sigma$ from 0.1 to 3, and a model $s(x, t)$ is
# good if Fisher's divergence to the noisy densities $p_t$ is small:
#
# $$F = \mathbb{E}_{t,\, x_t} \left[ \sigma^2\, \lVert s(x_t, t) - \nabla \log p_t(x_t) \rVert^2 \right] .$$
#
# It cannot be computed from points. Each objective below is $F$ up to a constant, and can be.

# %%
process = jd.VE(sigma_min=0.1, sigma_max=3.0)
angle = 2.0 * jnp.pi * jnp.arange(5) / 5
exact = jd.MixtureDenoiser(process, 0.9 * jnp.stack([jnp.sin(angle), jnp.cos(angle)], axis=1), 0.2)


def time_of(sigma):
    return process.time_of_log_snr(-2.0 * jnp.log(sigma))


def mesh(half, side):
    place = half * ((jnp.arange(side) + 0.5) * 2 / side - 1)
    return jnp.stack(jnp.meshgrid(place, place), axis=-1).reshape(-1, 2)


@jax.jit
def scaled_score(denoise, x, t):
    """sigma s(x, t)."""
    return -denoise(x, t).eps


def field(axis, denoise, sigma, half):
    """sigma s as arrows over the noisy density."""
    t = time_of(sigma)
    log_p = exact.log_density(mesh(half, 90), t).reshape(90, 90)
    axis.imshow(jnp.exp(log_p - log_p.max()), cmap="Blues", origin="lower", extent=2 * (-half, half), vmax=1.4)
    x = mesh(half, 17)
    s = scaled_score(denoise, x, t)
    s = s / jnp.sqrt(1.0 + jnp.square(s).sum(axis=1, keepdims=True))  # long arrows are shortened
    axis.quiver(*x.T, *s.T, angles="xy", scale=15, width=0.005, color="0.15")
    axis.set(xticks=[], yticks=[], xlim=(-half, half), ylim=(-half, half))
    axis.grid(False)


levels = {0.12: 1.6, 0.4: 2.0, 1.0: 2.8}  # sigma: half a side of its picture
figure, axes = plt.subplots(1, 4, figsize=(12.0, 3.2), layout="constrained")
axes[0].scatter(*exact.sample_data(jax.random.key(0), 3000).T, s=2, lw=0)
axes[0].set(title="data", xticks=[], yticks=[], xlim=(-1.6, 1.6), ylim=(-1.6, 1.6), aspect="equal")
for axis, (sigma, half) in zip(axes[1:], levels.items(), strict=True):
    field(axis, exact, sigma, half)
    axis.set_title(rf"$p_t$ and its score, $\sigma = {sigma:g}$")
plt.show()

# %% [markdown]
# ## Denoising, and what it weighs
#
# Vincent (2011): compare with the score of the noise that was added, $-\varepsilon/\sigma$, in place of that of $p_t$.
# The expectation of the one given $x_t$ is the other, so least squares find it:
#
# $$\mathbb{E} \left[ w(t)\, \lVert s(x_t, t) + \varepsilon/\sigma \rVert^2 \right] = \mathbb{E} \left[ w(t)\, \lVert
#   s - \nabla \log p_t \rVert^2 \right] + \text{const} .$$
#
# What is left to choose is how much each noise level counts: $w(t)$ and how often $t$ is drawn. `DenoisingLoss` takes
# both. Drawn over the log-SNR, which all processes share:
#
# - simple (Ho et al. 2020): the plain error in $\varepsilon$, times uniform; its pace is the process's;
# - NCSN (Song & Ermon 2019): the same error on a geometric ladder of levels, even in log-SNR;
# - likelihood (Song et al. 2021): $w = g^2/2$, which makes the loss a bound of $-\ln p$. It too is even in log-SNR, for
#   $g^2/\sigma^2$ is the pace of log-SNR itself, and `LikelihoodTime` draws times by it;
# - min-SNR (Hang et al. 2023) is simple but for the least noisy levels, which it leaves almost out.

# %%
vp = jd.VP()
log_snr = jnp.linspace(-9.0, 9.0, 300)
t = vp.time_of_log_snr(log_snr)
pace = vp.diffusion_squared(t) / jnp.square(vp.sigma(t))  # -d log-SNR/dt
weights = {
    "simple": jd.SNR().on_target(vp, jd.Eps(), t) / pace,
    "min-SNR, least of SNR and 5": jd.MinSNR().on_target(vp, jd.Eps(), t) / pace,
    "likelihood, NCSN": jd.Likelihood().on_target(vp, jd.Eps(), t) / pace,
}
figure, axis = plt.subplots(figsize=(6.5, 3.2), layout="constrained")
for name, curve in weights.items():
    axis.plot(log_snr, curve / curve.mean(), label=name)
axis.set(xlabel=r"log-SNR $\lambda$", ylabel=r"weight of the error in $\varepsilon$", ylim=(0, 3.2), xlim=(9, -9))
axis.set_title("VP, less noise on the left", loc="left", fontsize=10)
axis.legend()
plt.show()
even = weights["likelihood, NCSN"]
assert np.allclose(even, even[0], rtol=1e-3)

# %% [markdown]
# For the VE process of this notebook log-SNR is linear in $t$, and the first three are one objective up to a factor.

# %%
draws = jd.DenoisingLoss(process, jd.Eps()).draw(jax.random.key(0), {"x": exact.sample_data(jax.random.key(1), 256)})
ve_weights = [w.on_target(process, jd.Eps(), draws.t) for w in (jd.Simple(), jd.SNR(), jd.Likelihood())]
assert all(np.allclose(w / w[0], 1.0, rtol=1e-3) for w in ve_weights)
ladder = GeometricLevels(levels=10).draw(process, jax.random.key(0), 4000)
likelihood_times, _ = LikelihoodTime().sample(process, (), jax.random.key(0), 4000)
print("mean and standard deviation of t: NCSN", ladder.mean().round(2), ladder.std().round(2), end="; ")
print("likelihood", likelihood_times.mean().round(2), likelihood_times.std().round(2))

# %% [markdown]
# ## Objectives without noise to compare with
#
# - `Implicit` (Hyvärinen 2005): by parts, $\lVert s \rVert^2 + 2 \operatorname{tr} J$, $J = \partial s/\partial x$, the
#   trace by as many derivatives as there are dimensions.
# - `Sliced` (Song et al. 2019): the same along a random direction $v$, $(v^\top s)^2 + 2\, v^\top J\, v$, with one
#   derivative. `variance_reduced` puts $\lVert s \rVert^2$ in place of $(v^\top s)^2$.
# - `FiniteDifference` (Pang et al. 2020): sliced, the derivative from $s(x + hv)$ and $s(x - hv)$.
#
# And objectives that ask for more than the score:
#
# - `SecondOrder` (Meng et al. 2021): the Hessian of $\log p_t$ as further outputs of the network, also by denoising.
# - `HighOrder` (Lu et al. 2022): denoising of the network's own Jacobian.
# - `FokkerPlanck` (Lai et al. 2023): a regulariser of any of them. The scores of all $t$ belong to densities that the
#   process carries along, so they satisfy a partial differential equation, whose residual is punished.
#
# One network, one optimizer and the same points for all. The last four outputs are the Hessian of `SecondOrder`.

# %%
net = functional(MLP(out_channels=6, width=64, depth=2, frequencies=16))
head = LearnedHessian(jd.Karras(sigma_data=0.5, time=jd.LogSigma(scale=1.0)), rank=1)
common = (process, head, jd.SNR())
objectives = {
    "denoising": jd.DenoisingLoss(*common),
    "implicit": Implicit(*common),
    "sliced": Sliced(*common),
    "sliced, reduced": Sliced(*common, variance_reduced=True),
    "finite difference": FiniteDifference(*common, variance_reduced=True),
    "second order": SecondOrder(*common, factor=0.1),
    "high order": HighOrder(*common),
    "Fokker-Planck": FokkerPlanck(jd.DenoisingLoss(*common), 0.5),
}
STEPS, EVERY = 400, 20
optimizer = optax.adam(optax.cosine_decay_schedule(4e-3, STEPS, 0.02))
begin = jax.jit(lambda key: create_state(net=net, optimizer=optimizer, loss=objectives["denoising"], key=key))
untrained = begin(jax.random.key(0))


def fit(loss, state):
    """Train: the averaged parameters every few steps."""

    def step(state, n):
        batch = {"x": exact.sample_data(jax.random.fold_in(state.key, n), 256)}
        return train_step(state, batch, net=net, loss=loss, optimizer=optimizer, ema=Ema(0.97))[0], None

    def some_steps(state, ns):
        state, _ = jax.lax.scan(step, state, ns)
        return state, state.ema["ema"]

    return jax.lax.scan(some_steps, state, jnp.arange(STEPS).reshape(-1, EVERY))[1]


test_t = jnp.repeat((jnp.arange(16) + 0.5) / 16, 128)
test_x0 = exact.sample_data(jax.random.key(100), len(test_t))
test_x = process.perturb(test_x0, jax.random.normal(jax.random.key(101), test_x0.shape), test_t)


@jax.jit
def fisher(params):
    """F as a share of what the score 0 has."""
    true = exact(test_x, test_t).eps
    error = jd.NetworkDenoiser(net, params, process, head)(test_x, test_t).eps - true
    return jnp.square(error).sum() / jnp.square(true).sum()


trained, curves = {}, {}
for name, loss in objectives.items():
    averages = jax.jit(functools.partial(fit, loss))(untrained)
    kept = [untrained.ema["ema"], *(jax.tree.map(lambda leaf, i=i: leaf[i], averages) for i in range(STEPS // EVERY))]
    curves[name] = np.array([fisher(params) for params in kept])
    trained[name] = jd.NetworkDenoiser(net, kept[-1], process, head)
    print(f"{name:18} F {curves[name][0]:.3f} -> {curves[name][-1]:.4f}")

# %%
figure, axis = plt.subplots(figsize=(7.5, 4.2), layout="constrained")
for number, (name, curve) in enumerate(curves.items()):
    line = "--" if name == "finite difference" else "-"  # it lies on another
    axis.semilogy(EVERY * np.arange(len(curve)), curve, color=f"C{number}", label=name, lw=1.6, ls=line)
axis.set(xlabel="training steps", ylabel="$F$, as a share of that of $s = 0$", xlim=(0, STEPS))
axis.legend(fontsize=9, ncols=2)
plt.show()
assert all(curve[-1] < 0.15 * curve[0] for curve in curves.values()), "an objective did not learn the score"
assert curves["high order"][-1] < curves["denoising"][-1] < curves["sliced"][-1]

# %% [markdown]
# None has seen the true score, and all of them find it. They differ in how noisy the way is (more of that below);
# finite differences are as good as derivatives, the two sliced curves with the same directions being one, and
# `HighOrder` gets more out of the same points by asking for the derivative too.

# %%
shown = {"true": exact, **{name: trained[name] for name in ("denoising", "sliced", "high order")}}
figure, axes = plt.subplots(2, 4, figsize=(12.0, 6.2), layout="constrained")
for row, sigma in zip(axes, (0.12, 0.4), strict=True):
    for axis, (name, denoise) in zip(row, shown.items(), strict=True):
        field(axis, denoise, sigma, levels[sigma])
        axis.set_title(f"{name}, $\\sigma = {sigma:g}$")
plt.show()

# %% [markdown]
# Where $p_t$ is large the fields agree. Far from all points, where the training points never were, they need not.
#
# ## Beyond the score
#
# Derivatives of the learned score: its Jacobian against the true Hessian of $\log p_t$, and the residual of the score
# Fokker-Planck equation, which is 0 for the true one.

# %%
names = ("denoising", "second order", "high order", "Fokker-Planck")
measured = {name: measure_score(trained[name], exact, jax.random.key(2), times=16, points=128) for name in names}
outputs = float(measure_hessian(trained["second order"], exact, jax.random.key(2), times=16, points=128))

figure, axes = plt.subplots(1, 2, figsize=(9.0, 2.8), layout="constrained", sharey=True)
quantities = {"hessian_relative": "error of the Jacobian, relative", "fokker_planck": "Fokker-Planck residual"}
for axis, (quantity, title) in zip(axes, quantities.items(), strict=True):
    values = [float(measured[name][quantity]) for name in names]
    bars = axis.barh(names, values, color=["C0", "C5", "C6", "C7"], height=0.6)
    axis.bar_label(bars, fmt="%.3f", padding=3, fontsize=9)
    axis.set(title=title, xlim=(0, 1.2 * max(values)))
    axis.locator_params(axis="x", nbins=4)
    axis.grid(visible=False, axis="y")
axes[0].invert_yaxis()
plt.show()
print(f"the Hessian that SecondOrder's outputs are: relative error {outputs:.3f}")
assert measured["high order"]["hessian_relative"] < 0.7 * measured["denoising"]["hessian_relative"]
assert measured["Fokker-Planck"]["fokker_planck"] < 0.9 * measured["denoising"]["fokker_planck"]
assert outputs < 0.2

# %% [markdown]
# ## Why denoising scales
#
# All first-order objectives have the gradient of $F$ as their expected gradient; what a batch gives is an estimate.
# How many samples until signal and noise are equal, $\operatorname{tr} \operatorname{Cov}(g) / \lVert \nabla F
# \rVert^2$ with $g$ the gradient of one sample? Here for an untrained network of one hidden layer, in 2 and in 32
# dimensions, with the cost of a gradient as the compiler counts it.


# %%
class OneLayer:
    """A network as the objectives ask for it: a function of parameters."""

    def apply(self, params, x, t, cond=None, *, key=None):
        return jnp.tanh(x @ params["in"] + t[:, None] * params["time"]) @ params["out"]


def gradients(loss, params, draws):
    """Each sample's gradient, a row."""

    def one(params, draw):
        return loss.terms(OneLayer(), params, jax.tree.map(lambda a: a[None], draw)).loss[0]

    found = jax.vmap(jax.grad(one), (None, 0))(params, draws)
    return jnp.concatenate([leaf.reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(found)], axis=1)


def mean_loss(loss, params, draws):
    return loss.terms(OneLayer(), params, draws).loss.mean()


def fisher_gradient(params, draws, exact):
    """The gradient of F itself, by the true score."""
    x = process.perturb(draws.x0, draws.eps, draws.t)

    def error(params):
        net_x, net_t = plain.condition(process, x, draws.t)
        eps = plain.read(process, x, draws.t, OneLayer().apply(params, net_x, net_t)).eps
        return jnp.square(eps - exact(x, draws.t).eps).mean()

    return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(jax.grad(error)(params))])


plain = jd.Karras(sigma_data=0.5, time=jd.LogSigma(scale=1.0))
middle = float(time_of(0.4))
settings = (process, plain, jd.SNR(), jd.Uniform(middle, middle))
estimators = {
    "denoising": jd.DenoisingLoss(*settings),
    "implicit": Implicit(*settings),
    "sliced, reduced": Sliced(*settings, variance_reduced=True),
    "sliced": Sliced(*settings),
    "finite difference": FiniteDifference(*settings),
}
needed, cost = {}, {}
for size in (2, 32):
    keys = jax.random.split(jax.random.key(20), 5)
    signs = jax.random.rademacher(keys[0], (4, size), jnp.float32)
    many = jd.MixtureDenoiser(process, 0.5 * signs, 0.2)
    shapes = {"in": (size, 32), "time": (1, 32), "out": (32, size)}
    params = {
        name: jax.random.normal(key, shape) / shape[0] ** 0.5
        for key, (name, shape) in zip(keys[1:4], shapes.items(), strict=True)
    }
    batch = {"x": many.sample_data(keys[4], 4096)}
    directed = Sliced(*settings).draw(keys[0], batch)
    target = jax.jit(fisher_gradient)(params, directed, many)
    for name, loss in estimators.items():
        found = jax.jit(functools.partial(gradients, loss))(params, directed)
        variance = found.var(axis=0).sum()
        off = jnp.square(found.mean(axis=0) - target).sum() / (variance / len(found))
        assert off < 4.0, f"{name}: its mean gradient is not that of F"
        needed[name, size] = float(variance / jnp.square(target).sum())
        program = jax.jit(jax.grad(functools.partial(mean_loss, loss))).lower(params, directed)
        cost[name, size] = program.cost_analysis()["flops"]

figure, axes = plt.subplots(1, 2, figsize=(10.0, 3.2), layout="constrained", sharey=True)
place = np.arange(len(estimators))
relative = {key: value / cost["denoising", key[1]] for key, value in cost.items()}
for axis, values, title in (
    (axes[0], needed, "samples until signal equals noise"),
    (axes[1], relative, "cost of a gradient, denoising = 1"),
):
    for number, size in enumerate((2, 32)):
        lengths = [values[name, size] for name in estimators]
        bars = axis.barh(place + 0.38 * number, lengths, height=0.36, color=f"C{number}", label=f"{size} dimensions")
        axis.bar_label(bars, fmt="%.3g", padding=3, fontsize=8)
    axis.set(title=title, xscale="log")
    axis.margins(x=0.15)
    axis.grid(visible=False, axis="y")
axes[0].set_yticks(place + 0.19, list(estimators))
axes[0].invert_yaxis()
axes[0].legend(fontsize=9, loc="best")
plt.show()
for name in ("sliced", "finite difference"):
    assert needed[name, 32] > 2 * needed["denoising", 32]
assert cost["implicit", 32] > 4 * cost["denoising", 32]

# %% [markdown]
# The mean of each is the gradient of $F$, which the cell above asserts. In two dimensions any of them will do. In 32
# the exact trace costs as many derivatives as there are dimensions, and the plain sliced objective is noisy: of the
# score one random direction sees little. Reduced in variance it comes near denoising, at twice the cost; denoising
# remains one evaluation and its gradient.
#
# ## Sampling
#
# A learned score is a denoiser like any other: Heun's method, 24 steps, from the noise of $\sigma = 3$.

# %%
ts = jd.karras_times(process, 25)
keys = jd.sample_keys(jax.random.key(5), 0, 1500)
start = process.prior_sample(keys, (2,), ts[0])
sample = jax.jit(jd.sample)

figure, axes = plt.subplots(1, 4, figsize=(12.0, 3.2), layout="constrained")
axes[0].scatter(*exact.sample_data(jax.random.key(0), 1500).T, s=4, lw=0, color="0.5")
axes[0].set_title("data")
for axis, name in zip(axes[1:], ("denoising", "sliced", "high order"), strict=True):
    drawn = sample(jd.Heun(process, "rho"), trained[name], None, start, ts)
    axis.scatter(*drawn.T, s=4, lw=0)
    nearest = jnp.linalg.norm(drawn[:, None] - exact.means[None], axis=2)
    inside = (nearest.min(axis=1) < 0.6).mean()
    shares = jnp.bincount(nearest.argmin(axis=1), length=5) / len(drawn)
    axis.set_title(f"{name}: {inside:.1%} within 3 std")
    assert inside > 0.95
    assert shares.min() > 0.1
for axis in axes:
    axis.set(xticks=[], yticks=[], xlim=(-1.7, 1.7), ylim=(-1.7, 1.7), aspect="equal")
plt.show()

# %% [markdown]
# ## Further
#
# - `python train.py configs/study_2d.py --loss.objective sliced` trains any objective as a run, on any of eight sets
#   of points, with checkpoints and pictures of the field.
# - [A tour of the SDEs](sde_tour.py) is about what to do with a score once there is one.
