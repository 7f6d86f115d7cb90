"""What data sets look like to the rest of the package: rows by number."""

from typing import Any, Protocol

import numpy as np

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

    @property
    def contents(self) -> list[str]:
        """What tells this data from other data, the same wherever it lies."""
        ...

    def mask(self, index: int, /) -> np.ndarray:
        """The `annotation` of a row alone."""
        ...
