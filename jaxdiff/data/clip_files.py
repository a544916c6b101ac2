"""CLIP's tokenizer of its two files, `vocab.json` and `merges.txt`, by the package `tokenizers`.

Radford et al. 2021, "CLIP", https://arxiv.org/abs/2103.00020, section 2.4: pairs of bytes, in lower case, a word's last
piece marked ``</w>``. Text is brought to Unicode's normal form C, white space to one blank, and cut into words by the
pattern below. Special tokens, and the token that pads where it is one of the vocabulary's own, stand in the folder's
`tokenizer_config.json` and `special_tokens_map.json`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jaxdiff.data.foreign import other_kind, read_json

VOCABULARY, MERGES = "vocab.json", "merges.txt"
CONFIG, SPECIAL = "tokenizer_config.json", "special_tokens_map.json"
_BEGIN, END = "<|startoftext|>", "<|endoftext|>"
_WORDS = r"""<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""


def clip_tokenizer(package: Any, folder: Path) -> Any:
    """The tokenizer of a folder.

    Args:
      package: the package `tokenizers`.
      folder: that holds the two files.

    Raises:
      OSError: a file cannot be read.
      ValueError: it is not what it should be.
    """
    vocabulary = read_object(folder, VOCABULARY)
    content = (folder / MERGES).read_bytes()
    if (why := other_kind(content[:72])) is not None:
        raise ValueError(f"{MERGES} {why}")
    lines = content.decode("utf-8").split("\n")
    merges = [tuple(line.split()) for line in lines if line and not line.startswith("#version")]
    if wrong := [pair for pair in merges if len(pair) != 2]:
        raise ValueError(f"{MERGES} has {' '.join(wrong[0])!r}, expected two pieces a line")
    if missing := [name for name in (_BEGIN, END) if name not in vocabulary]:
        raise ValueError(f"{VOCABULARY} has no {missing[0]}: it is not CLIP's")
    model = package.models.BPE(vocabulary, merges, end_of_word_suffix="</w>", fuse_unk=False, unk_token=END)
    made = package.Tokenizer(model)
    normalizers, cutters = package.normalizers, package.pre_tokenizers
    blanks = normalizers.Replace(package.Regex(r"\s+"), " ")
    made.normalizer = normalizers.Sequence([normalizers.NFC(), blanks, normalizers.Lowercase()])
    words = cutters.Split(package.Regex(_WORDS), behavior="removed", invert=True)
    made.pre_tokenizer = cutters.Sequence([words, cutters.ByteLevel(add_prefix_space=False)])
    ends = ((name, vocabulary[name]) for name in (END, _BEGIN))
    made.post_processor = package.processors.RobertaProcessing(*ends, trim_offsets=False, add_prefix_space=False)
    made.add_special_tokens([package.AddedToken(name, normalized=False) for name in _special(folder)])
    return made


def padding_token(folder: Path) -> str:
    """The token after the end: of Stable Diffusion 1 the end itself, of 2 "!"."""
    return _text(read_object(folder, SPECIAL).get("pad_token") or read_object(folder, CONFIG).get("pad_token") or END)


def _special(folder: Path) -> list[str]:
    added = read_object(folder, CONFIG).get("added_tokens_decoder", {})
    if not isinstance(added, dict) or not all(isinstance(each, dict) for each in added.values()):
        raise ValueError(f"{CONFIG}: added_tokens_decoder is {added!r:.60}, expected objects by their ids")
    named = [_text(each) for each in added.values() if each.get("special", True)]
    return list(dict.fromkeys([_BEGIN, END, padding_token(folder), *named]))


def _text(token: Any) -> str:
    found = token.get("content") if isinstance(token, dict) else token
    if not isinstance(found, str):
        raise ValueError(f"{CONFIG}: a token is {token!r:.60}, expected text, or an object with its content")
    return found


def read_object(folder: Path, name: str) -> dict[str, Any]:
    """The fields of a file of JSON in the folder; of one that is not there, but for the vocabulary, none.

    Raises:
      OSError: it cannot be read.
      ValueError: it is not what it should be.
    """
    file = folder / name
    if name != VOCABULARY and not file.exists():
        return {}
    try:
        found = read_json(file)
    except ValueError as error:
        raise ValueError(f"{name} {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{name} is a {type(found).__name__}, expected an object of fields")
    return found
