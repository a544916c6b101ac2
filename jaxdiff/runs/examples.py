"""What a run keeps of some training records, for its pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jaxdiff.config import ConfigError
from jaxdiff.config.folder import EXAMPLES


def read_examples(folder: Path) -> dict[str, NDArray[Any]] | None:
    """Conditions, or whole records, that a run keeps, by name; None where it keeps none.

    Raises:
      ConfigError: they cannot be read.
    """
    file = folder / EXAMPLES
    if not file.exists():
        return None
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from error
