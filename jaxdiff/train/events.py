"""TensorBoard's event files, written at once and by hand: the format is three messages, and needs no library.

A file is a row of records, each an `Event` in the encoding of protocol buffers (https://protobuf.dev/programming-guides/
encoding), with CRC-32C sums over its length and over itself (TensorFlow's `tsl/lib/io/record_writer.h`):

    record = length (8 bytes)  sum(length) (4)  event  sum(event) (4)                                   (1)
    sum(x) = rotate_right(crc32c(x), 15) + 0xa282ead8   mod 2^32                                        (2)

Numbers of fields are those of TensorBoard's `event.proto` and `summary.proto`.
"""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import struct
import time
from pathlib import Path

import numpy as np

from jaxdiff.codecs.base import png

_FLUSH_SECONDS = 30.0
_VARINT, _DOUBLE, _BYTES, _FLOAT = 0, 1, 2, 5  # wire types


class Events:
    """Writes one event file.

    Args:
        folder: where; made when missing.
        start: the first step to come: TensorBoard forgets those from it on in older files of the folder.

    Raises:
        OSError: by every method; the file cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     events = Events(Path(folder), start=1)
        ...     events.number("loss", 0.5, 1)
        ...     events.close()
        ...     len(list(Path(folder).iterdir()))
        1
    """

    def __init__(self, folder: Path, start: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"  # read in order of names
        self._file = (folder / name).open("wb")
        self._flushed = time.monotonic()
        self._add(0, _field(3, _BYTES, b"brain.Event:2"))  # file_version
        self._add(start, _field(7, _BYTES, _field(1, _VARINT, 1)))  # session_log.status START

    def number(self, name: str, value: float, step: int) -> None:
        """One point of the curve `name`."""
        self._summary(step, name, _field(2, _FLOAT, value))  # simple_value

    def picture(self, name: str, pixels: np.ndarray, step: int) -> None:
        """An image, uint8 (H, W, C)."""
        height, width, channels = pixels.shape
        sizes = _field(1, _VARINT, height) + _field(2, _VARINT, width) + _field(3, _VARINT, 1 if channels < 3 else 3)
        self._summary(step, name, _field(4, _BYTES, sizes + _field(4, _BYTES, png(pixels))))  # image

    def _summary(self, step: int, name: str, value: bytes) -> None:
        self._add(step, _field(5, _BYTES, _field(1, _BYTES, _field(1, _BYTES, name.encode()) + value)))

    def _add(self, step: int, what: bytes) -> None:
        event = _field(1, _DOUBLE, time.time()) + _field(2, _VARINT, step) + what
        length = struct.pack("<Q", len(event))
        self._file.write(length + struct.pack("<I", _sum(length)) + event + struct.pack("<I", _sum(event)))
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self._flushed = time.monotonic()
            self._file.flush()

    def close(self) -> None:
        """Writes what is left; closed even where that fails."""
        self._file.close()

    def abandon(self) -> None:
        """Closes a file that can no longer be written."""
        with contextlib.suppress(OSError):  # of what was left to write: its error is known
            self._file.close()


def _field(number: int, wire: int, value: float | bytes) -> bytes:
    key = _varint(number << 3 | wire)
    if isinstance(value, bytes):
        return key + _varint(len(value)) + value
    return key + (_varint(int(value)) if wire == _VARINT else struct.pack("<d" if wire == _DOUBLE else "<f", value))


def _varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first; all but the last have the eighth set."""
    written = bytearray()
    while value > 127:
        written.append(value & 127 | 128)
        value >>= 7
    written.append(value)
    return bytes(written)


def _sum(data: bytes) -> int:
    """Equation (2)."""
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def crc32c(data: bytes) -> int:
    """The cyclic redundancy check of Castagnoli's polynomial (RFC 3720, appendix B.4).

    >>> hex(crc32c(b"123456789"))
    '0xe3069283'
    """
    crc, table = 0xFFFFFFFF, _table()
    for byte in data:
        crc = table[(crc ^ byte) & 255] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


@functools.cache
def _table() -> tuple[int, ...]:
    rows = []
    for row in range(256):
        for _ in range(8):
            row = row >> 1 ^ (0x82F63B78 if row & 1 else 0)
        rows.append(row)
    return tuple(rows)
