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
# # A tour of the SDEs
#
# No network is needed to study diffusion: for a mixture of Gaussians the perfect denoiser is a formula. With it every
# error that is left is the sampler's own. Here data are mixed with noise and back, by stochastic and ordinary
# differential equations, and each claim is measured.
#
# Needs jaxdiff and matplotlib; `pip install -e '.[test]'` brings both. It takes under a minute on two CPU cores.

# %% tags=["hide-input"]
import itertools

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import jaxdiff as jd
from jaxdiff.likelihood import FixedSteps, log_likelihood
from jaxdiff.sampling.tableau import DORMAND_PRINCE

plt.rcParams |= {
    "figure.dpi": 110,
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
}

# Processes, samplers and denoisers are pytrees: everything is an argument of these programs.
sample_path, integrate = jax.jit(jd.sample_path), jax.jit(jd.integrate)

# %% [markdown]
# ## There and back
#
# A process mixes data with noise, $x_t = \alpha(t)\, x_0 + \sigma(t)\, \varepsilon$. The same densities $p_t$ come
# from a stochastic differential equation that starts at data and runs forward, and from two equations that run back
# (Song et al. 2021), which ask for the score $\nabla \log p_t$ only:
#
# $$dx = f x\, dt + g\, dw, \qquad
#   dx = [f x - g^2\, \nabla \log p_t(x)]\, dt + g\, d\bar{w}, \qquad
#   \frac{dx}{dt} = f x - \tfrac{1}{2} g^2\, \nabla \log p_t(x) .$$
#
# In one dimension all of it fits in a picture: three peaks, which noise melts into one.

# %%
process = jd.VP()
line = jd.MixtureDenoiser(process, jnp.array([[-1.6], [0.2], [1.5]]), jnp.array([0.12, 0.2, 0.12]))

ts = jd.uniform_times(process, 400)
keys = jd.sample_keys(jax.random.key(0), 0, 10)


@jax.jit
def forward_path(process, keys, x0, ts):
    """The forward SDE at rising times, exactly: q(x_t | x_s) is a Gaussian."""
    noise = jd.step_noise(keys, x0)

    def step(x, times):
        scale, variance = process.transition(*times)
        x = scale * x + jnp.sqrt(variance) * noise(*times)
        return x, x

    _, xs = jax.lax.scan(step, x0, (ts[:-1], ts[1:]))
    return jnp.concatenate([x0[None], xs])


rising = ts[::-1]
forward = forward_path(process, keys, line.sample_data(jax.random.key(4), 10), rising)
start = process.prior_sample(keys, (1,))
reverse, _ = sample_path(jd.EulerMaruyama(process), line, keys, start, ts)
flow, _ = sample_path(jd.DDIM(process), line, None, start, ts)

# %%
places = jnp.linspace(-3.0, 3.0, 301)
columns = jnp.linspace(process.min_time(), 1.0, 201)
density = jnp.exp(jax.vmap(lambda t: line.log_density(places[:, None], t))(columns)).T  # (places, times)

figure, axes = plt.subplots(1, 3, figsize=(11.0, 3.6), layout="constrained", sharey=True)
pictures = [
    ("forward SDE", rising, forward, (0, 1)),
    ("reverse SDE", ts, reverse, (1, 0)),
    ("probability flow", ts, flow, (1, 0)),
]
for axis, (title, times, paths, limits) in zip(axes, pictures, strict=True):
    axis.pcolormesh(columns, places, density**0.5, cmap="Blues", shading="gouraud", vmax=1.3, rasterized=True)
    axis.plot(times, paths[:, :, 0], lw=0.8, color="C3", alpha=0.85)
    axis.set(title=title, xlabel="$t$", xlim=limits, ylim=(-3, 3))
    axis.grid(False)
axes[0].set_ylabel("$x_t$")
plt.show()

# %% [markdown]
# Blue is $p_t$. Both ways back start from the same ten points. The flow's paths are smooth and cannot cross, so the
# order of the points is kept; the reverse SDE forgets where it started.

