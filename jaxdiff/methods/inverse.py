"""Names of operators and of methods of reconstruction: `jaxdiff.inverse`.

    blur:3    box:4    bicubic:4    grey    mask:0.4,seed=0    box_mask:2,2,4,4    sensing:0.25    phase:2    jpeg:10
    pigdm    dps:1.0    ddnm    ddrm:eta=0.85,eta_b=1

A row of `OPERATORS` takes the shape of the data, then its numbers.
"""

from __future__ import annotations

from collections.abc import Callable

from jaxdiff.inverse import (
    DAPS,
    DDNM,
    DDRM,
    DPS,
    ILVR,
    MCG,
    PSLD,
    TDS,
    DDNMPlus,
    DiffPIR,
    Method,
    PiGDM,
    ReconstructionGuidance,
    RePaint,
)
from jaxdiff.inverse.operators import (
    Box,
    Operator,
    PhaseRetrieval,
    bicubic,
    box_mask,
    gaussian_blur,
    jpeg,
    luma,
    mean_of_channels,
    random_mask,
    sensing,
)
from jaxdiff.methods.parser import made


def _box(shape: tuple[int, ...], factor: int = 4) -> Operator:
    """The mean of each square of pixels, by a factor smaller."""
    return Box(shape, factor)


def _phase(shape: tuple[int, ...], factor: float = 2.0) -> Operator:
    """The sizes of the Fourier coefficients, of the image with zeros around it."""
    return PhaseRetrieval(shape, factor)


OPERATORS: dict[str, Callable[..., Operator]] = {
    "mask": random_mask,
    "box_mask": box_mask,
    "box": _box,
    "bicubic": bicubic,
    "blur": gaussian_blur,
    "grey": luma,
    "colourise": mean_of_channels,
    "sensing": sensing,
    "phase": _phase,
    "jpeg": jpeg,
}
"""Operators: rows take the shape of the data, then their numbers."""

METHODS: dict[str, Callable[..., Method]] = {
    "ddnm": DDNM,
    "ddnm_plus": DDNMPlus,
    "ddrm": DDRM,
    "pigdm": PiGDM,
    "dps": DPS,
    "mcg": MCG,
    "reconstruction_guidance": ReconstructionGuidance,
    "repaint": RePaint,
    "ilvr": ILVR,
    "diffpir": DiffPIR,
    "daps": DAPS,
    "psld": PSLD,
    "tds": TDS,
}
"""Methods of reconstruction."""


def parse_operator(text: str | Operator, shape: tuple[int, ...]) -> Operator:
    """An operator on data of a shape by its name and numbers.

    Args:
      text: such as ``"blur:3"``, or an operator, which is returned.
      shape: of one x0.

    Raises:
      ValueError: an unknown name or number, one out of its range, or an operator of another shape.

    >>> parse_operator("box:2", (4, 4, 1))
    Box(shape=(4, 4, 1), factor=2)
    >>> parse_operator("boxx:2", (4, 4, 1))
    Traceback (most recent call last):
    ...
    ValueError: there is no operator 'boxx'; did you mean 'box'? (known: mask, ...)
    """
    if isinstance(text, str):
        return made(OPERATORS, text, "operator", shape=tuple(shape))
    if not isinstance(text, Operator):
        raise ValueError(f"an operator is a name with its numbers, such as 'blur:3', or an object, got {text!r}")
    if tuple(text.shape) != tuple(shape):
        raise ValueError(f"the operator is of data {tuple(text.shape)}, and the model's is {tuple(shape)}")
    return text


def parse_method(text: str | Method) -> Method:
    """A method of reconstruction by its name and numbers.

    Args:
      text: such as ``"dps:0.5"``, or a method, which is returned.

    Raises:
      ValueError: an unknown name or number, or one out of its range.

    >>> parse_method("dps:0.5")
    DPS(scale=0.5)
    """
    if isinstance(text, str):
        return made(METHODS, text, "method of reconstruction")
    if not isinstance(text, Method):
        raise ValueError(f"a method is a name with its numbers, such as 'pigdm', or an object, got {text!r}")
    return text
