"""Samples from a picture that is given: another one like it (`sdedit`), or its missing part (`replacement`)."""

from jaxdiff.inverse.replacement import Known, KnownPart
from jaxdiff.inverse.sdedit import noised, remaining

__all__ = ["Known", "KnownPart", "noised", "remaining"]
