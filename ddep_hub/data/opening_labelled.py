"""From what a user types to labelled images."""

from collections.abc import Iterable
from pathlib import Path

from .classes import read_class_table
from .hub_datasets import HubSegmentation
from .image_sources import HUB_PREFIX, holds_dataset, parse_hub_name
from .loading import SegmentationFolder
from .rows import LabelledRows


def open_labelled(
    name: str | Path,
    split: str,
    *,
    classes: str | Path | None = None,
    image_column: str = "image",
    mask_column: str = "annotation",
    stems: Iterable[str] | None = None,
) -> LabelledRows:
    """Opens a split of a folder, of a data set of the Hub, or of one that `datasets` wrote.

    Args:
        name: A folder in one of `SegmentationFolder`'s layouts, `hf://datasets/org/name[@revision]`, or a local folder
            of parquet or arrow files.
        split: The split.
        classes: `classes.json` of a data set that does not name its classes; folders bring their own.
        image_column: Column of the images in a data set.
        mask_column: Column of the masks in a data set.
        stems: The examples to use, in this order; all by default.

    Returns:
        The rows.

    Raises:
        FileNotFoundError: A folder or file is missing.
        ValueError: There is no such split, column or example.
    """
    name = str(name)
    on_hub = name.startswith(HUB_PREFIX)
    if not on_hub and not holds_dataset(name):
        return SegmentationFolder(name, split, stems=stems)
    repository, revision = parse_hub_name(name)[:2] if on_hub else (name, None)
    return HubSegmentation(
        repository,
        split,
        read_class_table(classes) if classes else None,
        image_column=image_column,
        mask_column=mask_column,
        revision=revision,
        stems=stems,
    )
