"""Finds the image and mask folders of a data set that is not a known one.

Recognised layouts, also with other common names for images, masks and splits, any letter case, and subfolders:

```
images/<split>   annotations/<split>      also img_dir/<split>, ann_dir/<split> (mmsegmentation)
<split>/images   <split>/masks            lightly-train
<split>_images   <split>_masks            also <split>, <split>_masks
images           masks                    one split, `train`
<split>          the masks beside the images: a.jpg, a_mask.png; or in the folder of the data set itself
<patient>        masks beside the images, or in images and masks below it; one split, or <split>/<patient>
```
"""

import functools
import glob
import os
import re
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .image_io import IMAGE_EXTENSIONS, iter_files, subfolders
from .name_matching import IMAGE_WORDS, MASK_EXTENSIONS, MASK_WORDS
from .pairing import PAIRS, has_patients, images_and_masks


_SPLITS = {"train": "train training tr", "val": "val valid validation dev", "test": "test testing ts"}
_SPLIT_BY_WORD = {word: split for split, words in _SPLITS.items() for word in words.split()}
# Instead of a split name, for a folder with the images of both.
TRAIN_AND_VAL = "trainval"
_FORMAT_WORDS = set("dir png jpg jpeg tif tiff class".split())


@dataclass(frozen=True)
class SplitFolders:
    """Location of a split; without a list, all images of the folder are in it."""

    images: Path
    masks: Path
    list_file: Path | None = None


@dataclass(frozen=True)
class FolderOptions:
    """Locations of images and masks, if not detected; see [`find_split_folders`] and [`pair_files`].

    Args:
        image_dir: Folder of the images, relative to the data set's folder or absolute; `{split}` stands for the split.
        mask_dir: The same for the masks.
        mask_suffix: Suffix of mask names after the image's name.
        classes: `classes.json`, if it is not in the data set's folder.
    """

    image_dir: str | None = None
    mask_dir: str | None = None
    mask_suffix: str | None = None
    classes: str | Path | None = None

    @property
    def has_folders(self) -> bool:
        """Whether a folder or a suffix is given."""
        return (self.image_dir, self.mask_dir, self.mask_suffix) != (None, None, None)


DEFAULT_OPTIONS = FolderOptions()
_DESCRIPTIONS = ("classes.json", PAIRS, "labelmap.txt", "label_colors.txt", "class_dict.csv")


def unpacked_root(root: str | Path, options: FolderOptions = DEFAULT_OPTIONS) -> Path:
    """The single subfolder of an unpacked archive, if it has files that describe the data; else `root`.

    Folders in `options` are relative to `root`, so with these, `root` is returned.
    """
    root = Path(root)

    def is_described(folder: Path) -> bool:
        return any((folder / name).is_file() for name in _DESCRIPTIONS)

    inner = subfolders(root)
    if options.has_folders or is_described(root) or len(inner) != 1:
        return root
    candidate = unpacked_root(root / inner[0])
    return candidate if is_described(candidate) else root


def match_split(names: Collection[str], split: str) -> str | None:
    """Finds a split among these names, or a common synonym such as `valid` for `val`; `None` if there is none."""
    if split in names:
        return split
    canonical = canonical_split(split)
    return next((name for name in names if canonical and canonical_split(name) == canonical), None)


def canonical_split(name: str) -> str | None:
    """`train`, `val` or `test` for a common split name in any letter case, such as `Validation`; otherwise `None`."""
    return _SPLIT_BY_WORD.get(name.lower())


def find_split_folders(root: Path, options: FolderOptions = DEFAULT_OPTIONS) -> dict[str, SplitFolders]:
    """Finds the folders of images and masks of each split, keyed by the split's name; a mask folder need not exist.

    Those not set in `options` are detected; `mask_suffix` then distinguishes masks from images in the same folder.
    Raises a FileNotFoundError if `image_dir` is not a folder, and a ValueError if several folders match.
    """
    image_dir, mask_dir, mask_suffix = options.image_dir, options.mask_dir, options.mask_suffix

    def find_masks(split: str | None, images: Path) -> Path:
        if mask_dir is None:
            return _find_mask_folder(root, split, images, mask_suffix)
        name = match_split(_expand_pattern(root, mask_dir), split or "train")
        return root / mask_dir.replace("{split}", name or str(split))

    if image_dir is None:
        by_split = _detect_folders(root, find_masks, mask_suffix)
        if mask_dir is not None or any(folders.masks.is_dir() for folders in by_split.values()):
            return by_split
        inner = subfolders(root)
        if not by_split and len(inner) == 1:
            # An archive unpacked into its own folder.
            return find_split_folders(root / inner[0], options)
        if found := _detect_by_words(root):
            return found
        has_split = by_split or not has_patients(root, mask_suffix)
        return by_split if has_split else {"train": SplitFolders(root, root)}
    folders = _expand_pattern(root, image_dir)
    if not folders:
        raise FileNotFoundError(f"image_dir: {root / image_dir} is not a folder. Correct it, or leave it out.")
    has_one_split = "{split}" not in image_dir
    return {
        name: SplitFolders(folder, find_masks(None if has_one_split else name, folder))
        for name, folder in folders.items()
    }


