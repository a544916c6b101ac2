"""Functions compiled ahead of time and kept on disk, so that a second process starts without tracing or compiling.

    images = Kept("compiled")(generate, (denoise, sampler, keys, ...), {"shape": (32, 32, 3), ...})

Of a call on new arguments a process traces the function, lowers it to StableHLO and compiles that. The first two are
kept by `jax.export` (which needs the package flatbuffers), in a file of this module's; the last by JAX's persistent
compilation cache, which is the process's own where one is set, else the folder ``xla`` beside these files. A kept
function is found by everything that its program depends on but the numbers: the structure, shapes and types of its
arguments, its static ones, the code of this library and of the modules whose classes are among the arguments, and the
versions, settings and devices of JAX.

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
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import NamedSharding

from jaxdiff.config.serialize import StoredTypeError, to_json

FORMAT = "jaxdiff compiled function 1"
SETTINGS = (
    "jax_enable_x64",
    "jax_default_matmul_precision",
    "jax_default_prng_impl",
    "jax_threefry_partitionable",
    "jax_numpy_dtype_promotion",
    "jax_debug_nans",
)
"""Settings of JAX that change what is traced."""


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
            try:
                exported = _export(flat, shapes)
                self._write(path, text, bytes(exported.serialize()))
            except (ValueError, NotImplementedError, ImportError) as error:
                why = " ".join(str(error).split())[:300]
                self._say(f"{_name(function)} is compiled once, but traced anew in each process: {why}")
        with _compilations_kept(self.folder / "xla"):
            call = flat if exported is None else exported.call
            return jax.jit(call).lower(*map(_plain, jax.tree.leaves(arguments))).compile()

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
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self.folder, prefix=".", delete=False) as file:
                file.write(json.dumps(head, sort_keys=True).encode() + b"\n" + blob)
            os.replace(file.name, path)
        except OSError as error:
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
    return getattr(jax.config, name)


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
) -> tuple[Callable[..., Any], list[jax.ShapeDtypeStruct]]:
    """The call as a function of its leaves, without classes of ours and without keys, and their shapes."""
    leaves, structure = jax.tree.flatten(tuple(arguments))
    restored = [_restoring(leaf) for leaf in leaves]

    def flat(*plain: Any) -> Any:
        given = [restore(leaf) for restore, leaf in zip(restored, plain, strict=True)]
        return function(*jax.tree.unflatten(structure, given), **static)

    return flat, [_shape(leaf) for leaf in leaves]


def _export(flat: Callable[..., Any], shapes: Sequence[jax.ShapeDtypeStruct]) -> jax.export.Exported:
    try:
        return jax.export.export(jax.jit(flat))(*shapes)
    except ValueError as error:
        # A library's kernel, whose name alone jax.export does not vouch for over versions: a file is for one version.
        kernels = set(re.findall(r"custom_call @([\w$.]+)", jax.jit(flat).lower(*shapes).as_text()))
        if not kernels or any("callback" in name for name in kernels):
            raise error
        allowed = [jax.export.DisabledSafetyCheck.custom_call(name) for name in sorted(kernels)]
        return jax.export.export(jax.jit(flat), disabled_checks=allowed)(*shapes)


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
    shape: jax.ShapeDtypeStruct = jax.eval_shape(_plain, leaf)
    return shape


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__name__", type(function).__name__)


# --- what a program depends on


def facts_of(function: Callable[..., Any], arguments: Sequence[Any], static: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that the program of a call depends on but its numbers, as JSON.

    Raises:
      StoredTypeError: an argument holds, as a static part, something without a name of its own, such as a function.
    """
    structure = _structure(jax.tree.structure(tuple(arguments)))
    described = {name: _described(value) for name, value in static.items()}
    devices = next((s.mesh.devices.flat for s in static.values() if isinstance(s, NamedSharding)), jax.devices()[:1])
    leaves = []
    for leaf in jax.tree.leaves(arguments):
        shape = _shape(leaf)
        impl = str(jax.random.key_impl(leaf)) if _is_key(leaf) else None
        leaves.append([list(shape.shape), shape.dtype.name, bool(shape.weak_type), impl])
    module = getattr(function, "__module__", None)
    return {
        "function": f"{module}.{getattr(function, '__qualname__', _name(function))}",
        "arguments": structure,
        "leaves": leaves,
        "static": described,
        "code": _code({module} | set(_modules([structure, described]))),
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "numpy")},
        "settings": {name: str(_setting(name)) for name in SETTINGS},
        "backend": jax.default_backend(),
        "devices": [f"{device.id}: {device.device_kind}" for device in devices],
    }


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


def _modules(described: Any) -> Iterator[str]:
    """The modules of the classes that a description names."""
    if isinstance(described, dict):
        if isinstance(described.get("type"), str):
            yield described["type"].rpartition(".")[0]
        for item in described.values():
            yield from _modules(item)
    elif isinstance(described, list):
        for item in described:
            yield from _modules(item)


@functools.cache
def _library() -> str:
    files = sorted(Path(__file__).parent.rglob("*.py"))
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()


def _code(modules: set[str | None]) -> dict[str, str]:
    """Digests of this library's source, and of the files of other modules."""
    digests = {"jaxdiff": _library()}
    for name in sorted(filter(None, modules)):
        if name.split(".")[0] in ("jaxdiff", "jax", "jaxlib", "numpy", "builtins"):
            continue
        file = getattr(sys.modules.get(name), "__file__", None)
        if file is not None and os.path.exists(file):
            digests[name] = hashlib.sha256(Path(file).read_bytes()).hexdigest()
    return digests
