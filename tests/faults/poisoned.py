"""The tiny run on digits of which some are NaN: `--data.path FILE` is a JSON list of their numbers."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from jaxdiff.codecs import Arrays
from jaxdiff.config.build import SOURCES
from jaxdiff.data import Source, open_digits
from jaxdiff.spec import Spec
from tests.faults.tiny import config as tiny


class Poisoned:
    """A source with NaN in place of some images; its other images are digits, float32 in [-1, 1]."""

    def __init__(self, digits: Source, bad: set[int]) -> None:
        self.name, self.fingerprint = "poisoned", "poisoned digits"
        self.spec = {**digits.spec, "x": Spec(digits.spec["x"].shape, "float32")}
        self._digits, self._bad = digits, bad

    def __len__(self) -> int:
        return len(self._digits)

    def take(self, indices: np.ndarray, /) -> dict[str, np.ndarray]:
        records = self._digits.take(indices)
        x = records["x"].astype(np.float32) / 127.5 - 1
        x[np.isin(indices, [*self._bad])] = np.nan
        return {**records, "x": x}


def _open(path: str, **options: Any) -> Source:
    return Poisoned(open_digits(**options), set(json.loads(Path(path).read_text(encoding="utf-8"))))


SOURCES["poisoned"] = _open
config = dataclasses.replace(
    tiny,
    name="poisoned",
    data=dataclasses.replace(tiny.data, name="poisoned", flip=False),
    codec=Arrays((8, 8, 1)),  # one that is fitted refuses the NaN
)
