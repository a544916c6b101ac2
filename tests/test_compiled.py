"""Compiled functions on disk: a second process neither traces nor compiles, and trusts no file it should not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff.compiled import Kept, facts_of
from jaxdiff.config import StoredTypeError
from jaxdiff.networks import MLP, functional
from jaxdiff.record import field, record

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
from jaxdiff.compiled import Kept
from tests.test_compiled import TRACES, arguments, draw

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
    none = {"JAX_COMPILATION_CACHE_DIR": ""}
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
        (arguments(n=6), {"size": 2}),
        (arguments(), {"size": 3}),
    ]
    different = [facts_of(draw, given, static) for given, static in changes]
    assert all(a != b for i, a in enumerate(different) for b in [facts, *different[:i]])
    assert facts == facts_of(draw, arguments(jd.DDIM(PROCESS, 0.9), seed=1), {"size": 2})
    assert "tests.test_compiled" in facts["code"] and facts["versions"]["jax"] == jax.__version__
    with jax.default_matmul_precision("highest"):
        assert facts_of(draw, arguments(), {"size": 2}) != facts


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