# %%
order = np.argsort(start[:, 0])
assert (np.diff(flow[:, order, 0], axis=1) > 0).all(), "two paths of the flow crossed"
assert (np.diff(reverse[-1, order, 0]) < 0).any(), "the reverse SDE kept the order"

# %% [markdown]
# The same in the plane, with a mixture that stays to the end of this tour: four peaks of unlike width and weight.

# %%
exact = jd.MixtureDenoiser(
    process,
    jnp.array([[-1.2, 0.9], [1.3, 1.1], [-0.5, -1.2], [1.0, -0.6]]),
    jnp.array([0.2, 0.35, 0.3, 0.15]),
    jnp.log(jnp.array([0.2, 0.3, 0.35, 0.15])),
)
side = 2.6
axis_points = jnp.linspace(-side, side, 81)
mesh = jnp.stack(jnp.meshgrid(axis_points, axis_points), axis=-1).reshape(-1, 2)
exact_log_density = exact.log_density(mesh, 0.0).reshape(81, 81)


def plane(axis, title=""):
    """Contours of the data's density."""
    levels = jnp.max(exact_log_density) + jnp.array([-6.0, -4.0, -2.0, -1.0, -0.3])
    axis.contour(axis_points, axis_points, exact_log_density, levels, colors="0.72", linewidths=0.8, linestyles="-")
    axis.set(title=title, xlim=(-side, side), ylim=(-side, side), aspect="equal")
    axis.grid(False)


late = jd.uniform_times(process, 300, t_max=0.35)
keys = jd.sample_keys(jax.random.key(1), 0, 6)
start = process.perturb(exact.sample_data(jax.random.key(1), 6), jd.white_noise(keys, (2,)), late[0])
colours = [f"C{i}" for i in range(len(start))]
figure, axes = plt.subplots(1, 2, figsize=(9.0, 4.5), layout="constrained", sharey=True)
for axis, title, sampler in (
    (axes[0], "reverse SDE", jd.EulerMaruyama(process)),
    (axes[1], "probability flow", jd.EulerMaruyama(process, tau=0.0)),
):
    paths, ends = sample_path(sampler, exact, keys, start, late)
    plane(axis, title)
    for i, colour in enumerate(colours):
        axis.plot(*paths[:, i].T, lw=0.7, color=colour)
    axis.scatter(*start.T, s=45, facecolor="white", edgecolor=colours, linewidth=1.5, zorder=3)
    axis.scatter(*ends.T, s=60, color=colours, edgecolor="white", zorder=3)
plt.show()

# %% [markdown]
# Open circles are the starts at $t = 0.35$, filled ones the ends. One start ends elsewhere by the two ways, but the
# ends of many have the same law by both: the next section measures it.
#
# ## One family
#
# The two ways back are $\tau = 1$ and $\tau = 0$ of one family, all of which pass the same $p_t$:
#
# $$dx = \left[f x - \tfrac{1 + \tau^2}{2}\, g^2\, \nabla \log p_t(x)\right] dt + \tau\, g\, d\bar{w} .$$
#
# Here 300 samples leave from one point. Without noise they stay together; the more noise, the less the start matters.

# %%
taus = (0.0, 0.3, 1.0, 2.0**0.5)
keys = jd.sample_keys(jax.random.key(2), 0, 300)
one_start = jnp.broadcast_to(jnp.array([0.6, 1.0]), (300, 2))

figure, axes = plt.subplots(1, 4, figsize=(12.0, 3.3), layout="constrained", sharey=True)
for axis, tau in zip(axes, taus, strict=True):
    paths, ends = sample_path(jd.EulerMaruyama(process, tau), exact, keys, one_start, ts)
    plane(axis, rf"$\tau = {tau:.2g}$")
    for i in range(4):
        axis.plot(*paths[::2, i].T, lw=0.6, color="C1", alpha=0.8)
    axis.scatter(*ends.T, s=5 if tau else 30, color="C0", alpha=0.6, lw=0, zorder=3)
    axis.scatter(*one_start[0], marker="*", s=110, color="C3", zorder=4)
    if tau == 0:
        assert float(jnp.ptp(ends, axis=0).max()) == 0.0, "the flow is deterministic"
