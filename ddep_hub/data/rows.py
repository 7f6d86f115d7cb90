"""What data sets look like to the rest of the package: rows by number."""

from typing import Any, Protocol

from .classes import ClassTable


Row = dict[str, Any]


class Rows(Protocol):
    """What holds rows: a data set of this package, or any with a length and whole-number indices."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Row: ...


class LabelledRows(Rows, Protocol):
    """Rows with `image`, a PIL RGB image, and `annotation`, an array (H, W) of class ids: `SegmentationFolder`, ...

    Attributes:
        classes: The classes.
        stems: Names of the rows, in order.
    """

    classes: ClassTable
    stems: list[str]
