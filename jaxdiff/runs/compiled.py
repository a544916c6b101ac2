"""Functions compiled ahead of time and kept on disk, so that a second process starts without tracing or compiling.

    images = Kept("compiled")(generate, (denoise, sampler, keys, ...), {"shape": (32, 32, 3), ...})

Of a call on new arguments a process traces the function, lowers it to StableHLO and compiles that. The first two are
kept by `jax.export` (which needs the package flatbuffers), in a file of this module's; the last by JAX's persistent
compilation cache, which is the process's own where one is set, else the folder ``xla`` beside these files. A kept
function is found by everything that its program depends on but the numbers: the structure, shapes, types and places of
its arguments, its static ones, the code of this library and of the modules whose classes are among the arguments (with
those that they import), and the versions, settings and devices of JAX. What cannot be told apart that way is not kept:
a function or class without a name of its own (a lambda, a partial, one made in another function or in a notebook), or
one outside of this library whose file has changed since the process began: the code that runs may not be that on disk.

Nothing that is read is executed by Python: a file is one line of JSON, then StableHLO in a flatbuffer. What XLA
compiled is machine code, as in every compilation cache: keep the folder where only those may write whom you would let
run code.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import os
import re
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
from jax.sharding import NamedSharding

from jaxdiff.compat import compilation_cache
from jaxdiff.config.serialize import StoredTypeError, to_json, types_in
from jaxdiff.networks import backend

FORMAT = "jaxdiff compiled function 1"
SETTINGS = (
    "jax_allow_f16_reductions",
    "jax_debug_infs",
    "jax_debug_nans",
    "jax_default_device",
    "jax_default_matmul_precision",
    "jax_default_prng_impl",
    "jax_disable_jit",
    "jax_enable_x64",
    "jax_explicit_x64_dtypes",
    "jax_numpy_dtype_promotion",
    "jax_random_seed_offset",
    "jax_softmax_custom_jvp",
    "jax_threefry_gpu_kernel_lowering",
    "jax_threefry_partitionable",
    "jax_use_shardy_partitioner",
)
"""Settings of JAX that change what is traced; None where a release has not one of them."""

_BEGAN = time.time_ns()


class Kept:
    """Calls functions through a folder of compiled ones.

    Args:
      folder: made where it is not there.
      say: is told in one line of what cannot be used or kept; None: the standard error stream.

    >>> import tempfile
    >>> def double(x, *, times):
    ...     return x * 2**times
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     print(Kept(folder, say=lambda text: None)(double, (jnp.arange(3.0),), {"times": 3}))
    [ 0.  8. 16.]
    """

    def __init__(self, folder: str | os.PathLike[str], say: Callable[[str], None] | None = None):
        self.folder = Path(folder)
        self._say = say or (lambda text: print(text, file=sys.stderr, flush=True))
        self._ready: dict[str, Callable[..., Any]] = {}

    def __call__(
        self, function: Callable[..., Any], arguments: Sequence[Any], static: Mapping[str, Any] | None = None
    ) -> Any:
        """``function(*arguments, **static)``.

        Args:
          function: pure; at the top level of a module.
          arguments: pytrees of arrays and numbers, all data.
          static: what `to_json` can store, and shardings.

        Returns:
          A pytree of arrays of the kinds that `jax.export` knows (tuples, lists, dicts).

        Raises:
          What the function raises about its arguments.
        """
        static = static or {}
        try:
            facts = facts_of(function, arguments, static)
        except StoredTypeError as error:
            self._say(f"{_name(function)} is not kept compiled: {error}")
            return function(*arguments, **static)
        text = json.dumps(facts, sort_keys=True)
        if text not in self._ready:
            self._ready[text] = self._program(function, arguments, static, text)
        return self._ready[text](*map(_plain, jax.tree.leaves(arguments)))

    def path(self, text: str, function: Callable[..., Any]) -> Path:
        """The file of these facts."""
        return self.folder / f"{_name(function)}-{hashlib.sha256(text.encode()).hexdigest()[:20]}"

    def _program(
        self, function: Callable[..., Any], arguments: Sequence[Any], static: Mapping[str, Any], text: str
    ) -> Callable[..., Any]:
        path = self.path(text, function)
        exported = self._read(path, text)
        if exported is None:
            flat, shapes = _flat(function, arguments, static)
            flat.trace(*shapes)  # raises what is wrong with the arguments, which is not about keeping
            try:
                exported = _export(flat, shapes)
                self._write(path, text, bytes(exported.serialize()))
            except (ValueError, NotImplementedError, ImportError) as error:
                why = " ".join(str(error).split())[:300]
                self._say(f"{_name(function)} is compiled once, but traced anew in each process: {why}")
        with _compilations_kept(self.folder / "xla"):
            call = flat if exported is None else jax.jit(exported.call)
            return call.lower(*map(_plain, jax.tree.leaves(arguments))).compile()

    def _read(self, path: Path, text: str) -> jax.export.Exported | None:
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            self._say(f"{path} cannot be read ({error.strerror}): compiling")
            return None
        head, _, blob = content.partition(b"\n")
        why = _fault(head, blob, text)
        if why is None:
            try:
                return jax.export.deserialize(bytearray(blob))
            except Exception as error:  # whatever another version of the format raises
                why = f"JAX cannot read it, {type(error).__name__}"
        self._say(f"{path} is not used, {why}: compiling again")
        return None

    def _write(self, path: Path, text: str, blob: bytes) -> None:
        head = {"format": FORMAT, "sha256": hashlib.sha256(blob).hexdigest(), "facts": json.loads(text)}
        partial = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self.folder, prefix=".", delete=False) as file:
                partial = Path(file.name)
                file.write(json.dumps(head, sort_keys=True).encode() + b"\n" + blob)
            os.replace(partial, path)  # there whole or not at all, whoever else writes it
        except OSError as error:
            if partial is not None:
                partial.unlink(missing_ok=True)
            self._say(f"{path} cannot be written ({error.strerror}): it will be compiled again next time")


def _fault(head: bytes, blob: bytes, text: str) -> str | None:
    """What is wrong with a file, if something is."""
    try:
        stored = json.loads(head)
    except ValueError:
        return "it is damaged or of another program"
    if not isinstance(stored, dict) or stored.get("format") != FORMAT:
        return "it is of another program or version"
    if stored.get("sha256") != hashlib.sha256(blob).hexdigest():
        return "it is damaged"
    return None if json.dumps(stored.get("facts"), sort_keys=True) == text else "it is of other arguments"


def _setting(name: str) -> Any:
    return getattr(jax.config, name, None)


@contextlib.contextmanager
def _compilations_kept(folder: Path) -> Iterator[None]:
    """With a persistent compilation cache: the process's, or one in ``folder``; whatever is compiled is kept."""
    seconds = _setting("jax_persistent_cache_min_compile_time_secs")
    own = not _setting("jax_compilation_cache_dir")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    if own:
        jax.config.update("jax_compilation_cache_dir", str(folder))
        compilation_cache.reset_cache()  # which remembers that there was none
    try:
        yield
    finally:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", seconds)
        if own:
            jax.config.update("jax_compilation_cache_dir", None)
            compilation_cache.reset_cache()


