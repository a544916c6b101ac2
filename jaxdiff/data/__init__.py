"""Data from disk to batches: sources of records as they are stored, their checks, and an exact, resumable pipeline.

A source is opened by one function a kind of storage; all take the same options. `Pipeline` turns any source into the
endless stream that training reads, `batches` into one pass in order. `decode_once` keeps the pixels of a small set, so
that images are decoded in the first epoch only. What a network sees is made of the records by `jaxdiff.codecs`.
"""

from typing import TYPE_CHECKING

from jaxdiff.data.sources import DataError, Source, captions, fingerprint, num_classes, take
from jaxdiff.data.subset import Subset
from jaxdiff.lazy import lazily

if TYPE_CHECKING:
    from jaxdiff.data.arrays import ArraySource, from_arrays, open_digits, open_npz
    from jaxdiff.data.buckets import bucket_sizes, in_buckets
    from jaxdiff.data.decoded import decode_once
    from jaxdiff.data.files import open_folder
    from jaxdiff.data.mnist_maps import MnistMaps, open_mnist_maps
    from jaxdiff.data.parquet import open_cifar10, open_mnist, open_parquet
    from jaxdiff.data.pipeline import Pipeline, batches
    from jaxdiff.data.points import POINTS, PointMixture, open_points, point_mixture
    from jaxdiff.data.skipping import verify, without_bad
    from jaxdiff.data.tfds import open_tfds
    from jaxdiff.data.tokenizers import Characters, Tokenizer, TokenizerFile, Words
    from jaxdiff.data.transforms import center_crop_nearest, center_crop_resize
    from jaxdiff.data.two_digits import TwoDigits, open_two_digits
    from jaxdiff.data.webdataset import open_webdataset

__getattr__ = lazily(
    __name__,
    {
        **dict.fromkeys(("ArraySource", "from_arrays", "open_digits", "open_npz"), "arrays"),
        **dict.fromkeys(("bucket_sizes", "in_buckets"), "buckets"),
        "decode_once": "decoded",
        "open_folder": "files",
        **dict.fromkeys(("MnistMaps", "open_mnist_maps"), "mnist_maps"),
        **dict.fromkeys(("open_cifar10", "open_mnist", "open_parquet"), "parquet"),
        **dict.fromkeys(("Pipeline", "batches"), "pipeline"),
        **dict.fromkeys(("POINTS", "PointMixture", "open_points", "point_mixture"), "points"),
        **dict.fromkeys(("verify", "without_bad"), "skipping"),
        "open_tfds": "tfds",
        **dict.fromkeys(("Characters", "Tokenizer", "TokenizerFile", "Words"), "tokenizers"),
        **dict.fromkeys(("center_crop_nearest", "center_crop_resize"), "transforms"),
        "open_webdataset": "webdataset",
        **dict.fromkeys(("TwoDigits", "open_two_digits"), "two_digits"),
    },
)

__all__ = [
    "POINTS",
    "ArraySource",
    "Characters",
    "DataError",
    "MnistMaps",
    "Pipeline",
    "PointMixture",
    "Source",
    "Subset",
    "Tokenizer",
    "TokenizerFile",
    "TwoDigits",
    "Words",
    "batches",
    "bucket_sizes",
    "captions",
    "center_crop_nearest",
    "center_crop_resize",
    "decode_once",
    "fingerprint",
    "from_arrays",
    "in_buckets",
    "num_classes",
    "open_cifar10",
    "open_digits",
    "open_folder",
    "open_mnist",
    "open_mnist_maps",
    "open_npz",
    "open_parquet",
    "open_points",
    "open_tfds",
    "open_two_digits",
    "open_webdataset",
    "point_mixture",
    "take",
    "verify",
    "without_bad",
]
