"""Samples from a picture that is given: another one like it (`sdedit`), or its missing part (`replacement`). Pictures
larger than a network knows (`tiles`)."""

from jaxdiff.inverse.replacement import Known, KnownPart
from jaxdiff.inverse.sdedit import noised, remaining
from jaxdiff.inverse.tiles import Region, Tiles, hann

__all__ = ["Known", "KnownPart", "Region", "Tiles", "hann", "noised", "remaining"]