def _flat(
    function: Callable[..., Any], arguments: Sequence[Any], static: Mapping[str, Any]
) -> tuple[Any, list[jax.ShapeDtypeStruct]]:
    """The call as a jitted function of its leaves, without classes of ours and without keys, and their shapes."""
    leaves, structure = jax.tree.flatten(tuple(arguments))
    restored = [_restoring(leaf) for leaf in leaves]

    def flat(*plain: Any) -> Any:
        given = [restore(leaf) for restore, leaf in zip(restored, plain, strict=True)]
        return function(*jax.tree.unflatten(structure, given), **static)

    return jax.jit(flat), [_shape(leaf) for leaf in leaves]


def _export(flat: Any, shapes: Sequence[jax.ShapeDtypeStruct]) -> jax.export.Exported:
    try:
        return jax.export.export(flat)(*shapes)
    except ValueError as error:
        # A library's kernel, whose name alone jax.export does not vouch for over versions: a file is for one version.
        kernels = set(re.findall(r"custom_call @([\w$.]+)", flat.lower(*shapes).as_text()))
        if not kernels or any("callback" in name for name in kernels):
            raise error
        allowed = [jax.export.DisabledSafetyCheck.custom_call(name) for name in sorted(kernels)]
        return jax.export.export(flat, disabled_checks=allowed)(*shapes)


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _plain(leaf: Any) -> Any:
    """A leaf as an array of numbers."""
    return jax.random.key_data(leaf) if _is_key(leaf) else jnp.asarray(leaf)


def _restoring(leaf: Any) -> Callable[[Any], Any]:
    if _is_key(leaf):
        return functools.partial(jax.random.wrap_key_data, impl=jax.random.key_impl(leaf))
    return lambda given: given


def _shape(leaf: Any) -> jax.ShapeDtypeStruct:
    if isinstance(leaf, jax.Array) and not _is_key(leaf):  # nearly all are, and `jax.eval_shape` takes 0.1 ms
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, weak_type=jax.typeof(leaf).weak_type)
    shape: jax.ShapeDtypeStruct = jax.eval_shape(_plain, leaf)
    return shape


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__name__", type(function).__name__)


# --- what a program depends on


