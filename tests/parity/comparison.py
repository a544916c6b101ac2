"""How far a network that is read here, and one that is written here, are from the original."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.pretrained import load_network, write_network
from jaxdiff.pretrained.fields import Fields
from jaxdiff.pretrained.files.writing import Published
from jaxdiff.pretrained.layouts.families import family_of
from tests.parity.controlnets import controlnet
from tests.parity.originals import ENCODERS, ORIGINALS, autoencoder_kl, disturbed, quiet, torch

TIMES = (0.0, 3.0, 421.5, 999.0)
NETWORKS = {**ORIGINALS, "ControlNetModel": controlnet}
NAMES = (*NETWORKS, "AutoencoderKL", *ENCODERS)
"""The classes that are compared."""


def as_torch(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: torch.from_numpy(np.asarray(leaf)), tree)


def as_one(output: Any) -> Any:
    """An array; several side by side."""
    leaves = jax.tree.leaves(output)
    return leaves[0] if len(leaves) == 1 else jnp.concatenate([leaf.reshape(len(leaf), -1) for leaf in leaves], 1)


def apart(ours: Any, theirs: Any) -> float:
    """The largest difference, over the root mean square of theirs."""
    theirs = np.asarray(theirs)
    return float(np.abs(np.asarray(ours) - theirs).max() / np.sqrt(np.square(theirs).mean()))


def again(network: Any, folder: Path) -> Any:
    with quiet():
        return type(network).from_pretrained(folder).eval()


def compare(name: str, seed: int, folder: Path) -> dict[str, float]:
    """The largest differences of a random network of a class, relative: of output, of gradients where it is called as
    ``(x, t, cond)``, and of what the original is after it was written here.

    Args:
      name: of `NAMES`.
      seed: decides the configuration, the weights and what they are given.
      folder: for the files.
    """
    rng = np.random.default_rng(seed)
    if name in NETWORKS:
        return _network(name, rng, seed, folder)
    return _autoencoder(rng, seed, folder) if name == "AutoencoderKL" else _encoder(name, rng, seed, folder)


def _network(name: str, rng: Any, seed: int, folder: Path) -> dict[str, float]:
    """Outputs at two sizes, two batch sizes and four times."""
    with quiet():
        original = NETWORKS[name](rng)
        network = disturbed(original.network, seed)
        if name == "DiTTransformer2DModel":
            original.call(torch.zeros(1, 8, 8, 4), torch.zeros(1), {"label": torch.zeros(1, dtype=torch.long)})
        network.save_pretrained(folder / "theirs")
    loaded = load_network(folder / "theirs")
    apply = jax.jit(lambda *given: as_one(loaded.net.apply(*given)))
    found = {"output": 0.0, "gradient": 0.0, "written": 0.0}
    cases = []
    for size, batch in zip(original.sizes, (1, 4), strict=True):
        x = rng.normal(size=(batch, *size, original.channels)).astype(np.float32)
        t = np.resize(np.array(TIMES, np.float32), 4)[-batch:]
        cond = original.cond(rng, batch, size)
        with torch.no_grad():
            theirs = original.call(*as_torch((x, t, cond))).numpy()
        found["output"] = max(found["output"], apart(apply(loaded.params, x, t, cond), theirs))
        cases.append((x, t, cond, theirs))
    x, t, cond, theirs = cases[0]
    found["gradient"] = _gradients(original, loaded, x, t, cond, rng.normal(size=theirs.shape).astype(np.float32))
    write_network(folder / "ours", loaded)
    with torch.no_grad():
        renewed = original._replace(network=again(network, folder / "ours"))
        original.network.load_state_dict(renewed.network.state_dict())
        for x, t, cond, theirs in cases:
            found["written"] = max(found["written"], apart(original.call(*as_torch((x, t, cond))).numpy(), theirs))
    return found


def _gradients(original: Any, loaded: Any, x: Any, t: Any, cond: Any, weight: Any) -> float:
    """Of the sum of the output times fixed numbers: by x, and by all weights under their published names."""

    def scalar(params: Any, x: Any) -> Any:
        return (as_one(loaded.net.apply(params, x, t, cond)) * weight).sum()

    by_params, by_x = jax.jit(jax.grad(scalar, argnums=(0, 1)))(loaded.params, jnp.asarray(x))
    given = torch.from_numpy(x).requires_grad_()
    original.network.zero_grad()
    (original.call(given, *as_torch((t, cond))) * torch.from_numpy(weight)).sum().backward()
    fields = Fields(loaded.fields)
    naming = family_of(fields).naming(fields)
    ours = Published(by_params, naming)
    theirs = {name: each.grad.numpy() for name, each in original.network.named_parameters() if each.grad is not None}
    worst = apart(by_x, given.grad.numpy())
    for copy, of in naming.copies.items():  # a copy's part of the gradient is the one array's here
        theirs[of] = theirs[of] + theirs.pop(copy)
    # A gradient that is 0 but for rounding (a key's bias has none) is measured by the others.
    least = np.sqrt(sum(np.square(each).sum() for each in theirs.values()) / sum(each.size for each in theirs.values()))
    for name, each in theirs.items():
        difference = np.abs(ours[name].reshape(each.shape) - each).max()
        worst = max(worst, float(difference / max(np.sqrt(np.square(each).mean()), least)))
    return worst


def _autoencoder(rng: Any, seed: int, folder: Path) -> dict[str, float]:
    """Moments and decoded latents at two sizes."""
    with quiet():
        network = disturbed(autoencoder_kl(rng), seed)
        network.save_pretrained(folder / "theirs")
    loaded = load_network(folder / "theirs")
    found = {"output": 0.0}
    for size, batch in (((16, 16), 1), ((24, 16), 3)):
        x = rng.normal(size=(batch, *size, 3)).astype(np.float32)
        with torch.no_grad():
            posterior = network.encode(torch.from_numpy(x).permute(0, 3, 1, 2)).latent_dist
            z = posterior.mean + 0.3 * torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(seed))
            back = network.decode(z).sample
        mean, log_variance, z, back = (
            each.permute(0, 2, 3, 1).numpy() for each in (posterior.mean, posterior.logvar, z, back)
        )
        ours = (*loaded.net.moments(loaded.params, x), loaded.net.decode(loaded.params, z))
        for mine, theirs in zip(ours, (mean, log_variance, back), strict=True):
            found["output"] = max(found["output"], apart(mine, theirs))
    return found | {"written": _written(network, loaded, folder)}


def _encoder(name: str, rng: Any, seed: int, folder: Path) -> dict[str, float]:
    """States and pooled vectors of texts of two lengths, whose end stands before padding."""
    network = disturbed(ENCODERS[name](rng), seed)
    network.save_pretrained(folder / "theirs")
    loaded = load_network(folder / "theirs")
    found = {"output": 0.0}
    for batch, length in ((1, 16), (3, 9)):
        ids = rng.integers(3, 96, (batch, length))
        ids[:, -2] = 97
        with torch.no_grad():
            theirs = network(torch.from_numpy(ids))
        ours = loaded.net.apply(loaded.params, ids)
        for mine, its in (("tokens", "last_hidden_state"), ("pooled", "pooler_output"), ("projected", "text_embeds")):
            if its in theirs:
                found["output"] = max(found["output"], apart(ours[mine], theirs[its]))
    return found | {"written": _written(network, loaded, folder)}


def _written(network: Any, loaded: Any, folder: Path) -> float:
    """The largest difference of a weight that the original library reads from what is written here."""
    write_network(folder / "ours", loaded)
    renewed = again(network, folder / "ours").state_dict()
    return max(float((renewed[name] - each).abs().max()) for name, each in network.state_dict().items())
