"""Compiled functions on disk: a second process neither traces nor compiles, and trusts no file it should not."""

from __future__ import annotations

import functools
import importlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff.config import StoredTypeError
from jaxdiff.networks import MLP, functional
from jaxdiff.networks.backend import attention_form
from jaxdiff.record import field, record
from jaxdiff.runs.compiled import Kept, facts_of

PROCESS = jd.Flow()
NET = functional(MLP(width=16, depth=1, frequencies=8))
TRACES: list[int] = []


def draw(denoise: jd.NetworkDenoiser, sampler: jd.Sampler, keys: jax.Array, ts: jax.Array, *, size: int) -> jax.Array:
    """What is kept in these tests."""
    TRACES.append(size)
    x = denoise.process.prior_sample(keys, (size,), ts[0])
    return jd.sample(sampler, denoise, keys, x, ts)


def arguments(sampler: jd.Sampler | None = None, seed: int = 0, n: int = 5) -> tuple[Any, ...]:
    denoise = jd.NetworkDenoiser(NET, NET.init(jax.random.key(1)), PROCESS, jd.V())
    keys = jd.sample_keys(jax.random.key(seed), 0, 3)
    return denoise, jd.DDIM(PROCESS, 0.5) if sampler is None else sampler, keys, jd.log_snr_times(PROCESS, n)


SECOND = """
import json, sys
import jax, numpy as np
from jaxdiff.runs.compiled import Kept
from tests.runs.test_compiled import TRACES, arguments, draw

events = []
jax.monitoring.register_event_listener(lambda name, **kw: events.append(name))
given = arguments()
jax.block_until_ready(jax.tree.leaves(given))
events.clear()
samples = Kept(sys.argv[1])(draw, given, {"size": 2})
names = [name.rpartition("/")[2] for name in events]
print(json.dumps({"samples": np.asarray(samples).tolist(), "traces": TRACES,
                  "cache": [jax.config.jax_compilation_cache_dir or None,
                            jax.config.jax_persistent_cache_min_compile_time_secs],
                  "hits": names.count("cache_hits"), "misses": names.count("cache_misses")}))
"""


