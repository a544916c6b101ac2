"""Who judges samples: classifiers that were fitted to real pictures which no model was trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from flax import nnx
from numpy.typing import NDArray
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.neural_network import MLPClassifier
from sklearn.svm import SVC

from benchmarks.quality_digits import GRID
from benchmarks.quality_mnist import classify, fit_or_load, new_classifier
from jaxdiff.codecs import to_model_range
from jaxdiff.data import batches, open_digits, open_mnist
from jaxdiff.data.two_digits import halves

Pixels = NDArray[np.uint8]


class Judge(Protocol):
    """Reads single digits, and has features of them.

    Attributes:
      accuracy: on real digits that it has not seen.
    """

    accuracy: float

    def read(self, pictures: Pixels) -> NDArray[np.int64]:
        """The classes ``(N,)`` of pictures ``(N, H, W, 1)``."""

    def features(self, pictures: Pixels) -> NDArray[np.float64]:
        """What its last layer sees of them ``(N, D)``."""


class DigitsJudge:
    """A perceptron with one hidden layer of 128, fitted to the test split of the digits 8x8. That layer's values are
    the features. Attributes as of `Judge`."""

    def __init__(self) -> None:
        (train, labels), (test, own) = (_pixels(open_digits(split=split)) for split in ("train", "test"))
        self._net = MLPClassifier((128,), alpha=1.0, max_iter=3000, random_state=0).fit(_flat(test), own)
        self.accuracy = float(self._net.score(_flat(train), labels))

    def read(self, pictures: Pixels) -> NDArray[np.int64]:
        read: NDArray[np.int64] = self._net.predict(_flat(pictures))
        return read

    def features(self, pictures: Pixels) -> NDArray[np.float64]:
        return np.maximum(_flat(pictures) @ self._net.coefs_[0] + self._net.intercepts_[0], 0.0)


class MnistJudge:
    """The convolutional network of `benchmarks.quality_mnist`, fitted to the 10,000 digits of MNIST's test split. The
    128 values of its dense layer are the features. Attributes as of `Judge`.

    Args:
      data: folder of MNIST's parquet files.
      cache: folder where its weights are kept.
    """

    def __init__(self, data: Path, cache: Path, epochs: int = 12) -> None:
        test, train = open_mnist(data, split="test"), open_mnist(data, split="train")
        self._weights = fit_or_load(test, cache / "mnist_judge.npz", epochs)
        pictures, labels = _pixels(train)
        self.accuracy = float(np.mean(self.read(pictures) == labels))

    def read(self, pictures: Pixels) -> NDArray[np.int64]:
        return classify(self._weights, np.asarray(to_model_range(pictures)))

    def features(self, pictures: Pixels) -> NDArray[np.float64]:
        structure, _ = new_classifier()

        @jax.jit
        def dense(weights: Any, x: jax.Array) -> jax.Array:
            net = nnx.merge(structure, weights)
            x = nnx.relu(net.conv2(nnx.relu(net.conv1(x))))
            return nnx.relu(net.dense(x.reshape(x.shape[0], -1)))

        parts = (pictures[i : i + 500] for i in range(0, len(pictures), 500))
        return np.concatenate([np.asarray(dense(self._weights, to_model_range(part)), np.float64) for part in parts])


def _pixels(source: Any) -> tuple[Pixels, NDArray[np.int32]]:
    batch = next(batches(source, len(source)))
    return batch["x"], batch["label"]


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
