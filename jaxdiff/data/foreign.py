"""What a file is that is not what its name says: pointers, web pages, files of torch; and JSON, read so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def other_kind(head: bytes) -> str | None:
    """What a file is that is no file of weights or of JSON, and what to do.

    Args:
      head: its first bytes, 64 or more.

    >>> other_kind(b"")
    'is empty: fetch it again'
    """
    if head.startswith(b"version https://git-lfs"):
        return "is a pointer of Git LFS, not the file itself: run git lfs pull in its folder, or fetch the file"
    if head.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x04", b"\x80\x05")):
        return (
            "is a pickle of torch, which may run code when it is read: save it as safetensors where it was made, or by "
            "python -m jaxdiff.pretrained.convert"
        )
    if head.lstrip().lower().startswith((b"<!doctype", b"<html")):
        return "is a web page, not the file itself: fetch it again"
    return "is empty: fetch it again" if not head else None


def read_json(file: Path) -> Any:
    """What a file of JSON says; a mark of UTF-8 at its begin is passed over.

    Raises:
      OSError: it cannot be read.
      ValueError: it is no JSON; the message begins with a verb.
    """
    content = file.read_bytes()
    if (why := other_kind(content[:72])) is not None:
        raise ValueError(why)
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ValueError("is text in UTF-16, expected UTF-8: save it again as UTF-8")
    try:
        return json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is no JSON ({type(error).__name__}: {error}): fetch it again") from error
