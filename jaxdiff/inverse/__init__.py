"""Samples from a picture: another like it (`sdedit`), its missing part (`replacement`), an edit (`editing`)."""

from jaxdiff.inverse.editing import edit, interpolate, slerp, variations
from jaxdiff.inverse.inverted import Inverted
from jaxdiff.inverse.replacement import Known, KnownPart
from jaxdiff.inverse.sdedit import noised, remaining

__all__ = ["Inverted", "Known", "KnownPart", "edit", "interpolate", "noised", "remaining", "slerp", "variations"]
