"""Locates the images and masks of a data set: in folders, or in the official layout of a known data set.

```
folder          classes.json, images/<split>/**/<sample_id>.jpg, annotations/<split>/**/<sample_id>.png; or what
                `folders.py` recognises, or pairs.csv
cityscapes      leftImg8bit/<split>/<city>/*_leftImg8bit.png, gtFine/<split>/<city>/*_gtFine_labelIds.png
pascal_context  JPEGImages, SegmentationClassContext (masks of 60 values, which pascal_context.py writes),
                ImageSets/SegmentationContext/{train,val}.txt or else ImageSets/Main/{train,val}.txt
ade20k          images/{training,validation}/*.jpg, annotations/{training,validation}/*.png
pascal_voc      JPEGImages, SegmentationClass, ImageSets/Segmentation/{train,val,trainval}.txt; for the split
                train_aug SegmentationClassAug, ImageSets/Segmentation/train_aug.txt or trainaug.txt
camvid          {train,val,test}/*.png, {train,val,test}annot/*.png, as in the SegNet tutorial
```

The folders of ADE20K may be in `ADEChallengeData2016`, those of VOC in `VOC2012`, those of Pascal Context in
`VOC2010`, and the latter two in `VOCdevkit`. Cityscapes has test masks, but without any class.
"""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ddep_hub.utils.files import format_list

from .class_files import read_class_table
from .classes import ClassTable
from .dataset_registry import get_dataset_info, list_datasets
from .folders import DEFAULT_OPTIONS, FolderOptions, SplitFolders, canonical_split, find_split_folders, match_split
from .generated_files import exclude_generated
from .image_io import IMAGE_EXTENSIONS, list_images, subfolders
from .mask_inspection import suggest_classes
from .name_matching import strip_extension
from .pairing import PAIRS, Pairs, by_sample_id, pair_files, read_pairs
from .splits import read_split_file


logger = logging.getLogger(__name__)

LAYOUTS = ("folder", *list_datasets())
_OFFICIAL_NAMES = {"training": "train", "validation": "val"}
_VOC_LISTS = ("train", "val", "trainval")
# Required contents of each layout, for messages.
_REQUIRED_CONTENTS = {
    "folder": "images/<split>/ and annotations/<split>/, <split>/images/ and <split>/masks/, images/ and masks/, or "
    "pairs.csv",
    "cityscapes": "leftImg8bit/<split>/ and gtFine/<split>/",
    "pascal_context": "VOC2010/ with JPEGImages/ and ImageSets/SegmentationContext/<split>.txt or "
    "ImageSets/Main/<split>.txt",
    "ade20k": "images/training/ADE_*.jpg or images/validation/ADE_*.jpg",
    "pascal_voc": "JPEGImages/, SegmentationClass/ and ImageSets/Segmentation/<split>.txt, for train_aug "
    "SegmentationClassAug/ and trainaug.txt",
    "camvid": "<split>/ and <split>annot/ for train, val or test",
}


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
    # Its file names distinguish ADE20K from a plain data set with a forgotten classes.json.
    ade20k_images = [_ade20k_root(root) / "images" / official for official in _OFFICIAL_NAMES]
    is_ade20k = any(next(folder.glob("ADE_*.jpg"), None) for folder in ade20k_images)
    voc, context = _voc_root(root, "VOC2012"), _voc_root(root, "VOC2010")
    detected = {
        "folder": (root / "images").is_dir() and not is_ade20k,
        "cityscapes": (root / "leftImg8bit").is_dir(),
        "pascal_context": _is_pascal_context(context),
        "ade20k": is_ade20k,
        # VOC2010 has such masks too, for a different task.
        "pascal_voc": (voc / "SegmentationClass").is_dir()
        and not _is_pascal_context(voc)
        # Without the official lists, folders with these names are user data.
        and (bool(official_folders(root, "pascal_voc")) or not (options.classes or (root / "classes.json").is_file())),
        "camvid": bool(official_folders(root, "camvid")),
    }
    layouts = [layout for layout in LAYOUTS if detected[layout]]
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
            else f"{root} has no split in the layout {layout!r}, which needs {_REQUIRED_CONTENTS[layout]}; if the "
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
        needs = "" if layout == "folder" else f", and a split of {layout} needs {_REQUIRED_CONTENTS[layout]}"
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
    if layout == "pascal_context" and not split_dirs.masks.is_dir():
        raise FileNotFoundError(
            f"{split_dirs.masks} is missing; make the masks from the official annotations with "
            f"`python -m ddep_hub.data.pascal_context {split_dirs.masks.parent} path/to/trainval`"
        )
    image_suffix, mask_suffix = ("_leftImg8bit", "_gtFine_labelIds") if layout == "cityscapes" else ("", "")
    images = (
        _read_image_list(split_dirs.images, split_dirs.list_file)
        if split_dirs.list_file
        else _find_images(split_dirs.images, image_suffix)
    )
    masks = {sample_id: split_dirs.masks / f"{sample_id}{mask_suffix}.png" for sample_id in images}
    info = get_dataset_info(layout)
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
    requirements = "; ".join(f"{layout}: {contents}" for layout, contents in _REQUIRED_CONTENTS.items())
    return (
        f"{root / 'images'} is not a folder, and no other layout is recognised in {root}, which holds "
        f"{format_list(entries) if entries else 'nothing'}; pass a folder with one of these layouts ({requirements}), "
        f"set image_dir and mask_dir, list the files in {PAIRS}, or convert the export of an annotation tool with "
        "`ddep-hub prepare`"
    )


