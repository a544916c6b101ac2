"""What an autoencoder's run says of itself: how well it reconstructs, and the scale of its latents, `latents.json`.

With m and v the moments of a latent given its image, the mean and variance of a channel over images and places are

    E[m],   E[v] + E[m^2] - E[m]^2                                                                       (1)

PSNR and SSIM are those of `jaxdiff.similarity`, of bytes as they are stored and as they come back, means over images.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from jaxdiff.autoencoding import perplexity
from jaxdiff.data.sources import Source, take
from jaxdiff.networks.autoencoder import Autoencoder
from jaxdiff.runs.autoencoder import LATENTS, AutoencoderRun, moments, reconstructed
from jaxdiff.similarity import WINDOW, psnr, ssim

READ = 4096
"""Records that are read at once."""


def write_latents(run: AutoencoderRun, source: Source, test: Source | None) -> None:
    """Writes `latents.json` into the run's folder: what `describe` finds. All processes call it, the first writes."""
    figures = describe(run, source, test)
    if jax.process_index() == 0:
        file = Path(run.folder or run.config.folder) / LATENTS
        partial = file.with_suffix(".partial")
        partial.write_text(json.dumps({"step": run.step} | figures, indent=1) + "\n", encoding="utf-8")
        partial.replace(file)  # there whole or not at all


def describe(run: AutoencoderRun, source: Source, test: Source | None = None) -> dict[str, Any]:
    """How well an autoencoder reconstructs, and the scale of its latents.

    Args:
      run: the autoencoder.
      source: the training data, for the latents.
      test: data for PSNR and SSIM; None: the training data, which the figures then say.

    Returns:
      ``mean`` and ``std`` of each channel, equation (1); ``shape`` of one image's latents; ``psnr`` in dB and ``ssim``
      (None of images smaller than its window); ``of``, the split that these two are of. With a codebook also its
      ``perplexity`` and the share of ``entries_used`` over the training data.
    """
    channels = run.net.channels
    sums, count, used = np.zeros((2, channels)), 0, np.zeros(1)
    for x in _read(source):
        found = run.over(_latents, x)
        mean, variance = (found[name].astype(np.float64).reshape(-1, channels) for name in ("mean", "variance"))
        sums += [mean.sum(0), (np.square(mean) + variance).sum(0)]
        count += len(mean)
        used = used + found["usage"].sum(0, dtype=np.float64) if "usage" in found else used
    mean, square = sums / count
    std = np.sqrt(np.maximum(square - np.square(mean), 0))
    parts = [run.over(scored, x) for x in _read(source if test is None else test)]
    joined = {name: np.concatenate([each[name] for each in parts]) for name in parts[0]}
    scores = {name: float(each.mean(dtype=np.float64)) for name, each in joined.items()}
    figures = {"mean": mean.tolist(), "std": std.tolist(), "shape": list(run.shape)}
    figures |= {"psnr": scores["psnr"], "ssim": scores.get("ssim"), "of": "train" if test is None else "test"}
    if run.net.quantises:
        figures |= {"perplexity": float(perplexity(jnp.asarray(used))), "entries_used": float((used > 0).mean())}
    return figures


def scored(net: Autoencoder, params: Any, codec: Any, x: Array) -> dict[str, Array]:
    """PSNR of stored images and, where they hold its window, SSIM, ``(B,)`` each; for `AutoencoderRun.over`."""
    again = reconstructed(net, params, codec, x)
    found = {"psnr": psnr(x, again)}
    return found | ({"ssim": ssim(x, again)} if min(x.shape[1:3]) >= WINDOW else {})


def _latents(net: Autoencoder, params: Any, codec: Any, x: Array) -> dict[str, Array]:
    mean, log_variance = moments(net, params, codec, x)
    if log_variance is not None:
        return {"mean": mean, "variance": jnp.exp(log_variance)}
    codes = net.quantise(params, mean).code
    usage = jax.vmap(lambda code: jnp.bincount(code.ravel(), length=net.build.entries))(codes)  # type: ignore[attr-defined]
    return {"mean": mean, "variance": jnp.zeros_like(mean), "usage": usage}


def _read(source: Source) -> Iterator[NDArray[np.uint8]]:
    for first in range(0, len(source), READ):
        yield take(source, np.arange(first, min(first + READ, len(source))))["x"]
