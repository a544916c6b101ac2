"""Where a published model comes from: its folder, from the Hub where that is asked for, and its licence."""

from __future__ import annotations

import dataclasses
import importlib
import os
import re
from pathlib import Path
from typing import Any

from jaxdiff.pretrained.errors import PretrainedError, path_of

_FETCHED = ("*.json", "*.txt", "*.model", "*.md", "LICENSE*")  # of a repository, beside weights
INDEX = "model_index.json"
_OF_PARTS = ("unet/config.json", "transformer/config.json", "scheduler/scheduler_config.json")
HUB = "hf:"
"""The prefix of a repository of the Hub."""


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where a published model comes from.

    Args:
      folder: where it lies.
      kind: the class of its pipeline.
      licence: as its `README.md`, or the name of its licence's file, says; None: nothing there does.
    """

    folder: Path
    kind: str
    licence: str | None = None


def is_published(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a published model's: a folder of diffusers, a repository of the Hub, or a file of weights. A
    folder that lacks nothing but its index is one too: whoever reads it says so."""
    place = path_of(path, "path")
    there = any(os.path.isfile(place / file) for file in (INDEX, *_OF_PARTS))
    return os.fspath(path).startswith(HUB) or there or place.suffix == ".safetensors"


def found(path: str | os.PathLike[str], variant: str | None = None, what: str = "folder") -> Path:
    """What lies at a path; ``hf:OWNER/NAME`` is a repository of the Hub, which is fetched once.

    Args:
      path: a folder, a file, or a repository.
      variant: of the weights that are fetched, ``"fp16"``; None: the plain ones.
      what: the argument, for the message.

    Raises:
      PretrainedError: nothing lies there, or the repository cannot be fetched.
    """
    path_of(path, what)
    name = os.fspath(path)
    if not name.startswith(HUB):
        place = Path(path).expanduser()
        if not os.path.exists(place):
            kind = "file" if place.suffix in (".safetensors", ".npz") else "folder"
            raise PretrainedError(f"{place}: there is no such {kind} (a repository of the Hub is hf:OWNER/NAME)")
        return place
    try:
        hub: Any = importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise PretrainedError(f"{name}: the Hub needs the package huggingface_hub: pip install it") from error
    suffix = "" if variant is None else f".{variant}"
    weights = [f"*{suffix}.safetensors", f"*{suffix}-0*.safetensors", "*.safetensors.index*.json"]
    ignored = [] if variant else ["*.fp16.*", "*.bf16.*", "*.non_ema.*"]
    try:
        fetched: str = hub.snapshot_download(
            name.removeprefix(HUB), allow_patterns=[*_FETCHED, *weights], ignore_patterns=ignored
        )
    except Exception as error:  # of many packages: no network, no such repository, no leave to read it
        first = str(error).strip().partition("\n")[0]
        raise PretrainedError(
            f"{name}: the repository cannot be fetched ({type(error).__name__}: {first}): fetch it where there is a "
            "network, and name its folder"
        ) from error
    return Path(fetched)


def licence_of(folder: Path) -> str | None:
    """The licence that a folder names: ``license`` (or ``license_name``) of its README's head, or its licence's file.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = (Path(folder) / "README.md").write_text("---\\nlicense: creativeml-openrail-m\\n---\\n# A model\\n")
    ...     licence_of(Path(folder))
    'creativeml-openrail-m'
    """
    readme = folder / "README.md"
    if readme.is_file():
        head = re.match(r"---\s*\n(.*?)\n---", readme.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
        lines = dict(re.findall(r"^(license(?:_name)?):[ \t]*(\S+)", head[1], re.MULTILINE)) if head else {}
        if named := lines.get("license_name") or lines.get("license"):
            return str(named).strip("\"'")
    files = sorted(entry.name for entry in folder.glob("LICEN[CS]E*")) if folder.is_dir() else []
    return f"see {files[0]}" if files else None