plt.show()

# %% [markdown]
# From many starts, is the law of the ends that of the data? As a distance the sliced Wasserstein distance serves: the
# mean over directions of the distance of the sorted projections. Two sets of data have one too, the least that
# can be asked for.
#
# The number of steps is data here. `sample` takes it as `num_steps`, beside a grid that is padded to a bound with its
# last time, so one program serves all step counts and the padding costs nothing.

# %%
N = 4000
angles = jnp.pi * jnp.arange(16) / 16
directions = jnp.stack([jnp.cos(angles), jnp.sin(angles)])


@jax.jit
def distance(a, b):
    """Sliced Wasserstein distance of two sets of N points."""
    return jnp.abs(jnp.sort(a @ directions, axis=0) - jnp.sort(b @ directions, axis=0)).mean()


data = exact.sample_data(jax.random.key(10), N)
floor = float(np.mean([distance(exact.sample_data(jax.random.key(seed), N), data) for seed in range(11, 19)]))
keys = jd.sample_keys(jax.random.key(3), 0, N)
start = process.prior_sample(keys, (2,))


@jax.jit
def sample(sampler, denoise, keys, x, ts, n):
    return jd.sample(sampler, denoise, keys, x, ts, num_steps=n)


@jax.jit
def grid(process, n, t_max, t_min):
    """n steps uniform in log-SNR, padded: `jaxdiff.log_snr_times` and `jaxdiff.pad_times` in one, with n as data."""
    share = jnp.minimum(jnp.arange(1025) / n, 1.0)
    first, last = process.log_snr(t_max), process.log_snr(t_min)
    return process.time_of_log_snr(first + share * (last - first))


t_min = process.min_time()
counts = (12, 16, 24, 32, 48, 64, 96)
grids = {n: grid(process, n, 1.0, t_min) for n in counts}
family = {}
for tau in taus:
    sampler = jd.EulerMaruyama(process, tau)
    family[tau] = [float(distance(sample(sampler, exact, keys, start, grids[n], n), data)) for n in counts]
runs = len(counts) * len(taus)
print(f"{runs} runs of {len(counts)} step counts and {len(taus)} noises, {sample._cache_size()} compilation")
assert sample._cache_size() == 1, "another number of steps or tau compiled again"

# %%
figure, axis = plt.subplots(figsize=(6.0, 3.6), layout="constrained")
for tau, distances in family.items():
    axis.loglog(counts, distances, marker="o", ms=4, label=rf"$\tau = {tau:.2g}$")
axis.axhline(floor, color="0.5", ls="--", lw=1)
axis.annotate("data against data", (12, floor), xytext=(0, 4), textcoords="offset points", color="0.4", fontsize=9)
axis.set_xticks(counts, counts)
axis.minorticks_off()
axis.set(xlabel="steps", ylabel="sliced Wasserstein distance")
axis.legend()
plt.show()
assert all(distances[-1] < 2 * floor for distances in family.values())
assert family[2.0**0.5][0] > 2 * family[0.0][0]

# %% [markdown]
# With enough steps all of the family have the data's law, as near as the sample can tell. With few, noise is dear: it
# has to be undone by steps as short as itself.
#
# ## One Brownian path, many step sizes
#
# By default a sampler draws new noise for each step, so that a finer grid sees other noise. `brownian_noise` draws one
# Brownian path $W$ a sample instead, whatever the grid: a long step gets the sum of what the short steps within it get.

# %%
narrow = (0.9, 0.15)
uniform = jax.jit(lambda n: narrow[0] + jnp.minimum(jnp.arange(1025) / n, 1.0) * (narrow[1] - narrow[0]))


def tree(keys, x):
    return jd.brownian_noise(keys, x, depth=12)


# A padded step goes from a time to itself: it changes nothing, and a path can be padded too.
brownian_path = jax.jit(lambda *args: jd.sample_path(*args, noise=tree)[0])
one_key = jd.sample_keys(jax.random.key(8), 0, 1)
one = jnp.array([[0.4]])