def _expand_pattern(root: Path, pattern: str) -> dict[str, Path]:
    """Folders of a pattern by split; one split, `train`, without `{split}`."""
    if "{split}" not in pattern:
        return {"train": root / pattern} if (root / pattern).is_dir() else {}
    full_pattern = os.path.normpath(root / pattern)
    expression = re.escape(full_pattern).replace(re.escape("{split}"), "(?P<split>[^/]+)", 1)
    expression = expression.replace(re.escape("{split}"), "(?P=split)")
    folders = sorted(glob.glob(glob.escape(full_pattern).replace("{split}", "*")))
    matches = [(re.fullmatch(expression, folder), Path(folder)) for folder in folders if os.path.isdir(folder)]
    return {match["split"]: folder for match, folder in matches if match}


def _detect_folders(
    root: Path, find_masks: Callable[[str | None, Path], Path], mask_suffix: str | None
) -> dict[str, SplitFolders]:
    folders = {name: _parse_folder_name(name) for name in subfolders(root)}
    image_folder = _choose_folder(root, [name for name, meaning in folders.items() if meaning == ("image", None)])
    by_split: dict[str, SplitFolders] = {}
    if image_folder is not None:
        image_root = root / image_folder
        has_loose_images = _contains_files(image_root, IMAGE_EXTENSIONS, recursive=False)
        splits = [name for name in subfolders(image_root) if not has_loose_images or canonical_split(name)]
        if has_loose_images and splits:
            warnings.warn(
                f"{image_root} holds images next to the folders {', '.join(splits)}: they are in no split, and "
                "skipped.",
                stacklevel=2,
            )
        has_split_names = any(map(canonical_split, splits))
        if not splits or (not has_split_names and not (root / "annotations").is_dir()):
            by_split = {"train": SplitFolders(image_root, find_masks(None, image_root))}  # its folders are not splits
        else:
            by_split = {name: SplitFolders(image_root / name, find_masks(name, image_root / name)) for name in splits}
    for name, meaning in folders.items():
        role, split = meaning or (None, None)
        if split in (None, TRAIN_AND_VAL) or role == "mask" or match_split(by_split, name):
            continue
        inner = [child for child in subfolders(root / name) if _parse_folder_name(child) == ("image", None)]
        images = root / name
        if role is None and inner:
            images /= _choose_folder(images, inner) or inner[0]
        elif not _contains_files(images, IMAGE_EXTENSIONS):
            continue
        masks = find_masks(split, images)
        if masks.is_dir() or role == "image" or inner:
            by_split[name if role is None else split] = SplitFolders(images, masks)
    if by_split:
        _add_other_folders(root, folders, by_split, find_masks)
    if not by_split and images_and_masks(root, mask_suffix) is not None:
        by_split["train"] = SplitFolders(root, root)
    return by_split


def _add_other_folders(
    root: Path,
    folders: Mapping[str, tuple[str | None, str | None] | None],
    by_split: dict[str, SplitFolders],
    find_masks: Callable[[str | None, Path], Path],
) -> None:
    """Adds `train_val` (SUIM) if there is no training split; warns about images and masks that belong to no split."""
    unused = []
    for name, meaning in folders.items():
        if meaning not in (None, (None, TRAIN_AND_VAL)):
            continue
        inner = {child: _parse_folder_name(child) for child in subfolders(root / name)}
        if not {("image", None), ("mask", None)} <= set(inner.values()):
            continue
        if meaning is None:
            unused.append(name)
        elif match_split(by_split, "train") is None:
            images = root / name / next(child for child in inner if inner[child] == ("image", None))
            by_split["train"] = SplitFolders(images, find_masks("train", images))
    if unused:
        warnings.warn(
            f"{root}: {' and '.join(unused)} hold images and masks too, but are named like no split, and skipped. "
            "Rename them, or choose the folders with image_dir and mask_dir.",
            stacklevel=2,
        )


