"""Four captioned pictures, written in each layout that stores captions."""

from __future__ import annotations

import csv
import functools
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jaxdiff.data import Source, open_folder, open_npz, open_parquet, open_webdataset
from tests.data.pictures import encoded, pictures

PICTURES = pictures(4, (2, 2, 3))
ENCODED = [encoded(image) for image in PICTURES]
Texts = Any


def parquet(folder: Path, texts: Texts, labels: Any = None, *, column: str = "text", kind: Any = None) -> None:
    images = [{"bytes": image, "path": None} for image in ENCODED]
    columns = {"image": images, column: pa.array(texts, kind)} | ({} if labels is None else {"label": labels})
    pq.write_table(pa.table(columns), folder / "train.parquet", row_group_size=3)


def npz(folder: Path, texts: Texts, labels: Any = None, *, column: str = "text", kind: str = "U") -> None:
    held = np.array(texts if kind == "U" else [text.encode() for text in texts])
    np.savez(folder / "train.npz", x=PICTURES, **{column: held} | ({} if labels is None else {"label": labels}))


def images_of(folder: Path, labels: Any = None) -> list[str]:
    """Four images, in folders of classes where there are labels; their names."""
    names = [f"{n}.png" if labels is None else f"{'ab'[labels[n]]}/{n}.png" for n in range(4)]
    for name, image in zip(names, ENCODED, strict=True):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(image)
    return names


def jsonl(folder: Path, texts: Texts, labels: Any = None, *, column: str = "text") -> None:
    lines = [{"file_name": n, column: t} for n, t in zip(images_of(folder, labels), texts, strict=True)]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")


def table(folder: Path, texts: Texts, labels: Any = None, *, column: str = "text") -> None:
    with open(folder / "metadata.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("file_name", column), *zip(images_of(folder, labels), texts, strict=True)])


def beside(folder: Path, texts: Texts, labels: Any = None) -> None:
    for name, text in zip(images_of(folder, labels), texts, strict=True):
        (folder / name).with_suffix(".txt").write_bytes(text.encode())


def tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as file:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    return path


def pairs(folder: Path, texts: Texts, labels: Any = None, *, kind: str = "txt", column: str = "text") -> None:
    for shard in (0, 1):  # two of two pairs
        members = {}
        for n in (2 * shard, 2 * shard + 1):
            members[f"set/{n:03}.png"] = ENCODED[n]
            held = texts[n] if kind == "txt" else json.dumps({"id": n, column: texts[n]})
            members[f"set/{n:03}.{kind}"] = held.encode()
            if labels is not None:
                members[f"set/{n:03}.cls"] = str(labels[n]).encode()
        tar(folder / f"{shard:04}.tar", members)


LAYOUTS: dict[str, tuple[Callable[..., None], Callable[..., Source]]] = {
    "parquet": (parquet, open_parquet),
    "npz": (npz, open_npz),
    "npz of bytes": (functools.partial(npz, kind="S"), open_npz),
    "metadata.jsonl": (jsonl, open_folder),
    "metadata.csv": (table, open_folder),
    "txt": (beside, open_folder),
    "tar with txt": (pairs, open_webdataset),
    "tar with json": (functools.partial(pairs, kind="json"), open_webdataset),
}
SEVERAL = ("parquet", "npz", "metadata.jsonl", "tar with json")
