"""What whoever opens a source of images needs of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jaxdiff.data.maps import MAP
from jaxdiff.data.sources import DataError
from jaxdiff.spec import whole


@dataclass(frozen=True)
class Expected:
    """What the caller needs of a source; None leaves it to the data.

    Attributes:
        image_size: side of the square images, pixels.
        channels: of an image.
        num_classes: labels must lie in [0, num_classes).
        resize: bring images of another size to image_size by `center_crop_resize`, instead of refusing them.
        skip_bad: take what most records are for what they should be, and let `without_bad` find the others.
        conditions: names of the conditions to read; None: all there are.
        text: name of what holds the captions; None: text, or else caption.
    """

    image_size: int | None = None
    channels: int | None = None
    num_classes: int | None = None
    resize: bool = False
    skip_bad: bool = False
    conditions: Sequence[str] | None = None
    text: str | None = None

    def __post_init__(self) -> None:
        for option in ("image_size", "channels", "num_classes"):
            value = getattr(self, option)
            if value is not None:
                try:
                    whole(option, value)
                except ValueError as error:
                    raise DataError(str(error)) from error
        if self.resize and self.image_size is None:
            raise DataError("resize needs image_size: the side to bring the images to")

    @property
    def labelled(self) -> bool:
        """Whether labels are read, where there are any."""
        return self.conditions is None or "label" in self.conditions

    @property
    def mapped(self) -> bool:
        """Whether maps are read, where there are any."""
        return self.conditions is None or MAP in self.conditions

    @property
    def captions(self) -> tuple[str, ...]:
        """The names that captions may have, the first that is there counts; none where they are not read."""
        if self.conditions is not None and "text" not in self.conditions:
            return ()
        return ("text", "caption") if self.text is None else (self.text,)

    def listed(self, first: str, label: str = "label") -> str:
        """What is expected, for messages.

        Args:
          first: what the images are.
          label: what the labels are.

        >>> Expected(conditions=["text"]).listed("a column image"), Expected(conditions=[]).listed("a column image")
        ('a column image and text', 'a column image')
        """
        others = [label] * self.labelled + list(self.captions[:1])
        return ", ".join([first, *others[:-1]]) + "".join(f" and {name}" for name in others[-1:])

    def caption_name(self, names: Sequence[str], where: str, what: str) -> str | None:
        """Which of some names is that of the captions; None: none is, and none was asked for.

        Args:
          names: of what the storage holds.
          where: the file, for messages.
          what: is named: a column, a field, ...

        Raises:
          DataError: it was asked for by its name.
        """
        found = next((name for name in self.captions if name in names), None)
        if found is None and self.captions and self.text is not None:
            raise DataError(
                f"{where}: no {what} {self.text}; it has {', '.join(names) or 'none'}; set text (data.text) to the one "
                "of the captions"
            )
        return found


ANYTHING = Expected()
