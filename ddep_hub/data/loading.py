"""Folders of images, with and without masks, as data sets of rows."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from .classes import ClassTable, read_class_table
from .decoding import BadFileError, decode_image, decode_mask


IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


class ImageFolder(Dataset[dict[str, Any]]):
    """All images below a folder, sorted by relative path; hidden files and folders are left out.

    A row is `{"image": PIL RGB, "path": str}`.

    Args:
        root: The folder; it is searched with its subfolders.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: It holds no image.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self.paths = [self.root / name for name in _images_below(self.root)]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        path = self.paths[index]
        return {"image": decode_image(path), "path": str(path)}


class SegmentationFolder(Dataset[dict[str, Any]]):
    """Images with masks of class ids, in the layout

    ```
    root/classes.json
    root/images/<split>/<stem>.jpg          any of IMAGE_EXTENSIONS, subfolders allowed
    root/annotations/<split>/<stem>.png     value = class id, or ignore_index
    ```

    A row is `{"image": PIL RGB, "annotation": array (H, W) of uint8 ids, "path": str, "annotation_path": str}`; the
    ids are int32 where they do not fit. Reading a row raises `BadFileError` for a file that cannot be used.

    Args:
        root: The data set's folder.
        split: A folder of `root/images`, such as `train`.
        stems: The examples to use, in this order, as paths relative to `root/images/<split>` without suffix. All of
            the split, sorted, by default.

    Attributes:
        classes: The classes of `classes.json`.
        stems: The examples in use, in order.

    Raises:
        FileNotFoundError: A folder or `classes.json` is missing, or an image has no mask.
        ValueError: The split is empty, two images share a stem, or `stems` names an example that is not there.
    """

    def __init__(self, root: str | Path, split: str, *, stems: Iterable[str] | None = None) -> None:
        self.root = Path(root)
        splits = available_splits(self.root)
        if split not in splits:
            raise FileNotFoundError(f"{self.root / 'images'} has no split {split!r}; it has {splits}")
        image_folder = self.root / "images" / split
        mask_folder = self.root / "annotations" / split
        self.classes: ClassTable = read_class_table(self.root / "classes.json")
        images: dict[str, Path] = {}
        for name in _images_below(image_folder):
            stem = Path(name).with_suffix("").as_posix()
            if stem in images:
                raise ValueError(f"{image_folder} holds both {images[stem].name} and {name}; keep one image per stem")
            images[stem] = image_folder / name
        self.stems: list[str] = list(images) if stems is None else list(stems)
        unknown = [stem for stem in self.stems if stem not in images]
        if unknown:
            raise ValueError(
                f"{len(unknown)} of {len(self.stems)} stems are not in {image_folder}: {_first_few(unknown)}; "
                f"a stem is a path relative to that folder without suffix, such as {next(iter(images))!r}"
            )
        self._images = [images[stem] for stem in self.stems]
        self._masks = [mask_folder / f"{stem}.png" for stem in self.stems]
        missing = [stem for stem, mask in zip(self.stems, self._masks, strict=True) if not mask.is_file()]
        if missing:
            raise FileNotFoundError(
                f"{len(missing)} of {len(self.stems)} images of {image_folder} have no mask in {mask_folder}: "
                f"{_first_few([f'{stem}.png' for stem in missing])}; add the masks, or leave these images out"
            )

    def __len__(self) -> int:
        return len(self.stems)

    def __getitem__(self, index: int) -> dict[str, Any]:
        path, mask_path = self._images[index], self._masks[index]
        image = decode_image(path)
        mask = decode_mask(mask_path, num_classes=self.classes.num_classes, ignore_index=self.classes.ignore_index)
        height, width = mask.shape
        if image.size != (width, height):
            raise BadFileError(
                f"{mask_path} is {width}x{height} pixels, but its image {path} is {image.width}x{image.height} (EXIF "
                "orientation applied); make the mask from that image, or resize the mask with nearest neighbour",
                mask_path,
            )
        return {"image": image, "annotation": mask, "path": str(path), "annotation_path": str(mask_path)}


def available_splits(root: str | Path) -> list[str]:
    """The splits of a data set in `SegmentationFolder`'s layout.

    Args:
        root: The data set's folder.

    Returns:
        The names of the folders in `root/images`, sorted.

    Raises:
        FileNotFoundError: `root/images` is not a folder.
    """
    folder = Path(root) / "images"
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder; a data set has images/<split>/ and annotations/<split>/")
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _images_below(root: Path) -> list[str]:
    """Paths relative to `root`, with forward slashes, sorted. Links to folders are followed, each folder once."""
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is not a folder; give the folder that holds the images")
    found = []
    seen = set()
    for folder, subfolders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        relative = Path(folder).relative_to(root)
        for name in files:
            if not name.startswith(".") and name.lower().endswith(IMAGE_EXTENSIONS):
                found.append((relative / name).as_posix())
    if not found:
        raise ValueError(f"{root} holds no image ({', '.join(IMAGE_EXTENSIONS)}); check the path")
    return sorted(found)


def _first_few(names: Sequence[str], limit: int = 5) -> str:
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")
