"""Models of papers' own repositories beside them: outputs, gradients, files in both directions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.pretrained.originals import load_original, original_of, write_original
from jaxdiff.pretrained.safetensors import SafeTensors, write_safetensors
from jaxdiff.pretrained.writing import Published
from tests.parity.comparison import apart, as_torch
from tests.parity.originals import disturbed, quiet, torch
from tests.parity.repositories import REPOSITORIES

pytestmark = pytest.mark.nightly

OUTPUT, GRADIENT = 1e-4, 1e-3  # of the root mean square


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("layout", REPOSITORIES)
def test_as_the_original(layout: str, seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    with quiet():
        original = REPOSITORIES[layout](rng)
    network = disturbed(original.network, seed)
    theirs = {name: each.numpy() for name, each in network.state_dict().items()}
    write_safetensors(tmp_path / "theirs.safetensors", theirs)
    model = load_original(tmp_path / "theirs.safetensors", original.name, network=original.changes)
    net, params = model.denoise.net, model.denoise.params
    apply = jax.jit(net.apply)
    for size, batch in zip(original.sizes, (1, 4), strict=True):
        x = rng.normal(size=(batch, *size, original.channels)).astype(np.float32)
        t = np.array(original.times[-batch:], np.float32)
        cond = original.cond(rng, batch)
        with torch.no_grad():
            expected = original.call(*as_torch((x, t, cond))).numpy()
        assert np.sqrt(np.square(expected).mean()) > 1e-3
        assert apart(apply(params, x, t, cond), expected) < OUTPUT
    weight = rng.normal(size=expected.shape).astype(np.float32)
    assert gradients(original, model, x, t, cond, weight) < GRADIENT
    write_original(tmp_path / "ours.safetensors", original.name, params, network=original.changes)
    written = SafeTensors(tmp_path / "ours.safetensors")
    assert {name: each.shape for name, each in written.items()} == {name: each.shape for name, each in theirs.items()}
    network.load_state_dict({name: torch.from_numpy(written.read(name)) for name in written}, strict=True)
    for name, each in theirs.items():
        np.testing.assert_array_equal(written.read(name), each, err_msg=name)


def gradients(original: Any, model: Any, x: Any, t: Any, cond: Any, weight: Any) -> float:
    """Of the sum of the output times fixed numbers: the largest difference by x, and by all weights."""
    net, params = model.denoise.net, model.denoise.params

    def scalar(params: Any, x: Any) -> Any:
        return (net.apply(params, x, t, cond) * weight).sum()

    by_params, by_x = jax.jit(jax.grad(scalar, argnums=(0, 1)))(params, jnp.asarray(x))
    given = torch.from_numpy(x).requires_grad_()
    (original.call(given, *as_torch((t, cond))) * torch.from_numpy(weight)).sum().backward()
    ours = Published(by_params, original_of(original.name).naming(net.build))
    theirs = {name: each.grad.numpy() for name, each in original.network.named_parameters() if each.grad is not None}
    least = np.sqrt(sum(np.square(each).sum() for each in theirs.values()) / sum(each.size for each in theirs.values()))
    worst = apart(by_x, given.grad.numpy())
    for name, each in theirs.items():
        difference = np.abs(ours[name].reshape(each.shape) - each).max()
        worst = max(worst, float(difference / max(np.sqrt(np.square(each).mean()), least)))
    return worst
