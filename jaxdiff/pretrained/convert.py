"""Files of torch (`.pt`, `.pth`, `.bin`, `.ckpt`) to safetensors, which jaxdiff reads; `python -m` runs it:

    python -m jaxdiff.pretrained.convert DiT-XL-2-256x256.pt DiT-XL-2-256x256.safetensors
    python -m jaxdiff.pretrained.convert checkpoint.pt averaged.safetensors --part ema

It needs torch, as `pip install "jaxdiff[convert]"` brings it, and calls ``torch.load(weights_only=True)`` alone, which
runs no code of the file. What that refuses, is refused here. Nothing else in jaxdiff opens such a file.
"""

from __future__ import annotations

import argparse
import importlib
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from jaxdiff.data.foreign import other_kind
from jaxdiff.pretrained.errors import PretrainedError
from jaxdiff.pretrained.files.safetensors import DTYPES, write_safetensors

PARTS = ("state_dict", "model", "ema", "model_state_dict", "module", "params_ema", "params")
"""Names under which trainers keep weights."""

_OF_TORCH = "is a pickle of torch"
_NAMES = {name: getattr(ml_dtypes, name) for name in ("bfloat16", "float8_e4m3fn", "float8_e5m2")}


class _Weights(Mapping[str, NDArray[Any]]):
    """Tensors of torch as arrays, each made when it is asked for."""

    def __init__(self, tensors: Mapping[str, Any], where: str) -> None:
        self._tensors = tensors
        self._dtypes = {name: _dtype(tensor, f"{where}: {name}") for name, tensor in tensors.items()}

    def described(self) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
        return {name: (self._dtypes[name], tuple(tensor.shape)) for name, tensor in self._tensors.items()}

    def __getitem__(self, name: str) -> NDArray[Any]:
        tensor, dtype = self._tensors[name], self._dtypes[name]
        flat = tensor.detach().resolve_neg().contiguous().reshape(-1)
        same = importlib.import_module("torch").uint8
        made: NDArray[Any] = flat.view(same).numpy().view(dtype).reshape(tuple(tensor.shape))
        return made

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def convert(source: Path, target: Path, part: str | None = None) -> list[str]:
    """Writes the tensors of a file of torch as safetensors.

    Args:
      source: the file of torch.
      target: to write.
      part: the entry that holds the weights, "a.b" for one within another; None: the file's own tensors, or the only
        entry that is known to hold weights.

    Returns:
      What was left out, by name.

    Raises:
      PretrainedError: torch is missing, the file cannot be read without running code, or it is not clear what to take.
    """
    try:
        torch = importlib.import_module("torch")
    except ImportError as error:
        raise PretrainedError('torch is missing, which reads such files: pip install "jaxdiff[convert]"') from error
    if not source.is_file():
        raise PretrainedError(
            f"{source}: {'is a folder, expected a file' if source.exists() else 'there is no such file'}"
        )
    if target.exists() and target.samefile(source):
        raise PretrainedError(f"{target}: is the file that is read: name another one to write")
    with open(source, "rb") as opened:
        head = opened.read(72)
    if (other := other_kind(head)) is not None and _OF_TORCH not in other:
        raise PretrainedError(f"{source}: {other}")
    try:
        whole = torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:  # of many kinds, torch's and zip's
        named = re.search(r"GLOBAL (\S+)", str(error))
        why = f"it holds {named[1]}" if named else f"it holds more than tensors, or is damaged ({type(error).__name__})"
        raise PretrainedError(
            f"{source}: torch.load(weights_only=True) refuses it: {why}: save its state_dict alone with the library "
            "that made it"
        ) from error
    taken = _taken(whole, part, torch, str(source))
    tensors = {str(name): value for name, value in taken.items() if torch.is_tensor(value)}
    if not tensors:
        raise PretrainedError(f"{source}: {part or 'it'} holds no tensors")
    if "__metadata__" in tensors or len(tensors) < sum(torch.is_tensor(value) for value in taken.values()):
        raise PretrainedError(f"{source}: holds two tensors of one name, or one that is named __metadata__")
    left = [f"{name} ({type(value).__name__})" for name, value in taken.items() if not torch.is_tensor(value)]
    try:
        write_safetensors(target, _Weights(tensors, str(source)))
    except OSError as error:
        raise PretrainedError(f"{target}: cannot be written ({error.strerror})") from error
    return left


def _taken(whole: Any, part: str | None, torch: Any, where: str) -> Mapping[str, Any]:
    """The entry that holds the weights."""
    if part is not None:
        for name in part.split("."):
            if not isinstance(whole, Mapping) or name not in whole:
                there = ", ".join(map(str, list(whole)[:8])) if isinstance(whole, Mapping) else type(whole).__name__
                raise PretrainedError(f"{where}: there is no {part!r}; there are {there}")
            whole = whole[name]
        if not isinstance(whole, Mapping):
            raise PretrainedError(f"{where}: {part} is a {type(whole).__name__}, expected tensors by name")
        return whole
    if not isinstance(whole, Mapping):
        raise PretrainedError(f"{where}: holds a {type(whole).__name__}, expected tensors by name")
    if any(torch.is_tensor(value) for value in whole.values()):
        return whole
    found = [name for name in PARTS if isinstance(whole.get(name), Mapping)]
    if len(found) != 1:
        others = ", ".join(map(str, list(whole)[:8])) or "nothing at all"
        there = f"several, {', '.join(found)}" if found else f"none that is known, but {others}"
        said = found[-1] if found else "NAME"
        raise PretrainedError(f"{where}: of entries with weights there are {there}: say which, --part {said}")
    inner: Mapping[str, Any] = whole[found[0]]
    return inner


def _dtype(tensor: Any, where: str) -> np.dtype:
    name = str(tensor.dtype).removeprefix("torch.")
    if tensor.is_sparse or tensor.is_quantized or tensor.device.type == "meta":
        kind = "sparse" if tensor.is_sparse else "quantized" if tensor.is_quantized else "without its numbers"
        raise PretrainedError(f"{where} is {kind}, expected a plain tensor")
    found = np.dtype(_NAMES.get(name, name)) if name in _NAMES or hasattr(np, name) or name == "bool" else None
    if found is None or found not in DTYPES.values():
        raise PretrainedError(f"{where} is of {name}, which safetensors do not have here")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns the exit status: 0, or 2 with one line on stderr."""
    parser = argparse.ArgumentParser(
        prog="python -m jaxdiff.pretrained.convert", description="A file of torch as safetensors, without running it."
    )
    parser.add_argument("source", type=Path, help="file of torch: .pt, .pth, .bin, .ckpt")
    parser.add_argument("target", type=Path, help="file to write: .safetensors")
    parser.add_argument("--part", help=f"the entry to take, where there are several: {', '.join(PARTS)}, or a.b")
    given = parser.parse_args(arguments)
    try:
        left = convert(given.source.expanduser(), given.target.expanduser(), given.part)
    except PretrainedError as error:
        print(f"convert: error: {error}", file=sys.stderr, flush=True)
        return 2
    if left:
        more = ", ..." if len(left) > 6 else ""
        print(f"{given.target}: {len(left)} entries are no tensors and left out: {', '.join(left[:6])}{more}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
