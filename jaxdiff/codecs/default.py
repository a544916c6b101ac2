"""The codec that goes with a source, by the spec of its data."""

from __future__ import annotations

from jaxdiff.codecs.arrays import Arrays
from jaxdiff.codecs.base import Codec
from jaxdiff.codecs.images import Images
from jaxdiff.codecs.points import Points
from jaxdiff.data.sources import DataError, Source, name_of


def default_codec(source: Source, *, flip: bool = False, low_resolution: int | None = None) -> Codec:
    """`Images` for uint8 images, `Points` for the sets ``points:NAME``, `Arrays.fitted` for other floats.

    Args:
      source: its spec, and for `Arrays.fitted` some of its records, are looked at.
      flip: of `Images`.
      low_resolution: of `Images`.

    Raises:
      DataError: data that none of them is for.

    >>> from jaxdiff.data import open_digits
    >>> default_codec(open_digits())
    Images(shape=(8, 8, 1), flip=False, low_resolution=None, augment=0.0, blur=None, shrinks=False)
    """
    spec, name = source.spec["x"], name_of(source)
    if None in spec.shape:
        raise DataError(f"{name}: x varies in length ({spec.shape}); give a codec that says what a network sees")
    shape = tuple(int(size or 0) for size in spec.shape)
    if spec.dtype == "uint8" and len(shape) == 3:
        return Images((shape[0], shape[1], shape[2]), flip, low_resolution)
    if flip:
        raise DataError(f"{name}: flip mirrors images, and records have shape {shape}; set data.flip to False")
    if low_resolution is not None:
        raise DataError(f"{name}: low_resolution is of images, and records have shape {shape}; leave it out")
    if not spec.dtype.startswith(("float", "bfloat")):
        raise DataError(
            f"{name}: x is {spec.dtype} {shape}, which no codec is for: give uint8 images (H, W, C), floats of any "
            "shape, or a codec of your own"
        )
    return Points(shape) if shape == (2,) and name.startswith("points:") else Arrays.fitted(source)