figure, axis = plt.subplots(figsize=(8.0, 3.4), layout="constrained")
for number, n in enumerate((8, 32, 128, 1024)):
    path = brownian_path(jd.EulerMaruyama(process), line, one_key, one, uniform(n))
    shade = plt.get_cmap("viridis_r")(0.12 + 0.29 * number)
    axis.plot(uniform(n)[: n + 1], path[: n + 1, 0, 0], color=shade, lw=2.0 - 0.4 * number, label=f"{n} steps")
axis.set(xlabel="$t$", ylabel="$x_t$", xlim=narrow, ylim=(-0.8, 2.0), title="the reverse SDE, one Brownian path")
axis.legend(ncols=4, loc="upper center")
plt.show()

# %% [markdown]
# So paths can be compared one by one. Half the step should halve the distance of the ends, strong order 1: $g$ does
# not depend on $x$, which spares Euler-Maruyama its usual order of $\tfrac{1}{2}$. With noise drawn anew there is
# nothing to converge to.

# %%
keys = jd.sample_keys(jax.random.key(6), 0, 200)
start = process.prior_sample(keys, (2,), narrow[0])
halvings = np.array([16, 32, 64, 128, 256, 512])
strong = {}
for name, source in (("one Brownian path", tree), ("noise drawn anew", jd.step_noise)):
    ends = jax.jit(
        lambda n, source=source: jd.integrate(
            jd.EulerMaruyama(process), exact, keys, start, uniform(n), num_steps=n, noise=source
        )[0]
    )
    reached = [ends(n) for n in (*halvings, 2 * halvings[-1])]
    gaps = [jnp.linalg.norm(a - b, axis=1).mean() for a, b in itertools.pairwise(reached)]
    strong[name] = np.array(gaps)

orders = {name: -np.polyfit(np.log(halvings), np.log(gaps), 1)[0] for name, gaps in strong.items()}
assert 0.85 < orders["one Brownian path"] < 1.2
assert abs(orders["noise drawn anew"]) < 0.1

figure, axis = plt.subplots(figsize=(6.0, 3.6), layout="constrained")
for name, gaps in strong.items():
    axis.loglog(halvings, gaps, marker="o", ms=4, label=f"{name}: order {abs(orders[name]):.2f}")
axis.set_xticks(halvings, halvings)
axis.minorticks_off()
axis.set(xlabel="steps $n$", ylabel="mean distance, $n$ to $2n$ steps")
axis.legend()
plt.show()

# %% [markdown]
# ## Order of convergence
#
# The probability flow is an ordinary differential equation, and a method of order $p$ with steps of length $h$ has an
# error proportional to $h^p$: a line of slope $-p$ below. In double precision it goes on far enough to be measured.
# `DPMpp2M` and `UniPC` remember earlier predictions, so like Euler they take one evaluation a step; Heun takes two.

# %%
methods = {"Euler": (jd.Euler, 1), "Heun": (jd.Heun, 2), "DPMpp2M": (jd.DPMpp2M, 1), "UniPC": (jd.UniPC, 1)}
steps = np.array([16, 32, 64, 128, 256, 512])
errors, slopes = {}, {}
with jax.enable_x64(True):
    start = process.prior_sample(jd.sample_keys(jax.random.key(5), 0, 64), (2,)).astype(jnp.float64)

    @jax.jit
    def flow_ends(sampler, n):
        return jd.integrate(sampler, exact, None, start, grid(process, n, 1.0, t_min), num_steps=n)[0]

    truth = flow_ends(jd.RK4(process), 1024)
    for name, (method, _) in methods.items():
        gaps = [flow_ends(method(process), n) - truth for n in steps]
        errors[name] = np.array([float(jnp.sqrt(jnp.square(gap).mean())) for gap in gaps])
        slopes[name] = -np.polyfit(np.log(steps[-3:]), np.log(errors[name][-3:]), 1)[0]

figure, axis = plt.subplots(figsize=(6.5, 4.0), layout="constrained")
for name, (_, cost) in methods.items():
    axis.loglog(cost * steps, errors[name], marker="o", ms=4, label=f"{name}: order {slopes[name]:.2f}")
