"""DiT and SiT in their authors' layout: counts, names, sizes from shapes, and what their outputs mean.

That outputs are the originals' is for `tests/parity/test_dit_files.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import DiscreteVP, Flow
from jaxdiff.networks import dit, functional
from jaxdiff.pretrained import PretrainedError, dit_model, load_dit, write_dit
from jaxdiff.pretrained.files.safetensors import SafeTensors, write_safetensors
from jaxdiff.pretrained.files.writing import Published
from jaxdiff.pretrained.layouts.dit import DataTime, TowardsData, _fields, _naming
from jaxdiff.pretrained.layouts.families import Loaded
from tests.pretrained.tiny import tiny

Size = Literal["S", "B", "L", "XL"]
COUNTS: dict[tuple[Size, int], int] = {
    ("S", 2): 32_865_056,
    ("B", 2): 130_315_808,
    ("L", 2): 457_840_672,
    ("XL", 2): 674_834_720,
    ("S", 4): 32_920_448,
    ("B", 4): 130_426_496,
    ("L", 4): 457_988_224,
    ("XL", 4): 675_000_704,
    ("S", 8): 33_142_016,
    ("B", 8): 130_869_248,
    ("L", 8): 458_578_432,
    ("XL", 8): 675_664_640,
}


@pytest.mark.parametrize(
    ("size", "patch"),
    [each if each == ("S", 2) else pytest.param(*each, marks=pytest.mark.nightly) for each in COUNTS],
)
def test_published_counts_and_sizes_from_shapes(size: Size, patch: int) -> None:
    """Trainable, and of XL/2 with its fixed table of positions."""
    config = dit(size, patch)
    params = jax.eval_shape(functional(config).init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == COUNTS[size, patch]
    described = Published(params, _naming(_given(config))).described()
    tensors = {name: jax.ShapeDtypeStruct(shape, dtype) for name, (dtype, shape) in described.items()}
    assert (
        sum(math.prod(each.shape) for each in tensors.values()) - COUNTS[size, patch]
        == (32 // patch) ** 2 * config.width
    )
    if (size, patch) == ("XL", 2):
        assert sum(math.prod(each.shape) for each in tensors.values()) == 675_129_632
    found: Any = _fields(tensors, "DiT", None, "a file")  # type: ignore[arg-type]
    assert found == _given(config)


def _given(config: Any, side: int = 32, kind: str = "DiT") -> dict[str, Any]:
    return {
        "_class_name": kind,
        "sample_size": side,
        "in_channels": 4,
        "out_channels": config.out_channels,
        "patch_size": config.patch,
        "hidden_size": config.width,
        "depth": config.depth,
        "num_heads": config.heads,
        "mlp_ratio": 4.0,
        "num_classes": config.num_classes,
        "frequency_embedding_size": 256,
    }


def made(kind: str = "DiT") -> Loaded:
    config = dit("S", 2, depth=2, width=32, heads=4, num_classes=5)
    net = functional(config)
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(net.init, jax.random.key(0))
    params = jax.tree.map(lambda leaf: 0.2 * rng.normal(size=leaf.shape).astype(np.float32), shapes)
    return Loaded(net, params, _given(config, 8, kind))


@pytest.fixture(scope="module", params=["safetensors", "npz"])
def file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dit")
    write_dit(folder / "x.safetensors", made())
    if request.param == "npz":
        read = SafeTensors(folder / "x.safetensors")
        arrays: dict[str, Any] = {name: read.read(name) for name in read}
        np.savez(folder / "x.npz", **arrays)
    return folder / f"x.{request.param}"


def test_what_is_written_is_read_bit_for_bit(file: Path) -> None:
    found = load_dit(file, heads=4)
    jax.tree.map(np.testing.assert_array_equal, found.params, made().params)
    assert found.net == made().net and found.fields == made().fields


NAMES = """
pos_embed x_embedder.proj.weight x_embedder.proj.bias t_embedder.mlp.0.weight t_embedder.mlp.0.bias
t_embedder.mlp.2.weight t_embedder.mlp.2.bias y_embedder.embedding_table.weight blocks.0.attn.qkv.weight
blocks.0.attn.qkv.bias blocks.0.attn.proj.weight blocks.0.attn.proj.bias blocks.0.mlp.fc1.weight blocks.0.mlp.fc1.bias
blocks.0.mlp.fc2.weight blocks.0.mlp.fc2.bias blocks.0.adaLN_modulation.1.weight blocks.0.adaLN_modulation.1.bias
final_layer.linear.weight final_layer.linear.bias final_layer.adaLN_modulation.1.weight
final_layer.adaLN_modulation.1.bias
"""  # of `models.py` of facebookresearch/DiT and willisma/SiT


def test_names_are_the_authors(tmp_path: Path) -> None:
    write_dit(tmp_path / "x", made())
    assert {name for name in SafeTensors(tmp_path / "x") if not name.startswith("blocks.1")} == {*NAMES.split()}


def test_what_sit_means(tmp_path: Path) -> None:
    """It is told u = 1 - t, and returns x0 - eps in the first half of its channels."""
    loaded = made("SiT")
    model = dit_model(loaded)
    denoise: Any = model.denoise
    assert isinstance(denoise.process, Flow)
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 8, 8, 4)), jnp.float32)
    cond = {"label": jnp.array([1, 4])}
    t = jnp.array([0.3, 0.8])
    apply = jax.jit(lambda u: loaded.net.apply(loaded.params, x, u, cond)[..., :4])
    denoised = jax.jit(lambda t: denoise(x, t, cond))
    found, output = denoised(t), apply(1 - t)
    np.testing.assert_allclose(found.x0 - found.eps, output, atol=1e-5)
    wide = t[:, None, None, None]
    np.testing.assert_allclose((1 - wide) * found.x0 + wide * found.eps, x, atol=1e-5)
    # one step of the authors' Euler, towards the data, is one of ours
    u, step = jnp.full(2, 0.25), 0.125
    ours = x - step * denoised(1 - u).velocity(Flow(), 1 - u)
    np.testing.assert_allclose(ours, x + step * apply(u), atol=1e-5)
    x0, eps = x, x[::-1]
    reading = TowardsData(denoise.parameterization.base)
    target = reading.target(Flow(), x0, eps, t)
    np.testing.assert_allclose(target, x0 - eps, atol=1e-6)
    xt = (1 - wide) * x0 + wide * eps
    np.testing.assert_allclose(reading.read(Flow(), xt, t, target).x0, x0, atol=1e-5)
    assert float(reading.jacobian(Flow(), 0.25)) == pytest.approx(0.25) and float(DataTime()(Flow(), 1.0)) == 0.0
    assert float(reading.eps_jacobian(Flow(), 0.25)) == pytest.approx(0.75)


@pytest.mark.nightly
def test_models_of_both(tmp_path: Path) -> None:
    autoencoder = tiny("AutoencoderKL")
    model = dit_model(made(), autoencoder)
    assert isinstance(model.denoise.process, DiscreteVP) and model.shape == (8, 8, 4)
    latents = jnp.ones((1, 8, 8, 4))
    assert model.codec.images.shape == (16, 16, 3)  # type: ignore[attr-defined]
    plain = dit_model(made("SiT"))
    np.testing.assert_allclose(plain.codec.decode(latents, {})["x"], latents / 0.18215, rtol=1e-6)
    refused(
        lambda: dit_model(made(), tiny("AutoencoderKL", latent_channels=8)), "latents have 4 channels: give the auto"
    )


def refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(PretrainedError) as error:
        make()
    assert message in str(error.value) and "\n" not in str(error.value)


def test_what_does_not_fit_is_one_line(tmp_path: Path) -> None:
    write_dit(tmp_path / "x", made())
    refused(lambda: load_dit(tmp_path / "x"), "its width 32 is none that was published: say how many heads, heads=N")
    refused(lambda: load_dit(tmp_path / "x", heads=5), "width=32 must be divisible by 4 and by heads=5")
    refused(lambda: load_dit(tmp_path / "x", "UViT"), "kind is 'UViT', expected 'DiT' or 'SiT'")  # type: ignore[arg-type]
    for heads in (0, -4, 4.0, "4", True):
        refused(lambda heads=heads: load_dit(tmp_path / "x", heads=heads), f"heads is {heads!r}, expected a whole")  # type: ignore[misc]
    refused(lambda: load_dit(3), "file: expected a path, as text or pathlib.Path, got 3")  # type: ignore[arg-type]
    refused(lambda: dit_model(3), "loaded: expected a network by jaxdiff.pretrained.load_network, got 3")  # type: ignore[arg-type]
    refused(lambda: dit_model(tiny("AutoencoderKL")), "expected a network by load_dit, got a AutoencoderKL")
    refused(lambda: dit_model(made(), 3), "autoencoder: expected a network by")  # type: ignore[arg-type]
    read = SafeTensors(tmp_path / "x")
    tensors = {name: read.read(name) for name in read}
    write_safetensors(tmp_path / "y", tensors | {"x_embedder.proj.weight": np.zeros((0, 4, 2, 2), np.float32)})
    refused(lambda: load_dit(tmp_path / "y", heads=4), "patches of 2 x 2, 32 outputs, 16 tokens do not fit")
    write_safetensors(tmp_path / "y", tensors | {"pos_embed": tensors["pos_embed"] + 0.1})
    refused(lambda: load_dit(tmp_path / "y", heads=4), "pos_embed is another table than the one that is computed")
    write_safetensors(tmp_path / "y", tensors | {"repa.weight": np.zeros(3)})
    refused(lambda: load_dit(tmp_path / "y", heads=4), "1 are not known: repa.weight")
    write_safetensors(tmp_path / "y", {"a": np.zeros(3)})
    refused(lambda: load_dit(tmp_path / "y"), "is no DiT of its authors' layout: x_embedder.proj.weight is missing")
    (tmp_path / "y").write_bytes(b"PK\x03\x04" + b"0" * 80)
    refused(lambda: load_dit(tmp_path / "y"), "or by python -m jaxdiff.pretrained.convert")
    (tmp_path / "file").write_text("")
    refused(lambda: write_dit(tmp_path / "file" / "x", made()), "cannot be written (")
