"""A run loaded on a mesh: each device reads its part, and samples and figures are those of one device."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import jaxdiff
import train
from jaxdiff.config import Config, MeshConfig, SampleConfig, TrainConfig
from jaxdiff.denoiser import NetworkDenoiser
from jaxdiff.networks import MLP, functional
from jaxdiff.train import Ema
from jaxdiff.train.checksum import leaf_sums
from tests.commands.test_cli import one_line
from tests.parallel.loaded import programs
from tests.parallel.processes import Group
from tests.parallel.test_processes import TINY

MESHES = {1: {"fsdp": [1, 8, 1], "all axes": [2, 2, 2]}, 2: {"two processes": [1, 8, 1]}}
X = np.random.default_rng(0).normal(size=(64, 2)).astype(np.float32)
NAMES = [name for meshes in MESHES.values() for name in meshes]


@pytest.fixture(scope="module")
def trained_dit(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Path:
    path = tmp_path_factory.mktemp("runs") / "digits"
    train.main([str(repository / "configs" / "digits_dit.py"), "--workdir", str(path), "--train.steps", "2", *TINY])
    return path


@pytest.fixture(scope="module")
def meshes(trained_dit: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out, found = tmp_path_factory.mktemp("meshes"), dict[str, Any]()
    for count, asked in MESHES.items():
        arguments: list[str | Path] = ["-m", "tests.parallel.loaded", trained_dit, out, json.dumps(asked)]
        group = Group(*arguments, processes=count, devices=8 // count, flags=[])
        try:
            group.finish()
        finally:
            group.kill()
        found |= json.loads((out / f"found_{count}.json").read_text())
    return out, found


@pytest.fixture(scope="module")
def one_device(trained_dit: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("one")
    programs(jaxdiff.load(trained_dit), out, methods=["elbo", "ode"], noise=True)
    return out


@pytest.mark.parametrize("name", NAMES)
def test_a_device_holds_its_part(name: str, meshes: Any, trained_dit: Path) -> None:
    found = meshes[1][name]
    whole = sum(4 * math.prod(shape) for shape, _ in found["shards"])
    part = sum(size for _, size in found["shards"])
    assert found["as_trained"]
    if name != "all axes":
        for shape, size in found["shards"]:
            assert size == 4 * math.prod(shape) // (8 if any(axis % 8 == 0 for axis in shape) else 1)
        assert part <= 1.02 * whole / 8
    assert part <= 0.52 * whole
    assert found["added"] <= part + 500  # scalars of the run
    assert found["half"] == part // 2
    assert found["folder"] == ([4, 4, 8, 8] if name == "two processes" else [8, 8, 8, 8])
    run = jaxdiff.load(trained_dit)
    assert found["sums"] == leaf_sums([*jax.tree.leaves(run.denoise.params), jax.numpy.arange(6.0)])


@pytest.mark.parametrize("name", NAMES)
def test_samples_and_figures_are_those_of_one_device(name: str, meshes: Any, one_device: Path) -> None:
    out = meshes[0] / name
    with np.load(out / "grid.npz") as found, np.load(one_device / "grid.npz") as expected:
        grid, ours = dict(found), dict(expected)
    for record in (grid, jaxdiff.load_samples(out / "folder")):
        assert record["label"].tolist() == ours["label"].tolist()
        assert np.abs(record["x"].astype(int) - ours["x"]).max() <= 1
    assert len(np.unique(grid["x"], axis=0)) == 21
    if name == "two processes":  # of bytes that may differ by one
        np.testing.assert_allclose(np.load(out / "noise.npy"), np.load(one_device / "noise.npy"), atol=0.02)
    figures, expected = (
        {result["name"]: result["values"] for result in json.loads((each / "figures.json").read_text())["results"]}
        for each in (out, one_device)
    )
    assert list(figures) == (["bpd ode rademacher"] if name == "fsdp" else ["bpd elbo"])
    for each, values in figures.items():
        assert len(values) == 12
        np.testing.assert_allclose(values, expected[each], rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--mesh.fsdp 3", "--mesh: a mesh of data=-1, fsdp=3, tensor=1 does not fit"),
        ("--mesh.tensor x", "--mesh.tensor takes a whole number, got 'x'"),
        ("--mesh.fdsp 2", "did you mean --mesh.fsdp?"),
    ],
)
@pytest.mark.parametrize("program", ["sample", "evaluate"])
def test_mistakes_are_told_in_the_words_of_the_option(
    program: str, options: str, message: str, trained_dit: Path, capsys: Any
) -> None:
    main = __import__(program).main
    assert message in one_line(main, [str(trained_dit), *options.split()], capsys)


FROZEN = """
import json, sys
import jaxdiff
from tests.parallel.test_load import X, part
from jaxdiff.train import make_mesh