def facts_of(function: Callable[..., Any], arguments: Sequence[Any], static: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that the program of a call depends on but its numbers, as JSON.

    Raises:
      StoredTypeError: the function, or something static in an argument, has no name by which its code can be found; or
        that code has changed on disk since this process began.
    """
    name = _qualified(function)
    structure = _structure(jax.tree.structure(tuple(arguments)))
    described = {key: [type(value).__name__, _described(value)] for key, value in static.items()}
    meshes = [value.mesh for value in static.values() if isinstance(value, NamedSharding)]
    devices = list(meshes[0].devices.flat) if meshes else jax.devices()[:1]
    places: dict[Any, int] = {}
    leaves = []
    for leaf in jax.tree.leaves(arguments):
        shape = _shape(leaf)
        impl = str(jax.random.key_impl(leaf)) if _is_key(leaf) else None
        placed = leaf.sharding if isinstance(leaf, jax.Array) and leaf.committed else None
        place = places.setdefault(placed, len(places))
        leaves.append([list(shape.shape), shape.dtype.name, bool(shape.weak_type), impl, place])
    return {
        "function": name,
        "arguments": structure,
        "leaves": leaves,
        "places": [p and f"{p} of {sorted(device.id for device in p.device_set)}" for p in places],
        "static": described,
        "code": _code([name, *types_in([structure, described])]),
        "versions": _versions(),
        "settings": {setting: str(_setting(setting)) for setting in SETTINGS},
        "attention": [backend.asked_form(), to_json(backend.present_machine())],
        "backend": [jax.default_backend(), devices[0].client.platform_version],
        "devices": [f"{device.id}: {device.device_kind}" for device in devices],
    }


def _qualified(function: Callable[..., Any]) -> str:
    """Where the function is defined."""
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
    if module is None or name is None or "<" in name or getattr(function, "__self__", None) is not None:
        raise StoredTypeError(f"{_name(function)} is no function at the top level of a module")
    return f"{module}.{name}"


def _described(value: Any) -> Any:
    if isinstance(value, NamedSharding):
        return {"axes": list(value.mesh.axis_names), "shape": list(value.mesh.devices.shape), "spec": str(value.spec)}
    return to_json(value)


def _structure(tree: Any) -> Any:
    """A tree's structure as JSON: each node its class, what is static in it, and its children."""
    node = tree.node_data()
    if node is None:
        return "leaf" if tree.num_leaves else "none"
    kind, aux = node
    children = [_structure(child) for child in tree.children()]
    if kind in (tuple, list, dict):
        return [kind.__name__, list(aux) if kind is dict else None, *children]
    aux = [f"{aux.__module__}.{aux.__qualname__}"] if isinstance(aux, type) else [to_json(part) for part in aux or ()]
    return [{"type": f"{kind.__module__}.{kind.__qualname__}"}, aux, *children]


@functools.cache
def _versions() -> dict[str, str]:
    packages = {name: importlib.metadata.version(name) for name in ("flax", "jax", "jaxlib", "numpy")}
    return packages | {"python": sys.version.split()[0]}


# --- code

VERSIONED = frozenset({"jaxdiff", "flax", "jax", "jaxlib", "numpy"} | sys.stdlib_module_names)
"""Packages told by a version, or (this one) by all of its source."""


def _code(names: Iterable[str]) -> dict[str, str]:
    """Digests of this library's source, and of the modules in which these functions and classes are defined with those
    that they import; of an installed package no further than its own."""
    digests = {"jaxdiff": _LIBRARY}
    waiting = [(_home(name), name) for name in names]
    while waiting:
        module, name = waiting.pop()
        top = (module or name).split(".")[0]
        if top in VERSIONED or module in digests:
            continue
        file = getattr(sys.modules.get(module or ""), "__file__", None)
        if module is None or file is None or not os.path.exists(file):
            raise StoredTypeError(f"the code of {name} is in no file")
        digests[module] = _digest(file, _unchanged(file))
        installed = not {"site-packages", "dist-packages"}.isdisjoint(Path(file).parts)
        for other in _imported(sys.modules[module]):
            if not installed or other.split(".")[0] == top:
                waiting.append((other, other))
    return digests


def _home(name: str) -> str | None:
    """The module of a function or class, which may stand in another class."""
    parts = name.split(".")
    return next((m for n in range(len(parts) - 1, 0, -1) if (m := ".".join(parts[:n])) in sys.modules), None)


def _imported(module: types.ModuleType) -> set[str]:
    """The modules with a file that a module's names lead to."""
    values = list(vars(module).values())
    named = (v.__name__ if isinstance(v, types.ModuleType) else getattr(v, "__module__", None) for v in values)
    return {n for n in named if isinstance(n, str) and getattr(sys.modules.get(n), "__file__", None)}


def _unchanged(file: str) -> int:
    """When the file was written, which was before this process."""
    changed = os.stat(file).st_mtime_ns
    if changed > _BEGAN:
        raise StoredTypeError(f"{file} has changed since this process began: start it again")
    return changed


@functools.lru_cache(maxsize=1024)
def _digest(file: str, changed: int) -> str:
    del changed  # another time, another digest
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()


_LIBRARY = hashlib.sha256(b"\0".join(f.read_bytes() for f in sorted(Path(__file__).parent.rglob("*.py")))).hexdigest()
"""Of the source as it is when this module is imported, so that a library edited later is not taken for the new one."""