def _detect_by_words(root: Path) -> dict[str, SplitFolders]:
    """The only folder whose name has a word for masks, and the only other one with images."""
    words = {name: {word.lower() for word in re.findall("[A-Z]?[a-z]+|[A-Z]+", name)} for name in subfolders(root)}
    masks = [path.name for path in _with_masks(root / name for name in words if words[name] & MASK_WORDS)]
    images = [name for name in words if name not in masks and _contains_files(root / name, IMAGE_EXTENSIONS)]
    named_images = [name for name in images if words[name] & IMAGE_WORDS]
    images = named_images if len(named_images) == 1 else images
    if len(masks) != 1 or len(images) != 1:
        return {}
    folders = SplitFolders(root / images[0], root / masks[0])
    splits = {name: match_split(subfolders(folders.masks), name) for name in subfolders(folders.images)}
    if splits and all(canonical_split(name) and mask_split for name, mask_split in splits.items()):
        return {
            name: SplitFolders(folders.images / name, folders.masks / str(mask_split))
            for name, mask_split in splits.items()
        }
    return {"train": folders}


def _find_mask_folder(root: Path, split: str | None, images: Path, mask_suffix: str | None) -> Path:
    """The folder where the masks of these images belong: an existing one, if any is recognised."""
    candidates: list[Path] = []
    canonical = split and (canonical_split(split) or split)
    for parent in (images.parent, root):
        for name in subfolders(parent):
            meaning = _parse_folder_name(name)
            inner = subfolders(parent / name) if meaning == ("mask", None) and parent == root and split else []
            if inner and (same_split := match_split(inner, str(split))):
                candidates.append(parent / name / same_split)
            elif meaning in (("mask", None), ("mask", canonical)) and not any(map(canonical_split, inner)):
                candidates.append(parent / name)
    unique = _with_masks(dict.fromkeys(candidates))
    in_annotations = [folder for folder in unique if root / "annotations" in (folder, *folder.parents)]
    if len(unique) > 1 and not in_annotations:
        names = " and ".join(os.path.relpath(folder, root) for folder in unique)
        raise ValueError(f"{root}: both {names} hold masks. Choose with mask_dir.")
    if unique:
        return (in_annotations or unique)[0]
    if images_and_masks(images, mask_suffix) is not None or has_patients(images, mask_suffix):
        return images
    return root / "annotations" / split if split is not None and (root / "images").is_dir() else root / "annotations"


def _with_masks(folders: Iterable[Path]) -> list[Path]:
    """The folders with masks; arrays count only if no folder has image files."""
    found = [folder for folder in folders if _contains_files(folder, MASK_EXTENSIONS)]
    pictures = tuple(extension for extension in MASK_EXTENSIONS if extension != ".npy")
    return [folder for folder in found if _contains_files(folder, pictures)] or found


def is_mask_folder(name: str) -> bool:
    """Whether a folder's name suggests masks, such as `masks`, `gt` or `train_labels`."""
    meaning = _parse_folder_name(name)
    return meaning is not None and meaning[0] == "mask"


def is_in_mask_folder(name: str) -> bool:
    """Whether the name of any folder in a relative path, with forward slashes, suggests masks."""
    return any(map(is_mask_folder, name.split("/")[:-1]))


@functools.cache
def _parse_folder_name(name: str) -> tuple[str | None, str | None] | None:
    """Whether a folder's name means images or masks, and for which split; `None` if it means something else."""
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name)
    words = [name] if name.lower() in IMAGE_WORDS | MASK_WORDS else words
    if re.fullmatch(r"(1st|2nd)_manual\d*|manual\d+", name.lower()):  # DRIVE, HRF: `mask` is the field of view
        return "mask", None
    roles, splits = set[str](), set[str]()
    for word in (word.lower() for word in words):
        compound = re.fullmatch("(train|val|test)([a-z]+)", word)
        for part in compound.groups() if compound and compound[2] in IMAGE_WORDS | MASK_WORDS else [word]:
            if split := canonical_split(part):
                splits.add(split)
            elif part in MASK_WORDS | IMAGE_WORDS:
                roles.add("mask" if part in MASK_WORDS else "image")
            elif part not in _FORMAT_WORDS:
                return None
    if splits == {"train", "val"}:  # both in one folder, as in SUIM
        splits = {TRAIN_AND_VAL}
    if len(splits) > 1 or not (roles or splits):
        return None
    return "mask" if "mask" in roles else "image" if roles else None, next(iter(splits), None)


def _choose_folder(parent: Path, names: Sequence[str]) -> str | None:
    """The one of these folders with images; `images` if it is among them."""
    if "images" in names:
        return "images"
    with_images = [name for name in names if _contains_files(parent / name, IMAGE_EXTENSIONS)]
    if len(with_images) > 1:
        raise ValueError(f"{parent}: both {' and '.join(with_images)} hold images. Choose with image_dir.")
    return with_images[0] if with_images else None


def _contains_files(folder: Path, extensions: tuple[str, ...], *, recursive: bool = True) -> bool:
    return any(iter_files(folder, extensions, recursive=recursive))