axis.set_xticks([16, 32, 64, 128, 256, 512, 1024], [16, 32, 64, 128, 256, 512, 1024])
axis.tick_params(axis="x", which="minor", length=0)
axis.set(xlabel="evaluations", ylabel="error, root mean square")
axis.legend()
plt.show()
for name, order in {"Euler": 1, "Heun": 2, "DPMpp2M": 2, "UniPC": 4}.items():
    assert slopes[name] > order - 0.15, (name, slopes[name])

# %% [markdown]
# `UniPC` of order 3 gains one from its corrector, which costs no evaluation. The order says how an error falls, not how
# large it is: with few steps all methods are near each other, and the grid of times matters more.
#
# ## Likelihood
#
# The flow is invertible, so it carries density along: with $v$ the velocity,
#
# $$\ln p_0(x_0) = \ln p_1(x_1) + \int_0^1 \nabla \cdot v(x_t, t)\, dt .$$
#
# `log_likelihood` runs it from data to noise. Here the divergence is exact; for images it is estimated by random
# directions (Grathwohl et al. 2019). Nothing is told of the mixture's density but its denoiser.

# %%
solver = FixedSteps(64)  # by default the steps are as long as a tolerance allows
found = jax.jit(lambda denoise, x: log_likelihood(denoise, process, x, solver=solver, divergence="exact"))(exact, mesh)
log_density = found.log_density.reshape(81, 81)
difference = jnp.abs(log_density - exact_log_density)
mass = jnp.exp(log_density).sum() * (axis_points[1] - axis_points[0]) ** 2

figure, axes = plt.subplots(1, 3, figsize=(11.5, 3.5), layout="constrained", sharey=True)
extent = (-side, side, -side, side)
style = {"origin": "lower", "extent": extent, "vmin": -20, "vmax": 0}
for axis, title, picture in (
    (axes[0], r"exact $\ln p_0$", exact_log_density),
    (axes[1], "by the flow", log_density),
):
    image = axis.imshow(picture, cmap="viridis", **style)
    axis.set_title(title)
figure.colorbar(image, ax=axes[:2], extend="min", shrink=0.9)
image = axes[2].imshow(jnp.log10(difference + 1e-9), cmap="magma", vmin=-5, vmax=-1.5, origin="lower", extent=extent)
axes[2].set_title(r"$\log_{10}$ of the difference")
figure.colorbar(image, ax=axes[2], extend="min", shrink=0.9)
for axis in axes:
    axis.grid(False)
plt.show()
prior_error = process.prior_log_density(found.latent, 1.0) - exact.log_density(found.latent, 1.0)
from_the_flow = jnp.abs(found.log_density - prior_error - exact_log_density.ravel()).max()
print(f"{mesh.shape[0]} points, {found.evaluations[0]} evaluations each; ln p from {log_density.min():.0f} to 0")
print(f"largest difference {difference.max():.4f} nats; with the exact density at t = 1 {from_the_flow:.4f}")
print(f"the density found sums to {mass:.4f} over the square")
assert difference.max() < 0.03
assert from_the_flow < 0.75 * difference.max()
assert abs(mass - 1.0) < 1e-2

# %% [markdown]
# The difference is largest far out, and half of it is not the flow's: as prior at $t = 1$ stands $\mathcal{N}(0, 1)$,
# which neglects the little of the data, $\alpha(1) = 0.007$, that is left there.

# %% [markdown]
# ## Encoding
#
# The same flow gives every point a code: from $x_0$ up to $x_1$, and from there back. `integrate` takes rising times
# for it. `Adaptive` chooses the steps itself, for each sample its own, so that two times are the whole grid.

# %%
points = exact.sample_data(jax.random.key(12), 1500)
group = np.asarray(jnp.linalg.norm(points[:, None] - exact.means[None], axis=2).argmin(axis=1))
careful = jd.Adaptive(process, DORMAND_PRINCE, rtol=1e-5, atol=1e-5)
up = jnp.array([t_min, 1.0])
codes, progress = integrate(careful, exact, None, points, up)
back, _ = integrate(careful, exact, None, codes, up[::-1])

