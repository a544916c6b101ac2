"""Published models of papers' own repositories: exact sizes and names, files in both directions, and what does not fit.

That the numbers are the originals' is for `tests/parity/test_repositories.py`.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.networks import KLAutoencoder, UNet, functional
from jaxdiff.networks.autoencoder import Autoencoder
from jaxdiff.pretrained import Loaded, PretrainedError
from jaxdiff.pretrained.files.safetensors import SafeTensors, write_safetensors
from jaxdiff.pretrained.files.writing import Published
from jaxdiff.pretrained.layouts import openai
from jaxdiff.pretrained.layouts.originals import ORIGINALS, configured, load_original, original_of, write_original

# The repositories' own code, run with the options that each file was published with: parameters that are trained,
# stored tensors, and the first digits of SHA-256 of the lines "name shape", sorted.
PUBLISHED: dict[str, tuple[int, int, str]] = {
    "iddpm-cifar10": (52_546_438, 446, "001b621871f3fa9d"),
    "iddpm-imagenet64-uncond": (121_063_942, 450, "5a42ef114f79713a"),
    "iddpm-imagenet64": (273_049_350, 451, "59179ffdc09597c8"),
    "iddpm-lsun256": (113_676_678, 426, "0313288a27e5d1d5"),
    "adm-64": (295_904_454, 541, "b879ba9ed4fe94bb"),
    "adm-128": (421_529_606, 493, "d91b9be2449a697e"),
    "adm-256": (553_838_086, 567, "408c4d65687d2b6d"),
    "adm-512": (558_997_638, 645, "f95458c996170da9"),
    "adm-256-uncond": (552_814_086, 566, "b9c90be1570d1541"),
    "adm-64-256": (311_795_910, 567, "99d9c28e89d75934"),
    "adm-128-512": (308_835_270, 537, "2424e4b817a8f3a3"),
    "cm-imagenet64": (295_899_267, 541, "8f9f572cfec2212c"),
    "cm-lsun256": (526_304_771, 566, "932306e8a8baf0ab"),
    "edm-cifar10-32x32-cond-vp": (55_735_299, 427, "740b096010232034"),
    "edm-cifar10-32x32-uncond-vp": (55_733_891, 425, "1c5f38fd273af62a"),
    "edm-cifar10-32x32-cond-ve": (56_400_643, 434, "35f55bbe1d6e3227"),
    "edm-cifar10-32x32-uncond-ve": (56_397_827, 432, "9f4e045d77df6be9"),
    "edm-ffhq-64x64-uncond-vp": (61_805_571, 553, "327e9abfb3a00b61"),
    "edm-ffhq-64x64-uncond-ve": (62_761_091, 563, "9f1188b393e2e0f6"),
    "edm-imagenet-64x64-cond-adm": (295_899_267, 553, "a59bb78fad0da4fa"),
    "edm2-img512-xs": (124_713_253, 203, "8c943058f319107a"),
    "edm2-img512-s-uncond": (279_444_837, 202, "55fd8106ddc49b26"),
    "edm2-img64-s": (280_209_381, 203, "6e85679fc2314e70"),
}
_EVERY_DAY = {"adm-64", "edm-cifar10-32x32-uncond-ve", "edm2-img64-s"}


@pytest.mark.parametrize(
    "name", [name if name in _EVERY_DAY else pytest.param(name, marks=pytest.mark.nightly) for name in PUBLISHED]
)
def test_sizes_and_names_are_those_of_the_repositories(name: str) -> None:
    net = configured(name)
    shapes = jax.eval_shape(functional(net).init, jax.random.key(0))
    fixed = ("frequencies", "phases")
    trained = [leaf for path, leaf in jax.tree.leaves_with_path(shapes) if path[-1].key not in fixed]
    described = Published(shapes, original_of(name).naming(net)).described()
    lines = "\n".join(f"{each} {shape}" for each, (_, shape) in sorted(described.items()))
    digest = hashlib.sha256(lines.encode()).hexdigest()[:16]
    assert (sum(leaf.size for leaf in trained), len(described), digest) == PUBLISHED[name]


# --- small ones, by the names of the published

_SMALL: dict[str, Any] = {
    "image_size": 4,
    "width": 8,
    "multipliers": (1, 2),
    "blocks": 1,
    "attention_resolutions": (2,),
}
SMALL: dict[str, dict[str, Any]] = {
    "adm-64": _SMALL | {"head_width": 4, "num_classes": 3},
    "adm-256": _SMALL | {"head_width": 4, "num_classes": 3},
    "adm-64-256": _SMALL | {"heads": 2, "num_classes": 3},
    "iddpm-cifar10": _SMALL | {"heads": 2},
    "cm-imagenet64": _SMALL | {"head_width": 4, "num_classes": 3},
    "edm-cifar10-32x32-cond-ve": _SMALL | {"num_classes": 3},
    "edm-imagenet-64x64-cond-adm": _SMALL | {"head_width": 4, "num_classes": 3},
    "edm2-img512-xs": _SMALL | {"head_width": 8, "num_classes": 3},
}


def random_params(name: str) -> Any:
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(functional(configured(name, SMALL[name])).init, jax.random.key(0))
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)


@pytest.mark.parametrize("name", SMALL)
def test_what_is_written_is_read_bit_for_bit(name: str, tmp_path: Path) -> None:
    file, params = tmp_path / "weights.safetensors", random_params(name)
    write_original(file, name, params, network=SMALL[name])
    model = load_original(file, name, network=SMALL[name])
    jax.tree.map(np.testing.assert_array_equal, model.denoise.params, params)
    config = original_of(name)
    assert model.defaults is config.defaults and model.denoise.parameterization is config.parameterization
    assert model.denoise.net == functional(configured(name, SMALL[name]))
    write_original(file, name, params, network=SMALL[name], dtype="float16")
    half = load_original(file, name, network=SMALL[name], dtype=None)
    assert {leaf.dtype for leaf in jax.tree.leaves(half.denoise.params)} == {np.dtype("float16")}


@pytest.mark.parametrize(("order", "packed"), [("legacy", "head, part, channel"), ("new", "part, head, channel")])
def test_the_orders_of_openai(order: Any, packed: str) -> None:
    """Each row of theirs says which head, part and channel it is; ours are (part, (head, channel))."""
    net = UNet(image_size=8, width=16, multipliers=(1,), attention_resolutions=(8,), heads=4)
    leaf = openai.naming(net, order=order).leaf("down/0/stages/0/attention/attention/qkv/bias", (3, 16))
    sizes = {"head": 4, "part": 3, "channel": 4}
    names = packed.split(", ")
    codes = dict(zip(names, np.indices([sizes[name] for name in names]).reshape(3, -1), strict=True))
    rows = 100 * codes["part"] + 10 * codes["head"] + codes["channel"]
    ours = leaf.axes.to_ours(rows, (3, 16))
    expected = [[100 * part + 10 * head + channel for head in range(4) for channel in range(4)] for part in range(3)]
    assert ours.tolist() == expected
    np.testing.assert_array_equal(leaf.axes.to_theirs(ours), rows)


def test_the_order_of_nvlabs() -> None:
    net = configured("edm-cifar10-32x32-cond-vp", {"width": 8})
    leaf = original_of("edm-cifar10-32x32-cond-vp").naming(net).leaf("middle_in/qkv/bias", (3, 16))
    rows = np.arange(48)  # channel, part
    np.testing.assert_array_equal(leaf.axes.to_ours(rows, (3, 16)), rows.reshape(16, 3).T)


def test_a_bare_network_of_edm_and_its_filters(tmp_path: Path) -> None:
    """Names without the preconditioning's are read too; another filter is refused."""
    name = "edm-cifar10-32x32-cond-ve"
    params, file = random_params(name), tmp_path / "weights.safetensors"
    write_original(file, name, params, network=SMALL[name])
    stored = SafeTensors(file)
    bare = {each.removeprefix("model."): stored.read(each) for each in stored}
    write_safetensors(tmp_path / "bare.safetensors", bare)
    model = load_original(tmp_path / "bare.safetensors", name, network=SMALL[name])
    jax.tree.map(np.testing.assert_array_equal, model.denoise.params, params)
    box = [each for each in stored if each.endswith("resample_filter")]
    assert len(box) == 5 and stored.read(box[0]).shape == (1, 1, 4, 4)
    whole = {each: stored.read(each) for each in stored} | {box[0]: np.full((1, 1, 2, 2), 0.25, np.float32)}
    write_safetensors(tmp_path / "other.safetensors", whole)
    with pytest.raises(PretrainedError, match="resample_filter is another table"):
        load_original(tmp_path / "other.safetensors", name, network=SMALL[name])


