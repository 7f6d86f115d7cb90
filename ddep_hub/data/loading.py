"""Folders of images, with and without masks, as data sets of rows."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from .classes import ClassTable
from .decoding import decode_image, decode_mask
from .image_files import PackedNames, first_few, images_below
from .layouts import find_layout, layout_splits, split_files
from .rows import labelled_row


class ImageFolder(Dataset[dict[str, Any]]):
    """All images below a folder, sorted by relative path; hidden files and folders are left out.

    A row is `{"image": PIL RGB, "path": str}`, or `{"image": {"path": str, "bytes": None}, "path": str}` undecoded.

    Args:
        root: The folder; it is searched with its subfolders.
        decode: Whether to decode the images here; `PretrainTransform` decodes less of them.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: It holds no image.
    """

    def __init__(self, root: str | Path, *, decode: bool = True) -> None:
        self.root = Path(root)
        self.decode = decode
        self.names = PackedNames(images_below(self.root))

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> dict[str, Any]:
        path = self.root / self.names[index]
        image = decode_image(path) if self.decode else {"path": str(path), "bytes": None}
        return {"image": image, "path": str(path)}


class SegmentationFolder(Dataset[dict[str, Any]]):
    """Images with masks of class ids, in the official layout of a known data set (`layouts.py` lists them) or in

    ```
    root/classes.json
    root/images/<split>/<stem>.jpg          any of IMAGE_EXTENSIONS, subfolders allowed
    root/annotations/<split>/<stem>.png     value = class id, or ignore_index
    ```

    The masks of a known data set are read as they were published; their values become class ids of the catalog.

    A row is `{"image": PIL RGB, "annotation": array (H, W) of uint8 ids, "path": str, "annotation_path": str}`; the
    ids are int32 where they do not fit. Reading a row raises `BadFileError` for a file that cannot be used.

    Args:
        root: The data set's folder.
        split: A folder of `root/images`, such as `train`; `train`, `val`, `test` or another of `available_splits` in
            an official layout.
        layout: One of `layouts.LAYOUTS`; found from what lies in the folder by default.
        stems: The examples to use, in this order, as paths relative to `root/images/<split>` without suffix, or as
            `read_split_file` gives them for published lists. All of the split by default, sorted or in the order of
            the official list.

    Attributes:
        classes: The classes of `classes.json` or of the catalog.
        layout: The layout in use.
        stems: The examples in use, in order.
        images: The paths of their images.

    Raises:
        FileNotFoundError: A folder, an official list or `classes.json` is missing, or an image has no mask.
        ValueError: The layout is not known or not clear, the split is empty, two images share a stem, or `stems` names
            an example that is not there.
    """

    def __init__(
        self, root: str | Path, split: str, *, layout: str | None = None, stems: Iterable[str] | None = None
    ) -> None:
        self.root = Path(root)
        self.layout = find_layout(self.root) if layout is None else layout
        files = split_files(self.root, split, self.layout)
        images = files.images
        self.classes: ClassTable = files.classes
        self._mapping = files.mapping
        self.stems: list[str] = list(images) if stems is None else list(stems)
        unknown = [stem for stem in self.stems if stem not in images]
        if unknown:
            raise ValueError(
                f"{len(unknown)} of {len(self.stems)} stems are not in {files.image_folder}: {first_few(unknown)}; "
                f"a stem is a path relative to that folder without suffix, such as {next(iter(images))!r}"
            )
        self.images = [images[stem] for stem in self.stems]
        self._masks = [files.masks[stem] for stem in self.stems]
        missing = [mask.relative_to(files.mask_folder).as_posix() for mask in self._masks if not mask.is_file()]
        if missing:
            raise FileNotFoundError(
                f"{len(missing)} of {len(self.stems)} images of {files.image_folder} have no mask in "
                f"{files.mask_folder}: {first_few(missing)}; add the masks, or leave these images out"
            )

    @property
    def contents(self) -> list[str]:
        """What tells this data from other data, the same wherever it lies: names, and sizes of the files."""
        files = zip(self.stems, self.images, self._masks, strict=True)
        return [f"{stem} {image.stat().st_size} {mask.stat().st_size}" for stem, image, mask in files]

    def __len__(self) -> int:
        return len(self.stems)

    def mask(self, index: int) -> np.ndarray:
        """The `annotation` of a row alone."""
        return decode_mask(
            self._masks[index],
            num_classes=self.classes.num_classes,
            ignore_index=self.classes.ignore_index,
            mapping=self._mapping,
        )

    def __getitem__(self, index: int) -> dict[str, Any]:
        path, mask_path = self.images[index], self._masks[index]
        image, mask = decode_image(path), self.mask(index)
        return labelled_row(image, mask, str(path), str(mask_path))


def available_splits(root: str | Path, layout: str | None = None) -> list[str]:
    """The splits of a data set in one of `SegmentationFolder`'s layouts.

    Args:
        root: The data set's folder.
        layout: One of `layouts.LAYOUTS`; found from what lies in the folder by default.

    Returns:
        The names of the folders in `root/images`, or those of `train`, `val`, `test`, `trainval` and `train_aug` that
        an official layout has; sorted.

    Raises:
        FileNotFoundError: `root/images` is not a folder, and nothing else there is a known layout.
        ValueError: The layout is not known or not clear.
    """
    return layout_splits(root, find_layout(root) if layout is None else layout)
