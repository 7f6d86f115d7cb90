"""Locates the images and masks of a data set: in folders, or in the official layout of a known data set.

The layout `folder` has `classes.json`, `images/<split>/**/<sample_id>.jpg` and
`annotations/<split>/**/<sample_id>.png`, or what `folders.py` recognises, or `pairs.csv`. `dataset_registry.json`
describes the others.
"""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ddep_hub.utils.files import format_list

from .class_files import read_class_table, suggest_classes
from .classes import ClassTable
from .dataset_registry import OfficialLayout, get_dataset_info, list_datasets
from .folders import DEFAULT_OPTIONS, FolderOptions, SplitFolders, canonical_split, find_split_folders, match_split
from .generated_files import exclude_generated
from .image_io import IMAGE_EXTENSIONS, list_images, subfolders
from .name_matching import strip_extension
from .pairing import PAIRS, Pairs, by_sample_id, pair_files, read_pairs
from .splits import read_split_file


logger = logging.getLogger(__name__)

LAYOUTS = ("folder", *list_datasets())
# What the layout `folder` needs, for messages.
_FOLDER_REQUIRES = (
    "images/<split>/ and annotations/<split>/, <split>/images/ and <split>/masks/, images/ and masks/, or pairs.csv"
)


@dataclass(frozen=True)
class SplitFiles:
    """The files of one split.

    Args:
        splits: The splits of the data set, sorted.
        images: Image path by sample id, in the order of the official list, or sorted.
        masks: Mask path by sample id; the file need not exist.
        mapping: Class id of every value in the masks; None if the values are the ids.
        groups: Group of each sample, such as a slide, if known from `pairs.csv` or folders.
    """

    image_folder: Path
    mask_folder: Path
    splits: list[str]
    images: dict[str, Path]
    masks: dict[str, Path]
    classes: ClassTable
    mapping: Mapping[int, int] | None
    groups: Mapping[str, str] = field(default_factory=dict)


def find_layout(root: str | Path, options: FolderOptions = DEFAULT_OPTIONS) -> str:
    """Detects a data set's layout, one of `LAYOUTS`, from the contents of its folder.

    With a `pairs.csv`, or with folders or a suffix in `options`, it is `folder`. Raises a FileNotFoundError that lists
    what was expected and what was found, or a ValueError that lists the candidates if several layouts match.
    """
    root = Path(root)
    if options.has_folders or (root / PAIRS).is_file():
        return "folder"
    if (root / "images").is_dir() and (root / "classes.json").is_file():
        return "folder"
    has_classes = bool(options.classes) or (root / "classes.json").is_file()
    layouts = [name for name in list_datasets() if _is_layout(root, name, has_classes)]
    # A data set with images in this folder is told from a plain one with a forgotten classes.json by its file names.
    known = [split.images for name in layouts for split in get_dataset_info(name).layout.splits]
    if (root / "images").is_dir() and not any(images.startswith("images/") for images in known):
        layouts.insert(0, "folder")
    if len(layouts) > 1:
        raise ValueError(
            f"{root} has the layouts of {' and '.join(layouts)}; pass the folder of one of them, or set image_dir "
            "and mask_dir"
        )
    if layouts:
        return layouts[0]
    if find_split_folders(root):
        return "folder"
    raise FileNotFoundError(_not_found_message(root))


def find_splits(
    root: Path, layout: str, options: FolderOptions = DEFAULT_OPTIONS
) -> tuple[dict[str, SplitFolders], dict[str, Pairs]]:
    """The folders of a data set by split, and the pairs by split if `pairs.csv` lists them.

    Official names such as `training` become `train` and `val`; those of the layout `folder` stay as they are.
    """
    if layout == "folder" and (root / PAIRS).is_file() and not options.has_folders:
        listed = read_pairs(root)
        return dict.fromkeys(listed, SplitFolders(root, root)), listed
    if layout == "folder":
        folders = find_split_folders(root, options)
    else:
        folders = official_folders(root, layout)
    if not folders:
        raise FileNotFoundError(
            _not_found_message(root)
            if layout == "folder"
            else f"{root} has no split in the layout {layout!r}, which needs {_requires(layout)}; if the "
            "classes are your own, name them in classes.json"
        )
    return folders, {}


