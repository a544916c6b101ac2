"""Images from disk to batches: sources (random access, uint8), their checks, and an exact, resumable pipeline. Points
of the plane too.

A source is opened by one function a kind of storage; all take the same options. `Pipeline` turns any source into the
endless stream that training reads, `batches` into one pass in order. `decode_once` keeps the pixels of a small set, so
that images are decoded in the first epoch only.
"""

from typing import TYPE_CHECKING

from jaxdiff.data.sources import DataError, Record, Source, verify
from jaxdiff.lazy import lazily

if TYPE_CHECKING:
    from jaxdiff.data.arrays import from_arrays, open_digits, open_npz
    from jaxdiff.data.decoded import decode_once
    from jaxdiff.data.files import open_folder
    from jaxdiff.data.parquet import open_cifar10, open_mnist, open_parquet
    from jaxdiff.data.pipeline import Pipeline, batches
    from jaxdiff.data.points import POINTS, PointMixture, PointSource, open_points, point_mixture
    from jaxdiff.data.skipping import without_bad
    from jaxdiff.data.tfds import open_tfds
    from jaxdiff.data.transforms import center_crop_resize, horizontal_flip, to_model_range

__getattr__ = lazily(
    __name__,
    {
        **dict.fromkeys(("from_arrays", "open_digits", "open_npz"), "arrays"),
        "decode_once": "decoded",
        "open_folder": "files",
        **dict.fromkeys(("open_cifar10", "open_mnist", "open_parquet"), "parquet"),
        **dict.fromkeys(("Pipeline", "batches"), "pipeline"),
        **dict.fromkeys(("POINTS", "PointMixture", "PointSource", "open_points", "point_mixture"), "points"),
        "without_bad": "skipping",
        "open_tfds": "tfds",
        **dict.fromkeys(("center_crop_resize", "horizontal_flip", "to_model_range"), "transforms"),
    },
)

__all__ = [
    "POINTS",
    "DataError",
    "Pipeline",
    "PointMixture",
    "PointSource",
    "Record",
    "Source",
    "batches",
    "center_crop_resize",
    "decode_once",
    "from_arrays",
    "horizontal_flip",
    "open_cifar10",
    "open_digits",
    "open_folder",
    "open_mnist",
    "open_npz",
    "open_parquet",
    "open_points",
    "open_tfds",
    "point_mixture",
    "to_model_range",
    "verify",
    "without_bad",
]