figure, axes = plt.subplots(1, 3, figsize=(11.5, 3.6), layout="constrained")
for axis, title, picture in ((axes[0], "data $x_0$", points), (axes[1], "codes $x_1$", codes)):
    axis.scatter(*picture.T, s=5, c=group, cmap="tab10", vmax=9, lw=0)
    axis.set(title=title, xlim=(-3.2, 3.2), ylim=(-3.2, 3.2), aspect="equal")
dots = axes[2].scatter(*points.T, s=5, c=progress.evaluations, cmap="viridis", lw=0)
axes[2].set(title="evaluations, by where the path begins", xlim=(-3.2, 3.2), ylim=(-3.2, 3.2), aspect="equal")
figure.colorbar(dots, ax=axes[2], shrink=0.9)
plt.show()
print(f"largest difference of x0 from x0 -> x1 -> x0: {jnp.abs(back - points).max():.1e}")
print(f"evaluations up: {progress.evaluations.min()} to {progress.evaluations.max()}")
print("codes: mean", codes.mean(axis=0).round(2), "covariance", jnp.cov(codes.T).round(2).ravel())
assert jnp.abs(back - points).max() < 1e-2
assert np.allclose(jnp.cov(codes.T), jnp.eye(2), atol=0.1)

# %% [markdown]
# The codes together are standard normal, and each peak keeps a region of its own among them. Points that begin between
# the peaks take more steps.
#
# ## Predictor and corrector
#
# A coarse step arrives at a wrong law. Langevin dynamics at the time it arrived at,
#
# $$x \leftarrow x + \epsilon\, \nabla \log p_t(x) + \sqrt{2 \epsilon}\, z ,$$
#
# has $p_t$ as its rest, so some steps of it pull the samples back towards $p_t$ (Song et al. 2021). Any sampler can be
# the predictor; here it is DDIM with few steps.

# %%
keys = jd.sample_keys(jax.random.key(3), 0, N)
start = process.prior_sample(keys, (2,))
predictor = jd.DDIM(process)
corrected = jd.PredictorCorrector(predictor, jd.AnnealedLangevin(snr=0.5, steps=3))
counts = (6, 8, 12, 16, 24, 32, 64)
ends = {
    name: [sample(sampler, exact, keys, start, grid(process, n, 1.0, t_min), n) for n in counts]
    for name, sampler in (("predictor alone", predictor), ("with corrector", corrected))
}
distances = {name: np.array([float(distance(x, data)) for x in runs]) for name, runs in ends.items()}

figure, axes = plt.subplots(1, 3, figsize=(12.0, 3.7), layout="constrained")
for axis, (name, runs) in zip(axes, ends.items(), strict=False):
    plane(axis, f"{name}, {counts[1]} steps")
    axis.scatter(*runs[1][:1500].T, s=4, color="C0" if axis is axes[0] else "C1", alpha=0.5, lw=0)
for name, values in distances.items():
    axes[2].loglog(counts, values, marker="o", ms=4, label=name)
axes[2].axhline(floor, color="0.5", ls="--", lw=1)
axes[2].annotate("data against data", (6, floor), xytext=(0, 4), textcoords="offset points", color="0.4", fontsize=9)
axes[2].set_xticks(counts, counts)
axes[2].minorticks_off()
axes[2].set(xlabel="steps of the predictor", title="sliced Wasserstein distance")
axes[2].legend()
plt.show()
for name, values in distances.items():
    print(f"{name}:", ", ".join(f"{value:.3f} ({n} steps)" for n, value in zip(counts, values, strict=True)))
assert (distances["with corrector"][:5] < 0.9 * distances["predictor alone"][:5]).all()

# %% [markdown]
# A corrector mends the law at a given number of steps, and its step costs an evaluation too, here three for each of the
# predictor's. For a denoiser without error, as this one, as many evaluations spent on shorter steps mostly do as well.
#
# ## Further
#
# - Every sampler of `jaxdiff.sampling` fits the cells above: put another name there.
# - [Quickstart](quickstart.py) does the same with a trained network, [score matching](score_matching.py) is about how
#   one is trained.