def split_files(root: str | Path, split: str, layout: str, options: FolderOptions = DEFAULT_OPTIONS) -> SplitFiles:
    """Finds the images and masks of a split; `split` may also be another common name, such as `valid` for `val`.

    A sample id is an image's path in its folder without suffix and, in Cityscapes, without `_leftImg8bit`, as
    `read_split_file` returns it for published lists. `options` set the folders of the layout `folder`, and the classes
    of any layout. Raises a FileNotFoundError if the split, one of its images or `classes.json` is missing.
    """
    root = Path(root)
    folders, listed = find_splits(root, layout, options)
    splits, name = sorted(folders), match_split(folders, split)
    if name is None:
        folder = root / "images" if layout == "folder" and (root / "images").is_dir() else root
        needs = "" if layout == "folder" else f", and a split of {layout} needs {_requires(layout)}"
        hint = "choose one of these with --train_split or --eval_split"
        if canonical_split(split) != "train":
            hint = (
                "choose one of these with --eval_split, or let fine-tuning hold out a part of the training images "
                "with --val_fraction"
            )
        raise FileNotFoundError(f"{folder} has no split {split!r}; it has {splits}{needs}; {hint}")
    split_dirs = folders[name]
    if layout == "folder":
        pairs = listed.get(name) or pair_files(split_dirs.images, split_dirs.masks, options.mask_suffix)
        masks, classes = _folder_files(root, split_dirs, pairs, options)
        return SplitFiles(
            split_dirs.images, split_dirs.masks, splits, pairs.images, masks, classes, None, pairs.groups
        )
    info = get_dataset_info(layout)
    official = info.layout
    if official.make_masks and not split_dirs.masks.is_dir():
        hint = official.make_masks.format(folder=split_dirs.masks.parent)
        raise FileNotFoundError(f"{split_dirs.masks} is missing; {hint}")
    images = (
        _read_image_list(split_dirs.images, split_dirs.list_file)
        if split_dirs.list_file
        else _find_images(split_dirs.images, official.image_suffix)
    )
    masks = {sample_id: split_dirs.masks / f"{sample_id}{official.mask_suffix}.png" for sample_id in images}
    classes = info.classes
    mapping: Mapping[int, int] | None = info.mapping
    if options.classes:
        # The user's own data in a known layout, as exported by annotation tools.
        user_classes = read_class_table(options.classes)
        if user_classes.names != classes.names or user_classes.mask_values:
            classes, mapping = user_classes, None
        else:  # official masks may have no such value
            mapping = {user_classes.ignore_index: classes.ignore_index, **info.mapping}
    return SplitFiles(split_dirs.images, split_dirs.masks, splits, images, masks, classes, mapping)


def _folder_files(
    root: Path, split_dirs: SplitFolders, pairs: Pairs, options: FolderOptions
) -> tuple[dict[str, Path], ClassTable]:
    """The masks and classes of a split of the layout `folder`; warns about masks without an image."""
    if pairs.unmatched:
        logger.warning(
            "%s: skipping %d masks without an image: %s",
            split_dirs.masks,
            len(pairs.unmatched),
            format_list(pairs.unmatched),
        )
    classes_path = Path(options.classes or root / "classes.json")
    if not classes_path.exists() and not options.classes and pairs.masks:
        raise FileNotFoundError(f"{classes_path} is missing. {suggest_classes(list(pairs.masks.values()))}")
    suffix = strip_extension(options.mask_suffix or "")
    masks = {sample_id: split_dirs.masks / f"{sample_id}{suffix}.png" for sample_id in pairs.images}
    # In messages, the path of a missing mask must not be the image itself.
    masks |= {
        name: split_dirs.masks / f"{name}_mask.png" for name, image in pairs.images.items() if masks[name] == image
    }
    return masks | pairs.masks, read_class_table(classes_path)