folder = sys.argv[1]
run = jaxdiff.fit(part(folder), X, init_from=folder + "/base")
again = jaxdiff.load(folder + "/part", mesh=make_mesh(fsdp=8))
drawn = [again.sample(0, 5, compiled=compiled)["x"].tolist() for compiled in (None, folder + "/kept", folder + "/kept")]
held = [each.denoise.params["input"]["kernel"].addressable_data(0).shape for each in (run, again)]
print(json.dumps({"drawn": drawn, "held": held}))
"""


def base(folder: Path | str) -> Config:
    return Config(
        name="base",
        workdir=f"{folder}/base",
        process=jaxdiff.Flow(),
        parameterization=jaxdiff.Velocity(),
        network=MLP(width=16, depth=1),
        ema=Ema(0.9),
        train=TrainConfig(steps=1, batch_size=16, sample_every=1),
        sample=SampleConfig(steps=4, num=8),
    )


def part(folder: Path | str) -> Config:
    config = dataclasses.replace(base(folder), name="part", workdir=f"{folder}/part", mesh=MeshConfig(fsdp=4))
    return dataclasses.replace(config, train=dataclasses.replace(config.train, freeze=("input",)))


@pytest.mark.nightly
def test_frozen_parts_lie_as_trained_ones_do(run_python: Any, tmp_path: Path) -> None:
    """They lay on one device, and the first picture of a training on several ended with an error."""
    jaxdiff.fit(base(tmp_path), X)
    found = json.loads(run_python("-c", FROZEN, tmp_path, devices=8).stdout.splitlines()[-1])
    assert found["held"] == [[2, 4], [2, 2]]  # of (2, 16)
    ours = jaxdiff.load(tmp_path / "part").sample(0, 5)["x"]
    for drawn in found["drawn"]:
        np.testing.assert_allclose(drawn, ours, atol=1e-4)


MEMORY = """
import json
import jax, jax.numpy as jnp
from jaxdiff import DDIM, VP, DenoisingLoss, Eps
from jaxdiff.denoiser import NetworkDenoiser
from jaxdiff.networks import UNet, functional
from jaxdiff.noise import sample_keys
from jaxdiff.plan import Plan, draw
from jaxdiff.train import Ema, batch_sharding, compile_step, make_mesh, make_optimizer, params_template, state_template

mesh = make_mesh(fsdp=8)
net = functional(UNet(image_size=8, in_channels=1, width=64, multipliers=(1,), blocks=1, attention_resolutions=()))
params = params_template(net, mesh)
found = {"weights": sum(4 * leaf.size for leaf in jax.tree.leaves(params))}

def temporary(lowered):
    return lowered.compile().memory_analysis().temp_size_in_bytes

for name in ("anew", "before"):
    denoise = NetworkDenoiser(net, params, VP(), Eps(), anew=name == "anew")
    plan = Plan(denoise, DDIM(VP()), jnp.linspace(1.0, 1e-3, 11), {}, (), {}, None, shape=(8, 8, 1))
    keys = sample_keys(jax.random.key(0), 0, 8)
    found[name] = temporary(draw.lower(plan, keys, decode=False, sharding=batch_sharding(mesh)))
loss, (optimizer, _) = DenoisingLoss(VP(), Eps()), make_optimizer(lr=1e-3, steps=10)
template = state_template(net, optimizer, loss, jax.random.key(0), mesh)
step = compile_step(net=net, loss=loss, optimizer=optimizer, ema=Ema(0.9), template=template)
found["training"] = temporary(step.lower(template, {"x": jax.ShapeDtypeStruct((8, 8, 8, 1), jnp.float32)}))
print(json.dumps(found))
"""


@pytest.mark.nightly
def test_sampling_gathers_weights_where_they_are_used(run_python: Any) -> None:
    """A gather does not depend on the sampler's step: the compiler moved all of them before its loop."""
    # The CPU compiler's usual schedule begins all communication early, whatever memory that takes.
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_enable_concurrency_optimized_scheduler=false"
    done = run_python("-c", MEMORY, devices=8, env={"XLA_FLAGS": flags})
    found = json.loads(done.stdout.splitlines()[-1])
    print(found)
    assert found["before"] > found["weights"]
    assert found["anew"] < 0.5 * found["weights"] and found["anew"] < found["training"]


def test_derivatives_of_an_evaluation_that_gathers_anew() -> None:
    """Those of weights and of x as without; the latter cost no more."""
    net = functional(MLP(width=32, depth=2))
    plain = NetworkDenoiser(net, net.init(jax.random.key(0)), jaxdiff.Flow(), jaxdiff.Velocity())
    anew, x = dataclasses.replace(plain, anew=True), np.ones((4, 2), np.float32)

    def error(denoise: NetworkDenoiser, x: Any) -> Any:
        return (denoise(x, 0.5).x0 ** 2).sum()

    ours, expected = (jax.grad(error, argnums=(0, 1))(denoise, x) for denoise in (anew, plain))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
    costs: list[Any] = [
        jax.jit(jax.grad(error, argnums=1)).lower(each, x).compile().cost_analysis() for each in (anew, plain)
    ]
    assert 0 < costs[0]["flops"] <= 1.02 * costs[1]["flops"]
