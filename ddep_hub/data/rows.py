"""What data sets look like to the rest of the package: rows by number."""

from typing import Any, Protocol

import numpy as np
from PIL import Image

from .classes import ClassTable
from .decoding import BadFileError


Row = dict[str, Any]


def labelled_row(image: Image.Image, mask: np.ndarray, path: str, mask_path: str) -> Row:
    """A row of image and mask.

    Args:
        image: RGB image.
        mask: Class ids (H, W).
        path: What messages call the image.
        mask_path: What messages call the mask.

    Raises:
        BadFileError: They are not of one size.
    """
    height, width = mask.shape
    if image.size != (width, height):
        raise BadFileError(
            f"{mask_path} is {width}x{height} pixels, but its image {path} is {image.width}x{image.height} (EXIF "
            "orientation applied); make the mask from that image, or resize the mask with nearest neighbour",
            mask_path,
        )
    return {"image": image, "annotation": mask, "path": path, "annotation_path": mask_path}


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
