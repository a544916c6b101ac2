"""The tiny run on digits of which some are NaN: `--data.path FILE` is a JSON list of their numbers."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from jaxdiff.config.build import SOURCES
from jaxdiff.data import Record, Source, open_digits
from tests.faults.tiny import config as tiny


class Poisoned:
    """A source with NaN in place of some images; its other images are digits, float32 in [-1, 1]."""

    def __init__(self, digits: Source, bad: set[int]) -> None:
        self.name, self.image_shape, self.num_classes = "poisoned", digits.image_shape, digits.num_classes
        self.fingerprint = f"poisoned {digits.fingerprint}"
        self._digits, self._bad = digits, bad

    def __len__(self) -> int:
        return len(self._digits)

    def __getitem__(self, index: int, /) -> Record:
        record = self._digits[index]
        image = record["image"].astype(np.float32) / 127.5 - 1
        return {**record, "image": np.full_like(image, np.nan) if index in self._bad else image}


def _open(path: str, **options: Any) -> Source:
    return Poisoned(open_digits(**options), set(json.loads(Path(path).read_text(encoding="utf-8"))))


SOURCES["poisoned"] = _open
config = dataclasses.replace(tiny, name="poisoned", data=dataclasses.replace(tiny.data, name="poisoned"))