def test_latents_of_edm2(tmp_path: Path) -> None:
    """x0 = 0.5 (z - mean)/std, of an autoencoder that sees and makes pixels in [0, 1]."""
    name = "edm2-img512-xs"
    params, file = random_params(name), tmp_path / "weights.safetensors"
    write_original(file, name, params, network=SMALL[name])
    plain = load_original(file, name, network=SMALL[name])
    x0 = jnp.asarray(np.random.default_rng(1).normal(size=(2, 4, 4, 4)), jnp.float32)
    mean, std = np.array([5.81, 3.25, 0.12, -2.15]), np.array([4.17, 4.62, 3.71, 3.28])
    z = mean + np.asarray(x0) / 0.5 * std
    np.testing.assert_allclose(plain.codec.decode(x0)["x"], z, atol=1e-4)
    net = Autoencoder(KLAutoencoder(width=8, multipliers=(1,), blocks=1, groups=4, least_group=1))
    vae = Loaded(net, net.init(jax.random.key(0)), {})
    model = load_original(file, name, network=SMALL[name], autoencoder=vae)
    pixels = np.asarray(net.decode(vae.params, jnp.asarray(z, jnp.float32)))
    stored = model.codec.decode(x0)["x"]
    np.testing.assert_allclose(stored, np.clip(255 * pixels, 0, 255), atol=0.51)
    image = np.random.default_rng(2).integers(0, 256, (2, 4, 4, 3)).astype(np.uint8)
    moments, _ = net.moments(vae.params, jnp.asarray(image / 255, jnp.float32))
    encoded = model.codec.encode({"x": image})["x"]
    np.testing.assert_allclose(encoded, 0.5 * (np.asarray(moments) - mean) / std, atol=1e-4)


