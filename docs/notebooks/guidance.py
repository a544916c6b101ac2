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
# # Guidance
#
# A model that was trained with its label hidden now and then can say what the label changes. Guidance makes that
# change larger: samples become easier to recognise, and more alike. Here several ways to do so are drawn beside each
# other, and what they cost in diversity is measured.
#
# Needs jaxdiff, matplotlib and scikit-learn; `pip install -e '.[test]'` brings them.

# %% tags=["hide-input"]
import dataclasses
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from sklearn.svm import SVC

import jaxdiff
from jaxdiff import config as cfg
from jaxdiff.data import open_digits

cfg.set_up()  # before JAX's first array: on a CPU what pays there, as the programs do
plt.rcParams |= {"figure.dpi": 110, "font.size": 8}


def show(rows, titles, names):
    """Pictures (rows, columns, 8, 8, 1): a name before each row, a title over each column."""
    figure, axes = plt.subplots(*rows.shape[:2], figsize=(rows.shape[1] * 0.85, rows.shape[0] * 0.85), squeeze=False)
    for i, j in np.ndindex(rows.shape[:2]):
        axes[i, j].imshow(rows[i, j, ..., 0], cmap="gray", vmin=0, vmax=255)
        axes[i, j].set(xticks=[], yticks=[], title=titles[j] if i == 0 else "")
    for axis, name in zip(axes[:, 0], names, strict=True):
        axis.set_ylabel(name, rotation=0, ha="right", va="center")
    figure.tight_layout(pad=0.3)


# %% [markdown]
# ## A model
#
# `python train.py` leaves one in `runs/digits`. If there is none, the same experiment is trained here for a minute;
# its digits are worse, which leaves guidance more to do.

# %%
folder = Path("../../runs/digits")
if folder.is_dir():
    run = jaxdiff.load(folder)
else:
    config = cfg.load_config_file("../../configs/digits_unet.py")
    short = dataclasses.replace(config.train, steps=400, log_every=200, sample_every=0)
    config = dataclasses.replace(config, train=short, workdir=tempfile.mkdtemp())
    run = jaxdiff.fit(config)

# %% [markdown]
# ## The weight
#
# With the prediction $x_0(x, c)$ for label $c$ and $x_0(x, \varnothing)$ without one, classifier-free guidance samples
# with
#
# $$x_0 = x_0(x, \varnothing) + w\,\bigl(x_0(x, c) - x_0(x, \varnothing)\bigr).$$
#
# $w = 0$ forgets the label, $w = 1$ is the model as it is. Each column below begins at the same noise. The weight is
# a number of the compiled program: all of these are one compilation.

# %%
weights = [0.0, 1.0, 2.0, 4.0, 8.0]
steps = {"sampler": "dpmpp_2m", "steps": 12}
labels = (3, 5, 8)
rows = [[run.sample(3, 1, {"label": k}, guide=w, **steps)["x"][0] for w in weights] for k in labels]
show(np.array(rows), [f"w = {w:g}" for w in weights], [f"a {label}" for label in labels])

# %% [markdown]
# ## Ways to lead
#
# Large weights saturate: strokes become black and white. An interval of noise levels leaves the ends alone, APG takes
# out the part of the change that points along the prediction, rescaling brings the contrast back. CFG++ interpolates
# and noises the result with the unconditional noise; it is for DDIM.

# %%
ways = {
    "plain": [],
    "cfg:6": ["cfg:6"],
    "cfg:6 interval:0.3,3": ["cfg:6", "interval:0.3,3"],
    "apg:6": ["apg:6"],
    "cfg:6 rescale:0.7": ["cfg:6", "rescale:0.7"],
    "cfgpp:0.8": ["cfgpp:0.8"],
}
labels = np.arange(10)
ddim = {"sampler": "ddim", "steps": 20}
rows = [run.sample(1, 10, {"label": labels}, guide=way, **ddim)["x"] for way in ways.values()]
show(np.array(rows), [str(label) for label in labels], list(ways))

# %% [markdown]
# Conditions can be joined. This asks for what is a three *and* an eight, and for a three that is *not* an eight.

# %%
guides = {
    "cfg:2": ["cfg:2"],
    "cfg:2 and:label=8,weight=2": ["cfg:2", "and:label=8,weight=2"],
    "cfg:2 not:label=8": ["cfg:2", "not:label=8"],
}
rows = [run.sample(5, 10, {"label": 3}, guide=guide, **steps)["x"] for guide in guides.values()]
show(np.array(rows), [""] * 10, list(guides))

# %% [markdown]
# ## Fidelity against diversity
#
# A classifier that was fitted to other real digits says how many samples are of the class that was asked for. How
# different they are from each other is measured by the distance of each to its nearest neighbour of its class, as a
# share of what it is among as many real digits. Each line is one method over six weights.

# %%
real = open_digits(split="all")
real = real.take(np.arange(len(real)))
flat = real["x"].reshape(len(real["x"]), -1) / 127.5 - 1
judge = SVC(C=10).fit(flat, real["label"])


def spread(points, classes):
    """Mean distance to the nearest neighbour of the same class."""
    found = []
    for label in range(10):
        mine = points[classes == label]
        apart = np.linalg.norm(mine[:, None] - mine[None], axis=2) + 1e9 * np.eye(len(mine))
        found.append(apart.min(axis=1).mean())
    return np.mean(found)


n = 400
asked = np.arange(n) % 10
some = np.concatenate([np.flatnonzero(real["label"] == label)[: n // 10] for label in range(10)])
usual = spread(flat[some], real["label"][some])

figure, axis = plt.subplots(figsize=(6.2, 3.8), layout="constrained")
for name, way in {
    "cfg": lambda w: [f"cfg:{w}"],
    "cfg in an interval": lambda w: [f"cfg:{w}", "interval:0.3,3"],
    "apg": lambda w: [f"apg:{w}"],
}.items():
    curve = []
    for w in (1, 1.5, 2, 3, 5, 8):
        x = run.sample(0, n, {"label": asked}, guide=way(w), **steps)["x"].reshape(n, -1) / 127.5 - 1
        curve.append(((judge.predict(x) == asked).mean(), spread(x, asked) / usual))
    axis.plot(*np.array(curve).T, marker="o", label=name)
axis.set(xlabel="samples taken for the class asked for", ylabel="nearest distance over that of real digits")
axis.legend()

# %% [markdown]
# Guidance moves along such a curve; a method is better where its curve lies above. `benchmarks/guidance.py` measures
# this with error bars and recall. [All names and numbers](../guidance.md).