def test_a_second_process_neither_traces_nor_compiles(tmp_path: Path, run_python: Callable[..., Any]) -> None:
    """Bit for bit the same samples; without a compilation cache of the process's own."""
    none = {"JAX_COMPILATION_CACHE_DIR": "", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3"}
    first, second = (
        json.loads(run_python("-c", SECOND, str(tmp_path), env=none).stdout.splitlines()[-1]) for _ in range(2)
    )
    assert first["traces"] == [2] and first["misses"] >= 1
    assert second["traces"] == [] and (second["hits"], second["misses"]) == (1, 0), second
    assert first["samples"] == second["samples"] and second["cache"] == [None, 0.3]  # what it sets, it sets back
    np.testing.assert_array_equal(
        np.float32(first["samples"]), jax.jit(draw, static_argnames="size")(*arguments(), size=2)
    )


def test_files_that_cannot_be_used_are_named_and_made_again(tmp_path: Path) -> None:
    said: list[str] = []
    expected = Kept(tmp_path, said.append)(draw, arguments(), {"size": 2})
    (file,) = (path for path in tmp_path.iterdir() if path.name.startswith("draw-"))
    whole = file.read_bytes()
    head, _, blob = whole.partition(b"\n")
    other = json.loads(head) | {"facts": {}}
    assert not said
    for content, why in (
        (whole[: len(whole) // 2], "it is damaged"),
        (b"", "it is damaged or of another program"),
        (b"\x80\x04\x95pickle", "it is damaged or of another program"),
        (b'{"format": "jaxdiff compiled function 0"}\n' + blob, "of another program or version"),
        (json.dumps(other).encode() + b"\n" + blob, "it is of other arguments"),
    ):
        file.write_bytes(content)
        found = Kept(tmp_path, said.append)(draw, arguments(), {"size": 2})
        np.testing.assert_array_equal(found, expected)
        assert len(said) == 1 and why in said[0] and str(file) in said[0] and "\n" not in said[0], said
        said.clear()
        assert json.loads(file.read_bytes().partition(b"\n")[0])["facts"] == json.loads(head)["facts"]  # made again
        np.testing.assert_array_equal(Kept(tmp_path, said.append)(draw, arguments(), {"size": 2}), expected)
        assert not said
    assert [path for path in tmp_path.iterdir() if path.name.startswith(".")] == []  # nothing half written


def test_numbers_are_data_and_all_else_is_not(tmp_path: Path) -> None:
    """Other weights, keys, times and an eta use the same program; another method, length or static argument do not."""
    kept = Kept(tmp_path, lambda text: None)
    TRACES.clear()
    for given in (arguments(), arguments(jd.DDIM(PROCESS, 0.9), seed=1)):
        plain = jax.jit(draw, static_argnames="size")(*given, size=2)
        before = len(TRACES)
        np.testing.assert_array_equal(kept(draw, given, {"size": 2}), plain)
        traced = len(TRACES) - before
    assert traced == 0

    facts = facts_of(draw, arguments(), {"size": 2})
    changes: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
        (arguments(jd.DDIM(PROCESS)), {"size": 2}),
        (arguments(jd.Euler(PROCESS)), {"size": 2}),
        (arguments(jd.DPMpp2M(PROCESS)), {"size": 2}),
        (arguments(jd.UniPC(PROCESS, order=1)), {"size": 2}),
        (arguments(jd.UniPC(PROCESS, order=2)), {"size": 2}),
        (arguments(n=6), {"size": 2}),
        (arguments(), {"size": 3}),
    ]
    different = [facts_of(draw, given, static) for given, static in changes]
    assert all(a != b for i, a in enumerate(different) for b in [facts, *different[:i]])
    assert facts == facts_of(draw, arguments(jd.DDIM(PROCESS, 0.9), seed=1), {"size": 2})
    assert "tests.runs.test_compiled" in facts["code"] and facts["versions"]["jax"] == jax.__version__
    for setting in (jax.default_matmul_precision("highest"), attention_form("chunked")):
        with setting:
            assert facts_of(draw, arguments(), {"size": 2}) != facts
    assert facts_of(draw, arguments(), {"size": 2}) == facts
    assert facts_of(draw, arguments(), {"size": np.int32(2)}) != facts  # of a type of its own where it is used
    placed = jax.device_put(arguments(), jax.devices()[0])
    assert facts_of(draw, placed, {"size": 2}) != facts  # a compiled program takes its arguments where they were


def scale(x: jax.Array, *, by: int) -> jax.Array:
    return by * x


class Scaled:
    """A callable with state."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return x

    def by_two(self, x: jax.Array) -> jax.Array:
        return 2 * x


def test_functions_that_hide_something_are_not_kept(tmp_path: Path) -> None:
    """Two of the same name could be taken for each other; all the same they are run."""

    def inner(x: jax.Array) -> jax.Array:
        return 2 * x

    hidden: tuple[Callable[..., Any], ...] = (functools.partial(scale, by=2), inner, Scaled(), Scaled().by_two)
    for function in hidden:
        said: list[str] = []
        found = Kept(tmp_path, said.append)(function, (jnp.ones(2),))
        np.testing.assert_array_equal(found, function(jnp.ones(2)))
        assert len(said) == 1 and "no function at the top level of a module" in said[0]
    assert list(tmp_path.iterdir()) == []


def test_what_a_function_raises_is_raised(tmp_path: Path) -> None:
    said: list[str] = []
    with pytest.raises(ValueError, match="one key a sample"):
        denoise, sampler, keys, ts = arguments()
        Kept(tmp_path, said.append)(jitted, (denoise, sampler, keys, ts), {"size": 2, "keyless": True})
    assert said == [] and list(tmp_path.iterdir()) == []


def jitted(
    denoise: jd.NetworkDenoiser, sampler: jd.Sampler, keys: jax.Array, ts: jax.Array, *, size: int, keyless: bool
) -> jax.Array:
    return jd.sample(sampler, denoise, keys[:1] if keyless else keys, jnp.ones((3, size)), ts)


def test_the_code_is_that_of_all_that_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A class's own module, also of a class within a class, and what that imports; what was edited meanwhile is not
    kept."""
    monkeypatch.syspath_prepend(tmp_path)
    layers, network = tmp_path / "own_layers.py", tmp_path / "own_network.py"
    layers.write_text("def activation(x):\n    return x\n")
    network.write_text(
        "from jaxdiff.record import record\nfrom own_layers import activation\n\n\n"
        "class Home:\n    @record\n    class Net:\n        gain: float\n\n\n"
        "def apply(net):\n    return activation(net.gain)\n"
    )
    for file in (layers, network):
        os.utime(file, (1e9, 1e9))
    module = importlib.import_module("own_network")
    try:
        call = module.apply, (module.Home.Net(2.0),)
        code = facts_of(*call, {})["code"]
        assert set(code) == {"jaxdiff", "own_network", "own_layers"}
        assert set(facts_of(scale, call[1], {})["code"]) > {"own_network", "own_layers", "tests.runs.test_compiled"}
        layers.write_text("def activation(x):\n    return 2 * x\n")
        with pytest.raises(StoredTypeError, match=r"own_layers\.py has changed since this process began"):
            facts_of(*call, {})
        os.utime(layers, (1e9 + 1, 1e9 + 1))  # as a process that begins now finds it
        assert facts_of(*call, {})["code"]["own_layers"] != code["own_layers"]
        del module.__file__  # as in a notebook
        with pytest.raises(StoredTypeError, match=r"the code of own_network.* is in no file"):
            facts_of(*call, {})
    finally:
        for name in ("own_network", "own_layers"):
            sys.modules.pop(name, None)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    said: list[str] = []
    (tmp_path / "file").write_text("")
    found = Kept(tmp_path / "file", said.append)(scale, (jnp.ones(2),), {"by": 3})
    assert found.tolist() == [3.0, 3.0] and "cannot be written" in said[-1]
    kept = Kept(tmp_path / "folder", said.append)
    place = kept.path(json.dumps(facts_of(scale, (jnp.ones(2),), {"by": 3}), sort_keys=True), scale)
    place.mkdir(parents=True)  # where the file belongs
    assert kept(scale, (jnp.ones(2),), {"by": 3}).tolist() == [3.0, 3.0]
    assert "cannot be read" in said[-2] and "cannot be written" in said[-1]
    assert [p for p in (tmp_path / "folder").iterdir() if p.name.startswith(".")] == []  # nothing half written


@record
class Named:
    """A record with a function in it."""

    call: Callable[[Any], Any] = field(pytree_node=False)


def scaled(x: jax.Array, named: Named) -> jax.Array:
    return named.call(x)


def test_what_has_no_name_is_run_all_the_same(tmp_path: Path) -> None:
    said: list[str] = []
    given = (jnp.ones(2), Named(lambda x: 2 * x))
    with pytest.raises(StoredTypeError):
        facts_of(scaled, given, {})
    np.testing.assert_array_equal(Kept(tmp_path, said.append)(scaled, given), [2.0, 2.0])
    assert len(said) == 1 and "scaled is not kept compiled" in said[0] and list(tmp_path.iterdir()) == []
