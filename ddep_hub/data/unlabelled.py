"""Selects the images of a folder to use without labels, except for masks and files written by this package."""

import logging
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from ddep_hub.utils.files import format_list

from .folders import is_in_mask_folder, unpacked_root
from .generated_files import exclude_generated
from .image_io import list_images
from .layouts import find_layout, find_splits
from .name_matching import separate_masks
from .pairing import PAIRS, read_pairs


logger = logging.getLogger(__name__)

UNLABELLED = ("unlabelled/", "unlabeled/")


def unlabelled_images(root: Path) -> list[str]:
    """The images below a folder, as returned by [`list_images`], without masks; a warning names the skipped files.

    In labelled data with a layout that fine-tuning recognises, these are the images and those in its folder
    `unlabelled`. Elsewhere, subfolders named like masks are skipped. Masks beside their images, such as `a_mask.png`,
    and files written by commands of this package are always skipped. Raises a FileNotFoundError if there is no such
    folder, and a ValueError if no image is left.
    """
    kept = exclude_generated(root, list_images(root))
    image_names = _dataset_images(root, kept)
    if image_names is not None:
        logger.warning(
            "%s is labelled data: using its %d images, but not its masks or other files", root, len(image_names)
        )
        kept = image_names
    else:
        masks = [name for name in kept if is_in_mask_folder(name)]
        if masks:
            _warn(root, masks, "are in folders named like masks; to use such a folder, pass it itself")
            kept = _exclude(kept, masks)
    adjacent_masks = _find_adjacent_masks(kept)
    if adjacent_masks:
        _warn(root, adjacent_masks, "are named like masks of the images beside them")
        kept = _exclude(kept, adjacent_masks)
    if not kept:
        raise ValueError(
            f"{root} holds only masks, judging by the names of its folders; pass the folder of the images itself"
        )
    return kept


def _exclude(names: Sequence[str], excluded: Sequence[str]) -> list[str]:
    left_out = set(excluded)
    return [name for name in names if name not in left_out]


def _warn(root: Path, names: Sequence[str], reason: str) -> None:
    logger.warning("%s: skipping %d files that %s: %s", root, len(names), reason, format_list(names))


def _dataset_images(root: Path, names: list[str]) -> list[str] | None:
    """The images of labelled data with separate masks, and of `unlabelled`; `None` for other folders."""
    inner = unpacked_root(root)
    if inner != root:
        prefix = f"{inner.relative_to(root).as_posix()}/"
        outside = [name for name in names if not name.startswith(prefix)]
        found = _dataset_images(inner, [name.removeprefix(prefix) for name in names if name.startswith(prefix)])
        return None if found is None else [*outside, *(f"{prefix}{name}" for name in found)]
    try:
        if (root / PAIRS).is_file():
            return _paired_images(root, names)
        folders, _ = find_splits(root, find_layout(root))
    except (FileNotFoundError, ValueError):  # nothing is recognised, or several layouts
        return None
    images = {split.images for split in folders.values()}
    masks = {split.masks for split in folders.values()} - images
    if not any(name.startswith(_prefixes(root, masks)) for name in names):
        return None
    return [name for name in names if name.startswith((*_prefixes(root, images), *UNLABELLED))]


def _paired_images(root: Path, names: list[str]) -> list[str]:
    """All images except the masks listed in `pairs.csv` and other files in the masks' folders."""
    pairs = read_pairs(root).values()
    images, masks = (
        {os.path.relpath(path, root).replace(os.sep, "/") for files in path_dicts for path in files.values()}
        for path_dicts in ([split.images for split in pairs], [split.masks for split in pairs])
    )
    folders = {os.path.dirname(name) for name in masks} - {os.path.dirname(name) for name in images}
    return [name for name in names if name not in masks and os.path.dirname(name) not in folders]


def _prefixes(root: Path, folders: set[Path]) -> tuple[str, ...]:
    paths = (folder.relative_to(root).as_posix() for folder in folders)
    return tuple("" if path == "." else f"{path}/" for path in paths)


def _find_adjacent_masks(names: Sequence[str]) -> list[str]:
    by_folder = defaultdict(list)
    for name in names:
        folder, _, file = name.rpartition("/")
        by_folder[folder].append(file)
    masks = []
    for folder, files in by_folder.items():
        _, found = separate_masks(files) or (files, [])
        masks += [f"{folder}/{file}" if folder else file for file in found]
    return masks
