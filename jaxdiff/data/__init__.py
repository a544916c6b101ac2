"""Images from disk to batches: sources (random access, uint8), their checks, and an exact, resumable pipeline. Points
of the plane too.

A source is opened by one function a kind of storage; all take the same options. `Pipeline` turns any source into the
endless stream that training reads, `batches` into one pass in order.
"""

from jaxdiff.data.arrays import from_arrays, open_digits, open_npz
from jaxdiff.data.files import open_folder
from jaxdiff.data.parquet import open_cifar10, open_mnist, open_parquet
from jaxdiff.data.pipeline import Pipeline, batches
from jaxdiff.data.points import POINTS, PointMixture, PointSource, open_points, point_mixture
from jaxdiff.data.sources import DataError, Record, Source, verify
from jaxdiff.data.tfds import open_tfds
from jaxdiff.data.transforms import center_crop_resize, horizontal_flip, to_model_range

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
]
