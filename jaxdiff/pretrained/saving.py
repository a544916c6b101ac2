"""A model as a folder of diffusers, which `diffusers.DiffusionPipeline.from_pretrained` opens.

The folder is complete when `model_index.json` is there, which is written last.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxdiff.data.added_words import WithWords, files_with_words
from jaxdiff.data.text import TEXT
from jaxdiff.pretrained.control import CONTROLNET, FOLDER
from jaxdiff.pretrained.errors import PretrainedError, path_of
from jaxdiff.pretrained.files.tensors import floating
from jaxdiff.pretrained.layouts.families import Loaded, write_network
from jaxdiff.pretrained.model import SCHEDULER, Pretrained
from jaxdiff.pretrained.origin import INDEX


def save_pipeline(path: str | os.PathLike[str], model: Pretrained, *, dtype: str | None = None) -> None:
    """Writes a model: configurations, weights, scheduler and tokenizers, and the licence that it came with.

    Args:
      path: a new folder, an empty one, or one that holds such a model, which is replaced.
      model: the model.
      dtype: of the weights, ``"float16"``; None: as its parameters are.

    Raises:
      PretrainedError: a folder that holds something else, or that cannot be written.
    """
    folder, dtype = path_of(path, "path"), floating(dtype)
    if folder.exists() and not (folder / INDEX).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise PretrainedError(f"{folder}: holds something else than a published model: choose another folder")
    if model.origin.folder.exists() and folder.exists() and folder.samefile(model.origin.folder):
        raise PretrainedError(f"{folder}: is where this model was read from: choose another folder")
    encoder: Any = model.model.encoders.get(TEXT)
    branches = encoder.branches if encoder else ()
    tokenizers = {each.name: Path(each.tokenizer.path) for each in branches}
    words = _words(branches)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / INDEX).unlink(missing_ok=True)
        parts = _by_folder(model.parts)
        for name, part in parts.items():
            write_network(folder / name, part, dtype=dtype)
        (folder / SCHEDULER).mkdir(exist_ok=True)
        _write_json(folder / SCHEDULER / "scheduler_config.json", model.scheduler)
        for name, place in tokenizers.items():
            shutil.copytree(place, folder / name, dirs_exist_ok=True)
            for file, values in words.get(name, {}).items():
                _write_json(folder / name / file, values)
        _write_licence(folder, model)
        _write_json(folder / INDEX, _index(model, {*parts, *tokenizers, SCHEDULER}))
    except OSError as error:
        raise PretrainedError(f"{error.filename or folder}: cannot be written ({error.strerror})") from error


def _words(branches: Sequence[Any]) -> dict[str, dict[str, dict[str, Any]]]:
    """By the folders of the tokenizers that have words beside their files', the files that say them."""
    found = {}
    for each in branches:
        if isinstance(each.tokenizer, WithWords):
            place = Path(each.tokenizer.path)
            try:
                found[each.name] = files_with_words(place, each.tokenizer.words)
            except OSError as error:
                raise PretrainedError(f"{error.filename or place}: cannot be read ({error.strerror})") from error
            except ValueError as error:
                raise PretrainedError(f"{place}: {error}; the model without the words can be saved") from error
    return found


def _by_folder(parts: Mapping[str, Loaded]) -> dict[str, Loaded]:
    """The parts by their folders: ControlNets, whatever they are called here, as diffusers has them."""
    found: dict[str, Loaded] = {}
    number = 0
    for name, part in parts.items():
        if part.fields.get("_class_name") == CONTROLNET:
            name, number = f"{FOLDER}_{number}" if number else FOLDER, number + 1
        found[name] = part
    return found


def _index(model: Pretrained, there: set[str]) -> dict[str, Any]:
    """The fields of `model_index.json`; of parts that are not written, such as a safety checker, none."""
    found: dict[str, Any] = {}
    for name, value in model.index.items():
        is_part = isinstance(value, list) and len(value) == 2 and all(isinstance(each, str | None) for each in value)
        found[name] = [None, None] if is_part and name not in there else value
    if controls := [name for name in there if name.split("_")[0] == FOLDER]:
        kind = str(found["_class_name"])
        if CONTROLNET.removesuffix("Model") not in kind:  # they were added to a pipeline that had none
            found["_class_name"] = kind.replace("Pipeline", "ControlNetPipeline")
        found[FOLDER] = ["diffusers", CONTROLNET if len(controls) == 1 else "MultiControlNetModel"]
    if "safety_checker" in found:
        found["requires_safety_checker"] = False
    return found


def _write_licence(folder: Path, model: Pretrained) -> None:
    if model.origin.folder.is_dir():
        for file in model.origin.folder.glob("LICEN[CS]E*"):
            shutil.copy2(file, folder / file.name)
    licence = model.origin.licence
    head = f"---\nlicense: {licence}\n---\n\n" if licence and not licence.startswith("see ") else ""
    text = f"{head}A {model.origin.kind}, written by jaxdiff from {model.origin.folder.name}.\n"
    (folder / "README.md").write_text(text, encoding="utf-8")


def _write_json(file: Path, values: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(dict(values), indent=2) + "\n", encoding="utf-8")
