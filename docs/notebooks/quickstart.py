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
# # Quickstart
#
# A diffusion model learns to undo noise. Here one that draws handwritten digits is loaded (or trained, very briefly),
# sampled, steered, watched at work, and at last taken apart: its sampler is four lines.
#
# Needs jaxdiff and matplotlib; `pip install -e '.[test]'` brings both. Run it in its own folder, `docs/notebooks`.

# %% tags=["hide-input"]
import dataclasses
import functools
import itertools
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import jaxdiff
from jaxdiff import config as cfg
from jaxdiff import train as training
from jaxdiff.codecs import to_model_range
from jaxdiff.data import batches
from jaxdiff.model import draw
from jaxdiff.train.step import Given

cfg.set_up()  # before JAX's first array: on a CPU what pays there, as the programs do

plt.rcParams |= {
    "figure.dpi": 110,
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
}


def show(axis, images, columns, rows=(), heads=(), title=None):
    """A grid of grey images (N, H, W, 1) on an axis, with names beside its rows and above its columns."""
    tiles = np.asarray(images)[..., 0].repeat(8, axis=1).repeat(8, axis=2)
    tiles = np.pad(tiles, ((0, 0), (3, 3), (3, 3)), constant_values=np.nan)  # drawn as the page
    n, height, width = tiles.shape
    picture = tiles.reshape(n // columns, columns, height, width).swapaxes(1, 2)  # (rows, height, columns, width)
    axis.imshow(picture.reshape(n // columns * height, columns * width), cmap="gray", vmin=-1, vmax=1)
    axis.set_yticks([height * (i + 0.5) for i in range(len(rows))], rows)
    axis.set_xticks([width * (i + 0.5) for i in range(len(heads))], heads)
    axis.tick_params(length=0, labeltop=True, labelbottom=False)
    axis.spines[:].set_visible(False)
    axis.grid(False)
    axis.set_title(title, loc="left")


# %% [markdown]
# ## A trained model
#
# `python train.py` leaves a run in `runs/digits`, and `jaxdiff.Run.load` brings it back. If there is none, a smaller
# network is trained here for some seconds on the same data with the same objective. It shows everything below, but
# its digits are rougher.
#
# The objective: an image $x_0$ is mixed with Gaussian noise $\varepsilon$ at a random time $t \in [0, 1]$,
#
# $$x_t = \alpha(t)\, x_0 + \sigma(t)\, \varepsilon ,$$
#
# and the network, which sees $x_t$, $t$ and the label, is trained by least squares to tell the two apart. Least
# squares leads to expectations: it learns $\mathbb{E}[x_0 \mid x_t]$, the average of all images that could have led
# to $x_t$. One digit label in ten is hidden from it, so it also learns to do without.


# %%
def train_small(steps: int) -> jaxdiff.Run:
    """The default experiment with a smaller network: `train.py` without its loop, checkpoints and logging."""
    config = cfg.load_config_file("../../configs/digits_unet.py")
    small = dataclasses.replace(config.network, width=16, blocks=1, dropout=0.0)
    config = dataclasses.replace(config, network=small, train=dataclasses.replace(config.train, steps=steps))
    source = cfg.build_source(config)
    config = cfg.resolve(config, source)

    net, loss = cfg.build_network(config), cfg.build_loss(config)
    optimizer, _ = training.make_optimizer(steps=steps, **dataclasses.asdict(config.optimizer))
    state = jax.jit(functools.partial(training.create_state, net, optimizer, loss))(jax.random.key(config.seed))
    parts = {"net": net, "loss": loss, "optimizer": optimizer, "ema": config.ema}
    step = jax.jit(functools.partial(training.train_step, **parts), donate_argnums=0)
    given = Given(cfg.build_codec(config))  # makes x0 of bytes
    with cfg.build_pipeline(config, source) as data:
        for n in range(1, steps + 1):
            state, metrics = step(state, next(data), given)
            if n % 100 == 0:
                print(f"step {n}/{steps}, loss {float(metrics['loss']):.3f}")

    return jaxdiff.Run.of(config, state.ema["ema"], steps, training.make_mesh(devices=jax.local_devices()))


folder = Path("../../runs/digits")
if folder.is_dir():
    run = jaxdiff.Run.load(folder)
    print(f"loaded {folder}, trained for {run.step} steps")
else:
    print(f"there is no {folder}: training a small network. For better digits run `python train.py` first.")
    run = train_small(steps=600)

# %% [markdown]
# ## Samples
#
# `run.sample(key, n, cond)` goes from noise to a record, `{"x": images, "label": labels}`. Real digits are on the left,
# samples on the right, one class a row.

# %%
labels = np.repeat(np.arange(10), 10)
samples = run.sample(jax.random.key(0), 100, {"label": labels})["x"]  # bytes, as the data are

source = cfg.build_source(run.config)
real = next(batches(source, len(source)))
real_by_class = np.concatenate([to_model_range(real["x"])[real["label"] == label][:10] for label in range(10)])

figure, axes = plt.subplots(1, 2, figsize=(9.5, 5.0), layout="constrained")
show(axes[0], real_by_class, 10, rows=range(10), title="real")
show(axes[1], to_model_range(samples), 10, rows=range(10), title="sampled")
plt.show()

# %% [markdown]
# ## Steering without waiting
#
# Classifier-free guidance (Ho & Salimans 2022) exaggerates what the label $c$ changes in the prediction,
#
# $$\hat{x}_0 = \mathbb{E}[x_0 \mid x_t] + w \left( \mathbb{E}[x_0 \mid x_t, c] - \mathbb{E}[x_0 \mid x_t] \right) .$$
#
# $w = 1$ is the plain conditional model. More gives clearer digits, each more like the others of its class.
#
# The first guided call compiles. After it the weight, the labels and the seed are data of the compiled program, so
# other values cost no more than the sampling itself.

# %%
settings = [  # weight, seed, labels
    (1.0, 7, np.arange(10)),
    (2.0, 7, np.arange(10)),
    (4.0, 7, np.arange(10)),
    (2.0, 8, np.arange(10)),
    (2.0, 8, np.arange(10)[::-1]),
]
strips, compiled = [], []
for weight, seed, wanted in settings:
    began = time.perf_counter()
    strips.append(run.sample(jax.random.key(seed), 10, {"label": wanted}, guide=weight)["x"])
    compiled.append(draw._cache_size())
    print(f"w = {weight}, seed {seed}, labels {wanted}: {time.perf_counter() - began:6.3f} s")
assert len(set(compiled)) == 1, "a changed weight, seed or label compiled again"

# %%
figure, axis = plt.subplots(figsize=(8.0, 4.2), layout="constrained")
names = [f"w = {weight:g}, seed {seed}" for weight, seed, _ in settings]
names[-1] += ",\nlabels reversed"
show(axis, to_model_range(np.concatenate(strips)), 10, rows=names)
plt.show()

# %% [markdown]
# Down the first three rows the noise is the same and only $w$ grows. In the last two the noise is the same and the
# labels differ: sample $i$ has its own random key, which decides it together with its label and nothing else. So the
# first images of a batch are the same at any batch size.

# %% [markdown]
# ## From noise to a digit
#
# A sampler walks a falling grid of times. `sample_path` keeps what `sample` throws away, the whole path. Above, $x_t$
# itself; below, what the network expects of it, $\mathbb{E}[x_0 \mid x_t, c]$: at $t = 1$ the mean image of the
# class, which then makes up its mind.

# %%
process = run.process
denoise = jaxdiff.Clipped(run.denoise, process)  # predictions limited to [-1, 1], as the run itself samples
ts = jaxdiff.uniform_times(process, 40)
keys = jaxdiff.sample_keys(jax.random.key(3), 0, 10)
noise = process.prior_sample(keys, run.shape, ts[0])
cond = {"label": jnp.arange(10)}

# Processes, samplers and denoisers are pytrees: everything is an argument of one jit.
xs, x0 = jax.jit(jaxdiff.sample_path)(jaxdiff.DDIM(process), denoise, keys, noise, ts, cond)
print("path", xs.shape, "end", x0.shape)

# %%
ask = jax.jit(lambda denoise, x, t, cond: denoise(x, t, cond))
shown = np.linspace(0, len(ts) - 1, 11).round().astype(int)
heads = ["$t = 1$"] + [f"{ts[i]:.2f}" for i in shown[1:]]
expected = np.stack([ask(denoise, xs[i], ts[i], cond).x0 for i in shown])

figure, axes = plt.subplots(3, 1, figsize=(9.0, 5.6), layout="constrained")
for axis, digit in zip(axes, (2, 5, 8), strict=True):
    strip = np.concatenate([xs[shown, digit], expected[:, digit]])
    show(axis, strip, len(shown), rows=["$x_t$", r"$\mathbb{E}[x_0]$"], heads=heads if digit == 2 else ())
plt.show()

# %% [markdown]
# The same path, pixel by pixel: 64 curves that begin as independent Gaussian numbers and end at ink or paper.

# %%
figure, axis = plt.subplots(figsize=(8.0, 3.4), layout="constrained")
pixels = np.asarray(xs[:, 5]).reshape(len(ts), -1)
colours = plt.get_cmap("coolwarm")((np.asarray(x0[5]).reshape(-1) + 1) / 2)
for curve, colour in zip(pixels.T, colours, strict=True):
    axis.plot(ts, curve, color=colour, lw=0.9)
axis.set(xlabel="$t$", ylabel="$x_t$, each pixel", xlim=(1, 0), title="coloured by where they end: blue paper, red ink")
plt.show()

# %% [markdown]
# ## The schedules
#
# A process is two functions of time, $\alpha$ and $\sigma$; everything else follows. What matters most is their
# ratio, as the log-signal-to-noise ratio $\lambda(t) = \ln\,(\alpha^2 / \sigma^2)$. Two processes that pass the same
# $\lambda$ pass the same noisy image there, up to its scale, so they differ in how they scale it and in how fast they
# walk through the noise levels.

# %%
processes = {
    "VP": jaxdiff.VP(),
    "CosineVP": jaxdiff.CosineVP(),
    "Flow": jaxdiff.Flow(),
    "VE": jaxdiff.VE(),
    "KarrasVE": jaxdiff.KarrasVE(),
}
times = jnp.linspace(0.0, 1.0, 401)
inside = times[1:-1]  # the log-SNR of most of them is infinite at an end

figure, axes = plt.subplots(1, 3, figsize=(11.0, 3.4), layout="constrained")
for number, (name, each) in enumerate(processes.items()):
    style = {"label": name, "color": f"C{number}", "lw": 1.8, "ls": "--" if name == "KarrasVE" else "-"}
    axes[0].plot(times, each.alpha(times), **style)
    axes[1].plot(inside, each.sigma(inside), **style)
    axes[2].plot(inside, each.log_snr(inside), **style)
axes[0].set(xlabel="$t$", title=r"$\alpha(t)$, the signal")
axes[1].set(xlabel="$t$", title=r"$\sigma(t)$, the noise", yscale="log")
axes[2].set(xlabel="$t$", title=r"$\lambda(t)$, log-SNR")
axes[2].legend(fontsize=9)
plt.show()

# %% [markdown]
# One real digit under each of them, with one and the same noise, divided by $\sqrt{\alpha^2 + \sigma^2}$:

# %%
moments = jnp.linspace(0.0, 1.0, 11)
digit = jnp.repeat(real_by_class[:1], len(moments), axis=0)
eps = jnp.repeat(jax.random.normal(jax.random.key(1), (1, *run.shape)), len(moments), axis=0)
strips = []
for each in processes.values():
    scale = jnp.sqrt(each.alpha(moments) ** 2 + each.sigma(moments) ** 2)
    strips.append(each.perturb(digit, eps, moments) / scale[:, None, None, None])

figure, axis = plt.subplots(figsize=(9.0, 4.4), layout="constrained")
heads = ["$t = 0$"] + [f"{t:.1f}" for t in moments[1:]]
show(axis, np.concatenate(strips), len(moments), rows=list(processes), heads=heads)
plt.show()

# %% [markdown]
# ## The sampler by hand
#
# There is no magic left. At $(x_t, t)$ the network gives the pair $(\hat{x}_0, \hat{\varepsilon})$ with $x_t =
# \alpha_t \hat{x}_0 + \sigma_t \hat{\varepsilon}$. DDIM (Song et al. 2021) believes it for one step, and mixes the
# same pair for the next, less noisy time $s$:
#
# $$x_s = \alpha_s\, \hat{x}_0 + \sigma_s\, \hat{\varepsilon} .$$
#
# Then it asks again. After the last time $\hat{x}_0$ is the sample.

# %%
x = noise
for t, s in itertools.pairwise(ts):
    prediction = ask(denoise, x, t, cond)
    x = process.alpha(s) * prediction.x0 + process.sigma(s) * prediction.eps
by_hand = ask(denoise, x, ts[-1], cond).x0

print(f"largest difference from jaxdiff.sample_path: {jnp.abs(by_hand - x0).max():.1e}")
assert np.allclose(by_hand, x0, atol=1e-3)

# %%
figure, axis = plt.subplots(figsize=(8.0, 1.9), layout="constrained")
show(axis, np.concatenate([by_hand, x0]), 10, rows=["by hand", "sample_path"], heads=range(10))
plt.show()

# %% [markdown]
# ## Further
#
# - Other samplers are other values: `run.sample(key, 10, cond, sampler="dpmpp_2m", steps=15)`, or one of your own.
# - `train.py` is the loop of the first cell with checkpoints, metrics and many devices; `configs/` holds experiments.
# - [Extending](../extending.md) adds a schedule, a sampler, a network or a data source in a few lines each.
