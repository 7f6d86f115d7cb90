"""A folder for each image, with one mask file per object, as in the Data Science Bowl 2018."""

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from ddep_hub.data.classes import ClassTable
from ddep_hub.data.folders import canonical_split, subfolders
from ddep_hub.data.image_io import IMAGE_EXTENSIONS, BadFileError, iter_files
from ddep_hub.utils.files import SYSTEM_FILES, format_list

from .image_files import count_pages, image_size, read_image_file
from .mask_values import MaskReader
from .source import Example, Source, object_classes, pluralize


def read_object_folders(root: Path, table: ClassTable | None) -> Source | None:
    """One mask file per object, as in the Data Science Bowl 2018: their union is the class; `None` without any.

    Raises a ValueError if a folder holds several images, or other files in place of masks.
    """
    folders = _object_folders(root)
    if not folders:
        return None
    parents = {folder.parent for folder in folders}
    examples, notes, num_empty, without_image = [], list[str](), 0, list[str]()
    for folder, images in folders.items():
        if len(images) > 1:
            raise ValueError(f"{folder / 'images'} holds {len(images)} images, {images[0].name} among them. Keep one.")
        if not images:
            without_image.append(folder.name)
            continue
        masks = _list_mask_images(folder / "masks")
        files = sorted(iter_files(folder / "masks"))
        other_files = [path.name for path in map(Path, files) if path.name not in SYSTEM_FILES]
        if other_files and not masks:
            raise ValueError(f"{folder / 'masks'} holds {format_list(other_files, 1)}: save the masks as PNG.")
        num_empty += not masks
        split = folder.parent.name if len(parents) > 1 else None
        examples.append(Example(folder.name, images[0], partial(_merge_object_masks, images[0], masks), split))
    if num_empty:
        notes.append(f"{pluralize(num_empty, 'image')} without an object")
    if without_image:
        notes.append(
            f"{pluralize(len(without_image), 'folder')} with masks but no image, such as {without_image[0]}: skipped"
        )
    classes = table or object_classes(["object"])
    if classes.num_classes != 2:
        raise ValueError(f"Object masks have two classes, background and object, not {classes.num_classes}.")
    return Source("one mask for each object", classes.without_mask_values(), examples, notes, has_values=True)


def _object_folders(root: Path) -> dict[Path, list[Path]]:
    """Folders of one image with the masks of its objects, and their images, at most two levels down.

    These are `<id>/images/*` and `<id>/masks/*`; none if most of such folders hold several images.
    """
    folders: dict[Path, list[Path]] = {}
    for parent in (root, *(root / name for name in subfolders(root))):
        for name in subfolders(parent):
            folder = parent / name
            if {"images", "masks"} <= set(subfolders(folder)) and not canonical_split(name):
                folders[folder] = _list_mask_images(folder / "images")
    num_single = sum(len(images) == 1 for images in folders.values())
    return folders if 2 * num_single > len(folders) else {}


def _list_mask_images(folder: Path) -> list[Path]:
    return sorted(folder / name for name in iter_files(folder, IMAGE_EXTENSIONS))


def _merge_object_masks(image: Path, masks: Sequence[Path]) -> np.ndarray:
    union: np.ndarray | None = None
    for path in masks:
        count = count_pages(path)
        for page in range(count):
            pixels = _object_pixels(path, page if count > 1 else None)
            union = pixels if union is None else union
            if pixels.shape != union.shape:
                raise BadFileError(f"{path} differs in size from other masks of its image {image}", str(path))
            union = union | pixels
    if union is None:
        union = np.zeros(image_size(read_image_file(image), None), bool)
    return union.astype(np.uint8)


def _object_pixels(path: Path, page: int | None) -> np.ndarray:
    """Where a mask of one object is not black, or its alpha channel shows it: bool (H, W)."""
    reader = MaskReader(as_colors=True, palettes_as_colors=True)
    values = reader.read(path, page)
    if not values.any():
        alpha = dataclasses.replace(reader, in_alpha=True).read(path, page)
        values = values if alpha.all() else alpha
    return np.asarray(values.any(axis=-1) if values.ndim == 3 else values != 0)