def test_what_each_is_told() -> None:
    """The index of the chain, a quarter of it for 4,000 steps, ln(sigma)/4, or 250 ln(sigma)."""
    t = jnp.array([0.25, 0.5])
    for name, told in {
        "adm-256": [249.0, 499.0],
        "iddpm-cifar10": [249.75, 499.75],
        "iddpm-imagenet64": [999.0, 1999.0],
    }.items():
        original = original_of(name)
        found = original.parameterization.condition(original.process(), jnp.zeros((2, 1)), t)[1]
        np.testing.assert_allclose(found, told, rtol=1e-6)
    for name, scale in {"edm2-img64-s": 0.25, "edm-ffhq-64x64-uncond-vp": 0.25, "cm-lsun256": 250.0}.items():
        original = original_of(name)
        process = original.process()
        found = original.parameterization.condition(process, jnp.zeros((2, 1)), t)[1]
        np.testing.assert_allclose(found, scale * np.log(process.sigma(t)), rtol=1e-5)


def test_licences_and_schedules() -> None:
    assert {ORIGINALS[name].licence for name in ORIGINALS if name.startswith(("adm", "iddpm", "cm", "openai"))} == {
        "MIT"
    }
    assert {ORIGINALS[name].licence for name in ORIGINALS if name.startswith("edm")} == {"CC BY-NC-SA 4.0"}
    cosine, linear = (original_of(name).process().betas for name in ("adm-64", "adm-256"))  # type: ignore[attr-defined]
    assert cosine[-1] == 0.999 and (linear[0], linear[-1]) == (1e-4, 0.02)


def test_refusals(tmp_path: Path) -> None:
    name, network, file = "adm-64", SMALL["adm-64"], tmp_path / "weights.safetensors"
    write_original(file, name, random_params(name), network=network)
    stored = SafeTensors(file)
    tensors = {each: stored.read(each) for each in stored}
    pickled = tmp_path / "weights.pt"
    pickled.write_bytes(b"PK\x03\x04" + bytes(100))
    short = tmp_path / "short.safetensors"
    write_safetensors(short, {each: tensors[each] for each in list(tensors)[1:]})
    vae = Loaded(Autoencoder(KLAutoencoder(width=8, multipliers=(1,), groups=4)), {}, {})
    for where, who, options, message in [
        (3, name, {}, "file: expected a path, as text or pathlib.Path, got 3"),
        (file, ["adm-64"], {}, r"\['adm-64'\] is no published model that is known here"),
        (file, name, {"network": 3}, "adm-64: network is fields by name, such as .*, got 3"),
        (file, name, {"network": network | {"width": 1e30}}, "adm-64: .*1e\\+30"),
        (
            file,
            "edm2-img512-xs",
            {"autoencoder": 3, "network": SMALL["edm2-img512-xs"]},
            "autoencoder: expected a network by .*load_network, got 3",
        ),
        (file, "adm-65", {}, "'adm-65' is no published model that is known here; there are iddpm-cifar10, "),
        (file, name, {"network": {"widht": 3}}, "adm-64: .*'widht'"),
        (file, name, {"network": network | {"head_width": 5}}, "adm-64: attention over .* head_width=5"),
        (file, name, {}, "weights.safetensors as adm-64: the weights do not fit the configuration: "),
        (file, "edm2-img512-xs", {"network": SMALL["edm2-img512-xs"]}, r"tensors are missing: unet\..*are not known"),
        (short, name, {"network": network}, "1 tensors are missing: "),
        (pickled, name, {"network": network}, "weights.pt: is a pickle of torch.*save it as safetensors"),
        (tmp_path / "none", name, {"network": network}, "none: cannot be read"),
        (file, name, {"network": network, "autoencoder": vae}, "is a model of pixels: leave autoencoder out"),
    ]:
        with pytest.raises(PretrainedError, match=message) as caught:
            load_original(where, who, **options)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)
    with pytest.raises(PretrainedError, match="cannot be written"):
        write_original(tmp_path / "no" / "folder", name, random_params(name), network=network)
    with pytest.raises(ValueError, match="this model needs label"):
        load_original(file, name, network=network).sample(0, 1)
