"""What a codec is: records as they are stored, and what a network sees.

    encode: stored record -> {"x": x0, conditions}          pure JAX, batch first, under jit with the training step
    decode: x0 -> stored record                             pure JAX
    picture, save: stored records -> pixels, files          NumPy

A codec is a `jaxdiff.record`: its numbers are leaves. So it is an argument of a jitted function, and a codec with other
numbers compiles nothing.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from jax import Array
from numpy.typing import NDArray
from PIL import Image

from jaxdiff.spec import Spec, Specs

Stored = Mapping[str, Any]


class Codec(Protocol):
    """From stored records to a network's data and back.

    Attributes:
      suffixes: of the files that `save` writes.
    """

    @property
    def suffixes(self) -> tuple[str, ...]: ...

    @property
    def spec(self) -> Specs:
        """Of one encoded sample: ``"x"`` as a network sees it, and the conditions that the codec makes of a record."""
        ...

    def encode(self, record: Mapping[str, Any], key: Array | None = None) -> dict[str, Any]:
        """What a network sees of stored records.

        Args:
          record: arrays by name, the batch first.
          key: one for the batch: random augmentation, each sample's draw made of it and the sample's place. None: no
            augmentation.

        Returns:
          ``"x"``, the conditions made of the record, and untouched those that the codec does not know.
        """
        ...

    def decode(self, x0: Array, cond: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The stored records of encoded data ``(B, ...)``; conditions that the codec did not make pass untouched."""
        ...

    def picture(self, stored: Stored, columns: int | None = None) -> NDArray[np.uint8]:
        """One picture of stored records: uint8 ``(H', W', C)``.

        Args:
          stored: as `decode` gives them.
          columns: records a row; None: as many as look well.
        """
        ...

    def save(self, path: str | os.PathLike[str], stored: Stored, columns: int | None = None) -> None:
        """Writes stored records as the suffix says: a picture (.png) or arrays by name (.npz).

        Raises:
          ValueError: a suffix that these records have no file of.
        """
        ...


def encoded_specs(codec: Codec, stored: Specs) -> Specs:
    """Specs of what `encode` gives: the codec's own, and the conditions that it passes on.

    >>> from jaxdiff.codecs import Images
    >>> from jaxdiff.spec import Spec
    >>> stored = {"x": Spec((8, 8, 1), "uint8", 0, 255), "label": Spec((), "int32", 0, 9)}
    >>> list(encoded_specs(Images((8, 8, 1), low_resolution=4), stored))
    ['x', 'low', 'label']
    """
    own = codec.spec
    return {**own, **{name: spec for name, spec in stored.items() if name not in own}}


def grey_levels(codec: Codec) -> int | None:
    """256 where a codec's x0 are bytes brought to [-1, 1], value by value; None for real-valued data.

    >>> from jaxdiff.codecs import Arrays, Images
    >>> grey_levels(Images((8, 8, 1))), grey_levels(Arrays((8, 8, 1)))
    (256, None)
    """
    x = codec.spec["x"]
    assert isinstance(x, Spec)
    if x.clip != (-1.0, 1.0):
        return None
    x0 = jax.ShapeDtypeStruct((1, *(1 if size is None else size for size in x.shape)), x.dtype)
    stored = jax.eval_shape(codec.decode, x0)["x"]
    return 256 if stored.dtype == np.uint8 and stored.shape == x0.shape else None


def passed_on(values: Mapping[str, Any] | None, own: Specs) -> dict[str, Any]:
    """The conditions among some values that a codec with these specs does not make."""
    return {name: value for name, value in (values or {}).items() if name not in own}


def saved_as(path: str | os.PathLike[str], suffixes: tuple[str, ...], what: str) -> str:
    """The suffix of a path, where it is among these.

    Raises:
      ValueError: it is not.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in suffixes:
        raise ValueError(f"{str(path)!r}: {what} are saved as {' or '.join(suffixes)}")
    return suffix


def save_npz(path: str | os.PathLike[str], stored: Stored) -> None:
    """Writes arrays by name, compressed. The file appears whole or not at all; folders above it are made."""
    with _whole(path) as partial, open(partial, "wb") as file:
        arrays: dict[str, Any] = {name: np.asarray(value) for name, value in stored.items()}
        np.savez_compressed(file, **arrays)


def save_png(path: str | os.PathLike[str], picture: NDArray[np.uint8]) -> None:
    """Writes one uint8 picture ``(H, W, C)``: grey for C = 1, else its first three channels as RGB.

    The file appears whole or not at all. Folders above it are made.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_png(folder + "/a.png", np.zeros((4, 6, 1), np.uint8))
    ...     with Image.open(folder + "/a.png") as image:
    ...         image.size
    (6, 4)
    """
    with _whole(path) as partial:
        partial.write_bytes(png(picture))


def png(picture: NDArray[np.uint8]) -> bytes:
    """One uint8 picture ``(H, W, C)`` as the bytes of a PNG: grey for C = 1, else its first three channels as RGB."""
    if picture.ndim != 3 or picture.dtype != np.uint8:
        raise ValueError(f"a picture is uint8 (H, W, C), got {picture.dtype} {picture.shape}")
    if picture.shape[2] == 2:
        picture = picture[:, :, :1]
    shown = picture[:, :, 0] if picture.shape[2] == 1 else np.ascontiguousarray(picture[:, :, :3])
    encoded = io.BytesIO()
    Image.fromarray(shown).save(encoded, format="PNG")
    return encoded.getvalue()


@contextlib.contextmanager
def _whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    path = Path(path).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    yield partial
    partial.replace(path)
