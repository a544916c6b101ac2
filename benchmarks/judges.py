"""Who judges samples: classifiers that were fitted to real pictures which no model was trained on."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.svm import SVC

from benchmarks.quality_digits import GRID
from jaxdiff.data import open_digits
from jaxdiff.data.two_digits import halves

Pixels = NDArray[np.uint8]


class PairJudge:
    """Reads the two digits of pictures 16x16: an RBF SVC, fitted to the single digits of the test split's pictures.

    C and gamma by 5-fold cross-validation within those.

    Attributes:
      accuracy: on the digits of the training split's pictures, which it has not seen.
    """

    def __init__(self) -> None:
        train, test = halves()
        digits = open_digits(split="all")
        own, others = digits.take(test), digits.take(train)
        folds = StratifiedKFold(5, shuffle=True, random_state=0)
        self._svc = GridSearchCV(SVC(), GRID, cv=folds).fit(_flat(own["x"][..., 0]), own["label"])
        self.accuracy = float(self._svc.score(_flat(others["x"][..., 0]), others["label"]))

    def read(self, pictures: Pixels, above: NDArray[np.bool_]) -> NDArray[np.int64]:
        """The digits ``(N, 2)`` that stand at the places asked for.

        Args:
          pictures: ``(N, 16, 16, 1)``.
          above: ``(N,)``, whether one digit is to stand above the other, or on its left.
        """
        first, second = crops(pictures, above)
        return np.stack([self._svc.predict(_flat(first)), self._svc.predict(_flat(second))], axis=1)


def crops(pictures: Pixels, above: NDArray[np.bool_]) -> tuple[Pixels, Pixels]:
    """What stands at the two places, ``(N, 8, 8)`` each."""
    pictures, where = pictures[..., 0], above[:, None, None]
    first = np.where(where, pictures[:, :8, 4:12], pictures[:, 4:12, :8])
    return first, np.where(where, pictures[:, 8:, 4:12], pictures[:, 4:12, 8:])


def stands_above(pictures: Pixels) -> NDArray[np.bool_]:
    """Whether the ink is that of two digits above each other, ``(N,)``, by where more of it lies."""
    ink = pictures[..., 0].astype(float)
    sides = ink[:, 4:12, :4].sum(axis=(1, 2)) + ink[:, 4:12, 12:].sum(axis=(1, 2))
    return np.asarray(ink[:, :4, 4:12].sum(axis=(1, 2)) + ink[:, 12:, 4:12].sum(axis=(1, 2)) > sides)


def _flat(images: Pixels) -> NDArray[np.float64]:
    return images.reshape(len(images), -1) / 127.5 - 1.0