def official_folders(root: Path, layout: str) -> dict[str, SplitFolders]:
    """The existing splits, by the names that users pass."""
    if layout == "cityscapes":
        names = subfolders(root / "leftImg8bit")
        folders = {name: SplitFolders(root / "leftImg8bit" / name, root / "gtFine" / name) for name in names}
    elif layout == "ade20k":
        base = _ade20k_root(root)
        folders = {
            name: SplitFolders(base / "images" / official, base / "annotations" / official)
            for official, name in _OFFICIAL_NAMES.items()
        }
    elif layout == "camvid":
        names = [name for name in ("train", "val", "test") if (root / f"{name}annot").is_dir()]
        folders = {name: SplitFolders(root / name, root / f"{name}annot") for name in names}
    elif layout == "pascal_voc":
        base = _voc_root(root, "VOC2012")
        images, masks, lists = base / "JPEGImages", base / "SegmentationClass", base / "ImageSets" / "Segmentation"
        folders = {name: SplitFolders(images, masks, lists / f"{name}.txt") for name in _VOC_LISTS}
        augmented = [lists / name for name in ("train_aug.txt", "trainaug.txt") if (lists / name).is_file()]
        if augmented and (base / "SegmentationClassAug").is_dir():
            folders["train_aug"] = SplitFolders(images, base / "SegmentationClassAug", augmented[0])
    elif layout == "pascal_context":
        base = _voc_root(root, "VOC2010")
        images, masks = base / "JPEGImages", base / "SegmentationClassContext"
        # Pascal Context's own list comes last, so that it replaces the one in Main.
        names = [f"{folder}/{name}.txt" for folder in ("Main", "SegmentationContext") for name in ("train", "val")]
        files = [base / "ImageSets" / name for name in names]
        folders = {file.stem: SplitFolders(images, masks, file) for file in files if file.is_file()}
    else:
        raise ValueError(f"layout {layout!r} is unknown; choose one of {', '.join(LAYOUTS)}")
    return {
        name: split_dirs
        for name, split_dirs in folders.items()
        if (split_dirs.list_file.is_file() if split_dirs.list_file else split_dirs.images.is_dir())
    }


def _ade20k_root(root: Path) -> Path:
    inner = root / "ADEChallengeData2016"
    return inner if inner.is_dir() else root


def _voc_root(root: Path, name: str) -> Path:
    candidates = (root / "VOCdevkit" / name, root / name)
    return next((candidate for candidate in candidates if candidate.is_dir()), root)


def _is_pascal_context(voc_root: Path) -> bool:
    # Also by its name, so that VOC2010 without converted masks is not mistaken for VOC with its 21 classes.
    has_name = voc_root.absolute().name == "VOC2010" and (voc_root / "JPEGImages").is_dir()
    return has_name or (voc_root / "SegmentationClassContext").is_dir()


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
