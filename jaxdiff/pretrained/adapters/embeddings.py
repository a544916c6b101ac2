"""Textual inversion: new words of a text encoder.

Gal et al. 2022, "An Image is Worth One Word", https://arxiv.org/abs/2208.01618, section 4. A new token S has k vectors
that were learned while all else was frozen (`jaxdiff.pretrained.adapters.inversion`). They are k new rows of the
encoder's table of n, and the tokenizer makes of S in a text their ids,

    S -> n, n + 1, ..., n + k - 1,       rows n + i = v_i                    (1)

as diffusers' ``load_textual_inversion`` has it, where the tokens of v_1, ... are named ``S_1`` and so on.

A file is one of safetensors: of one encoder ``{S: (k, width) or (width,)}``, of Stable Diffusion XL and 3
``{"clip_l": (k, 768), "clip_g": (k, 1280)}``, which does not say S.

Old configurations (``eos_token_id: 2``, as XL's second encoder has) take a text's pooled state at its largest id. That
is a new token where the text has one, in transformers, in the training scripts of diffusers, and here.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from numpy.typing import NDArray

from jaxdiff.data.added_words import AddedWord, WithWords
from jaxdiff.networks.text import CLIPText, TextEncoder
from jaxdiff.pretrained.errors import PretrainedError
from jaxdiff.pretrained.files.safetensors import SafeTensors, write_safetensors
from jaxdiff.pretrained.layouts.families import Loaded
from jaxdiff.pretrained.prompts import Branch

WEIGHTS = "learned_embeds.safetensors"
ENCODERS = {"clip_l": "text_encoder", "clip_g": "text_encoder_2"}
_GIVEN = "token='<word>', on the command line FILE:<word>"
_NO_NAME = ("emb_params", "*")  # keys of other programs' files


@dataclasses.dataclass(frozen=True, eq=False)
class Embeddings:
    """The vectors of a new token.

    Args:
      token: S of equation (1).
      vectors: ``(k, width)`` by the names of the encoders' folders; ``""``: of the one that the model has.
      where: the file, for messages.

    >>> Embeddings("<cat-toy>", {"": np.zeros((2, 768))}).vectors[""].shape
    (2, 768)
    """

    token: str
    vectors: Mapping[str, NDArray[Any]]
    where: str = "embeddings"


def load_embeddings(path: str | os.PathLike[str], token: str | None = None) -> Embeddings:
    """The vectors of a file.

    Args:
      path: of the file, or of a folder with `learned_embeds.safetensors`.
      token: what stands for them in a text; None: what the file says.

    Raises:
      PretrainedError: a file that is missing, damaged, or of torch; tensors that are no vectors; no token.
    """
    file = Path(path).expanduser()
    if file.is_dir():
        torch = file / "learned_embeds.bin"
        file = file / WEIGHTS if (file / WEIGHTS).is_file() or not torch.is_file() else torch
    if not file.is_file():
        raise PretrainedError(f"{file}: there is no such file; embeddings are one file of safetensors")
    tensors = SafeTensors(file)
    names = sorted(tensors)
    if len(names) == 1 and names[0] not in ENCODERS:
        found = {"": names[0]}
        token = token or (names[0] if names[0] not in _NO_NAME else None)
    elif names and set(names) <= set(ENCODERS):
        found = {ENCODERS[name]: name for name in names}
    else:
        said = ", ".join(names[:3]) or "nothing"
        raise PretrainedError(f"{file}: holds {said}; expected one tensor, named as its token, or clip_l and clip_g")
    if not token:
        raise PretrainedError(f"{file}: does not say its token, which stands for it in a text: give {_GIVEN}")
    if token != token.strip():
        raise PretrainedError(f"{file}: the token {token!r} begins or ends with a blank: leave it out")
    vectors = {part: np.atleast_2d(np.asarray(tensors.read(name), np.float32)) for part, name in found.items()}
    for part, each in vectors.items():
        if each.ndim != 2 or not each.size:
            raise PretrainedError(f"{file}: {found[part]} has the shape {each.shape}, expected (k, width) or (width,)")
    if len({len(each) for each in vectors.values()}) > 1:
        counts = ", ".join(f"{found[part]} {len(each)}" for part, each in vectors.items())
        raise PretrainedError(f"{file}: has different numbers of vectors for its encoders: {counts}")
    return Embeddings(token, vectors, str(file))


def write_embeddings(path: str | os.PathLike[str], embeddings: Embeddings) -> None:
    """Writes vectors as a file that `load_embeddings` and, of one encoder, diffusers' ``load_textual_inversion`` read.

    Args:
      path: of the file; its folder is made where it is not there.
      embeddings: the vectors.

    Raises:
      PretrainedError: a file that cannot be written.
    """
    file = Path(path).expanduser()
    keys = {part: key for key, part in ENCODERS.items()}
    tensors = {keys.get(part, embeddings.token): np.asarray(each) for part, each in embeddings.vectors.items()}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_safetensors(file, tensors)
    except OSError as error:
        raise PretrainedError(f"{file}: cannot be written ({error.strerror})") from error


def with_rows(
    branches: Sequence[Branch], parts: Mapping[str, Loaded], embeddings: Embeddings
) -> tuple[tuple[Branch, ...], dict[str, Loaded]]:
    """The encoders and the networks of a model with a new token.

    Args:
      branches: its text encoders.
      parts: its networks by the names of their folders.
      embeddings: the vectors.

    Raises:
      PretrainedError: vectors of other encoders than the model has, or of another width; a token that it knows.
    """
    clip = {_part(each): each for each in branches if isinstance(each.net.config, CLIPText)}
    vectors, where = dict(embeddings.vectors), embeddings.where
    if "" in vectors and len(clip) == 1:
        vectors = {next(iter(clip)): vectors[""]}
    if set(vectors) != set(clip):
        has, needs = (
            [key for key, part in ENCODERS.items() if part in each] or ["one tensor"] for each in (vectors, clip)
        )
        expected = " and ".join(needs) if len(clip) > 1 else f"one tensor, or {' and '.join(needs)}"
        raise PretrainedError(
            f"{where}: has {' and '.join(has)}, expected {expected if clip else 'a model with an encoder of CLIP'}"
        )
    made, changed = [], dict(parts)
    for branch in branches:
        part = _part(branch)
        if part not in vectors:
            made.append(branch)
            continue
        loaded, rows = parts[part], vectors[part]
        table = loaded.params["tokens"]["embedding"]
        if rows.shape[1] != table.shape[1]:
            raise PretrainedError(f"{where}: has vectors of {rows.shape[1]} numbers, {part} has {table.shape[1]}")
        tokenizer = branch.tokenizer
        if tokenizer.knows(embeddings.token):
            raise PretrainedError(
                f"{where}: {branch.name} knows the token {embeddings.token!r} already: give another, {_GIVEN}"
            )
        params = {**loaded.params, "tokens": {**loaded.params["tokens"], "embedding": _longer(table, rows)}}
        size = len(table) + len(rows)
        words = *getattr(tokenizer, "words", ()), AddedWord(embeddings.token, len(table), len(rows))
        file = tokenizer.tokenizer if isinstance(tokenizer, WithWords) else tokenizer
        made.append(
            dataclasses.replace(
                branch,
                tokenizer=WithWords(file, words),
                net=TextEncoder(dataclasses.replace(branch.net.config, vocabulary=size)),
                params=params,
            )
        )
        net = TextEncoder(dataclasses.replace(loaded.net.config, vocabulary=size))
        changed[part] = Loaded(net, params, {**loaded.fields, "vocab_size": size})
    return tuple(made), changed


def _part(branch: Branch) -> str:
    return branch.name.replace("tokenizer", "text_encoder")


def _longer(table: jax.Array, rows: NDArray[Any]) -> jax.Array:
    """A table with rows more; of one that is split over devices each has all, whose number need not divide."""
    over = getattr(table, "sharding", None)
    if isinstance(over, NamedSharding):
        whole = NamedSharding(over.mesh, PartitionSpec())
        table, more = jax.device_put((table, jnp.asarray(rows, table.dtype)), whole)
        return jnp.concatenate([table, more])
    return jnp.concatenate([jnp.asarray(table), jnp.asarray(rows, table.dtype)])