def _not_found_message(root: Path) -> str:
    if not root.is_dir():
        return f"{root} is not a folder; check the path"
    entries = sorted(path.name + "/" * path.is_dir() for path in root.glob("*") if not path.name.startswith("."))
    requirements = "; ".join(f"{layout}: {_requires(layout)}" for layout in LAYOUTS)
    return (
        f"{root / 'images'} is not a folder, and no other layout is recognised in {root}, which holds "
        f"{format_list(entries) if entries else 'nothing'}; pass a folder with one of these layouts ({requirements}), "
        f"set image_dir and mask_dir, list the files in {PAIRS}, or convert the export of an annotation tool with "
        "`ddep-hub prepare`"
    )


def _requires(layout: str) -> str:
    return _FOLDER_REQUIRES if layout == "folder" else get_dataset_info(layout).layout.requires


def official_folders(root: Path, layout: str) -> dict[str, SplitFolders]:
    """The existing splits of a known data set, by the names that users pass."""
    if layout not in list_datasets():
        raise ValueError(f"layout {layout!r} is unknown; choose one of {', '.join(LAYOUTS)}")
    official = get_dataset_info(layout).layout
    base, found = _dataset_folder(root, official), {}
    for split in official.splits:
        for name in subfolders((base / split.images).parent) if split.name == "*" else [split.name]:
            images, masks = (base / path.replace("*", name) for path in (split.images, split.masks))
            list_file = base / split.list if split.list else None
            exists = list_file.is_file() if list_file else images.is_dir()
            if exists and (masks.is_dir() or not split.needs_masks):
                found[name] = SplitFolders(images, masks, list_file)
    return found


def _is_layout(root: Path, name: str, has_classes: bool) -> bool:
    """Whether a folder is a known data set; `has_classes` says that a class table of the user's describes it."""
    official, splits = get_dataset_info(name).layout, official_folders(root, name)
    base = _dataset_folder(root, official)
    if not official.evidence:
        return bool(splits)
    if official.unless and _has_evidence(base, get_dataset_info(official.unless).layout):
        return False
    return _has_evidence(base, official) and (bool(splits) or not (official.generic_names and has_classes))


def _dataset_folder(root: Path, official: OfficialLayout) -> Path:
    candidates = (root / name for name in official.folders)
    return next((candidate for candidate in candidates if candidate.is_dir()), root)


def _has_evidence(base: Path, official: OfficialLayout) -> bool:
    for pattern in official.evidence:
        first, _, rest = pattern.partition("/")
        if first in {Path(folder).name for folder in official.folders}:
            # By its name, VOC2010 without converted masks is not mistaken for VOC with its 21 classes.
            if base.absolute().name != first:
                continue
            pattern = rest
        if next(base.glob(pattern), None):
            return True
    return False


def _find_images(folder: Path, suffix: str) -> dict[str, Path]:
    names = exclude_generated(folder, list_images(folder))
    images = by_sample_id(folder, [name for name in names if os.path.splitext(name)[0].endswith(suffix)])
    if not images:
        raise ValueError(f"{folder} holds no image whose name ends with {suffix}.png; check the path")
    return {sample_id.removesuffix(suffix): folder / name for sample_id, name in images.items()}


def _read_image_list(folder: Path, list_file: Path) -> dict[str, Path]:
    files = sorted(folder.iterdir(), key=lambda path: (path.suffix == ".jpg", path)) if folder.is_dir() else []
    images = {path.stem: path for path in files if path.suffix.lower() in IMAGE_EXTENSIONS}
    # Per-class lists have a column for whether an image shows the class.
    listed = read_split_file(list_file, images)
    sample_ids = [sample_id if sample_id in images else sample_id.split()[0] for sample_id in listed]
    missing = [f"{sample_id}.jpg" for sample_id in sample_ids if sample_id not in images]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(sample_ids)} images of {list_file} are not in {folder}: {format_list(missing)}; "
            "add the images, or take them out of the list"
        )
    return {sample_id: images[sample_id] for sample_id in sample_ids}
